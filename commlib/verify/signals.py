"""Signals: each counter has one owner at each end, and as many waits as signals.

A counter is (sender, receiver, channel). Where all its signals are in one threadblock and all its waits in one, the
k-th wait returns because of the k-th signal, in every run. There must be as many waits as signals: counters are never
reset, so that a signal nobody waited for would let a wait of the next call return too early.
"""

from __future__ import annotations

import numpy as np

from commlib.ir.algorithm import Algorithm, Ints
from commlib.ir.links import Links
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe


def check_signals(algorithm: Algorithm, links: Links, findings: Findings) -> None:
    """Report counters shared by threadblocks, and those with other numbers of waits than signals.

    ``links`` are ``signal_links`` of the algorithm.
    """
    a = algorithm
    for steps, link, word in (
        (links.sends, links.send_link, "signal"),
        (links.recvs, links.recv_link, "wait for"),
    ):
        block, same = a.step_threadblock[steps], np.diff(link[steps]) == 0
        for i in np.flatnonzero(same & (np.diff(block) != 0)).tolist():
            findings.add(_shared(a, links, int(steps[i]), int(steps[i + 1]), word))
    for counter in np.flatnonzero(np.diff(links.send_start) != np.diff(links.recv_start)).tolist():
        findings.make(FindingKind.MATCH, _unequal, a, links, counter)


def _shared(a: Algorithm, links: Links, before: int, here: int, word: str) -> Finding:
    counter = int(links.send_link[here] if word == "signal" else links.recv_link[here])
    peer, channel = int((links.receiver if word == "signal" else links.sender)[counter]), int(links.channel[counter])
    message = (
        f"two threadblocks {word} rank {peer} on channel {channel}, so that nothing says which comes first: "
        f"{describe(a, before)} and {describe(a, here)}; use a channel for each"
    )
    return at_step(
        a, FindingKind.CONNECTION, message, here, peer=peer, channel=channel, others=(a.place(before),)
    )  # fmt: skip


def _unequal(a: Algorithm, links: Links, counter: int) -> Finding:
    sender, receiver, channel = (int(column[counter]) for column in (links.sender, links.receiver, links.channel))
    sent: Ints = links.sends[links.send_start[counter] : links.send_start[counter + 1]]
    awaited: Ints = links.recvs[links.recv_start[counter] : links.recv_start[counter + 1]]
    more = len(sent) > len(awaited)
    number = int((sent if more else awaited)[min(len(sent), len(awaited))])
    lack = "nobody waits for the signal of" if more else "no signal ends the wait of"
    message = (
        f"rank {sender} signals rank {receiver} {len(sent)} times on channel {channel}, and rank {receiver} waits for "
        f"that {len(awaited)} times: {lack} {describe(a, number)}"
    )
    return at_step(a, FindingKind.MATCH, message, number, peer=receiver if more else sender, channel=channel)

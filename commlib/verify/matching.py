"""Connections and matching: every connection has one owner at each end, and its k-th send is its k-th receive."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from commlib.ir.algorithm import RECEIVES, SENDS, Algorithm, Ints
from commlib.ir.links import Links
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe


def check_connections(algorithm: Algorithm, links: Links, findings: Findings) -> None:
    """Report connections of a rank with itself and connections that two threadblocks of a rank share."""
    a = algorithm
    for flags, peers in ((SENDS, a.tb_send), (RECEIVES, a.tb_recv)):
        own = flags[a.op] & (peers == a.tb_rank)[a.step_threadblock]
        for number in _first_of_each(a.step_threadblock, np.flatnonzero(own)):
            message = f"{describe(a, number)} exchanges messages with its own rank; use cpy or re"
            findings.add(at_step(a, FindingKind.CONNECTION, message, number, peer=a.place(number)[0]))
    for steps, start, verb in ((links.sends, links.send_start, "send"), (links.recvs, links.recv_start, "receive")):
        _check_shared(a, links, steps, start, verb, findings)


def _first_of_each(group: Ints, numbers: Ints) -> Iterator[int]:
    return (int(numbers[i]) for i in np.unique(group[numbers], return_index=True)[1])


def _check_shared(a: Algorithm, links: Links, steps: Ints, start: Ints, verb: str, findings: Findings) -> None:
    block = a.step_threadblock[steps]
    same_link = np.ones(len(steps), dtype=bool)
    same_link[start[:-1][start[:-1] < len(steps)]] = False
    changes = np.flatnonzero(same_link & (block != np.roll(block, 1)))
    for i in changes.tolist():
        link = int(np.searchsorted(start, i, side="right")) - 1
        here, before = int(steps[i]), int(steps[i - 1])
        sender, receiver, channel = (int(column[link]) for column in (links.sender, links.receiver, links.channel))
        message = (
            f"two threadblocks {verb} on the connection {sender} -> {receiver} channel {channel}, so that nothing "
            f"orders its messages: {describe(a, before)} and {describe(a, here)}"
        )
        peer = receiver if verb == "send" else sender
        others = (a.place(before),)
        findings.add(at_step(a, FindingKind.CONNECTION, message, here, peer=peer, channel=channel, others=others))


def check_matching(algorithm: Algorithm, links: Links, findings: Findings) -> None:
    """Report, for each connection, the first message whose two ends differ or are not both there."""
    if links.partners(algorithm.count) is not None:
        return
    for link in range(len(links)):
        finding = _first_mismatch(algorithm, links, link)
        if finding is not None:
            findings.add(finding)


def _first_mismatch(a: Algorithm, links: Links, link: int) -> Finding | None:
    sends = links.sends[links.send_start[link] : links.send_start[link + 1]]
    recvs = links.recvs[links.recv_start[link] : links.recv_start[link + 1]]
    both = min(len(sends), len(recvs))
    differ = np.flatnonzero(a.count[sends[:both]] != a.count[recvs[:both]])
    name = f"connection {links.sender[link]} -> {links.receiver[link]} channel {links.channel[link]}"
    channel = int(links.channel[link])
    if len(differ):
        k = int(differ[0])
        send, recv = int(sends[k]), int(recvs[k])
        message = (
            f"{name}: message {k} is sent with count {a.count[send]} by {describe(a, send)} "
            f"but received with count {a.count[recv]} by {describe(a, recv)}"
        )
        others = (a.place(recv),)
        peer = int(links.receiver[link])
        return at_step(a, FindingKind.MATCH, message, send, peer=peer, channel=channel, others=others)
    if len(sends) == len(recvs):
        return None
    return _unanswered(a, links, link, name, sends, recvs)


def _unanswered(a: Algorithm, links: Links, link: int, name: str, sends: Ints, recvs: Ints) -> Finding:
    sent_more = len(sends) > len(recvs)
    longer = sends if sent_more else recvs
    number = int(longer[min(len(sends), len(recvs))])
    lack = "never received" if sent_more else "never sent"
    message = (
        f"{name}: {len(sends)} messages are sent and {len(recvs)} received; "
        f"the message of {describe(a, number)} is {lack}"
    )
    peer = int((links.receiver if sent_more else links.sender)[link])
    return at_step(a, FindingKind.MATCH, message, number, peer=peer, channel=int(links.channel[link]))

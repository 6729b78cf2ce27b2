"""Links: which connections an Algorithm uses, and which message of which step is the k-th on each.

A connection is (sender, receiver, channel). Verifier, statistics and runtimes need the same answer to "who receives
what this step sends": it is worked out here once, on columns, in O(steps log steps). Signals and waits meet in the
same way, on rows of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, RECEIVES, SENDS, SYNCHRONIZES, Algorithm, Ints, Op

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Links:
    """The connections that some step uses, one row each, in (sender, receiver, channel) order.

    ``sends[send_start[c]:send_start[c + 1]]`` are the steps that send on connection c, in order, and so ``recvs``.
    ``send_link`` and ``recv_link`` have the connection of each step, or NOTHING.
    """

    sender: Ints
    receiver: Ints
    channel: Ints
    sends: Ints
    send_start: Ints
    recvs: Ints
    recv_start: Ints
    send_link: Ints
    recv_link: Ints

    def __len__(self) -> int:
        return len(self.sender)

    def partners(self, count: Ints) -> Ints | None:
        """The step that receives what each step sends (NOTHING for the others).

        None when sends and receives do not match in number and count, so that the question has no answer.
        """
        if not np.array_equal(self.send_start, self.recv_start):
            return None
        if not np.array_equal(count[self.sends], count[self.recvs]):
            return None
        partner = np.full(len(self.send_link), NOTHING, dtype=np.int64)
        partner[self.sends] = self.recvs
        return partner

    def messages(self) -> tuple[Ints, Ints]:
        """(sending step, receiving step) of each message: on a connection, the k-th send meets the k-th receive.

        Sends and receives that meet none are left out, so that this is defined where ``partners`` is not.
        """
        link = self.send_link[self.sends]
        met = self.recv_start[link] + np.arange(len(self.sends)) - self.send_start[link]
        there = met < self.recv_start[link + 1]
        return self.sends[there], self.recvs[met[there]]


def links(algorithm: Algorithm) -> Links:
    """The connections in use and the order of the messages on each."""
    a, block = algorithm, algorithm.step_threadblock
    return _links(a, a.tb_send[block], a.tb_recv[block], SENDS[a.op], RECEIVES[a.op])


def signal_links(algorithm: Algorithm) -> Links:
    """The same of signals: rows are the (sender, receiver, channel) that are signalled or waited for.

    ``sends`` are the signals of each, in step order, and ``recvs`` the waits: the k-th wait is for the k-th signal.
    Where several threadblocks signal or wait on one row, the order of their steps is not defined by this.
    """
    a, peer = algorithm, peers(algorithm)
    return _links(a, peer, peer, a.op == Op.SIGNAL, a.op == Op.WAIT)


def peers(algorithm: Algorithm) -> Ints:
    """The peer of each signal, wait and flush; NOTHING for the other steps."""
    found = np.full(algorithm.step_count, NOTHING, dtype=np.int64)
    steps = np.flatnonzero(SYNCHRONIZES[algorithm.op])
    found[steps] = algorithm.operand_rank[algorithm.operand_start[steps]]
    return found


def _links(a: Algorithm, send_peer: Ints, recv_peer: Ints, sending: Mask, receiving: Mask) -> Links:
    channels, numbers = np.unique(a.tb_channel, return_inverse=True)
    channel = numbers[a.step_threadblock]
    send_key = _key(a, a.step_rank, send_peer, channel, len(channels))
    recv_key = _key(a, recv_peer, a.step_rank, channel, len(channels))
    used = np.unique(np.concatenate([send_key[sending], recv_key[receiving]]))
    pair, row = np.divmod(used, max(len(channels), 1))
    send_link, sends, send_start = _ordered(used, send_key, sending)
    recv_link, recvs, recv_start = _ordered(used, recv_key, receiving)
    return Links(
        sender=pair // a.ranks,
        receiver=pair % a.ranks,
        channel=channels[row] if len(channels) else row,
        sends=sends,
        send_start=send_start,
        recvs=recvs,
        recv_start=recv_start,
        send_link=send_link,
        recv_link=recv_link,
    )


def _key(a: Algorithm, sender: Ints, receiver: Ints, channel: Ints, channels: int) -> Ints:
    key: Ints = (sender * a.ranks + receiver) * channels + channel
    return key


def _ordered(used: Ints, key: Ints, mask: Mask) -> tuple[Ints, Ints, Ints]:
    link = np.full(len(key), NOTHING, dtype=np.int64)
    link[mask] = np.searchsorted(used, key[mask])
    steps = np.flatnonzero(mask)
    steps = steps[np.argsort(link[steps], kind="stable")]
    start = np.searchsorted(link[steps], np.arange(len(used) + 1))
    return link, steps.astype(np.int64), start.astype(np.int64)

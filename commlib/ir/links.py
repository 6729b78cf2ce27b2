"""Links: which connections an Algorithm uses, and which message of which step is the k-th on each.

A connection is (sender, receiver, channel). Verifier, statistics and runtimes need the same answer to "who receives
what this step sends": it is worked out here once, on columns, in O(steps log steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, RECEIVES, SENDS, Algorithm, Ints


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
    a = algorithm
    channels, channel = np.unique(a.tb_channel, return_inverse=True)
    send_key = _key(a, a.tb_rank, a.tb_send, channel, len(channels))[a.step_threadblock]
    recv_key = _key(a, a.tb_recv, a.tb_rank, channel, len(channels))[a.step_threadblock]
    sending, receiving = SENDS[a.op], RECEIVES[a.op]
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


def _ordered(used: Ints, key: Ints, mask: npt.NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    link = np.full(len(key), NOTHING, dtype=np.int64)
    link[mask] = np.searchsorted(used, key[mask])
    steps = np.flatnonzero(mask)
    steps = steps[np.argsort(link[steps], kind="stable")]
    start = np.searchsorted(link[steps], np.arange(len(used) + 1))
    return link, steps.astype(np.int64), start.astype(np.int64)

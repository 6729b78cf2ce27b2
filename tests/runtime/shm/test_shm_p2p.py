"""Messages between ranks through rings: any order, size and number, unexpected ones, any source, and mismatches."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import pytest
import torch
from shm_cases import PYTHON, SMALL, open_session
from timely import wait_until

from commlib.errors import DeadlineError, ExecutionError, MismatchError, PeerFailedError
from commlib.runtime.launcher import launch, launch_outcomes
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.p2p import P2P, Request

BOTH = pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])


def _tensor(source: int, target: int, tag: int, size: int) -> torch.Tensor:
    return ((torch.arange(size) * 7 + source * 31 + target * 57 + tag * 3) % 251).to(torch.uint8)


def _irecv(p2p: P2P, tensor: torch.Tensor, peer: int | None, tag: int = 0, kind: int = 0) -> Request:
    return p2p.irecv(tensor.data_ptr(), tensor.numel(), peer, tag, kind, keep=tensor)


def _isend(p2p: P2P, tensor: torch.Tensor, peer: int, tag: int = 0, kind: int = 0) -> Request:
    return p2p.isend(tensor.data_ptr(), tensor.numel(), peer, tag, kind, keep=tensor)


def _storm(rank: int, ranks: int, options: ShmOptions) -> int:
    """Everyone sends everyone messages of all sizes, larger than the ring too, posted in an order of its own."""
    order = random.Random(rank)
    sizes = [0, 1, 33, 4096, 4097, 50_000]
    peers = [peer for peer in range(ranks) if peer != rank]
    jobs = [(what, peer, tag) for what in ("send", "receive") for peer in peers for tag in range(len(sizes))]
    order.shuffle(jobs)
    received = {}
    with open_session(rank, ranks, options) as session:
        p2p, requests = P2P(session), []
        for what, peer, tag in jobs:
            if what == "send":
                requests.append(_isend(p2p, _tensor(rank, peer, tag, sizes[tag]), peer, tag))
            else:
                received[peer, tag] = torch.zeros(sizes[tag], dtype=torch.uint8)
                requests.append(_irecv(p2p, received[peer, tag], peer, tag))
            if order.random() < 0.3:
                p2p.progress()
        order.shuffle(requests)
        for request in requests:
            p2p.wait(request)
    wrong = [key for key, got in received.items() if not torch.equal(got, _tensor(key[0], rank, key[1], len(got)))]
    assert not wrong, wrong
    return len(received)


@BOTH
def test_many_messages_of_all_sizes_in_any_order(options: ShmOptions) -> None:
    assert launch(_storm, 3, (3, options)) == [12] * 3


def _any_source(rank: int, options: ShmOptions) -> list[int]:
    with open_session(rank, 3, options) as session:
        p2p = P2P(session)
        if rank:
            p2p.wait(_isend(p2p, _tensor(rank, 0, 0, 100), 0))
            p2p.wait(_irecv(p2p, torch.zeros(1, dtype=torch.uint8), 0))
            return []
        sources = []
        for _ in range(2):
            got = torch.zeros(100, dtype=torch.uint8)
            request = _irecv(p2p, got, None)
            p2p.wait(request)
            assert torch.equal(got, _tensor(request.source, 0, 0, 100))
            sources.append(request.source)
        for peer in (1, 2):
            p2p.wait(_isend(p2p, torch.zeros(1, dtype=torch.uint8), peer))
        return sorted(sources)


@BOTH
def test_a_receive_from_any_rank_says_which(options: ShmOptions) -> None:
    assert launch(_any_source, 3, (options,))[0] == [1, 2]


def _mismatches(rank: int, options: ShmOptions) -> list[str]:
    with open_session(rank, 2, options) as session:
        p2p, texts = P2P(session), []
        for tag, (size, kind) in enumerate([(10, 0), (9000, 0), (8, 5), (8, 4)]):
            if rank == 0:
                p2p.wait(_isend(p2p, _tensor(0, 1, tag, size), 1, tag, kind))
                continue
            got = torch.zeros(8, dtype=torch.uint8)
            try:
                p2p.wait(_irecv(p2p, got, 0, tag, 4))
                assert torch.equal(got, _tensor(0, 1, tag, 8))
            except MismatchError as error:
                texts.append(error.message)
                assert not got.any()
        return texts


@BOTH
def test_another_size_or_type_is_an_error_and_the_next_message_is_right(options: ShmOptions) -> None:
    texts = launch(_mismatches, 2, (options,))[1]
    assert ["10 bytes" in texts[0], "9000 bytes" in texts[1], "element type" in texts[2], len(texts)] == [True] * 3 + [
        3
    ]


def _threads(rank: int, options: ShmOptions) -> bool:
    """Several threads send and receive at once, each with tags of its own."""
    wrong: list[Any] = []
    with open_session(rank, 2, options) as session:
        p2p = P2P(session)

        def talk(tag: int) -> None:
            for size in (10, 5000, 0, 20_000):
                got = torch.zeros(size, dtype=torch.uint8)
                requests = [
                    _irecv(p2p, got, 1 - rank, tag),
                    _isend(p2p, _tensor(rank, 1 - rank, tag, size), 1 - rank, tag),
                ]
                for request in requests:
                    p2p.wait(request)
                if not torch.equal(got, _tensor(1 - rank, rank, tag, size)):
                    wrong.append((tag, size))

        threads = [threading.Thread(target=talk, args=(tag,)) for tag in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    return not wrong and not any(thread.is_alive() for thread in threads)


@BOTH
def test_threads_share_the_rings(options: ShmOptions) -> None:
    assert launch(_threads, 2, (options,)) == [True, True]


def _kept_busy(rank: int, options: ShmOptions, follows: bool) -> bool:
    """Rank 1 sends one message after another, but none that rank 0 waits for (``follows``: not as the one thread that
    moves messages on)."""
    with open_session(rank, 2, options) as session:
        p2p, line = P2P(session), torch.zeros(64, dtype=torch.uint8)
        if rank == 0:
            if follows:
                other = _irecv(p2p, torch.zeros(64, dtype=torch.uint8), 1, 9)
                threading.Thread(target=_in_vain, args=(p2p, other), daemon=True).start()
                wait_until(p2p._leading.locked)
            with pytest.raises((DeadlineError, PeerFailedError), match=r"receive from rank 1 \(tag 8\)"):
                p2p.wait(_irecv(p2p, line, 1, 8), 0.5)
            return True
        with pytest.raises((DeadlineError, PeerFailedError)):
            _keep_sending(p2p, line)
        return True


def _keep_sending(p2p: P2P, line: torch.Tensor) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        p2p.wait(_isend(p2p, line, 0, 1))


def _in_vain(p2p: P2P, request: Request) -> None:
    with contextlib.suppress(ExecutionError):
        p2p.wait(request, 60)


@pytest.mark.parametrize("follows", [False, True], ids=["leads", "follows"])
@BOTH
def test_other_messages_do_not_put_a_deadline_off(options: ShmOptions, follows: bool) -> None:
    assert launch(_kept_busy, 2, (options, follows), 60.0) == [True] * 2


def _lonely(rank: int, options: ShmOptions) -> float:
    with open_session(rank, 2, options) as session:
        p2p = P2P(session)
        if rank == 1:
            p2p.wait(_irecv(p2p, torch.zeros(1, dtype=torch.uint8), 0, 1), 20)
            return 0.0
        began = time.monotonic()
        with pytest.raises(ExecutionError, match=r"receive from rank 1 \(tag 7\)") as caught:
            p2p.wait(_irecv(p2p, torch.zeros(1, dtype=torch.uint8), 1, 7), 1.0)
        assert isinstance(caught.value, (DeadlineError, PeerFailedError))
        return time.monotonic() - began


@BOTH
def test_a_message_that_never_comes_ends_in_time_for_both(options: ShmOptions) -> None:
    late, waiting = launch_outcomes(_lonely, 2, (options,))
    assert late.error is None, late.error
    assert 0.5 < late.value < 10, "the other waits for 20"
    assert isinstance(waiting.error, (DeadlineError, PeerFailedError)), waiting.error

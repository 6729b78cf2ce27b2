"""Send and recv in groups over several (emulated) hosts: shared memory inside a host, gloo between, one meaning."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import backend_ranks
import pytest
import torch
import torch.distributed as dist
from timely import timely, wait_until

import commlib.torch_backend  # noqa: F401 (loaded once, before ranks are forked)
from commlib.errors import DeadlineError, MismatchError, PeerFailedError
from commlib.runtime.launcher import launch, launch_outcomes

LAYOUTS = ([0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 2])
BIG = 3000
"""Elements of a message that does not fit into its first frame."""


def _on_host(rank: int, hosts: list[int], function: Callable[..., Any], *args: Any) -> Any:
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    return backend_ranks._be(rank, function, args, {"timeout": 8.0})


def _peers(rank: int) -> list[int]:
    return [peer for peer in range(dist.get_world_size()) if peer != rank]


def _messages() -> Any:
    """Those of this rank."""
    return dist.group.WORLD._opened._messages._p2p


def _ways() -> list[bool]:
    """Which peers this rank has rings to."""
    near = _messages()._near
    return [peer in near.peers for peer in range(dist.get_world_size())]


def _tags(rank: int) -> bool:
    """The later message is received first, by its tag."""
    given = {(peer, tag): torch.full((4,), 100.0 * rank + 10 * peer + tag) for peer in _peers(rank) for tag in (5, 7)}
    works = [dist.isend(tensor, peer, tag=tag) for (peer, tag), tensor in given.items()]
    good = True
    for tag in (7, 5):
        for peer in _peers(rank):
            taken = torch.zeros(4)
            good &= dist.recv(taken, peer, tag=tag) == peer
            good &= taken.tolist() == [100.0 * peer + 10 * rank + tag] * 4
    for work in works:
        work.wait()
    return good


def _order(rank: int) -> bool:
    """Of one sender and tag in the order sent: empty, small and large messages, all under way at once."""
    sizes = [0, 10, BIG, 1, BIG, 0, 100_000, 5]
    works, lines = [], {}
    for peer in _peers(rank):
        for at, size in enumerate(sizes):
            lines[peer, at] = torch.zeros(size)
            works.append(dist.irecv(lines[peer, at], peer, tag=3))
            works.append(dist.isend(torch.full((size,), 1000.0 * rank + at), peer, tag=3))
    for work in works:
        work.wait()
    return all(line.tolist() == [1000.0 * peer + at] * sizes[at] for (peer, at), line in lines.items())


def _strides(rank: int) -> bool:
    """Tensors that are not contiguous, on both sides."""
    good = True
    for peer in _peers(rank):
        given = torch.arange(24, dtype=torch.int64).reshape(4, 6).t()[::2] + rank
        work = dist.isend(given, peer, tag=1)
        taken = torch.zeros(8, 3, dtype=torch.int64)[::2].t()
        dist.recv(taken, peer, tag=1)
        work.wait()
        good &= torch.equal(taken, given - rank + peer)
    return good


def _any(rank: int) -> bool:
    """Each rank in turn receives from any: all messages, each sender's in its order; other tags are left alone."""
    good = True
    for root in range(dist.get_world_size()):
        if rank != root:
            works = [dist.isend(torch.tensor([rank, at]), root, tag=root) for at in range(6)]
            works.append(dist.isend(torch.full((BIG,), rank), root, tag=99))
            for work in works:
                work.wait()
            continue
        got = {peer: list[int]() for peer in _peers(rank)}
        for _ in range(6 * len(got)):
            taken = torch.zeros(2, dtype=torch.int64)
            source = dist.recv(taken, tag=root)
            good &= source == taken[0].item()
            got[source].append(int(taken[1].item()))
        good &= all(numbers == list(range(6)) for numbers in got.values())
        other = torch.zeros(BIG, dtype=torch.int64)
        for peer in _peers(rank):
            dist.recv(other, peer, tag=99)
            good &= other.unique().tolist() == [peer]
    return good


def _heard(tag: int) -> set[int]:
    """Of whom messages have come that are not taken yet."""
    _messages().progress()
    return {peer for peer, kept in [*_messages()._kept] if kept == tag}


def _flood(rank: int) -> bool:
    """Ranks 1 and 3 flood rank 0 in turn; a single message of each other rank comes through all the same."""
    good = True
    for flooder in (1, 3):
        dist.barrier()
        count = 400
        if rank == flooder:
            for work in [dist.isend(torch.tensor([rank]), 0, tag=4) for _ in range(count)]:
                work.wait()
        elif rank:
            dist.send(torch.tensor([rank]), 0, tag=4)
        else:
            sources = [dist.recv(torch.zeros(1, dtype=torch.int64), tag=4) for _ in range(count // 2)]
            wait_until(lambda heard=set(sources): heard | _heard(4) == set(_peers(0)))
            sources += [dist.recv(torch.zeros(1, dtype=torch.int64), tag=4) for _ in range(count // 2 + 2)]
            good &= sorted(set(sources)) == _peers(0)
            good &= max(sources.index(peer) for peer in _peers(0)) < count  # not the last ones
    return good


def _polled(rank: int) -> bool:
    """A receive ends without a wait."""
    ranks = dist.get_world_size()
    line = torch.zeros(BIG)
    coming = dist.irecv(line, (rank - 1) % ranks, tag=2)
    going = dist.isend(torch.full((BIG,), float(rank)), (rank + 1) % ranks, tag=2)
    for _ in range(1000):
        if coming.is_completed() and going.is_completed():
            break
        time.sleep(0.005)
    return coming.is_completed() and going.is_completed() and line.unique().tolist() == [(rank - 1.0) % ranks]


def _mismatched(rank: int) -> bool:
    """A message of another size, or type, is an error of that receive alone."""
    good = True
    for peer in _peers(rank):
        works = [dist.isend(torch.ones(size), peer, tag=6) for size in (10, BIG, 4, 4)]
        for line in (torch.zeros(BIG), torch.zeros(10), torch.zeros(4, dtype=torch.int32)):
            with pytest.raises(MismatchError, match=f"rank {rank}: rank {peer} sent a message of"):
                dist.recv(line, peer, tag=6)
        line = torch.zeros(4)
        dist.recv(line, peer, tag=6)
        good &= line.tolist() == [1.0] * 4
        for work in works:
            work.wait()
    return good


MEANINGS = (_tags, _order, _strides, _any, _flood, _polled, _mismatched)


def _all_meanings(rank: int) -> tuple[list[bool], dict[str, bool]]:
    found = {}
    for meaning in MEANINGS:
        found[meaning.__name__] = meaning(rank)
        dist.barrier()
    return _ways(), found


@pytest.mark.parametrize("hosts", LAYOUTS, ids=str)
def test_messages_mean_the_same_over_either_way(hosts: list[int]) -> None:
    for rank, (ways, found) in enumerate(launch(_on_host, 4, (hosts, _all_meanings), 60)):
        assert ways == [hosts[peer] == hosts[rank] and peer != rank for peer in range(4)]
        assert found == {meaning.__name__: True for meaning in MEANINGS}


def _leaves_early(rank: int) -> list[int]:
    """Ranks leave in order, one after the other, once they have sent: who waits for any rank is not disturbed."""
    if rank:
        time.sleep(0.2 * rank)
        dist.send(torch.tensor([rank]), 0)
        return []
    return sorted(dist.recv(torch.zeros(1, dtype=torch.int64)) for _ in range(3))


def test_ranks_that_leave_in_order_disturb_nobody() -> None:
    assert launch(_on_host, 4, ([0, 0, 1, 1], _leaves_early), 40) == [[1, 2, 3], [], [], []]


def _dies(rank: int, victim: int, any_source: bool) -> tuple[str, int | None, float]:
    """Rank 0 waits for the victim, the others for rank 0."""
    began = time.monotonic()
    if rank == victim:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerFailedError) as caught:
        dist.recv(torch.zeros(5), None if any_source else 0 if rank else victim)
    with pytest.raises(PeerFailedError, match=f"rank {victim} is gone"):
        dist.send(torch.zeros(5), 0 if rank else 3 - victim)
    return str(caught.value), caught.value.fields["root"], time.monotonic() - began


@pytest.mark.parametrize(("victim", "any_source"), [(1, False), (2, False), (2, True)])
@timely
def test_a_dead_rank_is_named_near_and_far(victim: int, any_source: bool) -> None:
    for outcome in launch_outcomes(_on_host, 4, ([0, 0, 1, 1], _dies, victim, any_source), timeout=40):
        if outcome.rank != victim:
            assert outcome.error is None, outcome.error
            text, root, seconds = outcome.value
            late = f"rank {outcome.rank}: this group has failed before"  # who comes when the others have been told
            assert text.startswith((f"rank {outcome.rank} waits", late))
            assert f"rank {victim} is gone" in text
            assert root == victim
            assert seconds < 6  # not the deadline


def _waits_in_vain(rank: int) -> list[tuple[str, Any, float]]:
    found = []
    for peer in (1, 3):
        group = dist.new_group()
        if rank == 0:
            began = time.monotonic()
            with pytest.raises(DeadlineError) as caught:
                dist.irecv(torch.zeros(BIG), peer, group, tag=8).wait(timedelta(seconds=0.5))
            found.append((str(caught.value), caught.value.fields["peer"], time.monotonic() - began))
    dist.barrier()  # nobody has left before
    return found


@timely
def test_a_wait_ends_at_its_timeout() -> None:
    found = launch(_on_host, 4, ([0, 0, 1, 1], _waits_in_vain), 40)[0]
    for peer, (text, named, seconds) in zip((1, 3), found, strict=True):
        assert f"a receive from rank {peer} (tag 8)" in text
        assert named == peer
        assert 0.3 < seconds < 1.0


def _in_passing(rank: int) -> list[tuple[int, int]]:
    """Groups that end while rank 0 still has a receive from any rank that nobody serves: (threads, descriptors)."""
    seen, kept = [], list[Any]()
    dist.barrier()
    for _ in range(6):
        group = dist.new_group()
        if rank == 0:
            for _ in range(3):
                dist.recv(torch.zeros(1), group=group)
            kept.append(dist.irecv(torch.zeros(1), group=group))
            dist.destroy_process_group(group)
        else:
            dist.send(torch.ones(1), 0, group=group)
            dist.destroy_process_group(group)
        del group
        kept.clear()
        gc.collect()
        seen.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        dist.barrier()
    return seen


def test_groups_leave_no_threads_and_descriptors() -> None:
    for seen in launch(_on_host, 4, ([0, 0, 1, 1], _in_passing), 40):
        threads, descriptors = zip(*seen, strict=True)
        assert min(threads[3:]) <= max(threads[:3])  # other threads come and go
        assert min(descriptors[3:]) <= max(descriptors[:3])

"""What every transport must do, as programs of the ranks on their endpoints; run on each transport there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from commlib.errors import DeadlineError, ExecutionError, MismatchError
from commlib.runtime import launch
from commlib.runtime.local import LocalEndpoint, LocalNetwork
from commlib.runtime.plan import Link, RankPlan
from commlib.runtime.transport import Endpoint, Frame, Wait

DEPTH = 4
Program = Callable[[Endpoint, int], Any]
Runner = Callable[[Program], list[Any]]
Links = dict[int, tuple[tuple[Link, ...], tuple[Link, ...]]]


def pair(messages: int, channels: int = 1) -> Links:
    """Two ranks that send each other so many messages on each channel."""
    links = {rank: tuple(Link(1 - rank, channel, messages) for channel in range(channels)) for rank in (0, 1)}
    return {rank: (links[rank], links[rank]) for rank in (0, 1)}


def one_way(messages: int) -> Links:
    return {0: ((Link(1, 0, messages),), ()), 1: ((), (Link(0, 0, messages),))}


def plan_of(links: Links, rank: int) -> RankPlan:
    return RankPlan(rank, 1, (), *links[rank], 0, 1 << 16)


RUNS: dict[str, tuple[Program, Links]] = {}
"""The programs, by name."""


def program(links: Links) -> Callable[[Program], Program]:
    """What a rank does on its endpoint, where ranks are linked like that."""

    def register(function: Program) -> Program:
        RUNS[function.__name__] = (function, links)
        return function

    return register


def on_local(program: Program) -> list[Any]:
    links = RUNS[program.__name__][1]
    network, results = LocalNetwork(len(links), DEPTH), [None] * len(links)

    def run(rank: int) -> None:
        results[rank] = program(LocalEndpoint(network, plan_of(links, rank)), rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


HOSTS = {"gloo": (0, 1), "shm": (0, 0), "mix": (0, 0, 1, 1)}
"""The host of each rank. In the mix ranks 0 and 2, and 1 and 3, run the two-rank programs: over gloo, beside a rank of
their own host that they share memory with."""


def _pair_of(rank: int, ranks: int) -> tuple[int, int]:
    """The rank that a process has in a two-rank program, and the first process of its pair."""
    return (rank, 0) if ranks == 2 else divmod(rank, 2)


def _endpoint(rank: int, hosts: tuple[int, ...], links: Links, number: int) -> Any:
    mine, first = _pair_of(rank, len(hosts))
    sends, receives = (
        tuple(link._replace(peer=link.peer * len(hosts) // 2 + first) for link in side) for side in links[mine]
    )
    return _linked(rank, hosts, (sends, receives), number)


def _linked(rank: int, hosts: tuple[int, ...], links: tuple[tuple[Link, ...], tuple[Link, ...]], number: int) -> Any:
    import torch.distributed as dist

    from commlib.runtime.gloo import GlooTransport
    from commlib.runtime.gloo_group import keys_of
    from commlib.runtime.mixed import MixedEndpoint
    from commlib.runtime.monitor import Monitor
    from commlib.runtime.shm.neighbours import Neighbours
    from commlib.runtime.wire import Call

    transport = GlooTransport(dist.group.WORLD, 77 + number, DEPTH, Monitor(None, rank, len(hosts)))
    plan = RankPlan(rank, 1, (), *links, 0, 1 << 16)
    call, deadline = Call(1, b"8 bytes.", "a test"), time.monotonic() + 10
    near = [peer for peer, host in enumerate(hosts) if host == hosts[rank]]
    if len(near) == 1:
        return transport.open(call, plan, 1, deadline)
    store = keys_of(dist.group.WORLD, f"conformance/{number}/{hosts[rank]}")
    host = Neighbours.open(store, rank, near, DEPTH, 1 << 16, 10.0)
    return MixedEndpoint(transport, host, call, plan, 1, deadline)


def _run_all(rank: int, kind: str, runs: list[tuple[Program, Links]]) -> list[Any]:
    found = list[Any]()
    for number, (program, links) in enumerate(runs):
        endpoint = _endpoint(rank, HOSTS[kind], links, number)
        mine, _ = _pair_of(rank, len(HOSTS[kind]))
        try:
            result = program(endpoint, mine)
            if result != "no finish":
                assert endpoint.finish(time.monotonic() + 10) is None
        except (Exception, pytest.fail.Exception) as error:  # what went wrong is the result: the other runs go on
            result = f"{type(error).__name__}: {error}"
        found.append(result)
    return found


@cache
def _on_processes(kind: str) -> list[list[Any]]:
    """What each process said of every program, in one launch."""
    return launch(_run_all, len(HOSTS[kind]), (kind, list(RUNS.values())), 100)


def _on(kind: str, first: int = 0) -> Callable[[Program], list[Any]]:
    """What the pair whose first process this is said of a program."""

    def run(program: Program) -> list[Any]:
        ranks, number = _on_processes(kind), list(RUNS).index(program.__name__)
        return [ranks[rank][number] for rank in range(first, len(ranks), len(ranks) // 2)]

    return run


TRANSPORTS = pytest.mark.parametrize(
    "run",
    [on_local, _on("gloo"), _on("shm"), _on("mix"), _on("mix", 1)],
    ids=["local", "gloo", "shm", "mix", "mix, other pair"],
)


def wait(endpoint: Endpoint, seconds: float = 8.0) -> None:
    endpoint.wait_any(time.monotonic() + seconds, [Wait(0, 0, "to receive from rank 1 on channel 0", 1, 0)])


def send(endpoint: Endpoint, link: int, data: bytes) -> None:
    while (frame := endpoint.try_send(link, len(data))) is None:
        wait(endpoint)
    frame.payload[:] = np.frombuffer(data, dtype=np.uint8)
    endpoint.commit(link, frame)


def receive(endpoint: Endpoint, link: int, size: int) -> bytes:
    while (frame := endpoint.try_recv(link, size)) is None:
        wait(endpoint)
    data = frame.payload.tobytes()
    endpoint.release(link, frame)
    return data


def message(k: int, channel: int = 0) -> bytes:
    return bytes([k % 256, channel]) * (k % 5 * 100)


@program(one_way(50))
def _in_order(endpoint: Endpoint, rank: int) -> bool:
    if rank == 0:
        for k in range(50):
            send(endpoint, 0, message(k))
        return True
    return all(receive(endpoint, 0, len(message(k))) == message(k) for k in range(50))


@TRANSPORTS
def test_messages_arrive_whole_and_in_order(run: Runner) -> None:
    assert run(_in_order) == [True, True]


@program(pair(DEPTH, channels=2))
def _channels_apart(endpoint: Endpoint, _rank: int) -> bool:
    """Channel 1 is drained first, though channel 0 was filled first: neither blocks the other."""
    for k in range(DEPTH):
        send(endpoint, 0, message(k, 0))
    for k in range(DEPTH):
        send(endpoint, 1, message(k, 1))
    return all(
        receive(endpoint, channel, len(message(k))) == message(k, channel) for channel in (1, 0) for k in range(DEPTH)
    )


@TRANSPORTS
def test_channels_do_not_block_each_other(run: Runner) -> None:
    assert run(_channels_apart) == [True, True]


@program({0: ((Link(1, 0, 100), Link(1, 1, 1)), ()), 1: ((), (Link(0, 0, 100), Link(0, 1, 1)))})
def _fills(endpoint: Endpoint, rank: int) -> int:
    """How many messages go out before the peer takes any (it waits for one on another channel)."""
    if rank == 1:
        receive(endpoint, 1, 3)
        return sum(len(receive(endpoint, 0, 3)) for _ in range(100))
    sent = 0
    while (frame := endpoint.try_send(0, 3)) is not None and sent < 100:
        frame.payload[:] = 1
        endpoint.commit(0, frame)
        sent += 1
    send(endpoint, 1, b"now")
    for _ in range(sent, 100):
        send(endpoint, 0, b"abc")
    return sent


@TRANSPORTS
def test_a_fifo_holds_its_depth_and_not_everything(run: Runner) -> None:
    sent, received = run(_fills)
    assert DEPTH <= sent < 3 * DEPTH
    assert received == 300


@program(pair(20))
def _ping_pong(endpoint: Endpoint, rank: int) -> int:
    total = 0
    for k in range(40):
        if rank == k % 2:
            send(endpoint, 0, bytes([k]))
        else:
            total += receive(endpoint, 0, 1)[0]
    return total


@TRANSPORTS
def test_ping_pong(run: Runner) -> None:
    assert run(_ping_pong) == [sum(range(1, 40, 2)), sum(range(0, 40, 2))]


@program(pair(3))
def _empty_messages(endpoint: Endpoint, rank: int) -> bool:
    for _ in range(3):
        send(endpoint, 0, b"")
    return [receive(endpoint, 0, 0) for _ in range(3)] == [b""] * 3 and rank in (0, 1)


@TRANSPORTS
def test_empty_messages_are_messages(run: Runner) -> None:
    assert run(_empty_messages) == [True, True]


@program(one_way(1))
def _wrong_size(endpoint: Endpoint, rank: int) -> str:
    if rank == 0:
        send(endpoint, 0, b"four")
        time.sleep(0.5)
        return "no finish"
    with pytest.raises(MismatchError, match="4 bytes"):
        receive(endpoint, 0, 8)
    return "no finish"


@TRANSPORTS
def test_a_message_of_another_size_is_a_mismatch(run: Runner) -> None:
    assert run(_wrong_size) == ["no finish"] * 2


@program(pair(1))
def _late(endpoint: Endpoint, rank: int) -> str:
    if rank == 0:
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"rank [01] threadblock 0 step 0 waits to receive from rank 1"):
            wait(endpoint, 0.3)
        assert 0.25 < time.monotonic() - start < 3
    time.sleep(0.1)
    return "no finish"


@TRANSPORTS
def test_the_deadline_ends_a_wait(run: Runner) -> None:
    assert run(_late) == ["no finish"] * 2


def test_a_local_failure_wakes_the_others() -> None:
    network = LocalNetwork(2)
    endpoint = LocalEndpoint(network, plan_of(pair(1), 0))
    threading.Timer(0.05, network.fail, ("rank 1 failed",)).start()
    with pytest.raises(ExecutionError, match="rank 0: rank 1 failed"):
        wait(endpoint)


def test_frames_are_exactly_as_long_as_the_message() -> None:
    frame = LocalEndpoint(LocalNetwork(2), plan_of(pair(1), 0)).try_send(0, 12)
    assert isinstance(frame, Frame)
    assert len(frame.payload) == 12


def _near_and_far(rank: int) -> list[bytes]:
    """Rank 0 takes messages of its own host's rank 1 and of rank 2 on another, in the order in which they come."""
    links: Links = {0: ((), (Link(1, 0, 20), Link(2, 0, 20))), 1: ((Link(0, 0, 20),), ()), 2: ((Link(0, 0, 20),), ())}
    endpoint = _linked(rank, (0, 0, 1), links[rank], 0)
    if rank:
        for k in range(20):
            time.sleep(0.002 * (k % 3 == rank))
            send(endpoint, 0, bytes([rank, k]))
        assert endpoint.finish(time.monotonic() + 10) is None
        return []
    taken: list[list[bytes]] = [[], []]
    while min(map(len, taken)) < 20:
        frames = [endpoint.try_recv(link, 2) for link in (0, 1)]
        for link, frame in enumerate(frames):
            if frame is not None:
                taken[link].append(frame.payload.tobytes())
                endpoint.release(link, frame)
        if frames == [None, None]:
            waits = [Wait(link, 0, f"to receive from rank {link + 1} on channel 0", link + 1, 0) for link in (0, 1)]
            endpoint.wait_any(time.monotonic() + 8, waits)
    assert endpoint.finish(time.monotonic() + 10) is None
    return [b"".join(part) for part in taken]


def test_a_rank_waits_for_its_host_and_another_at_once() -> None:
    found = launch(_near_and_far_text, 3, (), 40)
    assert found[0] == [bytes(value for k in range(20) for value in (rank, k)).hex() for rank in (1, 2)]


def _near_and_far_text(rank: int) -> list[str]:
    return [part.hex() for part in _near_and_far(rank)]

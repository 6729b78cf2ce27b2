"""What every transport must do, as programs of the ranks on their endpoints; run on each transport there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
Links = dict[int, tuple[tuple[Link, ...], tuple[Link, ...]]]


def pair(messages: int, channels: int = 1) -> Links:
    """Two ranks that send each other so many messages on each channel."""
    links = {rank: tuple(Link(1 - rank, channel, messages) for channel in range(channels)) for rank in (0, 1)}
    return {rank: (links[rank], links[rank]) for rank in (0, 1)}


def one_way(messages: int) -> Links:
    return {0: ((Link(1, 0, messages),), ()), 1: ((), (Link(0, 0, messages),))}


def plan_of(links: Links, rank: int) -> RankPlan:
    return RankPlan(rank, 1, (), *links[rank], 0, 1 << 16)


def on_local(program: Program, links: Links) -> list[Any]:
    network, results = LocalNetwork(len(links), DEPTH), [None] * len(links)

    def run(rank: int) -> None:
        results[rank] = program(LocalEndpoint(network, plan_of(links, rank)), rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _gloo_rank(rank: int, program: Program, links: Links) -> Any:
    import torch.distributed as dist

    from commlib.runtime.gloo import GlooTransport
    from commlib.runtime.monitor import Monitor
    from commlib.runtime.wire import Call

    transport = GlooTransport(dist.group.WORLD, 77, DEPTH, Monitor(None, rank, len(links)))
    deadline = time.monotonic() + 10
    endpoint = transport.open(Call(1, b"8 bytes.", "a test"), plan_of(links, rank), 1, deadline)
    result = program(endpoint, rank)
    if result != "no finish":
        assert endpoint.finish(deadline) is None
    return result


def on_gloo(program: Program, links: Links) -> list[Any]:
    return launch(_gloo_rank, len(links), (program, links), 30)


TRANSPORTS = pytest.mark.parametrize("run", [on_local, on_gloo])


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


def _in_order(endpoint: Endpoint, rank: int) -> bool:
    if rank == 0:
        for k in range(50):
            send(endpoint, 0, message(k))
        return True
    return all(receive(endpoint, 0, len(message(k))) == message(k) for k in range(50))


@TRANSPORTS
def test_messages_arrive_whole_and_in_order(run: Callable[..., list[Any]]) -> None:
    assert run(_in_order, one_way(50)) == [True, True]


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
def test_channels_do_not_block_each_other(run: Callable[..., list[Any]]) -> None:
    assert run(_channels_apart, pair(DEPTH, channels=2)) == [True, True]


def _fills(endpoint: Endpoint, rank: int) -> int:
    """How many messages go out before the peer takes any (it waits for a message on the way back)."""
    if rank == 1:
        time.sleep(0.3)
        return sum(len(receive(endpoint, 0, 3)) for _ in range(100))
    sent = 0
    while (frame := endpoint.try_send(0, 3)) is not None and sent < 100:
        frame.payload[:] = 1
        endpoint.commit(0, frame)
        sent += 1
    for _ in range(sent, 100):
        send(endpoint, 0, b"abc")
    return sent


@TRANSPORTS
def test_a_fifo_holds_its_depth_and_not_everything(run: Callable[..., list[Any]]) -> None:
    sent, received = run(_fills, one_way(100))
    assert DEPTH <= sent < 3 * DEPTH
    assert received == 300


def _ping_pong(endpoint: Endpoint, rank: int) -> int:
    total = 0
    for k in range(40):
        if rank == k % 2:
            send(endpoint, 0, bytes([k]))
        else:
            total += receive(endpoint, 0, 1)[0]
    return total


@TRANSPORTS
def test_ping_pong(run: Callable[..., list[Any]]) -> None:
    assert run(_ping_pong, pair(20)) == [sum(range(1, 40, 2)), sum(range(0, 40, 2))]


def _empty_messages(endpoint: Endpoint, rank: int) -> bool:
    for _ in range(3):
        send(endpoint, 0, b"")
    return [receive(endpoint, 0, 0) for _ in range(3)] == [b""] * 3 and rank in (0, 1)


@TRANSPORTS
def test_empty_messages_are_messages(run: Callable[..., list[Any]]) -> None:
    assert run(_empty_messages, pair(3)) == [True, True]


def _wrong_size(endpoint: Endpoint, rank: int) -> str:
    if rank == 0:
        send(endpoint, 0, b"four")
        time.sleep(0.5)
        return "no finish"
    with pytest.raises(MismatchError, match="4 bytes"):
        receive(endpoint, 0, 8)
    return "no finish"


@TRANSPORTS
def test_a_message_of_another_size_is_a_mismatch(run: Callable[..., list[Any]]) -> None:
    assert run(_wrong_size, one_way(1)) == ["no finish"] * 2


def _late(endpoint: Endpoint, rank: int) -> str:
    if rank == 0:
        start = time.monotonic()
        with pytest.raises(DeadlineError, match="rank 0 threadblock 0 step 0 waits to receive from rank 1"):
            wait(endpoint, 0.3)
        assert 0.25 < time.monotonic() - start < 3
    time.sleep(0.1)
    return "no finish"


@TRANSPORTS
def test_the_deadline_ends_a_wait(run: Callable[..., list[Any]]) -> None:
    assert run(_late, pair(1)) == ["no finish"] * 2


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

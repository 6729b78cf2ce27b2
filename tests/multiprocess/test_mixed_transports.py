"""Communicators over shared memory and over a mix of it with gloo: one-sided programs, choices, faults, leavings."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from beginning import ScriptForAll
from onesided_cases import ONE_SIDED, one_shot, placements_of
from process_cases import WIRINGS, ProcessCase, run_cases, wire
from runtime_algorithms import allpairs_allreduce, ring_allreduce
from timely import timely, wait_until

from commlib import collectives
from commlib.dsl.onesided import OneSidedProgram
from commlib.errors import ExecutionError, MismatchError, SpecError
from commlib.ir.algorithm import Algorithm
from commlib.runtime import Communicator, Fault, launch, launch_outcomes
from commlib.runtime.carriers import EngineCarrier

TIMEOUT = 6.0
SIZES = {"int32": (0, 1, 7, 64, 1003), "bfloat16": (0, 1, 7, 64, 1003)}
if not os.environ.get("COMMLIB_FULL"):
    SIZES = {"int32": (0, 7, 1003), "bfloat16": (64,)}


def islands() -> Algorithm:
    """Allreduce of four ranks: one-sided with the other rank of the host (0 and 1, 2 and 3), then messages across."""
    k = OneSidedProgram("islands", collectives.allreduce(4))
    for me in range(4):
        mate, twin = me ^ 1, me ^ 2
        block = k.threadblock(me, channel=1, send=twin, recv=twin)
        block.put(k.input(me)[:], k.scratch(mate)[0])
        block.signal(mate)
        block.flush(mate)
        block.wait(mate)
        block.read_reduce([k.input(me)[:], k.scratch(me)[0]], k.scratch(me)[1])
        block.send(k.scratch(me)[1])
        block.recv_reduce_copy(k.scratch(me)[1], k.output(me)[0])
    return k.algorithm()


def of(ranks: int) -> list[ProcessCase]:
    return [
        ProcessCase(algorithm, elements, dtype, placement=placement)
        for algorithm in ONE_SIDED
        if algorithm.ranks == ranks and algorithm.collective.specified
        for placement in placements_of(algorithm)
        for dtype, sizes in SIZES.items()
        for elements in sizes
    ]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_one_sided_programs_are_exact_as_tables_and_in_the_engine(ranks: int) -> None:
    """Those that write other ranks' tensors, or read ones that may not be read directly, run in the engine."""
    run_cases(of(ranks), ranks, tile_bytes=256, wiring="python" if ranks == 2 else "shm")


def _all_in_the_engine(rank: int, cases: list[ProcessCase]) -> bool:
    import process_cases

    wire(rank, WIRINGS["shm"])
    with Communicator(timeout=30, tile_bytes=256) as comm:
        comm.connect()
        comm._state.table = None
        comm._engine.meet(comm._meeting("engine", comm_call(), time.monotonic() + 10), comm._state.hosts)
        wrong = [str(case) for case in cases * 2 if process_cases._run(comm, case) is not None]
        assert all(isinstance(ready.carrier, EngineCarrier) for ready in comm._state.launches.values())
    assert not wrong
    return True


def comm_call() -> Any:
    from commlib.runtime.wire import Call

    return Call(1, b"", "connecting")


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_one_sided_program_is_exact_in_the_engine(ranks: int) -> None:
    assert launch(_all_in_the_engine, ranks, (of(ranks),), 60) == [True] * ranks


def _inside_hosts(rank: int) -> list[Any]:
    os.environ["COMMLIB_HOST"] = str(rank // 2)
    with Communicator(timeout=10) as comm:
        found: list[Any] = []
        for elements in (5, 70_000, 5, 300_000):
            given = torch.arange(elements, dtype=torch.int64) + rank
            total = comm.run(islands(), given, in_place=False)
            found.append(torch.equal(total, 4 * torch.arange(elements) + 6))
        with pytest.raises(SpecError, match="gloo between hosts does not let rank 0 reach the memory of rank 2"):
            comm.run(one_shot(4), torch.ones(6))
        if rank == 1:
            time.sleep(1.0)  # the others look meanwhile at what this rank said last: that it was in the refused call
        found.append(comm.run(ring_allreduce(4), torch.ones(6))[0].item())
        return [*found, list(comm.hosts)]


def test_one_sided_steps_inside_hosts_and_messages_between() -> None:
    """The memory in reach grows twice; and a program that reaches across is refused alike, and harms nothing."""
    assert launch(_inside_hosts, 4, (), 40) == [[True] * 4 + [4.0, [0, 0, 1, 1]]] * 4


def _chooses(rank: int, transport: str, hosts: list[int]) -> list[Any]:
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    with Communicator(timeout=8, transport=transport) as comm:
        before = comm.hosts
        comm.connect()
        comm.connect()
        total = comm.run(ring_allreduce(3), torch.ones(4))[0].item()
        table = comm._state.table is not None
        return [len(before), list(comm.hosts), table, comm._engine._near is not None, total]


@pytest.mark.parametrize(
    ("transport", "hosts", "expected"),
    [
        ("auto", [0, 0, 0], [[0, 0, 0], True, [False] * 3]),
        ("shm", [0, 0, 0], [[0, 0, 0], True, [False] * 3]),
        ("auto", [5, 7, 5], [[0, 1, 0], False, [True, False, True]]),
        ("auto", [2, 1, 0], [[0, 1, 2], False, [False] * 3]),
        ("gloo", [0, 0, 0], [[], False, [False] * 3]),
    ],
)
def test_what_ranks_agree_on(transport: str, hosts: list[int], expected: list[Any]) -> None:
    numbers, table, near = expected
    found = launch(_chooses, 3, (transport, hosts), 30)
    assert found == [[0, numbers, table, near[rank], 3.0] for rank in range(3)]


def _refuses(rank: int) -> str:
    os.environ["COMMLIB_HOST"] = str(rank)
    comm = Communicator(timeout=8, transport="shm" if rank == 0 else "auto")
    with pytest.raises(SpecError) as caught:
        comm.run(ring_allreduce(2), torch.ones(4))
    for _ in range(3):
        with pytest.raises(SpecError, match=r"transport='shm' needs all ranks on one host"):
            comm.connect()
    comm.close()
    with pytest.raises(SpecError, match="a transport is one of auto, gloo, shm, not 'ib'"):
        Communicator(transport="ib")
    return str(caught.value)


def test_shared_memory_that_is_asked_for_and_cannot_be() -> None:
    text = "transport='shm' needs all ranks on one host; these are on hosts [0, 1]"
    assert launch(_refuses, 2, (), 30) == [text] * 2


def _differs(rank: int, transports: list[str], programs: list[int]) -> str:
    comm = Communicator(timeout=20, transport=transports[rank])
    program = [ring_allreduce(2), allpairs_allreduce(2), _too_wide()][programs[rank]]
    with pytest.raises(MismatchError) as caught:
        comm.run(program, torch.ones(40))
    return str(caught.value)


def _too_wide() -> Algorithm:
    """More channels than tables have."""
    return ring_allreduce(2, 40)


@pytest.mark.parametrize(
    ("transports", "programs"), [(["auto", "gloo"], [0, 0]), (["auto", "auto"], [0, 2]), (["auto", "auto"], [0, 1])]
)
def test_ranks_that_want_other_transports_or_programs_find_out(transports: list[str], programs: list[int]) -> None:
    for text in launch(_differs, 2, (transports, programs), 30):
        assert "in call 1 (" in text
        assert "rank 0" in text
        assert "rank 1" in text


def test_what_no_table_can_express_runs_in_the_engine() -> None:
    run_cases([ProcessCase(_too_wide(), n, "int32") for n in (3, 4000)], 2, wiring="shm")


def _unharmed(rank: int) -> list[float]:
    """Tables, then the engine over shared memory, then tables again, in two communicators at once."""
    comms, found = [Communicator(timeout=10) for _ in range(2)], list[float]()

    def use(comm: Communicator) -> None:
        for call in range(20):
            program = [ring_allreduce(3), _wide3(), one_shot(3)][call % 3]
            found.append(comm.run(program, torch.full((9,), float(rank)), in_place=False).sum().item())

    threads = [threading.Thread(target=use, args=(comm,)) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for comm in comms:
        comm.close()
    return found


def _wide3() -> Algorithm:
    return ring_allreduce(3, 33)


def test_tables_and_engine_take_turns() -> None:
    assert launch(_unharmed, 3, (), 60) == [[27.0] * 40] * 3


def _traces() -> tuple[int, set[str], set[str]]:
    """What is mapped, open, and running."""
    maps = Path("/proc/self/maps").read_text().count("memfd:commlib")
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    descriptors = {os.readlink(entry) for entry in entries if os.path.lexists(entry)}
    return maps, {name for name in descriptors if "commlib" in name}, {t.name for t in threading.enumerate()}


def _leaves(rank: int, hosts: list[int]) -> list[Any]:
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    before, program = _traces(), islands() if hosts == [0, 0, 1, 1] else one_shot(4)
    for _ in range(3):
        with Communicator(timeout=10) as comm:
            comm.run(program, torch.ones(6))
            comm.run(ring_allreduce(4, 33), torch.ones(66))
    del comm
    with contextlib.suppress(AssertionError):
        wait_until(lambda: before == _traces())  # threads that were told to end may have no core
    return [before == _traces(), str(before), str(_traces())]


@pytest.mark.parametrize("hosts", [[0, 0, 0, 0], [0, 0, 1, 1]])
def test_a_closed_communicator_leaves_nothing(hosts: list[int]) -> None:
    for same, before, after in launch(_leaves, 4, (hosts,), 60):
        assert same, (before, after)
    assert not [name for name in os.listdir("/dev/shm") if "commlib" in name]


def _struck(rank: int, hosts: list[int], program: str, fault: Fault) -> dict[str, Any]:
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    algorithm = {"ring": ring_allreduce(4), "allpairs": allpairs_allreduce(4), "islands": islands()}[program]
    comm = Communicator(timeout=TIMEOUT)
    comm.run(algorithm, torch.arange(24))
    comm.hook = ScriptForAll(rank, 4, fault)
    start, answer = time.monotonic(), dict[str, Any]()
    try:
        answer["output"] = comm.run(algorithm, torch.arange(24) + rank, in_place=False).tolist()
    except ExecutionError as error:
        answer["error"], answer["fields"] = str(error), {key: str(value) for key, value in error.fields.items()}
    answer["seconds"] = time.monotonic() - start
    return answer


STRIKES = [
    *(([0, 0, 1, 1], "ring", Fault(3, 2, "kill")), ([0, 0, 1, 1], "ring", Fault(1, 3, "stop"))),
    *(([0, 0, 1, 2], "allpairs", Fault(3, 1, "kill")), ([0, 0, 0, 1], "allpairs", Fault(1, 2, "stop"))),
    *(([0, 0, 1, 1], "islands", Fault(0, 1, "kill")), ([0, 0, 1, 1], "islands", Fault(2, 5, "stop"))),
    ([0, 0, 0, 1], "ring", Fault(0, 4, "kill")),
]


@pytest.mark.parametrize(("hosts", "program", "fault"), STRIKES)
def test_a_rank_that_is_lost_is_named_on_every_host(hosts: list[int], program: str, fault: Fault) -> None:
    outcomes = launch_outcomes(_struck, 4, (hosts, program, fault), timeout=30)
    wanted = signal.SIGKILL if fault.action == "kill" else signal.SIGSTOP
    assert outcomes[fault.rank].signal == wanted
    errors = 0
    for outcome in outcomes:
        if outcome.rank == fault.rank:
            continue
        assert outcome.error is None, outcome.error
        answer = outcome.value
        assert answer["seconds"] < TIMEOUT
        if "output" in answer:
            assert answer["output"] == [4 * k + 6 for k in range(24)]
            continue
        errors += 1
        assert answer["fields"]["root"] == str(fault.rank), answer["error"]
        assert answer["fields"]["cause"] == ("gone" if fault.action == "kill" else "stopped")
        assert f"rank {outcome.rank} threadblock " in answer["error"]
        assert " in call 2 (" in answer["error"]
    assert errors
    assert not [name for name in os.listdir("/dev/shm") if "commlib" in name]


def _never_comes(rank: int) -> list[Any]:
    os.environ["COMMLIB_HOST"] = str(rank // 2)
    comm = Communicator(timeout=2.5)
    if rank == 3:
        time.sleep(3)
        return []
    start = time.monotonic()
    with pytest.raises(ExecutionError) as caught:
        comm.run(ring_allreduce(4), torch.ones(4))
    return [str(caught.value), time.monotonic() - start]


@timely
def test_a_rank_that_does_not_connect_is_named() -> None:
    for text, seconds in launch(_never_comes, 4, (), 30)[:3]:
        assert seconds < 2.5
        assert "to connect in call 1 (ring_allreduce float32 sum 4 in)" in text
        assert "rank 3 never came to call 1" in text


def _dies_before(rank: int) -> str:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm = Communicator(timeout=3)
    with pytest.raises(ExecutionError) as caught:
        comm.run(ring_allreduce(3), torch.ones(4))
    return str(caught.value)


def test_a_rank_that_was_dead_before_is_named() -> None:
    outcomes = launch_outcomes(_dies_before, 3, timeout=30)
    assert all("rank 1 never came: it shows no communicator" in outcomes[rank].value for rank in (0, 2))

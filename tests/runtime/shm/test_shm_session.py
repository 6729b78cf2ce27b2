"""Sessions: opening, refusing, registered memory, several at once, and nothing left behind, however they end."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from beginning import meet
from onesided_cases import ONE_SIDED, gets, one_shot, shared
from runtime_algorithms import ring_allreduce
from shm_cases import PYTHON, SMALL, ShmCase, descriptors, open_session, run_case, run_shm_cases, shared_memory_files
from timely import wait_until, wait_until_gone

from commlib.collectives import Placement
from commlib.errors import CommlibError, DeadlineError, ExecutionError, MismatchError, PeerFailedError, SpecError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.launcher import launch, launch_outcomes
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.segment import anonymous_file
from commlib.runtime.shm.session import REACH_READV, ShmSession

BOTH = pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])


def _mapped() -> int:
    """How many shared mappings of ours this process has."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:commlib" in line for line in maps)


def _lives(rank: int, ranks: int, options: ShmOptions) -> list[Any]:
    """Sessions come and go; what is left of them, without a garbage collection."""
    case = ShmCase(ring_allreduce(ranks), 100)
    wrong, counts = [], []
    gc.disable()
    for number in range(6):
        session = open_session(rank, ranks, options, str(number))
        wrong.append(run_case(session, case))
        session.close()
        del session
        counts.append((descriptors(), _mapped(), threading.active_count()))
    return [wrong, counts[1:]]


@BOTH
def test_nothing_is_left_of_a_closed_session(options: ShmOptions) -> None:
    before = shared_memory_files()
    for wrong, counts in launch(_lives, 3, (3, options)):
        assert wrong == [None] * 6
        assert len({(files, threads) for files, _, threads in counts}) == 1, counts
        assert [mapped for _, mapped, _ in counts] == [0] * 5
    wait_until_gone(shared_memory_files, before)


def _die(rank: int) -> None:
    session = open_session(rank, 3)
    session.empty((1000,))
    session.register(torch.zeros(1000))
    meet("registered", rank, range(3))
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_when_all_are_killed() -> None:
    before = shared_memory_files()
    outcomes = launch_outcomes(_die, 3)
    assert [outcome.signal for outcome in outcomes] == [signal.SIGKILL] * 3
    wait_until_gone(shared_memory_files, before)


def _hosts(rank: int) -> str:
    os.environ["COMMLIB_HOST"] = f"host {rank // 2}"
    with pytest.raises(ShmUnavailable) as caught:
        open_session(rank, 3)
    return caught.value.message


def test_ranks_of_several_hosts_are_refused_alike() -> None:
    assert len(set(launch(_hosts, 3))) == 1


def _sizes(rank: int) -> str:
    with pytest.raises(ShmUnavailable) as caught:
        open_session(rank, 3, replace(SMALL, depth=8 + rank // 2))
    return caught.value.message


def test_ranks_with_other_sizes_are_refused_alike() -> None:
    assert len(set(launch(_sizes, 3))) == 1


def _no_memory(rank: int) -> str:
    if rank == 1:
        os.memfd_create = _refuses
    with pytest.raises(ShmUnavailable) as caught:
        open_session(rank, 3)
    return caught.value.message


def _refuses(*_: object) -> int:
    raise OSError(12, "no memory")


def test_a_rank_without_memory_is_told_by_all() -> None:
    messages = set(launch(_no_memory, 3))
    assert len(messages) == 1
    assert "rank 1" in messages.pop()


def _absent(rank: int) -> list[int]:
    if rank == 1:
        return []
    with pytest.raises(DeadlineError) as caught:
        open_session(rank, 3, timeout=0.5)
    return caught.value.fields["missing"]


def test_a_rank_that_does_not_come_is_named() -> None:
    assert launch(_absent, 3) == [[1], [], [1]]


def test_python_alone_is_refused_on_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    from commlib.runtime.shm import load

    monkeypatch.setattr(load, "is_x86_64", lambda: False)
    with pytest.raises(ShmUnavailable, match="fences"):
        load.load_context(native=False)


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"spins": -1}, {"slice_seconds": 0.0}, {"tile_bytes": -1}, {"cache_bytes": -1}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        ShmOptions(**options)


def test_waiting_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMLIB_SPINS", "7")
    assert ShmOptions(yields=3).looks(2) == (7, 3)
    monkeypatch.setenv("COMMLIB_SPINS", "many")
    with pytest.raises(SpecError, match="COMMLIB_SPINS"):
        ShmOptions().looks(2)


@BOTH
def test_other_ranks_tensors_by_process_vm_readv(options: ShmOptions) -> None:
    cases = [ShmCase(gets(3, 2), size, "int16", reach=REACH_READV) for size in (1, 1003, 200_000)]
    reads = [a for a in ONE_SIDED if a.touches_peers_tensors == (True, False) and a.ranks == 3]
    run_shm_cases(cases + [ShmCase(algorithm, 77, reach=REACH_READV) for algorithm in reads], 3, options)


def _reaches(rank: int, options: ShmOptions) -> list[str]:
    texts = []
    with open_session(rank, 2, options) as session:
        algorithm = shared(2)
        prepared = session.prepare(algorithm, Placement.OUT, 8, torch.float32, "sum")
        plain = torch.zeros(8)
        with pytest.raises(SpecError) as caught:
            session.run(prepared, plain.data_ptr(), plain.data_ptr())
        texts.append(caught.value.message)
        with pytest.raises(SpecError) as caught:
            session.prepare(algorithm, Placement.OUT, 8, torch.float32, "sum", reach=REACH_READV)
        texts.append(caught.value.message)
        assert run_case(session, ShmCase(algorithm, 8)) is None
    return texts


@BOTH
def test_tensors_of_others_must_be_registered(options: ShmOptions) -> None:
    for rank, texts in enumerate(launch(_reaches, 2, (options,))):
        assert f"the input of rank {rank} must be in registered memory" in texts[0]
        assert "writes" in texts[1]


def _register(rank: int, options: ShmOptions) -> list[Any]:
    with open_session(rank, 2, options) as session:
        base = torch.arange(100.0) + rank
        view, address = base[10:20], base.data_ptr()
        session.register(view)
        session.register(base)
        session.register(torch.empty(0))
        moved = base.data_ptr() != address
        prepared = session.prepare(shared(2), Placement.IN, 10, torch.float32, "sum")
        for _ in range(2):
            session.run(prepared, view.data_ptr(), view.data_ptr())
        registered = session.is_registered(base.data_ptr(), 400), session.is_registered(base.data_ptr(), 401)
    return [moved, base.tolist(), registered]


@BOTH
def test_registered_tensors_keep_values_and_views(options: ShmOptions) -> None:
    for rank, (moved, values, registered) in enumerate(launch(_register, 2, (options,))):
        wanted = torch.arange(100.0) + rank
        wanted[10:20] = 2 * (2 * torch.arange(10.0, 20.0) + 1)
        assert moved
        assert registered == [True, False]
        assert values == wanted.tolist()


def _groups(rank: int, options: ShmOptions) -> list[str | None]:
    """Sessions of several groups at once, from several threads."""
    groups = [[0, 1, 2], [0, 2], [1, 2], [0, 1]]
    mine = [(number, group) for number, group in enumerate(groups) if rank in group]
    found: list[str | None] = []

    def work(number: int, group: list[int]) -> None:
        with open_session(group.index(rank), len(group), options, f"group{number}") as session:
            for size in (1, 5000, 77):
                found.append(run_case(session, ShmCase(ring_allreduce(len(group)), size)))
                found.append(run_case(session, ShmCase(one_shot(len(group)), size)))

    threads = [threading.Thread(target=work, args=job) for job in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@BOTH
def test_a_session_for_each_group_from_threads(options: ShmOptions) -> None:
    assert launch(_groups, 3, (options,)) == [[None] * 18] * 3


def _at_once(rank: int, options: ShmOptions) -> list[str]:
    """A second thread that calls while the first waits is refused, and the first call goes on."""
    texts = []
    with open_session(rank, 2, options) as session:
        prepared = session.prepare(ring_allreduce(2), Placement.OUT, 4, torch.float32, "sum")
        tensors = torch.ones(4), torch.zeros(4)
        addresses = [tensor.data_ptr() for tensor in tensors]
        planned = session.planned(prepared, *addresses)
        if rank == 0:
            thread = threading.Thread(target=session.run, args=(prepared, *addresses))
            thread.start()
            wait_until(lambda: session.context.calls)
            for call in (lambda: session.run(prepared, *addresses), planned):
                with pytest.raises((ExecutionError, RuntimeError)) as caught:
                    call()
                texts.append(str(caught.value))
            dist.barrier()
            thread.join(20)
        else:
            dist.barrier()
            session.run(prepared, *addresses)
        planned()
    assert tensors[1].tolist() == [2.0] * 4
    with pytest.raises(CommlibError):
        session.run(prepared, *addresses)
    with pytest.raises((CommlibError, RuntimeError)):
        planned()
    return texts


@BOTH
def test_calls_at_once_and_calls_after_close_are_refused(options: ShmOptions) -> None:
    texts = launch(_at_once, 2, (options,))[0]
    assert len(texts) == 2


def _differ(rank: int, options: ShmOptions, algorithms: list[Algorithm]) -> str:
    with open_session(rank, 2, options, timeout=10) as session:
        prepared = session.prepare(algorithms[rank], Placement.OUT, 1000 + rank, torch.float32, "sum")
        tensors = torch.ones(1001), torch.zeros(1001)
        addresses = [tensor.data_ptr() for tensor in tensors]
        began = time.monotonic()
        with pytest.raises((MismatchError, PeerFailedError)) as caught:
            session.run(prepared, *addresses)
        assert time.monotonic() - began < 5
        with pytest.raises(ExecutionError):
            session.run(prepared, *addresses)
        return caught.value.message


@BOTH
@pytest.mark.parametrize("which", [(one_shot, one_shot), (ring_allreduce, ring_allreduce), (one_shot, ring_allreduce)])
def test_different_calls_are_found_out_at_once(options: ShmOptions, which: Any) -> None:
    for message in launch(_differ, 2, (options, [make(2) for make in which])):
        assert "1000" in message
        assert "1001" in message


def test_a_session_of_one_rank() -> None:
    store = dist.HashStore()
    with ShmSession.open(store, 0, 1, PYTHON) as session:
        assert session.empty((3, 4)).shape == (3, 4)
    assert store.num_keys() <= 1


def _unregister(rank: int, options: ShmOptions) -> list[int]:
    with open_session(rank, 2, options) as session:
        counts = [0]
        for _ in range(3):
            tensor = session.empty((100_000,))
            assert session.is_registered(tensor.data_ptr(), 400_000)
            other = torch.zeros(100_000 * rank + 1)
            session.register(other)
            assert run_case(session, ShmCase(shared(2), 100)) is None
            session.unregister(tensor)
            session.unregister(other)
            assert not session.is_registered(tensor.data_ptr(), 400_000)
            del tensor, other
            counts.append(_registered_mappings())
    return counts


def _registered_mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("/dev/shm/torch_" in line for line in maps)


@BOTH
def test_what_is_unregistered_is_free(options: ShmOptions) -> None:
    for counts in launch(_unregister, 2, (options,)):
        assert counts[1:] == [0] * 3


def test_shared_memory_without_memfd_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = shared_memory_files()
    monkeypatch.delattr(os, "memfd_create")
    descriptor = anonymous_file(8192)
    assert os.fstat(descriptor).st_size == 8192
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    wait_until_gone(shared_memory_files, before)
    os.close(descriptor)

"""The choice of algorithm on real groups: user algorithms, tables and new files, always the same on all ranks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import gather_single, run_on

from commlib.algorithms import build
from commlib.collectives import ROOTED, Placement
from commlib.dsl import OneSidedProgram
from commlib.errors import ExecutionError, FormatError, SpecError, VerificationError
from commlib.formats import save
from commlib.runtime.debug import logger
from commlib.runtime.defaults import DEFAULTS
from commlib.runtime.registry import Machine, Range, Registry, Row, this_machine, write_registry
from commlib.runtime.shm.load import native_is_built
from commlib.torch_backend import catalogue, flight_record, register_algorithm, reload_algorithms, unregister_algorithm
from commlib.torch_backend.choice import Choice, Situation, choose
from commlib.torch_backend.request import Request

ENVIRONMENT = ("MSCCL_XML_FILES", "MSCCL_ALGO_DIR", "COMMLIB_ALGO_DIR", "COMMLIB_TUNING", "COMMLIB_DEBUG")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file and no table of the user's; a catalogue of this test's own."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path / "cache"))
    catalogue._made.cache_clear()
    yield
    catalogue._made.cache_clear()
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def reduced(elements: int) -> list[str]:
    """Sum tensors of ones, and which algorithms that took, the comparisons of choices not counted."""
    ranks, before = dist.get_world_size(), len(flight_record().calls)
    tensor = torch.ones(elements)
    dist.all_reduce(tensor)
    if not torch.equal(tensor, torch.full((elements,), float(ranks))):
        raise RuntimeError(f"wrong: {tensor}")
    made = [call for call in flight_record().calls[before:] if call.collective == "allreduce"]
    return [call.algorithm for call in made if call.algorithm != "choice"]


def wrong_allreduce(ranks: int) -> Any:
    k = OneSidedProgram("wrong", build("allreduce", "one_shot", ranks).collective)
    for rank in range(ranks):
        k.threadblock(rank).copy(k.input(rank)[0], k.output(rank)[0])
    return k.algorithm()


def files_come_and_go(rank: int, folder: str) -> list[list[str]]:
    """What runs as files of a folder come and go; rank 0 writes them."""
    path, found = Path(folder) / "mine.xml", [reduced(10)]
    if rank == 0:
        save(build("allreduce", "ring", 3), path, min_bytes=0, max_bytes=4000, dialect="executor")
    dist.barrier()
    found += [reduced(10), reduced(11), reduced(2000)]
    reload_algorithms()
    found += [reduced(10)]
    if rank == 0:
        save(wrong_allreduce(3), Path(folder) / "aaa.json")
        path.unlink()
    dist.barrier()
    found += [reduced(12)]
    return found


def test_new_files_run_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMLIB_ALGO_DIR", str(tmp_path))
    expected = [["one_shot_allreduce"]] * 2 + [["ring_allreduce"], ["one_shot_allreduce"], ["ring_allreduce"]]
    for found in run_on(3, files_come_and_go, str(tmp_path)):
        assert found == [*expected, ["one_shot_allreduce"]]


def registered_in_python(_rank: int) -> list[Any]:
    """An algorithm replaces a remembered choice, and goes again; wrong ones are refused."""
    found: list[Any] = [reduced(10), reduced(10)]
    register_algorithm(build("allreduce", "allpairs", 2), max_bytes=100)
    found += [reduced(10), reduced(30)]
    register_algorithm(build("allreduce", "staged", 2), placement="out")
    found += [reduced(10)]
    for algorithm in (wrong_allreduce(2), "none.xml"):
        try:
            register_algorithm(algorithm)
        except (VerificationError, FormatError) as error:
            found.append(type(error).__name__)
    found += [unregister_algorithm("allpairs_allreduce"), unregister_algorithm("allpairs_allreduce"), reduced(10)]
    return found


def test_algorithms_come_and_go_from_python() -> None:
    one_shot, allpairs = ["one_shot_allreduce"], ["allpairs_allreduce"]
    expected = [one_shot, one_shot, allpairs, one_shot, allpairs, "VerificationError", "FormatError", True, False]
    for found in run_on(2, registered_in_python):
        assert found == [*expected, one_shot]


def one_rank_registers(rank: int) -> str:
    if rank == 0:
        register_algorithm(build("allreduce", "ring", 2))
    try:
        reduced(10)
    except (ExecutionError, RuntimeError) as error:
        return str(error)
    return ""


def test_ranks_that_would_choose_differently_are_told() -> None:
    for text in run_on(2, one_rank_registers):
        assert "allreduce choice" in text
        assert "one_shot_allreduce" in text


def files_differ(rank: int, folder: str) -> list[str]:
    os.environ["MSCCL_ALGO_DIR"] = f"{folder}/{rank}"
    found = []
    for _ in range(2):
        try:
            reduced(10)
        except (SpecError, RuntimeError) as error:
            found.append(str(error))
        Path(f"{folder}/1/mine.xml").unlink(missing_ok=True)
        dist.barrier()
    return [*found, *reduced(10)]


def files_differ_over_gloo(rank: int, folder: str) -> list[str]:
    os.environ["MSCCL_ALGO_DIR"] = f"{folder}/{rank}"
    try:
        dist.all_reduce(torch.ones(10))
    except RuntimeError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize(("transport", "function"), [("shm", files_differ), ("gloo", files_differ_over_gloo)])
def test_ranks_with_different_files_are_told_and_can_go_on(tmp_path: Path, transport: str, function: Any) -> None:
    (tmp_path / "1").mkdir()
    save(build("allreduce", "ring", 2), tmp_path / "1" / "mine.xml")
    for found in run_on(2, function, str(tmp_path), transport=transport):
        assert found[0].startswith("ranks 0 and ranks 1 would choose from different algorithms")
        assert found[1:] == (["one_shot_allreduce"] if transport == "shm" else [])


def tuned(_rank: int) -> list[list[str]]:
    return [reduced(elements) for elements in (10, 100, 100_000)]


def table(machine: Machine) -> Registry:
    rows = (
        Row("allreduce", "mine", Range(2, 2)),
        Row("allreduce", "recursive_halving_doubling", bytes=Range(0, 40)),
        Row("allreduce", "staged", bytes=Range(41, 1000)),
        Row("allgather", "ring"),
    )
    return Registry(rows, "", machine)


def test_the_table_of_this_machine_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = native_is_built()
    path = tmp_path / "t.json"
    monkeypatch.setenv("COMMLIB_TUNING", str(path))
    write_registry(table(this_machine(native)), path)
    staged = ["staged_allreduce"]
    for found in run_on(2, tuned):
        assert found == [["recursive_halving_doubling_allreduce"], staged, staged]
    write_registry(table(Machine("another", 99, native)), path)
    for found in run_on(2, tuned):
        assert found == [["one_shot_allreduce"], ["one_shot_allreduce"], staged]


def warned(_rank: int) -> list[Any]:
    """What runs, and what this rank's log says."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    found = reduced(10) + reduced(20)
    return [found, lines]


def test_wrong_rows_are_passed_over_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    monkeypatch.setenv("COMMLIB_TUNING", str(path))
    rows = (
        Row("allreduce", "shared"),
        Row("allreduce", "shared", reach="readv"),
        Row("allreduce", "stagged"),
        Row("allreduce", "staged"),
    )
    write_registry(Registry(rows), path)
    (first, told), (second, silent) = run_on(2, warned)
    assert first == second == ["staged_allreduce"] * 2
    assert silent == []
    row, unknown = f"of {path} names", "'stagged', which is no algorithm of allreduce, nor a user's"
    forgotten = (
        'shared_allreduce, which works on other ranks\' tensors, for which the row must say "reach": "registered"'
    )
    written = 'shared_allreduce, which writes to other ranks\' tensors, which "reach": "readv" cannot'
    expected = [f"row 3 {row} {unknown}", f"row 1 {row} {forgotten}", f"row 2 {row} {written}"]
    if len(told) == 2:  # no process_vm_readv here: the row fits no call
        del expected[2]
    assert told == [f"{text}; the next choice is taken" for text in expected]


def test_what_is_refused_is_told_once_and_by_each_rank_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMLIB_TUNING", str(tmp_path / "t.json"))
    monkeypatch.setenv("MSCCL_XML_FILES", str(tmp_path / "two\nlines.xml"))
    (tmp_path / "t.json").write_text("damaged")
    (first, told), (second, silent) = run_on(2, warned)
    assert first == second == ["one_shot_allreduce"] * 2
    assert silent == []
    assert [text.split(": ")[:2] for text in told] == [
        ["the table of algorithms is refused", "FormatError"],
        [f"{tmp_path}/two\\nlines.xml is refused", "FormatError"],
    ]
    assert not any("\n" in text for text in told)
    assert run_on(2, one_table_is_damaged, str(tmp_path)) == [[], ["rank 1: the table of algorithms is refused"]]


def one_table_is_damaged(rank: int, folder: str) -> list[str]:
    del os.environ["MSCCL_XML_FILES"]
    os.environ["COMMLIB_TUNING"] = f"{folder}/{rank}.json"
    if rank == 0:
        write_registry(Registry((Row("allreduce", "staged"),)), f"{folder}/0.json")
    catalogue._made.cache_clear()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    with pytest.raises(RuntimeError, match="would choose from different algorithms"):
        reduced(10)
    return [line.split(": FormatError")[0] for line in lines]


# The choice itself, without processes


def taken(request: Request, situation: Situation, refuse: tuple[str, ...] = ()) -> str:
    def attempt(choice: Choice) -> str:
        if choice.algorithm.name in refuse:
            raise VerificationError("refused here")
        return choice.algorithm.name

    return choose(request, situation, attempt, lambda number, _: [number] * situation.ranks)


def test_the_defaults_by_size_ranks_and_memory() -> None:
    small, large = (Request("allreduce", n, torch.float32, "sum", None, Placement.IN) for n in (100, 10**6))
    here = Situation(4, shared=True)
    assert taken(small, here) == "one_shot_allreduce"
    assert taken(large, here) == "staged_allreduce"
    assert taken(large, Situation(4, shared=True, registered=True)) == "shared_allreduce"
    assert taken(large, here, ("staged_allreduce",)) == "ring_allreduce"
    assert taken(large, Situation(4, shared=False)) == "ring_allreduce"
    assert taken(small, Situation(4, shared=False)) == "allpairs_allreduce"
    assert taken(large, Situation(4, shared=False, hosts=(0, 0, 1, 1))) == "hierarchical_allreduce"
    for hosts in ((0, 1, 0, 1), (0, 0, 0, 1), (0, 1, 2, 3)):
        assert Situation(4, shared=False, hosts=hosts).nodes == 1
    with pytest.raises(SpecError, match=r"no algorithm can run allreduce - float32 sum 100 in: .*refused here"):
        taken(small, here, ("one_shot_allreduce", "staged_allreduce", "allpairs_allreduce", "ring_allreduce"))


def test_every_request_of_the_backend_has_a_default_on_any_ranks() -> None:
    for name in sorted({row.collective for row in DEFAULTS.rows}):
        root = 0 if name in ROOTED else None
        for ranks in (1, 2, 5):
            sizes = tuple((3,) * ranks for _ in range(ranks)) if name == "alltoallv" else None
            for placement in Placement:
                request = Request(name, 3, torch.float32, "sum", root, placement, sizes)
                for shared in (True, False):
                    assert taken(request, Situation(ranks, shared)).endswith(f"_{name}")


def test_a_user_algorithm_on_others_tensors_needs_a_way_to_them() -> None:
    request = Request("broadcast", 3000, torch.float32, None, 1, Placement.IN)
    register_algorithm(build("broadcast", "shared", 2, 1))
    assert taken(request, Situation(2, True)) == "staged_broadcast"
    assert taken(request, Situation(2, True, readv=True)) == "shared_broadcast"
    assert taken(request, Situation(2, False)) == "binomial_broadcast"
    assert taken(request, Situation(2, True, registered=True)) == "shared_broadcast"
    assert (
        taken(Request("broadcast", 3000, torch.float32, None, 0), Situation(2, True, readv=True)) == "staged_broadcast"
    )


def test_one_sided_steps_of_a_user_stay_inside_a_host() -> None:
    """Pairs meet in shared memory, then messages cross."""
    k = OneSidedProgram("inside", build("allreduce", "ring", 4).collective)
    for rank in range(4):
        block, peer = k.threadblock(rank, send=rank ^ 2, recv=rank ^ 2), rank ^ 1
        block.copy(k.input(rank)[:], k.scratch(rank)[0:4])
        block.signal(peer)
        block.wait(peer)
        block.read_reduce([k.scratch(each)[0:4] for each in sorted((rank, peer))], k.output(rank)[:])
        block.send(k.output(rank)[:])
        block.recv_reduce_copy(k.output(rank)[:], k.output(rank)[:])
    register_algorithm(k.algorithm())
    request = Request("allreduce", 100, torch.float32, "sum", None, Placement.IN)
    assert taken(request, Situation(4, shared=False, hosts=(0, 0, 1, 1))) == "inside"
    assert taken(request, Situation(4, shared=True)) == "inside"
    for hosts in ((0, 1, 0, 1), ()):
        assert taken(request, Situation(4, shared=False, hosts=hosts)) == "allpairs_allreduce"


def test_info_says_what_runs_and_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMMLIB_DEBUG", "INFO")
    catalogue._made.cache_clear()
    request = Request("alltoall", 10, torch.float32, None, None, Placement.IN)
    register_algorithm(build("alltoall", "direct", 2))
    assert taken(request, Situation(2, True)) == "staged_alltoall"
    taken(request, Situation(2, True, rank=1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "commlib INFO alltoall float32 10 in, 80 bytes on 2 ranks over shared memory -> staged_alltoall (row "
    )
    assert line.endswith("of the defaults); passed over: direct_alltoall of Python: not proved in place")


TWO_FACED = {
    0: ["cpy i0 s0", "s i0 s1", "r i0 s1", "cpy s1 o0", "cpy i0 s2", "cpy s0 o0", "s s2 o0", "r s0 o1"],
    1: ["cpy i0 s0", "r i0 s1", "cpy s1 o1", "cpy i0 s2", "cpy s0 o1", "s s2 s1", "r s2 o0", "s s0 o1"],
}
"""The steps of an allgather on 2 ranks that is right in place, and out of place, but not if the ranks differ: each puts
what it has of the other where its own shard belongs, and reads its input again."""


def two_faced(placements: str) -> str:
    """It as a file, for these placements."""
    text = '<algo name="two_faced" proto="Simple" nchannels="1" nchunksperloop="2" ngpus="2" coll="allgather" '
    text += f'inplace="1" placements="{placements}">'
    for rank, steps in TWO_FACED.items():
        text += f'<gpu id="{rank}" i_chunks="1" o_chunks="2" s_chunks="3">'
        text += f'<tb id="0" send="{1 - rank}" recv="{1 - rank}" chan="0">'
        for number, step in enumerate(steps):
            kind, source, target = step.split()
            text += f'<step s="{number}" type="{kind}" srcbuf="{source[0]}" srcoff="{source[1]}" dstbuf="{target[0]}" '
            text += f'dstoff="{target[1]}" cnt="1" depid="-1" deps="-1" hasdep="0"/>'
        text += "</tb></gpu>"
    return text + "</algo>"


def gathered(rank: int) -> list[Any]:
    """Allgathers of large shards, in place on no rank, one, and both: what ran, and whether all was right."""
    size, found = 1 << 15, []
    for inside in range(4):
        whole, beside = torch.zeros(2 * size), torch.empty(size)
        given = whole[rank * size : (rank + 1) * size] if inside >> rank & 1 else beside
        for turn in range(3):
            given.fill_(10.0 * turn + rank)
            gather_single(whole, given)
            wanted = torch.tensor([10.0 * turn, 10.0 * turn + 1]).repeat_interleave(size)
            found.append([flight_record().calls[-1].algorithm, torch.equal(whole, wanted)])
    return found


@pytest.mark.parametrize("placements", ["in out", "in"])
def test_an_allgather_of_a_user_is_one_in_place(
    placements: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "two_faced.xml"
    path.write_text(two_faced(placements))
    monkeypatch.setenv("MSCCL_XML_FILES", str(path))
    for found in run_on(2, gathered):
        assert found == [["two_faced", True]] * 12

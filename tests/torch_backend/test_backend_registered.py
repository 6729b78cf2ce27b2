"""Registered memory under torch.distributed, and the calls that a group remembers by the addresses of their tensors."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from backend_ranks import gather_single, run_on

from commlib.algorithms import ALGORITHMS, DIRECT
from commlib.errors import SpecError
from commlib.torch_backend import flight_record, register_tensor, registered_empty
from commlib.torch_backend.catalogue import catalogue
from commlib.torch_backend.collectives import SPREAD
from commlib.torch_backend.group import core_of

SIZE = 1 << 18


def _where_others_lay(rank: int) -> list[float]:
    """Tensors that were reduced go, on rank 0 only; registered ones come, where those lay."""
    gone = [torch.ones(SIZE).share_memory_() for _ in range(6)]
    for tensor in gone * 2:
        dist.all_reduce(tensor)
    kept = gone if rank else []
    del gone, tensor
    gc.collect()
    found = []
    for _ in range(3):
        tensor = registered_empty((SIZE,))
        found.append(float(len(core_of().hot)))
        for _ in range(2):
            tensor.fill_(rank + 1.0)
            dist.all_reduce(tensor)
            found.append(tensor[SIZE - 1].item())
    assert len(kept) == 6 * rank
    return found


@pytest.mark.timeout(60)
def test_calls_remembered_by_address_are_forgotten_when_memory_is_registered() -> None:
    assert run_on(2, _where_others_lay) == [[0.0, 3.0, 3.0] * 3] * 2


def _where_a_registered_one_lay(_rank: int) -> list[float]:
    """A registered tensor's memory is freed by resizing its storage; ordinary tensors mostly come to lie there."""
    large = registered_empty((40 * SIZE,))
    for _ in range(3):
        large.fill_(1.0)
        dist.all_reduce(large)
    place = (large.data_ptr(), 4 * large.numel())
    found = [float(core_of().runner.reaches([place]))]
    large.untyped_storage().resize_(0)
    found.append(float(core_of().runner.reaches([place])))
    tensors = [torch.empty(9 * SIZE) for _ in range(4)]
    for tensor in tensors * 2:
        tensor.fill_(dist.get_rank() + 1.0)
        dist.all_reduce(tensor)
        found.append(tensor.unique().item())
    return found


@pytest.mark.timeout(60)
def test_memory_that_a_resized_storage_has_left_is_registered_no_more() -> None:
    assert run_on(2, _where_a_registered_one_lay) == [[1.0, 0.0] + [3.0] * 8] * 2


def _usage() -> list[int]:
    """Open files, mappings, and KB of shared memory."""
    with open("/proc/self/maps") as maps, open("/proc/self/status") as status:
        shared = next(int(line.split()[1]) for line in status if line.startswith("RssShmem"))
        return [len(os.listdir("/proc/self/fd")), len(maps.readlines()), shared]


def _many(rank: int) -> list[list[int]]:
    """Registered tensors that go after one use."""
    found = []
    for step in range(300):
        tensor = registered_empty((SIZE // 8 + step,))
        tensor.fill_(rank + 1.0)
        dist.all_reduce(tensor)
        assert tensor[step].item() == 3.0
        if step % 100 == 99:
            dist.barrier()
            found.append(_usage())
    return found


def _refused(rank: int) -> list[str]:
    """What only rank 0 cannot register; then a call goes on."""
    array = np.ones(1000, np.float32)
    wrong = [torch.ones(1000).to_sparse(), torch.from_numpy(array), torch.ones(10, device="meta"), None]
    texts = []
    for tensor in wrong:
        with pytest.raises(SpecError) as raised:
            register_tensor(torch.ones(1000) if rank else tensor)
        texts.append(str(raised.value))
    tensor = torch.ones(SIZE)
    assert register_tensor(tensor)
    dist.all_reduce(tensor)
    assert tensor.sum().item() == 2.0 * SIZE
    return texts


def _many_and_refused(rank: int) -> tuple[list[list[int]], list[str]]:
    return _many(rank), _refused(rank)


@pytest.mark.timeout(60)
def test_registered_tensors_take_nothing_once_they_have_gone_and_all_ranks_hear_of_one_that_cannot_be() -> None:
    for rank, (usage, texts) in enumerate(run_on(2, _many_and_refused)):
        first, last = usage[0], usage[-1]
        assert last[0] <= first[0]
        assert last[1] <= first[1] + 8
        assert last[2] <= first[2] + 4096
        for text, why in zip(texts, ("Sparse", "numpy's", "CPU", "NoneType"), strict=True):
            assert why in text if rank == 0 else "rank(s) 0 could not" in text


def _overlapping(rank: int) -> None:
    """Allgathers whose input lies in the output, but not (or not just) where it belongs, on one rank or on all."""
    for size in (1000, SPREAD // 4 + 3):  # below and above what is gathered in the output itself
        for start in (0, 1, size - 7, size, size + size // 2, 2 * size):
            for alone in (True, False):
                whole = torch.zeros(3 * size)
                given = whole[start : start + size] if rank == 0 or not alone else torch.zeros(size)
                for _ in range(3):
                    given.copy_(torch.arange(size) + 1e6 * (rank + 1))
                    gather_single(whole[: 2 * size], given)
                    wanted = torch.cat([torch.arange(size) + 1e6, torch.arange(size) + 2e6])
                    assert torch.equal(whole[: 2 * size], wanted)


@pytest.mark.timeout(60)
def test_an_allgather_whose_input_overlaps_its_output() -> None:
    run_on(2, _overlapping)


def _into_registered(rank: int) -> None:
    """Inputs that no other rank reaches, in place on rank 0 alone, into an output that all reach; then both reached, in
    place on no rank, and on one."""
    size = SPREAD // 4 + 3
    whole, near = registered_empty([3 * size]), registered_empty([size])
    place = whole[rank * size : (rank + 1) * size]
    beside = torch.zeros(size)
    for given in (place if rank == 0 else beside, beside, near, place if rank == 0 else near):
        for turn in range(3):
            given.copy_(torch.arange(size) + 1000.0 * (3 * turn + rank))
            gather_single(whole, given)
            for other in range(3):
                wanted = torch.arange(size) + 1000.0 * (3 * turn + other)
                assert torch.equal(whole[other * size : (other + 1) * size], wanted)


@pytest.mark.timeout(60)
def test_an_allgather_of_ordinary_tensors_into_a_registered_one() -> None:
    run_on(3, _into_registered)


def _some_in_place(rank: int, folder: str, names: list[str]) -> list[list[str]]:
    """By each algorithm in turn, in place on every set of ranks."""
    size, ran = SPREAD // 4, []
    whole, beside = torch.zeros(4 * size), torch.zeros(size)
    for name in names:
        path = Path(folder) / f"{name} {rank}.json"
        rows = [{"collective": "allgather", "algorithm": name}]
        path.write_text(json.dumps({"format": "commlib-tuning", "version": 1, "machine": None, "rows": rows}))
        os.environ["COMMLIB_TUNING"] = str(path)
        catalogue().reload()
        found = set()
        for inside in range(16):
            given = whole[rank * size : (rank + 1) * size] if inside >> rank & 1 else beside
            whole.fill_(-1)
            given.copy_(torch.arange(size) + 1e6 * (rank + inside))
            gather_single(whole, given)
            wanted = torch.cat([torch.arange(size) + 1e6 * (other + inside) for other in range(4)])
            assert torch.equal(whole, wanted), (name, inside)
            found.add(flight_record().calls[-1].algorithm)
        ran.append(sorted(found))
    return ran


@pytest.mark.timeout(90)
def test_allgathers_of_the_library_in_place_on_some_ranks(tmp_path: Path) -> None:
    entries = [entry for entry in (*ALGORITHMS, *DIRECT) if entry.collective == "allgather"]
    names = [entry.name for entry in entries if entry.name != "shared" and not entry.parameters]
    assert {"staged", "ring", "recursive_doubling"} < set(names)
    for ran in run_on(4, _some_in_place, str(tmp_path), names):
        assert [len(found) for found in ran] == [1] * len(names)
        assert len(set().union(*ran)) == len(names)

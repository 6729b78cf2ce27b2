"""Registered memory that comes and goes: what is taken when it has gone, and how much there can be."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from onesided_cases import shared
from shm_cases import PYTHON, SMALL, descriptors, open_session

from commlib.collectives import Placement
from commlib.errors import SpecError
from commlib.runtime.launcher import launch
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.session import ShmSession

BOTH = pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])
SIZE = 5000


def _sum(session: ShmSession, tensor: torch.Tensor) -> float:
    prepared = session.prepare(shared(2), Placement.IN, SIZE, torch.float32, "sum")
    tensor[:SIZE] = session.rank + 1.0
    session.run(prepared, tensor.data_ptr(), tensor.data_ptr())
    return float(tensor[SIZE - 1])


def _mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:commlib" in line or "/torch_" in line for line in maps)


def _comes_and_goes(rank: int, options: ShmOptions) -> list[Any]:
    """Tensors of both kinds that go after a call; then a few at once, which go on one rank only."""
    with open_session(rank, 2, options) as session:
        sums, usage = set(), []
        for step in range(40):
            tensor = session.empty((SIZE + step,)) if step % 2 else torch.empty(SIZE + step)
            session.register(tensor)
            sums.add(_sum(session, tensor))
            if step in (9, 39):
                usage.append((descriptors(), _mappings()))
        kept = [session.empty((SIZE,)) for _ in range(9)]
        del tensor
        if rank:
            kept = kept[4:5]
        untidy = [session.untidy]
        for _ in range(3):
            session.tidy()
            untidy.append(session.untidy)
        sums |= {_sum(session, kept[-5 if not rank else 0])}
        usage.append((descriptors(), _mappings()))
    return [sorted(sums), usage, untidy]


@BOTH
def test_memory_goes_with_its_tensor_on_all_ranks(options: ShmOptions) -> None:
    for rank, (sums, usage, untidy) in enumerate(launch(_comes_and_goes, 2, (options,))):
        assert sums == [3.0]
        assert usage[0] == usage[1]
        assert untidy == [True, rank == 1, rank == 1, False]
        assert usage[2][1] - usage[1][1] == 10 - 2  # nine and one, instead of one of each rank


def _full(rank: int, options: ShmOptions) -> list[Any]:
    """Rank 0 may have three more."""
    with open_session(rank, 2, options) as session:
        if rank == 0:
            session._regions._free = [1, 2, 3]
        kept = [session.empty((SIZE,)) for _ in range(3)]
        texts, files = [], len(os.listdir("/proc/self/fd"))
        for make in (lambda: session.empty((SIZE,)), lambda: session.register(torch.ones(SIZE))):
            with pytest.raises(SpecError) as raised:
                make()
            texts.append(str(raised.value))
            del raised  # its frames have the tensor
        del kept[1]
        session.tidy()
        again = session.empty((SIZE,))
        return [texts, _sum(session, again), _sum(session, kept[0]), len(os.listdir("/proc/self/fd")) - files]


@BOTH
def test_there_can_be_so_many_and_no_more(options: ShmOptions) -> None:
    for rank, (texts, *sums, files) in enumerate(launch(_full, 2, (options,))):
        assert sums == [3.0, 3.0]
        assert files == 0
        for text in texts:
            assert "4096 registered tensors" in text if rank == 0 else "rank(s) 0 could not" in text

"""Ranks that outnumber cores spread over them, and may afterwards run where they might before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timely import timely

from commlib.algorithms import direct
from commlib.collectives import Placement
from commlib.runtime.launcher import launch
from commlib.runtime.shm.load import native_is_built
from commlib.runtime.shm.session import ShmSession

RANKS = 4
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SECONDS = 20.0


def _core() -> int:
    """Where this thread runs: the 39th field of its stat."""
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])


def _spread(rank: int) -> list[int]:
    """Begin on one core, and make calls until the cores have as many ranks each as can be; the last counts."""
    store = dist.PrefixStore("cores", dist.distributed_c10d._get_default_store())
    one_shot = next(entry for entry in direct.ENTRIES if entry.full_name == "one_shot_allreduce").algorithm(RANKS)
    with ShmSession.open(store, rank, RANKS, timeout=SECONDS) as session:
        counts = torch.zeros(len(CORES), dtype=torch.int32)
        prepared = session.prepare(one_shot, Placement.IN, len(CORES), torch.int32, "sum")
        call = session.planned(prepared, counts.data_ptr(), counts.data_ptr(), SECONDS, (counts,))
        os.sched_setaffinity(0, CORES[:1])
        call()
        os.sched_setaffinity(0, CORES)
        began = time.monotonic()
        ended = torch.zeros(len(CORES), dtype=torch.int32)
        while not ended.any():
            counts.zero_()
            counts[CORES.index(_core())] = 1
            call()
            found = counts.tolist()
            counts.fill_(int(max(found) - min(found) <= 1 or time.monotonic() - began > SECONDS / 2))
            call()
            ended.copy_(counts)
        assert os.sched_getaffinity(0) == set(CORES)
    return [int(count) for count in found]


@pytest.mark.timeout(300)
@pytest.mark.skipif(not 1 < len(CORES) < RANKS, reason="for two or three cores")
@pytest.mark.skipif(not native_is_built(), reason="only the native core moves ranks")
@timely
def test_ranks_spread_over_the_cores() -> None:
    found = launch(_spread, RANKS, timeout=90)
    assert all(sum(counts) == RANKS for counts in found)
    assert max(found[0]) - min(found[0]) <= 1

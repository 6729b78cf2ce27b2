"""Every collective through torch.distributed, over shared memory and over gloo, with exact values."""

from __future__ import annotations

import warnings
from functools import reduce as fold

import pytest
import torch
import torch.distributed as dist
from backend_ranks import gather_single, run_on

from commlib.errors import CommlibError
from commlib.reductions import REDUCTIONS
from commlib.runtime.tensors import DTYPES, kind_of

TRANSPORTS = ("shm", "gloo")
OPS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "avg": dist.ReduceOp.AVG,
    "band": dist.ReduceOp.BAND,
    "bor": dist.ReduceOp.BOR,
    "bxor": dist.ReduceOp.BXOR,
}
PAIRS = {
    "sum": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "min": torch.minimum,
    "max": torch.maximum,
    "band": lambda a, b: a & b,
    "bor": lambda a, b: a | b,
    "bxor": lambda a, b: a ^ b,
}
WIDE = {torch.uint16: torch.int64, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Types that torch itself can hardly compute with: small values, computed wider."""


@pytest.fixture(scope="module", params=TRANSPORTS)
def done(request):
    """What each of three ranks found; one launch for a transport, because groups take longer to make than to use."""
    return run_on(3, everything, transport=request.param)


def everything(rank: int) -> dict[str, object]:
    return {"reductions": reductions(rank), "shapes": shapes(rank), "moves": moves(rank)}


def values(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Small numbers that are exact in every type, and in every order of adding."""
    numbers = (torch.arange(size, dtype=torch.int64) * 7 + 3 * rank) % 3 + 1
    return (numbers > 2) if dtype is torch.bool else numbers.to(dtype)


def expected(name: str, ranks: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    parts = [values(rank, size, dtype).to(WIDE.get(dtype, dtype)) for rank in range(ranks)]
    if name == "avg":
        total = fold(PAIRS["sum"], parts)
        return torch.div(
            total, ranks, rounding_mode=None if total.is_floating_point() or total.is_complex() else "trunc"
        )
    return fold(PAIRS[name], parts).to(dtype) if dtype is not torch.bool else fold(PAIRS[name], parts)


def reductions(rank: int) -> list[str]:
    """What all_reduce gets wrong, of every type and reduction that is defined."""
    wrong, ranks = [], dist.get_world_size()
    for dtype in DTYPES.values():
        for name, op in OPS.items():
            if not REDUCTIONS[name].supports(kind_of(dtype)) or (dtype.is_complex and name not in ("sum", "avg")):
                continue
            tensor = values(rank, 5, dtype)
            dist.all_reduce(tensor, op=op)
            if not torch.equal(tensor, expected(name, ranks, 5, dtype).to(dtype)):
                wrong.append(f"{name} {dtype}: {tensor}")
    return wrong


def test_all_reduce_of_every_type_and_reduction(done):
    assert [each["reductions"] for each in done] == [[]] * 3


def shapes(rank: int) -> list[str]:
    """Everything that is not a plain tensor: strides, no elements, scalars, many sizes, and twice the same call."""
    wrong, ranks = [], dist.get_world_size()
    total = ranks * (ranks + 1) // 2

    def check(what: str, tensor: torch.Tensor, value: float) -> None:
        dist.all_reduce(tensor)
        if not bool((tensor == value).all()):
            wrong.append(f"{what}: {tensor}")

    for size in (0, 1, 2, 7, 1000, 20_000, 300_001):
        check(f"size {size}", torch.full((size,), float(rank + 1)), total)
    check("scalar", torch.tensor(float(rank + 1)), total)
    square = torch.full((6, 6), float(rank + 1))
    check("columns", square[:, 1:3], total)
    if not torch.equal(square[:, 0], torch.full((6,), rank + 1.0)):
        wrong.append("a column beside was written")
    check("transposed", torch.full((3, 5), float(rank + 1)).t(), total)
    same = torch.full((64, 64), float(rank + 1))
    for turn in range(3):
        check(f"again {turn}", same, total * ranks**turn)
    flipped = torch.arange(16.0).view(4, 4)
    dist.all_reduce(flipped if rank else flipped.t())
    mine = torch.arange(16.0).view(4, 4)
    if not torch.equal(flipped if rank else flipped.t(), (ranks - 1) * mine + mine.t()):
        wrong.append("transposed on one rank only")
    premul = torch.full((3,), float(rank + 1))
    dist.all_reduce(premul, op=dist._make_nccl_premul_sum(0.5))
    if premul.tolist() != [total / 2] * 3:
        wrong.append(f"premul_sum: {premul}")
    number = torch.full((3,), complex(rank + 1, -rank))
    for _ in range(2):
        dist.group.WORLD.allreduce([number.conj()]).wait()
    if number.tolist() != [complex(total * ranks, -ranks * ranks * (ranks - 1) // 2)] * 3:
        wrong.append(f"conjugate views: {number}")
    return wrong


def test_all_reduce_of_every_shape(done):
    assert [each["shapes"] for each in done] == [[]] * 3


def moves(rank: int) -> dict[str, object]:
    """One call of each collective that moves or scatters; what this rank holds afterwards."""
    warnings.simplefilter("ignore")
    return {**gathers(rank), **scatters(rank), **exchanges(rank), **rooted(rank), **others(rank)}


def gathers(rank: int) -> dict[str, object]:
    """Everything to everyone."""
    n, got = dist.get_world_size(), {}
    mine = torch.tensor([rank, 10.0 * rank])
    listed = [torch.zeros(2) for _ in range(n)]
    dist.all_gather(listed, mine)
    got["all_gather"] = [t.tolist() for t in listed]
    uneven = [torch.zeros(r + 1) for r in range(n)]
    dist.all_gather(uneven, torch.full((rank + 1,), float(rank)))
    got["all_gather uneven"] = [t.tolist() for t in uneven]
    whole = torch.zeros(n, 2)
    dist.all_gather_into_tensor(whole, mine)
    got["all_gather_into_tensor"] = whole.tolist()
    large = torch.zeros(n * 40_000)
    large[rank * 40_000 : (rank + 1) * 40_000] = rank + 1
    dist.all_gather_into_tensor(large, large[rank * 40_000 : (rank + 1) * 40_000])
    got["all_gather in its output"] = [*large[::40_000].tolist(), float(large.sum())]
    coalesced = [[torch.zeros(1), torch.zeros(2)] for _ in range(n)]
    dist.all_gather_coalesced(coalesced, [torch.full((1,), rank + 1.0), torch.full((2,), rank + 2.0)])
    got["all_gather_coalesced"] = [[t.tolist() for t in row] for row in coalesced]
    return got


def scatters(rank: int) -> dict[str, object]:
    """Sums and maxima, each rank its part."""
    n, got = dist.get_world_size(), {}
    given = torch.arange(2.0 * n) + rank
    out = torch.zeros(2)
    dist.reduce_scatter_tensor(out, given)
    got["reduce_scatter_tensor"] = out.tolist()
    dist.reduce_scatter(out, [torch.full((2,), float(d + rank)) for d in range(n)], op=dist.ReduceOp.MAX)
    got["reduce_scatter"] = out.tolist()
    part = torch.zeros(rank + 1)
    dist.reduce_scatter(part, [torch.full((d + 1,), 1.0 + rank) for d in range(n)])
    got["reduce_scatter uneven"] = part.tolist()
    dist.reduce_scatter_tensor(given[2 * rank : 2 * rank + 2], given)
    got["reduce_scatter in its input"] = given[2 * rank : 2 * rank + 2].tolist()
    return got


def exchanges(rank: int) -> dict[str, object]:
    """From each rank to each."""
    n, got = dist.get_world_size(), {}
    swapped = torch.zeros(n)
    dist.all_to_all_single(swapped, torch.arange(float(n)) + 10 * rank)
    got["all_to_all_single"] = swapped.tolist()
    rows = torch.zeros(n * (rank + 1), 2)
    sent = torch.cat([torch.full((d + 1, 2), 10.0 * rank + d) for d in range(n)])
    dist.all_to_all_single(rows, sent, [rank + 1] * n, [d + 1 for d in range(n)])
    got["all_to_all_single uneven"] = rows[:, 1].tolist()
    outs = [torch.zeros(rank + s) for s in range(n)]
    dist.all_to_all(outs, [torch.full((d + rank,), 10.0 * rank + d) for d in range(n)])
    got["all_to_all"] = [t.tolist() for t in outs]
    return got


def rooted(rank: int) -> dict[str, object]:
    """From or to one rank."""
    n, got = dist.get_world_size(), {}
    mine = torch.tensor([rank, 10.0 * rank])
    told = torch.full((5,), float(rank))
    dist.broadcast(told, 1)
    got["broadcast"] = told.tolist()
    summed = torch.full((3,), rank + 1.0)
    dist.reduce(summed, 1)
    got["reduce"] = summed.tolist()
    heap = [torch.zeros(2) for _ in range(n)] if rank == 1 else None
    dist.gather(mine, heap, dst=1)
    got["gather"] = None if heap is None else [t.tolist() for t in heap]
    shard = torch.zeros(2)
    dist.scatter(shard, [torch.full((2,), float(r)) for r in range(n)] if rank == 0 else None, src=0)
    got["scatter"] = shard.tolist()
    return got


def others(rank: int) -> dict[str, object]:
    """Bytes, objects, sparse tensors, and barriers."""
    n, got = dist.get_world_size(), {}
    eight = torch.zeros(n, dtype=torch.float8_e5m2)
    dist.all_gather_into_tensor(eight, torch.tensor([rank + 1.0]).to(torch.float8_e5m2))
    got["float8"] = eight.float().tolist()

    objects: list[object] = [None] * n
    dist.all_gather_object(objects, {"rank": rank})
    got["objects"] = objects
    news = [f"from {rank}", rank]
    dist.broadcast_object_list(news, src=2)
    got["object list"] = news
    sparse = torch.sparse_coo_tensor([[rank, 3]], [1.0, 2.0], (5,), check_invariants=True)
    dist.all_reduce(sparse)
    got["sparse"] = sparse.to_dense().tolist()
    dist.barrier()
    dist.barrier()
    dist.group.WORLD.monitored_barrier()
    return got


def test_moving_collectives(done):
    n = len(done)
    for rank, got in enumerate(each["moves"] for each in done):
        each = [[float(r), 10.0 * r] for r in range(n)]
        assert got["all_gather"] == got["all_gather_into_tensor"] == each
        assert got["all_gather uneven"] == [[float(r)] * (r + 1) for r in range(n)]
        assert got["all_gather in its output"] == [1.0, 2.0, 3.0, 40_000 * 6.0]
        assert got["all_gather_coalesced"] == [[[r + 1.0], [r + 2.0] * 2] for r in range(n)]
        assert got["reduce_scatter_tensor"] == [3.0 * (2 * rank + i) + 3 for i in range(2)]
        assert got["reduce_scatter in its input"] == got["reduce_scatter_tensor"]
        assert got["reduce_scatter"] == [rank + 2.0] * 2
        assert got["reduce_scatter uneven"] == [6.0] * (rank + 1)
        assert got["all_to_all_single"] == [10.0 * s + rank for s in range(n)]
        assert got["all_to_all_single uneven"] == [10.0 * s + rank for s in range(n) for _ in range(rank + 1)]
        assert got["all_to_all"] == [[10.0 * s + rank] * (rank + s) for s in range(n)]
        assert got["broadcast"] == [1.0] * 5
        assert got["reduce"] == ([6.0] * 3 if rank == 1 else [rank + 1.0] * 3)
        assert got["gather"] == (each if rank == 1 else None)
        assert got["scatter"] == [float(rank)] * 2
        assert got["float8"] == [1.0, 2.0, 3.0]
        assert got["objects"] == [{"rank": r} for r in range(n)]
        assert got["object list"] == ["from 2", 2]
        assert got["sparse"] == [1.0, 1.0, 1.0, 6.0, 0.0]


def refusals(_rank: int) -> list[str]:
    """Wrong arguments, each refused on the rank that gave them, before anything is sent; the group goes on."""
    n, told = dist.get_world_size(), []
    group = dist.group.WORLD
    calls = [
        lambda: gather_single(torch.zeros(n + 1), torch.zeros(1)),
        lambda: dist.all_reduce(torch.zeros(2).expand(4, 2)),
        lambda: dist.all_reduce(torch.zeros(4, dtype=torch.float32), op=dist.ReduceOp.BAND),
        lambda: dist.all_reduce(torch.zeros(4, dtype=torch.float8_e5m2)),
        lambda: dist.all_to_all_single(torch.zeros(n + 1), torch.zeros(n + 1)),
        lambda: group.allgather([[torch.zeros(1)]], [torch.zeros(1)]),
        lambda: group.send([torch.zeros(1)], group.rank(), 0),
        lambda: group.merge_remote_group(None, 1),
    ]
    for call in calls:
        try:
            call()
        except (CommlibError, NotImplementedError) as error:
            told.append(f"{type(error).__name__}: {error}")
            if not isinstance(error, RuntimeError):
                told.append("not torch's")
    ones = torch.ones(3)
    dist.all_reduce(ones)
    return [*told, f"then {ones.tolist()}"]


def test_wrong_arguments_are_refused_in_words():
    for told in run_on(2, refusals):
        assert told == [
            "TorchSpecError: all_gather: the output has 3 elements, not 2",
            "TorchSpecError: elements of the output share memory (an expanded tensor?), so that no result can be "
            "written there: pass a copy, tensor.contiguous(), and take the result from it",
            "NotImplementedError: band is not defined on torch.float32",
            "NotImplementedError: tensors of torch.float8_e5m2 can be moved, but not reduced",
            "TorchSpecError: all_to_all: 3 elements cannot be split evenly among 2 ranks",
            "TorchSpecError: all_gather: the output list has 1 tensors, not 2",
            told[6],
            "NotImplementedError: commlib groups cannot be merged with groups of other processes",
            "then [2.0, 2.0, 2.0]",
        ]
        assert "cannot send to or receive from" in told[6]

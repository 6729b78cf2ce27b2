"""What a soak calls: each kind of collective and message with inputs that repeat, and what must come out, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from functools import reduce as fold
from typing import Any

import torch
import torch.distributed as dist
from backend_ranks import gather_single

from commlib.reductions import REDUCTIONS
from commlib.runtime.tensors import DTYPES, kind_of

PERIOD = 251
"""Inputs repeat after so many elements, a prime, so that a shifted chunk is seen, and results are cheap to compute."""
LONGEST_BYTES = 4 << 20
"""Bytes of the longest tensor."""
OPS = {
    "sum": (dist.ReduceOp.SUM, lambda a, b: a + b),
    "prod": (dist.ReduceOp.PRODUCT, lambda a, b: a * b),
    "min": (dist.ReduceOp.MIN, torch.minimum),
    "max": (dist.ReduceOp.MAX, torch.maximum),
    "avg": (dist.ReduceOp.AVG, lambda a, b: a + b),
    "band": (dist.ReduceOp.BAND, lambda a, b: a & b),
    "bor": (dist.ReduceOp.BOR, lambda a, b: a | b),
    "bxor": (dist.ReduceOp.BXOR, lambda a, b: a ^ b),
}
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch itself can hardly compute with."""


def reductions_of(dtype: torch.dtype) -> list[str]:
    """The reductions that are defined on a type and exact in every order."""
    if dtype.is_complex:
        return ["sum"]  # torch divides complex numbers in two ways, whose last bits differ
    return [name for name in OPS if REDUCTIONS[name].supports(kind_of(dtype))]


@cache
def pattern(dtype: torch.dtype) -> torch.Tensor:
    """Values 1 and 2 without an order, long enough for a slice of every start below PERIOD; not to be written."""
    numbers = torch.randint(1, 3, (PERIOD,), generator=torch.Generator().manual_seed(5))
    times = 2 + LONGEST_BYTES // dtype.itemsize // PERIOD
    return ((numbers > 1) if dtype is torch.bool else numbers.to(dtype)).repeat(times)


@dataclass(frozen=True)
class Call:
    """One call, the same on all ranks. ``size`` is of a rank's shard, ``members`` and ``root`` are world ranks.

    ``slot`` is the group's place (0: the world). ``kept``: on memory that the group's calls use again and again.
    """

    number: int
    kind: str
    slot: int
    members: tuple[int, ...]
    size: int
    dtype: torch.dtype
    op: str
    root: int
    asynchronous: bool
    kept: bool = False
    strided: bool = False

    def __str__(self) -> str:
        how = "".join(f" {name}" for name in ("asynchronous", "kept", "strided") if getattr(self, name))
        what = f"{self.kind} of {self.size} {self.dtype} {self.op} root {self.root}{how}"
        return f"call {self.number}: {what} in group {self.slot} of {self.members}"


class Rank:
    """One rank's part in a call: its tensors, and what is wrong with them in the end (``wrong``)."""

    def __init__(self, call: Call, rank: int, group: Any, rooms: dict[Any, torch.Tensor]) -> None:
        self.call, self.rank, self.group, self.rooms = call, rank, group, rooms
        self.members, self.ranks, self.size = call.members, len(call.members), call.size
        self.me = call.members.index(rank)
        self.works: list[Any] = []
        self.checks: list[tuple[Callable[[], torch.Tensor], torch.Tensor]] = []

    def empty(self, size: int, role: str) -> torch.Tensor:
        """Memory for a tensor: new, or that of earlier calls, or every second element of more."""
        call = self.call
        if not call.kept:
            return torch.zeros((1 + call.strided) * size, dtype=call.dtype)[:: 1 + call.strided]
        key = (role, size, call.dtype)
        if key not in self.rooms:
            self.rooms[key] = torch.zeros(size, dtype=call.dtype)
        return self.rooms[key]

    def values(self, world_rank: int, size: int, start: int = 0) -> torch.Tensor:
        """Elements from ``start`` of what a rank gives to this call; not to be written."""
        shift = (31 * world_rank + 7 * self.call.number + start) % PERIOD
        return pattern(self.call.dtype)[shift : shift + size]

    def mine(self, size: int, role: str = "input") -> torch.Tensor:
        """What this rank gives."""
        return self.empty(size, role).copy_(self.values(self.rank, size))

    def reduced(self, size: int, start: int = 0) -> torch.Tensor:
        """The reduction of what all give."""
        dtype = self.call.dtype
        rows = [self.values(rank, PERIOD, start) for rank in self.members]
        total = fold(OPS[self.call.op][1], [row.long() for row in rows] if dtype in UNSIGNED else rows)
        if self.call.op == "avg":
            exact = total.is_floating_point() or total.is_complex()
            total = torch.div(total, self.ranks, rounding_mode=None if exact else "trunc")
        return total.to(dtype).repeat(1 + size // PERIOD)[:size]

    def awaits(self, work: Any) -> None:
        """Remember an asynchronous call's handle."""
        if self.call.asynchronous or work is not None:
            self.works.append(work)

    def expect(self, tensor: torch.Tensor, wanted: Callable[[], torch.Tensor]) -> None:
        """What a tensor must hold in the end."""
        self.checks.append((wanted, tensor))

    def wrong(self) -> list[str]:
        """What came out wrong."""
        return [
            f"{self.call}, rank {self.rank}: {int((got != wanted()).sum())} of {got.numel()} elements are wrong"
            for wanted, got in self.checks
            if not torch.equal(got, wanted())
        ]


def _uneven(call: Call, sender: int, receiver: int) -> int:
    """Elements that one rank sends to another where parts are uneven; some are 0."""
    return call.size * ((3 * sender + 5 * receiver + call.number) % 4) // 3


def _common(own: Rank) -> dict[str, Any]:
    return {"group": own.group, "async_op": own.call.asynchronous}


def all_reduce(own: Rank) -> None:
    tensor = own.mine(own.size)
    own.awaits(dist.all_reduce(tensor, OPS[own.call.op][0], **_common(own)))
    own.expect(tensor, lambda: own.reduced(own.size))


def coalesced(own: Rank) -> None:
    sizes = (own.size, own.size + 1)
    tensors = [own.mine(size, f"input {size}") for size in sizes]
    options = dist.AllreduceCoalescedOptions()
    options.reduceOp = OPS[own.call.op][0]
    work = own.group.allreduce_coalesced(tensors, options)
    own.awaits(work)
    for size, tensor in zip(sizes, tensors, strict=True):
        own.expect(tensor, lambda size=size: own.reduced(size))


def reduce(own: Rank) -> None:
    tensor = own.mine(own.size)
    own.awaits(dist.reduce(tensor, own.call.root, OPS[own.call.op][0], **_common(own)))
    root = own.rank == own.call.root
    own.expect(tensor, lambda: own.reduced(own.size) if root else own.values(own.rank, own.size))


def broadcast(own: Rank) -> None:
    tensor = own.mine(own.size)
    own.awaits(dist.broadcast(tensor, own.call.root, **_common(own)))
    own.expect(tensor, lambda: own.values(own.call.root, own.size))


def all_gather_into(own: Rank) -> None:
    output = own.empty(own.ranks * own.size, "output")
    own.awaits(gather_single(output, own.mine(own.size), **_common(own)))
    own.expect(output, lambda: torch.cat([own.values(rank, own.size) for rank in own.members]))


def all_gather(own: Rank) -> None:
    outputs = [own.empty(own.size, f"output {rank}") for rank in own.members]
    own.awaits(dist.all_gather(outputs, own.mine(own.size), **_common(own)))
    for rank, output in zip(own.members, outputs, strict=True):
        own.expect(output, lambda rank=rank: own.values(rank, own.size))


def all_gather_uneven(own: Rank) -> None:
    sizes = [_uneven(own.call, index, 0) for index in range(own.ranks)]
    outputs = [own.empty(size, f"output {index}") for index, size in enumerate(sizes)]
    own.awaits(dist.all_gather(outputs, own.mine(sizes[own.me]), **_common(own)))
    for rank, size, output in zip(own.members, sizes, outputs, strict=True):
        own.expect(output, lambda rank=rank, size=size: own.values(rank, size))


def reduce_scatter_into(own: Rank) -> None:
    output, given = own.empty(own.size, "output"), own.mine(own.ranks * own.size)
    own.awaits(dist.reduce_scatter_tensor(output, given, OPS[own.call.op][0], **_common(own)))
    own.expect(output, lambda: own.reduced(own.size, own.me * own.size))
    own.expect(given, lambda: own.values(own.rank, own.ranks * own.size))


def reduce_scatter(own: Rank) -> None:
    output = own.empty(own.size, "output")
    given = list(own.mine(own.ranks * own.size).view(own.ranks, own.size)) if not own.call.strided else None
    given = given or [own.empty(own.size, f"part {part}").copy_(_part(own, part)) for part in range(own.ranks)]
    own.awaits(dist.reduce_scatter(output, given, OPS[own.call.op][0], **_common(own)))
    own.expect(output, lambda: own.reduced(own.size, own.me * own.size))


def _part(own: Rank, part: int) -> torch.Tensor:
    return own.values(own.rank, own.size, part * own.size)


def gather(own: Rank) -> None:
    root = own.rank == own.call.root
    outputs = [own.empty(own.size, f"output {rank}") for rank in own.members] if root else None
    own.awaits(dist.gather(own.mine(own.size), outputs, own.call.root, **_common(own)))
    for rank, output in zip(own.members, outputs or (), strict=root):
        own.expect(output, lambda rank=rank: own.values(rank, own.size))


def scatter(own: Rank) -> None:
    given = None
    if own.rank == own.call.root:
        given = [own.empty(own.size, f"part {part}").copy_(_part(own, part)) for part in range(own.ranks)]
    output = own.empty(own.size, "output")
    own.awaits(dist.scatter(output, given, own.call.root, **_common(own)))
    own.expect(output, lambda: own.values(own.call.root, own.size, own.me * own.size))


def all_to_all_even(own: Rank) -> None:
    output, given = own.empty(own.ranks * own.size, "output"), own.mine(own.ranks * own.size)
    own.awaits(dist.all_to_all_single(output, given, **_common(own)))
    own.expect(output, lambda: torch.cat([own.values(rank, own.size, own.me * own.size) for rank in own.members]))


def all_to_all_uneven(own: Rank) -> None:
    sent = [_uneven(own.call, own.me, index) for index in range(own.ranks)]
    received = [_uneven(own.call, index, own.me) for index in range(own.ranks)]
    output, given = own.empty(sum(received), "output"), own.mine(sum(sent))
    own.awaits(dist.all_to_all_single(output, given, received, sent, **_common(own)))
    starts = [sum(_uneven(own.call, index, to) for to in range(own.me)) for index in range(own.ranks)]
    parts = list(zip(own.members, received, starts, strict=True))
    own.expect(output, lambda: torch.cat([own.values(*part) for part in parts]))


def all_to_all(own: Rank) -> None:
    given = [own.empty(own.size, f"part {part}").copy_(_part(own, part)) for part in range(own.ranks)]
    outputs = [own.empty(own.size, f"output {rank}") for rank in own.members]
    own.awaits(dist.all_to_all(outputs, given, **_common(own)))
    for rank, output in zip(own.members, outputs, strict=True):
        own.expect(output, lambda rank=rank: own.values(rank, own.size, own.me * own.size))


def barrier(own: Rank) -> None:
    own.awaits(dist.barrier(**_common(own)))


def objects(own: Rank) -> None:
    found: list[Any] = [None] * own.ranks
    dist.all_gather_object(found, [own.rank, own.call.number], group=own.group)
    wanted = torch.tensor([[rank, own.call.number] for rank in own.members])
    own.expect(torch.tensor(found), lambda: wanted)


def ring(own: Rank) -> None:
    """Everyone sends to the next rank; the receive is posted first, or last."""
    after, before = (own.members[(own.me + step) % own.ranks] for step in (1, -1))
    output, given = own.empty(own.size, "output"), own.mine(own.size)
    posts = [
        lambda: dist.irecv(output, before, group=own.group, tag=own.call.number % 5),
        lambda: dist.isend(given, after, group=own.group, tag=own.call.number % 5),
    ]
    own.works = [post() for post in posts[:: 1 if own.call.number % 2 else -1]]
    own.expect(output, lambda: own.values(before, own.size))


def pair(own: Rank) -> None:
    """The root sends to the rank after it."""
    other = own.members[(own.members.index(own.call.root) + 1) % own.ranks]
    if own.rank == own.call.root:
        dist.send(own.mine(own.size), other, group=own.group, tag=7)
    elif own.rank == other:
        output = own.empty(own.size, "output")
        dist.recv(output, own.call.root, group=own.group, tag=7)
        own.expect(output, lambda: own.values(own.call.root, own.size))


def from_any(own: Rank) -> None:
    """All send to the root, which takes them as they come."""
    if own.rank != own.call.root:
        own.works = [dist.isend(own.mine(own.size), own.call.root, group=own.group, tag=8 + own.call.number)]
        return
    for index in range(own.ranks - 1):
        output = own.empty(own.size, f"output {index}")
        source = dist.recv(output, None, group=own.group, tag=8 + own.call.number)
        own.expect(output, lambda source=source: own.values(source, own.size))


REDUCING = (all_reduce, coalesced, reduce, reduce_scatter_into, reduce_scatter)
MOVING = (
    *(broadcast, all_gather_into, all_gather, all_gather_uneven, gather, scatter),
    *(all_to_all_even, all_to_all_uneven, all_to_all, barrier),
)
WAITING = (objects, pair, from_any)
"""These wait where they are called."""
KINDS = {function.__name__: function for function in (*REDUCING, *MOVING, *WAITING, ring)}
WHOLE = ("all_reduce", "coalesced", "reduce", "broadcast", "ring", "pair")
"""Kinds in which a rank's tensor is one shard."""


def begin_call(call: Call, rank: int, group: Any, rooms: dict[Any, torch.Tensor]) -> Rank:
    """This rank's part in a call, begun; complete unless it has works to wait for."""
    own = Rank(call, rank, group, rooms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KINDS[call.kind](own)
    return own


def longest_shard(kind: str, ranks: int, dtype: torch.dtype) -> int:
    """Elements of the longest shard of a kind of call."""
    return LONGEST_BYTES // dtype.itemsize // (1 if kind in WHOLE else ranks)


def fill_patterns(dtypes: Sequence[torch.dtype] = tuple(DTYPES.values())) -> None:
    """Make the inputs, before ranks are forked, which then share them."""
    for dtype in dtypes:
        pattern(dtype)

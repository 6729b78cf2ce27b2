"""A soak of the backend: a long plan of mixed calls in many groups, carried out by all ranks, with what is left behind.

The plan comes from one seed, so that all ranks have the same. Calls of different groups that are asynchronous are
issued in another order on each rank, and waited for in another; those of one group keep their order, as they must.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from backend_ranks import run_on
from soak_calls import KINDS, REDUCING, WAITING, Call, Rank, begin_call, fill_patterns, longest_shard, reductions_of
from soak_usage import return_memory, usage, usage_since

from commlib.runtime.tensors import DTYPES
from commlib.torch_backend.group import core_of

SLOTS = 4
"""Groups that are alive beside the world."""
_BATCH = 12
_WAITING = {function.__name__ for function in WAITING}
_REDUCING = {function.__name__ for function in REDUCING}


@dataclass(frozen=True)
class Remake:
    """The group in a slot is destroyed, and another made there; no members: none is made."""

    slot: int
    members: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """All are to look at what they use."""

    calls: int


Step = Remake | Sample | tuple[Call, ...]


def plan(seed: int, ranks: int, calls: int, samples: int, life: int = 400) -> Iterator[Step]:
    """The steps of a soak; a subgroup lives for about ``life`` calls."""
    draw, made = random.Random(seed), 0
    groups: dict[int, tuple[int, ...]] = {0: tuple(range(ranks))}
    for number in range(1, samples + 1):
        for slot in range(1, SLOTS + 1):
            groups[slot] = _members(draw, ranks)
            yield Remake(slot, groups[slot])
        while made < calls * number // samples:
            batch = tuple(_call(draw, made + index, groups) for index in range(draw.randint(1, _BATCH)))
            yield batch
            made += len(batch)
            if draw.random() < SLOTS * len(batch) / life:
                slot = draw.randint(1, SLOTS)
                groups[slot] = _members(draw, ranks)
                yield Remake(slot, groups[slot])
        for slot in range(1, SLOTS + 1):
            yield Remake(slot)
        yield Sample(made)


def _members(draw: random.Random, ranks: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(range(ranks), draw.randint(1, ranks))))


def _call(draw: random.Random, number: int, groups: dict[int, tuple[int, ...]]) -> Call:
    slot = draw.choice(tuple(groups))
    members = groups[slot]
    kind = draw.choice(tuple(KINDS))
    if len(members) == 1 and kind in ("ring", "pair", "from_any"):
        kind = "all_reduce"
    dtype = draw.choice((torch.float32, torch.bfloat16, *DTYPES.values()))
    op = draw.choice(reductions_of(dtype)) if kind in _REDUCING else ""
    asynchronous = kind not in _WAITING and draw.random() < 0.5
    size = min(_size(draw), longest_shard(kind, len(members), dtype))
    if kind == "coalesced":
        size //= 2
    how = {"kept": not asynchronous and draw.random() < 0.5}
    how["strided"] = not how["kept"] and draw.random() < 0.1
    return Call(number, kind, slot, members, size, dtype, op, draw.choice(members), asynchronous, **how)


def _size(draw: random.Random) -> int:
    """Elements: none, one, few, odd and even, now and then millions; most come again and again."""
    chance = draw.random()
    if chance < 0.2:
        return draw.choice((0, 1))
    if chance < 0.7:
        return draw.choice((2, 3, 7, 8, 63, 64, 100, 255, 1000, 4001, 4096, 10_007))
    if chance < 0.97:
        return int(2 ** draw.uniform(1, 12))
    return int(2 ** draw.uniform(12, 17)) if chance < 0.995 else int(2 ** draw.uniform(17, 20))


class Soak:
    """One rank of a soak."""

    def __init__(self, rank: int, seed: int) -> None:
        self.rank, self.draw = rank, random.Random(1000 * seed + rank)
        self.groups: dict[int, Any] = {0: dist.group.WORLD}
        self.rooms: dict[int, dict[Any, torch.Tensor]] = {}
        self.wrong: list[str] = []
        self.samples: list[dict[str, int]] = []

    def run(self, steps: Iterator[Step]) -> dict[str, Any]:
        """Carry out a plan; stops after a few wrong results."""
        began = time.monotonic()
        self._warm()
        for step in steps:
            if isinstance(step, Remake):
                self._remake(step)
            elif isinstance(step, Sample):
                self._sample(step.calls)
            else:
                self._batch([call for call in step if self.rank in call.members])
        return {"wrong": self.wrong[:10], "seconds": time.monotonic() - began, "samples": self.samples}

    def _warm(self) -> None:
        """Have the world make the threads that it makes when they are first needed."""
        after, before = ((self.rank + step) % dist.get_world_size() for step in (1, -1))
        work = dist.irecv(torch.zeros(1), before)
        with core_of().lock:  # else it may be done before it has a future to be settled
            future = dist.barrier(async_op=True).get_future()
        future.wait()
        dist.send(torch.zeros(1), after)
        work.wait()

    def _remake(self, step: Remake) -> None:
        old = self.groups.pop(step.slot, None)
        self.rooms.pop(step.slot, None)
        if old is not None:
            dist.destroy_process_group(old)
        if step.members:
            made = dist.new_group(list(step.members))
            if self.rank in step.members:
                self.groups[step.slot] = made

    def _batch(self, calls: list[Call]) -> None:
        """Asynchronous calls up to the next synchronous one in this rank's own order; all are waited for at the end."""
        begun: list[Rank] = []
        queued: list[Call] = []
        for call in [*calls, None]:
            if call is not None and call.asynchronous:
                queued.append(call)
                continue
            begun += [self._begin(one) for one in self._interleaved(queued)]
            queued = []
            if call is not None:
                begun.append(self._begin(call))
        self.draw.shuffle(begun)
        for own in begun:
            self._end(own)

    def _interleaved(self, calls: list[Call]) -> list[Call]:
        """Any order that keeps the order within each group."""
        slots = [call.slot for call in calls]
        self.draw.shuffle(slots)
        left = {slot: iter([call for call in calls if call.slot == slot]) for slot in set(slots)}
        return [next(left[slot]) for slot in slots]

    def _begin(self, call: Call) -> Rank:
        own = begin_call(call, self.rank, self.groups[call.slot], self.rooms.setdefault(call.slot, {}))
        if not own.works:
            self._judge(own)
        return own

    def _end(self, own: Rank) -> None:
        if own.works:
            for work in own.works:
                self._wait(work)
            self._judge(own)

    def _wait(self, work: Any) -> None:
        chance = self.draw.random()
        if chance < 0.1:
            work.get_future().wait()
        elif chance < 0.2:
            while not work.is_completed():
                time.sleep(0.0005)
        work.wait()

    def _judge(self, own: Rank) -> None:
        self.wrong += own.wrong()
        own.checks.clear()

    def _sample(self, calls: int) -> None:
        """After all ranks have collected their garbage, connections among it."""
        self.rooms.clear()
        gc.collect()
        dist.barrier()
        found = usage_since(self.samples[-1]) if self.samples else usage()
        self.samples.append({"calls": calls, "wrong": len(self.wrong), **found})


def _soak(rank: int, seed: int, ranks: int, calls: int, samples: int, life: int) -> dict[str, Any]:
    return_memory()
    return Soak(rank, seed).run(plan(seed, ranks, calls, samples, life))


def soak(
    ranks: int, calls: int, samples: int, seed: int = 1, life: int = 400, limit: float = 100.0, **options: Any
) -> list[dict[str, Any]]:
    """Run a soak of so many calls, with so many samples on the way; what each rank has to tell."""
    fill_patterns()
    return run_on(ranks, _soak, seed, ranks, calls, samples, life, limit=limit, **options)

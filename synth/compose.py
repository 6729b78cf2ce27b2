"""Compose: from schedules of problems to moves of their collectives.

Collectives that copy are taken as they are. One that reduces was solved backwards, as a spreading one on the reversed
topology: its moves are the transfers in reversed order on the links turned round. Allreduce is a reducescatter whose
sums spread by an allgather, each as soon as it is complete: there is no barrier between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from commlib import collectives
from commlib.collectives import Collective
from commlib.demand import Demand, demand
from commlib.errors import SpecError
from commlib.topology import CostTable
from synth.errors import ScheduleError
from synth.moves import Bools, Moves, Parcel, timed, to_moves
from synth.problem import Problem
from synth.retiming import better, in_sequence, listed, shortest, turned
from synth.schedule import Schedule, Transfer, order_of
from synth.symmetry import Ints


def moves_of(schedule: Schedule) -> Moves:
    """The moves of a schedule, whether its collective copies or reduces."""
    return reducing(schedule) if schedule.problem.demand.reduces else copying(schedule)


def copying(schedule: Schedule) -> Moves:
    """The moves of a schedule for a collective that copies; every time stays as it is. O(transfers log transfers).

    Raises:
        ScheduleError: the collective reduces.
    """
    problem = schedule.problem
    if problem.demand.reduces:
        raise ScheduleError(f"{problem.demand.collective.name} reduces: its schedule runs backwards")
    order = order_of(schedule)
    link, costs = schedule.link[order], problem.costs
    rows = _records(schedule.item[order], costs.source[link], costs.target[link], False)
    return timed(problem.demand.collective, costs, _parcels(problem.demand), schedule.start[order], rows)


def reducing(schedule: Schedule) -> Moves:
    """The moves of a schedule for a collective that reduces: inversion, as TACCL does it.

    Time is reversed and links are turned; a rank adds what arrives and sends its sum on once all has arrived. Where
    alpha or shared resources differ from link to link the mirror image of a schedule need not be one: each move then
    starts as early as the same order allows, or list scheduling does better. O(transfers log transfers).

    Raises:
        ScheduleError: the collective does not reduce.
    """
    wanted = schedule.problem.demand
    if not wanted.reduces:
        raise ScheduleError(f"{wanted.collective.name} does not reduce: its schedule runs forwards")
    parcels = _parcels(wanted)
    rows, costs = _mirrored(schedule), turned(schedule.problem.costs)
    found = in_sequence(wanted.collective, costs, parcels, rows)
    if found.ticks <= schedule.ticks or schedule.problem.rules.own_first:
        return found
    return better(found, listed(wanted.collective, costs, parcels, to_moves(rows)))


def allreduce_moves(scatter: Schedule, gather: Schedule) -> Moves:
    """Allreduce from schedules of reducescatter and allgather with as many ranks, chunks and bytes per chunk.

    Each chunk's gathering starts when its sum is complete. Resources serve the reductions first, or whatever list
    scheduling makes of both together, if that is shorter; never longer than one after the other, the second
    beginning when all that the first takes is free again. O(transfers log transfers).

    Raises:
        ScheduleError: the two do not fit together.
    """
    costs = _common_costs(scatter, gather)
    shard = gather.problem.demand.collective.chunks
    ranks = costs.ranks
    first = _renumbered(reducing(scatter), scatter.problem, shard)
    rows = np.concatenate([first, _renumbered(copying(gather), gather.problem, shard)])
    whole = collectives.allreduce(ranks, ranks * shard)
    if gather.problem.rules.own_first:
        # List scheduling would not keep what the sketch says of the order on a link.
        return in_sequence(whole, costs, parcels_of(whole), rows)
    return shortest(whole, costs, parcels_of(whole), rows)


def parcels_of(collective: Collective, size_of: Sequence[int] = ()) -> tuple[Parcel, ...]:
    """What a collective moves, numbered as its moves number it; ``size_of`` has size classes where there are several.

    Raises:
        SpecError: the collective has no demand, or another number of parcels than ``size_of``.
    """
    if collective.name == "allreduce":
        everywhere = [dict.fromkeys(range(collective.ranks), (chunk,)) for chunk in range(collective.chunks)]
        return tuple(Parcel(slots, slots) for slots in everywhere)
    parcels = _parcels(demand(collective, 1.0))
    if not size_of:
        return parcels
    if len(size_of) != len(parcels):
        raise SpecError(f"{collective} moves {len(parcels)} chunks, not {len(size_of)}")
    return tuple(replace(parcel, size=size) for parcel, size in zip(parcels, size_of, strict=True))


def _parcels(wanted: Demand) -> tuple[Parcel, ...]:
    if wanted.reduces:
        return tuple(Parcel(item.slots, {item.origin: (item.index,)}, item.size) for item in wanted.items)
    return tuple(Parcel({item.origin: (item.index,)}, item.slots, item.size) for item in wanted.items)


def transfers(schedule: Schedule) -> list[Transfer]:
    """The transfers of a schedule, as records."""
    columns = (schedule.start.tolist(), schedule.item.tolist(), schedule.link.tolist())
    return list(map(Transfer, *columns))


def _records(parcel: Ints, source: Ints, target: Ints, reduces: bool | Bools) -> Ints:
    """The moves of these columns as rows, shape (M, 4)."""
    return np.stack(np.broadcast_arrays(parcel, source, target, reduces), axis=1).astype(np.int64)


def _mirrored(schedule: Schedule) -> Ints:
    """The transfers in reversed order with their ends swapped: children before parents, as sums need it."""
    order, costs = order_of(schedule)[::-1], schedule.problem.costs
    link = schedule.link[order]
    return _records(schedule.item[order], costs.target[link], costs.source[link], True)


def _renumbered(moves: Moves, problem: Problem, shard: int) -> Ints:
    """The moves of items as those of allreduce's chunks: chunk ``index`` of rank r's shard is r * shard + index."""
    chunk = np.array([item.origin * shard + item.index for item in problem.demand.items], dtype=np.int64)
    return _records(chunk[moves.parcel], moves.source, moves.target, moves.reduces)


def _common_costs(scatter: Schedule, gather: Schedule) -> CostTable:
    first, second = scatter.problem.demand.collective, gather.problem.demand.collective
    if (first.name, second.name) != ("reducescatter", "allgather"):
        raise ScheduleError(f"allreduce is reducescatter and allgather, not {first.name} and {second.name}")
    if (first.ranks, first.chunks) != (second.ranks, second.chunks):
        raise ScheduleError(f"{first} and {second} do not make one allreduce: ranks or chunks differ")
    there, back = turned(scatter.problem.costs), gather.problem.costs
    names = ("source", "target", "latency", "use_resource", "use_ticks")
    same = there.tick == back.tick and all(np.array_equal(getattr(there, n), getattr(back, n)) for n in names)
    if not same:
        raise ScheduleError(f"{first.name} and {second.name} were solved for links of different cost")
    return back

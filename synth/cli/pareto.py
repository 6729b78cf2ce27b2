"""``synth pareto``: SCCL's frontier of steps, rounds and chunks, each point with what is proved of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import out, out_json, table
from commlib.cli.options import JsonFlag
from synth.cli.asking import CostChoice, InternodeChoice, Nodes, ProfileFile, Root, TopologyOption, Where, topology_at

if TYPE_CHECKING:
    from synth.pareto import Frontier

_Collective = Annotated[str, typer.Argument(metavar="COLLECTIVE", help="allgather, alltoall, allreduce, ...")]
_MaxChunks = Annotated[int, typer.Option("--max-chunks", min=1, max=64, help="The most chunks per shard to try.")]
_MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="The most steps to try.")]
_TimeLimit = Annotated[float, typer.Option("--time-limit", min=0.1, help="Seconds of search.")]


def pareto_command(
    collective: _Collective,
    topology: TopologyOption,
    nodes: Nodes = 1,
    profile: ProfileFile = None,
    cost: CostChoice = "taccl",
    internode: InternodeChoice = "rail",
    root: Root = None,
    max_chunks: _MaxChunks = 8,
    max_steps: _MaxSteps = None,
    time_limit: _TimeLimit = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Print the least rounds per chunk for every number of steps (SCCL's Pareto frontier).

    A link's lanes, the chunks that it carries in one round, are how often its time fits into the slowest link's.
    """
    from synth.engine import Budget
    from synth.pareto import lanes_of, pareto

    found = topology_at(Where(topology, nodes, profile, cost, internode))
    frontier = pareto(lanes_of(found), found.ranks, collective, root, Budget(time_limit), max_steps, max_chunks)
    if as_json:
        out_json(_facts(frontier))
        return
    rows = [(p.steps, p.rounds, p.chunks, p.rate, "yes" if p.proven else "no", p.proof) for p in frontier.points]
    table(("steps", "rounds", "chunks", "rounds/chunk", "proven", "why"), rows, frozenset({0, 1, 2, 3}))
    complete = "all points" if frontier.complete else f"not complete: {frontier.note}"
    out(f"{complete}; no algorithm needs fewer than {frontier.limit} rounds per chunk")


def _facts(frontier: Frontier) -> dict[str, object]:
    points = [
        {"steps": p.steps, "rounds": p.rounds, "chunks": p.chunks, "proven": p.proven, "proof": p.proof}
        for p in frontier.points
    ]
    return {
        "points": points,
        "limit": str(frontier.limit),
        "complete": frontier.complete,
        "note": frontier.note,
    }

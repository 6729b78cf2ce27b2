"""The compiler: a table of passes from Trace to Algorithm.

    Instances       every part that runs in parallel becomes operations of its own
    ReceiveReduce   r + re -> rrc
    Lower           operations become instructions
    Fuse            r + s -> rcs, rrc + s -> rrcs or rrs
    Channels        a channel for every message
    Threadblocks    a threadblock for every instruction
    Order           levels that cannot deadlock
    TrimScratch     scratch that nothing uses any more is gone
    Emit            threadblock order, dependences reduced transitively

Fusion is optimistic: where channels or the order cannot keep a fused instruction, it is forbidden and the passes
after Lower run again, a bounded number of times. Whatever happens, the Algorithm does what the trace says.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from commlib.compiler.accesses import accesses, hazards
from commlib.compiler.channels import Channels
from commlib.compiler.emit import Emit
from commlib.compiler.fuse import Fuse, ReceiveReduce
from commlib.compiler.instances import Instances
from commlib.compiler.lower import Lower
from commlib.compiler.order import Order
from commlib.compiler.threadblocks import Threadblocks
from commlib.compiler.trim import TrimScratch
from commlib.errors import CompileError
from commlib.ir.algorithm import Algorithm, Ints
from commlib.ir.graph import InstructionGraph
from commlib.ir.trace import Trace

__all__ = ["CompileOptions", "compile_trace", "schedule"]


@dataclass(frozen=True)
class CompileOptions:
    """``fuse`` joins receives and sends. The order is safe at FIFO depth ``fifo_depth`` and above.

    With the default of 1 it is safe at every depth; where steps of count > 1 are split into chunks, at every depth
    from the largest count on. A larger value lets a threadblock send further ahead of what it receives.
    ``keep_order``: connections carry messages in the order of the trace, as a schedule wants it, not by depth.
    """

    fuse: bool = True
    fifo_depth: int = 1
    keep_order: bool = False


DEFAULT = CompileOptions()
PATIENCE = 1
"""How often only the fused instructions that were found not to fit are taken apart; see ``_wider``."""


def compile_trace(trace: Trace, options: CompileOptions = DEFAULT) -> Algorithm:
    """Compile a trace to an Algorithm that does exactly what the trace says.

    Near linear in the number of chunk operations (see docs/design.md for the measured cost).

    Raises:
        CompileError: hints that contradict each other, or a FIFO depth below 1.
    """
    graph, edges = schedule(trace, options)
    return Emit()(TrimScratch()(graph), edges)


def schedule(trace: Trace, options: CompileOptions = DEFAULT) -> tuple[InstructionGraph, tuple[Ints, Ints]]:
    """All passes up to Order: the ordered InstructionGraph and its hazards (before, after)."""
    if options.fifo_depth < 1:
        raise CompileError(f"a FIFO has at least one slot, not {options.fifo_depth}")
    expanded = Instances()(trace)
    lowered = Lower()(ReceiveReduce()(expanded) if options.fuse else expanded)
    fuse, order = Fuse(), Order(options.fifo_depth, options.keep_order)
    for attempt in itertools.count():
        graph = fuse(lowered) if options.fuse else lowered
        graph, owners, misfits = Channels()(graph)
        if not misfits:
            found = accesses(graph)
            edges = hazards(graph, found)
            graph = Threadblocks()(graph, owners, found)
            graph, misfits = order(graph, edges)
            if not misfits:
                break
        fuse = fuse.without(graph, _wider(graph, misfits, attempt))
    return graph, edges


def _wider(graph: InstructionGraph, misfits: list[int], attempt: int) -> Ints:
    """The fused rows to take apart: the misfits; from PATIENCE on, all that relay between the same three ranks; and
    in the end all there are, so that the number of attempts is bounded."""
    fused, rows = graph.fused, np.array(misfits, dtype=np.int64)
    if attempt < PATIENCE:
        return rows
    if attempt >= 3 * PATIENCE:
        return fused
    ranks = graph.trace.collective.ranks
    relay = (graph.rank * (ranks + 1) + graph.recv_peer) * (ranks + 1) + graph.send_peer
    return fused[np.isin(relay[fused], relay[rows])]

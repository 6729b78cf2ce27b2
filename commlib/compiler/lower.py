"""Lower: each operation of a trace becomes a send and a receive, or one local instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.ir.algorithm import NOTHING, Op
from commlib.ir.graph import InstructionGraph
from commlib.ir.trace import Action, Trace


@dataclass(frozen=True)
class Lower:
    """Expanded Trace in, InstructionGraph out, nothing fused. Linear in the operations."""

    def __call__(self, trace: Trace) -> InstructionGraph:
        """Apply the pass."""
        remote = trace.column("src_rank") != trace.column("dst_rank")
        sends, others = np.flatnonzero(remote), np.arange(len(trace))
        time = np.concatenate([2 * sends, 2 * others + 1])
        row = np.argsort(time, kind="stable")
        time = time[row]
        t, is_send = time // 2, time % 2 == 0
        reduces = trace.column("action")[t] == Action.REDUCE
        local = ~remote[t]
        received = np.where(reduces, Op.RECV_REDUCE_COPY, Op.RECV)
        op = np.where(is_send, Op.SEND, np.where(local, np.where(reduces, Op.REDUCE, Op.COPY), received))
        from_source = is_send | local
        has_source = from_source | reduces
        none = np.full(len(time), NOTHING, dtype=np.int64)
        source = {
            part: np.where(
                from_source,
                trace.column(f"src_{part}")[t],
                np.where(has_source, trace.column(f"operand_{part}")[t], -1),
            )
            for part in ("buffer", "index")
        }
        return InstructionGraph(
            trace,
            time,
            op,
            np.where(is_send, trace.column("src_rank")[t], trace.column("dst_rank")[t]),
            source["buffer"],
            source["index"],
            np.where(is_send, NOTHING, trace.column("dst_buffer")[t]),
            np.where(is_send, NOTHING, trace.column("dst_index")[t]),
            trace.column("count")[t],
            np.where(~is_send & ~local, t, NOTHING),
            np.where(is_send, t, NOTHING),
            none,
            none,
            none,
        )

"""The text form of a Trace: one line per operation, deterministic, parses back to an equal Trace.

    trace "ring"
    collective "allreduce" ranks 2 chunks 2
    protocol "Simple"
    placements in out
    scratch 0 0
    instances 2 blocked
    lanes 1
    file "ring.py"

    1.o[0] = 1.i[0] + 0.i[0] at 0:7
    0.o[0:2] = 1.o[0:2] channel 1 send_tb 0 recv_tb 2 ways 4 lane 0 at 0:9

The first is a reduce, the second a copy. Hints, ``ways`` (if not 1) and ``lane`` (if not 0) stand only where there
are such; ``at`` is the number of a ``file`` line and the line in that file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from commlib.collectives import Buffer
from commlib.ir.algorithm import NOTHING
from commlib.ir.text_lines import LineReader, header_lines
from commlib.ir.trace import COLUMNS, Action, Trace

_PLACE = r"(\d+)\.([ios])\[(\d+)(?::(\d+))?\]"
_HINTS = "".join(rf"(?: {name} (\d+))?" for name in ("channel", "send_tb", "recv_tb", "ways", "lane"))
_OPERATION = re.compile(rf"{_PLACE} = {_PLACE}(?: \+ {_PLACE})?{_HINTS}(?: at (\d+):(\d+))?", re.ASCII)
_OPTIONAL = (("channel", NOTHING), ("send_tb", NOTHING), ("recv_tb", NOTHING), ("ways", 1), ("lane", 0))


def trace_to_text(trace: Trace) -> str:
    """The text form. Linear in the number of operations."""
    return "\n".join(_lines(trace)) + "\n"


def _lines(trace: Trace) -> Iterator[str]:
    yield f"trace {json.dumps(trace.name)}"
    yield from header_lines(trace.collective, trace.protocol, trace.placements, trace.scratch_chunks)
    yield f"instances {trace.instances}{' blocked' if trace.blocked else ''}"
    yield f"lanes {trace.lanes}"
    yield from (f"file {json.dumps(file)}" for file in trace.files)
    yield ""
    columns = {name: trace.column(name).tolist() for name, _ in (*_OPTIONAL, ("file", 0), ("line", 0))}
    for number, operation in enumerate(trace.operations()):
        extras = [f" {name} {columns[name][number]}" for name, usual in _OPTIONAL if columns[name][number] != usual]
        yield f"{operation}{''.join(extras)} at {columns['file'][number]}:{columns['line'][number]}"


def trace_from_text(text: str, file: str = "<text>") -> Trace:
    """The Trace of a text form; ``file`` is the name that messages use.

    Slots are checked against their buffers, the rest is what the DSL would have recorded.

    Raises:
        FormatError: a line that is none of the form, or a slot that does not exist; with file and line.
    """
    return _Parser(file, text.split("\n")).parse()


@dataclass
class _Parser(LineReader):
    def parse(self) -> Trace:
        """The Trace of the whole text."""
        name = self.string(self.take("trace"))
        collective = self.collective()
        protocol = self.string(self.take("protocol"))
        placements = self.placements()
        scratch = tuple(self.numbers("scratch"))
        if len(scratch) != collective.ranks:
            self.fail(f"scratch has {len(scratch)} sizes for {collective.ranks} ranks")
        instances, _, blocked = self.take("instances").partition(" ")
        if blocked not in ("", "blocked"):
            self.fail(f"'blocked' or nothing belongs after the number of instances, not {blocked[:40]!r}")
        lanes = self.number(self.take("lanes"))
        files = []
        while self.peek() == "file":
            files.append(self.string(self.take("file")))
        empty = np.zeros((0, len(COLUMNS)), dtype=np.int64)
        counts = (self.number(instances), bool(blocked), lanes)
        trace = Trace(name, collective, scratch, empty, tuple(files), placements, protocol, *counts)
        rows = []
        while self.peek():
            rows.append(self._operation(trace))
        return Trace(
            name, collective, scratch, np.array(rows, dtype=np.int64), tuple(files), placements, protocol, *counts
        )

    def _operation(self, trace: Trace) -> list[int]:
        self.at += 1
        line = self.lines[self.at - 1].strip()
        match = _OPERATION.fullmatch(line)
        if match is None:
            self.fail(f"the form is: PLACE = PLACE [+ PLACE] [hints] [at FILE:LINE], not {line[:60]!r}")
        groups = match.groups()
        target, first = self._place(trace, groups[0:4]), self._place(trace, groups[4:8])
        operand, source = (target, first) if groups[8] is None else (first, self._place(trace, groups[8:12]))
        if len({target[3], operand[3], source[3]}) > 1 or operand[0] != target[0]:
            self.fail("the places of an operation have the same size, and an operand is on the rank of the result")
        extras = [
            usual if word is None else self.number(word)
            for (_, usual), word in zip(_OPTIONAL, groups[12:17], strict=True)
        ]
        at = [0 if word is None else self.number(word) for word in groups[17:19]]
        if groups[17] is not None and at[0] >= len(trace.files):
            self.fail(f"there is no file {at[0]}")
        action = Action.COPY if groups[8] is None else Action.REDUCE
        return [action, *source[:3], *target[:3], *operand[1:3], target[3], *extras, *at]

    def _place(self, trace: Trace, words: tuple[str | None, ...]) -> tuple[int, int, int, int]:
        rank, letter, begin, stop = words
        r, first = self.number(str(rank)), self.number(str(begin))
        end = first + 1 if stop is None else self.number(stop)
        buffer = Buffer("ios".index(str(letter)))
        if r >= trace.collective.ranks or end <= first or end > trace.buffer_chunks(r, buffer):
            self.fail(f"{rank}.{letter}[{begin}{'' if stop is None else ':' + stop}] is not a place in a buffer")
        return r, int(buffer), first, end - first

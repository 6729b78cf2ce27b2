"""The text form of an Algorithm: one line per step, deterministic, parses back to an equal Algorithm.

    algorithm "ring"
    collective "allreduce" ranks 2 chunks 2
    protocol "Simple"
    placements in out
    scratch 0 0

    rank 0
    tb 0 send 1 recv 1 channel 0
      0 s i[0]
      1 rrcs i[1] -> o[1]
      2 r -> o[0] after 1.4, 2.0
    tb 1 channel 0
      0 put i[0] -> 1.s[0]
      1 signal 1
      2 wait 1
      3 rr i[1] + 1.s[1] -> o[1]
      4 st o[1] -> 1.o[1], s[0]

A span is a buffer letter and chunks, ``o[3]`` or ``o[3:5]``, in a one-sided step with the number of its rank and a dot
before it when that is another one; a dependence is threadblock.step of the same rank.
``send`` and ``recv`` stand only where there is such a peer. A custom collective has further lines: ``custom
specified`` (or ``unspecified``), ``inputs`` and ``outputs`` with a size per rank, ``offsets`` with input:output per
rank, and for each output chunk with a condition ``want rank.chunk = rank.chunk rank.chunk ...``. ``#`` begins a
comment line. Origins are not written; those of a parsed Algorithm are the lines of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from commlib.collectives import Buffer
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, OP_OF_SHORT, Algorithm, Op, Threadblock
from commlib.ir.builder import AlgorithmBuilder, Slot
from commlib.ir.text_lines import LineReader, header_lines

_BLOCK = re.compile(r"tb (\d+)(?: send (\d+))?(?: recv (\d+))? channel (\d+)", re.ASCII)
_SPAN = r"([ios])\[(\d+)(?::(\d+))?\]"
_STEP = re.compile(
    rf"(\d+) ([a-z]+)(?: {_SPAN})?(?: -> {_SPAN})?(?: after (\d+\.\d+(?:, \d+\.\d+)*))?", re.ASCII
)  # fmt: skip
_OPERAND = re.compile(rf"(?:(\d+)\.)?{_SPAN}", re.ASCII)


def algorithm_to_text(algorithm: Algorithm) -> str:
    """The text form. Linear in the number of steps and dependences."""
    return "\n".join(_lines(algorithm)) + "\n"


def _lines(algorithm: Algorithm) -> Iterator[str]:
    yield f"algorithm {json.dumps(algorithm.name)}"
    yield from header_lines(algorithm.collective, algorithm.protocol, algorithm.placements, algorithm.scratch_chunks)
    for rank in range(algorithm.ranks):
        yield f"\nrank {rank}"
        for block in algorithm.threadblocks(rank):
            yield _block_line(block)
            for number in block.steps:
                step = algorithm.step(number)
                yield f"  {step.index} {step}"


def _block_line(block: Threadblock) -> str:
    send = "" if block.send is None else f" send {block.send}"
    recv = "" if block.recv is None else f" recv {block.recv}"
    return f"tb {block.index}{send}{recv} channel {block.channel}"


def algorithm_from_text(text: str, file: str = "<text>") -> Algorithm:
    """The Algorithm of a text form; ``file`` is the name that messages and origins use.

    Raises:
        FormatError: a line that is none of the form, in the wrong place, or wrong in itself; with file and line.
        LimitError: a custom collective with more than MAX_CUSTOM_CHUNKS input and output chunks.
    """
    return _Parser(file, text.split("\n")).parse()


@dataclass
class _Parser(LineReader):
    placed: dict[tuple[object, ...], int] = field(default_factory=dict)

    def parse(self) -> Algorithm:
        """The Algorithm of the whole text."""
        name = self.string(self.take("algorithm"))
        collective = self.collective()
        protocol = self.string(self.take("protocol"))
        placements = self.placements()
        builder = AlgorithmBuilder(name, collective, self.numbers("scratch"), placements, protocol)
        if len(builder.scratch_chunks) != collective.ranks:
            self.fail(f"scratch has {len(builder.scratch_chunks)} sizes for {collective.ranks} ranks")
        self._ranks(builder)
        try:
            return builder.build(self.file)
        except AlgorithmError as error:
            place = tuple(error.fields.get(word) for word in ("rank", "threadblock", "step"))
            self.at = self.placed.get(place, 1)
            self.fail(error.message, **{k: v for k, v in error.fields.items() if k != "line"})

    def _ranks(self, builder: AlgorithmBuilder) -> None:
        for rank in range(builder.collective.ranks):
            if self.take("rank") != str(rank):
                self.fail(f"rank {rank} belongs here")
            self._blocks(builder, rank)
        if self.peek():
            self.at += 1
            self.fail(f"{self.lines[self.at - 1].strip()[:60]!r} after the last rank")

    def _blocks(self, builder: AlgorithmBuilder, rank: int) -> None:
        while self.peek() == "tb":
            match = _BLOCK.fullmatch(f"tb {self.take('tb')}")
            if match is None:
                self.fail("the form is: tb NUMBER [send RANK] [recv RANK] channel NUMBER")
            send, recv = (None if word is None else self.number(word) for word in (match[2], match[3]))
            index = builder.threadblock(rank, send, recv, self.number(match[4]))
            if self.number(match[1]) != index:
                self.fail(f"tb {index} belongs here, not tb {match[1]}", rank=rank, threadblock=index)
            self._steps(builder, rank, index)

    def _steps(self, builder: AlgorithmBuilder, rank: int, block: int) -> None:
        place = 0
        while (word := self.peek()) and word[0].isdigit():
            self.at += 1
            self.placed[rank, block, place] = self.at
            line = self.lines[self.at - 1].strip()
            words = line.split(None, 2)
            op = OP_OF_SHORT.get(words[1]) if len(words) > 1 else None
            if op is not None and op.one_sided:
                self._one_sided(builder, op, line, rank, place)
            else:
                self._step(builder, line, place)
            place += 1

    def _one_sided(self, builder: AlgorithmBuilder, op: Op, line: str, rank: int, place: int) -> None:
        body, _, waits = line.partition(" after ")
        number, _, operands = (*body.split(" ", 2), "")[:3]
        if self.number(number) != place:
            self.fail(f"step {place} belongs here, not step {number}", step=place)
        depends = [self.slot(word) for word in waits.split(", ")] if waits else []
        if op.synchronizes:
            builder.step(op, None, None, 0, depends, self.at, peer=self.number(operands))
            return
        left, _, right = operands.partition(" -> ")
        sources = [self._operand(word, rank) for word in left.split(" + ")]
        destinations = [self._operand(word, rank) for word in right.split(", ")]
        if len({count for _, count in (*sources, *destinations)}) > 1:
            self.fail("sources and destinations differ in size", step=place)
        ends = ([slot for slot, _ in sources], [slot for slot, _ in destinations])
        builder.step(op, None, None, sources[0][1], depends, self.at, sources=ends[0], destinations=ends[1])

    def _operand(self, word: str, rank: int) -> tuple[Slot, int]:
        """(rank, buffer, index) and count of an operand of a one-sided step of ``rank``."""
        match = _OPERAND.fullmatch(word)
        span = None if match is None else self._span(match, 2)
        if match is None or span is None:
            self.fail(f"operands are like o[3], 1.s[0:2], with ' + ' and ', ' between and ' -> ', not {word[:40]!r}")
        owner = rank if match[1] is None else self.number(match[1])
        return (owner, span[0], span[1]), span[2]

    def _step(self, builder: AlgorithmBuilder, line: str, place: int) -> None:
        match = _STEP.fullmatch(line)
        op = OP_OF_SHORT.get(match[2]) if match else None
        if match is None or op is None:
            self.fail(f"the form is: NUMBER OP [SOURCE] [-> DESTINATION] [after TB.STEP, ...], not {line[:60]!r}")
        if self.number(match[1]) != place:
            self.fail(f"step {place} belongs here, not step {match[1]}", step=place)
        source, destination = self._span(match, 3), self._span(match, 6)
        if (source is not None) != HAS_SOURCE[op] or (destination is not None) != HAS_DESTINATION[op]:
            self.fail(f"{op.short} {_wants_operands(op)}", step=place)
        counts = {span[2] for span in (source, destination) if span is not None}
        if len(counts) > 1:
            self.fail("source and destination differ in size", step=place)
        depends = [] if match[9] is None else [self.slot(word) for word in match[9].split(", ")]
        count = counts.pop() if counts else 0
        builder.step(op, source and source[:2], destination and destination[:2], count, depends, self.at)

    def _span(self, match: re.Match[str], group: int) -> tuple[Buffer, int, int] | None:
        if match[group] is None:
            return None
        first = self.number(match[group + 1])
        end = first + 1 if match[group + 2] is None else self.number(match[group + 2])
        if end <= first:
            self.fail(f"{match[group]}[{first}:{end}] holds no chunk")
        return Buffer("ios".index(match[group])), first, end - first


def _wants_operands(op: Op) -> str:
    source, destination = bool(HAS_SOURCE[op]), bool(HAS_DESTINATION[op])
    words = {(True, True): "SOURCE -> DESTINATION", (True, False): "SOURCE", (False, True): "-> DESTINATION"}
    return "takes " + words.get((source, destination), "no operands")

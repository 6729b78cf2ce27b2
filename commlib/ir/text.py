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

A span is a buffer letter and chunks, ``o[3]`` or ``o[3:5]``; a dependence is threadblock.step of the same rank.
``send`` and ``recv`` stand only where there is such a peer. A custom collective has further lines: ``custom
specified`` (or ``unspecified``), ``inputs`` and ``outputs`` with a size per rank, ``offsets`` with input:output per
rank, and for each output chunk with a condition ``want rank.chunk = rank.chunk rank.chunk ...``. ``#`` begins a
comment line. Origins are not written; those of a parsed Algorithm are the lines of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NoReturn

from commlib.collectives import Buffer, Collective, Contribution, Placement, custom
from commlib.errors import AlgorithmError, FormatError, LimitError, SpecError
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, OP_OF_SHORT, Algorithm, Op, Threadblock
from commlib.ir.builder import AlgorithmBuilder

MAX_NUMBER = 2**31 - 1
MAX_CUSTOM_CHUNKS = 1 << 24
"""The most output chunks that a custom collective may have in the text: each is an entry of a table."""

_STRING = r'"(?:[^"\\]|\\.)*"'
_COLLECTIVE = re.compile(rf"collective ({_STRING}) ranks (\d+) chunks (\d+)(?: root (\d+))?", re.ASCII)
_BLOCK = re.compile(r"tb (\d+)(?: send (\d+))?(?: recv (\d+))? channel (\d+)", re.ASCII)
_SPAN = r"([ios])\[(\d+)(?::(\d+))?\]"
_STEP = re.compile(
    rf"(\d+) ([a-z]+)(?: {_SPAN})?(?: -> {_SPAN})?(?: after (\d+\.\d+(?:, \d+\.\d+)*))?", re.ASCII
)  # fmt: skip
_SLOT = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_OFFSET = re.compile(r"(\d+):(\d+)", re.ASCII)
_DIGITS = re.compile(r"\d{1,10}", re.ASCII)


def algorithm_to_text(algorithm: Algorithm) -> str:
    """The text form. Linear in the number of steps and dependences."""
    return "\n".join(_lines(algorithm)) + "\n"


def _lines(algorithm: Algorithm) -> Iterator[str]:
    yield f"algorithm {json.dumps(algorithm.name)}"
    yield from _collective_lines(algorithm.collective)
    yield f"protocol {json.dumps(algorithm.protocol)}"
    yield " ".join(["placements", *(p.value for p in Placement if p in algorithm.placements)])
    yield " ".join(["scratch", *map(str, algorithm.scratch_chunks)])
    for rank in range(algorithm.ranks):
        yield f"\nrank {rank}"
        for block in algorithm.threadblocks(rank):
            yield _block_line(block)
            for number in block.steps:
                step = algorithm.step(number)
                yield f"  {step.index} {step}"


def _collective_lines(c: Collective) -> Iterator[str]:
    root = "" if c.root is None else f" root {c.root}"
    yield f"collective {json.dumps(c.name)} ranks {c.ranks} chunks {c.chunks}{root}"
    if c.custom is None:
        return
    conditions = c.custom
    yield f"custom {'specified' if conditions.specified else 'unspecified'}"
    yield " ".join(["inputs", *map(str, conditions.inputs)])
    yield " ".join(["outputs", *map(str, conditions.outputs)])
    if conditions.offsets is not None:
        yield " ".join(["offsets", *(f"{i}:{o}" for i, o in conditions.offsets)])
    for rank, row in enumerate(conditions.sources):
        for chunk, sources in enumerate(row):
            if sources is not None:
                wanted = (f"{r}.{k}" for r, k in sorted(sources))
                yield " ".join([f"want {rank}.{chunk} =", *wanted])


def _block_line(block: Threadblock) -> str:
    send = "" if block.send is None else f" send {block.send}"
    recv = "" if block.recv is None else f" recv {block.recv}"
    return f"tb {block.index}{send}{recv} channel {block.channel}"


def algorithm_from_text(text: str, file: str = "<text>") -> Algorithm:
    """The Algorithm of a text form; ``file`` is the name that messages and origins use.

    Raises:
        FormatError: a line that is none of the form, in the wrong place, or wrong in itself; with file and line.
        LimitError: a custom collective with more than MAX_CUSTOM_CHUNKS output chunks.
    """
    return _Parser(file, text.split("\n")).parse()


@dataclass
class _Parser:
    file: str
    lines: list[str]
    at: int = 0
    placed: dict[tuple[object, ...], int] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """The number of the line last taken, from 1."""
        return min(self.at, len(self.lines)) or 1

    def fail(self, message: str, **fields: object) -> NoReturn:
        raise FormatError(f"{self.file}:{self.line}: {message}", file=self.file, line=self.line, **fields)

    def peek(self) -> str:
        """The first word of the next line that says something; "" at the end."""
        while self.at < len(self.lines):
            stripped = self.lines[self.at].strip()
            if stripped and not stripped.startswith("#"):
                return stripped.split(None, 1)[0]
            self.at += 1
        return ""

    def take(self, word: str) -> str:
        """The next line, which must begin with this word; the rest of it."""
        if self.peek() != word:
            self.at += 1
            found = self.lines[self.at - 1].strip()[:60] if self.at <= len(self.lines) else "the end"
            self.fail(f"a line {word!r} belongs here, not {found!r}")
        self.at += 1
        return self.lines[self.at - 1].strip()[len(word) :].strip()

    def number(self, digits: str) -> int:
        if _DIGITS.fullmatch(digits) is None or int(digits) > MAX_NUMBER:
            self.fail(f"{digits[:40]!r} is not a number from 0 to {MAX_NUMBER}")
        return int(digits)

    def numbers(self, word: str) -> list[int]:
        return [self.number(digits) for digits in self.take(word).split()]

    def string(self, quoted: str) -> str:
        try:
            value = json.loads(quoted)
        except ValueError:
            value = None
        if not isinstance(value, str):
            self.fail(f"{quoted[:40]!r} is not a string in double quotes")
        return value

    def parse(self) -> Algorithm:
        name = self.string(self.take("algorithm"))
        collective = self.collective()
        protocol = self.string(self.take("protocol"))
        placements = self.placements()
        builder = AlgorithmBuilder(name, collective, self.numbers("scratch"), placements, protocol)
        if len(builder.scratch_chunks) != collective.ranks:
            self.fail(f"scratch has {len(builder.scratch_chunks)} sizes for {collective.ranks} ranks")
        self.ranks(builder)
        try:
            return builder.build(self.file)
        except AlgorithmError as error:
            place = tuple(error.fields.get(word) for word in ("rank", "threadblock", "step"))
            self.at = self.placed.get(place, 1)
            self.fail(error.message, **{k: v for k, v in error.fields.items() if k != "line"})

    def placements(self) -> frozenset[Placement]:
        words = self.take("placements").split()
        known = {placement.value: placement for placement in Placement}
        if not set(words) <= known.keys() or len(set(words)) != len(words):
            self.fail(f"placements are 'in' and 'out', each at most once, not {' '.join(words)[:60]!r}")
        return frozenset(known[word] for word in words)

    def collective(self) -> Collective:
        rest = self.take("collective")
        match = _COLLECTIVE.fullmatch(f"collective {rest}")
        if match is None:
            self.fail('the form is: collective "NAME" ranks N chunks C [root R]')
        name = self.string(match[1])
        ranks, chunks = self.number(match[2]), self.number(match[3])
        root = None if match[4] is None else self.number(match[4])
        try:
            if self.peek() == "custom":
                return self.custom(name, ranks, chunks, root)
            return Collective(name, ranks, chunks, root)
        except SpecError as error:
            self.fail(error.message, **error.fields)

    def custom(self, name: str, ranks: int, chunks: int, root: int | None) -> Collective:
        kind = self.take("custom")
        if kind not in ("specified", "unspecified"):
            self.fail(f"a custom collective is 'specified' or 'unspecified', not {kind[:40]!r}")
        inputs, outputs = self.numbers("inputs"), self.numbers("outputs")
        if len(inputs) != ranks or len(outputs) != ranks:
            self.fail(f"{len(inputs)} inputs and {len(outputs)} outputs for {ranks} ranks")
        if sum(outputs) > MAX_CUSTOM_CHUNKS:
            message = f"{self.file}:{self.line}: more than {MAX_CUSTOM_CHUNKS} output chunks"
            raise LimitError(message, file=self.file, line=self.line)
        offsets = self.offsets() if self.peek() == "offsets" else None
        made = custom(name, inputs, outputs, self.wants(), offsets)
        conditions = made.custom if made.custom is None else replace(made.custom, specified=kind == "specified")
        return Collective(name, ranks, chunks, root, conditions)

    def offsets(self) -> list[tuple[int, int]]:
        pairs = [_OFFSET.fullmatch(word) for word in self.take("offsets").split()]
        return [(self.number(m[1]), self.number(m[2])) if m else self.fail("offsets are INPUT:OUTPUT") for m in pairs]

    def wants(self) -> dict[Contribution, list[Contribution]]:
        wanted: dict[Contribution, list[Contribution]] = {}
        while self.peek() == "want":
            output, equals, sources = self.take("want").partition(" =")
            slot = self.slot(output)
            if not equals or slot in wanted:
                self.fail("the form is: want RANK.CHUNK = RANK.CHUNK ..., once for each output chunk")
            wanted[slot] = [self.slot(word) for word in sources.split()]
        return wanted

    def slot(self, word: str) -> tuple[int, int]:
        match = _SLOT.fullmatch(word)
        if match is None:
            self.fail(f"{word[:40]!r} is not of the form NUMBER.NUMBER")
        return self.number(match[1]), self.number(match[2])

    def ranks(self, builder: AlgorithmBuilder) -> None:
        for rank in range(builder.collective.ranks):
            if self.take("rank") != str(rank):
                self.fail(f"rank {rank} belongs here")
            self.blocks(builder, rank)
        if self.peek():
            self.at += 1
            self.fail(f"{self.lines[self.at - 1].strip()[:60]!r} after the last rank")

    def blocks(self, builder: AlgorithmBuilder, rank: int) -> None:
        while self.peek() == "tb":
            match = _BLOCK.fullmatch(f"tb {self.take('tb')}")
            if match is None:
                self.fail("the form is: tb NUMBER [send RANK] [recv RANK] channel NUMBER")
            send, recv = (None if word is None else self.number(word) for word in (match[2], match[3]))
            index = builder.threadblock(rank, send, recv, self.number(match[4]))
            if self.number(match[1]) != index:
                self.fail(f"tb {index} belongs here, not tb {match[1]}", rank=rank, threadblock=index)
            self.steps(builder, rank, index)

    def steps(self, builder: AlgorithmBuilder, rank: int, block: int) -> None:
        place = 0
        while (word := self.peek()) and word[0].isdigit():
            self.at += 1
            self.placed[rank, block, place] = self.at
            self.step(builder, self.lines[self.at - 1].strip(), place)
            place += 1

    def step(self, builder: AlgorithmBuilder, line: str, place: int) -> None:
        match = _STEP.fullmatch(line)
        op = OP_OF_SHORT.get(match[2]) if match else None
        if match is None or op is None:
            self.fail(f"the form is: NUMBER OP [SOURCE] [-> DESTINATION] [after TB.STEP, ...], not {line[:60]!r}")
        if self.number(match[1]) != place:
            self.fail(f"step {place} belongs here, not step {match[1]}", step=place)
        source, destination = self.span(match, 3), self.span(match, 6)
        if (source is not None) != HAS_SOURCE[op] or (destination is not None) != HAS_DESTINATION[op]:
            self.fail(f"{op.short} {_wants_operands(op)}", step=place)
        counts = {span[2] for span in (source, destination) if span is not None}
        if len(counts) > 1:
            self.fail("source and destination differ in size", step=place)
        depends = [] if match[9] is None else [self.slot(word) for word in match[9].split(", ")]
        count = counts.pop() if counts else 0
        builder.step(op, source and source[:2], destination and destination[:2], count, depends, self.at)

    def span(self, match: re.Match[str], group: int) -> tuple[Buffer, int, int] | None:
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

"""From bytes to a Document: what an MSCCL XML file says, each part with its line, nothing yet made of it.

Reads with expat directly: it gives line numbers, and every count is checked at the start of its element, before
anything is kept. A DOCTYPE is refused, and with it every entity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from commlib.errors import FormatError
from commlib.formats.limits import ReaderLimits, refuse
from commlib.formats.msccl_xml import names
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, NOTHING, Op
from commlib.ir.ops import TWO_SIDED

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_BUFFERS = {"i": 0, "o": 1, "s": 2}
_PARENT = {"algo": None, "gpu": "algo", "tb": "gpu", "step": "tb"}
_READS = {short: bool(HAS_SOURCE[op]) for short, op in TWO_SIDED.items()}
_WRITES = {short: bool(HAS_DESTINATION[op]) for short, op in TWO_SIDED.items()}
Attributes = dict[str, str]


@dataclass(frozen=True)
class Gpu:
    """One <gpu>: its id and declared buffer sizes; None where the file does not say."""

    line: int
    id: int
    inputs: int
    outputs: int
    scratch: int | None


@dataclass
class Block:
    """One <tb>; its steps are the ``steps`` rows from ``first`` on of the step columns."""

    line: int
    gpu: int
    id: int
    send: int
    recv: int
    channel: int
    first: int
    steps: int = 0


@dataclass
class StepColumns:
    """The steps, one list per column; NOTHING where a step has no such operand or dependence."""

    line: list[int] = field(default_factory=list)
    op: list[int] = field(default_factory=list)
    source_buffer: list[int] = field(default_factory=list)
    source_index: list[int] = field(default_factory=list)
    destination_buffer: list[int] = field(default_factory=list)
    destination_index: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    depends_block: list[int] = field(default_factory=list)
    depends_step: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)


@dataclass
class Document:
    """What a file says. ``notes`` counts what was passed over, by message."""

    file: str
    line: int = 1
    header: Attributes = field(default_factory=dict)
    ranks: int | None = None
    chunks: int | None = None
    gpus: list[Gpu] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    steps: StepColumns = field(default_factory=StepColumns)
    notes: dict[str, int] = field(default_factory=dict)

    def fail(self, line: int, message: str, **fields: object) -> NoReturn:
        """Raise the FormatError for this file and line."""
        raise FormatError(f"{self.file}:{line}: {message}", file=self.file, line=line, **fields)

    def note(self, message: str) -> None:
        """Record what was passed over or taken by default."""
        self.notes[message] = self.notes.get(message, 0) + 1

    def number(self, attributes: Attributes, key: str, line: int, low: int, default: int | None = None) -> int:
        """An integer attribute of at least ``low``; without a default it must be there."""
        text = attributes.get(key)
        if text is None:
            if default is None:
                self.fail(line, f"attribute {key} is missing", key=key)
            return default
        if _NUMBER.fullmatch(text) is None:
            self.fail(line, f"{key}={text[:40]!r} is not a decimal integer", key=key)
        value = int(text)
        if value < low:
            self.fail(line, f"{key}={value} is out of range: it must be at least {low}", key=key)
        return value


def parse(content: bytes, file: str, limits: ReaderLimits) -> Document:
    """The Document of an XML file.

    Raises:
        FormatError: not well-formed, or an element or attribute that is wrong in itself.
        LimitError: more than the limits allow.
    """
    reader = _Reader(Document(file), limits)
    try:
        reader.parser.Parse(content, True)
    except expat.ExpatError as error:
        reader.document.fail(error.lineno, f"not well-formed XML: {expat.ErrorString(error.code)}")
    except (LookupError, ValueError) as error:
        reader.document.fail(1, f"its encoding cannot be read: {error}; use UTF-8")
    return reader.document


class _Reader:
    """The handlers of one parse."""

    def __init__(self, document: Document, limits: ReaderLimits) -> None:
        self.document = document
        self.limits = limits
        self.open: list[str] = []
        self.ignored_depth = 0
        self.slots = 0
        self.declared = 0
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._entity
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self._handlers = {"algo": self._algo, "gpu": self._gpu, "tb": self._tb, "step": self._step}

    def _doctype(self, *_: object) -> None:
        self.document.fail(self.parser.CurrentLineNumber, "a DOCTYPE is refused; MSCCL XML has none")

    def _entity(self, *_: object) -> None:
        self.document.fail(self.parser.CurrentLineNumber, "an entity declaration is refused; MSCCL XML has none")

    def _text(self, text: str) -> None:
        if not text.isspace():
            self.document.fail(self.parser.CurrentLineNumber, f"text {text.strip()[:40]!r} where only elements belong")

    def _start(self, name: str, attributes: Attributes) -> None:
        line = self.parser.CurrentLineNumber
        self._check_size(attributes, line)
        parent = self.open[-1] if self.open else None
        self.open.append(name)
        if self.ignored_depth or (name == "copy" and parent == "gpu"):
            # TACCL's <copy>: no runtime reads it. What it would copy is in place already when run in place.
            self.document.note(f"element <{name[:40]}> ignored, as the runtimes do")
            self.ignored_depth += 1
        elif name not in _PARENT or _PARENT[name] != parent:
            where = "as the root" if parent is None else f"inside <{parent}>"
            hint = "; the form with <op> is not MSCCL XML that a runtime reads" if name == "op" else ""
            self.document.fail(line, f"element <{name[:40]}> {where} is not MSCCL XML{hint}")
        else:
            self._handlers[name](attributes, line)

    def _end(self, _: str) -> None:
        self.open.pop()
        self.ignored_depth -= self.ignored_depth > 0

    def _check_size(self, attributes: Attributes, line: int) -> None:
        limits = self.limits
        if len(self.open) >= limits.max_depth:
            raise self._refuse(line, "max_depth", limits.max_depth, "elements nested deeper")
        if len(attributes) > limits.max_attributes:
            raise self._refuse(line, "max_attributes", limits.max_attributes, f"{len(attributes)} attributes")
        length = sum(map(len, attributes)) + sum(map(len, attributes.values()))
        if length > limits.max_attribute_length:
            what = f"attributes of {length} characters"
            raise self._refuse(line, "max_attribute_length", limits.max_attribute_length, what)

    def _refuse(self, line: int, limit: str, bound: int, what: str) -> FormatError:
        return refuse(self.document.file, line, limit, bound, what)

    def _note_unknown(self, element: str, attributes: Attributes, known: frozenset[str]) -> None:
        for key in sorted(attributes.keys() - known):
            self.document.note(f"attribute {key[:40]} of <{element}> ignored, as the runtimes do")

    def _algo(self, attributes: Attributes, line: int) -> None:
        document = self.document
        self._note_unknown("algo", attributes, names.ALGO_ATTRIBUTES)
        document.line, document.header = line, attributes
        if "ngpus" in attributes:
            document.ranks = document.number(attributes, "ngpus", line, 1)
            self._check_ranks(document.ranks, line)
        if "nchunksperloop" in attributes:
            document.chunks = document.number(attributes, "nchunksperloop", line, 1)
            self.slots = (document.ranks or 1) * document.chunks
            if self.slots > self.limits.max_slots:
                what = f"ngpus x nchunksperloop is {self.slots}"
                raise self._refuse(line, "max_slots", self.limits.max_slots, what)

    def _check_ranks(self, ranks: int, line: int) -> None:
        if ranks > self.limits.max_ranks:
            raise self._refuse(line, "max_ranks", self.limits.max_ranks, f"{ranks} gpus")

    def _gpu(self, attributes: Attributes, line: int) -> None:
        document = self.document
        self._note_unknown("gpu", attributes, names.GPU_ATTRIBUTES)
        self._check_ranks(len(document.gpus) + 1, line)
        gpu = Gpu(
            line,
            document.number(attributes, "id", line, 0),
            document.number(attributes, "i_chunks", line, 0, 0),
            document.number(attributes, "o_chunks", line, 0, 0),
            document.number(attributes, "s_chunks", line, 0) if "s_chunks" in attributes else None,
        )
        self.declared += gpu.inputs + gpu.outputs + (gpu.scratch or 0)
        if self.declared > self.limits.max_slots:
            what = f"{self.declared} chunks in the buffers of the gpus so far"
            raise self._refuse(line, "max_slots", self.limits.max_slots, what)
        document.gpus.append(gpu)

    def _tb(self, attributes: Attributes, line: int) -> None:
        document, limit = self.document, self.limits.max_threadblocks
        self._note_unknown("tb", attributes, names.TB_ATTRIBUTES)
        if len(document.blocks) >= limit:
            raise self._refuse(line, "max_threadblocks", limit, "more threadblocks")
        send, recv = (document.number(attributes, key, line, -1, NOTHING) for key in ("send", "recv"))
        # The first MSCCL files give channel -1 to threadblocks without a connection.
        lowest = -1 if send == recv == NOTHING else 0
        channel = max(document.number(attributes, "chan", line, lowest, 0), 0)
        first = len(document.steps.line)
        number = document.number(attributes, "id", line, 0)
        document.blocks.append(Block(line, document.gpus[-1].id, number, send, recv, channel, first))

    def _step(self, attributes: Attributes, line: int) -> None:
        document, steps = self.document, self.document.steps
        if not attributes.keys() <= names.STEP_ATTRIBUTES:
            self._note_unknown("step", attributes, names.STEP_ATTRIBUTES)
        self._check_work(len(steps.line) + 1, line)
        place = document.number(attributes, "s", line, 0)
        block = document.blocks[-1]
        if place != block.steps:
            document.fail(line, f"step s={place} where s={block.steps} belongs", step=place)
        block.steps += 1
        kind = attributes.get("type")
        op = TWO_SIDED.get(kind or "")
        if kind is None or op is None:
            document.fail(line, f"step type {kind!r} is not one of {', '.join(TWO_SIDED)}", step=place)
        nop = op is Op.NOP
        steps.line.append(line)
        steps.op.append(int(op))
        self._operand(attributes, "src", _READS[kind], line, steps.source_buffer, steps.source_index)
        self._operand(attributes, "dst", _WRITES[kind], line, steps.destination_buffer, steps.destination_index)
        steps.count.append(0 if nop else document.number(attributes, "cnt", line, 1, 1))
        self._dependence(attributes, line)

    def _check_work(self, steps: int, line: int) -> None:
        limits = self.limits
        if steps > limits.max_steps:
            raise self._refuse(line, "max_steps", limits.max_steps, "more steps")
        slots = max(self.slots, self.declared)
        if slots * steps > limits.max_work:
            raise self._refuse(line, "max_work", limits.max_work, f"ranks x chunks x steps is {slots * steps}")

    def _operand(
        self, attributes: Attributes, side: str, used: bool, line: int, buffers: list[int], indices: list[int]
    ) -> None:
        if not used:
            buffers.append(NOTHING)
            indices.append(NOTHING)
            return
        buffer = attributes.get(f"{side}buf")
        if buffer not in _BUFFERS:
            self.document.fail(line, f"{side}buf={buffer!r} is not one of i, o, s", key=f"{side}buf")
        buffers.append(_BUFFERS[buffer])
        indices.append(self.document.number(attributes, f"{side}off", line, 0))

    def _dependence(self, attributes: Attributes, line: int) -> None:
        document, steps = self.document, self.document.steps
        block = document.number(attributes, "depid", line, -1, NOTHING)
        step = document.number(attributes, "deps", line, -1, NOTHING)
        if block != NOTHING and step == NOTHING:
            document.fail(line, f"depid={block} without the step in deps", key="deps")
        released = document.number(attributes, "hasdep", line, 0, 0)
        if released > 1:
            document.fail(line, f"hasdep={released} is neither 0 nor 1", key="hasdep")
        steps.depends_block.append(block)
        steps.depends_step.append(NOTHING if block == NOTHING else step)
        steps.released.append(released)

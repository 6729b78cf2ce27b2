"""What the text forms of all levels share: strings and numbers, line by line, and how a collective is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from commlib.collectives import Collective, Contribution, Placement, custom
from commlib.errors import FormatError, LimitError, SpecError
from commlib.files.characters import LONE_SURROGATE

MAX_NUMBER = 2**31 - 1
MAX_CUSTOM_CHUNKS = 1 << 22
"""The most input and output chunks, of all ranks, that a custom collective may have in the text: a table has them."""

STRING = r'"(?:[^"\\]|\\.)*"'
_COLLECTIVE = re.compile(rf"collective ({STRING}) ranks (\d+) chunks (\d+)(?: root (\d+))?", re.ASCII)
_SLOT = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_OFFSET = re.compile(r"(\d+):(\d+)", re.ASCII)
_DIGITS = re.compile(r"\d{1,10}", re.ASCII)


def header_lines(
    collective: Collective, protocol: str, placements: frozenset[Placement], scratch: tuple[int, ...]
) -> Iterator[str]:
    """The lines that Trace and Algorithm begin with, after their names."""
    yield from collective_lines(collective)
    yield f"protocol {json.dumps(protocol)}"
    yield " ".join(["placements", *(p.value for p in Placement if p in placements)])
    yield " ".join(["scratch", *map(str, scratch)])


def collective_lines(c: Collective) -> Iterator[str]:
    """The lines that describe a collective; ``LineReader.collective`` reads them."""
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


@dataclass
class LineReader:
    """Takes a text line by line; every complaint names file and line."""

    file: str
    lines: list[str]
    at: int = 0

    @property
    def line(self) -> int:
        """The number of the line last taken, from 1."""
        return min(self.at, len(self.lines)) or 1

    def fail(self, message: str, **fields: object) -> NoReturn:
        """Raise a FormatError at the line last taken."""
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
        """A number from 0 to MAX_NUMBER."""
        if _DIGITS.fullmatch(digits) is None or int(digits) > MAX_NUMBER:
            self.fail(f"{digits[:40]!r} is not a number from 0 to {MAX_NUMBER}")
        return int(digits)

    def numbers(self, word: str) -> list[int]:
        """The numbers of the next line, which must begin with this word."""
        return [self.number(digits) for digits in self.take(word).split()]

    def string(self, quoted: str) -> str:
        """What a string in double quotes stands for."""
        try:
            value = json.loads(quoted)
        except ValueError:
            value = None
        if not isinstance(value, str):
            self.fail(f"{quoted[:40]!r} is not a string in double quotes")
        if LONE_SURROGATE.search(value):
            self.fail(f"{quoted[:40]!r} holds half of a surrogate pair, which is no character")
        return value

    def placements(self) -> frozenset[Placement]:
        """A ``placements`` line."""
        words = self.take("placements").split()
        known = {placement.value: placement for placement in Placement}
        if not set(words) <= known.keys() or len(set(words)) != len(words):
            self.fail(f"placements are 'in' and 'out', each at most once, not {' '.join(words)[:60]!r}")
        return frozenset(known[word] for word in words)

    def collective(self) -> Collective:
        """A ``collective`` line and, for a custom one, the lines of its conditions."""
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
        """The lines of a custom collective's conditions."""
        kind = self.take("custom")
        if kind not in ("specified", "unspecified"):
            self.fail(f"a custom collective is 'specified' or 'unspecified', not {kind[:40]!r}")
        inputs, outputs = self.numbers("inputs"), self.numbers("outputs")
        if len(inputs) != ranks or len(outputs) != ranks:
            self.fail(f"{len(inputs)} inputs and {len(outputs)} outputs for {ranks} ranks")
        if sum(inputs) + sum(outputs) > MAX_CUSTOM_CHUNKS:
            message = f"{self.file}:{self.line}: more than {MAX_CUSTOM_CHUNKS} input and output chunks"
            raise LimitError(message, file=self.file, line=self.line)
        offsets = self.offsets() if self.peek() == "offsets" else None
        made = custom(name, inputs, outputs, self.wants(), offsets)
        conditions = made.custom if made.custom is None else replace(made.custom, specified=kind == "specified")
        return Collective(name, ranks, chunks, root, conditions)

    def offsets(self) -> list[tuple[int, int]]:
        """An ``offsets`` line."""
        pairs = [_OFFSET.fullmatch(word) for word in self.take("offsets").split()]
        return [(self.number(m[1]), self.number(m[2])) if m else self.fail("offsets are INPUT:OUTPUT") for m in pairs]

    def wants(self) -> dict[Contribution, list[Contribution]]:
        """All ``want`` lines."""
        wanted: dict[Contribution, list[Contribution]] = {}
        while self.peek() == "want":
            output, equals, sources = self.take("want").partition(" =")
            slot = self.slot(output)
            if not equals or slot in wanted:
                self.fail("the form is: want RANK.CHUNK = RANK.CHUNK ..., once for each output chunk")
            wanted[slot] = [self.slot(word) for word in sources.split()]
        return wanted

    def slot(self, word: str) -> tuple[int, int]:
        """A pair of numbers with a dot between."""
        match = _SLOT.fullmatch(word)
        if match is None:
            self.fail(f"{word[:40]!r} is not of the form NUMBER.NUMBER")
        return self.number(match[1]), self.number(match[2])

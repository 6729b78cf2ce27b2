"""A small XML tree, read with expat: each element with its line, nothing declared, nothing fetched, all bounded.

A DOCTYPE is refused, and with it every entity. Prefixes of namespaces are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from commlib.errors import FormatError, LimitError

_NUMBER = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_MAX_ELEMENTS = 1 << 19
_MAX_DEPTH = 24
_MAX_ATTRIBUTES = 8192
_MAX_TEXT = 4096


@dataclass(slots=True)
class Element:
    """An element; ``text`` is what stands in it directly."""

    tag: str
    attributes: dict[str, str]
    line: int
    file: str
    children: list[Element] = field(default_factory=list)
    text: str = ""

    @property
    def where(self) -> str:
        """The element and its line, for messages."""
        return f"line {self.line}: <{self.tag[:40]}>"

    def fail(self, message: str, **fields: object) -> NoReturn:
        """Raise the FormatError for this element."""
        raise FormatError(f"{self.file}:{self.line}: {message}", file=self.file, line=self.line, **fields)

    def attribute(self, key: str) -> str:
        """An attribute that must be there."""
        if key not in self.attributes:
            self.fail(f"attribute {key} of <{self.tag[:40]}> is missing", key=key)
        return self.attributes[key]

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """An attribute that is one of some words."""
        value = self.attribute(key)
        if value not in known:
            self.fail(f"{key}={value[:40]!r} is not one of {', '.join(known)}", key=key)
        return value

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer attribute; without a default it must be there."""
        text = self.attributes.get(key) if default is not None else self.attribute(key)
        if text is None:
            return default or 0
        if _NUMBER.fullmatch(text) is None or not low <= int(text) <= high:
            self.fail(f"{key}={text[:40]!r} is not an integer from {low} to {high}", key=key)
        return int(text)


def parse_tree(content: bytes, file: str) -> Element:
    """The root element of an XML document.

    Raises:
        FormatError: not well-formed, or it has a DOCTYPE; with the line.
        LimitError: too many elements, too deep, or too long.
    """
    builder = _Builder(file)
    try:
        builder.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise _error(file, error.lineno, f"not well-formed XML: {expat.ErrorString(error.code)}") from error
    except (LookupError, ValueError) as error:
        raise _error(file, 1, f"its encoding cannot be read: {error}; use UTF-8") from error
    return builder.root.children[0]


def _error(file: str, line: int, message: str) -> FormatError:
    return FormatError(f"{file}:{line}: {message}", file=file, line=line)


class _Builder:
    """The handlers of one parse."""

    def __init__(self, file: str) -> None:
        self.file, self.count = file, 0
        self.root = Element("", {}, 1, file)
        self.open = [self.root]
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._declaration
        self.parser.EntityDeclHandler = self._declaration
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _declaration(self, *_: object) -> None:
        raise _error(self.file, self.parser.CurrentLineNumber, "a DOCTYPE or entity declaration is refused")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.count += 1
        length = sum(map(len, attributes)) + sum(map(len, attributes.values()))
        self._limit("max_elements", self.count, _MAX_ELEMENTS)
        self._limit("max_depth", len(self.open), _MAX_DEPTH)
        self._limit("max_attribute_length", length, _MAX_ATTRIBUTES)
        element = Element(name.rpartition(":")[2], attributes, self.parser.CurrentLineNumber, self.file)
        self.open[-1].children.append(element)
        self.open.append(element)

    def _end(self, _: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        element = self.open[-1]
        if not text.isspace():
            self._limit("max_text", len(element.text) + len(text), _MAX_TEXT)
            element.text += text

    def _limit(self, limit: str, value: int, bound: int) -> None:
        if value > bound:
            line = self.parser.CurrentLineNumber
            message = f"{self.file}:{line}: over the limit {limit} = {bound}"
            raise LimitError(message, file=self.file, line=line, limit=limit)

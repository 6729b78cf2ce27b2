"""Strict JSON: parsing without surprises, and typed access to an object's fields with errors that name the key."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from commlib.errors import CommlibError, FormatError
from commlib.files.characters import LONE_SURROGATE

Json = Any
"""A JSON value; ``Fields`` gives it types."""

MAX_NUMBER = 2**31 - 1


def parse_json(text: str, file: str) -> Json:
    """The value of a JSON text. Keys that are there twice, NaN and infinities are refused.

    Raises:
        FormatError: not JSON; with file and line.
    """

    def fail(message: str, line: int = 1) -> NoReturn:
        raise FormatError(f"{file}:{line}: {message}", file=file, line=line)

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        values = dict(pairs)
        if len(values) != len(pairs):
            keys = [key for key, _ in pairs]
            fail(f"key {next(key for key in keys if keys.count(key) > 1)[:40]!r} is there twice")
        return values

    def constant(name: str) -> NoReturn:
        fail(f"{name} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        fail(f"not JSON: {error.msg}", error.lineno)
    except RecursionError:
        fail("nested too deeply")
    except ValueError:
        fail("a number has too many digits")


@dataclass(frozen=True)
class Fields:
    """An object of a JSON file; ``where`` says which, in messages."""

    values: dict[str, Json]
    file: str
    where: str

    @staticmethod
    def of(value: Json, file: str, where: str) -> Fields:
        """The fields of a value that must be an object."""
        if not isinstance(value, dict):
            raise FormatError(f"{file}: {where} must be an object, not {_kind(value)}", file=file, key=where)
        return Fields(value, file, where)

    def fail(self, message: str, key: str | None = None) -> NoReturn:
        """Raise the FormatError for this object or one of its keys."""
        place = self.where if key is None else f"{self.where}.{_printable(key)}"
        raise FormatError(f"{self.file}: {place}: {message}", file=self.file, key=key or self.where)

    def refuse(self, error: CommlibError) -> NoReturn:
        """Raise the FormatError for an error in what this object makes, with the facts of that error."""
        facts = {"key": self.where, **error.fields, "file": self.file}
        raise FormatError(f"{self.file}: {self.where}: {error.message}", **facts) from error

    def check_keys(self, required: set[str], optional: Iterable[str] = ()) -> None:
        """Refuse missing and unknown keys."""
        missing = sorted(required - self.values.keys())
        if missing:
            self.fail(f"key {missing[0]!r} is missing", key=missing[0])
        unknown = sorted(self.values.keys() - required - set(optional))
        if unknown:
            self.fail(f"key {unknown[0][:40]!r} is unknown", key=unknown[0][:40])

    def string(self, key: str) -> str:
        """A string field."""
        value = self.values[key]
        if not isinstance(value, str):
            self.fail(f"must be a string, not {_kind(value)}", key=key)
        self._check_characters(value, key)
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings."""
        values = self.array(key)
        if not all(isinstance(value, str) for value in values):
            self.fail("must hold strings only", key=key)
        for value in values:
            self._check_characters(value, key)
        return values

    def _check_characters(self, text: str, key: str) -> None:
        if LONE_SURROGATE.search(text):
            self.fail(f"{text[:40]!r} holds half of a surrogate pair, which is no character", key=key)

    def boolean(self, key: str) -> bool:
        """A true or false field."""
        value = self.values[key]
        if not isinstance(value, bool):
            self.fail(f"must be true or false, not {_kind(value)}", key=key)
        return value

    def integer(self, key: str, low: int = 0) -> int:
        """An integer field from ``low`` to MAX_NUMBER."""
        value = self.values[key]
        if type(value) is not int or not low <= value <= MAX_NUMBER:
            self.fail(f"must be an integer from {low} to {MAX_NUMBER}, not {_kind(value)}", key=key)
        return value

    def array(self, key: str) -> list[Json]:
        """A list field."""
        value = self.values[key]
        if not isinstance(value, list):
            self.fail(f"must be a list, not {_kind(value)}", key=key)
        return value

    def integers(self, key: str) -> list[int]:
        """A list of integers from 0 to MAX_NUMBER."""
        values = self.array(key)
        if not all(type(value) is int and 0 <= value <= MAX_NUMBER for value in values):
            self.fail(f"must hold integers from 0 to {MAX_NUMBER} only", key=key)
        return values

    def integers_or_null(self, key: str) -> list[int | None]:
        """A list of integers from 0 to MAX_NUMBER, or null for none."""
        values = self.array(key)
        if not all(value is None or (type(value) is int and 0 <= value <= MAX_NUMBER) for value in values):
            self.fail(f"must hold integers from 0 to {MAX_NUMBER} or null only", key=key)
        return values

    def words(self, key: str, known: Iterable[str]) -> list[str]:
        """A list of words out of a known set."""
        values, known = self.array(key), set(known)
        if not all(isinstance(value, str) and value in known for value in values):
            self.fail(f"must hold only {', '.join(sorted(known))}", key=key)
        return values


def _printable(key: str) -> str:
    return LONE_SURROGATE.sub("?", key)


def _kind(value: Json) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value!r}"[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"

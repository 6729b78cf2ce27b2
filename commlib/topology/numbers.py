"""Numbers in JSON: times and costs that are finite, not negative, and fit a float, with errors that name the key."""

from __future__ import annotations

from commlib.files.json_fields import Fields, Json

_LARGEST = 1e300


def is_cost(value: Json) -> bool:
    """Whether a JSON value is a number from 0 on that fits a float."""
    return type(value) in (int, float) and 0 <= value <= _LARGEST


def cost(fields: Fields, key: str) -> float:
    """A field that is a finite number of 0 or more.

    Raises:
        FormatError: another value; with file and key.
    """
    value = fields.values[key]
    if not is_cost(value):
        fields.fail(f"must be a finite number of 0 or more, not {str(value)[:40]!r}", key=key)
    return float(value)


def costs(fields: Fields, key: str) -> tuple[float, ...]:
    """A field that is a list of finite numbers of 0 or more.

    Raises:
        FormatError: another value; with file and key.
    """
    values = fields.array(key)
    if not all(is_cost(value) for value in values):
        fields.fail("must hold finite numbers of 0 or more only", key=key)
    return tuple(map(float, values))

"""Where in the user's code we are: errors and operations name that line, never one of this package's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from commlib.errors import CommlibError

if TYPE_CHECKING:
    from commlib.dsl.chunk import Chunk

_OWN_FILES = frozenset(str(path) for path in Path(__file__).parent.glob("*.py"))


def caller() -> tuple[str, int]:
    """File and line of the innermost caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in _OWN_FILES and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def at_caller(kind: type[CommlibError], message: str, about: Chunk | None = None, **fields: object) -> CommlibError:
    """An error of this kind that begins with the user's file and line and has them as fields."""
    file, line = caller()
    if about is not None:
        fields["slot"] = str(about)
    return kind(f"{file}:{line}: {message}", file=file, line=line, **fields)

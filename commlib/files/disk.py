"""Files: bounded reading and atomic writing, shared by every format."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from commlib.errors import FormatError, LimitError


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes`` bytes.

    Raises:
        LimitError: the file is larger; nothing was read.
        FormatError: it cannot be read, or is not a regular file (a pipe or a device has no size to check).
    """
    name = os.fspath(path)
    try:
        with open(name, "rb", opener=_open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{name}: not a regular file", file=name)
            if status.st_size > max_bytes:
                raise _too_large(name, max_bytes)
            content = stream.read(max_bytes + 1)
    except OSError as error:
        raise FormatError(f"{name}: cannot be read: {error.strerror}", file=name) from error
    except ValueError as error:
        raise _no_path(name, error) from error
    if len(content) > max_bytes:
        raise _too_large(name, max_bytes)
    return content


def _open_without_waiting(name: str, flags: int) -> int:
    # Opening a FIFO for reading would wait for its writer before its kind can be looked at.
    return os.open(name, flags | os.O_NONBLOCK)


def _no_path(name: str, error: ValueError) -> FormatError:
    # A NUL byte, or half of a surrogate pair that stands for no byte: the name itself could not be printed.
    return FormatError(f"{name!r} is no path of a file: {error}", file=name)


def _too_large(name: str, max_bytes: int) -> LimitError:
    return LimitError(
        f"{name}:1: larger than the limit of {max_bytes} bytes; raise max_bytes if the file is trusted",
        file=name,
        line=1,
        limit="max_bytes",
    )


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """As ``read_bounded``, decoded as UTF-8.

    Raises:
        FormatError: also when the file is not UTF-8; the message has the line.
    """
    return decode(read_bounded(path, max_bytes), os.fspath(path))


def decode(content: bytes, name: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        FormatError: not UTF-8; the message has the line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FormatError(f"{name}:{line}: not UTF-8 text", file=name, line=line) from error


def write_atomic(path: str | os.PathLike[str], content: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one, never a part.

    Raises:
        FormatError: the file cannot be written, or the path is none; nothing is left behind. What is there and is no
            regular file (a device, a pipe) is not replaced: root could, and /dev/null would be a file from then on.
    """
    target = Path(path)
    temporary = _beside(target)
    _refuse_special(target)
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise FormatError(f"{target}: cannot be written: {error.strerror}", file=str(target)) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _refuse_special(target: Path) -> None:
    with suppress(OSError):  # nothing is there, or writing will tell why not
        mode = target.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FormatError(f"{target}: cannot be written: not a regular file", file=str(target))


def _beside(target: Path) -> Path:
    """A new name in the folder of a file."""
    try:
        if b"\0" in os.fsencode(target):
            raise ValueError("embedded null byte")
        return target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.tmp")
    except ValueError as error:
        raise _no_path(str(target), error) from error

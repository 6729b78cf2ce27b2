"""Values between a launcher and its processes, as JSON and raw bytes: nothing received is ever executed."""

from __future__ import annotations

import io
import json
import struct
import traceback
from typing import Any, BinaryIO

import numpy as np
import torch

from commlib import errors
from commlib.errors import CommlibError, ExecutionError

_SIZES = struct.Struct("<QQ")
MAX_BYTES = 1 << 34


def pack(value: Any) -> bytes:
    """A value made of JSON's types, tuples (which become lists), numpy arrays and CPU tensors, as bytes."""
    blobs: list[bytes] = []
    text = json.dumps(_plain(value, blobs)).encode()
    body = b"".join(blobs)
    return _SIZES.pack(len(text), len(body)) + text + body


class Parcel:
    """A packed value that comes in pieces, so that nobody has to wait for the rest of it."""

    def __init__(self) -> None:
        self._data = io.BytesIO()

    def take(self, data: bytes) -> bool:
        """Put the next piece to those before; whether the value is whole.

        Raises:
            ExecutionError: it is too large.
        """
        self._data.seek(0, io.SEEK_END)
        self._data.write(data)
        got: int = self._data.tell()
        if got < _SIZES.size:
            return False
        self._data.seek(0)
        wanted: int = sum(_SIZES.unpack(_exactly(self._data, _SIZES.size)))
        if wanted > MAX_BYTES:
            raise ExecutionError(f"a result of {wanted} bytes is larger than the launcher takes ({MAX_BYTES})")
        return got >= _SIZES.size + wanted

    def value(self) -> Any:
        """The value, once it is whole.

        Raises:
            EOFError: it is not.
        """
        self._data.seek(0)
        sizes = _SIZES.unpack(_exactly(self._data, _SIZES.size))
        text = _exactly(self._data, sizes[0])
        return _rebuilt(json.loads(text), self._data.getbuffer()[self._data.tell() :][: sizes[1]])


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception, as a value to pack."""
    fields = error.fields if isinstance(error, CommlibError) else {}
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in fields.items()}
    return {"kind": type(error).__name__, "message": str(error), "fields": plain, "where": _where(error)}


def _where(error: BaseException) -> list[Any]:
    """File and line of the last frame that is not commlib's own or below it: where the user's function was."""
    place: list[Any] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").split(".")[0] == "commlib":
            if place:
                break
            continue
        place = [frame.f_code.co_filename, line]
    return place


def rebuild_error(found: dict[str, Any], rank: int) -> CommlibError:
    """The exception that a rank described; one that is not commlib's becomes an ExecutionError.

    The message says which rank and where; the fields get ``rank``, ``file`` and ``line`` where the error has none.
    """
    kind, place = getattr(errors, str(found["kind"]), None), found["where"]
    known = kind if isinstance(kind, type) and issubclass(kind, CommlibError) else None
    at = f" ({place[0]}:{place[1]})" if place else ""
    message = str(found["message"]) if known else f"{found['kind']}: {found['message']}"
    if not message.startswith(f"rank {rank}"):
        message = f"rank {rank}: {message}"
    fields = {"rank": rank, **(dict(zip(("file", "line"), place, strict=True)) if place else {}), **found["fields"]}
    return (known or ExecutionError)(message + at, **fields)


def _plain(value: Any, blobs: list[bytes]) -> Any:
    if isinstance(value, torch.Tensor):
        line = value.detach().contiguous().reshape(-1)
        dtype = str(value.dtype).removeprefix("torch.")
        return _blob("tensor", dtype, value.shape, line.view(torch.uint8).numpy().tobytes(), blobs)
    if isinstance(value, np.ndarray):
        return _blob("array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes(), blobs)
    if isinstance(value, dict):
        return {str(key): _plain(item, blobs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, blobs) for item in value]
    return value


def _blob(what: str, dtype: str, shape: tuple[int, ...], data: bytes, blobs: list[bytes]) -> dict[str, Any]:
    start = sum(map(len, blobs))
    blobs.append(data)
    return {"__blob__": what, "dtype": dtype, "shape": list(shape), "start": start, "size": len(data)}


def _rebuilt(value: Any, body: memoryview) -> Any:
    if isinstance(value, list):
        return [_rebuilt(item, body) for item in value]
    if not isinstance(value, dict):
        return value
    if "__blob__" not in value:
        return {key: _rebuilt(item, body) for key, item in value.items()}
    data = bytearray(body[value["start"] : value["start"] + value["size"]])
    if value["__blob__"] == "array":
        return np.frombuffer(data, dtype=np.dtype(value["dtype"])).reshape(value["shape"])
    dtype = getattr(torch, value["dtype"])
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(value["shape"])


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"the stream ended after {len(data)} of {size} bytes")
    return data

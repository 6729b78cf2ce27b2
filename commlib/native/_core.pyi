"""The native core, in C: see core.h. The Context is the one that ``commlib.runtime.shm`` describes."""

from collections.abc import Callable, Sequence
from typing import Any

CONSTANTS: dict[str, int]
FIELDS: tuple[tuple[str, str, int, int], ...]

class Table:
    """One rank's launch, checked and ready to run."""

    @property
    def number(self) -> int: ...

class Planned:
    """A call with its table and tensors, to be made again and again."""

    def __call__(self) -> None: ...

class Context:
    """One rank's place in a group over shared memory: runs tables, streams bytes through rings."""

    on_stall: Callable[[float, tuple[tuple[int, int, int, int, int], ...]], None] | None
    on_mismatch: Callable[[int], None] | None
    on_error: Callable[[BaseException], None] | None
    trace: Callable[[int, int, int], None] | None
    timeout: float

    @property
    def calls(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    def __init__(
        self,
        rank: int,
        ranks: int,
        layout: Any,
        segments: Sequence[int],
        spins: int,
        yields: int,
        slice_seconds: float,
        on_stall: Callable[[float, tuple[tuple[int, int, int, int, int], ...]], None] | None,
        records: int,
        on_mismatch: Callable[[int], None] | None = None,
    ) -> None: ...
    def table(self, rank_table: Any, fingerprint: int, text: bytes, reach: int) -> Table: ...
    def run(self, table: Table, input_address: int, output_address: int, timeout: float, /) -> None: ...
    def planned(
        self, table: Table, input_address: int, output_address: int, timeout: float | None = None
    ) -> Planned: ...
    def region(self, peer: int, number: int, address: int, size: int, /) -> None: ...
    def records(self) -> bytes: ...
    def ring_write(self, peer: int, address: int, bytes: int, /) -> int: ...
    def ring_read(self, peer: int, address: int, bytes: int, /) -> int: ...
    def wait_rings(self, timeout: float, /) -> bool: ...
    def close(self, why: str = ..., /) -> None: ...

class Replay:
    """Remembered calls of torch.distributed; ``commlib.torch_backend.replay.Replay`` says what each does."""

    def __init__(
        self,
        hot: dict[tuple[Any, ...], Callable[[], object]],
        worker: Any,
        acquire: Callable[[bool], bool],
        release: Callable[[], None],
        profiling: Callable[[], bool],
        refused: type[BaseException],
        converted: Callable[[BaseException], BaseException],
        /,
    ) -> None: ...
    @property
    def calls(self) -> int: ...
    def one(self, tensors: Any, options: Any, /) -> bool: ...
    def two(self, kind: str, output: Any, input: Any, options: Any, detail: str | None, /) -> bool: ...
    def again(self, call: Callable[[], object], /) -> bool: ...

def offsets(
    ranks: int, lane: int, slot: int, depth: int, ring: int, channel: int, sender: int, /
) -> dict[str, int]: ...
def combine(
    dtype: str, combine: str | None, destinations: Sequence[int], sources: Sequence[int], bytes: int, /
) -> None: ...
def use_instructions(name: str | None = None, /) -> str: ...

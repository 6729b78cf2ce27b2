"""The table that nccl-tests prints, so that people and scripts that read it can read ours.

Sizes and bandwidths mean what they mean there: size is that of the larger side of the collective in bytes, count the
argument of the call in elements, time an average or median per call in us, algbw = size / time, and busbw = algbw
times the collective's factor, in GB/s of 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from commlib.cli.console import out

if TYPE_CHECKING:
    from commlib.runtime import Row

NCCL_TYPES = {"float32": "float", "float64": "double", "float16": "half"}
TORCH_TYPES = {short: name for name, short in NCCL_TYPES.items()}
"""The names that nccl-tests has for torch's types."""
_TITLES = " " * 11 + "out-of-place" + " " * 23 + "in-place" + " " * 10
_BLANK = " " * 33


@dataclass
class NcclTable:
    """Prints the table line by line as rows come in; a line is due when all its ``placements`` have come.

    ``in_place`` lists the placements measured per size (False: out of place). ``peers`` get a time and a bus
    bandwidth per placement to the right of nccl-tests' own columns. The columns of the type and of the reduction are
    as wide as nccl-tests has them, or wider for a longer ``dtype`` or ``op``. A quiet table only collects its rows.
    """

    in_place: Sequence[bool]
    peers: Sequence[str] = ()
    quiet: bool = False
    dtype: str = "float32"
    op: str = "sum"
    rows: list[Row] = field(default_factory=list)
    _pending: dict[bool, Row] = field(default_factory=dict)

    def begin(self) -> None:
        """Print the header."""
        self._print(self.header())

    def end(self) -> None:
        """Print a line that is still incomplete, and the footer."""
        if self._pending:
            self._print([self._line(self._pending)])
            self._pending = {}
        self._print(self.footer())

    def add(self, row: Row) -> None:
        """Take one row in; print a line when it completes one."""
        if any((row.size, row.algorithm) != (other.size, other.algorithm) for other in self._pending.values()):
            self._print([self._line(self._pending)])  # its algorithm runs in one placement only
            self._pending = {}
        self.rows.append(row)
        self._pending[row.in_place] = row
        if len(self._pending) == len(self.in_place):
            self._print([self._line(self._pending)])
            self._pending = {}

    @property
    def _widths(self) -> tuple[int, int]:
        """Of the columns of the type and of the reduction."""
        return max(8, len(_short(self.dtype))), max(6, len(self.op))

    def _print(self, lines: Iterable[str]) -> None:
        for line in () if self.quiet else lines:
            out(line)

    @property
    def wrong(self) -> int:
        """The wrong elements of all rows."""
        return sum(row.wrong or 0 for row in self.rows)

    @property
    def mean_busbw(self) -> float:
        """The mean bus bandwidth over sizes and placements, GB/s."""
        return sum(row.busbw for row in self.rows) / len(self.rows) if self.rows else 0.0

    def header(self) -> Iterator[str]:
        """The three header lines."""
        lead = f"# {{:>10}}  {{:>12}}  {{:>{self._widths[0]}}}  {{:>{self._widths[1]}}}  {{:>6}}"
        columns = "  {:>7}  {:>6}  {:>6}  {:>6}"
        yield "#"
        yield lead.format(*[""] * 5) + _TITLES + self._peer_titles()
        names, units = ("time", "algbw", "busbw", "#wrong"), ("(us)", "(GB/s)", "(GB/s)", "")
        of_peers = "  {:>7}  {:>6}" * 2 * len(self.peers)
        yield (
            lead.format("size", "count", "type", "redop", "root")
            + columns.format(*names) * 2
            + of_peers.format(*("time", "busbw") * 2 * len(self.peers))
        )
        yield (
            lead.format("(B)", "(elements)", "", "", "")
            + columns.format(*units) * 2
            + of_peers.format(*("(us)", "(GB/s)") * 2 * len(self.peers))
        )

    def footer(self) -> Iterator[str]:
        """The two lines under the table."""
        unchecked = any(row.wrong is None for row in self.rows)
        counted = "N/A" if unchecked else f"{self.wrong} {'FAILED' if self.wrong else 'OK'}"
        yield f"# {'Out of bounds values':<20} : {counted}"
        yield f"# {'Avg bus bandwidth':<20} : {self.mean_busbw:g}"
        yield "#"

    def _peer_titles(self) -> str:
        return "".join(f"  {f'{peer} {place}':>15}" for peer in self.peers for place in ("oop", "ip"))

    def _line(self, rows: Mapping[bool, Row]) -> str:
        row = next(iter(rows.values()))
        of_kind, of_op = self._widths
        line = f"{row.size:12d}  {row.count:12d}  {_short(row.dtype):>{of_kind}}  {row.op:>{of_op}}  {row.root:6d}"
        line += "".join(_body(rows.get(in_place)) for in_place in (False, True))
        return line + "".join(_peer_body(rows.get(place), peer) for peer in self.peers for place in (False, True))


def _short(dtype: str) -> str:
    return NCCL_TYPES.get(dtype, dtype)


def _body(row: Row | None) -> str:
    if row is None:
        return _BLANK
    numbers = f"  {number(row.time_us, 7)}  {number(row.algbw, 6)}  {number(row.busbw, 6)}"
    return f"{numbers}  {'N/A' if row.wrong is None else format(row.wrong, 'g'):>6}"


def _peer_body(row: Row | None, peer: str) -> str:
    measured = None if row is None else row.peers.get(peer)
    if measured is None:
        return f"  {'N/A':>7}  {'N/A':>6}"
    return f"  {number(measured['time_us'], 7)}  {number(measured['busbw'], 6)}"


def number(value: float, width: int) -> str:
    """A non-negative number in ``width`` characters, with as many decimals (0 to 2) as fit, else as 1e+09."""
    digits = len(str(int(value))) if value >= 1 else 0
    if digits > width:
        return f"{value:{width}.{1 if width >= 7 else 0}e}"
    decimals = 2 if digits < width - 2 else 1 if digits < width - 1 else 0
    return f"{value:{width}.{decimals}f}"

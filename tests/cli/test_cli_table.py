"""The table has the layout of nccl-tests, to the character."""

from dataclasses import dataclass, field

import pytest

from commlib.cli.nccl_table import NcclTable, number


@dataclass
class Row:
    algorithm: str = "ring_allreduce"
    size: int = 1_048_576
    count: int = 262_144
    dtype: str = "float32"
    op: str = "sum"
    root: int = -1
    in_place: bool = False
    time_us: float = 1234.567
    algbw: float = 0.849
    busbw: float = 1.274
    wrong: int | None = 0
    peers: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self):
        return {}


# nccl-tests' header lines, as its C formats (which Python's % reads too) give them.
LEAD = "# %10s  %12s  %8s  %6s  %6s"
COLUMNS = "  %7s  %6s  %6s  %6s  %7s  %6s  %6s  %6s"
HEADER = [
    "#",
    LEAD % (("",) * 5) + "           out-of-place                       in-place          ",
    LEAD % ("size", "count", "type", "redop", "root") + COLUMNS % (("time", "algbw", "busbw", "#wrong") * 2),
    LEAD % ("(B)", "(elements)", "", "", "") + COLUMNS % (("(us)", "(GB/s)", "(GB/s)", "") * 2),
]
LINE = (
    "     1048576        262144     float     sum      -1"
    "  1234.57    0.85    1.27       0  1234.57    0.85    1.27       0"
)


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (0.0, 7, "   0.00"),
        (12.345, 7, "  12.35"),
        (9999.99, 7, "9999.99"),
        (12_345.67, 7, "12345.7"),
        (123_456.7, 7, " 123457"),
        (12_345_678.0, 7, "1.2e+07"),
        (0.849, 6, "  0.85"),
        (999.5, 6, "999.50"),
        (12_345.0, 6, " 12345"),
        (1_234_567.0, 6, " 1e+06"),
    ],
)
def test_numbers_fit_their_columns(value, width, text):
    assert number(value, width) == text
    assert len(number(value, width)) == width


def test_header_is_that_of_nccl_tests():
    header = list(NcclTable([False, True]).header())
    assert header == HEADER


def test_a_line_is_printed_when_both_placements_have_come(capsys):
    table = NcclTable([False, True])
    table.add(Row())
    assert capsys.readouterr().out == ""
    table.add(Row(in_place=True))
    assert capsys.readouterr().out == LINE + "\n"


def test_wrong_elements_fail_the_footer():
    table = NcclTable([False], quiet=True)
    table.add(Row(wrong=3, busbw=2.0))
    table.add(Row(wrong=0, busbw=1.0, size=1))
    assert table.wrong == 3
    assert list(table.footer()) == ["# Out of bounds values : 3 FAILED", "# Avg bus bandwidth    : 1.5", "#"]


def test_the_footer_when_all_is_right():
    table = NcclTable([False], quiet=True)
    table.add(Row())
    assert list(table.footer()) == ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 1.274", "#"]


def test_a_placement_that_did_not_run_is_blank(capsys):
    table = NcclTable([False, True])
    table.add(Row(in_place=True))
    table.add(Row(in_place=True, algorithm="another"))
    table.end()
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == second == LINE[:52] + " " * 33 + LINE[85:]


def test_peers_have_time_and_busbw_per_placement(capsys):
    table = NcclTable([False, True], peers=("gloo",))
    table.add(Row(peers={"gloo": {"time_us": 10.0, "busbw": 0.5}}))
    table.add(Row(in_place=True))
    assert capsys.readouterr().out == LINE + "    10.00    0.50      N/A     N/A\n"
    assert "gloo oop" in next(line for line in table.header() if "out-of-place" in line)


def test_long_names_of_types_and_reductions_widen_their_columns(capsys):
    table = NcclTable([False], dtype="complex128", op="premul_sum")
    table.add(Row(dtype="complex128", op="premul_sum"))
    line = capsys.readouterr().out.rstrip("\n")
    assert line.startswith("     1048576        262144  complex128  premul_sum      -1  1234.57")
    lead, titles, _ = list(table.header())[1:]
    assert titles.startswith("#       size         count        type       redop    root     time")
    assert lead.index("out-of-place") == HEADER[1].index("out-of-place") + 6


def test_names_of_types_and_an_unchecked_row(capsys):
    table = NcclTable([False])
    for size, dtype in enumerate(("float16", "float64", "bfloat16", "int8")):
        table.add(Row(dtype=dtype, size=size, wrong=None))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["half", "double", "bfloat16", "int8"]
    assert all(line.split()[8] == "N/A" for line in lines)
    assert next(table.footer()) == "# Out of bounds values : N/A"

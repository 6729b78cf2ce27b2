"""Sizes as nccl-tests writes them."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from commlib.cli.sizes import format_size, parse_size, parse_sizes, sweep


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("512", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("1.5M", 1_572_864),
        (" 2 G ", 2 << 30),
        ("64KB", 65_536),
        ("100B", 100),
        (".5K", 512),
        ("1.2", 1),
        ("1T", 1 << 40),
        ("1024G", 1 << 40),
    ],
)
def test_sizes_mean_powers_of_1024(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "2T", "1P", "1e6", "nan", "1 2", "0x10", "9999G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match=r"is not a size|more than 1T"):
        parse_size(text)


def test_lists_of_sizes():
    assert parse_sizes(["1K,2K", "3"]) == [1024, 2048, 3]


def test_the_short_form_takes_the_largest_unit():
    assert [format_size(size) for size in (0, 1536, 1 << 16, 1 << 30, 1 << 40)] == ["0", "1536", "64K", "1G", "1T"]


@given(st.integers(0, 1 << 40))
def test_the_short_form_reads_back(size):
    assert parse_size(format_size(size)) == size


def test_sweep_by_factor_and_by_step():
    assert sweep(1024, 16_384, 2.0) == [1024, 2048, 4096, 8192, 16_384]
    assert sweep(100, 1000, 3.0) == [100, 300, 900]
    assert sweep(10, 25, 2.0, step=5) == [10, 15, 20, 25]
    assert sweep(8, 8, 2.0) == [8]


def test_a_sweep_from_zero_ends():
    assert sweep(0, 8, 2.0) == [0, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2048, 1024, 2.0), "the range of sizes is empty: 2K to 1K"),
        ((1, 2, 1.0), "must be above 1, not 1"),
        ((1, 2, float("inf")), "must be above 1"),
        ((1, 2, 2.0, 0), "must be positive"),
    ],
)
def test_sweeps_that_make_no_sense(arguments, message):
    with pytest.raises(typer.BadParameter, match=message):
        sweep(*arguments)

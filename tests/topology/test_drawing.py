"""Pictures of topologies."""

from __future__ import annotations

from commlib.topology import Link, Resource, Topology, draw, named, ring

LINE = """\
line: 3 ranks, 4 links, out-degree 1 to 2

  0 1 2
0 \\ A .
1 A \\ A
2 . A \\

times in us for 1 MiB:
  A  alpha 0 + 10  (104.9 GB/s)  4 links
"""
TWO_NODES = """\
t: 4 ranks, 2 nodes, 4 links, out-degree 1

  0 1 | 2 3
0 \\ A | . .
1 A \\ | . .
-----------
2 . . | \\ A
3 . . | B \\

times in us for 1 MiB:
  A  alpha 1 + 0  (no limit of rate)  3 links
  B  alpha 1 + 1.049  (1000 GB/s, pipelined)  1 link

shared, one transfer at a time:
  nic # out: 2, taken by 0 to 1 links each
"""


def test_small_ones_are_a_matrix():
    assert draw(named("line:3")) == LINE
    links = {
        (0, 1): Link(1e-6),
        (1, 0): Link(1e-6),
        (2, 3): Link(1e-6),
        (3, 2): Link(1e-6, 1e-12, ("nic 1 out",), True),
    }
    resources = {"nic 0 out": Resource(), "nic 1 out": Resource()}
    assert draw(Topology("t", 4, links, resources, (0, 0, 1, 1))) == TWO_NODES


def test_large_ones_are_summed_up():
    text = draw(named("torus:8x8x8"))
    assert text.splitlines() == [
        "torus 8x8x8: 512 ranks, 3072 links, out-degree 6",
        "",
        "times in us for 1 MiB:",
        "  A  alpha 0 + 10  (104.9 GB/s)  3072 links",
    ]


def test_of_many_nodes_one_is_drawn():
    lines = draw(named("h100", 8)).splitlines()
    assert lines[0] == "h100 x8: 64 ranks, 8 nodes, 896 links, out-degree 14"
    assert lines[3] == "0 \\ A A A A A A A"
    assert "(node 0 of 8)" in lines
    assert "  node # nic # out: 64, taken by 7 links each" in lines


def test_nothing_to_draw():
    assert draw(ring(1)) == "ring: 1 rank, 0 links, out-degree 0\n\n  0\n0 \\\n"


def test_kinds_beyond_the_alphabet_and_odd_names():
    links = {(0, rank): Link(rank * 1e-6) for rank in range(1, 60)}
    text = draw(Topology("a\x1b[31m", 60, links))
    assert text.startswith("'a\\x1b[31m': 60 ranks")
    assert "... and 47 further kinds" in text

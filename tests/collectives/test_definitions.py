"""The definitions: sizes, postconditions and in-place spans of each collective, and what is refused."""

from __future__ import annotations

import pytest

from commlib import collectives as c
from commlib.collectives import COLLECTIVES, ROOTED, Collective, Custom, collective, custom
from commlib.errors import SpecError
from commlib.reductions import REDUCTIONS, DtypeKind, reduction

N, C = 3, 2
ALL = frozenset(range(N))


def want(spec: Collective, rank: int) -> list[set[tuple[int, int]] | None]:
    found = [spec.expected(rank, index) for index in range(spec.output_chunks(rank))]
    return [None if each is None else set(each) for each in found]


@pytest.mark.parametrize(
    ("spec", "inputs", "outputs", "offsets", "rank", "expected"),
    [
        (c.allreduce(N, C), [2, 2, 2], [2, 2, 2], [(0, 0)] * 3, 1, [{(q, k) for q in ALL} for k in (0, 1)]),
        (c.allgather(N, C), [2, 2, 2], [6, 6, 6], [(0, 0), (2, 0), (4, 0)], 1,
         [{(q, k)} for q in range(N) for k in (0, 1)]),
        (c.reducescatter(N, C), [6, 6, 6], [2, 2, 2], [(0, 0), (0, 2), (0, 4)], 1,
         [{(q, 2 + k) for q in ALL} for k in (0, 1)]),
        (c.alltoall(N, C), [6, 6, 6], [6, 6, 6], [(0, 0)] * 3, 2, [{(q, 4 + k)} for q in range(N) for k in (0, 1)]),
        (c.alltoallv(N, C), [6, 6, 6], [6, 6, 6], [(0, 0)] * 3, 0, [{(q, k)} for q in range(N) for k in (0, 1)]),
        (c.broadcast(N, C, 1), [0, 2, 0], [2, 2, 2], [(0, 0)] * 3, 2, [{(1, 0)}, {(1, 1)}]),
        (c.reduce(N, C, 2), [2, 2, 2], [0, 0, 2], [(0, 0)] * 3, 2, [{(q, k) for q in ALL} for k in (0, 1)]),
        (c.gather(N, C, 1), [2, 2, 2], [0, 6, 0], [(0, 0), (2, 0), (0, 0)], 1,
         [{(q, k)} for q in range(N) for k in (0, 1)]),
        (c.scatter(N, C, 1), [0, 6, 0], [2, 2, 2], [(0, 0), (0, 2), (0, 0)], 2, [{(1, 4)}, {(1, 5)}]),
        (c.sendrecv(N, C), [2, 2, 2], [2, 2, 2], [(0, 0)] * 3, 0, [{(2, 0)}, {(2, 1)}]),
        (c.alltonext(N, C), [2, 2, 2], [2, 2, 2], [(0, 0)] * 3, 1, [{(0, 0)}, {(0, 1)}]),
        (c.alltonext(N, C), [2, 2, 2], [2, 2, 2], [(0, 0)] * 3, 0, [None, None]),
    ],
)  # fmt: skip
def test_definitions(spec, inputs, outputs, offsets, rank, expected):
    assert [spec.input_chunks(r) for r in range(N)] == inputs
    assert [spec.output_chunks(r) for r in range(N)] == outputs
    assert [spec.in_place_offsets(r) for r in range(N)] == offsets
    assert want(spec, rank) == expected


@pytest.mark.parametrize("name", COLLECTIVES)
def test_refining_cuts_every_chunk(name):
    coarse = collective(name, N, 2)
    fine = coarse.refine(3)
    for rank in range(N):
        assert fine.output_chunks(rank) == 3 * coarse.output_chunks(rank)
        for index in range(fine.output_chunks(rank)):
            parent = coarse.expected(rank, index // 3)
            child = None if parent is None else {(r, 3 * k + index % 3) for r, k in parent}
            assert fine.expected(rank, index) == child


def test_reducing_and_rooted_ones():
    assert {name for name in COLLECTIVES if collective(name, 2).reduces} == {"allreduce", "reducescatter", "reduce"}
    assert {"broadcast", "reduce", "gather", "scatter"} == ROOTED


def test_custom():
    spec = custom("swap", [1, 1], [1, 2], {(0, 0): [(1, 0)], (1, 1): [(0, 0), (1, 0)]}, [(0, 0), (0, 0)])
    assert want(spec, 0) == [{(1, 0)}]
    assert want(spec, 1) == [None, {(0, 0), (1, 0)}]
    assert spec.reduces
    assert spec.can_be_in_place
    assert not custom("apart", [1], [1], {}).can_be_in_place


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: collective("allsum", 2), "no collective is called 'allsum'; there are allreduce"),
        (lambda: c.allreduce(0), "1 to 65536 ranks, not 0"),
        (lambda: c.allreduce(2.5), "ranks is a whole number"),
        (lambda: c.allreduce(2, "a"), "chunks is a whole number"),
        (lambda: c.allreduce(2, 0), "at least one chunk"),
        (lambda: c.broadcast(2, 1, 2), "root 2 is not one of the 2 ranks"),
        (lambda: Collective("allreduce", 2, 1, 0), "takes no root"),
        (lambda: Collective("broadcast", 2, 1), "takes a root"),
        (lambda: Collective("mine", 3, 1, None, Custom((1,), (1,), ((None,),))), "conditions for 1 ranks, not 3"),
        (lambda: custom("allreduce", [1], [1], {}), "is a standard collective"),
        (lambda: custom("m", [1], [1, 1], {}), "one entry per rank"),
        (lambda: custom("m", [-1], [1], {}), "cannot be negative"),
        (lambda: custom("m", [1], [1], {(0, 1): []}), "no output chunk 1 on rank 0"),
        (lambda: custom("m", [1], [1], {(0, 0): [(0, 1)]}), "wants input chunk 1 of rank 0, which does not exist"),
        (lambda: custom("m", [2, 2], [2, 2], {}, [(0, 0), (-2, -2)]), "of rank 1 cannot begin at -2 and -2"),
        (lambda: custom("m", [2], [2], {}, [(3, 0)]), "of rank 0 cannot begin at 3 and 0"),
        (lambda: custom("m", [1], [1], {}).in_place_offsets(0), "no in-place form"),
        (lambda: reduction("mean"), "no reduction is called 'mean'; there are sum, prod"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(SpecError, match=message):
        build()


def test_reductions():
    assert list(REDUCTIONS) == ["sum", "prod", "min", "max", "avg", "band", "bor", "bxor", "premul_sum"]
    assert [r.name for r in REDUCTIONS.values() if r.linear] == ["sum", "avg", "premul_sum"]
    assert all(r.elementwise and r.associative and r.commutative for r in REDUCTIONS.values())
    assert (reduction("avg").combine, reduction("avg").finish) == ("sum", "divide")
    assert (reduction("premul_sum").combine, reduction("premul_sum").prepare) == ("sum", "scale")
    assert not reduction("band").supports(DtypeKind.FLOAT)
    assert not reduction("max").supports(DtypeKind.COMPLEX)

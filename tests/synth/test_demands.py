"""Matrices, several roots and files of collectives become algorithms like all others."""

import json

import pytest

from commlib.errors import CommlibError, FormatError, SpecError
from commlib.topology import named
from commlib.verify import verify
from synth import Budget, question, solve
from synth.demands import matrix_demand, multi_root, named_or_read, read_demand


def test_a_matrix_places_chunks_in_order():
    found = matrix_demand([[0, 2, 1], [1, 0, 0], [0, 1, 1]])
    assert [found.input_chunks(rank) for rank in range(3)] == [3, 1, 2]
    assert [found.output_chunks(rank) for rank in range(3)] == [1, 3, 2]
    assert [found.expected(1, k) for k in range(3)] == [{(0, 0)}, {(0, 1)}, {(2, 0)}]


@pytest.mark.parametrize("mode", ["auto", "taccl", "exact", "bandwidth"])
@pytest.mark.parametrize(
    "wanted", [matrix_demand([[0, 2, 1, 0], [1, 0, 0, 3], [0, 1, 1, 0], [2, 0, 0, 0]]), multi_root(4, [0, 3])]
)
def test_demands_of_ones_own_are_solved_and_proved(wanted, mode):
    result = solve(question(named("ring:4"), wanted), mode, Budget(seconds=10))
    report = verify(result.algorithm)
    assert report.proved >= result.algorithm.placements
    assert result.proven


def test_several_roots_share_the_links():
    result = solve(question(named("ring:4"), multi_root(4, [0, 2])))
    assert (result.proven, result.time_profile) == (True, pytest.approx(20))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "as many columns as rows"),
        ([[0, 1]], "as many columns as rows"),
        ([[0, -1], [0, 0]], "row 0: from rank 0 to 1 go 0 chunks or more, not -1"),
        ([[0, True], [0, 0]], "0 chunks or more, not True"),
        ([[0, 0], [0, 0]], "asks for 0 chunks"),
        ([[0, 1 << 30], [0, 0]], "and 1 to 1048576 are possible"),
    ],
)
def test_wrong_matrices_are_refused(matrix, message):
    with pytest.raises(SpecError, match=message):
        matrix_demand(matrix)


@pytest.mark.parametrize("roots", [[], [1, 1], [4], [-1]])
def test_wrong_roots_are_refused(roots):
    with pytest.raises(SpecError, match=r"root"):
        multi_root(4, roots)


@pytest.mark.parametrize(
    ("content", "outputs"),
    [
        ([[0, 1], [2, 0]], [2, 1]),
        ({"roots": [1]}, [1, 1]),
        ({"name": "broadcast", "ranks": 2, "chunks": 2, "root": 1}, [2, 2]),
    ],
)
def test_files(tmp_path, content, outputs):
    path = tmp_path / "wanted.json"
    path.write_text(json.dumps(content))
    found = named_or_read(str(path), 2)
    assert [found.output_chunks(rank) for rank in range(2)] == outputs
    ranks = 1 if isinstance(content, dict) and "roots" in content else 3
    with pytest.raises(FormatError, match=r"wanted\.json: (is for 2 ranks|.*root 1 is not one of the 1)") as error:
        read_demand(path, ranks)
    assert "wanted.json" in str(error.value.fields["file"])


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", '"x"', "[1]", "[[]]", '{"roots": "x"}', '{"roots": [9]}', '{"roots": [0], "x": 1}', "[[1e99]]"],
)
def test_files_that_are_no_demand_name_themselves(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(CommlibError, match=r"wrong\.json"):
        read_demand(path, 2)


def test_names_stay_names():
    assert named_or_read("allgather", 4) == "allgather"

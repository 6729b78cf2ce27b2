"""Sketches are read strictly, kept without loss, and refused with file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import synth
from commlib.errors import FormatError, LimitError
from synth.errors import SketchError
from synth.sketch import MAX_BYTES, Internode, Intranode, Level, Sketch, parse_sketch, read_sketch, sketch_json

SHARED = Path(synth.__file__).resolve().parents[2] / "shared" / "data" / "taccl" / "sketches"
FULL = {
    "nnodes": 4,
    "intranode_sketch": {
        "strategy": "switch",
        "switches": [[0, 1], [2, 3]],
        "switch_hyperedge_strategy": ["uc-min", "uc-max"],
    },
    "internode_sketch": {
        "strategy": "relay",
        "internode_conn": {"1": [0], "3": [2]},
        "gpus_to_sender_rev_map": {"1": [0, 1], "3": [2, 3]},
        "enforce_ordering": True,
    },
    "hierarchy": [
        {"group": 2, "strategy": "relay"},
        {"group": 4, "strategy": "ring", "internode_conn": "direct-map"},
    ],
    "symmetry_offsets": [[2, 4], [4, 16]],
    "hyperparameters": {"input_chunkup": 2},
}


def changed(path: str, value: object) -> str:
    """FULL with one place changed; a value of ... deletes it."""
    sketch = json.loads(json.dumps(FULL))
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = sketch
    for key in above:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(sketch)


def test_every_key_is_read():
    sketch = parse_sketch(json.dumps(FULL))
    assert sketch == Sketch(
        nodes=4,
        intranode=Intranode("switch", ((0, 1), (2, 3)), ("uc-min", "uc-max")),
        internode=Internode("relay", {1: (0,), 3: (2,)}, {1: (0, 1), 3: (2, 3)}, True),
        hierarchy=(Level(2, "relay"), Level(4, "ring", "direct-map")),
        symmetry=((2, 4), (4, 16)),
        chunkup=2,
    )


def test_writing_and_reading_again_gives_the_same():
    sketch = parse_sketch(json.dumps(FULL))
    assert sketch_json(sketch) == FULL
    assert parse_sketch(json.dumps(sketch_json(sketch))) == sketch


def test_all_but_the_number_of_nodes_has_a_default():
    sketch = parse_sketch('{"nnodes": 1}')
    assert sketch == Sketch(1)
    assert parse_sketch(json.dumps(sketch_json(sketch))) == sketch


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("nnodes", ..., "key 'nnodes' is missing"),
        ("nnodes", 0, "nnodes: must be an integer from 1"),
        ("nnodes", True, "nnodes: must be an integer from 1"),
        ("nnodes", 5000, "nnodes: 5000 is more than the 4096"),
        ("surprise", 1, "key 'surprise' is unknown"),
        ("intranode_sketch", [], "intranode_sketch must be an object"),
        ("intranode_sketch.strategy", "magic", "intranode_sketch.strategy: 'magic' is none of switch, minmax"),
        ("intranode_sketch.strategy", "none", "strategy 'none' takes no switches"),
        ("intranode_sketch.switches", [[0]], r"switches\[0\]: a switch joins two GPUs"),
        ("intranode_sketch.switches", [[0, 1], [1, 2]], r"switches\[1\]: GPU 1 is also in switches\[0\]"),
        ("intranode_sketch.switches", [[0, 0], [1, 2]], r"switches\[0\]: GPU 0 is there twice"),
        ("intranode_sketch.switch_hyperedge_strategy", ["uc-min"], "1 words for 2 switches"),
        ("intranode_sketch.switch_hyperedge_strategy", ["uc-min", "uc-mid"], "must hold only none, uc-max, uc-min"),
        ("internode_sketch.strategy", "ring", "'ring' is none of relay, none"),
        ("internode_sketch.internode_conn", "everything", "'everything' is none of fully-connected, direct-map"),
        ("internode_sketch.internode_conn", {"-1": [0]}, "'-1' is no GPU"),
        ("internode_sketch.internode_conn", {"01": [0]}, "'01' is no GPU"),
        ("internode_sketch.internode_conn", {"1": 0}, r'internode_conn\["1"\]: must be a list'),
        ("internode_sketch.internode_conn", {"1": []}, r'internode_conn\["1"\]: lists no GPU'),
        ("internode_sketch.internode_conn", {"1": [1.0]}, "holds GPUs from 0 to 1023 only, not 1.0"),
        ("internode_sketch.gpus_to_sender_rev_map", {"1": [2, 2]}, "GPU 2 is there twice"),
        ("internode_sketch.enforce_ordering", 1, "enforce_ordering: must be true or false"),
        ("hierarchy.0.group", 3, r"hierarchy\[0\].group: 3 nodes are no multiple"),
        ("hierarchy.1.group", 2, r"hierarchy\[1\].group: 2 nodes are no multiple"),
        ("hierarchy.1", ..., "its last level has groups of 2 nodes, and must have all 4"),
        ("hierarchy.0.strategy", "tree", r"hierarchy\[0\].strategy: 'tree' is none of"),
        ("symmetry_offsets", [[2]], r"symmetry_offsets\[0\]: must be two integers"),
        ("symmetry_offsets", [[2, 2]], r"symmetry_offsets\[0\]: the offset is from 1 to below the group's size"),
        ("symmetry_offsets", [[1, 2]] * 65, "65 pairs are more than the 64"),
        ("hyperparameters.input_chunkup", 0, "input_chunkup: must be an integer from 1"),
        ("hyperparameters.input_chunkup", 1 << 20, "is more than the 1024"),
    ],
)
def test_what_is_refused_has_file_and_key(path, value, message):
    with pytest.raises((FormatError, SketchError), match=message) as caught:
        parse_sketch(changed(path, value), "mine.json")
    assert str(caught.value).startswith("mine.json:")
    assert caught.value.fields["file"] == "mine.json"
    assert "key" in caught.value.fields


def test_relays_need_connections_unless_every_level_may_have_its_own():
    text = json.dumps({"nnodes": 2, "internode_sketch": {"strategy": "relay"}})
    with pytest.raises(SketchError, match=r"internode_sketch\.internode_conn: is missing"):
        parse_sketch(text)
    assert parse_sketch(changed("internode_sketch.internode_conn", ...)).internode.conn is None


def test_recursive_doubling_takes_a_power_of_two():
    levels = [{"group": 6, "strategy": "recursive-doubling"}]
    with pytest.raises(SketchError, match="power of two of units, not 6"):
        parse_sketch(json.dumps({"nnodes": 6, "hierarchy": levels}))


def test_bad_files(tmp_path):
    path = tmp_path / "sketch.json"
    with pytest.raises(FormatError, match="cannot be read"):
        read_sketch(path)
    path.write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        read_sketch(path)
    path.write_text(" " * (MAX_BYTES + 1))
    with pytest.raises(LimitError):
        read_sketch(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="TACCL's sketches are not at hand")
def test_taccls_own_sketches_come_back_as_they_are():
    files = sorted(SHARED.glob("*.json"))
    assert len(files) >= 6
    for path in files:
        sketch = read_sketch(path)
        assert sketch_json(sketch) == json.loads(path.read_text())
        assert parse_sketch(json.dumps(sketch_json(sketch))) == sketch

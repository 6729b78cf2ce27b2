"""TACCL's profiles: units, exact and integer costs, custom matrices, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from topology_files import CUSTOM, TACCL

import commlib
from commlib.errors import FormatError, TopologyError
from commlib.topology import Profile, load_topology, machine, named, read_profile

SHARED = Path(commlib.__file__).resolve().parents[2] / "shared" / "data" / "taccl" / "topologies"
NAMES = ["ndv2-1KB", "ndv2-32KB", "ndv2-1MB", "dgx2-1KB", "dgx2-1MB"]


def times(topology, *pairs):
    unit = topology.unit
    links = [topology.links[pair] for pair in pairs]
    return [round(time(unit.chunk_bytes) / unit.seconds, 9) for link in links for time in (link.latency, link.busy)]


@pytest.fixture
def profile_file(tmp_path):
    def write(**changes):
        path = tmp_path / "profile.json"
        values = {**json.loads(TACCL), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    return write


def test_a_profile_prices_a_machine(profile_file):
    remote = {"remote_alpha": 26, "remote_beta": 32.8}
    lists = {"node_betas_list": [7.18, 14.38], "node_invbws_list": [10.18, 17.38]}
    profile = read_profile(profile_file(name="x_32KB", alpha=3, **lists, **remote))
    assert (profile.unit.name, profile.unit.seconds, profile.unit.chunk_bytes) == ("us/10", 1e-7, 32768)
    pairs = (0, 1), (0, 2), (0, 8)
    assert times(named("ndv2", 2, profile), *pairs) == [10.18, 10.18, 17.38, 17.38, 58.8, 32.8]
    assert times(named("ndv2", 2, profile, "taccl"), *pairs) == [10, 10, 17, 17, 58, 32]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("NDv2_1KB", ("us/100", 1e-8, 1024)),
        ("a_32kb", ("us/10", 1e-7, 32768)),
        ("a_1MB", ("us", 1e-6, 1 << 20)),
        ("a", ("us", 1e-6, 1 << 20)),
        ("a_64KB", ("us", 1e-6, 65536)),
        ("a_512B", ("us", 1e-6, 512)),
        ("32KBx", ("us", 1e-6, 1 << 20)),
    ],
)
def test_the_size_in_the_name(profile_file, name, unit):
    made = read_profile(profile_file(name=name)).unit
    assert (made.name, made.seconds, made.chunk_bytes) == (unit[0], pytest.approx(unit[1]), unit[2])


@pytest.mark.skipif(not SHARED.exists(), reason="the files of TACCL are not at hand")
@pytest.mark.parametrize("name", NAMES)
def test_the_original_files(name):
    path = SHARED / f"topo-{name}.json"
    values, profile = json.loads(path.read_text()), read_profile(path)
    kind = name.split("-")[0]
    exact, taccl = named(kind, 2, profile), named(kind, 2, profile, "taccl")
    remote = (0, machine(kind).ranks)
    assert times(exact, (0, 1), remote) == [
        *[round(values["alpha"] + values["node_betas_list"][0], 9)] * 2,
        round(values["remote_alpha"] + values["remote_beta"], 9),
        round(values["remote_beta"], 9),
    ]
    fast, beta = int(values["node_invbws_list"][0]), int(values["remote_beta"])
    assert times(taccl, (0, 1), remote) == [fast, fast, round(values["remote_alpha"]) + beta, beta]
    assert load_topology(path, 2) == exact


def test_custom_matrices_are_destination_by_source(tmp_path):
    path = tmp_path / "custom.json"
    path.write_text(CUSTOM)
    made = load_topology(path)
    assert sorted(made.links) == [(0, 1), (0, 2), (1, 0), (2, 1)]
    assert times(made, (0, 1), (0, 2), (1, 0), (2, 1)) == [7.5, 7.5, 9, 9, 6, 6, 8, 8]
    assert times(load_topology(path, cost="taccl"), (0, 1)) == [7, 7]
    two = load_topology(path, 2)
    assert (two.ranks, len(two.resources), two.nodes) == (6, 4, 2)
    assert times(two, (0, 3)) == [20, 17.4]


def test_the_profiles_nics_win(profile_file):
    two = named("ndv2", 2, read_profile(profile_file(nics_per_node=4)))
    assert two.links[3, 10].resources == ("node 0 nic 1 out", "node 1 nic 1 in")
    assert (2, 13) not in two.links


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "key 'name' is missing"),
        ({"gpus_per_node": None}, "key 'gpus_per_node' is missing"),
        ({"alpha": None}, "key 'alpha' is missing"),
        ({"node_betas_list": None}, "key 'node_betas_list' is missing"),
        ({"remote_beta": None}, "key 'remote_beta' is missing"),
        ({"remote_gamma": 1}, "key 'remote_gamma' is unknown"),
        ({"gpus_per_node": 0}, "gpus_per_node: must be an integer from 1"),
        ({"gpus_per_node": 8.0}, "gpus_per_node: must be an integer"),
        ({"gpus_per_node": 10**6}, "gpus_per_node: must be at most 4096"),
        ({"alpha": -1}, "alpha: must be a finite number"),
        ({"alpha": "1"}, "alpha: must be a finite number"),
        ({"alpha": True}, "alpha: must be a finite number"),
        ({"remote_alpha": 10**400}, "remote_alpha: must be a finite number"),
        ({"node_betas_list": [23, -46]}, "node_betas_list: must hold finite"),
        ({"node_betas_list": 23}, "node_betas_list: must be a list"),
        ({"node_betas_list": [], "node_invbws_list": []}, "node_betas_list: is empty"),
        ({"node_betas_list": [1]}, "node_invbws_list: has 2 entries, node_betas_list 1"),
        ({"links": [[0]]}, "is missing|is unknown"),
    ],
)
def test_refusals_of_profiles(profile_file, changes, message):
    path = profile_file(**changes)
    with pytest.raises(FormatError, match=message) as caught:
        read_profile(path)
    assert caught.value.fields["file"] == str(path)


def test_not_numbers_are_refused(tmp_path):
    path = tmp_path / "nan.json"
    path.write_text(TACCL.replace("0.3", "NaN"))
    with pytest.raises(FormatError, match="NaN is not a JSON number"):
        read_profile(path)
    with pytest.raises(TopologyError, match="times are 0 or more"):
        Profile("p", 2, 1, float("nan"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("links", [[0, 1], [1, 0]], "matrix of 3 x 3"),
        ("links", [[1, 1, 0], [1, 0, 1], [1, 0, 0]], "links GPU 0 to itself"),
        ("betas", [[0, 5, 0], [6, 0], [8, 0, 0]], "matrix of 3 x 3"),
        ("invbws", [[0, 6, 0], [7, 0, -8], [9, 0, 0]], "row 1 must hold"),
    ],
)
def test_refusals_of_matrices(tmp_path, key, value, message):
    path = tmp_path / "custom.json"
    path.write_text(json.dumps({**json.loads(CUSTOM), key: value}))
    with pytest.raises(FormatError, match=message):
        load_topology(path)


def test_a_machine_file_must_fit_its_machine(profile_file):
    with pytest.raises(FormatError, match=r"gpus_per_node is 4, but ndv2 has 8.*begins with a machine's"):
        load_topology(profile_file(gpus_per_node=4))
    with pytest.raises(FormatError, match="no known topology"):
        load_topology(profile_file(name="mine_1MB"))


def test_without_remote_costs_there_is_one_node(profile_file):
    path = profile_file(nics_per_node=None, remote_alpha=None, remote_beta=None, remote_invbw=None)
    assert load_topology(path).ranks == 8
    with pytest.raises(TopologyError, match="nothing is known of its NICs"):
        load_topology(path, 2)

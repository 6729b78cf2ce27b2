"""User algorithms: found in files and folders, proved before they are chosen, refused with a reason, seen when new."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commlib.algorithms import build
from commlib.collectives import Placement
from commlib.dsl import OneSidedProgram
from commlib.errors import FormatError, SpecError, VerificationError
from commlib.formats import save
from commlib.ir.algorithm import Algorithm
from commlib.runtime.registry import Query, Range
from commlib.runtime.user_algorithms import UserAlgorithm, UserAlgorithms, load_user_algorithm

CALL = Query("allreduce", 3, 4096, Placement.IN)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MSCCL_XML_FILES", "COMMLIB_ALGO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MSCCL_ALGO_DIR", str(tmp_path / "algos"))
    (tmp_path / "algos").mkdir()
    return tmp_path / "algos"


def wrong() -> Algorithm:
    """An allreduce that only copies."""
    k = OneSidedProgram("wrong", build("allreduce", "staged", 3).collective)
    for rank in range(3):
        k.threadblock(rank).copy(k.input(rank)[0:3], k.output(rank)[0:3])
    return k.algorithm()


def names(users: UserAlgorithms, query: Query = CALL, root: int | None = None) -> list[str]:
    return [user.algorithm.name for user in users.candidates(query, root)]


def test_new_changed_and_lost_files_are_seen(folder: Path) -> None:
    users = UserAlgorithms()
    users.refresh()
    assert (users.active, names(users)) == (True, [])
    nothing = users.digest
    save(build("allreduce", "ring", 3), folder / "b.xml")
    assert users.refresh()
    assert not users.refresh()
    ring = users.digest
    save(build("allreduce", "staged", 3), folder / "a.json")
    save(build("allreduce", "ring", 4), folder / "c.txt")
    (folder / "notes.md").write_text("not an algorithm")
    assert users.refresh()
    assert names(users) == ["staged_allreduce", "ring_allreduce"]
    save(build("allreduce", "allpairs", 3), folder / "a.json")
    assert users.refresh()
    assert names(users) == ["allpairs_allreduce", "ring_allreduce"]
    for name in ("a.json", "c.txt"):
        (folder / name).unlink()
    assert users.refresh()
    assert (names(users), users.digest) == (["ring_allreduce"], ring)
    (folder / "b.xml").unlink()
    assert users.refresh()
    assert users.digest == nothing


def test_lists_come_before_folders_and_files_count_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(build("allreduce", "allpairs", 3), folder / "a.xml")
    save(build("allreduce", "ring", 3), tmp_path / "z.xml")
    monkeypatch.setenv("MSCCL_XML_FILES", f"{tmp_path / 'z.xml'}{os.pathsep}{folder / 'a.xml'}{os.pathsep}")
    monkeypatch.setenv("COMMLIB_ALGO_DIR", str(tmp_path / "none"))
    users = UserAlgorithms()
    users.refresh()
    users.refresh()
    assert names(users) == ["ring_allreduce", "allpairs_allreduce"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"COMMLIB_ALGO_DIR={tmp_path / 'none'} cannot be read: ")
    monkeypatch.delenv("MSCCL_XML_FILES")
    monkeypatch.delenv("MSCCL_ALGO_DIR")
    monkeypatch.delenv("COMMLIB_ALGO_DIR")
    users.refresh()
    assert (users.active, list(users)) == (False, [])


def test_size_bounds_of_xml_are_obeyed(folder: Path) -> None:
    save(build("allreduce", "ring", 3), folder / "a.xml", min_bytes=1024, max_bytes=8192, dialect="executor")
    save(build("allreduce", "allpairs", 3), folder / "b.xml", min_bytes=4096, max_bytes=0, dialect="executor")
    users = UserAlgorithms()
    users.refresh()
    found = {size: names(users, Query("allreduce", 3, size, Placement.IN)) for size in (1023, 1024, 4096, 8193)}
    assert found == {
        1023: [],
        1024: ["ring_allreduce"],
        4096: ["ring_allreduce", "allpairs_allreduce"],
        8193: ["allpairs_allreduce"],
    }


def test_what_is_wrong_is_refused_once_with_a_reason(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(wrong(), folder / "a.json")
    (folder / "b.xml").write_text("<algo")
    save(build("allreduce", "ring", 3), folder / "c.xml")
    text = (folder / "c.xml").read_text()
    (folder / "d.xml").write_text(text.replace('coll="allreduce"', 'coll="custom"'))
    users = UserAlgorithms()
    users.refresh()
    for _ in range(2):
        assert names(users) == ["ring_allreduce"]
    kinds = {Path(name).name: type(error) for name, error in users.refused.items()}
    assert kinds == {"a.json": VerificationError, "b.xml": FormatError, "d.xml": FormatError}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert all("is refused: " in message for message in messages)
    assert "d.xml: ring_allreduce does not say what its result is to be" in caplog.text
    save(build("allreduce", "staged", 3), folder / "a.json")
    users.refresh()
    assert names(users) == ["staged_allreduce", "ring_allreduce"]
    assert "a.json" not in map(os.path.basename, users.refused)


def test_an_xml_of_a_rooted_collective_is_for_the_root_that_it_is_proved_for(folder: Path) -> None:
    save(build("broadcast", "binomial", 4, 2), folder / "a.xml")
    users = UserAlgorithms()
    users.refresh()
    query = Query("broadcast", 4, 100, Placement.IN)
    assert [bool(names(users, query, root)) for root in range(4)] == [False, False, True, False]


def test_python_comes_first_the_latest_in_front(folder: Path) -> None:
    save(build("allreduce", "ring", 3), folder / "a.xml")
    users = UserAlgorithms()
    users.refresh()
    users.add(UserAlgorithm(build("allreduce", "allpairs", 3), "Python"))
    users.add(UserAlgorithm(build("allreduce", "staged", 3), "Python", Range(0, 4096)))
    users.add(UserAlgorithm(build("allreduce", "one_shot", 3), "Python", placement=Placement.OUT))
    assert names(users) == ["staged_allreduce", "allpairs_allreduce", "ring_allreduce"]
    assert users.remove("staged_allreduce")
    assert not users.remove("staged_allreduce")
    assert names(users) == ["allpairs_allreduce", "ring_allreduce"]


def test_registered_narrows_it_down() -> None:
    user = UserAlgorithm(build("allreduce", "shared", 3), "Python", registered=True)
    assert not user.fits(CALL, None)
    assert user.fits(Query("allreduce", 3, 1, Placement.IN, registered=True), None)


def test_python_gets_the_errors_themselves(tmp_path: Path) -> None:
    users = UserAlgorithms()
    with pytest.raises(VerificationError, match="wrong"):
        users.add(UserAlgorithm(wrong(), "Python"))
    with pytest.raises(FormatError, match="cannot be read"):
        load_user_algorithm(tmp_path / "none.xml")
    shared = build("alltoall", "shared", 3)
    with pytest.raises(VerificationError):
        users.add(UserAlgorithm(shared, "Python", placement=Placement.IN))
    users.add(UserAlgorithm(shared, "Python"))
    (user,) = users
    user.require(Placement.OUT)
    with pytest.raises((VerificationError, SpecError)):
        user.require(Placement.IN)


def test_equal_algorithms_for_equal_calls_have_equal_digests(folder: Path) -> None:
    save(build("allreduce", "ring", 3), folder / "a.json")
    (user,) = load_user_algorithm(folder / "a.json")
    assert user.digest == UserAlgorithm(build("allreduce", "ring", 3), "Python").digest
    others = [
        UserAlgorithm(build("allreduce", "ring", 3), "x", Range(1)),
        UserAlgorithm(build("allreduce", "ring", 3), "x", placement=Placement.IN),
        UserAlgorithm(build("allreduce", "ring", 4), "x"),
        UserAlgorithm(build("allreduce", "staged", 3), "x"),
    ]
    assert len({user.digest, *(other.digest for other in others)}) == 5

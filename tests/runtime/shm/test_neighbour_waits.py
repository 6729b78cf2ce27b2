"""A rank of the engine waits for words to change: one that changes while it is looked at counts as changed."""

from types import SimpleNamespace

import pytest

from commlib.collectives import Buffer
from commlib.runtime.shm.control import AFTER_BOARD
from commlib.runtime.shm.endpoint import Exposed, NeighbourEndpoint
from commlib.runtime.shm.reach import Reach
from commlib.runtime.wire import Call

CALL = Call(7, b"12345678", "a call")


class Late:
    """The words of a rank that comes to the call just after it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def __getitem__(self, _word: int) -> int:
        self.looks -= 1
        return CALL.number - 1 if self.looks >= 0 else CALL.number


@pytest.mark.parametrize("looks", range(6))
def test_a_rank_that_arrives_between_two_looks_is_not_waited_for(looks: int) -> None:
    controls = [memoryview(bytearray(AFTER_BOARD)) for _ in range(2)]
    reach = Reach(0, controls, [1, 1])
    Reach(1, controls, [1, 1]).arrive(CALL, [0, 0])
    peers_words = Late(looks)
    reach.words = lambda rank: peers_words if rank == 1 else memoryview(controls[rank]).cast("Q")
    host = SimpleNamespace(rank=0, peers=(1,), index={0: 0, 1: 1}, reach=reach, ring=lambda _: None, words=[[], []])
    areas = {Buffer.SCRATCH: (0, 0)}
    near = NeighbourEndpoint(host, CALL, Exposed((areas, areas)), lambda cause: AssertionError(cause))

    def wait(_waits: list) -> None:
        assert any(near.changed() for _ in range(10)), "the rank waits for a word that has changed already"

    near.meet(wait)
    assert peers_words.looks < 0

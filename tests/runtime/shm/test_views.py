"""The words of control areas, read and written: failures whole or not at all, peers as bits."""

from __future__ import annotations

from shm_areas import Areas

from commlib.runtime.cause import Cause
from commlib.runtime.shm.control import AFTER_BOARD, FAILURE, FAILURE_BYTES, STALL
from commlib.runtime.shm.views import KINDS, read_view, write_failure, write_stall


def test_a_failure_is_read_as_it_was_written_and_a_torn_one_is_none() -> None:
    control = memoryview(bytearray(AFTER_BOARD))
    assert read_view(control).failure is None
    for kind in KINDS[1:]:
        assert kind is not None
        write_failure(control, Cause(kind, 3, "räumt auf", 2), 9)
        view = read_view(control)
        assert view.failure is not None
        assert (view.state, view.failure.call, view.failure.cause) == ("failed", 9, Cause(kind, 3, "räumt auf", 2))
    control[FAILURE + 24] ^= 1
    assert read_view(control).failure is None


def test_a_long_text_stays_in_its_words() -> None:
    control = memoryview(bytearray(AFTER_BOARD))
    write_stall(control, 77, (1, 446))
    write_failure(control, Cause("gone", 1, "x" * 5000, 0), 1)
    view = read_view(control)
    assert view.failure is not None
    assert view.failure.cause.text == "x" * (FAILURE_BYTES - 25)
    assert (view.stalled_at, view.stalled_on) == (77, (1, 446))
    assert not any(control[STALL + 64 :])


def test_peers_that_have_no_bit_are_left_out() -> None:
    control = memoryview(bytearray(AFTER_BOARD))
    write_stall(control, 5, (447, 3, -1))
    assert (read_view(control).stalled_on, read_view(control).outside) == ((3,), False)
    write_stall(control, 5, (3,), outside=True)
    assert (read_view(control).stalled_on, read_view(control).outside) == ((3,), True)


def test_the_words_are_where_the_layout_says() -> None:
    areas = Areas(2)
    areas.enter(1, 7)
    areas.wait(1, 7, 0)
    view = read_view(areas.controls[1])
    assert (view.pid, view.start, view.entered) == (101, 7001, 7)
    assert (view.where.call, view.where.peer, view.where.step, view.where.channel) == (7, 0, 3, 1)
    said = view.said(7)
    assert said is not None
    assert (said.text, said.fingerprint) == ("allreduce ring", 11)
    assert view.said(3) is None

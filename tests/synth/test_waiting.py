"""The queue of list scheduling: what starts when is what looking at everything, always, would start."""

from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from synth.waiting import Queue

JOBS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(-3, 3),
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=3, unique_by=lambda use: use[0]),
    ),
    max_size=12,
)


def plainly(jobs) -> list[tuple[int, int]]:
    """Every job that waits is looked at whenever it might start."""
    free: dict[int, int] = {}
    queue = [(at, rank, job) for job, (at, rank, _) in enumerate(jobs)]
    heapq.heapify(queue)
    started = []
    while queue:
        at, rank, job = heapq.heappop(queue)
        possible = max([at, *(free.get(slot, 0) for slot, _ in jobs[job][2])])
        if possible > at:
            heapq.heappush(queue, (possible, rank, job))
            continue
        free.update((slot, at + ticks) for slot, ticks in jobs[job][2])
        started.append((at, job))
    return started


@settings(deadline=None, max_examples=200)
@given(JOBS)
def test_the_order_is_that_of_looking_at_everything(jobs):
    queue = Queue([uses for _, _, uses in jobs])
    for job, (at, rank, _) in enumerate(jobs):
        queue.push(at, rank, job)
    assert list(iter(queue.pop, None)) == plainly(jobs)


def test_a_job_that_is_pushed_later_goes_before_one_that_waits_if_it_has_priority():
    queue = Queue([[(0, 5)], [(0, 5)], [(0, 5)]])
    queue.push(0, 0.0, 0)
    queue.push(0, 2.0, 1)
    assert queue.pop() == (0, 0)
    queue.push(3, 1.0, 2)
    assert [queue.pop(), queue.pop(), queue.pop()] == [(5, 2), (10, 1), None]

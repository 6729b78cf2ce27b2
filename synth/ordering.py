"""Stage 2 of TACCL: ordering. In which order does each link, port and NIC serve the transfers of given routes?

Greedy, longest remaining time first, then earliest slot (``list_schedule``); then what the sketch says of order.
"""

from __future__ import annotations

from synth.engine import Budget
from synth.listing import list_schedule
from synth.problem import Problem
from synth.routing import Routes
from synth.schedule import Transfer


def order_routes(problem: Problem, routes: Routes, bound: int, budget: Budget, tries: int = 8) -> tuple[Transfer, ...]:
    """A plan of given routes that keeps ``own_first``. O(tries x transfers x log transfers).

    Raises:
        ScheduleError: a route is not a tree that starts at its item's origin.
    """
    return list_schedule(problem, routes, bound, tries, budget)

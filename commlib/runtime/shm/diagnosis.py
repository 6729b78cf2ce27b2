"""Why a rank makes no progress, found in the words of all ranks' control areas: a pure function.

A stuck rank first compares the boards: whoever makes another call under the same number is at fault. Then it follows
who waits for whom (rank 2 for 1, 1 for 0) to ranks that will never go on: processes that have ended or are stopped,
ranks that have failed or closed their session. When time is up, ranks that have not come are to blame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from commlib.runtime.cause import Cause, CauseKind, differing
from commlib.runtime.liveness import Condition
from commlib.runtime.shm.views import Failure, Said, View

_ORDER: tuple[CauseKind, ...] = ("gone", "failed", "mismatch", "stopped", "absent", "deadline")
"""Which of several causes is the root: the most certain one."""


@dataclass(frozen=True)
class Situation:
    """Of the rank that asks: its call (None: it sends or receives outside of calls), the ranks it waits for, and the
    calls before, oldest first, in which it may not have met a rank that made another."""

    rank: int
    call: Said | None
    waits_for: tuple[int, ...]
    before: tuple[Said, ...] = ()

    def calls(self) -> tuple[Said, ...]:
        """All its calls that may differ from those of others, oldest first."""
        return self.before if self.call is None else (*self.before, self.call)


@dataclass(frozen=True)
class Sight:
    """A rank's words, and what has become of its process."""

    view: View
    condition: Condition = "lives"


@dataclass(frozen=True)
class Patience:
    """``stopped``: long enough was waited for stopped processes to go on. ``late``: time is up. ``recent``: what
    ranks said before this moment (ns) of all that they wait for does not count. ``since``: nor does that another rank
    waits which has not said since this moment that it still does."""

    stopped: bool
    late: bool
    recent: int = 0
    since: int = 0


def diagnose(mine: Situation, sights: Mapping[int, Sight], patience: Patience) -> Cause | None:
    """The root cause why a stuck rank does not go on; None: not known (yet). O(ranks + waits).

    A cause of the kind ``gone`` or ``absent`` may have been found in the moment before the missing word came: it
    holds if it is found again after nothing has moved. Where it was found by way of other ranks, these must have
    looked meanwhile, too (``since``): one that has had no core has what it waits for, and does not know it.
    """
    reached = list(_reached(mine, sights, patience))
    found = [cause for rank in reached if (cause := _verdict(mine, rank, sights[rank], patience, sights)) is not None]
    other = _mismatch(mine, sights)
    if other is not None:
        found.append(other)
    if not found and patience.late:
        found.append(_circle(mine, reached))
    best = min(found, key=lambda cause: _ORDER.index(cause.kind), default=None)
    return best if best is None else _agreed(best, sights)


def _reached(mine: Situation, sights: Mapping[int, Sight], patience: Patience) -> Iterator[int]:
    """The ranks that this one waits for, those that these wait for, and so on; nearest first."""
    queue, seen = list(mine.waits_for), {mine.rank}
    while queue:
        rank = queue.pop(0)
        if rank in seen or rank not in sights:
            continue
        seen.add(rank)
        yield rank
        if _goes_on(mine, sights[rank]) and sights[rank].view.stalled_at >= patience.since:
            queue.extend(sights[rank].view.waits_for(patience.recent, patience.late))


def _goes_on(mine: Situation, sight: Sight) -> bool:
    view = sight.view
    closes = view.state == "closed" and not _has_left(mine, view)
    return (view.state == "running" or closes) and sight.condition == "lives"


def _has_left(mine: Situation, view: View) -> bool:
    """Whether a rank has closed before this rank's call. One that closes within it goes on to the call's end, and one
    that closes after it has left there what is waited for."""
    return view.state == "closed" and (mine.call is None or view.entered < mine.call.call)


def _verdict(mine: Situation, rank: int, sight: Sight, patience: Patience, sights: Mapping[int, Sight]) -> Cause | None:
    """What is known against a rank that this one waits for, directly or not."""
    view = sight.view
    if view.state == "failed" and view.failure is not None:
        return view.failure.cause
    waits = view.waits_for(patience.recent, patience.late)
    found = _standing(mine, rank, sight, patience, bool(waits))
    if found is None and not waits and patience.late:
        found = _absence(mine, rank, view)
    if found is None:
        return None if waits else _will_refuse(mine, view, sights)
    return found if view.failure is None or found.kind == "stopped" else _after_trouble(found, view.failure)


def _after_trouble(found: Cause, trouble: Failure) -> Cause:
    """A rank that another group of its process has left in the lurch: that is where it began."""
    return replace(found, text=f"{found.text}; before that, another group of its process failed: {trouble.cause.text}")


def _standing(mine: Situation, rank: int, sight: Sight, patience: Patience, waits: bool) -> Cause | None:
    """Whether a rank has closed its session, or its process has ended or is stopped."""
    view, me = sight.view, mine.rank
    if _has_left(mine, view) or (view.state == "closed" and patience.late and not waits):
        return Cause("absent", rank, f"rank {rank} closed its session after call {view.entered}", me)
    if sight.condition == "ended":
        return Cause("gone", rank, f"rank {rank} is gone: its process ({view.pid}) has ended", me)
    if sight.condition == "stopped":
        stopped = Cause("stopped", rank, f"rank {rank} stopped: its process ({view.pid}) was stopped by a signal", me)
        return stopped if patience.stopped or patience.late else None
    return None


def _will_refuse(mine: Situation, view: View, sights: Mapping[int, Sight]) -> Cause | None:
    """A rank that has not come, of a group that has failed: it will not come."""
    if mine.call is None or view.entered >= mine.call.call or not view.alarm:
        return None
    published = first_failure(sight.view for sight in sights.values())
    return None if published is None else published.cause


def _absence(mine: Situation, rank: int, view: View) -> Cause:
    """Time is up, and this rank waits for nobody: it is in no call, in an earlier one, or at work."""
    if mine.call is None:
        return Cause(
            "absent", rank, f"rank {rank} is alive, but did not send or receive what was waited for", mine.rank
        )
    number = mine.call.call
    if view.entered < number:
        text = f"rank {rank} never came to call {number}: it is alive, and its last call was {view.entered}"
        return Cause("absent", rank, text, mine.rank)
    if view.entered > number:
        return Cause("absent", rank, f"rank {rank} went on to call {view.entered}, but is still waited for", mine.rank)
    text = f"the deadline has passed, and rank {rank} is alive, in call {number}, and waits for nobody: it is slow"
    return Cause("deadline", rank, text, mine.rank)


def _circle(mine: Situation, reached: Sequence[int]) -> Cause:
    if not reached:
        return Cause("deadline", mine.rank, "the deadline has passed", mine.rank)
    names = ", ".join(map(str, sorted({mine.rank, *reached})))
    return Cause("deadline", reached[0], f"the deadline has passed, and ranks {names} wait for each other", mine.rank)


def _mismatch(mine: Situation, sights: Mapping[int, Sight]) -> Cause | None:
    """Ranks that make another call under the number of this rank's call, or made another under that before."""
    if mine.call is None:
        return None
    found = (_camps(mine.rank, said, sights) for said in mine.calls())
    return next((cause for cause in found if cause is not None), None)


def _camps(me: int, mine: Said, sights: Mapping[int, Sight]) -> Cause | None:
    """The fewest of one mind are blamed; of equally many those without the lowest rank, so that all judge alike."""
    camps: dict[int, list[tuple[int, Said]]] = {}
    for rank in sorted({me, *sights}):
        said = mine if rank == me else sights[rank].view.said(mine.call)
        if said is not None:
            camps.setdefault(said.fingerprint, []).append((rank, said))
    if len(camps) < 2:
        return None
    ordered = sorted(camps.values(), key=lambda camp: (len(camp), -camp[0][0]))
    (rank, odd), (other, usual) = ordered[0][0], ordered[-1][0]
    return Cause("mismatch", rank, differing((rank, odd.call, odd.text), (other, usual.call, usual.text)), me)


def mismatch(mine: Situation, peer: int, sights: Mapping[int, Sight]) -> Cause:
    """The cause when ``peer`` is known to make another call under this rank's number."""
    found = _mismatch(mine, sights)
    if found is not None:
        return _agreed(found, sights)
    return Cause("mismatch", peer, f"rank {peer} makes another call than rank {mine.rank} under its number", mine.rank)


def undecided(mine: Situation, sights: Mapping[int, Sight]) -> bool:
    """Whether ranks that have yet to come to this rank's call may show who is at odds with the others."""
    if mine.call is None:
        return False
    disputed = (said for said in mine.calls() if _camps(mine.rank, said, sights) is not None)
    ours = next(disputed, mine.call)
    said = [sight.view.said(ours.call) for rank, sight in sights.items() if rank != mine.rank]
    counts = Counter([ours.fingerprint, *(one.fingerprint for one in said if one is not None)])
    ranked = sorted(counts.values())
    return None in said and ranked[0] == ranked[-1]


def first_failure(views: Iterable[View]) -> Failure | None:
    """Of the published causes the one of the earliest call; of several the most certain, then the lowest root."""
    found = (view.failure for view in views if view.failure is not None and view.state == "failed")
    return min(found, key=lambda it: (it.call, _ORDER.index(it.cause.kind), it.cause.rank), default=None)


def _agreed(cause: Cause, sights: Mapping[int, Sight]) -> Cause:
    """A cause that is a matter of judgement gives way to one that is published, so that all ranks name the same."""
    if cause.kind in ("gone", "stopped", "failed"):
        return cause
    published = first_failure(sight.view for sight in sights.values())
    return cause if published is None else published.cause

"""How a stuck rank finds out why from what the others say of themselves: mismatch, stopped, gone, absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from commlib.runtime.cause import Cause, CauseKind, Status, differing
from commlib.runtime.liveness import Condition

_ORDER: tuple[CauseKind, ...] = ("gone", "stopped", "absent")


@dataclass(frozen=True)
class Patience:
    """When a stuck rank judges, in seconds without a sign of life.

    After ``grace`` a process that is known to be stopped or to have ended is blamed, after ``far`` one of which nothing
    is known (it runs on another machine). ``late``: time is up, so that whoever has not come is absent.
    """

    grace: float
    far: float
    late: bool


@dataclass(frozen=True)
class Sighting:
    """What is known of a rank: what it last said, for how many seconds it has been silent, whether it has said
    anything since this rank began to ask (``fresh``), and what has become of its process, if that can be seen."""

    status: Status
    silent: float = 0.0
    fresh: bool = True
    condition: Condition | None = None


Verdict = tuple[CauseKind, str]


def diagnose(me: int, mine: Status, sightings: Mapping[int, Sighting | None], patience: Patience) -> Cause | None:
    """Whoever is in another call than this rank; else follow who waits for whom, to one that does not come.

    None: nothing found (yet).
    """
    found = _mismatch(me, mine, sightings)
    if found is not None:
        return found
    verdicts = [
        Cause(verdict[0], rank, verdict[1], me)
        for rank in _depended_on(me, mine, sightings)
        if (verdict := _verdict(rank, sightings.get(rank), mine.call, patience)) is not None
    ]
    return min(verdicts, key=lambda cause: _ORDER.index(cause.kind), default=None)


def _depended_on(me: int, mine: Status, sightings: Mapping[int, Sighting | None]) -> Iterator[int]:
    """The ranks that this one waits for, those that these wait for, and so on."""
    queue, seen = list(mine.waits_for), {me}
    while queue:
        rank = queue.pop(0)
        if rank in seen:
            continue
        seen.add(rank)
        yield rank
        sighting = sightings.get(rank)
        if sighting is not None and sighting.status.state == "running":
            queue.extend(sighting.status.waits_for)


def _mismatch(me: int, mine: Status, sightings: Mapping[int, Sighting | None]) -> Cause | None:
    """Ranks that make another call under this rank's number; the fewest of one mind are blamed."""
    camps: dict[str, list[tuple[int, Status]]] = {mine.fingerprint: [(me, mine)]}
    for rank, sighting in sightings.items():
        if sighting is not None and sighting.status.call == mine.call and sighting.status.fingerprint:
            camps.setdefault(sighting.status.fingerprint, []).append((rank, sighting.status))
    if len(camps) < 2 or not mine.fingerprint:
        return None
    ordered = sorted(camps.values(), key=lambda camp: (len(camp), camp[0][0] == me))
    (rank, odd), (other, usual) = ordered[0][0], ordered[-1][0]
    return Cause("mismatch", rank, differing((rank, odd.call, odd.text), (other, usual.call, usual.text)), me)


def _verdict(rank: int, sighting: Sighting | None, call: int, patience: Patience) -> Verdict | None:
    if sighting is None:
        unseen = f"rank {rank} never came: it shows no communicator on this group"
        return ("absent", unseen) if patience.late else None
    status = sighting.status
    if status.state == "closed" and status.call < call:
        return "absent", f"rank {rank} closed its communicator after call {status.call}"
    if status.state == "failed":
        return None
    found = None if status.state == "closed" else _silence(rank, sighting, patience)
    return found or (_absence(rank, sighting, call) if patience.late else None)


def _silence(rank: int, sighting: Sighting, patience: Patience) -> Verdict | None:
    """What it means that a rank shows no life: a process that holds Python's lock for long is not stopped."""
    if sighting.silent < patience.grace:
        return None
    what = f"no sign of life for {sighting.silent:.1f} s"
    if sighting.condition == "ended":
        return "gone", f"rank {rank} is gone: its process has ended"
    if sighting.condition == "lives":
        busy = f"rank {rank} does not answer: its process runs, but has shown {what} (what it does lets no thread run)"
        return ("absent", busy) if patience.late else None
    if sighting.condition == "stopped" or sighting.silent >= patience.far:
        return "stopped", f"rank {rank} stopped: it has shown {what}"
    return None


def _absence(rank: int, sighting: Sighting, call: int) -> Verdict | None:
    """Time is up: a rank that is in no call or another one."""
    status = sighting.status
    if status.call > call or (status.call == call and status.state in ("idle", "closed")):
        then = {"closed": "and closed its communicator", "idle": "and is in no call"}.get(status.state, "")
        now = then if status.call == call else f"and went on to call {status.call}"
        return "absent", f"rank {rank} has finished call {call} {now}, but is still waited for"
    if status.state != "idle":
        return None
    if sighting.fresh:
        return "absent", f"rank {rank} never came to call {call}: it is alive, and its last call was {status.call}"
    return "absent", (
        f"rank {rank} has not come to call {call}, as far as is known: it has said nothing since this rank began to "
        f"wait, and its call was then {status.call}"
    )

"""Why a launch failed, in a form that ranks tell each other, and how a stuck rank finds out from others' statuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from commlib.errors import DeadlineError, ExecutionError, MismatchError, PeerFailedError
from commlib.runtime.transport import Wait

CauseKind = Literal["gone", "stopped", "absent", "failed", "mismatch", "deadline"]
State = Literal["idle", "running", "failed", "closed"]


@dataclass(frozen=True)
class Cause:
    """A root cause: what happened to ``rank``, and which rank noticed it first."""

    kind: CauseKind
    rank: int
    text: str
    noticed_by: int

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def loads_cause(text: str) -> Cause:
    """The cause that ``Cause.dumps`` wrote."""
    found = json.loads(text)
    return Cause(found["kind"], int(found["rank"]), str(found["text"]), int(found["noticed_by"]))


@dataclass(frozen=True)
class Status:
    """What a rank last said of itself: a counter that grows while it lives, its call, and the peers it waits for."""

    beat: int = 0
    call: int = 0
    state: State = "idle"
    waits_for: tuple[int, ...] = field(default=())

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def loads_status(text: str) -> Status:
    """The status that ``Status.dumps`` wrote."""
    found = json.loads(text)
    return Status(int(found["beat"]), int(found["call"]), found["state"], tuple(map(int, found["waits_for"])))


@dataclass(frozen=True)
class Patience:
    """When a stuck rank judges: a peer that shows no life for ``grace`` seconds is stopped; ``late``: time is up, so
    that a peer that has not come to the call is absent."""

    grace: float
    late: bool


def diagnose(
    me: int, mine: Status, statuses: Mapping[int, Status | None], silent: Mapping[int, float], patience: Patience
) -> Cause | None:
    """Follow who waits for whom from this rank to one that does not wait but is stopped, gone or absent.

    ``silent[r]`` is for how many seconds rank r has shown no life. None: nothing found (yet).
    """
    queue, seen = list(mine.waits_for), {me}
    while queue:
        rank = queue.pop(0)
        if rank in seen:
            continue
        seen.add(rank)
        status = statuses.get(rank)
        text = _verdict(rank, status, silent.get(rank, 0.0), mine.call, patience)
        if text is not None:
            return Cause(text[0], rank, text[1], me)
        if status is not None and status.state == "running":
            queue.extend(status.waits_for)
    return None


def _verdict(
    rank: int, status: Status | None, silent: float, call: int, patience: Patience
) -> tuple[CauseKind, str] | None:
    if status is not None and status.state == "closed" and (status.call < call or patience.late):
        return "absent", f"rank {rank} closed its communicator after call {status.call}"
    if status is not None and silent >= patience.grace:
        return "stopped", f"rank {rank} stopped: it has shown no sign of life for {silent:.1f} s"
    if not patience.late:
        return None
    if status is None:
        return "absent", f"rank {rank} never came: it has no communicator on this group"
    if status.state == "idle" and status.call < call:
        return "absent", f"rank {rank} never came to call {call}: it is alive, and its last call was {status.call}"
    return None


def differing(theirs: tuple[int, int, str], ours: tuple[int, int, str]) -> str:
    """That two ranks, each given as (rank, call, its text), are in different calls."""
    hidden = "; they differ in what the names do not show: the steps, tile_bytes, fifo_depth or sizes"
    both = f"rank {theirs[0]} is in call {theirs[1]} ({theirs[2]}), rank {ours[0]} in call {ours[1]} ({ours[2]})"
    return both + (hidden if theirs[1:] == ours[1:] else "")


AFTER = "The process group cannot be used after this; make a new one."


def failure(rank: int, call: str, waits: list[Wait], cause: Cause) -> ExecutionError:
    """The error for this rank: where it was itself, and the root cause."""
    wait = next((wait for wait in waits if wait.peer == cause.rank), None) or next(
        (wait for wait in waits if wait.peer is not None), waits[0] if waits else None
    )
    kinds: dict[str, type[ExecutionError]] = {"mismatch": MismatchError, "deadline": DeadlineError}
    where = f"rank {rank}"
    if wait is not None:
        where += f" threadblock {wait.threadblock} step {wait.step} waits {wait.what}"
    return kinds.get(cause.kind, PeerFailedError)(
        f"{where} in {call}: {cause.text}{_noticed(rank, cause)}. {AFTER}",
        rank=rank,
        peer=None if wait is None else wait.peer,
        channel=None if wait is None else wait.channel,
        threadblock=None if wait is None else wait.threadblock,
        step=None if wait is None else wait.step,
        root=cause.rank,
        cause=cause.kind,
        noticed_by=cause.noticed_by,
    )


def _noticed(rank: int, cause: Cause) -> str:
    return "" if cause.noticed_by == rank else f" (noticed by rank {cause.noticed_by})"

"""Why a launch failed, and what a rank says of itself: both in a form that ranks tell each other."""

from __future__ import annotations

import json
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
    """What a rank last said of itself: a counter that grows while it lives, its call, and the peers it waits for.

    ``call``, ``fingerprint`` and ``text`` are of its last call; ``process`` is for ``liveness``.
    """

    beat: int = 0
    call: int = 0
    state: State = "idle"
    waits_for: tuple[int, ...] = field(default=())
    fingerprint: str = ""
    text: str = ""
    process: str = ""

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def loads_status(text: str) -> Status:
    """The status that ``Status.dumps`` wrote."""
    found = json.loads(text)
    said = (str(found[name]) for name in ("fingerprint", "text", "process"))
    return Status(int(found["beat"]), int(found["call"]), found["state"], tuple(map(int, found["waits_for"])), *said)


def differing(theirs: tuple[int, int, str], ours: tuple[int, int, str]) -> str:
    """That two ranks, each given as (rank, call, its text), are in different calls."""
    hidden = "; they differ in what the names do not show: the steps, tile_bytes, fifo_depth or sizes"
    both = f"rank {theirs[0]} is in call {theirs[1]} ({theirs[2]}), rank {ours[0]} in call {ours[1]} ({ours[2]})"
    return both + (hidden if theirs[1:] == ours[1:] else "")


AFTER = "The process group cannot be used after this; make a new one."


def failure(rank: int, call: str, waits: list[Wait], cause: Cause, /, **more: object) -> ExecutionError:
    """The error for this rank: where it was itself, and the root cause; ``more`` are fields to add."""
    wait = next((wait for wait in waits if wait.peer == cause.rank), None) or next(
        (wait for wait in waits if wait.peer is not None), waits[0] if waits else None
    )
    kinds: dict[str, type[ExecutionError]] = {"mismatch": MismatchError, "deadline": DeadlineError}
    where = f"rank {rank}"
    if wait is not None:
        where += f" threadblock {wait.threadblock} step {wait.step}" if wait.threadblock >= 0 else ""
        where += f" waits {wait.what}"
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
        **more,
    )


def store_lost(rank: int, doing: str, error: RuntimeError) -> PeerFailedError:
    """The error for this rank: the store at which ranks meet has failed, ``doing`` something."""
    text = str(error).split("\n")[0]
    return PeerFailedError(
        f"rank {rank}: while {doing}, the group's store was lost ({text}), and with it the process that hosts it: rank "
        f"0, unless torchrun or a launcher does",
        rank=rank,
        cause="gone",
    )


def _noticed(rank: int, cause: Cause) -> str:
    return "" if cause.noticed_by == rank else f" (noticed by rank {cause.noticed_by})"

"""The launcher: a function on n processes of this machine, with a gloo group between them, and nothing left behind.

Processes are forked, so that torch is loaded once and the function needs no pickling. The launcher hosts the store on
a loopback port (it outlives every rank), gloo is bound to loopback, and a rank dies with its launcher
(PR_SET_PDEATHSIG). Results come back as JSON and raw bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, BinaryIO, NoReturn

import torch
import torch.distributed as dist

from commlib.errors import CommlibError, DeadlineError, ExecutionError
from commlib.runtime.packing import Parcel, describe_error, pack, rebuild_error

_PR_SET_PDEATHSIG = 1
_PIECE = 1 << 20
"""Bytes of a result that are read at once, at most."""
_LAST = 2.0
"""Seconds that a process has to end which has closed its way back to the launcher."""
Function = Callable[..., Any]
_ours: set[int] = set()
"""The process id of this process, if it is a rank that ``launch`` made (a fork of it is not)."""


def hosts_store() -> bool:
    """Whether the launcher hosts the store of this process's group."""
    return os.getpid() in _ours


@dataclass(frozen=True)
class RankOutcome:
    """What became of a rank: its value, or its error; ``signal`` if one killed or stopped it; ``late`` if it was not
    done in time."""

    rank: int
    value: Any = None
    error: CommlibError | None = None
    signal: int | None = None
    late: bool = False


GRACE = 5.0
"""Seconds that ``launch`` gives the other ranks when one has failed."""


def launch(
    function: Function,
    ranks: int,
    args: Sequence[Any] = (),
    timeout: float = 120.0,
    grace: float | None = GRACE,
) -> list[Any]:
    """Call ``function(rank, *args)`` on each of ``ranks`` processes, inside a gloo group; their values by rank.

    A value is made of JSON's types, numpy arrays and tensors. When a rank has raised an error or died, the others have
    ``grace`` seconds (None: until ``timeout``) to end by themselves and say what they know; then they are killed. Not
    so when a rank has only waited for another in vain: that one may be about to say why.

    Raises:
        CommlibError: the error of the lowest rank that raised one (an ExecutionError if it was not commlib's own).
            Ranks that have waited for another in vain come after those that say what is wrong. If ranks had to be
            killed, the message and the field ``running`` say which.
        DeadlineError: a rank was not done after ``timeout`` seconds, and no other says why.
    """
    outcomes = launch_outcomes(function, ranks, args, timeout, grace)
    errors = [(_in_vain(outcome), outcome.rank, outcome.error) for outcome in outcomes if outcome.error is not None]
    if errors:
        raise _with_running(min(errors, key=lambda found: found[:2])[2], outcomes)
    return [outcome.value for outcome in outcomes]


def _with_running(error: CommlibError, outcomes: Sequence[RankOutcome]) -> CommlibError:
    """The error, with the ranks that were still running if it is that of another."""
    running = [outcome.rank for outcome in outcomes if outcome.late]
    if not running or error.fields.get("rank") in running:
        return error
    names = ", ".join(map(str, running))
    text = f"{error.message} (still running, and killed: rank {names})"
    return type(error)(text, **{**error.fields, "running": running})


def _in_vain(outcome: RankOutcome) -> int:
    """How little an error says of its cause: 2 if the rank was killed at the deadline, 1 if it gave up itself."""
    return 2 if outcome.late else int(isinstance(outcome.error, DeadlineError))


def launch_outcomes(
    function: Function,
    ranks: int,
    args: Sequence[Any] = (),
    timeout: float = 120.0,
    grace: float | None = None,
) -> list[RankOutcome]:
    """As ``launch``, but what became of each rank is the result, even if it was killed, stopped or late.

    Ranks that are stopped (SIGSTOP) are given up when all others are done. Ranks that run on when another has failed
    have until ``timeout``, unless ``grace`` says otherwise.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        children: list[_Child] = []
        stack.callback(_end, children)
        for rank in range(ranks):
            children.append(_fork(function, rank, ranks, args, port, timeout, (listener, children)))
        store = _serve(listener, port, timeout)
        outcomes = _collect(children, timeout, grace)
        _end(children)
        del store
        return outcomes


def _serve(listener: socket.socket, port: int, timeout: float) -> Any:
    """The store, on the listening socket (which it owns from now on: it closes a duplicate)."""
    options: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=timeout)}
    if torch.__version__.startswith("2.6."):  # only its older server takes a socket
        options["use_libuv"] = False
    make = dist.TCPStore  # type: ignore[attr-defined]
    return make("127.0.0.1", port, None, True, master_listen_fd=os.dup(listener.fileno()), **options)


@dataclass
class _Child:
    """A rank's process. ``results`` is where its value comes from (so far ``parcel``), ``release`` keeps it from
    exiting."""

    rank: int
    pid: int
    results: BinaryIO
    release: int
    parcel: Parcel = field(default_factory=Parcel)
    outcome: RankOutcome | None = None
    stopped: bool = False
    reaped: bool = field(default=False)


def _fork(
    function: Function,
    rank: int,
    ranks: int,
    args: Sequence[Any],
    port: int,
    timeout: float,
    inherited: tuple[socket.socket, list[_Child]],
) -> _Child:
    results, report = os.pipe()
    hold, release = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(report)
        os.close(hold)
        return _Child(rank, pid, os.fdopen(results, "rb"), release)
    status = 1
    try:
        _die_with(parent)
        inherited[0].close()
        for descriptor in (results, release, *(child.release for child in inherited[1])):
            os.close(descriptor)
        _be_rank(function, rank, ranks, args, port, timeout, report)
        os.read(hold, 1)
        status = 0
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _die_with(parent: int) -> None:
    """Be killed when the launcher dies, and have a process group of one's own."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            _leave(1)


def _be_rank(
    function: Function, rank: int, ranks: int, args: Sequence[Any], port: int, timeout: float, report: int
) -> None:
    """In the child: join the group, call the function, and write what came of it."""
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        limit = timedelta(seconds=timeout)
        store = dist.TCPStore("127.0.0.1", port, None, False, limit)  # type: ignore[attr-defined]
        _ours.add(os.getpid())
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
        _meet(store, rank, ranks)
        answer = {"value": function(rank, *args)}
    except BaseException as error:
        answer = {"error": describe_error(error)}
    try:
        data = pack(answer)
    except TypeError as error:
        data = pack({"error": describe_error(error.with_traceback(None))})
    with os.fdopen(report, "wb") as stream:
        stream.write(data)


def _meet(store: Any, rank: int, ranks: int) -> None:
    """Wait until all have connected: a rank whose function ends or dies at once would be missed by gloo in others."""
    store.set(f"commlib/connected/{rank}", "")
    store.wait([f"commlib/connected/{peer}" for peer in range(ranks)])


def _collect(children: list[_Child], timeout: float, grace: float | None) -> list[RankOutcome]:
    """Read results as they come, until every rank has reported, died, or (all others being done) is stopped."""
    deadline, why = time.monotonic() + timeout, f"was not done after {timeout} s"
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.results, selectors.EVENT_READ, child)
        while any(child.outcome is None and not child.stopped for child in children):
            if time.monotonic() > deadline:
                break
            for key, _ in selector.select(timeout=0.05):
                key.data.outcome = outcome = _read(key.data)
                if outcome is None:
                    continue
                selector.unregister(key.fileobj)
                if grace is not None and _is_reason(outcome) and time.monotonic() + grace < deadline:
                    deadline = time.monotonic() + grace
                    why = f"was still running {grace} s after rank {outcome.rank} had failed"
            for child in children:
                _look(child)
    return [child.outcome or _unfinished(child, why) for child in children]


def _is_reason(outcome: RankOutcome) -> bool:
    """Whether a rank has failed in a way that says more than that others did not come."""
    return outcome.error is not None and not isinstance(outcome.error, DeadlineError)


def _read(child: _Child) -> RankOutcome | None:
    """Read what has come of a rank's value; None if there is more to come, for which nobody waits here: a rank may be
    stopped while it writes."""
    data = os.read(child.results.fileno(), _PIECE)
    if not data:
        return _died(child)
    if not child.parcel.take(data):
        return None
    parcel, child.parcel = child.parcel, Parcel()  # which may be large, and is needed no more
    answer = parcel.value()
    if "error" in answer:
        return RankOutcome(child.rank, None, rebuild_error(answer["error"], child.rank))
    return RankOutcome(child.rank, answer["value"])


def _look(child: _Child) -> None:
    """Whether a child has been stopped, or goes on again."""
    if child.reaped:
        return
    found = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WCONTINUED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is not None:
        child.stopped = found.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED)


def _died(child: _Child) -> RankOutcome:
    """What ended a child that said nothing; it is reaped here, and killed before if it lives on."""
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(_reap(child, began + _LAST))
    if code >= 0:
        how = f"rank {child.rank} died without a result, with exit status {code}"
        return RankOutcome(child.rank, None, ExecutionError(how, rank=child.rank, status=code))
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    how = f"rank {child.rank} died without a result, killed by {name}"
    if time.monotonic() - began >= _LAST:
        how = f"rank {child.rank} closed its way back to the launcher, ran on, and was killed"
    return RankOutcome(child.rank, None, ExecutionError(how, rank=child.rank, signal=-code), -code)


def _unfinished(child: _Child, why: str) -> RankOutcome:
    if child.stopped:
        error = ExecutionError(f"rank {child.rank} was stopped by a signal", rank=child.rank)
        return RankOutcome(child.rank, None, error, signal.SIGSTOP)
    late = DeadlineError(f"rank {child.rank} {why}", rank=child.rank)
    return RankOutcome(child.rank, None, late, late=True)


def _end(children: list[_Child]) -> None:
    """Let the processes exit, kill those that do not, and close what belongs to them."""
    for child in children:
        with contextlib.suppress(OSError):
            os.close(child.release)
    patience = time.monotonic() + 1.0
    for child in children:
        unfinished = child.outcome is None or child.outcome.signal is not None
        if not child.reaped:
            _reap(child, 0.0 if unfinished else patience)
        child.results.close()
    children.clear()


def _reap(child: _Child, patience: float) -> int:
    """Wait for a process until a moment, then kill it; its status."""
    for _ in _until(patience):
        found, status = os.waitpid(child.pid, os.WNOHANG)
        if found:
            child.reaped = True
            return status
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    child.reaped = True
    return status


def _until(moment: float) -> Iterator[None]:
    while time.monotonic() < moment:
        yield
        time.sleep(0.002)

"""Communicator: runs Algorithms on the processes of a ``torch.distributed`` gloo group."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from commlib.collectives import Buffer, Placement
from commlib.errors import ExecutionError, PeerFailedError, SpecError
from commlib.ir.algorithm import STEP_COLUMNS, TB_COLUMNS, Algorithm
from commlib.reductions import Reduction, reduction
from commlib.runtime.binding import Binding, Tensors, classify, shard_elements
from commlib.runtime.cause import AFTER, Cause
from commlib.runtime.engine import Hook, execute
from commlib.runtime.gloo import GlooEndpoint, GlooTransport
from commlib.runtime.kernels import Array, Kernels
from commlib.runtime.launcher import hosts_store
from commlib.runtime.layout import ChunkLayout, plan_layout
from commlib.runtime.monitor import Monitor, beat_for
from commlib.runtime.onesided import refuse_unreachable
from commlib.runtime.plan import RankPlan, plan_rank
from commlib.runtime.tensors import dtype_name, kernels_for
from commlib.runtime.wire import Call
from commlib.verify import require

TILE_BYTES = 4 << 20
"""Larger tiles mean fewer messages: on few cores each costs more in wake-ups than pipelining gains (measured)."""
LONGEST = 1e6
"""The longest timeout in seconds: what clocks and gloo's milliseconds take."""
_FIRST_TAG = 0x0C0B1000
_PLANS_KEPT = 64
_communicators: dict[str, int] = {}
"""How many communicators each group has had: all ranks count alike, which gives each its tag and its keys."""


@dataclass
class _Launch:
    """What calls of one signature share: layout, plan, kernels, and the scratch memory."""

    layout: ChunkLayout
    plan: RankPlan
    kernels: Kernels
    fingerprint: bytes
    text: str
    scratch: Array


@dataclass(frozen=True)
class _Signature:
    algorithm: Algorithm
    placement: Placement
    elements: int
    sizes: tuple[tuple[int, ...], ...] | None
    dtype: torch.dtype
    op: str


@dataclass
class _State:
    """What is remembered between calls."""

    calls: int = 0
    failed: str | None = None
    proved: set[tuple[Algorithm, Placement]] = field(default_factory=set)
    launches: dict[_Signature, _Launch] = field(default_factory=dict)


class Communicator:
    """Runs algorithms on a group's processes, one rank each.

    Making one does not communicate, but all ranks of a group make their communicators in the same order. Ranks are
    those of the group. Calls are made in the same order by all ranks; there is no barrier between them. A
    communicator runs one call at a time: threads that call at once each need one of their own.

    Args:
        group: an initialised gloo group (default: the world); any subgroup will do.
        timeout: seconds that a call may take; then, or when a peer is found to have failed, every rank whose
            remaining steps depend on it ends with an ExecutionError that names the root cause.
        fifo_depth: messages in flight per connection; an algorithm must be proved free of deadlock at this depth.
        tile_bytes: chunks larger than this are sent in tiles, and the program repeats for each.
        hook: called before each step with (threadblock, step, tile); for tests.

    Raises:
        SpecError: the group has no gloo, this process is not in it, or a number is out of range.
    """

    def __init__(
        self,
        group: Any = None,
        timeout: float = 30.0,
        fifo_depth: int = 8,
        tile_bytes: int = TILE_BYTES,
        hook: Hook | None = None,
    ) -> None:
        self._group = _checked(group)
        self.rank, self.ranks = self._group.rank(), self._group.size()
        self.timeout, self.fifo_depth, self.tile_bytes, self.hook = _seconds(timeout), fifo_depth, tile_bytes, hook
        if fifo_depth < 1 or tile_bytes < 1:
            raise SpecError(f"fifo_depth ({fifo_depth}) and tile_bytes ({tile_bytes}) are at least 1")
        self._busy = threading.Lock()
        self._state = _State()
        number = _communicators.get(self._group.group_name, 0)
        _communicators[self._group.group_name] = number + 1
        keys = _keys(self._group, f"commlib/{number}")
        self._monitor = Monitor(keys, self.rank, self.ranks, beat_for(timeout), host=_store_host(self._group))
        self._transport = GlooTransport(self._group, _FIRST_TAG + number, fifo_depth, self._monitor)
        self._finalizer = weakref.finalize(self, _close, self._monitor, self._transport)

    def close(self) -> None:
        """End the communicator's threads; a later call is refused."""
        self._state.failed = self._state.failed or "it was closed"
        self._finalizer()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def run(
        self,
        algorithm: Algorithm,
        input: torch.Tensor | None = None,
        output: torch.Tensor | None = None,
        op: str = "sum",
        *,
        factor: complex = 1.0,
        sizes: Sequence[Sequence[int]] | None = None,
        elements: int | None = None,
        in_place: bool | None = None,
        timeout: float | None = None,
        unsafe: bool = False,
    ) -> torch.Tensor:
        """Run an algorithm; every rank of the group calls this with the same algorithm, type, op and sizes.

        Without ``output``, or with one that lies where in place puts it, the call is in place: ``input`` is then the
        span that holds both (for allgather: ``ranks`` shards, one's own already in it). A rank without input gives
        only ``output``; one without output gives an empty one, or ``in_place=False`` to have outputs made.

        Args:
            input: any shape, contiguous or not; never modified out of place.
            op: a name of ``commlib.reductions``; ignored by collectives that only move.
            factor: of premul_sum, for this rank's contribution.
            sizes: of alltoallv: ``sizes[s][d]`` elements go from rank s to rank d.
            elements: the size of a shard, where the tensors do not say.
            timeout: seconds for this call, if not the communicator's.
            unsafe: run an algorithm that is not proved in this placement.

        Returns:
            The output: ``output`` if given, in place the span or the part of it that is the output.

        Raises:
            VerificationError: the algorithm is not proved in this placement.
            SpecError: tensors, op and algorithm do not fit, or it has one-sided steps.
            ExecutionError: the run failed, and the group cannot be used after that; or another thread is in a call,
                which goes on unharmed.
        """
        if not self._busy.acquire(blocking=False):
            raise ExecutionError(f"rank {self.rank}: another call is running on this communicator", rank=self.rank)
        try:
            seconds = self.timeout if timeout is None else _seconds(timeout)
            return self._run(algorithm, (input, output, in_place), op, factor, (elements, sizes), seconds, unsafe)
        finally:
            self._busy.release()

    def _run(
        self,
        algorithm: Algorithm,
        given: tuple[torch.Tensor | None, torch.Tensor | None, bool | None],
        op: str,
        factor: complex,
        size: tuple[int | None, Sequence[Sequence[int]] | None],
        timeout: float,
        unsafe: bool,
    ) -> torch.Tensor:
        self._refuse_if_failed()
        self._refuse_other_size(algorithm)
        reduce = reduction(op) if algorithm.collective.reduces or not algorithm.collective.specified else None
        tensors = classify(algorithm.collective, self.rank, *given)
        if not unsafe:
            self._require(algorithm, tensors.placement)
        launch = self._launch(algorithm, tensors, reduce, *size)
        scale = factor if reduce is not None and reduce.prepare == "scale" else None
        binding = Binding(launch.layout, self.rank, tensors, scale)
        self._execute(launch, binding, timeout)
        return binding.finish(self.ranks if reduce is not None and reduce.finish == "divide" else None)

    def _refuse_if_failed(self) -> None:
        if self._state.failed is None and self._monitor.cause is not None:
            self._state.failed = self._monitor.cause.text
        if self._state.failed is not None:
            raise PeerFailedError(
                f"rank {self.rank}: this communicator has failed before call {self._state.calls + 1}: "
                f"{self._state.failed}. {AFTER}",
                rank=self.rank,
            )

    def _refuse_other_size(self, algorithm: Algorithm) -> None:
        if not isinstance(algorithm, Algorithm):
            raise SpecError(f"the algorithm is a {type(algorithm).__name__}, not a compiled Algorithm")
        if algorithm.ranks != self.ranks:
            raise SpecError(f"{algorithm.name} is for {algorithm.ranks} ranks, the group has {self.ranks}")

    def _require(self, algorithm: Algorithm, placement: Placement) -> None:
        if (algorithm, placement) not in self._state.proved:
            require(algorithm, placement, self.fifo_depth, whole_messages=True)
            self._state.proved.add((algorithm, placement))

    def _launch(
        self,
        algorithm: Algorithm,
        tensors: Tensors,
        reduce: Reduction | None,
        elements: int | None,
        sizes: Sequence[Sequence[int]] | None,
    ) -> _Launch:
        if elements is None:
            elements = 0 if sizes is not None else shard_elements(algorithm.collective, self.rank, tensors)
        matrix = None if sizes is None else tuple(tuple(map(int, row)) for row in sizes)
        name = "move" if reduce is None else reduce.name
        signature = _Signature(algorithm, tensors.placement, elements, matrix, tensors.dtype, name)
        launches = self._state.launches
        if signature not in launches:
            if len(launches) >= _PLANS_KEPT:
                launches.pop(next(iter(launches)))
            launches[signature] = self._plan(signature, kernels_for(tensors.dtype, reduce))
        return launches[signature]

    def _plan(self, signature: _Signature, kernels: Kernels) -> _Launch:
        algorithm = signature.algorithm
        refuse_unreachable(algorithm, lambda rank, peer: False, "gloo")
        layout = plan_layout(algorithm, signature.placement, signature.elements, signature.sizes)
        plan = plan_rank(algorithm, layout, self.rank, kernels.itemsize, self.tile_bytes)
        text = (
            f"{algorithm.name} {dtype_name(signature.dtype)} {signature.op} {signature.elements} "
            f"{signature.placement.value}"
        )
        fingerprint = _fingerprint(signature, self.tile_bytes, self.fifo_depth)
        return _Launch(layout, plan, kernels, fingerprint, text, kernels.empty(plan.scratch_elements))

    def _execute(self, launch: _Launch, binding: Binding, timeout: float) -> None:
        state = self._state
        state.calls += 1
        call = Call(state.calls, launch.fingerprint, launch.text)
        deadline = time.monotonic() + timeout
        self._monitor.enter(call, timeout)
        endpoint = self._transport.open(call, launch.plan, launch.kernels.itemsize, deadline)
        buffers = {**binding.buffers(), Buffer.SCRATCH: launch.scratch}
        try:
            execute(launch.plan, buffers, endpoint, launch.kernels, deadline, self.hook)
        except BaseException as error:
            self._fail(endpoint, error)
            raise
        trouble = endpoint.finish(deadline)
        if trouble is None:
            self._monitor.leave()
        else:
            state.failed = trouble.text

    def _fail(self, endpoint: GlooEndpoint, error: BaseException) -> None:
        """This rank ends with an error: tell the others."""
        cause = endpoint.cause
        if cause is None:
            cause = self._monitor.report(Cause("failed", self.rank, f"rank {self.rank} failed: {error}", self.rank))
        self._state.failed = cause.text
        endpoint.abort(cause)


def _seconds(timeout: float) -> float:
    if isinstance(timeout, (int, float)) and 0 < timeout <= LONGEST:
        return float(timeout)
    raise SpecError(f"a timeout is a number of seconds above 0 and at most {LONGEST:.0f}, not {timeout!r}")


def _is_internal(group: Any) -> bool:
    """Whether this is a gloo group that torch.distributed does not know of, as the torch backend makes them."""
    if not isinstance(group, dist.ProcessGroup) or group in dist.distributed_c10d._world.pg_map:
        return False
    with contextlib.suppress(RuntimeError):
        return isinstance(group._get_backend(torch.device("cpu")), dist.ProcessGroupGloo)
    return False


def _checked(group: Any) -> Any:
    if _is_internal(group):
        return group
    if not dist.is_initialized():
        raise SpecError("torch.distributed is not initialised; call init_process_group('gloo') first")
    group = dist.group.WORLD if group is None else group
    if group is None or group == dist.GroupMember.NON_GROUP_MEMBER:
        raise SpecError("this process is not a member of the group")
    if "gloo" not in str(dist.get_backend(group)) and "gloo" not in dist.get_backend_config(group):
        raise SpecError(f"the group's backend is {dist.get_backend(group)}; this runtime needs gloo")
    return group


def _keys(group: Any, prefix: str) -> Any:
    """The group's store under a prefix, on a connection of its own where it has such (other users may block theirs)."""
    store = group.get_group_store()
    with contextlib.suppress(AttributeError, RuntimeError):
        store = store.clone()
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _store_host(group: Any) -> int | None:
    """The rank that hosts the group's store; None if torchrun or our launcher does, or a process outside the group."""
    if hosts_store() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    with contextlib.suppress(ValueError):
        return dist.get_group_rank(group, 0)
    return None


def _close(monitor: Monitor, transport: GlooTransport) -> None:
    monitor.close()
    transport.close()


def _fingerprint(signature: _Signature, tile_bytes: int, fifo_depth: int) -> bytes:
    """Eight bytes of a hash of everything that all ranks must agree on."""
    a = signature.algorithm
    digest = hashlib.sha256()
    for name in TB_COLUMNS + STEP_COLUMNS:
        digest.update(getattr(a, name).tobytes())
    rest = (a.collective, a.collective.custom, a.scratch_chunks, signature.placement, signature.elements)
    digest.update(repr((*rest, signature.sizes, signature.dtype, signature.op, tile_bytes, fifo_depth)).encode())
    return digest.digest()[:8]

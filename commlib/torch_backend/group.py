"""CommlibGroup: the process group that ``init_process_group("commlib")`` makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed import Work

from commlib.torch_backend import collectives as make
from commlib.torch_backend.barriers import Barrier, MonitoredBarrier, hand_over
from commlib.torch_backend.buckets import RepeatedTensors
from commlib.torch_backend.collectives import first, in_turn
from commlib.torch_backend.compat import c10d, is_async, options_of, reduction_of, seconds
from commlib.torch_backend.core import Core, Job, Transfer
from commlib.torch_backend.failures import TorchSpecError
from commlib.torch_backend.identity import Identity
from commlib.torch_backend.opening import Opened, open_group
from commlib.torch_backend.options import Options, options_from
from commlib.torch_backend.point_to_point import ManyWorks
from commlib.torch_backend.replay import NOT_FOUND, Key, key_of_one, key_of_two
from commlib.torch_backend.sparse import allreduce_sparse
from commlib.torch_backend.work import DONE, PendingWork, shown

Tensor = torch.Tensor
Tensors = Sequence[Tensor]


BARRIER = ("barrier",)


class CommlibGroup(Identity):
    """A torch process group whose collectives run proved algorithms over shared memory, or gloo between hosts.

    torch calls its methods; users call ``torch.distributed``. A call raises at once what its own arguments are wrong
    in; an error of the run is raised by the call, or by ``wait`` if it is asynchronous. After an ExecutionError the
    group cannot be used: destroy it and make another.
    """

    @classmethod
    def create(cls, given: Any, options: Any) -> CommlibGroup:
        """Make the group; ``given`` is torch's ``_DistributedBackendOptions``.

        Raises:
            CommlibError: the ranks did not all come within the timeout, or the transport cannot be had.
        """
        chosen = options_from(options)
        timeout = given.timeout.total_seconds()
        opened = open_group(given.store, given.group_rank, given.group_size, timeout, given.group_id, chosen)
        hand_over(cls)
        return cls(opened, given, timeout, chosen)

    def __init__(self, opened: Opened, given: Any, timeout: float, chosen: Options) -> None:
        super().__init__(given.group_rank, given.group_size, given.group_id, given.store)
        self._opened = opened
        self._core = Core(opened.runner, given.group_rank, given.group_size, timeout, given.group_id)
        self._meet = Barrier(self._core)
        self._monitored = MonitoredBarrier(opened.store, given.group_rank, given.group_size)
        if chosen.register_buckets and opened.session is not None:
            self._core.buckets = RepeatedTensors(opened.session)
        self._closer = weakref.finalize(self, _close, self._core, self._opened)
        self._replay = self._core.replay

    def _issue(
        self, name: str, job: Job, options: Any, results: Sequence[Any] = (), key: Callable[[], Key] | None = None
    ) -> Work:
        """Issue a job; ``key``: tells, once it is done, in what a later call of the same kind must agree to be made
        again without checks."""
        core = self._core
        asynchronous = is_async(options)
        if isinstance(job, Transfer):
            job.later = asynchronous
        work = core.issue(name, job, asynchronous, seconds(options, core.timeout), results)
        if key is not None and not asynchronous and isinstance(job, Transfer):
            core.remember(key, job)
        return work

    # Reductions

    def allreduce(self, tensors: Any, opts: Any = None, **named: Any) -> Work:
        """Reduce a tensor in place.

        This is the hot path: what is remembered for the same address, size, type and reduction is made again.
        """
        if self._replay.one(tensors, opts):
            return DONE
        opts = options_of(c10d.AllreduceOptions, opts, named)
        tensor, op = first(tensors), reduction_of(opts.reduceOp)
        if tensor.layout is not torch.strided:
            return self._issue("all_reduce", allreduce_sparse(self._core, tensor, op), opts, [tensor])
        key = partial(key_of_one, tensor, opts)
        return self._issue("all_reduce", make.allreduce(self._core, [tensor], op), opts, [tensor], key)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None, **named: Any) -> Work:
        """Reduce several tensors in place."""
        opts = options_of(c10d.AllreduceCoalescedOptions, opts, named)
        job = make.allreduce(self._core, tensors, reduction_of(opts.reduceOp), "allreduce_coalesced")
        return self._issue("all_reduce", job, opts, tensors)

    def reduce(self, tensors: Any, opts: Any = None, **named: Any) -> Work:
        """Reduce to the root's tensor."""
        opts = options_of(c10d.ReduceOptions, opts, named)
        tensor = first(tensors)
        job = make.reduce(self._core, tensor, opts.rootRank, reduction_of(opts.reduceOp))
        return self._issue("reduce", job, opts, [tensor])

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None, **named: Any) -> Work:
        """Reduce a list of shards; shard r stays on rank r."""
        opts = options_of(c10d.ReduceScatterOptions, opts, named)
        output = first(outputs)
        shards = inputs if isinstance(outputs, Tensor) else inputs[0]
        job = make.reduce_scatter(self._core, output, shards, reduction_of(opts.reduceOp))
        return self._issue("reduce_scatter", job, opts, [output])

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None, **named: Any) -> Work:
        """Reduce a tensor of equal shards; shard r stays on rank r."""
        opts = options_of(c10d.ReduceScatterOptions, opts, named)
        if self._replay.two("reduce_scatter", output, input, opts, "reduceOp"):
            return DONE
        job = make.reduce_scatter(self._core, output, [input], reduction_of(opts.reduceOp))
        key = partial(key_of_two, "reduce_scatter", output, input, opts, "reduceOp")
        return self._issue("reduce_scatter_tensor", job, opts, [output], key)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None, **named: Any
    ) -> Work:
        """Several ``reduce_scatter_single``."""
        opts = options_of(c10d.ReduceScatterOptions, opts, named)
        op = reduction_of(opts.reduceOp)
        pairs = zip(outputs, inputs, strict=True)
        jobs = [make.reduce_scatter(self._core, output, [given], op) for output, given in pairs]
        return self._issue("reduce_scatter_tensor", in_turn(jobs), opts, outputs)

    # Gathering

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None, **named: Any) -> Work:
        """Gather every rank's tensor into a list."""
        opts = options_of(c10d.AllgatherOptions, opts, named)
        listed = outputs if isinstance(inputs, Tensor) else outputs[0]
        job = make.allgather(self._core, _listed(listed, self.size()), first(inputs))
        return self._issue("all_gather", job, opts, [listed])

    def allgather_coalesced(self, outputs: Any, inputs: Tensors, opts: Any = None, **named: Any) -> Work:
        """Several ``allgather``; ``outputs[r][i]`` is filled with rank r's i-th tensor."""
        opts = options_of(c10d.AllgatherOptions, opts, named)
        lists = zip(*_listed(outputs, self.size()), strict=True)
        jobs = [make.allgather(self._core, listed, given) for listed, given in zip(lists, inputs, strict=True)]
        return self._issue("all_gather", in_turn(jobs), opts, outputs)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None, **named: Any) -> Work:
        """Gather every rank's tensor into one."""
        if self._replay.two("all_gather", output, input, opts, None):
            return DONE
        opts = options_of(c10d.AllgatherOptions, opts, named)
        job = make.allgather(self._core, [output], input)
        key = partial(key_of_two, "all_gather", output, input, opts, None)
        return self._issue("all_gather_into_tensor", job, opts, [output], key)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None, **named: Any) -> Work:
        """Several ``all_gather_single``."""
        opts = options_of(c10d.AllgatherOptions, opts, named)
        pairs = zip(outputs, inputs, strict=True)
        jobs = [make.allgather(self._core, [output], given) for output, given in pairs]
        return self._issue("all_gather_into_tensor", in_turn(jobs), opts, outputs)

    def gather(self, outputs: Any, inputs: Any, opts: Any = None, **named: Any) -> Work:
        """Gather every rank's tensor on the root."""
        opts = options_of(c10d.GatherOptions, opts, named)
        listed = outputs[0] if outputs and not isinstance(outputs[0], Tensor) else outputs
        job = make.gather(self._core, listed, first(inputs), opts.rootRank)
        return self._issue("gather", job, opts, [listed])

    # Spreading

    def broadcast(self, tensors: Any, opts: Any = None, **named: Any) -> Work:
        """Copy the root's tensor to all."""
        opts = options_of(c10d.BroadcastOptions, opts, named)
        tensor, root = first(tensors), opts.rootRank
        if self._replay.two("broadcast", tensor, tensor, opts, "rootRank"):
            return DONE
        job = make.broadcast(self._core, tensor, root)
        key = partial(key_of_two, "broadcast", tensor, tensor, opts, "rootRank")
        return self._issue("broadcast", job, opts, [tensor], key)

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None, **named: Any) -> Work:
        """Give each rank its tensor of the root's list."""
        opts = options_of(c10d.ScatterOptions, opts, named)
        output = first(outputs)
        listed = inputs[0] if inputs and not isinstance(inputs[0], Tensor) else inputs
        return self._issue("scatter", make.scatter(self._core, output, listed, opts.rootRank), opts, [output])

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None, **named: Any) -> Work:
        """Exchange lists of tensors of any sizes."""
        opts = options_of(c10d.AllToAllOptions, opts, named)
        return self._issue("all_to_all", make.alltoall(self._core, outputs, inputs), opts, outputs)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] = (),
        input_split_sizes: Sequence[int] = (),
        opts: Any = None,
        **named: Any,
    ) -> Work:
        """Exchange equal shards, or parts of the sizes given."""
        even = not output_split_sizes and not input_split_sizes
        if even and self._replay.two("all_to_all", output, input, opts, None):
            return DONE
        opts = options_of(c10d.AllToAllOptions, opts, named)
        job = make.alltoall_single(self._core, output, input, output_split_sizes, input_split_sizes)
        key = partial(key_of_two, "all_to_all", output, input, opts, None) if even else None
        return self._issue("all_to_all_single", job, opts, [output], key)

    # Names of torch before 2.13

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    # Point to point

    def send(self, tensors: Any, dst: int, tag: int = 0) -> Work:
        """Begin to send a tensor."""
        return self._message("send", lambda limit: self._opened.send(first(tensors), dst, tag, limit))

    def recv(self, tensors: Any, src: int, tag: int = 0) -> Work:
        """Begin to receive a tensor."""
        return self._message("recv", lambda limit: self._opened.receive(first(tensors), src, tag, limit))

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        """Begin to receive a tensor from any rank."""
        return self._message("recv_anysource", lambda limit: self._opened.receive(first(tensors), None, tag, limit))

    def _message(self, name: str, begin: Callable[[float], PendingWork]) -> Work:
        """Begin a message."""
        self._core.refuse()
        with shown(name):
            return begin(self._core.timeout)

    # Order

    def barrier(self, opts: Any = None, **named: Any) -> Work:
        """Wait for all ranks."""
        try:
            call = self._core.hot[BARRIER]
            repeats = not opts.asyncOp and opts.timeout.days < 0
        except NOT_FOUND:
            repeats = False
        if repeats and self._replay.again(call):
            return DONE
        opts = options_of(c10d.BarrierOptions, opts, named)
        limit = seconds(opts, self._core.timeout)
        return self._issue("barrier", self._meet, opts, (), _key_of_barrier if limit == self._core.timeout else None)

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """Wait for all ranks; rank 0 names those that did not come."""
        limit = self._core.timeout if timeout is None else max(0.0, seconds(timeout, 0.0))
        self._core.issue("monitored_barrier", lambda given: self._monitored.wait(given, wait_all_ranks), False, limit)

    def _start_coalescing(self, device: Any = None) -> None:  # noqa: ARG002
        self._core.coalescing = []

    def _end_coalescing(self, device: Any = None) -> Work:  # noqa: ARG002
        works, self._core.coalescing = self._core.coalescing or [], None
        return ManyWorks(works)

    # Life

    def _get_sequence_number_for_group(self) -> int:
        return self._core.sequence

    def _set_sequence_number_for_group(self) -> None:
        """All ranks begin at 0."""

    def set_timeout(self, timeout: Any) -> None:
        """Set the timeout of the calls that follow."""
        self._core.timeout = seconds(timeout, self._core.timeout)
        self._core.hot.clear()

    _set_default_timeout = set_timeout

    def split_group(self, new_ranks: Sequence[int], *arguments: Any, **named: Any) -> Any:
        """A group of some of this group's ranks, or None on the others; every rank of this group calls it."""
        return self._opened.split(self, new_ranks, *arguments, **named)

    def shutdown(self) -> None:
        """Let go of everything; called by ``destroy_process_group``, and when nobody has the group any more."""
        self._closer()

    def abort(self) -> None:
        """As ``shutdown``, but calls that have not ended fail at once."""
        self._core.worker.grace = 0.0
        self.shutdown()


def _key_of_barrier() -> Key:
    return BARRIER


def _close(core: Core, opened: Opened) -> None:
    opened.close()  # the ticker of messages first: it uses the session that the core closes
    core.close()


def core_of(group: Any = None) -> Core:
    """What a group (default: the world) runs its calls with.

    Raises:
        SpecError: no group of this backend.
    """
    found = c10d._get_default_group() if group is None else group
    if not isinstance(found, CommlibGroup):
        raise TorchSpecError(f"{type(found).__name__} is no group of the backend commlib")
    return found._core


def flight_record(group: Any = None, last: int | None = None) -> Any:
    """The last calls of a group (default: the world): a ``FlightRecord`` with ``text()`` and ``json()``.

    Raises:
        SpecError: no group of this backend, or one of one rank.
    """
    found = c10d._get_default_group() if group is None else group
    if not isinstance(found, CommlibGroup):
        raise TorchSpecError(f"{type(found).__name__} is no group of the backend commlib")
    return found._opened.flight(last)


def _listed(outputs: Any, ranks: int) -> Any:
    if len(outputs) != ranks:
        raise TorchSpecError(f"all_gather: the output list has {len(outputs)} tensors, not {ranks}")
    return outputs

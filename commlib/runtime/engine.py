"""The engine: one single-threaded loop per rank over an endpoint; threadblocks progress independently of each other.

A step first takes its message, then, if it sends, waits for room: the order that the verifier simulates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from commlib.collectives import Buffer
from commlib.ir.algorithm import RECEIVES, SENDS, Op
from commlib.runtime.kernels import Array, Kernels
from commlib.runtime.onesided import OneSidedEndpoint, unreachable
from commlib.runtime.operations import Arrays, perform, transfer
from commlib.runtime.plan import BlockPlan, Link, OneSided, RankPlan, StepPlan
from commlib.runtime.transport import Endpoint, Frame, Wait

Buffers = dict[Buffer, Array]
Hook = Callable[[int, int, int], None]
"""Called with (threadblock, step, tile) before each step: where tests script their faults."""

_RECEIVES = tuple(bool(flag) for flag in RECEIVES)
_SENDS = tuple(bool(flag) for flag in SENDS)


def execute(
    plan: RankPlan, buffers: Buffers, endpoint: Endpoint, kernels: Kernels, deadline: float, hook: Hook | None = None
) -> None:
    """Run a rank's plan on its buffers (flat arrays) until every threadblock has finished.

    Args:
        deadline: in ``time.monotonic`` seconds.

    Raises:
        ExecutionError: whatever the endpoint found; the buffers then hold anything.
        SpecError: a one-sided step, and the endpoint reaches no other rank's memory.
    """
    launch = _Launch(plan, buffers, endpoint, kernels, hook)
    running = [_Block(block, launch) for block in plan.blocks if block.steps]
    while running:
        moved = False
        for block in running:
            while block.advance():
                moved = True
        running = [block for block in running if block.tile < plan.tiles]
        if running and not moved:
            endpoint.wait_any(deadline, [block.wait() for block in running])


@dataclass
class _Launch:
    """What the threadblocks of a rank share. ``progress`` counts the steps that each has finished, over all tiles."""

    plan: RankPlan
    buffers: Buffers
    endpoint: Endpoint
    kernels: Kernels
    hook: Hook | None
    progress: list[int] = field(default_factory=list)
    reached: dict[tuple[int, Buffer], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.progress = [0] * len(self.plan.blocks)
        self.steps = [len(block.steps) for block in self.plan.blocks]

    def has_finished(self, threadblock: int, steps: int, tile: int) -> bool:
        """Whether a threadblock has finished its first ``steps`` steps of a tile."""
        return self.progress[threadblock] >= tile * self.steps[threadblock] + steps

    def reaching(self, step: OneSided, threadblock: int, index: int) -> OneSidedEndpoint:
        """The endpoint, if it can do a one-sided step.

        Raises:
            SpecError: it cannot.
        """
        if isinstance(self.endpoint, OneSidedEndpoint):
            return self.endpoint
        rank = self.plan.rank
        peer = next((owner for owner, _ in step.operands if owner != rank), step.peer)
        name = type(self.endpoint).__name__
        raise unreachable("this program", (rank, threadblock, index), step.text, -1 if peer is None else peer, name)

    def memory(self, owner: int, buffer: Buffer, step: OneSided, place: tuple[int, int]) -> Array:
        """The flat array of a rank's buffer."""
        if owner == self.plan.rank:
            return self.buffers[buffer]
        key = (owner, buffer)
        if key not in self.reached:
            self.reached[key] = self.kernels.typed(self.reaching(step, *place).peer_buffer(owner, buffer))
        return self.reached[key]


@dataclass
class _Block:
    """A threadblock at work: where it is, and the message that it has taken but not finished with."""

    plan: BlockPlan
    launch: _Launch
    tile: int = 0
    at: int = 0
    held: Frame | None = None
    entered: bool = False

    def advance(self) -> bool:
        """Do the next step, if there is one and it can be done now."""
        if self.tile >= self.launch.plan.tiles:
            return False
        step = self.plan.steps[self.at]
        if not self.entered and not self._enter(step):
            return False
        endpoint, size = self.launch.endpoint, step.sizes[self.tile] * self.launch.kernels.itemsize
        if _RECEIVES[step.op] and self.held is None and self.plan.recv is not None:
            self.held = endpoint.try_recv(self.plan.recv, size)
            if self.held is None:
                return False
        if step.op is Op.WAIT and not self._take_signal(step.one_sided):
            return False
        out = None
        if _SENDS[step.op] and self.plan.send is not None:
            out = endpoint.try_send(self.plan.send, size)
            if out is None:
                return False
        self._perform(step, out)
        self._finish()
        return True

    def _enter(self, step: StepPlan) -> bool:
        """Begin a step, once all that it depends on has finished in this tile."""
        if not all(self.launch.has_finished(block, steps, self.tile) for block, steps in step.depends):
            return False
        if self.launch.hook is not None:
            self.launch.hook(self.plan.index, self.at, self.tile)
        self.entered = True
        return True

    def _perform(self, step: StepPlan, out: Frame | None) -> None:
        launch, moves = self.launch, step.tiles[self.tile]
        if step.one_sided is not None:
            self._perform_one_sided(step, step.one_sided)
        elif moves:
            arrays = Arrays(
                None if step.source is None else launch.buffers[step.source],
                None if step.destination is None else launch.buffers[step.destination],
                None if self.held is None else launch.kernels.typed(self.held.payload),
                None if out is None else launch.kernels.typed(out.payload),
            )
            perform(step.op, step.overlaps, launch.kernels, moves, arrays)
        if out is not None and self.plan.send is not None:
            launch.endpoint.commit(self.plan.send, out)
        if self.held is not None and self.plan.recv is not None:
            launch.endpoint.release(self.plan.recv, self.held)
            self.held = None

    def _take_signal(self, wait: OneSided | None) -> bool:
        if wait is None or wait.peer is None:
            return True
        return self.launch.reaching(wait, self.plan.index, self.at).try_wait(wait.peer, wait.channel)

    def _perform_one_sided(self, step: StepPlan, one_sided: OneSided) -> None:
        launch, place = self.launch, (self.plan.index, self.at)
        if step.op is Op.SIGNAL and one_sided.peer is not None:
            launch.reaching(one_sided, *place).signal(one_sided.peer, one_sided.channel)
        elif one_sided.tiles[self.tile]:
            arrays = [launch.memory(owner, buffer, one_sided, place) for owner, buffer in one_sided.operands]
            transfer(launch.kernels, one_sided, self.tile, step.overlaps, arrays)

    def _finish(self) -> None:
        self.launch.progress[self.plan.index] += 1
        self.entered = False
        self.at += 1
        if self.at == len(self.plan.steps):
            self.at, self.tile = 0, self.tile + 1

    def wait(self) -> Wait:
        """What the threadblock cannot do now."""
        step, plan = self.plan.steps[self.at], self.launch.plan
        if not self.entered:
            unmet = next((block for block, steps in step.depends if not self._met(block, steps)), None)
            return Wait(self.plan.index, self.at, f"for threadblock {unmet} of its own rank")
        if _RECEIVES[step.op] and self.held is None:
            return self._wait_on(plan.receives, self.plan.recv, "to receive from")
        if step.op is Op.WAIT and step.one_sided is not None:
            peer, channel = step.one_sided.peer, step.one_sided.channel
            what = f"for a signal from rank {peer} on channel {channel}"
            return Wait(self.plan.index, self.at, what, peer, channel)
        return self._wait_on(plan.sends, self.plan.send, "for room to send to")

    def _met(self, block: int, steps: int) -> bool:
        return self.launch.has_finished(block, steps, self.tile)

    def _wait_on(self, links: tuple[Link, ...], link: int | None, what: str) -> Wait:
        if link is None:
            return Wait(self.plan.index, self.at, what)
        peer, channel, _ = links[link]
        return Wait(self.plan.index, self.at, f"{what} rank {peer} on channel {channel}", peer, channel)

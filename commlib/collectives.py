"""Collectives: the one definition of "correct" that verifier, synthesizer and runtimes share.

A rank's input and output are sequences of *shards*; a shard is ``chunks`` chunks. Every standard collective maps
whole shards to whole shards and keeps the chunk's index inside its shard, so one small table of rules defines them
all: which input shards are combined into output shard ``d`` of rank ``r``. A custom collective has shards of one
chunk and lists its sources itself.

Slots are (rank, buffer, chunk index). A *contribution* (rank, index) is the initial content of one input chunk.
In place, input and output lie in one span; ``in_place_offsets`` says where in it each begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cached_property, lru_cache

from commlib.errors import SpecError

MAX_RANKS = 65_536
Contribution = tuple[int, int]
Shards = frozenset[tuple[int, int]]


class Buffer(IntEnum):
    """The three buffers of a rank. In the text forms and in MSCCL XML they are i, o and s."""

    INPUT = 0
    OUTPUT = 1
    SCRATCH = 2

    @property
    def letter(self) -> str:
        """The buffer's letter in MSCCL XML."""
        return "ios"[self]


class Placement(Enum):
    """Where the output lies: in the input's memory (``IN``) or in memory of its own (``OUT``)."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Custom:
    """Pre- and postcondition of a user's own collective, in chunks.

    ``inputs[r]`` and ``outputs[r]`` are buffer sizes; ``sources[r][k]`` is the set of contributions (rank, index)
    that output chunk k of rank r must hold, or None where anything may be there. ``offsets[r]`` is (input offset,
    output offset) in the shared span when run in place; None: in place has no meaning. ``specified`` is False for
    a file whose postcondition nobody gave: then only the rest is proved.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sources: tuple[tuple[frozenset[Contribution] | None, ...], ...]
    offsets: tuple[tuple[int, int], ...] | None = None
    specified: bool = True


@dataclass(frozen=True)
class _Rule:
    """The definition of one standard collective, in shards; see the module's text."""

    inputs: Callable[[Collective, int], int]
    outputs: Callable[[Collective, int], int]
    sources: Callable[[Collective, int, int], Shards | None]
    offsets: Callable[[Collective, int], tuple[int, int]]
    rooted: bool = False
    reduces: bool = False


@dataclass(frozen=True)
class Collective:
    """A collective on ``ranks`` ranks whose shards are ``chunks`` chunks long.

    ``root`` is a rank for the rooted ones (broadcast, reduce, gather, scatter) and None otherwise. Build one with
    the functions of this module (``allreduce(8, chunks=2)``), not by hand.

    Raises:
        SpecError: ranks, chunks or root out of range, or no such collective.
    """

    name: str
    ranks: int
    chunks: int = 1
    root: int | None = None
    custom: Custom | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for word, value in (("ranks", self.ranks), ("chunks", self.chunks), ("root", self.root)):
            if type(value) is not int and not (word == "root" and value is None):
                raise SpecError(f"{self.name}: {word} is a whole number, not {value!r}")
        if not 1 <= self.ranks <= MAX_RANKS:
            raise SpecError(f"{self.name} needs 1 to {MAX_RANKS} ranks, not {self.ranks}", ranks=self.ranks)
        if self.chunks < 1:
            raise SpecError(f"{self.name} needs at least one chunk per shard, not {self.chunks}", chunks=self.chunks)
        if (self.custom is None) == (self.name not in _RULES):
            known = ", ".join(_RULES)
            raise SpecError(
                f"no collective is called {self.name!r}; there are {known}, or a custom one with conditions"
            )
        if self._rule.rooted != (self.root is not None):
            raise SpecError(f"{self.name} takes {'a root' if self._rule.rooted else 'no root'}", root=self.root)
        if self.custom is not None and len(self.custom.inputs) != self.ranks:
            raise SpecError(f"{self.name} has conditions for {len(self.custom.inputs)} ranks, not {self.ranks}")
        if self.root is not None and not 0 <= self.root < self.ranks:
            raise SpecError(f"root {self.root} is not one of the {self.ranks} ranks of {self.name}", root=self.root)

    @property
    def _rule(self) -> _Rule:
        return _RULES[self.name] if self.custom is None else _CUSTOM

    @property
    def reduces(self) -> bool:
        """Whether some output combines several contributions (so that a reduction must be given at launch)."""
        return self._custom_reduces if self.custom is not None else self._rule.reduces

    @cached_property
    def _custom_reduces(self) -> bool:
        rows = self.custom.sources if self.custom is not None else ()
        return any(source is not None and len(source) > 1 for row in rows for source in row)

    @property
    def specified(self) -> bool:
        """False only for a custom collective read from a file whose postcondition nobody gave."""
        return self.custom is None or self.custom.specified

    def input_chunks(self, rank: int) -> int:
        """The number of chunks in the input buffer of a rank (0 where it has no input, as off a broadcast's root)."""
        return self._rule.inputs(self, rank) * self.chunks

    def output_chunks(self, rank: int) -> int:
        """The number of chunks in the output buffer of a rank."""
        return self._rule.outputs(self, rank) * self.chunks

    def buffer_chunks(self, rank: int, buffer: Buffer, scratch: Sequence[int]) -> int:
        """The number of chunks in a buffer of a rank; ``scratch`` has the scratch sizes of all ranks."""
        if buffer is Buffer.INPUT:
            return self.input_chunks(rank)
        return self.output_chunks(rank) if buffer is Buffer.OUTPUT else scratch[rank]

    def shard_sources(self, rank: int, shard: int) -> Shards | None:
        """The input shards (rank, shard) combined in an output shard; None where anything may be there."""
        return self._rule.sources(self, rank, shard)

    def expected(self, rank: int, index: int) -> frozenset[Contribution] | None:
        """The postcondition: the contributions that output chunk ``index`` of ``rank`` holds, each exactly once.

        None where anything may be there.
        """
        shard, chunk = divmod(index, self.chunks)
        sources = self._rule.sources(self, rank, shard)
        return None if sources is None else frozenset((r, s * self.chunks + chunk) for r, s in sources)

    @property
    def can_be_in_place(self) -> bool:
        """Whether in place has a meaning for this collective."""
        return self.custom is None or self.custom.offsets is not None

    def in_place_offsets(self, rank: int) -> tuple[int, int]:
        """(offset of input, offset of output), in chunks, in the one span that they share when run in place.

        Raises:
            SpecError: a custom collective that says nothing of in place.
        """
        input_shard, output_shard = self._rule.offsets(self, rank)
        return input_shard * self.chunks, output_shard * self.chunks

    def refine(self, factor: int) -> Collective:
        """The same collective with every chunk cut into ``factor`` chunks."""
        return replace(self, chunks=self.chunks * factor)

    def __str__(self) -> str:
        root = "" if self.root is None else f", root={self.root}"
        return f"{self.name}(ranks={self.ranks}, chunks={self.chunks}{root})"


@lru_cache(maxsize=1024)
def _all(ranks: int, shard: int) -> Shards:
    """The same shard of every rank; one object for all who ask, so that comparing and hashing it is cheap."""
    return frozenset((q, shard) for q in range(ranks))


def _custom_offsets(c: Collective, rank: int) -> tuple[int, int]:
    if c.custom is None or c.custom.offsets is None:
        raise SpecError(f"{c.name} has no in-place form: its definition gives no offsets", collective=c.name)
    return c.custom.offsets[rank]


def _custom(c: Collective) -> Custom:
    if c.custom is None:
        raise SpecError(f"{c.name} has no conditions", collective=c.name)
    return c.custom


_CUSTOM = _Rule(
    inputs=lambda c, r: _custom(c).inputs[r],
    outputs=lambda c, r: _custom(c).outputs[r],
    sources=lambda c, r, d: _custom(c).sources[r][d],
    offsets=_custom_offsets,
)


def _alltoall_rule() -> _Rule:
    return _Rule(
        inputs=lambda c, r: c.ranks,
        outputs=lambda c, r: c.ranks,
        sources=lambda c, r, d: frozenset({(d, r)}),
        offsets=lambda c, r: (0, 0),
    )


_RULES: dict[str, _Rule] = {
    "allreduce": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: _all(c.ranks, 0),
        offsets=lambda c, r: (0, 0),
        reduces=True,
    ),
    "allgather": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: c.ranks,
        sources=lambda c, r, d: frozenset({(d, 0)}),
        offsets=lambda c, r: (r, 0),
    ),
    "reducescatter": _Rule(
        inputs=lambda c, r: c.ranks,
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: _all(c.ranks, r),
        offsets=lambda c, r: (0, r),
        reduces=True,
    ),
    "alltoall": _alltoall_rule(),
    "alltoallv": _alltoall_rule(),
    "broadcast": _Rule(
        inputs=lambda c, r: int(r == c.root),
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: frozenset({(c.root or 0, 0)}),
        offsets=lambda c, r: (0, 0),
        rooted=True,
    ),
    "reduce": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: int(r == c.root),
        sources=lambda c, r, d: _all(c.ranks, 0),
        offsets=lambda c, r: (0, 0),
        rooted=True,
        reduces=True,
    ),
    "gather": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: c.ranks if r == c.root else 0,
        sources=lambda c, r, d: frozenset({(d, 0)}),
        offsets=lambda c, r: (r if r == c.root else 0, 0),
        rooted=True,
    ),
    "scatter": _Rule(
        inputs=lambda c, r: c.ranks if r == c.root else 0,
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: frozenset({(c.root or 0, r)}),
        offsets=lambda c, r: (0, r if r == c.root else 0),
        rooted=True,
    ),
    "sendrecv": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: frozenset({((r - 1) % c.ranks, 0)}),
        offsets=lambda c, r: (0, 0),
    ),
    "alltonext": _Rule(
        inputs=lambda c, r: 1,
        outputs=lambda c, r: 1,
        sources=lambda c, r, d: frozenset({(r - 1, 0)}) if r > 0 else None,
        offsets=lambda c, r: (0, 0),
    ),
}

COLLECTIVES: tuple[str, ...] = tuple(_RULES)
ROOTED: frozenset[str] = frozenset(name for name, rule in _RULES.items() if rule.rooted)


def collective(name: str, ranks: int, chunks: int = 1, root: int | None = None) -> Collective:
    """The standard collective of this name; rooted ones take root 0 when none is given.

    Raises:
        SpecError: no such collective, or ranks, chunks or root out of range.
    """
    return Collective(name, ranks, chunks, 0 if root is None and name in ROOTED else root)


def allreduce(ranks: int, chunks: int = 1) -> Collective:
    """Every rank gets the reduction of all inputs; input and output have ``chunks`` chunks."""
    return Collective("allreduce", ranks, chunks)


def allgather(ranks: int, chunks: int = 1) -> Collective:
    """Every rank gets all inputs in rank order; input ``chunks``, output ``ranks * chunks`` chunks."""
    return Collective("allgather", ranks, chunks)


def reducescatter(ranks: int, chunks: int = 1) -> Collective:
    """Rank r gets the reduction of everyone's shard r; input ``ranks * chunks``, output ``chunks`` chunks."""
    return Collective("reducescatter", ranks, chunks)


def alltoall(ranks: int, chunks: int = 1) -> Collective:
    """Output shard d of rank r is input shard r of rank d; both have ``ranks * chunks`` chunks."""
    return Collective("alltoall", ranks, chunks)


def alltoallv(ranks: int, chunks: int = 1) -> Collective:
    """As alltoall over chunk indices; the sizes, which differ by pair, belong to the launch's layout."""
    return Collective("alltoallv", ranks, chunks)


def broadcast(ranks: int, chunks: int = 1, root: int = 0) -> Collective:
    """Every rank gets the root's input; only the root has an input."""
    return Collective("broadcast", ranks, chunks, root)


def reduce(ranks: int, chunks: int = 1, root: int = 0) -> Collective:
    """The root gets the reduction of all inputs; only the root has an output."""
    return Collective("reduce", ranks, chunks, root)


def gather(ranks: int, chunks: int = 1, root: int = 0) -> Collective:
    """The root gets all inputs in rank order; only the root has an output, of ``ranks * chunks`` chunks."""
    return Collective("gather", ranks, chunks, root)


def scatter(ranks: int, chunks: int = 1, root: int = 0) -> Collective:
    """Rank r gets the root's input shard r; only the root has an input, of ``ranks * chunks`` chunks."""
    return Collective("scatter", ranks, chunks, root)


def sendrecv(ranks: int, chunks: int = 1) -> Collective:
    """Rank r's input goes to rank r + 1, the last rank's to rank 0 (what nccl-tests calls sendrecv)."""
    return Collective("sendrecv", ranks, chunks)


def alltonext(ranks: int, chunks: int = 1) -> Collective:
    """Rank r's input goes to rank r + 1; rank 0's output may hold anything, the last rank's input goes nowhere."""
    return Collective("alltonext", ranks, chunks)


def custom(
    name: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    sources: Mapping[tuple[int, int], Sequence[Contribution] | frozenset[Contribution]],
    offsets: Sequence[tuple[int, int]] | None = None,
) -> Collective:
    """A user's own collective: rank r has ``inputs[r]`` input and ``outputs[r]`` output chunks.

    ``sources[(r, k)]`` lists the input chunks (rank, index) that output chunk k of rank r must combine; output
    chunks that it leaves out may hold anything. ``offsets[r]`` = (input offset, output offset) defines in place.

    Raises:
        SpecError: a slot outside its buffer, or lists of different length.
    """
    if name in _RULES:
        raise SpecError(f"{name!r} is a standard collective; give the custom one another name", collective=name)
    ranks = len(inputs)
    if len(outputs) != ranks or (offsets is not None and len(offsets) != ranks):
        raise SpecError(f"{name}: inputs, outputs and offsets must have one entry per rank", collective=name)
    if any(size < 0 for size in (*inputs, *outputs)):
        raise SpecError(f"{name}: buffer sizes cannot be negative", collective=name)
    for rank, (first, second) in enumerate(offsets or ()):
        if not (0 <= first <= outputs[rank] and 0 <= second <= inputs[rank]):
            raise SpecError(
                f"{name}: in place, input and output of rank {rank} cannot begin at {first} and {second} of one span "
                f"of {inputs[rank]} and {outputs[rank]} chunks",
                rank=rank,
            )
    table: list[list[frozenset[Contribution] | None]] = [[None] * size for size in outputs]
    for (rank, index), contributions in sources.items():
        if not (0 <= rank < ranks and 0 <= index < outputs[rank]):
            raise SpecError(f"{name}: there is no output chunk {index} on rank {rank}", rank=rank, chunk=index)
        for source_rank, source_index in contributions:
            if not (0 <= source_rank < ranks and 0 <= source_index < inputs[source_rank]):
                raise SpecError(
                    f"{name}: output chunk {index} of rank {rank} wants input chunk {source_index} of rank "
                    f"{source_rank}, which does not exist",
                    rank=source_rank,
                    chunk=source_index,
                )
        table[rank][index] = frozenset(contributions)
    conditions = Custom(
        tuple(inputs), tuple(outputs), tuple(map(tuple, table)), None if offsets is None else tuple(offsets)
    )
    return Collective(name, ranks, 1, None, conditions)

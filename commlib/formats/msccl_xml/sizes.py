"""Which Collective an MSCCL XML file is, from its sizes and from what the caller gives.

The file has no root and no conditions: they are the caller's, and never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from commlib.collectives import COLLECTIVES, ROOTED, Buffer, Collective, Custom, Placement
from commlib.errors import SpecError
from commlib.formats.limits import ReaderLimits, refuse
from commlib.formats.msccl_xml import names
from commlib.formats.msccl_xml.document import Document, Gpu


@dataclass(frozen=True)
class Sizes:
    """Sizes that a file declares and needs. ``used[b][r]``: chunks of buffer b that the steps of rank r reach."""

    document: Document
    dialect: names.Dialect
    gpus: list[Gpu]
    chunks: int
    used: list[list[int]]
    limits: ReaderLimits

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return len(self.gpus)


def resolve(sizes: Sizes, collective: Collective | str | None, root: int | None) -> Collective:
    """The Collective of a file.

    Raises:
        FormatError: what the caller gives does not fit the file, or the file's sizes fit no such collective; a
            rooted collective without a root.
        LimitError: a custom collective whose buffers are larger than the limits allow.
    """
    document = sizes.document
    named = names.canonical(document.header.get("coll", names.CUSTOM))
    given = collective.name if isinstance(collective, Collective) else collective
    if named is not None and given is not None and given != named:
        document.fail(document.line, f"the file's collective is {named}, not {given}", collective=named)
    if isinstance(collective, Collective):
        return _given(sizes, collective, root)
    name = given or named
    if name is None:
        if root is not None:
            document.fail(document.line, "a root was given, but the file names no rooted collective")
        return _unspecified(sizes)
    if name not in COLLECTIVES:
        document.fail(document.line, f"no collective is called {name!r}; there are {', '.join(COLLECTIVES)}")
    return _standard(sizes, name, root)


def _given(sizes: Sizes, collective: Collective, root: int | None) -> Collective:
    document = sizes.document
    if collective.ranks != sizes.ranks:
        document.fail(document.line, f"the file has {sizes.ranks} ranks, the collective given {collective.ranks}")
    if root is not None and root != collective.root:
        document.fail(document.line, f"root {root} was given beside a collective with root {collective.root}")
    if collective.custom is None and sizes.chunks not in _loops(collective):
        expected = " or ".join(map(str, sorted(set(_loops(collective)))))
        document.fail(document.line, f"nchunksperloop is {sizes.chunks}, but {collective} has {expected}")
    collective = _cut(sizes, collective)
    _check_declared(sizes, collective)
    return collective


def _cut(sizes: Sizes, collective: Collective) -> Collective:
    """A user's own collective with its chunks cut into as many parts as the file's, if all its buffers say the same."""
    if collective.custom is None:
        return collective
    gpus = sorted(sizes.gpus, key=lambda gpu: gpu.id)
    declared = [count for gpu in gpus for count in (gpu.inputs, gpu.outputs)]
    own = [count(gpu.id) for gpu in gpus for count in (collective.input_chunks, collective.output_chunks)]
    factor = max(declared) // max(1, *own)
    fits = factor > 1 and declared == [factor * count for count in own]
    return collective.refine(factor) if fits else collective


def _loops(collective: Collective) -> list[int]:
    """The values of nchunksperloop that may stand for a standard collective."""
    dialects: tuple[names.Dialect, ...] = ("msccl", "executor")
    return [names.chunks_per_loop(collective.name, collective.ranks, collective.chunks, d) for d in dialects]


def _standard(sizes: Sizes, name: str, root: int | None) -> Collective:
    document = sizes.document
    if name in ROOTED and root is None:
        message = f"{name} needs a root, which MSCCL XML does not hold: pass root=RANK"
        document.fail(document.line, message, collective=name)
    candidates = _candidates(sizes, name)
    if not candidates:
        message = f"nchunksperloop={sizes.chunks} is not a multiple of the {sizes.ranks} ranks, as {name} needs"
        document.fail(document.line, message, collective=name)
    try:
        collectives = [Collective(name, sizes.ranks, chunks, root) for chunks in candidates]
    except SpecError as error:
        document.fail(document.line, error.message, **error.fields)
    for collective in collectives:
        if _misfit(sizes, collective) is None:
            return collective
    _check_declared(sizes, collectives[0])
    return collectives[0]


def _candidates(sizes: Sizes, name: str) -> list[int]:
    """The chunks per shard that nchunksperloop may mean, the dialect's own meaning first."""
    whole = [sizes.chunks // sizes.ranks] if sizes.chunks % sizes.ranks == 0 else []
    if name not in names.PER_RANK:
        return [sizes.chunks]
    if name not in names.PER_SHARD_IN_EXECUTOR:
        return whole
    return [sizes.chunks, *whole] if sizes.dialect == "executor" else [*whole, sizes.chunks]


def _check_declared(sizes: Sizes, collective: Collective) -> None:
    misfit = _misfit(sizes, collective)
    if misfit is not None:
        gpu, message = misfit
        sizes.document.fail(gpu.line, message, rank=gpu.id)


def _misfit(sizes: Sizes, collective: Collective) -> tuple[Gpu, str] | None:
    """The first gpu whose declared sizes are not the collective's; 0 says nothing.

    A rank off the root may declare the buffer that only the root has, but not use it. A user's own collective may
    have more than the file declares, since msccl-tools declares what is used.
    """
    inputs = [collective.input_chunks(rank) for rank in range(sizes.ranks)]
    outputs = [collective.output_chunks(rank) for rank in range(sizes.ranks)]
    for gpu in sizes.gpus:
        for declared, expected, word in ((gpu.inputs, inputs, "i_chunks"), (gpu.outputs, outputs, "o_chunks")):
            allowed = {0, expected[gpu.id]} | ({max(expected)} if collective.root is not None else set())
            fits = declared <= expected[gpu.id] if collective.custom is not None else declared in allowed
            if not fits:
                return gpu, f"{word}={declared}, but {collective} has {expected[gpu.id]} on rank {gpu.id}"
    return None


def _unspecified(sizes: Sizes) -> Collective:
    """A custom collective of which only the buffer sizes are known."""
    inputs = tuple(
        max(gpu.inputs or sizes.chunks, used) for gpu, used in zip(sizes.gpus, sizes.used[Buffer.INPUT], strict=True)
    )
    outputs = tuple(
        max(gpu.outputs or sizes.chunks, used) for gpu, used in zip(sizes.gpus, sizes.used[Buffer.OUTPUT], strict=True)
    )
    document, bound = sizes.document, sizes.limits.max_slots
    slots = sum(inputs) + sum(outputs)
    if slots > bound:
        what = f"{slots} chunks in the buffers that its steps need"
        raise refuse(document.file, document.line, "max_slots", bound, what)
    anything = {size: (None,) * size for size in set(outputs)}
    conditions = Custom(
        inputs, outputs, tuple(anything[size] for size in outputs), ((0, 0),) * sizes.ranks, specified=False
    )
    return Collective(document.header.get("coll", names.CUSTOM), sizes.ranks, 1, None, conditions)


def placements(document: Document, dialect: names.Dialect) -> frozenset[Placement]:
    """The placements that a file is for. Without outofplace the file is for the one that inplace says, unless our
    own attribute says that it is for both.

    Raises:
        FormatError: it says that it is for none.
    """
    header, line = document.header, document.line
    if "inplace" not in header:
        document.note("attribute inplace of <algo> is missing: taken as 0")
    flags = {Placement.IN: _flag(document, "inplace", 0)}
    if "placements" in header:
        if header["placements"] == names.BOTH_PLACEMENTS and dialect == "msccl":
            return frozenset(Placement)
        document.note("attribute placements of <algo> ignored, as the runtimes do")
    flags[Placement.OUT] = _flag(document, "outofplace", 1 - flags[Placement.IN])
    if not any(flags.values()):
        document.fail(line, f"inplace and outofplace are both 0: this {dialect} file is for no placement at all")
    return frozenset(placement for placement, on in flags.items() if on)


def _flag(document: Document, key: str, default: int) -> int:
    value = document.number(document.header, key, document.line, 0, default)
    if value > 1:
        document.fail(document.line, f"{key}={value} is neither 0 nor 1", key=key)
    return value

"""Reach: the memory of each rank of a host that one-sided steps of the others work on, for the Python engine.

All ranks know how much each needs in a launch, and so alike when someone takes new memory. It comes without a name,
as segments do; the board says as which descriptor, and who has mapped all that is new says so, too, before anyone
goes on and may let go of it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np

from commlib.errors import ExecutionError
from commlib.runtime.shm.control import BOARD, BOARD_ENTRY, BOARD_TEXT, CALLS, DONE, ENTERED, PAGE
from commlib.runtime.shm.memory import Mapping
from commlib.runtime.shm.segment import anonymous_file, map_peer_file
from commlib.runtime.transport import Bytes
from commlib.runtime.wire import Call

_ENTRY = struct.Struct("<QQQQQ")
ARRIVED, MAPPED = ENTERED // 8, DONE // 8
"""Where ranks say in which call they have arrived with one-sided steps, and mapped what is new in it (u64 words)."""


class Reach:
    """As one rank sees it; ranks are counted on this host. ``controls``: their control areas."""

    def __init__(self, rank: int, controls: Sequence[memoryview], pids: Sequence[int]) -> None:
        self._rank, self._controls, self._pids = rank, controls, tuple(pids)
        self._words = [control.cast("Q") for control in controls]
        self._sizes = [0] * len(controls)
        self._mapped: dict[int, Mapping] = {}
        self._descriptor = -1

    def arrive(self, call: Call, needs: Sequence[int]) -> list[int]:
        """Have the memory that this rank needs, and say that it is in this call; the ranks whose memory is new.

        Raises:
            ExecutionError: there is no memory left.
        """
        new = [rank for rank, need in enumerate(needs) if need > self._sizes[rank]]
        for rank in new:
            self._sizes[rank] = 1 << (max(needs[rank], PAGE) - 1).bit_length()
        if self._rank in new:
            self._allocate(self._sizes[self._rank])
        at, text = BOARD + call.number % CALLS * BOARD_ENTRY, call.text.encode()[: BOARD_TEXT - 1]
        own, word = self._controls[self._rank], int.from_bytes(call.fingerprint, "little")
        _ENTRY.pack_into(own, at, call.number, 0, word, max(0, self._descriptor), self._sizes[self._rank])
        own[at + _ENTRY.size : at + BOARD_ENTRY] = text.ljust(BOARD_TEXT, b"\0")
        self.say(ARRIVED, call)
        return new

    def say(self, word: int, call: Call) -> None:
        """This rank is so far (``ARRIVED`` or ``MAPPED``) in this call."""
        self._words[self._rank][word] = call.number

    def words(self, rank: int) -> memoryview:
        """The words of a rank."""
        return self._words[rank]

    def makes(self, rank: int, call: Call) -> tuple[int, str] | None:
        """If a rank that has arrived makes another call under this number: its fingerprint, and what it says."""
        at = BOARD + call.number % CALLS * BOARD_ENTRY
        number, _, word, _, _ = _ENTRY.unpack_from(self._controls[rank], at)
        if (number, word) == (call.number, int.from_bytes(call.fingerprint, "little")):
            return None
        text = bytes(self._controls[rank][at + _ENTRY.size : at + BOARD_ENTRY]).split(b"\0", 1)[0]
        return number, text.decode(errors="replace")

    def attach(self, rank: int, call: Call) -> None:
        """Map the new memory of a rank that has arrived.

        Raises:
            ExecutionError: it cannot be mapped.
        """
        if rank == self._rank:
            return
        at = BOARD + call.number % CALLS * BOARD_ENTRY
        _, _, _, descriptor, size = _ENTRY.unpack_from(self._controls[rank], at)
        try:
            self._mapped[rank] = map_peer_file(self._pids[rank], descriptor, size)
        except OSError as error:
            raise ExecutionError(f"the memory of process {self._pids[rank]} cannot be mapped: {error}") from error

    def memory(self, rank: int) -> Bytes:
        """The memory of a rank: none, if it has never needed any."""
        found = self._mapped.get(rank)
        return np.empty(0, dtype=np.uint8) if found is None else np.asarray(found)

    def _allocate(self, size: int) -> None:
        try:
            descriptor = anonymous_file(size)
        except OSError as error:
            raise ExecutionError(f"there is no shared memory of {size} bytes for one-sided steps: {error}") from error
        try:
            self._mapped[self._rank] = Mapping(descriptor, size)
        except OSError as error:
            os.close(descriptor)
            raise ExecutionError(f"there is no shared memory of {size} bytes for one-sided steps: {error}") from error
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the descriptor of the own memory: whoever is to map it has done so."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

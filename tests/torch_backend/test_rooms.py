"""Rooms: memory to stage tensors in, kept for the next call, but not without bound."""

from __future__ import annotations

import torch

from commlib.torch_backend.operand import KEPT, Operand, Rooms


def held(rooms: Rooms) -> int:
    return sum(room.untyped_storage().nbytes() for room in rooms._rooms.values())


def test_rooms_are_used_again_and_grow() -> None:
    rooms = Rooms()
    first = rooms.take("input", 1000, torch.float32)
    assert (first.numel(), first.dtype) == (1000, torch.float32)
    assert rooms.take("input", 500, torch.float64).data_ptr() == first.data_ptr()
    assert rooms.take("output", 1000, torch.float32).data_ptr() != first.data_ptr()
    assert rooms.take("input", 5000, torch.uint8).numel() == 5000
    assert held(rooms) == 8192 + 4096
    rooms.clear()
    assert held(rooms) == 0


def test_large_tensors_leave_no_room_behind() -> None:
    rooms, elements = Rooms(), KEPT // 4 + 1
    grid = torch.empty(1, dtype=torch.float32).expand(elements)  # one element of memory, that many to stage
    line = Operand([grid]).load(rooms, "input")
    assert (line.numel(), line.dtype) == (elements, torch.float32)
    assert held(rooms) == 0
    assert rooms.take("input", KEPT, torch.uint8).numel() == KEPT
    assert held(rooms) == KEPT

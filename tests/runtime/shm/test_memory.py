"""Mapped memory: where it begins, huge pages under it, and that nothing of it stays."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from commlib.runtime.shm.memory import HUGE_PAGE, Mapping
from commlib.runtime.shm.segment import anonymous_file


def mapped(size: int) -> Mapping:
    """New shared memory."""
    descriptor = anonymous_file(size)
    try:
        return Mapping(descriptor, size)
    finally:
        os.close(descriptor)


def spaces() -> int:
    """Bytes of address space that this process has taken."""
    found = re.search(r"VmSize:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("size", [1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 2 * HUGE_PAGE + 4097])
def test_large_mappings_begin_on_a_huge_page_and_go_as_a_whole(size: int) -> None:
    mapped(size)
    before = spaces()
    for _ in range(50):
        mapping = mapped(size)
        assert size < HUGE_PAGE or mapping.address % HUGE_PAGE == 0
        flat = np.asarray(mapping)
        flat[0] = flat[-1] = 7
        del mapping, flat
    assert spaces() - before < 2 * HUGE_PAGE


def test_a_mapping_that_fails_takes_no_space() -> None:
    folder = os.open("/", os.O_RDONLY)
    before = spaces()
    for _ in range(50):
        with pytest.raises(OSError, match="cannot map"):
            Mapping(folder, HUGE_PAGE)
    os.close(folder)
    assert spaces() - before < 2 * HUGE_PAGE


def test_huge_pages_keep_what_is_there() -> None:
    mapping = mapped(3 * HUGE_PAGE + 4096)
    assert mapping.populate(0, mapping.size)
    flat = np.asarray(mapping)
    flat[:] = np.arange(flat.size) % 251
    if mapping.enlarge_pages(4096, mapping.size - 4096):  # the first huge page is not in the range as a whole
        entry = Path("/proc/self/smaps").read_text().partition(f"{mapping.address:x}-")[2]
        assert re.search(r"ShmemPmdMapped:\s*(\d+) kB", entry)[1] == str(2 * HUGE_PAGE >> 10)  # type: ignore[index]
    assert np.array_equal(flat, np.arange(flat.size) % 251)
    assert not mapping.enlarge_pages(4096, HUGE_PAGE)
    assert not mapped(4096).enlarge_pages(0, 4096)

"""Claims about deadlines: a shared machine may keep the cores to itself for a second; a defect comes every time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec

from commlib.errors import CommlibError

P = ParamSpec("P")
_TIMES = 3


def timely(test: Callable[P, None]) -> Callable[P, None]:
    """A test that holds if it holds once in three times. What a rank asserts in vain comes as a CommlibError."""

    @functools.wraps(test)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for left in reversed(range(_TIMES)):
            try:
                return test(*args, **kwargs)
            except (AssertionError, CommlibError):
                if not left:
                    raise
        raise AssertionError("not tried")

    return tried


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Look every millisecond until something is so.

    Raises:
        AssertionError: it never was.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to what is waited for"
        time.sleep(0.001)


def wait_until_gone(look: Callable[[], set[str]], before: set[str]) -> None:
    """Look until nothing is there that was not there before: other programs of this machine come and go meanwhile.

    Raises:
        AssertionError: something has stayed.
    """
    try:
        wait_until(lambda: look() <= before)
    except AssertionError:
        left = look() - before
        assert not left, left

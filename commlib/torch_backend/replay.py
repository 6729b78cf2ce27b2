"""Replay: calls that were made before with the same tensors are found by a key, and made again without any checks.

This is the hot path of ``torch.distributed``; the native core has the same once more in C (``native/replay.c``). What
the key says must be all that a call depends on: addresses, sizes, types, and the option that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from commlib.runtime.shm.interface import RefusedError
from commlib.runtime.shm.load import load_native
from commlib.torch_backend.compat import OPTIONS_TELL, Telling, profiling
from commlib.torch_backend.failures import as_torch
from commlib.torch_backend.worker import Worker

Key = tuple[Any, ...]
Hot = dict[Key, Callable[[], object]]

NOT_FOUND = (KeyError, ValueError, TypeError, AttributeError, RuntimeError)
"""What a look-up raises for a call that is new, or for what is no single strided tensor."""


class Replay:
    """Finds and makes remembered calls.

    Args:
        hot: the remembered calls.
        worker: nothing may be queued there, else a call that is made now would be out of turn.
        acquire, release: of the lock that is held while a call runs.
        profiling: whether a profiler wants to see calls; then they take the long way.
        refused: raised by a call that must be planned anew; all are forgotten then.
        converted: what is to be raised for what a call raises.

    ``calls`` counts the calls made. Every method says whether it made the call; if not, the long way must be taken.
    """

    def __init__(
        self,
        hot: Hot,
        worker: Worker,
        acquire: Callable[[bool], bool],
        release: Callable[[], None],
        profiling: Callable[[], bool],
        refused: type[BaseException],
        converted: Callable[[BaseException], BaseException],
    ) -> None:
        self._hot, self._worker, self._acquire, self._release = hot, worker, acquire, release
        self._profiling, self._refused, self._converted = profiling, refused, converted
        self.calls = 0

    def one(self, tensors: Any, options: Any) -> bool:
        """An allreduce of a list of one tensor."""
        try:
            (tensor,) = tensors
            call = self._hot[key_of_one(tensor, options)]
            repeats = not options.asyncOp and _is_plain(tensor)
        except NOT_FOUND:
            return False
        return repeats and self.again(call)

    def two(self, kind: str, output: Any, input: Any, options: Any, detail: str | None) -> bool:
        """A call of this kind on two tensors, or twice the same."""
        try:
            call = self._hot[key_of_two(kind, output, input, options, detail)]
            repeats = not options.asyncOp and _is_plain(output) and (input is output or _is_plain(input))
        except NOT_FOUND:
            return False
        return repeats and self.again(call)

    def again(self, call: Callable[[], object]) -> bool:
        """Make this call, if nothing is queued or watched, and no other thread is in a call."""
        worker = self._worker
        if worker.submitted != worker.ended or self._profiling() or not self._acquire(False):
            return False
        try:
            call()
        except self._refused:
            self._hot.clear()
            return False
        except BaseException as error:
            raised = self._converted(error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        finally:
            self._release()
        self.calls += 1
        return True


def key_of_one(tensor: Any, options: Any) -> Key:
    """What an allreduce depends on."""
    return tensor.data_ptr(), tensor.numel(), tensor.dtype, hash(options.reduceOp)


def key_of_two(kind: str, output: Any, input: Any, options: Any, detail: str | None) -> Key:
    """What a call on two tensors depends on; ``detail``: the name of the option that matters, if one does."""
    matters = 0 if detail is None else hash(getattr(options, detail))
    addresses = output.data_ptr(), input.data_ptr()
    return (kind, matters, *addresses, output.numel(), input.numel(), output.dtype, input.dtype)


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is its memory, as it lies. (Complex tensors, which may be conjugate, are never remembered.)"""
    return tensor.is_contiguous() and not tensor.is_neg()


def converted(error: BaseException) -> BaseException:
    """A CommlibError as torch's users catch it, with the same cause; everything else as it is."""
    found = as_torch(error)
    if found is not error:
        found.__cause__ = error.__cause__
    return found


class TellingReplay:
    """A replay for a torch whose options do not say who waits: it is given such that do."""

    def __init__(self, replay: Any) -> None:
        self._replay, self.again = replay, replay.again

    @property
    def calls(self) -> int:
        """As ``Replay.calls``."""
        return int(self._replay.calls)

    def one(self, tensors: Any, options: Any) -> bool:
        """As ``Replay.one``."""
        return bool(self._replay.one(tensors, Telling(options)))

    def two(self, kind: str, output: Any, input: Any, options: Any, detail: str | None) -> bool:
        """As ``Replay.two``."""
        return bool(self._replay.two(kind, output, input, Telling(options), detail))


def make_replay(hot: Hot, worker: Worker, lock: Any) -> Any:
    """The native Replay where it is built, else the one in Python."""
    kind = getattr(load_native(), "Replay", Replay)
    replay = kind(hot, worker, lock.acquire, lock.release, profiling, RefusedError, converted)
    return replay if OPTIONS_TELL else TellingReplay(replay)

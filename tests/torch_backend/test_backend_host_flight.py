"""The flight record of groups over several (emulated) hosts, and over gloo: on request, on an error, on a signal."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backend_ranks
import pytest
import torch
import torch.distributed as dist

from commlib.errors import PeerFailedError
from commlib.runtime.launcher import launch, launch_outcomes
from commlib.torch_backend import flight_record


def _on_host(rank: int, place: str, transport: str, on_each: int, function: Callable[..., Any], *args: Any) -> Any:
    os.environ |= {"COMMLIB_HOST": str(rank // on_each), "COMMLIB_FLIGHT": place, "COMMLIB_FLIGHT_SIGNAL": "USR2"}
    return backend_ranks._be(rank, function, args, {"timeout": 8.0, "transport": transport})


def _files(place: Path, rank: int, kind: str) -> list[Path]:
    return sorted(place.glob(f"flight.*rank{rank}.{kind}"))


def _asks(rank: int, place: str) -> tuple[str, list[str], str]:
    began = time.time()
    for _ in range(2):
        dist.all_reduce(torch.ones(1000))
    dist.broadcast(torch.ones(5, dtype=torch.int32), 1)
    record = flight_record()
    assert [(call.call, call.state) for call in record.calls] == [(1, "done"), (2, "done"), (3, "done")]
    assert all(began <= call.began <= (call.ended or 0) <= time.time() for call in record.calls)
    assert [call.bytes > 0 for call in record.calls] == [True, True, True]
    assert json.loads(record.json())["calls"][2]["collective"] == "broadcast"
    assert [call.call for call in flight_record(last=1).calls] == [3]
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.01)
    dist.barrier()
    (text,) = _files(Path(place), rank, "txt")
    return record.calls[0].collective, [call.algorithm for call in record.calls], text.read_text()


@pytest.mark.parametrize(("transport", "on_each"), [("auto", 2), ("gloo", 2), ("shm", 4)])
def test_calls_are_kept_and_a_signal_writes_them(tmp_path: Path, transport: str, on_each: int) -> None:
    found = launch(_on_host, 4, (str(tmp_path), transport, on_each, _asks, str(tmp_path)), 40)
    algorithms = found[0][1]
    assert algorithms[0] == algorithms[1] != ""
    for rank, (collective, names, text) in enumerate(found):
        assert (collective, names) == ("allreduce", algorithms)
        assert text.startswith(f"rank {rank} of 4, process ")
        assert "why: signal SIGUSR2" in text
        assert text.count("  done  ") == 3
        (written,) = _files(tmp_path, rank, "json")
        kept = json.loads(written.read_text())
        assert [(call["collective"], call["state"]) for call in kept["calls"]] == [
            ("allreduce", "done"),
            ("allreduce", "done"),
            ("broadcast", "done"),
        ]


def _repeat() -> None:
    """A rank that is done before it hears of the loss fails in a later call."""
    for _ in range(3):
        dist.all_reduce(torch.ones(1000))


def _loses(rank: int) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    dist.all_reduce(torch.ones(1000))
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerFailedError) as caught:
        _repeat()
    attached = [(call["collective"], call["state"]) for call in caught.value.fields.get("flight", [])]
    return attached, [call.state for call in flight_record().calls], list(getattr(caught.value, "__notes__", ()))


def test_a_failed_call_writes_the_record_and_carries_it(tmp_path: Path) -> None:
    outcomes = launch_outcomes(_on_host, 4, (str(tmp_path), "auto", 2, _loses), timeout=40)
    failed = 0
    for outcome in outcomes:
        if outcome.rank == 2:
            continue
        assert outcome.error is None, outcome.error
        attached, states, notes = outcome.value
        if states[-1] != "failed":  # it was refused a call after it had heard of the loss
            continue
        failed += 1
        assert attached[-1] == ["allreduce", "failed"]
        assert attached[0] == ["allreduce", "done"]
        (written,) = _files(tmp_path, outcome.rank, "txt")
        assert str(written) in notes[0]
        assert "rank 2 is gone" in written.read_text()
    assert failed >= 1

"""Ctrl-C while a solver searches in native code: it ends the search, and the command."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from synth import interrupts
from synth.interrupts import interruptible

ALARM = """
import os, signal, threading
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
"""
KNAPSACKS = """
import random
chance = random.Random(0)
values = [chance.randint(10, 60) for _ in range(200)]
rows = [[chance.randint(5, 60) for _ in values] for _ in range(60)]
"""
CP = """
from synth.solver_cp import Limits, Model
model = Model()
flags, lost = [model.flag() for _ in values], model.number(0, sum(values))
for row in rows:
    model.at_most_sum(flags, row, sum(row) // 3)
model.at_most_sum(flags, [-value for value in values], lost - sum(values))
model.minimise(lost)
"""
MIP = """
from synth.solver import Limits, Model, solve
model = Model()
for value in values:
    model.variable(0, 1, True, -value)
for row in rows:
    model.row(list(enumerate(row)), "<=", sum(row) // 3)
"""
SEARCHES = [("ortools", CP, "model.solve(Limits(60))"), ("highspy", MIP, "solve(model, Limits(60))")]


@pytest.fixture(autouse=True)
def _interrupts_are_heard():
    """Shells have what they start in the background ignore Ctrl-C, and so its children, and these tests with them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("needs", "model", "search"), SEARCHES, ids=["CP-SAT", "HiGHS"])
def test_a_search_in_native_code_is_interrupted(needs, model, search):
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", KNAPSACKS + model + ALARM + search], capture_output=True, timeout=50, check=False
    )
    assert b"KeyboardInterrupt" in ended.stderr
    assert ended.returncode in (130, -signal.SIGINT)
    assert time.monotonic() - began < 30


TELLING = """
import synth.interrupts
search = synth.interrupts.interruptible
def telling(*args):
    print("searches", flush=True)
    return search(*args)
synth.interrupts.interruptible = telling
from synth.cli import main
main()
"""
"""The command; it says when a solver begins to search."""


def test_the_command_ends_with_130_and_writes_nothing(tmp_path):
    pytest.importorskip("ortools")
    target = tmp_path / "out.xml"
    words = ["solve", "allgather", "-t", "dgx2", "-k", "2", "--no-cache", "-m", "exact", "-o", str(target)]
    command = [sys.executable, "-c", TELLING, *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert running.stdout.readline() == b"searches\n"
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    finally:
        running.kill()
    assert (running.returncode, b"Traceback" in errors) == (130, False)
    assert list(tmp_path.iterdir()) == []


def test_what_a_search_returns_or_raises_is_passed_on():
    def fails():
        raise ValueError("no")

    assert interruptible(lambda: 5, lambda: None) == 5
    with pytest.raises(ValueError, match="no"):
        interruptible(fails, lambda: None)


def test_an_interrupt_stops_the_search_before_it_goes_on():
    stopped = threading.Event()

    def search():
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(20)

    with pytest.raises(KeyboardInterrupt):
        interruptible(search, stopped.set)
    assert stopped.is_set()


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_that_comes_while_the_search_is_begun_stops_it_too(begun, monkeypatch):
    ran, stopped = threading.Event(), threading.Event()

    def start(thread):
        if begun:
            threading.Thread.start(thread)
            ran.wait(20)
        raise KeyboardInterrupt

    def search():
        ran.set()
        stopped.wait(20)

    monkeypatch.setattr(interrupts._Search, "start", start)
    with pytest.raises(KeyboardInterrupt):
        interruptible(search, stopped.set)
    assert (ran.is_set(), stopped.is_set()) == (begun, begun)


def test_off_the_main_thread_it_simply_runs():
    ran: list[int] = []
    search = threading.Thread(target=lambda: ran.append(interruptible(threading.get_ident, lambda: None)))
    search.start()
    search.join(10)
    assert ran == [search.ident]

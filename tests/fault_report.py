"""Counts what a fault campaign found: ``python tests/fault_report.py FILE``, a junit XML file of its tests."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Struck:
    """One strike: the signal and core, whether the test passed, and what each survivor was told."""

    signal: str
    core: str
    text: str
    passed: bool
    deadline: float
    told: dict[str, Any]


def read(path: str) -> Iterator[Struck]:
    """The strikes of a campaign."""
    for case in ElementTree.parse(path).iter("testcase"):
        found = {each.get("name"): each.get("value") or "" for each in case.iter("property")}
        strike = re.search(r"\[((SIG\w+) .*, (native|python))\]", case.get("name") or "")
        if strike is None:
            continue
        passed = case.find("failure") is None and case.find("error") is None
        told = json.loads(found.get("told", "{}"))
        yield Struck(strike[2], strike[3], strike[1], passed, float(found.get("deadline", "nan")), told)


def report(strikes: list[Struck]) -> Iterator[str]:
    """Lines: the strikes by signal and core, the survivors by call, and the longest times to the error."""
    for (name, core), count in sorted(Counter((strike.signal, strike.core) for strike in strikes).items()):
        ours = [strike for strike in strikes if (strike.signal, strike.core) == (name, core)]
        times = sorted(answer["seconds"] for strike in ours for answer in strike.told.values() if "seconds" in answer)
        passed = sum(strike.passed for strike in ours)
        middle, worst = (times[len(times) // 2], times[-1]) if times else (0.0, 0.0)
        yield (
            f"{name} {core}: {passed} of {count} passed, {len(times)} survivors, "
            f"error after {middle:.2f} s (median), {worst:.2f} s (longest), deadline {ours[0].deadline} s"
        )
    calls = Counter(
        (strike.signal, answer["call"]) for strike in strikes for answer in strike.told.values() if "seconds" in answer
    )
    for (name, call), count in sorted(calls.items()):
        yield f"{name} {call}: {count} survivors"
    for strike in strikes:
        if not strike.passed:
            ended = {rank: answer["ended"] for rank, answer in strike.told.items() if "ended" in answer}
            yield f"MISSED: {strike.text} {ended or strike.told}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(report(list(read(sys.argv[1])))) + "\n")

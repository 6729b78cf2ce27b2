"""Take an algorithm from the library, save it as MSCCL XML and as JSON, and load both again.

Run: python examples/03_save_and_load.py
"""

import tempfile
from pathlib import Path

from commlib import algorithms, compile_trace, load, prove, save


def main() -> None:
    """JSON keeps everything; XML has no root, so the reader of the file must say it."""
    algorithm = compile_trace(algorithms.trace("broadcast", "binomial", 8, root=3))
    with tempfile.TemporaryDirectory() as folder:
        json, xml = Path(folder) / "broadcast.json", Path(folder) / "broadcast.xml"
        save(algorithm, json)
        save(algorithm, xml)
        print("".join(xml.read_text().splitlines(keepends=True)[:4]), end="")
        print("JSON is the same algorithm:", load(json) == algorithm)
        again = load(xml, root=3)
        print("XML too:", again.collective == algorithm.collective and again.step_count == algorithm.step_count)
        print(prove(again).text())


if __name__ == "__main__":
    main()

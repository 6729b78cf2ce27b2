"""The ``commlib`` command. The only place of the toolkit that prints."""

from __future__ import annotations


def main() -> None:
    """The console entry point: runs the command line and leaves with its exit status.

    0: done and right. 1: something is wrong (a result, a proof, a file), said in one line on stderr. 2: usage.
    """
    from commlib.cli.app import run

    run()

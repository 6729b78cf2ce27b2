"""The ``synth`` command; also ``commlib synth``. The only place of the synthesizer that prints."""

from __future__ import annotations


def main() -> None:
    """The console entry point: runs the command line and leaves with its exit status.

    0: done and right. 1: something is wrong (a file, a sketch, a limit), said in one line on stderr. 2: usage.
    """
    from commlib.cli.app import run
    from synth.cli.app import build_app

    run(build_app)

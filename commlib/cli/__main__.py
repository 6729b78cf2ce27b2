"""``python -m commlib.cli`` is the ``commlib`` command."""

from commlib.cli import main

main()

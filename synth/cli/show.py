"""``synth show``: routes and timeline of an algorithm."""


def show_command() -> None:
    """x"""

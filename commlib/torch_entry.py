"""Registration with torch: the function that torch's entry point ``torch.backends`` calls at the end of its import.

It stands outside ``commlib.torch_backend``, whose import loads the whole backend: every program that imports torch
passes here, and most of them make no group. ``create`` imports the backend when the first group is made. torch is
imported inside ``register``, because this module is loaded while torch itself is being imported.
"""

from __future__ import annotations

from typing import Any

NAME = "commlib"


def register() -> None:
    """Make ``commlib`` known to ``torch.distributed``; a second call changes nothing."""
    import torch.distributed as dist

    if dist.is_available() and NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu"])


def create(given: Any, options: Any) -> Any:
    """Make the process group; torch calls it on every member with its own (``given``) and the user's options."""
    from commlib.torch_backend.group import CommlibGroup

    return CommlibGroup.create(given, options)

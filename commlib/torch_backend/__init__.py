"""The ``commlib`` backend of ``torch.distributed`` for tensors on CPU.

    import torch.distributed as dist

    dist.init_process_group("commlib")          # torch finds it by its entry point ``torch.backends``
    dist.all_reduce(tensor)                     # a proved algorithm, over shared memory within a host

Importing this package registers the backend too (where torch was told not to load such entry points). Both only
register a function; the backend itself is loaded when the first group is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from commlib.torch_backend.registration import register

if TYPE_CHECKING:
    from commlib.torch_backend.buckets import register_tensor as register_tensor
    from commlib.torch_backend.buckets import registered_empty as registered_empty
    from commlib.torch_backend.catalogue import register_algorithm as register_algorithm
    from commlib.torch_backend.catalogue import reload_algorithms as reload_algorithms
    from commlib.torch_backend.catalogue import unregister_algorithm as unregister_algorithm
    from commlib.torch_backend.group import CommlibGroup as CommlibGroup
    from commlib.torch_backend.group import flight_record as flight_record
    from commlib.torch_backend.options import Options as Options

_HOME = {
    "CommlibGroup": "group",
    "Options": "options",
    "flight_record": "group",
    "register_algorithm": "catalogue",
    "register_tensor": "buckets",
    "registered_empty": "buckets",
    "reload_algorithms": "catalogue",
    "unregister_algorithm": "catalogue",
}

__all__ = [
    "CommlibGroup",
    "Options",
    "flight_record",
    "register",
    "register_algorithm",
    "register_tensor",
    "registered_empty",
    "reload_algorithms",
    "unregister_algorithm",
]

register()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"commlib.torch_backend.{_HOME[name]}"), name)

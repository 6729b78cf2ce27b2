"""The ``commlib`` backend of ``torch.distributed`` for tensors on CPU.

    import torch.distributed as dist

    dist.init_process_group("commlib")          # torch finds it by its entry point ``torch.backends``
    dist.all_reduce(tensor)                     # a proved algorithm, over shared memory within a host

Importing this package registers the backend too (where torch was told not to load such entry points) and loads all
of it, about half a second: a program that forks its ranks pays that once if it imports this first. Torch's entry
point only registers a function (``commlib.torch_entry``); then the backend is loaded when the first group is made.
"""

from commlib.torch_backend.buckets import register_tensor, registered_empty
from commlib.torch_backend.catalogue import register_algorithm, reload_algorithms, unregister_algorithm
from commlib.torch_backend.group import CommlibGroup, flight_record
from commlib.torch_backend.options import Options
from commlib.torch_entry import register

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

"""The gloo group that a communicator is given: what it must be, its store, and who hosts that."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist

from commlib.errors import SpecError
from commlib.runtime.launcher import hosts_store


def _is_internal(group: Any) -> bool:
    """Whether this is a gloo group that torch.distributed does not know of, as the torch backend makes them."""
    if not isinstance(group, dist.ProcessGroup) or group in dist.distributed_c10d._world.pg_map:
        return False
    with contextlib.suppress(RuntimeError):
        return isinstance(group._get_backend(torch.device("cpu")), dist.ProcessGroupGloo)
    return False


def checked(group: Any) -> Any:
    """The group, or the world.

    Raises:
        SpecError: it has no gloo, or this process is not in it.
    """
    if _is_internal(group):
        return group
    if not dist.is_initialized():
        raise SpecError("torch.distributed is not initialised; call init_process_group('gloo') first")
    group = dist.group.WORLD if group is None else group
    if group is None or group == dist.GroupMember.NON_GROUP_MEMBER:
        raise SpecError("this process is not a member of the group")
    if "gloo" not in str(dist.get_backend(group)) and "gloo" not in dist.get_backend_config(group):
        raise SpecError(f"the group's backend is {dist.get_backend(group)}; this runtime needs gloo")
    return group


_communicators: dict[str, int] = {}
"""How many communicators each group has had."""


def number_of(group: Any) -> int:
    """The number of a new communicator of a group, from 0: all ranks count alike, which gives each its tag and keys.

    A group that only the torch backend knows has one, and keys of its own.
    """
    if _is_internal(group):
        return 0
    number = _communicators.get(group.group_name, 0)
    _communicators[group.group_name] = number + 1
    return number


def keys_of(group: Any, prefix: str) -> Any:
    """The group's store under a prefix, on a connection of its own where it has such (other users may block theirs)."""
    store = _store_of(group)
    return dist.PrefixStore(prefix, cloned(store) or store)  # type: ignore[attr-defined]


def cloned(store: Any) -> Any:
    """A store on a connection of its own, so that waits on one hold nobody up on the other; None if it has no such.

    torch 2.6 has none, and stores that are written in Python need not have.
    """
    with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):
        return store.clone()
    return None


def _store_of(group: Any) -> Any:
    """A group's store; before torch 2.8 only torch.distributed knows it."""
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    known = dist.distributed_c10d._world.pg_map.get(group)
    if known is None:
        raise SpecError("this group's store is not known")
    return known[1]


def store_host(group: Any) -> int | None:
    """The rank that hosts the group's store; None if torchrun or our launcher does, or a process outside the group."""
    if hosts_store() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    with contextlib.suppress(ValueError):
        return dist.get_group_rank(group, 0)
    return None

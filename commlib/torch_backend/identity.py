"""Identity: what torch asks of a process group besides its calls: rank, size, names, store, device."""

from __future__ import annotations

from typing import Any

import torch

from commlib.torch_backend.compat import c10d
from commlib.torch_entry import NAME

_CPU = torch.device("cpu")


class Identity(c10d.ProcessGroup):  # type: ignore[misc]
    """A process group written in Python keeps its own names: torch's base class asks a backend for them."""

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, rank: int, size: int, group_name: str, store: Any) -> None:
        super().__init__(rank, size)
        self._rank, self._size, self._store = rank, size, store
        self._name, self._description = group_name, "undefined"

    def rank(self) -> int:
        """This process's rank in the group."""
        return self._rank

    def size(self) -> int:
        """The number of ranks in the group."""
        return self._size

    def name(self) -> str:
        """The backend's name."""
        return NAME

    def getBackendName(self) -> str:  # noqa: N802
        """The backend's name; called by torch's C++ part."""
        return NAME

    def _get_backend_name(self) -> str:
        return NAME

    @property
    def group_name(self) -> str:
        """The name that torch gave to the group."""
        return self._name

    def getGroupName(self) -> str:  # noqa: N802
        """The group's name; called by torch's C++ part."""
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        """Keep the group's name; called by torch's C++ part."""
        self._name = name

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_desc(self) -> str:
        """What the group is for, in the user's words."""
        return self._description

    def getGroupDesc(self) -> str:  # noqa: N802
        """The description; called by torch's C++ part."""
        return self._description

    def setGroupDesc(self, description: str) -> None:  # noqa: N802
        """Keep the description; called by torch's C++ part."""
        self._description = description

    def _set_group_desc(self, description: str) -> None:
        self._description = description

    def get_group_store(self) -> Any:
        """The store that the group was made with."""
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        return [_CPU]

    def _get_backend(self, device: Any) -> Any:  # noqa: ARG002
        return self

    def _has_hooks(self) -> bool:
        return False

    def merge_remote_group(self, *_: Any, **__: Any) -> Any:
        """Not done.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("commlib groups cannot be merged with groups of other processes")

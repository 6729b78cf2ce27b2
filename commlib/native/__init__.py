"""The native core: the reference executor of tables (``commlib.runtime.shm``) once more in C, a hundred times faster.

It is built with the package where a C compiler is there; without one the package installs and runs all the same.
"""

from __future__ import annotations

from types import ModuleType

try:
    from commlib.native import _core as _built
except ImportError:  # not built, or for another Python
    core: ModuleType | None = None
else:
    core = _built

__all__ = ["core"]

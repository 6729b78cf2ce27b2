"""commlib: collective communication algorithms that are programmable, proved and run on any machine.

The names below are the public API; each is imported when it is first used, so that ``import commlib`` stays light
and loads neither torch nor a solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Algorithm": "commlib.ir.algorithm",
    "AlgorithmBuilder": "commlib.ir.builder",
    "Buffer": "commlib.collectives",
    "Chunk": "commlib.dsl",
    "Collective": "commlib.collectives",
    "CommlibError": "commlib.errors",
    "Communicator": "commlib.runtime",
    "CompileOptions": "commlib.compiler",
    "OneSidedProgram": "commlib.dsl",
    "Placement": "commlib.collectives",
    "Program": "commlib.dsl",
    "Reduction": "commlib.reductions",
    "Topology": "commlib.topology",
    "Trace": "commlib.ir.trace",
    "algorithms": "commlib.algorithms",
    "collective": "commlib.collectives",
    "compile_trace": "commlib.compiler",
    "custom": "commlib.collectives",
    "launch": "commlib.runtime",
    "load": "commlib.formats",
    "load_topology": "commlib.topology",
    "machine": "commlib.topology",
    "prove": "commlib.verify:verify",
    "record": "commlib.dsl",
    "reduction": "commlib.reductions",
    "save": "commlib.formats",
    "topology_of": "commlib.topology",
}

if TYPE_CHECKING:
    from commlib import algorithms as algorithms
    from commlib.collectives import Buffer as Buffer
    from commlib.collectives import Collective as Collective
    from commlib.collectives import Placement as Placement
    from commlib.collectives import collective as collective
    from commlib.collectives import custom as custom
    from commlib.compiler import CompileOptions as CompileOptions
    from commlib.compiler import compile_trace as compile_trace
    from commlib.dsl import Chunk as Chunk
    from commlib.dsl import OneSidedProgram as OneSidedProgram
    from commlib.dsl import Program as Program
    from commlib.dsl import record as record
    from commlib.errors import CommlibError as CommlibError
    from commlib.formats import load as load
    from commlib.formats import save as save
    from commlib.ir.algorithm import Algorithm as Algorithm
    from commlib.ir.builder import AlgorithmBuilder as AlgorithmBuilder
    from commlib.ir.trace import Trace as Trace
    from commlib.reductions import Reduction as Reduction
    from commlib.reductions import reduction as reduction
    from commlib.runtime import Communicator as Communicator
    from commlib.runtime import launch as launch
    from commlib.topology import Topology as Topology
    from commlib.topology import load_topology as load_topology
    from commlib.topology import machine as machine
    from commlib.topology import topology_of as topology_of
    from commlib.verify import verify as _verify

    prove = _verify

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'commlib' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    home = import_module(module)
    return home if name == "algorithms" else getattr(home, attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

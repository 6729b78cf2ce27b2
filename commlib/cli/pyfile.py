"""A Python file that the user asks to be compiled: executes it and finds the program in it.

A file offers a Trace, Program or OneSidedProgram object at module level, or a function whose first argument is a
Program, for which the collective is given: on the command line or as a Collective named COLLECTIVE in the file.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from commlib.errors import CommlibError, ProgramError, SpecError

if TYPE_CHECKING:
    from commlib.collectives import Collective
    from commlib.ir.algorithm import Algorithm
    from commlib.ir.trace import Trace

_MODULE = "__commlib_program__"


@dataclass(frozen=True)
class Request:
    """What the command line says of the program in a file. None: not said."""

    collective: Collective | str | None = None
    ranks: int | None = None
    chunks: int | None = None
    root: int | None = None
    function: str | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of Program: instances, blocked, protocol, placement; only those that were given."""

    @property
    def given(self) -> list[str]:
        """The options that only a function can obey."""
        plain = ("collective", "ranks", "chunks", "root")
        return [name for name in plain if getattr(self, name) is not None] + [*self.settings, *self.parameters]


def program_of_file(path: Path, request: Request) -> Trace | Algorithm:
    """Execute the file and return the Trace of the program that it defines, or the Algorithm of a one-sided one.

    Raises:
        ProgramError: the file or its function fails, or it is not clear which program is meant.
        SpecError: the collective is missing or ill-defined.
    """
    with _executing(path):
        module = _execute(path)
        recorded = _recorded(module)
        if request.function is None and recorded and request.collective is None:
            return _recorded_program(path, recorded, request)
        return _function_trace(path, module, request)


def _execute(path: Path) -> ModuleType:
    loader = SourceFileLoader(_MODULE, str(path))
    spec = spec_from_file_location(_MODULE, path, loader=loader)
    if path.is_dir():
        raise ProgramError(f"{path}: a directory, not a Python file", file=str(path))
    if spec is None or not path.is_file():
        raise ProgramError(f"{path}: there is no such file", file=str(path))
    module = sys.modules[_MODULE] = module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextmanager
def _executing(path: Path) -> Iterator[None]:
    """As Python runs a script: its folder is importable. What it raises becomes an error that names its line."""
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        yield
    except CommlibError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        line = _line_of(error, path)
        message = f"{path}:{line}: {type(error).__name__}: {error}"
        raise ProgramError(message, file=str(path), line=line) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
        sys.dont_write_bytecode = bytecode
        sys.modules.pop(_MODULE, None)


def _line_of(error: BaseException, path: Path) -> int:
    """The innermost line of the file that took part in the error; 1 when none did."""
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    line, trace = 1, error.__traceback__
    while isinstance(trace, TracebackType):
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _recorded(module: ModuleType) -> dict[str, Trace | Algorithm]:
    """The programs at module level, by name; of several names for one object the first."""
    from commlib.dsl import OneSidedProgram, Program
    from commlib.ir.trace import Trace

    found: dict[str, Trace | Algorithm] = {}
    seen: set[int] = set()
    for name, value in vars(module).items():
        if id(value) in seen or not isinstance(value, (Program, OneSidedProgram, Trace)):
            continue
        seen.add(id(value))
        if isinstance(value, OneSidedProgram):
            found[name] = value.algorithm()
        else:
            found[name] = value.trace() if isinstance(value, Program) else value
    return found


def _recorded_program(path: Path, recorded: Mapping[str, Trace | Algorithm], request: Request) -> Trace | Algorithm:
    if len(recorded) > 1:
        names = ", ".join(recorded)
        raise ProgramError(f"{path}: it records several programs ({names}); keep one, or name a --function")
    name, program = next(iter(recorded.items()))
    if request.given:
        given = ", ".join(request.given)
        raise ProgramError(f"{path}: {name} is recorded in the file, which also fixes its {given}; change it there")
    return program


def _function_trace(path: Path, module: ModuleType, request: Request) -> Trace:
    from commlib.dsl import record

    function = _function(path, module, request.function)
    collective = _collective(path, module, request)
    try:
        inspect.signature(function).bind(None, **request.parameters)
    except TypeError as error:
        raise ProgramError(f"{path}: {function.__name__}: {error} (see --param)", file=str(path)) from error
    settings: dict[str, Any] = {"name": function.__name__, **request.settings}
    return record(lambda p: function(p, **request.parameters), collective, **settings)


def _function(path: Path, module: ModuleType, name: str | None) -> Callable[..., None]:
    """The function that is meant: the one named, or the only one that takes a Program."""
    functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
    own = {key: f for key, f in functions.items() if f.__module__ == _MODULE and _takes_program(f)}
    if name is not None:
        if name not in functions:
            raise ProgramError(f"{path}: no function is called {name!r}; there are: {_list(own)}", file=str(path))
        return functions[name]
    public = {key: f for key, f in own.items() if not key.startswith("_")}
    if len(public) != 1:
        which = f"several functions take a Program ({_list(public)}); choose one with --function"
        none = "it has no function that takes a Program, nor a Trace, Program or OneSidedProgram at module level"
        raise ProgramError(f"{path}: {which if public else none}", file=str(path))
    return next(iter(public.values()))


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"


def _takes_program(function: Callable[..., Any]) -> bool:
    """Whether the first argument is annotated as a Program or, without annotation, is the only one needed."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        return False
    annotation = parameters[0].annotation
    if annotation is not inspect.Parameter.empty:
        name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        return name.rpartition(".")[2] == "Program"
    empty = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return len(empty) == 1


def _collective(path: Path, module: ModuleType, request: Request) -> Collective:
    from commlib.collectives import Collective
    from commlib.collectives import collective as standard

    whole = getattr(module, "COLLECTIVE", None) if request.collective is None else request.collective
    if isinstance(whole, Collective):
        if request.ranks is request.chunks is request.root is None:
            return whole
        raise SpecError(f"{path}: {whole} is whole; --ranks, --chunks and --root are for one given by name")
    if request.collective is None or isinstance(request.collective, Collective):
        how = "give --collective NAME --ranks N (and --chunks C), or set COLLECTIVE in the file"
        raise SpecError(f"{path}: which collective? {how}", file=str(path))
    if request.ranks is None:
        raise SpecError(f"{path}: on how many ranks? Give --ranks N", file=str(path))
    return standard(request.collective, request.ranks, request.chunks or 1, request.root)

"""``commlib compile``: a program or a library algorithm becomes a proved, saved Algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from commlib.cli.console import out, out_json
from commlib.cli.options import JsonFlag, Parameters, Root, Unsafe, parse_parameters
from commlib.cli.pyfile import Request, program_of_file
from commlib.cli.sizes import format_size, parse_size
from commlib.cli.sources import is_file, library_entry, parse_conditions
from commlib.cli.summary import print_summary, proof_line, summary_json
from commlib.errors import FormatError, SpecError, VerificationError

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from commlib.ir.trace import Trace
    from commlib.verify import Report

_Source = Annotated[
    str, typer.Argument(metavar="FILE.py|NAME", help="A Python file (it is EXECUTED), or a library algorithm.")
]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write: .xml (MSCCL), .json or .txt (both loss-free).")
]
_Ranks = Annotated[int | None, typer.Option("--ranks", "-n", min=1, help="Number of ranks.")]
_Collective = Annotated[
    str | None, typer.Option("--collective", metavar="NAME|FILE", help="What a function of FILE.py implements.")
]
_Chunks = Annotated[int | None, typer.Option("--chunks", min=1, help="Chunks per shard, for a function of FILE.py.")]
_Function = Annotated[str | None, typer.Option("--function", help="Which function of FILE.py.")]
_Placement = Annotated[
    str | None, typer.Option("--placement", metavar="in|out|both", help="What FILE.py's function is meant for.")
]
_Instances = Annotated[int | None, typer.Option("--instances", min=1, help="Parallel copies of the whole program.")]
_Blocked = Annotated[bool, typer.Option("--blocked", help="Each instance takes a block, not every n-th chunk.")]
_Protocol = Annotated[str | None, typer.Option("--protocol", help="Simple, LL or LL128.")]
_Fuse = Annotated[bool, typer.Option("--fuse/--no-fuse", help="Join receives with sends.")]
_Depth = Annotated[
    int | None,
    typer.Option("--fifo-depth", min=1, help="Order and prove for connections that hold so many messages."),
]
_Dialect = Annotated[
    str, typer.Option("--dialect", metavar="msccl|executor", help="Of the XML; RCCL and msccl-executor: executor.")
]
_MinBytes = Annotated[
    int | None, typer.Option("--min-bytes", parser=parse_size, metavar="SIZE", help="XML: smallest message to use it.")
]
_MaxBytes = Annotated[
    int | None, typer.Option("--max-bytes", parser=parse_size, metavar="SIZE", help="XML: largest message to use it.")
]


def compile_command(
    source: _Source,
    output: _Output = None,
    ranks: _Ranks = None,
    collective: _Collective = None,
    chunks: _Chunks = None,
    root: Root = None,
    function: _Function = None,
    param: Parameters = None,
    placement: _Placement = None,
    instances: _Instances = None,
    blocked: _Blocked = False,
    protocol: _Protocol = None,
    fuse: _Fuse = True,
    fifo_depth: _Depth = None,
    dialect: _Dialect = "msccl",
    min_bytes: _MinBytes = None,
    max_bytes: _MaxBytes = None,
    unsafe: Unsafe = False,
    as_json: JsonFlag = False,
) -> None:
    """Compile a program, prove and write the result.

    FILE.py is executed as Python: compile only files that you trust. It holds a Trace, Program or
    OneSidedProgram object, or a function that takes a Program; for a function give --collective and --ranks (or
    COLLECTIVE in the file). NAME is a library algorithm; "commlib algorithms" lists them. What is not proved is not
    written.
    """
    settings = {"instances": instances, "blocked": blocked or None, "protocol": protocol, "placement": placement}
    request = Request(
        parse_conditions(collective),
        ranks,
        chunks,
        root,
        function,
        parse_parameters(param or []),
        {name: value for name, value in settings.items() if value is not None},
    )
    _check_bounds(min_bytes, max_bytes)
    algorithm, report = compiled(_program(source, request), fuse, fifo_depth)
    if not (report.proved >= algorithm.placements) and not unsafe:
        raise VerificationError(f"not proved, so nothing is written\n{report.text()}", findings=report.findings)
    if output is not None:
        write(algorithm, output, dialect, min_bytes, max_bytes)
    _tell(algorithm, report, output, as_json)


def _check_bounds(smallest: int | None, largest: int | None) -> None:
    """Refuses a range of message sizes that is empty; a largest of 0 means no limit in some dialects."""
    if smallest is not None and largest and smallest > largest:
        message = f"--min-bytes {format_size(smallest)} is more than --max-bytes {format_size(largest)}"
        raise typer.BadParameter(message)


def compiled(program: Trace | Algorithm, fuse: bool = True, fifo_depth: int | None = None) -> tuple[Algorithm, Report]:
    """The trace compiled (a one-sided program is as it is), and the verdict on the placements that it is meant for.

    Raises:
        CompileError: the trace cannot be compiled as asked. SpecError: its protocol is not one of the field's.
    """
    from commlib.compiler import CompileOptions, compile_trace
    from commlib.formats.msccl_xml.names import PROTOCOLS
    from commlib.ir.trace import Trace
    from commlib.verify import FIFO_DEPTH, verify

    if program.protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SpecError(f"no protocol is called {program.protocol!r}; there are {known}", protocol=program.protocol)
    if isinstance(program, Trace):
        algorithm = compile_trace(program, CompileOptions(fuse=fuse, fifo_depth=fifo_depth or 1))
    elif fuse:
        algorithm = program
    else:
        raise SpecError(f"{program.name} is written out step by step; --no-fuse is for what is compiled")
    placements = sorted(algorithm.placements, key=lambda placement: placement.value)
    return algorithm, verify(algorithm, placements, fifo_depth or FIFO_DEPTH)


def write(
    algorithm: Algorithm, output: Path, dialect: str, min_bytes: int | None = None, max_bytes: int | None = None
) -> None:
    """Save the algorithm in the form that the name's ending says.

    Raises:
        FormatError: no such dialect or ending, XML options for another form, or what the form cannot express.
    """
    from commlib.formats import save

    is_xml = output.suffix.lower() == ".xml"
    if not is_xml and (dialect != "msccl" or min_bytes is not None or max_bytes is not None):
        raise FormatError(f"{output}: --dialect, --min-bytes and --max-bytes are for .xml files", file=str(output))
    save(algorithm, output, cast(Literal["msccl", "executor"], dialect), min_bytes, max_bytes)


def _program(source: str, request: Request) -> Trace | Algorithm:
    if is_file(source):
        path = Path(source)
        if path.suffix.lower() in (".xml", ".json", ".txt"):
            raise FormatError(f"{path}: compiled already; compile takes a .py file or a library name", file=source)
        return program_of_file(path, request)
    return _library_program(source, request)


def _library_program(name: str, request: Request) -> Trace | Algorithm:
    """A library algorithm, traced or written out; refuses the options that only a function of a file obeys."""
    from commlib.algorithms import DirectEntry, build

    entry = library_entry(name, request.collective)
    settings: dict[str, Any] = dict(request.settings)
    pointless = [option for option in ("chunks", "function") if getattr(request, option) is not None]
    pointless += ["placement"] if settings.pop("placement", None) is not None else []
    if pointless:
        raise SpecError(f"{name} fixes its own {', '.join(pointless)}; these options are for FILE.py", algorithm=name)
    if request.ranks is None:
        raise SpecError(f"on how many ranks? Give --ranks N to compile {name}", algorithm=name)
    if isinstance(entry, DirectEntry):
        if settings:
            raise SpecError(f"{name} is written out step by step; {min(settings)} is for what is compiled")
        return build(entry.collective, entry.name, request.ranks, request.root, **request.parameters)
    values: dict[str, Any] = entry.values(request.parameters)
    return entry.trace(request.ranks, root=request.root, **settings, **values)


def _tell(algorithm: Algorithm, report: Report, output: Path | None, as_json: bool) -> None:
    if as_json:
        written = None if output is None else str(output)
        out_json({"ok": report.ok, **summary_json(algorithm), "output": written, "verification": report.as_json()})
        return
    print_summary(algorithm)
    if report.proved >= algorithm.placements:
        out(f"  {proof_line(report)}")
    else:
        out(report.text())
    out("  nothing written: no --output" if output is None else f"  written to {output}")

"""The command as a whole: help, errors, exit statuses, plug-ins, what it loads."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer

import commlib
from commlib.cli import plugins
from commlib.errors import FormatError

COMMANDS = ("compile", "verify", "show", "run", "bench", "tune", "algorithms", "demo")


def test_version(cli):
    result = cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"commlib {commlib.__version__}\n")


def test_help_lists_every_command_in_plain_ascii(cli):
    result = cli("--help")
    assert result.exit_code == 0
    assert result.stdout.isascii()
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_in_plain_ascii(cli, name):
    result = cli(name, "--help")
    assert (result.exit_code, result.stdout.isascii()) == (0, True)


def test_help_of_compile_says_that_the_file_is_executed(cli):
    assert "EXECUTED" in cli("compile", "--help").stdout


def test_no_command_is_a_usage_error(cli):
    assert cli().exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("verify",),
        ("verify", "a.xml", "--nonsense"),
        ("verify", "a.xml", "--placement", "up"),
        ("run", "ring_allreduce"),
        ("run", "ring_allreduce", "-n", "2", "--param", "nodes"),
        ("bench", "allreduce", "-b", "x"),
        ("bench", "allreduce", "--vs", "mpi"),
    ],
)
def test_usage_errors_have_status_2(cli, arguments):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


def test_a_typed_error_is_one_line_on_stderr_and_status_1(cli):
    result = cli("verify", "nowhere.xml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "commlib: nowhere.xml: cannot be read: No such file or directory\n"


def test_debug_shows_the_traceback(cli):
    result = cli("--debug", "verify", "nowhere.xml")
    assert isinstance(result.exception, FormatError)


def test_with_json_an_error_is_a_document_too(cli_json):
    status, document = cli_json("verify", "nowhere.xml")
    assert status == 1
    assert document["ok"] is False
    assert document["findings"] == []
    assert document["error"]["kind"] == "FormatError"
    assert document["error"]["file"] == "nowhere.xml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "a.xml", "--nonsense"), "No such option: --nonsense"),
        (("nonsense",), "No such command 'nonsense'"),
        (("--nonsense",), "No such option: --nonsense"),
        (("verify", "a.xml", "--placement", "up"), "--placement is in or out, not 'up'"),
    ],
)
def test_with_json_wrong_usage_is_a_document_too(cli_json, arguments, message):
    status, document = cli_json(*arguments)
    assert (status, document["ok"], document["findings"]) == (2, False, [])
    assert document["error"]["kind"] == "UsageError"
    assert message in document["error"]["message"]


def shell(line, *arguments, **env):
    """The command as a shell runs it, with ``line``'s redirections."""
    words = ["sh", "-c", f'"$@" {line}', "sh", sys.executable, "-m", "commlib.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_is_closed_or_full(saved, unbuffered):
    path = saved("ring_allreduce", 2)
    closed = shell(">&-", "show", path, PYTHONUNBUFFERED=unbuffered)
    assert (closed.returncode, closed.stderr) == (1, "commlib: standard output is closed\n")
    for arguments in (("show", path), ("--help",)):
        full = shell(">/dev/full", *arguments, PYTHONUNBUFFERED=unbuffered)
        assert (full.returncode, full.stderr) == (1, "commlib: standard output: No space left on device\n")


def test_standard_error_that_is_closed(saved):
    assert shell("2>&-", "verify", "nowhere.xml").returncode == 1
    done = shell("2>&-", "verify", saved("ring_allreduce", 2))
    assert (done.returncode, "proved" in done.stdout) == (0, True)
    assert shell(">&- 2>&-", "algorithms").returncode == 1


def test_the_console_entry_point_is_declared():
    (point,) = [p for p in plugins.entry_points(group="console_scripts") if p.name == "commlib"]
    assert point.value == "commlib.cli:main"


def test_errors_of_the_real_process(command):
    done = command("verify", "nowhere.xml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "commlib: nowhere.xml: cannot be read: No such file or directory\n"
    assert "Traceback" in command("--debug", "verify", "nowhere.xml").stderr


def test_compile_verify_show_and_algorithms_load_no_torch(command, tmp_path):
    probe = tmp_path / "sitecustomize.py"
    probe.write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write('LOADED' * bool({'torch', 'scipy', 'pulp'} & set(sys.modules))))\n"
    )
    env, path = {"PYTHONPATH": str(tmp_path)}, tmp_path / "ring.xml"
    lines = [("--help",), ("compile", "ring_allreduce", "-n", "2", "-o", path), ("verify", path), ("show", path)]
    for line in [*lines, ("algorithms",)]:
        done = command(*line, env=env)
        assert (done.returncode, done.stderr) == (0, ""), line
    assert command("run", path, "--size", "4", env=env).stderr == "LOADED"  # so the probe works


def test_help_loads_neither_numpy_nor_rich(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: sys.stderr.write(str({'numpy', 'rich'} & set(sys.modules))))\n"
    )
    assert command("--help", env={"PYTHONPATH": str(tmp_path)}).stderr == "set()"


def test_a_plugin_adds_a_command(command, tmp_path):
    (tmp_path / "synthetic.py").write_text(
        "import typer\napp = typer.Typer(help='From a plug-in.')\n"
        "@app.command()\ndef hello(name: str) -> None:\n    print('hello', name)\n"
        "@app.command()\ndef other() -> None: ...\n"
    )
    info = tmp_path / "synthetic-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: synthetic\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[commlib.commands]\ngreet = synthetic:app\n")
    env = {"PYTHONPATH": str(tmp_path)}
    assert "greet " in command("--help", env=env).stdout
    done = command("greet", "hello", "you", env=env)
    assert (done.returncode, done.stdout) == (0, "hello you\n")


@pytest.fixture
def plugin(monkeypatch):
    """Pretends that entry points exist: name -> value."""

    def install(**points):
        found = [EntryPoint(name, value, plugins.GROUP) for name, value in points.items()]
        monkeypatch.setattr(plugins, "entry_points", lambda group: found)

    return install


def test_a_broken_plugin_harms_only_itself(cli, plugin):
    plugin(broken="no_such_module_anywhere:app", verify="no_such_module_anywhere:app")
    assert cli("algorithms").exit_code == 0
    result = cli("broken")
    assert result.exit_code == 1
    assert "commlib: the command 'broken' (no_such_module_anywhere:app) cannot be loaded" in result.stderr
    assert "(cannot be loaded" in cli("--help").stdout
    assert "cannot be read" in cli("verify", "nowhere.xml").stderr  # a plug-in does not replace a command


def test_a_plugin_must_be_a_typer(cli, plugin):
    plugin(odd="json:dumps")
    assert "is not a typer.Typer" in cli("odd").stderr


def test_a_plugin_is_imported_only_when_called(cli, plugin, monkeypatch):
    plugin(lazy="commlib_lazy_plugin:app")
    cli("algorithms")
    assert "commlib_lazy_plugin" not in sys.modules
    module = type(sys)("commlib_lazy_plugin")
    module.app = typer.Typer()
    module.app.command("lazy")(lambda: typer.echo("here"))
    monkeypatch.setitem(sys.modules, "commlib_lazy_plugin", module)
    assert cli("lazy").stdout == "here\n"


def test_algorithms_lists_the_library(cli, cli_json):
    from commlib.algorithms import ALGORITHMS, DIRECT

    text = cli("algorithms").stdout
    status, document = cli_json("algorithms")
    listed, entries = document["algorithms"], [*ALGORITHMS, *DIRECT]
    assert status == 0
    assert [entry["name"] for entry in listed] == [entry.full_name for entry in entries]
    assert [entry["steps"] for entry in listed] == ["messages"] * len(ALGORITHMS) + ["one-sided"] * len(DIRECT)
    for entry in entries:
        assert f"\n{entry.full_name} " in text


def test_one_sided_library_programs_are_compiled_by_name(cli, tmp_path):
    path = tmp_path / "staged.json"
    assert cli("compile", "staged_allreduce", "-n", "3", "-o", str(path)).exit_code == 0
    assert "proved" in cli("verify", str(path)).stdout
    assert "is for what is compiled" in cli("compile", "staged_allreduce", "-n", "3", "--instances", "2").stderr


def test_algorithms_of_one_collective(cli, cli_json):
    _, document = cli_json("algorithms", "alltonext")
    assert {entry["collective"] for entry in document["algorithms"]} == {"alltonext"}
    entry = next(e for e in document["algorithms"] if e["name"] == "hierarchical_alltonext")
    assert [(p["name"], p["default"]) for p in entry["parameters"]] == [("nodes", 2)]
    assert set(entry["placements"]) <= {"in", "out"}
    assert "no collective is called 'alltonone'" in cli("algorithms", "alltonone").stderr


def test_output_survives_a_terminal_that_knows_only_ascii(command, tmp_path):
    path = tmp_path / "zażółć.xml"
    assert command("compile", "ring_allreduce", "-n", "2", "-o", path).returncode == 0
    done = command("verify", path, "--json", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"] is True

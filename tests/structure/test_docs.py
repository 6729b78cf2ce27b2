"""Every code block of README and docs is run: python blocks as programs, console blocks as commands, JSON as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import commlib

ROOT = Path(commlib.__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}")
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
        for found, code in [match.groups()]
        if found == language
    ]


def run(command: list[str], directory: Path) -> str:
    clean = os.environ | {"COMMLIB_CACHE": str(directory / "cache")}
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100, env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks(code, tmp_path):
    (tmp_path / "block.py").write_text(code)
    run([sys.executable, "block.py"], tmp_path)


@pytest.mark.parametrize("code", blocks("console"))
def test_console_blocks(code, tmp_path):
    """Run after those python blocks of the same page that name the files they use."""
    (page,) = [page for page in PAGES if code in page.read_text()]
    commands = [line[2:] for line in code.splitlines() if line.startswith("$ ")]
    assert commands
    files = {word for command in commands for word in command.split() if "." in word}
    for language, block in BLOCK.findall(page.read_text().split(code)[0]):
        if language == "python" and any(file in block for file in files):
            (tmp_path / "block.py").write_text(block)
            run([sys.executable, "block.py"], tmp_path)
    for command in commands:
        program, *arguments = command.split()
        assert program in ("commlib", "synth")
        run([sys.executable, "-m", f"{program}.cli", *arguments], tmp_path)


@pytest.mark.parametrize("code", blocks("json"))
def test_json_blocks(code):
    assert json.loads(code)


def test_all_blocks_are_known():
    for page in PAGES:
        assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"python", "console", "json"}, page


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "python -m pip install -e . && commlib demo" in text
    assert 'python -m pip install -e ".[test]" && pytest' in text


def test_links_between_pages_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_no_figure_is_left_open():
    for page in PAGES:
        assert not re.findall(r"^[A-Z_]{4,}$", page.read_text(), re.MULTILINE), page

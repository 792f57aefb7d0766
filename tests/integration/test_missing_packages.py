"""A script where Python has none of its packages: one line, which says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import PROJECT
from tests.stack import Stack

SCRIPTS = [*sorted(path.name for path in PROJECT.glob("*.py") if path.name != "config.py"), "local"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, just cloned."""
    for name in ("pipeline", "local"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, tmp_path)
    return tmp_path


def run(project: Path, script: str) -> str:
    """Run a script with no package but Python's own (-S); return what it prints."""
    what = [script] if script.endswith(".py") else ["-m", script]
    ended = subprocess.run([sys.executable, "-S", *what], cwd=project, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    return ended.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_said_how_to_get_them(project: Path, script: str) -> None:
    said = run(project, script)
    assert said.startswith("Python has no package ")
    assert said.endswith(" here: run ./setup.sh, then source venv/bin/activate\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_where_there_is_an_environment_it_is_to_be_activated(project: Path, script: str) -> None:
    activate = project / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    assert run(project, script).endswith(" here: source venv/bin/activate\n")


def test_a_module_of_the_project_that_is_not_there_is_no_such_thing(project: Path) -> None:
    (project / "pipeline" / "status.py").unlink()
    (project / "mine.py").write_text(
        "from pipeline import interrupts\ninterrupts.end_at_once()\nimport pipeline.status\n"
    )
    ended = subprocess.run([sys.executable, "-S", "mine.py"], cwd=project, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_without_the_engine_it_is_said_what_gets_it(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "chdb.py").write_text("raise ModuleNotFoundError(name='chdb')")
    server = stack.run("-m", "local.clickhouse", "--data", tmp_path / "data", PYTHONPATH=tmp_path)
    assert server.output == "The ClickHouse engine, the package chdb, is not here: make demo gets it"
    assert server.wait() == 2

"""Ctrl-C while a script's imports run."""

from __future__ import annotations

import signal

import pytest

from tests.stack import Stack

PRESSED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)

def dotenv_values(path):
    return {}
"""


@pytest.fixture
def pressed(stack: Stack) -> Stack:
    """Scripts get SIGINT when they import what config.py does."""
    (stack.directory / "dotenv.py").write_text(PRESSED)
    stack.env["PYTHONPATH"] = str(stack.directory)
    return stack


@pytest.mark.parametrize("script", ["ch_setup.py", "verif.py", "export.py"])
def test_it_ends_them_as_it_ends_any_process(pressed: Stack, script: str) -> None:
    process = pressed.run(script)
    assert process.output == ""
    assert process.wait() == -signal.SIGINT


def test_it_does_nothing_where_it_is_ignored(pressed: Stack) -> None:
    pressed.prefix = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    process = pressed.run("verif.py")
    assert "cannot be reached" in process.output
    assert process.wait() == 1

"""The progress bar, on a terminal and elsewhere."""

import os
import pty
import subprocess
import sys

import pytest

from config import PROJECT

COUNTING = """
import time
from pipeline.progress import progress
with progress("Counting frames", 4) as advance:
    for _ in range(SLEEPS):
        time.sleep(0.5)
        advance(1)
print("done")
"""


def on_a_terminal(script: str) -> str:
    """Run a script whose stderr is a terminal; return what is shown there."""
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT, env=environ, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_what_takes_long_shows_how_far_it_is_and_leaves_nothing_behind() -> None:
    shown = on_a_terminal(COUNTING.replace("SLEEPS", "4"))
    assert "Counting frames" in shown
    assert "75%" in shown
    assert shown.endswith("\x1b[2K")  # the line is cleared


def test_what_is_done_at_once_shows_nothing() -> None:
    assert on_a_terminal(COUNTING.replace("SLEEPS", "1")) == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_without_a_terminal_nothing_is_shown(stream: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNTING.replace("SLEEPS", "4")], cwd=PROJECT, capture_output=True, check=True
    )
    assert getattr(run, stream) == {"stdout": b"done\n", "stderr": b""}[stream]

"""The lines of a collector, into a pipe and onto a terminal."""

from __future__ import annotations

import os
import pty
import re
from datetime import UTC, datetime, timedelta

from pipeline.collect.lines import Lines

TEXT = "one\ntwo → btc/data.bin"


def printed(reading: int, writing: int, *, times: bool) -> list[str]:
    """Return what is read where TEXT is said."""
    lines = Lines(writing)
    if times:
        lines.add_times()
    lines.say(TEXT)
    lines.flush(10)
    try:
        return os.read(reading, 1000).decode().splitlines()
    finally:
        os.close(reading)
        os.close(writing)


def test_with_times_each_line_into_a_pipe_begins_with_one() -> None:
    found = [re.fullmatch(r"(\S+Z) (.+)", line) for line in printed(*os.pipe(), times=True)]
    assert "\n".join(match[2] for match in found if match) == TEXT
    for match in found:
        assert match
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(match[1]) < timedelta(hours=1)


def test_without_times_a_pipe_gets_what_is_said() -> None:
    assert printed(*os.pipe(), times=False) == TEXT.splitlines()


def test_on_a_terminal_there_are_none() -> None:
    assert printed(*pty.openpty(), times=True) == TEXT.splitlines()

"""docker/export.sh, which is the service `export`: files of each day up to yesterday, night after night."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config import PROJECT
from pipeline.times import to_ms
from tests.stack import Process, Stack, eventually

BASH = "import os, sys; os.execvp('bash', ['bash', *sys.argv[1:]])"
SOURCED = "unset EPOCHSECONDS; EPOCHSECONDS={}; source docker/export.sh; pause() {{ {}; }}; {}"
UNTIL_TOLD = 'until rm "$TMPDIR/night" 2>/dev/null; do call sleep 0.05; done; EPOCHSECONDS=$next'


def start(stack: Stack, *arguments: str, **env: Any) -> Process:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return stack.start("-c", BASH, *arguments, PATH=path, **env)


def fill(stack: Stack, midnight: datetime, count: int) -> None:
    """Add deals of a day."""
    stack.query(
        f"INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli(toInt64({to_ms(midnight)} + number)), 'd',"
        f" '60000.1|1|2' FROM numbers({count})"
    )


def test_what_failed_or_has_grown_is_done_the_next_night(empty: Stack, tmp_path: Path) -> None:
    out, failed = tmp_path / "archive", tmp_path / "export-failed"
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = today - timedelta(days=1)
    for midnight in (yesterday - timedelta(days=1), yesterday, today):
        fill(empty, midnight, 100)
    out.touch()
    script = SOURCED.format(int(today.timestamp()) + 3600, UNTIL_TOLD, "main")
    env: dict[str, Any] = {"TMPDIR": tmp_path, "EXPORT_OUT": out, "EXPORT_TYPES": "deals  candles"}
    process = start(empty, "-c", script, **env)

    def night(number: int) -> None:
        process.wait_for(f"^Next export: {today + timedelta(days=number):%Y-%m-%d}T00:10:00Z$")

    night(1)
    assert failed.exists()
    assert f"{out}/type=deals/symbol=BTC_USDT cannot be written: not a directory" in process.output
    out.unlink()
    (tmp_path / "night").touch()
    night(2)
    assert not failed.exists()
    dates = {path.parent.name for path in out.rglob("part-0.parquet")}
    assert dates == {f"date={today - timedelta(days=days):%Y-%m-%d}" for days in (1, 2)}
    assert {path.name for path in out.glob("type=*")} == {"type=deals", "type=candles-1m"}
    fill(empty, yesterday, 50)
    (tmp_path / "night").touch()
    night(3)
    assert f"{out}/type=deals/symbol=BTC_USDT/date={yesterday:%Y-%m-%d}/part-0.parquet: 150 rows" in process.output
    assert process.stop(signal.SIGTERM) == 0


def test_where_nothing_can_be_written_it_ends(empty: Stack, tmp_path: Path) -> None:
    (out := tmp_path / "archive").touch()
    fill(empty, datetime.now(UTC) - timedelta(days=1), 100)
    process = start(empty, "docker/export.sh", TMPDIR=tmp_path / "there is none", EXPORT_OUT=out)
    assert process.wait() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_and_what_it_runs(empty: Stack, tmp_path: Path, number: int) -> None:
    server = empty.processes[0]
    server.send(signal.SIGSTOP)  # an export would wait long for an answer
    try:
        process = start(empty, "docker/export.sh", TMPDIR=tmp_path, EXPORT_OUT=tmp_path)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: "export.py" in "".join(command(pid) for pid in children.read_text().split()), "an export")
        (child,) = children.read_text().split()
        assert process.stop(number) == 0
        assert "export.py" not in command(child)
    finally:
        server.send(signal.SIGCONT)
    assert list(tmp_path.rglob("*.parquet*")) == []


def command(pid: str) -> str:
    """Return the command line of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_setting_that_cannot_be_used_ends_it(empty: Stack, tmp_path: Path) -> None:
    process = start(empty, "docker/export.sh", TMPDIR=tmp_path, EXPORT_OUT=tmp_path, EXPORT_TYPES="books")
    assert process.wait() == 2
    assert "argument --type: invalid choice: 'books'" in process.lines[-1]


@pytest.mark.parametrize(
    ("now", "then"),
    [("23:59:59", "02T00:10"), ("00:09:59", "01T00:10"), ("00:10:00", "02T00:10"), ("12:00", "02T00:10")],
)
def test_the_night_is_at_ten_past_midnight(now: str, then: str) -> None:
    seconds = int(datetime.fromisoformat(f"2026-10-01T{now}Z").timestamp())
    script = SOURCED.format(seconds, "exit", "until_night")
    ran = subprocess.run(["bash", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert ran.stdout == f"Next export: 2026-10-{then}:00Z\n"

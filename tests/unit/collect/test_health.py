"""The status that a collector leaves each second, and the check that tells a working one from a stuck one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config import PROJECT, Settings
from pipeline.collect.health import Heartbeat
from pipeline.collect.journal import HISTORY, Journal
from pipeline.messages import Row
from pipeline.status import Status, check, status_path

NOW = 1_788_335_242.0
GOOD = Status(written=NOW - 1, frame_age=0.2, market_age=0.3, stuck_for=0.0, waiting=0, journal_full=False)
SETTINGS = Settings(stale_timeout=60, ping_interval=15)


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., tuple[bool, str]]:
    """Check a status that is GOOD but for what is given."""

    def run(settings: Settings = SETTINGS, **changes: float | bool | str) -> tuple[bool, str]:
        path = tmp_path / "btc.status.json"
        path.write_text(json.dumps(vars(replace(GOOD, **changes))))  # type: ignore[arg-type]
        return check(path, settings, NOW)

    return run


def test_a_collector_that_stores_what_it_gets_works(checked: Callable[..., tuple[bool, str]]) -> None:
    assert checked() == (True, "working, 0 rows wait")
    assert checked(waiting=3, stuck_for=59) == (True, "working, 3 rows wait")
    assert checked(frame_age=59, market_age=59)[0]


def test_a_collector_that_does_not_report_is_stuck(checked: Callable[..., tuple[bool, str]], tmp_path: Path) -> None:
    works, line = checked(written=NOW - 45)
    assert not works
    assert line == "the collector has not reported for 45 s: it is stuck or not running, or the disk is full"
    works, line = check(tmp_path / "eth.status.json", SETTINGS, NOW)
    assert not works
    assert "has not reported yet" in line


def test_a_status_from_before_the_clock_went_back_says_nothing(checked: Callable[..., tuple[bool, str]]) -> None:
    works, line = checked(written=NOW + 3600)
    assert not works
    assert line == "the collector last reported 3600 s in the future: it is not running, the clock went back"
    assert checked(written=NOW + 5)[0]


def test_what_has_to_be_put_right_is_said_before_all_else(checked: Callable[..., tuple[bool, str]]) -> None:
    blocked = "MEXC does not know DOT_USDT"
    assert checked(blocked=blocked, frame_age=500, waiting=12) == (False, f"{blocked}; 12 rows wait")
    assert checked(blocked=blocked, waiting=1) == (False, f"{blocked}; 1 row waits")


def test_silence_of_the_exchange_is_seen(checked: Callable[..., tuple[bool, str]]) -> None:
    assert checked(frame_age=61, market_age=61) == (False, "nothing came from the exchange for 61 s")
    # With rare pings, frames of a quiet market are rare, too.
    assert checked(Settings(stale_timeout=60, ping_interval=25), frame_age=61, market_age=61)[0]


def test_an_empty_market_is_said_and_is_no_failure(checked: Callable[..., tuple[bool, str]]) -> None:
    assert checked(market_age=300) == (True, "connected, but the market is empty: no data for 300 s")


def test_rows_that_nobody_acknowledges_are_seen(checked: Callable[..., tuple[bool, str]]) -> None:
    works, line = checked(waiting=800, stuck_for=61)
    assert not works
    assert line == "ClickHouse has taken no rows for 61 s; 800 rows wait, safe in the journal"
    assert checked(Settings(flush_interval=120), waiting=800, stuck_for=61)[0]


def test_a_full_journal_is_seen(checked: Callable[..., tuple[bool, str]]) -> None:
    works, line = checked(journal_full=True)
    assert not works
    assert "LOST" in line


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"written": 1}', "\udcff"])
def test_a_broken_status_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "btc.status.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    works, line = check(path, SETTINGS, NOW)
    assert not works
    assert "cannot be read" in line
    assert "\n" not in line


# What the collector notes


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now + NOW)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "btc.db", 1 << 30)
    yield journal
    journal.close()


@pytest.fixture
def heartbeat(clock: Clock, journal: Journal, tmp_path: Path) -> Heartbeat:
    return Heartbeat(Settings(journal_dir=str(tmp_path)), "btc", journal.position("btc"))


def read(directory: Path) -> Status:
    return Status(**json.loads((directory / "btc.status.json").read_text()))


def test_the_ages_count_from_the_start_until_something_comes(
    heartbeat: Heartbeat, clock: Clock, tmp_path: Path
) -> None:
    clock.now += 5
    heartbeat.beat(journal_full=False)
    assert read(tmp_path) == Status(clock.now + NOW, 5, 5, 0, 0, journal_full=False)
    heartbeat.frame(is_market_data=True)
    clock.now += 2
    heartbeat.frame(is_market_data=False)
    clock.now += 1
    heartbeat.beat(journal_full=True)
    assert read(tmp_path) == Status(clock.now + NOW, 1, 3, 0, 0, journal_full=True)


def test_rows_are_stuck_only_while_they_wait_and_none_is_acknowledged(
    heartbeat: Heartbeat, clock: Clock, journal: Journal, tmp_path: Path
) -> None:
    def stuck_for_after(seconds: float) -> float:
        clock.now += seconds
        heartbeat.beat(journal_full=False)
        return read(tmp_path).stuck_for

    assert stuck_for_after(500) == 0  # nothing waits: the last acknowledgement may be long ago
    journal.append([Row(1, "t", "x"), Row(2, "t", "y")])
    assert stuck_for_after(10) == 10
    assert stuck_for_after(10) == 20
    journal.position("btc").advance(1)
    assert stuck_for_after(10) == 0
    assert stuck_for_after(10) == 10
    journal.position("btc").advance(1)
    assert stuck_for_after(10) == 0
    assert read(tmp_path).waiting == 0


def test_a_status_that_cannot_be_written_does_not_stop_the_collector(heartbeat: Heartbeat, tmp_path: Path) -> None:
    heartbeat.beat(journal_full=False)
    before = read(tmp_path)
    (tmp_path / "btc.status.new").mkdir()  # whoever runs this, nobody can write to it
    heartbeat.beat(journal_full=True)
    assert read(tmp_path) == before


# The command


def run(directory: Path, *names: str, **environ: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.collect.health", *names],
        cwd=PROJECT,
        env={"JOURNAL_DIR": str(directory), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    return result.returncode, result.stdout


def test_the_command_says_one_line_per_collector(tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert code == 1
    assert "no collector has reported" in output
    fresh = replace(GOOD, written=time.time())
    (tmp_path / "btc.status.json").write_text(json.dumps(vars(fresh)))
    assert run(tmp_path) == (0, "btc: working, 0 rows wait\n")
    (tmp_path / "eth.status.json").write_text(json.dumps(vars(replace(fresh, frame_age=99))))
    assert run(tmp_path) == (1, "btc: working, 0 rows wait\neth: nothing came from the exchange for 99 s\n")
    assert run(tmp_path, "btc")[0] == 0
    assert run(tmp_path, "sol")[0] == 1
    assert run(tmp_path, STALE_TIMEOUT="soon")[0] == 2


def test_a_history_that_takes_no_rows_is_told_from_a_table_that_takes_none(tmp_path: Path) -> None:
    settings = Settings(journal_dir=str(tmp_path), stale_timeout=0.0, history_interval=0.0)
    journal = Journal(tmp_path / "btc.db", 1 << 30)
    live = journal.position("btc")
    heart = Heartbeat(settings, "btc", live, journal.position("btc_history", HISTORY, beside=live))
    journal.append([(1, "d", "1|1|1", 0, 0)])
    live.advance(1)
    heart.frame(is_market_data=True)
    time.sleep(0.01)
    heart.beat(journal_full=False)
    works, line = check(status_path(settings, "btc"), replace(settings, stale_timeout=0.005), time.time())
    assert not works
    assert line == "the history has taken no rows for 0 s; 1 row waits, safe in the journal"
    journal.close()

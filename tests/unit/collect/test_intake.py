"""What is known of the connections of one symbol, and of the journal that takes its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config import BTC_CONFIG, Settings
from pipeline.collect import intake as module
from pipeline.collect.errors import JournalFull
from pipeline.collect.health import Heartbeat
from pipeline.collect.intake import Intake
from pipeline.collect.journal import Journal
from pipeline.collect.stats import Stats
from pipeline.messages import DEAL, Row


class Ears:
    """An intake, and what it says."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.stats = Stats("BTC_USDT", "btc")
        self.said: list[str] = []
        settings = Settings(journal_dir=str(directory))
        heartbeat = Heartbeat(settings, "btc", journal.position("btc"))
        say = self.said.append
        self.intake = Intake(BTC_CONFIG, settings, journal, self.stats, heartbeat, say, say)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "btc.db", 1 << 30)) as opened:
        yield opened


def test_a_connection_that_ends_before_it_is_up_is_not_counted_down(tmp_path: Path, journal: Journal) -> None:
    """The feed tells of one where a subscription cannot be sent."""
    ears = Ears(tmp_path, journal)
    (connection,) = ears.intake.connections
    connection.dropped("Lost it")
    assert (ears.stats.connected, ears.said) == (0, ["Lost it"])
    connection.connected()
    assert ears.stats.connected == 1
    connection.dropped("Lost it")
    assert ears.stats.connected == 0


def test_a_journal_that_takes_short_rows_yet_is_called_full_once(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = Ears(tmp_path, journal)
    now = 1_000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    append = journal.append

    def append_short(rows: Sequence[Any], received_us: int = 0) -> None:
        if len(rows[0].m) > 20:
            raise JournalFull("database or disk is full")
        append(rows, received_us)

    def keep(m: str) -> bool:
        ears.intake._keep([Row(1, DEAL, m, 0, 0)], 0, ears.intake.connections[0])
        return ears.intake.journal_full

    monkeypatch.setattr(journal, "append", append_short)
    long = f"{'1' * 30}|1|1"
    assert [keep(m) for m in (long, "1|1|1", long, "2|1|1", "3|1|1")] == [True] * 5
    assert len(ears.said) == 1
    now += 1
    assert not keep("4|1|1")
    assert keep(long)
    assert len(ears.said) == 2

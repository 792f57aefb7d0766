"""When a collector compacts its table, by a clock and a compaction of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config import Settings
from pipeline.collect import autocompact as module
from pipeline.collect.autocompact import AutoCompaction
from pipeline.store.compact import CompactionError, Progress, blocks_allowed


class Clock:
    """Stands in for the module `time`; compactions take as long as they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.compactions: list[float] = []
        self.take = 0.0
        self.error: CompactionError | None = None

    def monotonic(self) -> float:
        return self.now

    def compact(self, settings: Settings, name: str) -> Iterator[Progress]:
        self.compactions.append(self.now)
        yield Progress(f"Compacting {name}", 0)
        self.now += self.take
        if self.error:
            raise self.error
        yield Progress("between", 0.5)
        yield Progress(f"Compacted {name}", 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "tidy", clock.compact)
    monkeypatch.setattr(module, "count_small_blocks", lambda settings, name: 4)
    return clock


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    (tmp_path / "journal").mkdir()


def automatic(said: list[str], limit: int = 10, name: str = "btc") -> AutoCompaction:
    return AutoCompaction(Settings(compact_blocks=limit), name, said.append)


def insert(compaction: AutoCompaction, times: int) -> list[bool]:
    return [compaction.inserted(lambda: False) for _ in range(times)]


def test_it_is_due_with_more_small_blocks_than_allowed(clock: Clock) -> None:
    said: list[str] = []
    compaction = automatic(said)
    assert all(insert(compaction, 7))  # there were 4 already, with the first
    assert clock.compactions == []
    assert all(insert(compaction, 1))
    assert len(clock.compactions) == 1
    assert said == ["Compacting btc", "Compacted btc"]
    insert(compaction, 10)
    assert len(clock.compactions) == 1
    insert(compaction, 1)
    assert len(clock.compactions) == 2


def test_0_turns_it_off(clock: Clock) -> None:
    assert all(insert(automatic([], limit=0), 100))
    assert clock.compactions == []


def test_it_takes_a_twentieth_of_the_time_at_most(clock: Clock) -> None:
    said: list[str] = []
    compaction = automatic(said)
    clock.take = 30
    insert(compaction, 8)
    clock.now += 599
    insert(compaction, 100)
    assert len(clock.compactions) == 1
    (warning,) = (line for line in said if "WARNING" in line)
    assert "btc grows fragmented: it holds 11 small blocks" in warning
    assert "raise FLUSH_INTERVAL" in warning
    clock.now += 1
    insert(compaction, 1)
    assert len(clock.compactions) == 2


def test_what_failed_is_tried_again_later(clock: Clock) -> None:
    said: list[str] = []
    compaction = automatic(said)
    clock.error = CompactionError("no disk")
    assert insert(compaction, 8) == [True] * 7 + [False], "the table has to be asked for its state"
    assert said == ["Compacting btc", "mexc_data.btc stays as it is for now: no disk"]
    clock.now += 599
    assert all(insert(compaction, 100))
    clock.error = None
    clock.now += 1
    assert all(insert(compaction, 1))
    assert len(clock.compactions) == 2


def test_it_is_given_up_when_the_collector_stops(clock: Clock) -> None:
    said: list[str] = []
    compaction = automatic(said)
    insert(compaction, 7)
    assert not compaction.inserted(lambda: True)
    assert said == ["Compacting btc"]


def test_tables_are_compacted_one_at_a_time(clock: Clock) -> None:
    said: list[str] = []
    btc, eth = automatic([]), automatic(said, name="eth")
    insert(btc, 7)
    insert(eth, 7)

    def while_btc_is_compacted() -> bool:
        assert all(insert(eth, 5))
        assert automatic([], name="sol").inserted(lambda: False)  # which has not counted its blocks yet
        return False

    assert btc.inserted(while_btc_is_compacted)
    assert said == []
    assert all(insert(eth, 1))
    assert said == ["Compacting eth", "Compacted eth"]


def test_it_is_not_put_off_for_ever_where_the_journals_cannot_be_written(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "journal" / "compaction.lock").mkdir()
    insert(automatic([]), 8)
    assert len(clock.compactions) == 1


def test_many_tables_share_what_small_blocks_there_may_be() -> None:
    fifty = Settings(symbols=",".join(f"A{number}_USDT" for number in range(47)))
    assert blocks_allowed(fifty) == 6_000
    assert blocks_allowed(Settings(symbols="XRP_USDT")) == 50_000
    assert blocks_allowed(Settings(compact_blocks=500_000)) == 500_000, "as set, where there are those of config.py"
    assert blocks_allowed(Settings(symbols=fifty.symbols, compact_blocks=0)) == 0

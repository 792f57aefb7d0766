"""The lines of collectors, as `python3 -m local` shows them."""

from __future__ import annotations

import pytest

from local.summary import summed_up
from pipeline.collect.stats import Stats

SAID = "Subscribed to: sub.deal for BTC_USDT"


def block(stats: Stats | None = None, **others: int) -> list[str]:
    """Return the lines of a real block, of three records unless it is that of other statistics."""
    stats = stats or Stats("BTC_USDT", "btc")
    stats.appended(["t", "d", "d"])
    return stats.block(15.2, others.pop("waiting", 0), **others).split("\n")


def test_a_block_is_one_line_between_the_others() -> None:
    line = "3 records in 15 s (0.20 records/sec): ticker 1, deal 2, depth 0"
    assert [*summed_up([SAID, *block(), SAID])] == [SAID, line, SAID]


def test_what_is_wrong_is_in_it() -> None:
    stats = Stats("BTC_USDT", "btc", wanted=2)
    stats.appended(["dl"])
    stats.error("failed INSERT")
    (line,) = summed_up(block(stats, waiting=7, up=1))
    assert line.endswith("depth 0, deadletter 1; Errors: 1; Connections: 1 of 2 up; Waiting in journal: 7")


@pytest.mark.parametrize("time", ["", "2026-10-01T13:30:00.125Z "])
def test_those_of_a_fleet_may_come_mixed_and_have_times(time: str) -> None:
    lines = [f"{time}{name:<10} | {line}" for line in block() for name in ("xrp", "doge")]
    found = [*summed_up(lines)]
    line = "3 records in 15 s (0.20 records/sec): ticker 1, deal 2, depth 0"
    assert found == [f"{time}xrp        | {line}", f"{time}doge       | {line}"]


def test_a_block_that_was_cut_is_shown_as_far_as_it_came() -> None:
    assert [*summed_up(block()[:5])] == block()[:5]

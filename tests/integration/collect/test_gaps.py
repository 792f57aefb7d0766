"""After a gap in the feed: its length is said, and the deals made in it are filled in, none of them twice."""

import json
import signal
from collections import Counter
from typing import Any

import pytest

from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, eventually, whole_lines

QUICK: dict[str, Any] = {"PING_INTERVAL": 1, "STALE_TIMEOUT": 3}


def deals_made(exchange: Exchange) -> list[str]:
    """Return every deal of the market since it began, delivered or not, oldest first."""
    frames = dict.fromkeys(json.loads(line)["frame"] for line in whole_lines(exchange.log))
    return [row.m for raw in frames for row in parse_frame(raw, "BTC_USDT", 0).rows if row.mt == "d"]


def deals_stored(stack: Stack) -> Counter[str]:
    return Counter(m for _, mt, m in stack.rows() if mt == "d")


def begin(running: Stack, *options: object) -> tuple[Exchange, Process]:
    exchange = running.exchange("--rate", 20, *options)
    collector = running.collector(**QUICK)
    running.wait_for_rows(30)
    return exchange, collector


def end(running: Stack, collector: Process) -> None:
    """Stop the collector, having stored all that it read."""
    collector.wait_for("missed deals? filled in; none is missing")
    before = running.count()
    running.wait_for_rows(before + 10)
    assert collector.stop() == 0


def assert_complete(running: Stack, exchange: Exchange) -> None:
    """Check that all deals are stored once, but for those made after the collector had ended."""
    exchange.process.stop()
    made, stored = deals_made(exchange), deals_stored(running)
    assert not stored - Counter(made), "deals that were not made, or stored twice"
    missing = Counter(made) - stored
    assert missing == Counter(made[len(made) - missing.total() :])


@pytest.mark.parametrize("fault", ["drop", "half-open", "refuse:2", "gone:2"])
def test_deals_made_in_a_gap_are_filled_in(running: Stack, fault: str) -> None:
    exchange, collector = begin(running)
    exchange.fault(fault)
    if fault.startswith("refuse"):
        exchange.fault("drop")
    collector.wait_for(r"BTC_USDT: no market data from .* to .* UTC \(\d+\.\d s\)")
    end(running, collector)
    assert_complete(running, exchange)


def test_deals_made_while_the_collector_was_dead_are_filled_in(running: Stack) -> None:
    exchange, collector = begin(running)
    collector.stop(signal.SIGKILL)
    stored = running.count()
    known = len(deals_made(exchange))
    eventually(lambda: len(deals_made(exchange)) >= known + 15, "deals without a collector")
    again = running.collector(**QUICK)
    again.wait_for("no market data from")
    running.wait_for_rows(stored + 20)
    end(running, again)
    assert_complete(running, exchange)


def test_a_gap_longer_than_the_list_is_said(running: Stack) -> None:
    exchange, collector = begin(running)
    collector.stop(signal.SIGKILL)
    known = len(deals_made(exchange))
    eventually(lambda: len(deals_made(exchange)) >= known + 150, "deals without a collector")
    again = running.collector(**QUICK)
    again.wait_for(r"\d+ missed deals? filled in; MEXC's list goes back only to \d{4}-.* UTC")
    assert again.stop() == 0


def test_a_rest_failure_is_a_line_and_no_error(running: Stack) -> None:
    exchange, collector = begin(running)
    exchange.fault("rest-down")
    exchange.fault("drop")
    collector.wait_for("missed deals cannot be filled in: .*503")
    assert collector.running
    assert collector.output.count("Errors: 1") <= 1, "the dropped connection is the only error"


def test_a_first_start_has_no_gap(running: Stack) -> None:
    _, collector = begin(running)
    assert collector.stop() == 0
    assert "no market data" not in collector.output
    assert "missed deals" not in collector.output

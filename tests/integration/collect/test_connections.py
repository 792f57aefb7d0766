"""CONNECTIONS=2: what either of two WebSockets brings is stored once, whatever becomes of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

import pytest

from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, StoredRow, eventually, whole_lines
from tests.wires import Wires, open_wires

RATE = 60  # frames/s


class Lab:
    """An exchange, two wires to it, and a collector."""

    def __init__(self, stack: Stack, wires: Wires, exchange: Exchange) -> None:
        self.stack, self.wires, self.exchange = stack, wires, exchange
        url = f"ws://127.0.0.1:{wires.port}/edge"
        self.collector: Process = stack.collector(CONNECTIONS=2, MEXC_WS_URL=url, PING_INTERVAL=1, STALE_TIMEOUT=3)
        eventually(lambda: len(wires.open) == 2, "two connections")
        for number in (1, 2):
            self.collector.wait_for(rf"^Subscribed to: sub.deal for BTC_USDT \(connection {number}\)$")

    def has_subscribed(self, times: int) -> bool:
        """Whether so many connections have brought deals so far, or promised to."""
        return self.collector.output.count("Subscribed to: sub.deal") >= times

    def sent(self) -> list[StoredRow]:
        """Return the rows of all frames that were handed to any connection, each frame once."""
        entries = [json.loads(line) for line in whole_lines(self.exchange.log)]
        frames = dict.fromkeys(entry["frame"] for entry in entries if entry["conn"])
        return [(row.ts_ms, row.mt, row.m) for raw in frames for row in parse_frame(raw, "BTC_USDT", 0).rows]

    def flow(self, rows: int) -> None:
        before = self.stack.count()
        self.stack.wait_for_rows(before + rows)

    def end(self, *, all_of_it: bool) -> None:
        """Stop, and compare: nothing twice, and where `all_of_it` nothing is missing."""
        assert self.collector.stop() == 0
        stored, sent = Counter(self.stack.rows()), self.sent()  # two deals may be equal but for their ids
        assert not stored - Counter(sent)
        if all_of_it:
            on_its_way = Counter(sent[-2 * RATE :])  # as the collector ended
            assert not Counter(sent) - stored - on_its_way


@pytest.fixture
def lab(running: Stack) -> Iterator[Lab]:
    exchange = running.exchange("--rate", RATE, "--fault", "rest-down")
    with open_wires(urlsplit(exchange.url).port or 0) as wires:
        yield Lab(running, wires, exchange)


def cut(lab: Lab) -> None:
    lab.wires.open[0].cut()
    lab.flow(RATE)


def cut_each_in_turn(lab: Lab) -> None:
    for cuts in range(1, 7):
        lab.wires.open[0].cut()
        eventually(partial(lab.has_subscribed, 2 + cuts), "two connections that bring deals")
        lab.flow(RATE // 2)


def stall_one(lab: Lab) -> None:
    stalled = lab.wires.open[0]
    stalled.flows.clear()
    lab.collector.wait_for(r"^(Gave up|Lost) .* \(connection \d\)$")
    lab.flow(RATE)


def lag_one(lab: Lab) -> None:
    lab.wires.open[0].lag = 3.0
    lab.flow(5 * RATE)
    lab.wires.open[0].lag = 0.0
    lab.flow(RATE)


@pytest.mark.parametrize("happens", [cut, cut_each_in_turn, stall_one, lag_one])
def test_what_either_brings_is_there_once(lab: Lab, happens: Callable[[Lab], None]) -> None:
    lab.flow(RATE)
    happens(lab)
    lab.end(all_of_it=True)
    assert "no market data from" not in lab.collector.output, "it was no gap"


def test_a_gap_is_where_both_are_down(lab: Lab) -> None:
    lab.flow(RATE)
    lab.wires.next_stalled_for = lambda: 3.5
    for wire in lab.wires.open:
        wire.cut()
    lab.collector.wait_for(r"BTC_USDT: no market data from .* to .* \(\d\.\d s\)$")
    lab.wires.next_stalled_for = lambda: 0.0
    lab.flow(RATE)
    lab.end(all_of_it=False)


def test_one_that_is_down_is_said(lab: Lab) -> None:
    lab.collector.wait_for("^Connections: 2 of 2 up$")
    lab.wires.next_stalled_for = lambda: 60.0
    lab.wires.open[0].cut()
    lab.collector.wait_for("^Connections: 1 of 2 up$")
    status = lab.stack.directory / "journal" / "btc.status.json"
    eventually(lambda: json.loads(status.read_text())["connections_down"] == 1, "the status")
    health = lab.stack.run("-m", "pipeline.collect.health", JOURNAL_DIR=status.parent)
    assert health.wait() == 0
    assert health.output.startswith("btc: working (1 connection down), ")
    time.sleep(0.5)
    lab.end(all_of_it=True)

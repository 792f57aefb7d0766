"""Rows a second that a collector stores when frames come as fast as it reads, against a plain one, pymexc and ccxt.

The simulated exchange sends a file of the market's frames to one collector at a time, no faster than that reads them.
All store rows of the same format in the same engine; the rivals (bench.rivals) make one INSERT of each row, where the
frame is handed to them. The exchange alone is measured with a client that throws all bytes away, journaling alone with
no ClickHouse to be found.

ccxt takes deals in lists only, MEXC's default, and its order book is made of another channel and of REST; so there is
a second feed, of tickers and lists of deals.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import websocket

from bench.feeds import listed_frames, market_frames, replay, rows_of, stored_rows
from bench.tables import print_table
from config import BTC_CONFIG
from tests.stack import Process, Stack, eventually, free_port, open_stack

FRAMES = 100_000
RIVAL_FRAMES = 4_000  # they store some hundreds a second
PATIENCE = 15.0  # seconds without another row, after which the missing ones count as lost
_POLL = 0.1  # seconds


class Result(NamedTuple):
    """What became of a feed's rows."""

    rows: int
    per_second: float
    lost: int


def main() -> None:
    """Measure and print the table."""
    header = ["feed", "collector", "rows", "rows/s", "of plain", "rows lost", "waiting, at most"]
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        all_channels = market_frames(FRAMES)
        rows: list[list[object]] = [
            ["all channels", "none: exchange alone", FRAMES, exchange_alone(stack, all_channels), "", "", ""],
            ["all channels", "this, journal only", FRAMES, journal_alone(stack, all_channels), "", "", ""],
        ]
        rows += compare(stack, "all channels", market_frames, ("pymexc",))
        rows += compare(stack, "deals in lists, tickers", listed_frames, ("pymexc", "ccxt"))
    print_table(header, rows)


def compare(
    stack: Stack, feed: str, frames: Callable[[int], list[str]], libraries: tuple[str, ...]
) -> list[list[object]]:
    """Return the table's rows on one feed."""
    plain = run(stack, frames(RIVAL_FRAMES), "-m", "bench.rivals", "plain")[0]
    ours, collector = run(stack, frames(FRAMES), "btcdat.py")
    waiting = max((int(found[1]) for found in re.finditer(r"Waiting in journal: (\d+)", collector.output)), default=0)
    table: list[list[object]] = [
        [feed, "this project", ours.rows, ours.per_second, ours.per_second / plain.per_second, ours.lost, waiting],
        [feed, "plain", plain.rows, plain.per_second, 1.0, plain.lost, ""],
    ]
    for name in libraries:
        if find_spec(name) is None:
            table.append([feed, f"{name}: not installed", "", "", "", "", ""])
            continue
        rival = run(stack, frames(RIVAL_FRAMES), "-m", "bench.rivals", name)[0]
        table.append([feed, name, rival.rows, rival.per_second, rival.per_second / plain.per_second, rival.lost, ""])
    return table


def run(stack: Stack, frames: list[str], *command: str) -> tuple[Result, Process]:
    """Send the frames to a collector, from start to end; return what became of them."""
    stack.setup("--reset", "--yes")
    exchange = replay(stack, frames)
    collector = stack.start(*command, JOURNAL_DIR=_fresh_journal(stack))
    eventually(lambda: stored_rows(stack) > 0 or not collector.running, "a first row")
    assert collector.running, collector.output
    first, begin = stored_rows(stack), time.monotonic()
    rows, newest, end = len(rows_of(frames)), first, begin
    while newest < rows and time.monotonic() - end < PATIENCE:
        time.sleep(_POLL)
        if (stored := stored_rows(stack)) > newest:
            newest, end = stored, time.monotonic()
    collector.stop()
    exchange.stop()
    return Result(rows, (newest - first) / (end - begin), rows - newest), collector


def exchange_alone(stack: Stack, frames: list[str]) -> float:
    """Return how many frames a second the exchange sends to a client that does nothing with them."""
    exchange = replay(stack, frames)
    connection = websocket.create_connection(stack.env["MEXC_WS_URL"])
    for subscription in BTC_CONFIG["subscriptions"]:
        connection.send(json.dumps(subscription))
    left = sum(len(frame) + 4 for frame in frames)  # 4 bytes of header: all are longer than 125 and shorter than 65,536
    begin = 0.0
    while left > 0:
        left -= len(connection.sock.recv(1 << 20))
        begin = begin or time.monotonic()
    seconds = time.monotonic() - begin
    connection.close()
    exchange.stop()
    return len(frames) / seconds


def journal_alone(stack: Stack, frames: list[str]) -> float:
    """Return how many rows a second a collector journals while there is no ClickHouse."""
    exchange = replay(stack, frames)
    journal = _fresh_journal(stack)
    collector = stack.collector(JOURNAL_DIR=journal, CLICKHOUSE_PORT=free_port())
    status = journal / "btc.status.json"
    seen: list[tuple[float, int]] = []  # (time, rows), as written each second

    def all_waiting() -> bool:
        if status.exists():
            beat = json.loads(status.read_text())
            if beat["waiting"] and (beat["written"], beat["waiting"]) not in seen:
                seen.append((beat["written"], beat["waiting"]))
        return bool(seen) and seen[-1][1] == len(frames)

    eventually(all_waiting, "all frames are journaled")
    collector.stop()
    exchange.stop()
    (begin, first), (end, last) = seen[0], seen[-2]  # the last one has a part of its second without frames
    return (last - first) / (end - begin)


def _fresh_journal(stack: Stack) -> Path:
    return stack.directory / f"journal-{len(stack.processes)}"


if __name__ == "__main__":
    main()

"""What several benchmarks need: the market's frames as a file, an exchange that sends it, and figures of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from config import BTC_CONFIG
from local.market import Market, frames
from pipeline.messages import Row, parse_frame
from tests.stack import Process, Stack

SYMBOL = BTC_CONFIG["symbol"]
START_MS = 1_790_000_000_000
STORED_AT = f"store/{BTC_CONFIG['uuid'][:3]}/{BTC_CONFIG['uuid']}"


def market_frames(count: int) -> list[str]:
    """Return what a collector of all three channels gets first, deals one by one."""
    return [text for _, text in islice(frames(SYMBOL, 0, START_MS), count)]


def listed_frames(count: int) -> list[str]:
    """Return what a subscriber of tickers and deals gets first, deals in lists."""

    def texts() -> Iterator[str]:
        market, now = Market(SYMBOL), 0.0
        while True:
            event = market.step(START_MS + round(now * 1000))
            now += event.pause
            if event.channel != "depth.full":
                yield from event.frames(compress=True)

    return list(islice(texts(), count))


def rows_of(texts: list[str]) -> list[Row]:
    """Return the rows of frames."""
    return [row for text in texts for row in parse_frame(text, SYMBOL, START_MS).rows]


def replay(stack: Stack, texts: list[str]) -> Process:
    """Start an exchange that sends these frames as fast as they are read, once; collectors started next go there."""
    path = stack.directory / f"replay-{len(stack.processes)}"
    path.write_text("\n".join(texts))
    exchange = stack.start("-m", "local.exchange", "--port", 0, "--replay", path)
    stack.env["MEXC_WS_URL"] = exchange.wait_for(r"listening on (ws://\S+)")[1]
    stack.env["MEXC_REST_URL"] = exchange.wait_for(r"REST on (http://\S+)")[1]
    return exchange


def stored_rows(stack: Stack) -> int:
    """Return how many rows the table btc has, without reading it."""
    found = stack.query("SELECT total_rows FROM system.tables WHERE database = 'mexc_data' AND name = 'btc'")
    return found[0][0] or 0


def file_bytes(stack: Stack, file: str) -> int:
    """Return the size of one of the table btc's files, data.bin or index.mrk; 0 before the first row."""
    path = stack.data / STORED_AT / file
    return path.stat().st_size if path.exists() else 0


def resident_mb(process: Process) -> float:
    """Return a process's memory in MB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

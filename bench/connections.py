"""What a second connection gives, and what it costs: an exchange that cuts connections at random.

Each connection is cut after a random time, and the one that follows lets nothing through for some seconds more, each
with a fate of its own. REST is away, so that nothing is filled in. What is missing is told by the exchange's log.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from bench.tables import print_table
from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, eventually, open_stack
from tests.wires import Wire, Wires, open_wires

RATE = 15  # frames/s, about BTC's own
SECONDS = 200
BETWEEN_CUTS = 20.0  # seconds on average, of each connection
AWAY = (0.5, 5.0)  # seconds that the next one is of no use


def main() -> None:
    """Measure and print the table."""
    figures: list[tuple[float, ...]] = []
    for connections in (1, 2):
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            stack.clickhouse()
            stack.setup()
            exchange = stack.exchange("--rate", RATE, "--fault", "rest-down")
            with open_wires(urlsplit(exchange.url).port or 0) as wires:
                figures.append(measure(stack, exchange, wires, connections))
    ratio = [two / one for one, two in zip(*figures, strict=True)]
    rows = [[name, *values] for name, values in zip(("1", "2", "2 / 1"), (*figures, ratio), strict=True)]
    print_table(["CONNECTIONS", "cuts", "frames sent", "missing", "missing, %", "processor time, s"], rows)


def measure(stack: Stack, exchange: Exchange, wires: Wires, connections: int) -> tuple[float, ...]:
    """Return the cuts, the frames that were made, those that are missing, in percent, and the collector's time."""
    chance = Random(2026)
    url = f"ws://127.0.0.1:{wires.port}/edge"
    collector = stack.collector(CONNECTIONS=connections, MEXC_WS_URL=url, MAX_ERROR_COUNT=100_000, COMPACT_BLOCKS=0)
    eventually(lambda: stack.count() > RATE, "the first rows")
    first = made(exchange)
    wires.next_stalled_for = lambda: chance.uniform(*AWAY)
    until = time.monotonic() + SECONDS
    cuts = 0
    ends: dict[Wire, float] = {}
    while time.monotonic() < until:
        now = time.monotonic()
        for wire in wires.open:
            if now > ends.setdefault(wire, now + chance.expovariate(1 / BETWEEN_CUTS)):
                wire.cut()
                cuts += 1
        time.sleep(0.02)
    wires.next_stalled_for = lambda: 0.0
    last = made(exchange)
    time.sleep(max(AWAY))  # what was sent is stored
    took = processor_seconds(collector)
    collector.stop()
    stored = set(stack.rows())
    missing = [frame for frame in last[len(first) :] if rows_of(frame) - stored]
    total = len(last) - len(first)
    return cuts, total, len(missing), 100 * len(missing) / total, took


def made(exchange: Exchange) -> list[str]:
    """Return all frames of the market so far, handed to anybody or not."""
    entries = map(json.loads, exchange.log.read_text().splitlines())
    return list(dict.fromkeys(entry["frame"] for entry in entries if entry["symbol"] == "BTC_USDT"))


def rows_of(frame: str) -> set[tuple[int, str, str]]:
    """Return the rows that a frame makes."""
    return {(row.ts_ms, row.mt, row.m) for row in parse_frame(frame, "BTC_USDT", 0).rows}


def processor_seconds(process: Process) -> float:
    """Return the processor time that a process has had."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

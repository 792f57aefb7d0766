"""A collector under load for long: is its memory flat, does the journal shrink again, is every row there?

    python3 -m bench.soak [--frames N] [--rate N]

An hour's frames at 200 a second, unless told otherwise, from the simulated exchange by a real collector into the local
ClickHouse; at half time ClickHouse is away for an eighth of them. At the end the table is compared with what was sent,
row by row and in order. Exit code 1 if anything is missing or wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

from bench.feeds import resident_mb
from bench.tables import print_table
from pipeline.messages import parse_frame
from tests.stack import Exchange, Stack, StoredRow, open_stack

LINES = 16  # of the table
MEMORY = 60.0  # MB that the collector may have
_STORED = """
    SELECT groupArray((toUnixTimestamp64Milli(ts), toString(mt), m))
    FROM (SELECT *, intDiv(rowNumberInAllBlocks(), 10000) AS chunk FROM mexc_data.btc)
    GROUP BY chunk ORDER BY chunk SETTINGS max_threads = 1, max_block_size = 1
"""


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=720_000, help="in all (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=200, help="frames/s (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, open_stack(Path(directory)) as stack:
        return soak(stack, arguments.frames, arguments.rate)


def soak(stack: Stack, frames: int, rate: int) -> int:
    """Do it, and print the table; return the exit code."""
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)  # this process's own connection breaks, too
    server = stack.clickhouse()
    stack.setup()
    exchange = stack.exchange("--rate", rate, "--frames", frames)
    collector = stack.collector()
    begin = time.monotonic()
    lines: list[list[object]] = []
    peak = highest = journal_peak = 0.0
    away = False
    while True:
        time.sleep(0.5)
        sent, minutes = sent_frames(exchange), (time.monotonic() - begin) / 60
        highest = max(highest, resident_mb(collector))
        journal_peak = max(journal_peak, journal_mb(stack))
        peak = max(peak, highest)
        if not away and frames / 2 <= sent < frames * 5 / 8:
            server.stop(signal.SIGKILL)
            away = True
        elif away and sent >= frames * 5 / 8:
            server = stack.clickhouse()
            away = False
        done = sent >= frames and not away and stack.count() >= frames
        if done or sent >= frames * len(lines) / LINES:
            stored = "away" if away else f"{stack.count():,}"
            lines.append([f"{minutes:.1f}", f"{sent:,}", stored, highest, resident_mb(collector), journal_peak])
            highest = journal_peak = 0.0
        if done:
            break
    print_table(
        ["minutes", "frames sent", "rows stored", "collector, most MB", "collector, MB", "journal, most MB"], lines
    )
    assert collector.stop() == 0
    wrong = sum(a != b for a, b in zip_longest(stored_rows(stack), sent_rows(exchange)))
    print(f"\n{frames:,} frames at {frames / minutes / 60:.0f}/s: {wrong} rows missing, doubled or out of order;")
    print(f"the collector had {peak:.1f} MB at most; the journal has {journal_mb(stack):.1f} MB at the end")
    return 1 if wrong or peak > MEMORY else 0


def sent_frames(exchange: Exchange) -> int:
    """Return how many frames the exchange has sent so far."""
    sent: int = exchange.get("/status")["sent"].get("BTC_USDT", 0)
    return sent


def journal_mb(stack: Stack) -> float:
    """Return the size of the journal's files."""
    return sum(path.stat().st_size for path in Path(stack.env["JOURNAL_DIR"]).glob("btc.db*")) / 1e6


def stored_rows(stack: Stack) -> Iterator[StoredRow]:
    """Yield the table's rows, in order."""
    return chain.from_iterable(rows for ((rows),) in stack.query(_STORED))


def sent_rows(exchange: Exchange) -> Iterator[StoredRow]:
    """Yield the rows that the frames sent should be, in order."""
    with exchange.log.open() as log:
        for line in log:
            entry = json.loads(line)
            if entry["conn"]:
                for row in parse_frame(entry["frame"], "BTC_USDT", 0).rows:
                    yield row.ts_ms, row.mt, row.m


if __name__ == "__main__":
    sys.exit(main())

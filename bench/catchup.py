"""Rows a second into the table after an outage, from a journal in which they wait.

First the table's end of a collector alone, then a whole one with live frames coming in. Rows keep their order: a live
row waits for those before it, so that it takes as long as the catching up does, at most.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.feeds import market_frames, rows_of, stored_rows
from bench.latency import timed_collector
from bench.tables import print_table
from config import load_settings
from pipeline.collect.journal import Journal
from pipeline.collect.stripelog import StripeLog
from pipeline.collect.table import Table
from tests.stack import Stack, eventually, open_stack

WAITING = 200_000  # rows: some five hours of one symbol
LIVE_RATES = (15, 500)  # frames/s
LIVE_SECONDS = 5  # to go on once the waiting rows are in
_POLL = 0.05  # seconds


def main() -> None:
    """Measure and print the table."""
    table: list[list[object]] = []
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        table.append(["table alone", WAITING, *drain(stack), "", ""])
        for rate in LIVE_RATES:
            table.append([f"collector, {rate} frames/s live", WAITING, *drain_live(stack, rate)])
    print_table(["", "waiting rows", "seconds", "rows/s", "live rows lost", "live row at most, s"], table)


def drain(stack: Stack) -> tuple[float, float]:
    """Send the waiting rows and nothing else; return the seconds it took, and the rows of one."""
    stack.setup("--reset", "--yes")
    journal = _waiting(stack.directory / "alone.db")
    settings = load_settings(stack.env, dotenv=None)
    stripelog = StripeLog(settings, "btc", print)
    table = Table(journal.position("btc"), stripelog, print, settings.max_batch_rows)
    begin = time.monotonic()
    while journal.waiting:
        table.append_pending()
    seconds = time.monotonic() - begin
    stripelog.close()
    journal.close()
    return seconds, WAITING / seconds


def drain_live(stack: Stack, rate: int) -> tuple[float, float, int, float]:
    """Let a collector catch up; return the seconds, the rows of one, live rows lost, and the longest one took."""
    stack.setup("--reset", "--yes")
    journal = stack.directory / f"live-{rate}"
    _waiting(journal / "btc.db").close()
    exchange = stack.exchange("--rate", rate)
    with timed_collector(stack, JOURNAL_DIR=journal) as took:
        eventually(lambda: stored_rows(stack) > 0, "a first row")
        first, begin = stored_rows(stack), time.monotonic()
        while (stored := stored_rows(stack)) < WAITING:
            time.sleep(_POLL)
        seconds = time.monotonic() - begin
        time.sleep(LIVE_SECONDS)
        exchange.process.stop()
    lost = max(0, WAITING + len(exchange.sent()) - stored_rows(stack))
    per_second = (stored - first) / seconds
    return WAITING / per_second, per_second, lost, max(took[WAITING:]) / 1000


def _waiting(path: Path) -> Journal:
    """Return a journal in which rows wait."""
    journal = Journal(path, 1 << 30)
    rows = rows_of(market_frames(WAITING))
    for start in range(0, WAITING, 1_000):
        journal.append(rows[start : start + 1_000])
    return journal


if __name__ == "__main__":
    main()

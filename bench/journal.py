"""What it costs to journal a row, against storing it by an INSERT of its own.

The same rows, in turn: a hundred into the journal, a hundred by single-row INSERTs with clickhouse-driver, and so on.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.feeds import market_frames, rows_of
from bench.tables import percentile, print_table
from config import load_settings
from pipeline.collect.journal import Journal
from pipeline.store.client import connect
from tests.stack import open_stack

ROWS = 5_000
TURN = 100


def main() -> None:
    """Measure and print the table."""
    rows = rows_of(market_frames(ROWS))
    journaled: list[float] = []
    inserted: list[float] = []
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        stack.setup()
        client = connect(load_settings(stack.env, dotenv=None), query_settings={"async_insert": 0})
        journal = Journal(Path(directory) / "btc.db", 1 << 30)
        for first in range(0, ROWS, TURN):
            for row in rows[first : first + TURN]:
                begin = time.perf_counter()
                journal.append([row])
                journaled.append((time.perf_counter() - begin) * 1000)
            journal.sync()  # a collector does so once a second
            for row in rows[first : first + TURN]:
                begin = time.perf_counter()
                client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [row[:3]])
                inserted.append((time.perf_counter() - begin) * 1000)
        journal.close()
        client.disconnect()
    mine, theirs = figures(journaled), figures(inserted)
    ratio = [one / other for one, other in zip(mine, theirs, strict=True)]
    lines = [["journal", *mine], ["single-row INSERT", *theirs], ["ratio", *ratio]]
    print_table(["one row, ms", "mean", "p50", "p99"], lines)


def figures(times: list[float]) -> list[float]:
    """Return mean, median and 99th percentile."""
    return [sum(times) / len(times), percentile(times, 50), percentile(times, 99)]


if __name__ == "__main__":
    main()

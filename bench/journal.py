"""What it costs to journal a row, against storing it by an INSERT of its own.

The same rows, in turn: a hundred into the journal, a hundred by single-row INSERTs with clickhouse-driver, and so on.
What is written for a row is what the process hands to the operating system (/proc/self/io), once the journal trims the
rows that were stored; a row then costs a page of the log, and that page again when the log goes into the file.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.feeds import START_MS, market_frames, rows_of
from bench.tables import percentile, print_table
from config import load_settings
from pipeline.collect.journal import Journal
from pipeline.store.client import connect
from tests.stack import open_stack

ROWS = 5_000
TURN = 100
STEADY_ROWS = 20_000
SIZES = (50, 600)  # bytes; a deal's m, a book's


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
    print()
    print_table(["m of a row, bytes", "written for it, bytes"], [[size, written_for_a_row(size)] for size in SIZES])


def written_for_a_row(size: int) -> float:
    """Return the bytes that are written for a row whose `m` has `size` bytes, from its coming to its being trimmed."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "btc.db", 1 << 30)
        position = journal.position("btc")
        position.adopt("token", 0, 0)
        position.open()
        for number in range(2 * STEADY_ROWS):
            if number == STEADY_ROWS:  # the journal trims by now
                before = _written()
            journal.append([(START_MS, "dp", "x" * size, number, 0)])
            position.hand_over(1)
            position.acknowledge(1)
            if number % TURN == 0:
                journal.sync()
        written = _written() - before
        journal.close()
    return written / STEADY_ROWS


def _written() -> int:
    """Return the bytes that this process has written so far."""
    return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])


def figures(times: list[float]) -> list[float]:
    """Return mean, median and 99th percentile."""
    return [sum(times) / len(times), percentile(times, 50), percentile(times, 99)]


if __name__ == "__main__":
    main()

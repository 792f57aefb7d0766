"""What FLUSH_INTERVAL trades: rows of a block, bytes of a row, and the time from frame to row.

A collector takes frames at the market's own rate for a while, with each setting in turn.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.feeds import file_bytes
from bench.latency import timed_collector
from bench.tables import percentile, print_table
from tests.stack import open_stack

INTERVALS = (0, 0.25, 1, 5)  # seconds
SECONDS = 40


def main() -> None:
    """Measure and print the table."""
    table = []
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        for interval in INTERVALS:
            stack.setup("--reset", "--yes")
            exchange = stack.exchange()
            with timed_collector(stack, FLUSH_INTERVAL=interval) as took:
                time.sleep(SECONDS)
            exchange.process.stop()
            query = "SELECT count(), countIf(rowNumberInBlock() = 0) FROM mexc_data.btc"
            rows, blocks = stack.query(query)[0]
            sizes = [file_bytes(stack, file) / rows for file in ("data.bin", "index.mrk")]
            figures = [percentile(took, percent) / 1000 for percent in (50, 99)]
            table.append([interval, rows, rows / blocks, *sizes, *figures])
    header = [
        "FLUSH_INTERVAL, s",
        "rows",
        "rows/block",
        "data.bin, bytes/row",
        "index.mrk",
        "frame to row p50, s",
        "p99",
    ]
    print_table(header, table)


if __name__ == "__main__":
    main()

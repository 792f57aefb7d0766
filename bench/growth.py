"""What a table's size costs: time of an INSERT, server memory, disk, time to read it all.

"Row by row" is one block a row, FLUSH_INTERVAL=1 is taken as 15 rows a block, and a table that is compacted is
shown just before it does so again: COMPACT_BLOCKS one-row blocks on top of big ones. Millions of INSERTs would take
hours; so a few statements make as many blocks as they would have made. These are alike in data.bin. In index.mrk they
take less, so that is reckoned up from what the single INSERTs add to it that are timed; every other one of those goes
into a table that is empty otherwise, for comparison. In memory, too, they take less: some 280 bytes a block, where
blocks made by INSERTs of their own were seen to take 430 to 475.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from clickhouse_driver import Client

from bench.feeds import file_bytes, market_frames, resident_mb, rows_of
from bench.tables import percentile, print_table
from config import Settings, load_settings
from pipeline.store.client import connect
from pipeline.store.compact import BLOCK_ROWS, compact
from tests.stack import Stack, open_stack

SIZES = (0, 100_000, 1_000_000, 5_000_000)  # rows
INSERTS = 200
MAX_SECONDS = 600  # that one step of filling may take; beyond that it is left out
_SAMPLE = 20_000  # rows of the market, repeated
_CREATE_SAMPLE = """
    CREATE TABLE mexc_data.sample (n UInt32, ts DateTime64(3), mt Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4), m String)
    ENGINE = MergeTree ORDER BY n SETTINGS index_granularity = 1, index_granularity_bytes = 0,
    min_bytes_for_wide_part = 0, min_rows_for_wide_part = 0
"""
_FILL = """
    INSERT INTO mexc_data.btc SELECT ts, mt, m FROM mexc_data.sample WHERE n < {rows} SETTINGS max_threads = 1,
    max_insert_threads = 1, max_block_size = {block}, preferred_block_size_bytes = 0,
    min_insert_block_size_rows = {block}, min_insert_block_size_bytes = 0
"""


class Form(NamedTuple):
    """A way to keep the rows."""

    name: str
    rows_per_block: int
    is_compacted: bool = False


FORMS = (
    Form("row by row, compacted", 1, is_compacted=True),
    Form("FLUSH_INTERVAL=1", 15),
    Form("row by row, never compacted", 1),
)


def main() -> None:
    """Measure and print the table."""
    rows: list[list[object]] = []
    for form in FORMS:
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            rows += grow(stack, form)
    header = [
        "form",
        "rows",
        "blocks",
        "INSERT p50, ms",
        "of an empty table's",
        "server, MB",
        "disk, MB",
        "GROUP BY mt, s",
    ]
    print_table(header, rows)


def grow(stack: Stack, form: Form) -> list[list[object]]:
    """Return the table's rows on one form."""
    server = stack.clickhouse()
    stack.setup()
    settings = load_settings(stack.env, dotenv=None)
    client = connect(settings, timeout=3600, query_settings={"async_insert": 0})
    client.execute(_CREATE_SAMPLE)
    sample = rows_of(market_frames(_SAMPLE))
    client.execute("INSERT INTO mexc_data.sample VALUES", [(n, *row[:3]) for n, row in enumerate(sample)])
    table: list[list[object]] = []
    rows = blocks = 0
    seconds_per_row = 0.0
    for size in SIZES:
        if seconds_per_row * (size - rows) > MAX_SECONDS:
            table.append([form.name, size, f"left out: {seconds_per_row * (size - rows):.0f} s to fill", *[""] * 5])
            continue
        print(f"{form.name}: filling up to {size:,} rows", file=sys.stderr)
        begin = time.monotonic()
        if form.is_compacted:
            blocks = _fill_compacted(client, settings, rows, size)
        else:
            blocks += _fill(client, size - rows, form.rows_per_block)
        if size > rows:
            seconds_per_row = (time.monotonic() - begin) / (size - rows)
        rows = size
        memory = resident_mb(server)
        index_before = file_bytes(stack, "index.mrk")
        took, took_empty = _time_inserts(client)
        index_of_a_block = (file_bytes(stack, "index.mrk") - index_before) / INSERTS
        rows += INSERTS
        blocks += INSERTS
        disk = file_bytes(stack, "data.bin") + blocks * index_of_a_block
        begin = time.monotonic()
        client.execute("SELECT mt, count() FROM mexc_data.btc GROUP BY mt")
        scan = time.monotonic() - begin
        table.append([form.name, size, blocks - INSERTS, took, took / took_empty, memory, disk / 1e6, scan])
    client.disconnect()
    return table


def _fill(client: Client, rows: int, rows_per_block: int) -> int:
    """Add `rows` to the table btc; return how many blocks that made."""
    blocks = 0
    while rows > 0:
        some = min(rows, _SAMPLE)
        client.execute(_FILL.format(rows=some, block=rows_per_block))
        blocks += -(-some // rows_per_block)
        rows -= some
    return blocks


def _fill_compacted(client: Client, settings: Settings, rows: int, size: int) -> int:
    """Fill the table btc up from `rows` to `size` as a compacting collector would; return its number of blocks."""
    small = min(size - rows, settings.compact_blocks)
    _fill(client, size - rows - small, BLOCK_ROWS)
    for _ in compact(settings, "btc"):
        pass
    return -(-(size - small) // BLOCK_ROWS) + _fill(client, small, 1)


def _time_inserts(client: Client) -> tuple[float, float]:
    """Return the median milliseconds of a single-row INSERT into the table btc, and into one that is almost empty."""
    took: dict[str, list[float]] = {"btc": [], "eth": []}
    for n in range(INSERTS):
        for name, times in took.items():
            begin = time.perf_counter()
            client.execute(
                f"INSERT INTO mexc_data.{name} (ts, mt, m) VALUES", [(1_790_000_000_000 + n, "d", "84000.1|3|2")]
            )
            times.append((time.perf_counter() - begin) * 1000)
    return percentile(took["btc"], 50), percentile(took["eth"], 50)


if __name__ == "__main__":
    main()

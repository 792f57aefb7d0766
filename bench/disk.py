"""Disk that a million of the market's rows take, in each form that they could be kept in.

One and 15 rows a block are measured with real INSERTs of fewer rows, since each takes a while; the rest with all.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pyarrow
from pyarrow import parquet

from bench.feeds import file_bytes, market_frames, rows_of
from bench.tables import print_table
from config import load_settings
from pipeline.messages import Row
from pipeline.store.client import connect
from pipeline.store.compact import compact
from tests.stack import Stack, open_stack

ROWS = 200_000
FEW_ROWS = 6_000
_AT_ONCE = 10_000  # rows of an INSERT where it does not matter
_CREATE_MERGETREE = """
    CREATE TABLE mexc_data.merged (ts DateTime64(3), mt Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4), m String)
    ENGINE = MergeTree ORDER BY ts
"""


def main() -> None:
    """Measure and print the table."""
    frames = market_frames(ROWS)
    rows = rows_of(frames)
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        sizes = {
            "StripeLog, one row a block": striped(stack, rows[:FEW_ROWS], 1),
            "StripeLog, 15 rows a block": striped(stack, rows[:FEW_ROWS], 15),
            "StripeLog, compacted": compacted(stack, rows),
            "MergeTree, default codecs": merged(stack, rows),
            "Parquet, zstd": as_parquet(stack.directory / "rows.parquet", rows),
        }
    text = "\n".join(frames).encode()
    sizes["the frames as they came"] = len(text) / ROWS
    sizes["the frames, gzip -6"] = len(gzip.compress(text, 6)) / ROWS
    row_by_row = sizes["StripeLog, one row a block"]
    table = [[form, size, size / row_by_row] for form, size in sizes.items()]
    print_table(["form", "MB per million rows", "of row by row"], table)


def striped(stack: Stack, rows: list[Row], rows_per_block: int) -> float:
    """Return the bytes of a row in blocks of that many."""
    stack.setup("--reset", "--yes")
    insert(stack, "btc", rows, rows_per_block)
    return (file_bytes(stack, "data.bin") + file_bytes(stack, "index.mrk")) / len(rows)


def compacted(stack: Stack, rows: list[Row]) -> float:
    """Return the bytes of a row after a compaction."""
    striped(stack, rows, _AT_ONCE)
    for _ in compact(load_settings(stack.env, dotenv=None), "btc"):
        pass
    return (file_bytes(stack, "data.bin") + file_bytes(stack, "index.mrk")) / len(rows)


def merged(stack: Stack, rows: list[Row]) -> float:
    """Return the bytes of a row in ClickHouse's usual engine, merged into one part."""
    stack.query(_CREATE_MERGETREE)
    insert(stack, "merged", rows, _AT_ONCE)
    stack.query("OPTIMIZE TABLE mexc_data.merged FINAL")
    size: int = stack.query("SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'merged'")[0][0]
    return size / len(rows)


def as_parquet(path: Path, rows: list[Row]) -> float:
    """Return the bytes of a row in a Parquet file."""
    times, types, texts, _ = zip(*rows, strict=True)
    columns = {"ts": pyarrow.array(times, pyarrow.timestamp("ms", "UTC")), "mt": types, "m": texts}
    parquet.write_table(pyarrow.table(columns), path, compression="zstd")
    return path.stat().st_size / len(rows)


def insert(stack: Stack, table: str, rows: list[Row], at_once: int) -> None:
    """Store the rows in the table, so many with each INSERT."""
    client = connect(load_settings(stack.env, dotenv=None), query_settings={"async_insert": 0})
    for start in range(0, len(rows), at_once):
        some = [row[:3] for row in rows[start : start + at_once]]
        client.execute(f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", some)
    client.disconnect()


if __name__ == "__main__":
    main()

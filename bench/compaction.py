"""What compaction takes and gives, as the history behind it grows.

    python3 -m bench.compaction [ROWS ...]

Each line is a table of that many rows. "at once" has all of them in blocks of one row, as a collector that was never
compacted; "again" has them in big blocks already, and one-row blocks only for the rows since the last time. "s" is by
the clock, "CPU s" what the server worked, and "peak MB" the most memory that it took meanwhile, above what it had.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median

from clickhouse_driver import Client

from bench.feeds import market_frames, rows_of
from bench.tables import print_table
from config import Settings, load_settings
from pipeline.store.client import connect
from pipeline.store.compact import BLOCK_ROWS, compact
from tests.stack import Process, Stack, open_stack

SINCE = Settings.compact_blocks  # one-row blocks since the last time
AT_ONCE = (50_000, 200_000, 1_000_000)
AGAIN = (200_000, 1_000_000, 5_000_000)
INSERTS = 50

ONE_ROW_BLOCKS = (
    "max_block_size = 1, preferred_block_size_bytes = 0, min_insert_block_size_rows = 1,"
    " min_insert_block_size_bytes = 1, max_threads = 1, max_insert_threads = 1"
)
BIG_BLOCKS = f"min_insert_block_size_rows = {BLOCK_ROWS}, min_insert_block_size_bytes = 0, max_threads = 1"


def main(at_once: Sequence[int] = AT_ONCE, again: Sequence[int] = AGAIN) -> None:
    """Measure and print the table."""
    table = []
    for kind, sizes in (("at once", at_once), ("again", again)):
        for rows in sizes:
            with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
                table.append([f"{rows:,}", kind, *measure(stack, rows, SINCE if kind == "again" else rows)])
    header = ["rows", "compacted", "blocks before", "after", "MB before", "after", "s", "CPU s", "peak MB"]
    header += ["server MB before", "after", "INSERT ms before", "after"]
    print_table(header, table)


def measure(stack: Stack, rows: int, one_row_blocks: int) -> list[object]:
    """Return the figures for a table of `rows` rows, the last `one_row_blocks` of them in blocks of one row."""
    server = stack.clickhouse()
    stack.setup()
    settings = load_settings(stack.env, dotenv=None)
    client = connect(settings, timeout=3600)
    client.execute("CREATE TABLE mexc_data.sample AS mexc_data.btc ENGINE = MergeTree ORDER BY tuple()")
    client.execute("INSERT INTO mexc_data.sample VALUES", sample())
    fill(client, rows - one_row_blocks, BIG_BLOCKS)
    fill(client, one_row_blocks, ONE_ROW_BLOCKS)
    client.execute("DROP TABLE mexc_data.sample SYNC")
    blocks, size, insert = count_blocks(client), megabytes(client), insert_ms(client)
    memory = settled_mb(server)
    started, worked = time.monotonic(), cpu_seconds(server)
    with peak_mb(server) as peak:
        for _ in compact(settings, "btc"):
            pass
    took, worked = time.monotonic() - started, cpu_seconds(server) - worked
    memory_after = settled_mb(server)
    assert stack.count() == rows + INSERTS
    sizes = [size, megabytes(client)]
    figures = [f"{blocks:,}", count_blocks(client), *sizes, took, worked, peak[0] - memory]
    return [*figures, memory, memory_after, insert, insert_ms(client)]


@cache
def sample() -> list[tuple[int, str, str]]:
    """Return the market's rows; a table repeats them."""
    return [(row.ts_ms, row.mt, row.m) for row in rows_of(market_frames(BLOCK_ROWS))][:BLOCK_ROWS]


def fill(client: Client, rows: int, settings: str) -> None:
    """Add rows to the table btc, in order."""
    while rows > 0:
        part = min(rows, BLOCK_ROWS)
        client.execute(f"INSERT INTO mexc_data.btc SELECT * FROM mexc_data.sample LIMIT {part} SETTINGS {settings}")
        rows -= part


def count_blocks(client: Client) -> int:
    """Return the number of blocks of the table btc."""
    query = "SELECT countIf(rowNumberInBlock() = 0) FROM mexc_data.btc SETTINGS max_threads = 1"
    blocks: int = client.execute(query)[0][0]
    return blocks


def megabytes(client: Client) -> float:
    """Return the size of the table btc, data.bin and index.mrk."""
    query = "SELECT total_bytes FROM system.tables WHERE database = 'mexc_data' AND name = 'btc'"
    return float(client.execute(query)[0][0]) / 1e6


def insert_ms(client: Client) -> float:
    """Return the median time of INSERTs of one row."""
    took = []
    for row in sample()[:INSERTS]:
        started = time.perf_counter()
        client.execute("INSERT INTO mexc_data.btc VALUES", [row])
        took.append(time.perf_counter() - started)
    return median(took) * 1000


def settled_mb(server: Process) -> float:
    """Return the server's memory once it has given back what it needs no more."""
    before = float("inf")
    for _ in range(20):
        now = memory_mb(server, "VmRSS")
        if before - now < 1:
            return now
        before = now
        time.sleep(3)
    return before


@contextmanager
def peak_mb(server: Process) -> Iterator[list[float]]:
    """Give a list, which has the most memory that the server took meanwhile when the context ends."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # begin anew
    peak: list[float] = []
    yield peak
    peak.append(memory_mb(server, "VmHWM"))


def cpu_seconds(server: Process) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(server: Process, kind: str) -> float:
    """Return a process's resident memory: VmRSS now, VmHWM the most."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    sizes = tuple(map(int, sys.argv[1:]))
    main(*([sizes, sizes] if sizes else []))

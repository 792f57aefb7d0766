"""An hour, and the newest day, out of a table and out of its history, as both grow; and turning over.

    python3 -m bench.history [--rows 1000000,10000000,40000000]

The rows are made by ClickHouse, 15 a second, a tenth of them books of twenty levels, in blocks as a compaction leaves
them; `ch_setup.py --history` copies them, and the table is turned over with 5,000 one-row blocks more.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_driver import Client

from bench.feeds import START_MS, resident_mb
from bench.tables import print_table
from config import load_settings
from pipeline.store.client import connect
from pipeline.store.copying import copy
from pipeline.store.history import Beginning, record
from pipeline.store.turnover import turn_over
from tests.stack import Stack, open_stack

SIZES = (200_000, 1_000_000)  # rows; see --rows
SINGLE = 5_000  # rows, each an INSERT of its own
_STEP = 66  # milliseconds from row to row
_REPEATED = 5
_MAKE = f"""
INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli(toInt64({START_MS} + number * {_STEP})),
    multiIf(number % 10 = 0, 'dp', number % 33 = 0, 't', 'd'),
    multiIf(number % 10 = 0, concat(book, '|', book),
        number % 33 = 0, concat(price, '|', price, '||546882118|0.00007200'),
        concat(price, '|', toString(rand(1) % 900), '|', toString(1 + number % 2)))
FROM (SELECT number, toString(84000 + (rand(2) % 1000) / 10) AS price,
    arrayStringConcat(
        arrayMap(i -> concat('[', toString(84000 - i), ',', toString(rand(i) % 90000), ']'), range(20)), ',') AS book
    FROM numbers({{rows}})) SETTINGS max_threads = 1, max_block_size = 65536, min_insert_block_size_rows = 65536
"""


def main(sizes: tuple[int, ...] = SIZES) -> None:
    """Measure and print the table."""
    lines = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            stack.env |= {"HISTORY": "1", "COMPACT_BLOCKS": "1000000"}
            lines.append([f"{rows:,}", *measure(stack, rows)])
    print_table(
        [
            "rows",
            "copied, s",
            "an hour, StripeLog, ms",
            "history, ms",
            "newest day exported, s",
            "MB per million, StripeLog",
            "history",
            "server, MB more",
            "turned over, s",
            "away, ms",
        ],
        lines,
    )


def measure(stack: Stack, rows: int) -> list[object]:
    """Return the figures for a table of so many rows."""
    server = stack.clickhouse()
    stack.setup()
    settings = load_settings(stack.env, dotenv=None)
    client = connect(settings, timeout=3600)
    at_start = resident_mb(server)
    client.execute(_MAKE.format(rows=rows))
    ((token,),) = client.execute("SELECT comment FROM system.tables WHERE name = 'btc'")
    record(client, "mexc_data", "btc", token, Beginning(0, rows, 10**15, 10**15 + rows + 1))
    begin = time.monotonic()
    list(copy(settings, "btc"))
    copied = time.monotonic() - begin
    hours = [_an_hour(client, table, rows) for table in ("btc", "btc_history")]
    newest = datetime.fromtimestamp((START_MS + rows * _STEP) / 1000, UTC)
    begin = time.monotonic()
    day = f"{newest:%Y-%m-%d}"
    export = stack.run("export.py", "btc", "--type", "deals", "--from", day, "--out", stack.directory / "out")
    assert export.wait() == 0, export.output
    exported = time.monotonic() - begin
    query = "SELECT total_bytes / total_rows FROM system.tables WHERE name IN ('btc', 'btc_history') ORDER BY name"
    sizes = [size for (size,) in client.execute(query)]
    more = resident_mb(server) - at_start
    for _ in range(SINGLE):
        client.execute("INSERT INTO mexc_data.btc SELECT now64(3), 'd', '84000|1|1' SETTINGS async_insert = 0")
    client.execute(
        "INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) SELECT"
        f" {10**15 + rows + 1} + rowNumberInAllBlocks(), ts, ts, ts, mt, 0, m FROM (SELECT * FROM mexc_data.btc"
        f" LIMIT {SINGLE} OFFSET {rows}) SETTINGS max_threads = 1"
    )
    begin = time.monotonic()
    *_, last = turn_over(settings, "btc")
    away = re.search(r"away for (\d+) ms", last.text)
    assert away is not None, last.text
    return [copied, *hours, exported, *sizes, more, time.monotonic() - begin, int(away[1])]


def _an_hour(client: Client, table: str, rows: int) -> float:
    """Return the milliseconds that reading the deals of an hour in the middle takes at best."""
    start = START_MS + rows * _STEP // 2
    query = (
        f"SELECT count(), sum(length(m)) FROM mexc_data.{table} WHERE mt = 'd'"
        f" AND ts >= fromUnixTimestamp64Milli(toInt64({start}))"
        f" AND ts < fromUnixTimestamp64Milli(toInt64({start + 3_600_000}))"
    )
    times = []
    for _ in range(_REPEATED):
        begin = time.monotonic()
        client.execute(query)
        times.append(time.monotonic() - begin)
    return 1000 * min(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python3 -m bench.history", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(map(str, SIZES)), help="sizes to measure (default: %(default)s)")
    main(tuple(int(size) for size in parser.parse_args().rows.split(",")))

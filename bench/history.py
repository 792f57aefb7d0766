"""What an archive costs to read and to keep in shape as it grows, without a history and with one.

    python3 -m bench.history [--rows 1000000,10000000,40000000]

The rows are made by ClickHouse, 15 a second, a tenth of them books of twenty levels, in blocks as a compaction leaves
them; `ch_setup.py --history` copies them. "An hour" are the deals of one in the middle: by a SELECT that counts them,
the best of five, and by `load`. Then the table is compacted; 50,000 rows more come, each a block of its own, and it is
turned over, which compares all of it with the history. "away" is for how long it could not be read. Once more with as
many, which the history has, while others write to the table as fast as the market: as where a service does it.

The second table is a collector at 50 frames a second, with and without history in turn: from a frame's `ts` to its row
acknowledged and readable.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from bench.compaction import settled_mb
from bench.feeds import START_MS
from bench.latency import timed_tables
from bench.tables import percentile, print_table
from config import Settings, load_settings
from pipeline.store.client import connect, is_missing_table
from pipeline.store.compact import Progress, compact
from pipeline.store.copying import copy
from pipeline.store.history import Beginning, record
from pipeline.store.schema import comment_of, parse_comment
from pipeline.store.turnover import turn_over
from tests.stack import Stack, open_stack

SIZES = (200_000, 1_000_000)  # rows; see --rows
SINGLE = 50_000  # rows, each a block of its own; COMPACT_BLOCKS
RATE, SECONDS, TURNS = 50, 30, 3  # frames a second, for so long, with and without history so often
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
_LOAD = """
import sys, time
from pipeline.read import load
begin = time.perf_counter()
assert load("btc", "deals", *sys.argv[1:]).num_rows > 10_000
print(time.perf_counter() - begin)
"""


def main(sizes: tuple[int, ...] = SIZES) -> None:
    """Measure and print the tables."""
    lines = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            stack.env |= {"HISTORY": "1", "COMPACT_BLOCKS": "1000000"}
            lines.append([f"{rows:,}", *measure(stack, rows)])
    print_table(
        [
            "rows",
            "an hour, StripeLog, ms",
            "history",
            "`load` of it, StripeLog, s",
            "history",
            "newest day exported, StripeLog, s",
            "history",
            "compacted, away, s",
            "turned over, s",
            "away, ms",
            "others writing",
            "copied, s",
            "MB per million, StripeLog",
            "history",
            "server, MB more",
        ],
        lines,
    )
    print()
    print_table(["", "rows", "p50, ms", "p99, ms", "in the history, at most, s"], ways())


def measure(stack: Stack, rows: int) -> list[object]:
    """Return the figures for a table of so many rows."""
    server = stack.clickhouse()
    stack.setup()
    settings = load_settings(stack.env, dotenv=None)
    client = connect(settings, timeout=3600)
    at_start = settled_mb(server)
    client.execute(_MAKE.format(rows=rows))
    ((token,),) = client.execute("SELECT comment FROM system.tables WHERE name = 'btc'")
    record(client, "mexc_data", "btc", token, Beginning(0, rows, 10**15, 10**15 + rows + 1))
    copied, _ = _last(copy(settings, "btc"))
    hours = [_an_hour(client, table, rows) for table in ("btc", "btc_history")]
    read = [[_load(stack, rows, history), _export(stack, rows, history)] for history in (0, 1)]
    query = "SELECT total_bytes / total_rows FROM system.tables WHERE name IN ('btc', 'btc_history') ORDER BY name"
    sizes = [size for (size,) in client.execute(query)]
    compacted, _ = _last(compact(settings, "btc"))
    turned, away = _turned_over(client, settings)
    with _writing(settings):
        _, away_meanwhile = _turned_over(client, settings)
    columns = [each for pair in zip(*read, strict=True) for each in pair]
    return [*hours, *columns, compacted, turned, away, away_meanwhile, copied, *sizes, settled_mb(server) - at_start]


def ways() -> list[list[object]]:
    """Return the lines of the second table."""
    live: defaultdict[str, list[float]] = defaultdict(list)
    kept: list[float] = []
    for history in ("0", "1") * TURNS:
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            stack.env["HISTORY"] = history
            stack.clickhouse()
            stack.setup()
            stack.exchange("--rate", RATE)
            with timed_tables(stack) as tables:
                time.sleep(SECONDS)
            live[history] += tables["mexc_data.btc"][RATE:]  # without the first second
            kept += tables["mexc_data.btc_history"]
    figures = {history: [len(took), percentile(took, 50), percentile(took, 99)] for history, took in live.items()}
    ratios = [having / without for without, having in zip(figures["0"], figures["1"], strict=True)]
    return [
        ["without history", *figures["0"], ""],
        ["with history", *figures["1"], max(kept) / 1000],
        ["times", "", *ratios[1:], ""],
    ]


def _turned_over(client: Client, settings: Settings) -> tuple[float, int]:
    """Add SINGLE rows and turn the table over; return the seconds that takes, and the milliseconds without a table."""
    ((known, newest),) = client.execute("SELECT count(), max(n) FROM mexc_data.btc_history")
    _, before = parse_comment(comment_of(client, "mexc_data", "btc"))
    client.execute(
        f"INSERT INTO mexc_data.btc SELECT now64(3), 'd', '84000|1|1' FROM numbers({SINGLE}) SETTINGS max_threads = 1,"
        " max_block_size = 1, min_insert_block_size_rows = 1, min_insert_block_size_bytes = 0"
    )
    client.execute(
        f"INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) SELECT"
        f" {newest + 1} + rowNumberInAllBlocks(), ts, ts, ts, mt, 0, m FROM (SELECT * FROM mexc_data.btc"
        f" LIMIT {2 * SINGLE} OFFSET {known - before}) SETTINGS max_threads = 1"
    )
    seconds, said = _last(turn_over(settings, "btc"))
    away = re.search(r"away for (\d+) ms", said)
    assert away is not None, said
    return seconds, int(away[1])


@contextmanager
def _writing(settings: Settings) -> Iterator[None]:
    """Write a row each `_STEP` milliseconds, as long as there is a table to write to."""
    done = threading.Event()

    def write() -> None:
        with connect(settings) as client:
            while not done.wait(_STEP / 1000):
                try:
                    client.execute("INSERT INTO mexc_data.btc SELECT now64(3), 'd', '84000|1|1'")
                except ServerException as error:
                    if not is_missing_table(error):
                        raise

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            yield
        finally:
            done.set()
        writing.result()


def _last(steps: Iterable[Progress]) -> tuple[float, str]:
    """Return how many seconds all steps take, and what the last one says."""
    begin = time.monotonic()
    *_, last = steps
    return time.monotonic() - begin, last.text


def _load(stack: Stack, rows: int, history: int) -> float:
    """Return the seconds that `load` of the hour takes."""
    begin = (START_MS + rows * _STEP // 2) / 1000
    times = [datetime.fromtimestamp(each, UTC).isoformat() for each in (begin, begin + 3600)]
    process = stack.run("-c", _LOAD, *times, HISTORY=history)
    assert process.wait() == 0, process.output
    return float(process.lines[-1])


def _export(stack: Stack, rows: int, history: int) -> float:
    """Return the seconds that the export of the newest day takes."""
    begin = time.monotonic()
    day = f"{datetime.fromtimestamp((START_MS + rows * _STEP) / 1000, UTC):%Y-%m-%d}"
    out = stack.directory / f"out-{history}"
    export = stack.run("export.py", "btc", "--type", "deals", "--from", day, "--out", out, HISTORY=history)
    assert export.wait() == 0, export.output
    return time.monotonic() - begin


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

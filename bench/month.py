"""The market for long, as fast as it goes, into a fresh local stack with the default settings: does it all stay flat?

    python3 -m bench.month [--minutes N] [--compact-blocks N]

All three collectors take frames from the simulated exchange as fast as they read them, compacting their tables by
themselves. Each line of the table is a moment: how many days of the market have passed by then (at the rates of the
simulated market, as many rows as it has in a day), and what the server and the collectors hold. Then each row of each
table is compared with what was sent, in order, and a single-row INSERT into each of the grown tables with one into a
table that is empty, by turns. Exit code 1 if a row is missing, doubled or out of order.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from bench.feeds import START_MS, resident_mb
from bench.tables import percentile, print_table
from config import ALL_CONFIGS, Settings, load_settings
from local.market import frames
from pipeline.messages import parse_frame
from pipeline.store.client import connect, is_missing_table
from pipeline.store.storage import Storage, survey
from tests.stack import Exchange, Stack, StoredRow, eventually, open_stack

LINES = 12  # of the table
INSERTS = 200
DAY = 86_400.0  # seconds
_RATE_OVER = 3600.0  # seconds of the market, over which its rate is counted
NAMES = {config["symbol"]: config["table_name"] for config in ALL_CONFIGS}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.month", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="to feed it for (default: %(default)s)")
    parser.add_argument("--compact-blocks", type=int, default=Settings.compact_blocks, help="default: %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="month-") as directory, open_stack(Path(directory)) as stack:
        stack.env["COMPACT_BLOCKS"] = str(arguments.compact_blocks)
        return month(stack, arguments.minutes * 60)


def month(stack: Stack, seconds: float) -> int:
    """Do it, and print the tables; return the exit code."""
    server = stack.clickhouse()
    stack.setup()
    exchange = stack.exchange("--rate", 0)
    begin = time.monotonic()
    collectors = [stack.collector(name, STATS_INTERVAL=3600) for name in NAMES.values()]
    a_day = sum(rows_a_day(symbol) for symbol in NAMES)
    client = connect(load_settings(stack.env, dotenv=None), timeout=600)
    lines: list[list[object]] = []
    for line in range(LINES + 1):
        time.sleep(max(0.0, begin + seconds * line / LINES - time.monotonic()))
        minutes = (time.monotonic() - begin) / 60
        sent = sum(exchange.get("/status")["sent"].values())
        waiting = sum(json.loads(path.read_text())["waiting"] for path in stack.directory.glob("journal/*.status.json"))
        storage = between_compactions(client)
        disk = sum((table.data_bin or 0) + (table.index_mrk or 0) for table in storage.tables) / 1e6
        blocks = sum(table.blocks for table in storage.tables)
        memory = [resident_mb(server), max(map(resident_mb, collectors))]
        lines.append([f"{minutes:.1f}", f"{sent / a_day:.2f}", f"{sent:,}", waiting, f"{blocks:,}", disk, *memory])
        print(*lines[-1], file=sys.stderr)
    exchange.fault("stall")
    sent_rows = exchange.get("/status")["sent"]
    eventually(lambda: all_stored(client, sent_rows), "all rows", timeout=600)
    assert [collector.stop() for collector in collectors] == [0, 0, 0]
    header = ["minutes", "days of the market", "frames sent", "rows waiting", "blocks", "disk, MB", "server, MB"]
    print_table([*header, "a collector, most MB"], lines)
    compactions = {
        name: sum(said.startswith(f"Compacted mexc_data.{name}:") for said in collector.lines)
        for name, collector in zip(NAMES.values(), collectors, strict=True)
    }
    wrong = compare(stack, exchange)
    print(f"\n{sum(sent_rows.values()):,} frames: {wrong} rows missing, doubled or out of order.")
    print(f"Compactions: {compactions}. An INSERT takes now, the collectors being stopped:\n")
    print_table(["table", "rows", "INSERT p50, ms", "of an empty table's"], time_inserts(stack))
    return 1 if wrong else 0


def all_stored(client: Client, sent_rows: dict[str, int]) -> bool:
    """Whether the tables hold as many rows as frames were sent, by symbol."""
    return {table.name: table.records for table in between_compactions(client).tables} == {
        NAMES[symbol]: rows for symbol, rows in sent_rows.items()
    }


def between_compactions(client: Client) -> Storage:
    """Return what the tables hold, at a moment at which none of them is being compacted."""
    while True:
        try:
            storage = survey(client, Settings.clickhouse_database, ALL_CONFIGS)
        except ServerException as error:
            if not is_missing_table(error):
                raise
        else:
            if all(table.exists for table in storage.tables):
                return storage
        time.sleep(0.2)


def rows_a_day(symbol: str) -> float:
    """Return how many frames the simulated market of `symbol` pushes in a day."""
    count, now = 0, 0.0
    for delay, _ in frames(symbol, 0, START_MS):
        count, now = count + 1, now + delay
        if now > _RATE_OVER:
            break
    return count * DAY / now


def time_inserts(stack: Stack) -> list[list[object]]:
    """Return the table of what a single-row INSERT takes, after all rows were compared."""
    client = connect(load_settings(stack.env, dotenv=None), query_settings={"async_insert": 0})
    client.execute("CREATE TABLE mexc_data.empty AS mexc_data.btc")
    lines: list[list[object]] = []
    for name in NAMES.values():
        rows = stack.count(name)
        took: dict[str, list[float]] = {name: [], "empty": []}
        for n in range(INSERTS):
            for table, times in took.items():
                begin = time.perf_counter()
                client.execute(
                    f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", [(START_MS + n, "d", "84000.1|3|2")]
                )
                times.append((time.perf_counter() - begin) * 1000)
        grown, empty = (percentile(times, 50) for times in took.values())
        lines.append([name, f"{rows:,}", grown, grown / empty])
        client.execute("TRUNCATE TABLE mexc_data.empty")
    return lines


def compare(stack: Stack, exchange: Exchange) -> int:
    """Return how many rows of the tables are not those that the exchange sent, in its order."""
    stored = {symbol: stored_rows(stack, name) for symbol, name in NAMES.items()}
    wrong = 0
    with exchange.log.open() as log:
        for line in log:
            entry = json.loads(line)
            if entry["conn"]:
                for row in parse_frame(entry["frame"], entry["symbol"], 0).rows:
                    wrong += next(stored[entry["symbol"]], None) != row[:3]
    return wrong + sum(1 for rows in stored.values() for _ in rows)


def stored_rows(stack: Stack, name: str) -> Iterator[StoredRow]:
    """Yield a table's rows, in order."""
    rows = f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.{name} SETTINGS max_threads = 1"
    found: Iterator[StoredRow] = connect(load_settings(stack.env, dotenv=None), timeout=600).execute_iter(rows)
    return found


if __name__ == "__main__":
    sys.exit(main())

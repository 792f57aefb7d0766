"""From a frame's time stamp to its row acknowledged and readable, against a bare single-row INSERT.

A real collector process takes frames from the simulated exchange, whose `ts` is the millisecond in which a frame is
sent, and notes the time at which ClickHouse has acknowledged each row. Before each rate, rows are sent one by one with
nothing but clickhouse-driver: at that rate ("bare"), and without a rest ("in a loop"), when server and processor do not
have to wake up for each.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.tables import percentile, print_table
from config import load_settings
from pipeline.store.client import connect
from tests.stack import Stack, open_stack

RATES = (15, 50, 500)  # frames/s
SECONDS = 40
BARE_SECONDS = 10

_TIMED_COLLECTOR = """
import sys, time
from config import BTC_CONFIG
from pipeline.collect import collector, table
append_pending = table.Table.append_pending
notes = open(sys.argv[1], "w")
def timed(self):
    rows = append_pending(self)
    now = time.time_ns() / 1e6
    times = (row[0] if len(row) == 3 else row[1] for row in rows)  # a history's have their seq first
    notes.writelines(f"{self._target.name} {now - ts:.3f}\\n" for ts in times)
    return rows
table.Table.append_pending = timed
code = collector.collect(BTC_CONFIG)
notes.close()
sys.exit(code)
"""


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        rows = []
        for rate in RATES:
            loop, bare = bare_inserts(stack, rate, pause=0), bare_inserts(stack, rate, pause=1 / rate)
            frames = frame_to_row(stack, rate)
            median = percentile(bare, 50)
            figures = [percentile(frames, percent) for percent in (50, 99, 99.9)]
            medians = [percentile(loop, 50), median]
            rows.append([rate, len(frames), *medians, percentile(bare, 99), *figures, figures[1] / median])
    header = [
        "frames/s",
        "rows",
        "in a loop p50, ms",
        "bare p50, ms",
        "bare p99",
        "row p50, ms",
        "row p99",
        "row p99.9",
        "row p99 / bare p50",
    ]
    print_table(header, rows)


def bare_inserts(stack: Stack, rate: int, pause: float) -> list[float]:
    """Return the milliseconds that each of some single-row INSERTs takes, into an empty table, `pause` s apart."""
    stack.setup("--reset", "--yes")
    client = connect(load_settings(stack.env, dotenv=None), query_settings={"async_insert": 0})
    took = []
    for n in range(BARE_SECONDS * rate):
        time.sleep(pause)
        begin = time.perf_counter()
        client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [(1_788_335_242_156 + n, "d", "77525.9|3|2")])
        took.append((time.perf_counter() - begin) * 1000)
    client.disconnect()
    return took


def frame_to_row(stack: Stack, rate: int) -> list[float]:
    """Return the milliseconds from frame to row, of each row of a run."""
    stack.setup("--reset", "--yes")
    exchange = stack.exchange("--rate", rate)
    with timed_collector(stack) as took:
        time.sleep(SECONDS)  # nothing else is asked of ClickHouse meanwhile
    exchange.process.stop()
    return took[rate:]  # without the first second


@contextmanager
def timed_collector(stack: Stack, **env: Any) -> Iterator[list[float]]:
    """Run a collector; the list has, afterwards, the milliseconds that each row took from frame to acknowledged."""
    with timed_tables(stack, **env) as tables:
        took: list[float] = []
        yield took
    took.extend(tables["mexc_data.btc"])


@contextmanager
def timed_tables(stack: Stack, **env: Any) -> Iterator[defaultdict[str, list[float]]]:
    """Run a collector; the lists have, by table, what that of `timed_collector` has."""
    tables: defaultdict[str, list[float]] = defaultdict(list)
    notes = stack.directory / f"notes-{len(stack.processes)}"
    collector = stack.start("-c", _TIMED_COLLECTOR, notes, STATS_INTERVAL=3600, **env)
    yield tables
    assert collector.stop() == 0, collector.output
    for line in notes.read_text().splitlines():
        name, took = line.split()
        tables[name].append(float(took))


if __name__ == "__main__":
    main()

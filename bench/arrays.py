"""hftbacktest's event array: straight from ClickHouse, and by way of Tardis' files and its own converter.

Both read the same rows of ClickHouse. The converter runs in venv-tools/ (make venv-tools/done), twice in one process,
of which the second is measured: the first one compiles.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from bench.disk import insert
from bench.feeds import market_frames, rows_of
from bench.tables import print_table
from config import PROJECT, load_settings
from pipeline.messages import DEAL, DEPTH
from pipeline.read import decode
from pipeline.read.hft import events
from pipeline.store.client import connect
from tests.stack import open_stack

ROWS = 200_000
T = TypeVar("T")
_CONVERT = """
import sys, time
from hftbacktest.data.utils import tardis
for _ in range(2):
    begin = time.perf_counter()
    tardis.convert(sys.argv[1:], buffer_size=20_000_000)
print(time.perf_counter() - begin)
"""


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        stack.setup()
        insert(stack, "btc", rows_of(market_frames(ROWS)), 10_000)
        with connect(load_settings(stack.env, dotenv=None)) as client:

            def read(mt: str) -> list[decode.Batch]:
                return list(decode.read(client, "mexc_data", "btc", mt))

            reading, batches = timed(lambda: [read(mt) for mt in (DEAL, DEPTH)])
        deals, depth = (pa.concat_tables(batch.table for batch in each) for each in batches)
        making, _ = timed(lambda: events(deals, depth))
        out = stack.directory / "out"
        export = ("export.py", "btc", "--format", "tardis", "--out", out, "--type")
        exporting, _ = timed(lambda: [stack.run(*export, kind) for kind in ("trades", "incremental_book_L2")])
        files = [str(path) for kind in ("trades", "incremental_book_L2") for path in sorted(out.glob(f"*_{kind}_*"))]
        command = [str(PROJECT / "venv-tools/bin/python"), "-c", _CONVERT, *files]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        converting = float(ran.stdout.splitlines()[-1])
    rows: list[tuple[str, float, float]] = [
        ("from decoded rows to the array", making, converting + exporting - reading),
        ("from ClickHouse to the array", reading + making, converting + exporting),
        ("the converter alone", making, converting),
    ]
    print_table(["", "straight, s", "by files, s", "times"], [[*row, row[2] / row[1]] for row in rows])


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return how long it takes, in seconds, and what it returns."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


if __name__ == "__main__":
    main()

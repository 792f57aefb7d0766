"""Processor time of one frame in the collector, by kind, against json.loads of the same frame.

Time of this process's own thread only, so that neither the server's work nor waiting for it counts; the least of some
rounds. "insert" is one row in an INSERT of its own, "insert of 1,000" a row's share where so many go together.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bench.feeds import START_MS, SYMBOL, market_frames
from bench.tables import print_table
from config import load_settings
from pipeline.collect.journal import Journal
from pipeline.messages import parse_frame
from pipeline.store.client import connect
from tests.stack import open_stack

FRAMES = 2_000  # of each kind
INSERTS = 300
ROUNDS = 5


def main() -> None:
    """Measure and print the table."""
    texts = market_frames(30 * FRAMES)
    rows = []
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        stack.clickhouse()
        stack.setup()
        client = connect(load_settings(stack.env, dotenv=None), query_settings={"async_insert": 0})
        client.connection.ping = lambda: True  # as pipeline.collect.table has it

        def insert(batch: Sequence[Any]) -> None:
            client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [row[:3] for row in batch])

        for channel in ("deal", "depth.full", "ticker"):
            frames = [text for text in texts if f'"channel":"push.{channel}"' in text][:FRAMES]
            messages = [parse_frame(frame, SYMBOL, START_MS).rows for frame in frames]
            journal = Journal(stack.directory / f"{channel}.db", 1 << 30)
            loads = microseconds(json.loads, frames)
            parse = microseconds(lambda frame: parse_frame(frame, SYMBOL, START_MS), frames)
            append = microseconds(journal.append, messages)
            alone = microseconds(insert, messages[:INSERTS])
            together = microseconds(insert, [list(chain(*messages[:1_000]))]) / 1_000
            journal.close()
            size = sum(map(len, frames)) / len(frames)
            rows.append([channel, size, loads, parse, append, alone, together, parse / loads, (parse + append) / loads])
    header = ["frame", "bytes", "json.loads, µs", "parse", "journal", "insert", "insert of 1,000"]
    print_table([*header, "parse / json.loads", "parse + journal"], rows)


def microseconds(function: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return the processor time of one call, in µs."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.thread_time()
        for item in items:
            function(item)
        best = min(best, time.thread_time() - begin)
    return best / len(items) * 1e6


if __name__ == "__main__":
    main()

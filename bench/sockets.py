"""Whether symbols had better share a connection: the frames of fifty by one socket, and by one each.

A process reads them and does nothing with them: one thread a socket, as a collector's feed. Both at the same time, from
one simulated exchange. Memory is what the process has for itself, beyond one that has no socket yet.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.connections import processor_seconds
from bench.symbols import megabytes
from bench.tables import print_table
from local.market import CONTRACTS
from tests.stack import open_stack

SYMBOLS = 50
SECONDS = 30

_READER = """
import json, sys, threading, time, websocket
from config import symbol_config
url, sockets, *symbols = sys.argv[1:]
counts = {}
def read(number, mine):
    connection = websocket.create_connection(url, skip_utf8_validation=True, suppress_origin=True)
    for symbol in mine:
        for each in symbol_config(symbol, "x")["subscriptions"]:
            connection.send(json.dumps(each))
    counts[number] = 0
    while True:
        connection.recv()
        counts[number] += 1
for number in range(int(sockets)):
    threading.Thread(target=read, args=(number, symbols[number :: int(sockets)]), daemon=True).start()
while True:
    time.sleep(1)
    print("frames", sum(counts.values()), flush=True)
"""


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
        exchange = stack.exchange()
        symbols = [*CONTRACTS][:SYMBOLS]
        numbers = (0, 1, SYMBOLS)
        readers = [stack.start("-c", _READER, exchange.url, number, *symbols) for number in numbers]
        for reader in readers:
            reader.wait_for("^frames")
        time.sleep(5)
        before = [(processor_seconds(reader), frames(reader.lines)) for reader in readers]
        time.sleep(SECONDS)
        rows = []
        idle = megabytes(readers[0].pid, "Private_Dirty", "Private_Clean")
        for number, reader, (seconds, read) in zip(numbers[1:], readers[1:], before[1:], strict=True):
            took, count = processor_seconds(reader) - seconds, frames(reader.lines) - read
            memory = megabytes(reader.pid, "Private_Dirty", "Private_Clean") - idle
            rows.append([number, count, took, took / count * 1e6, memory, memory / number])
    print_table(["sockets", "frames", "processor time, s", "a frame, µs", "memory, MB", "a socket, MB"], rows)


def frames(lines: list[str]) -> int:
    """Return how many frames a reader has said that it has read."""
    return next(int(line.split()[1]) for line in reversed(lines) if line.startswith("frames "))


if __name__ == "__main__":
    main()

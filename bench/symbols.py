"""Many symbols on one machine: memory and processor time of the collectors, of ClickHouse, and how fresh rows are.

    python3 -m bench.symbols [--seconds N] [SYMBOLS ...]

collect.py collects that many symbols from the simulated exchange, BTC at its own rate and most at a tenth of that.
"private" is what a collector has for itself, on average over all but the first; "first" is that one's, with the parent
and what they share. Cores are processor time by the clock. A row's way is from the frame's `ts` to ClickHouse's
acknowledgement. Lost are frames of the exchange's log that are in no table; every row is compared, and with HISTORY=1
those of the histories as well.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import certifi

from bench.connections import processor_seconds
from bench.tables import percentile, print_table
from config import PROJECT, Settings, all_symbols
from local.market import CONTRACTS
from pipeline.messages import parse_frame
from pipeline.store.history import history_of
from tests.stack import Exchange, Process, Stack, StoredRow, eventually, open_stack

NUMBERS = (3, 10, 50, 150)
SECONDS = 20

# collect.py, whose collectors note how many milliseconds each row took.
_TIMED = """
import os, sys, time
from config import all_symbols, load_settings, choose_symbols
from pipeline.collect import table
from pipeline.collect.fleet import Fleet
append_pending = table.Table.append_pending
directory, *names = sys.argv[1:]
def timed(self):
    rows = append_pending(self)
    now = time.time_ns() / 1e6
    if rows and len(rows[0]) == 3:  # not those of a history
        with open(f"{directory}/{os.getpid()}", "a") as notes:
            notes.writelines(f"{now - ts:.3f}\\n" for ts, _, _ in rows)
    return rows
table.Table.append_pending = timed
settings = load_settings()
sys.exit(Fleet(choose_symbols(names, all_symbols(settings)), settings).run())
"""


def main(numbers: tuple[int, ...] = NUMBERS, seconds: int = SECONDS) -> None:
    """Measure and print the table."""
    rows = []
    for number, history in product(numbers, (0, 1)):
        with tempfile.TemporaryDirectory() as directory, open_stack(Path(directory)) as stack:
            stack.env["HISTORY"] = str(history)
            rows.append([number, history, *measure(stack, [*CONTRACTS][:number], seconds)])
    header = [
        "symbols",
        "HISTORY",
        "rows/s",
        "lost or doubled",
        "private, MB",
        "first, MB",
        "collectors, cores",
        "ClickHouse, cores",
    ]
    print_table([*header, "ClickHouse, MB", "row p50, ms", "row p99, ms"], rows)


def measure(stack: Stack, symbols: list[str], seconds: int) -> list[float]:
    """Return the figures of one line, but the first two."""
    stack.env |= {"SYMBOLS": ",".join(symbols), "STATS_INTERVAL": "3600"}
    server = stack.clickhouse()
    exchange = within_tls(stack)
    stack.setup()
    notes = stack.directory / "notes"
    notes.mkdir()
    fleet = stack.start("-c", _TIMED, notes, *symbols)
    eventually(lambda: sum("Subscribed to: sub.deal" in line for line in fleet.lines) == len(symbols), "all subscribed")
    time.sleep(5)  # what a start takes is not what running takes
    for path in notes.iterdir():
        path.unlink()
    collectors = children(fleet)
    before = sum(map(processor, collectors)), processor_seconds(server)
    begin = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    cores = [(sum(map(processor, collectors)) - before[0]) / took, (processor_seconds(server) - before[1]) / took]
    ways = [float(line) for path in notes.iterdir() for line in path.read_text().splitlines()]
    private = [megabytes(pid, "Private_Dirty", "Private_Clean") for pid in collectors[1:]]  # without the voice
    everything = sum(megabytes(pid, "Pss") for pid in [fleet.pid, *collectors])
    average = sum(private[1:]) / len(private[1:])
    memory = [average, everything - average * len(private[1:])]
    resident = megabytes(server.pid, "Rss")
    exchange.process.stop()  # first: it ends once all that it has sent is read
    assert fleet.stop() == 0, fleet.output
    wrong = differences(stack, exchange)
    figures = [percentile(ways, 50), percentile(ways, 99)]
    return [len(ways) / took, wrong, *memory, *cores, resident, *figures]


def within_tls(stack: Stack) -> Exchange:
    """Start an exchange whom all that is started later trusts, beside those whom this machine trusts: also memory."""
    certificate = PROJECT / "tests/data/self-signed.pem"
    trusted = stack.directory / "trusted.pem"
    trusted.write_text("".join(path.read_text() for path in (Path(certifi.where()), certificate)))
    stack.env["SSL_CERT_FILE"] = str(trusted)
    return stack.exchange("--tls", certificate)


def children(process: Process) -> list[int]:
    """Return the processes that a process has started."""
    return [*map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]


def processor(pid: int) -> float:
    """Return the processor time that a process has had, in seconds."""
    return sum(float(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def megabytes(pid: int, *names: str) -> float:
    """Return the sum of these lines of smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for name in names for kb in re.findall(rf"^{name}: +(\d+) kB$", text, re.MULTILINE)) * 1024 / 1e6


def differences(stack: Stack, exchange: Exchange) -> int:
    """Return how many rows are stored more or less often than they were sent."""
    sent: defaultdict[str, Counter[StoredRow]] = defaultdict(Counter)
    for line in exchange.log.read_text().splitlines():
        entry = json.loads(line)
        if entry["conn"]:
            for row in parse_frame(entry["frame"], entry["symbol"], 0).rows:
                sent[entry["symbol"]][row.ts_ms, row.mt, row.m] += 1
    tables = ["{}", history_of("{}")] if stack.env["HISTORY"] == "1" else ["{}"]
    wrong = 0
    for config, table in product(all_symbols(Settings(symbols=stack.env["SYMBOLS"])), tables):
        stored = Counter(stack.rows(table.format(config["table_name"])))
        wanted = sent[config["symbol"]]
        wrong += ((wanted - stored) + (stored - wanted)).total()
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python3 -m bench.symbols", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, default=NUMBERS, metavar="SYMBOLS")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    arguments = parser.parse_args()
    main(tuple(arguments.numbers), arguments.seconds)

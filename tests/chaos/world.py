"""The processes that chaos befalls: simulated exchange -> collector -> cutting proxy -> ClickHouse.

The journal and ClickHouse's data are on small disks of their own, which can be filled.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clickhouse_driver.errors import ServerException

from pipeline.store.client import is_missing_table
from tests.chaos.audit import SentLog, Verdict, compare, must_have_read
from tests.disks import Disks, small_disks
from tests.proxy import Proxy, open_proxy
from tests.stack import PATIENCE, Exchange, Process, Stack, StoredRow, eventually, open_stack

DISK = "128m"
FLOWING = 20  # rows after a fault that show that all is well again
_EACH_ROW = "SELECT toUnixTimestamp64Milli(ts) AS ts, toString(mt) AS mt, m FROM mexc_data.btc"
_SUSPICIOUS = re.compile(r"Traceback|WARNING: (?!new rows are LOST)|was reset|lost its last|This is a bug")


class World:
    """One collector and what surrounds it; use `open_world`."""

    def __init__(self, stack: Stack, disks: Disks, proxy: Proxy, exchange: Exchange, env: dict[str, Any]) -> None:
        """`env` are the collector's own settings."""
        self.stack, self.disks, self.proxy, self.exchange = stack, disks, proxy, exchange
        self._env = {"CLICKHOUSE_PORT": proxy.port, "PING_INTERVAL": 5, **env}
        self.journal = Path(stack.env["JOURNAL_DIR"])
        self.sent = SentLog(exchange.log, "BTC_USDT")
        self.stored: list[StoredRow] = []
        self.collectors: list[Process] = []
        self._ended = 0
        """The number of the last connection that has ended."""

    def start_clickhouse(self) -> None:
        self.server = self.stack.clickhouse()

    def start_collector(self) -> None:
        self.collector = self.stack.collector(**self._env)
        self.collectors.append(self.collector)
        self._lines_before = 0

    def kill_collector(self) -> None:
        """Kill it at once, and note what it had read until then."""
        _freeze(self.exchange.process)
        _freeze(self.collector)
        unread = _unread_bytes(self.collector.pid, int(self.exchange.http.rpartition(":")[2]))
        self.collector.stop(signal.SIGKILL)
        self.end_connection(unread)
        self.exchange.process.send(signal.SIGCONT)

    def end_connection(self, unread_bytes: int | None = None) -> None:
        """Note that the connection ends now; how much of it will be unread is not known where it is None."""
        self.sent.read()
        self._ended, connection = max(self.sent.connections.items())
        connection.must = 0 if unread_bytes is None else must_have_read(connection.rows, unread_bytes)

    def begin_round(self) -> None:
        """Let `wait_for_line` see only what comes from now on."""
        self._lines_before = len(self.collector.lines)

    def wait_for_line(self, pattern: str) -> None:
        """Wait for a line that the collector has said in this round."""

        def said() -> bool:
            return any(re.search(pattern, line) for line in self.collector.lines[self._lines_before :])

        eventually(said, pattern)

    def settle(self) -> Verdict:
        """Wait until rows flow and all that was sent so far is stored, and return what was found; wrong or not."""
        self.sent.read()
        begun = {number: len(connection.rows) for number, connection in self.sent.connections.items()}

        def flows() -> bool:
            self.sent.read()
            number, connection = max(self.sent.connections.items())
            return number > self._ended and len(connection.rows) >= begun.get(number, 0) + FLOWING

        eventually(flows, "market data after the fault")
        live = self.sent.connections[max(self.sent.connections)]
        live.must = len(live.rows)
        deadline = time.monotonic() + PATIENCE
        while True:
            refused = self.said_to_be_refused()
            verdict = self.look(refused)
            if (verdict.is_right and verdict.refused == refused) or time.monotonic() > deadline:
                return verdict
            time.sleep(0.05)

    def look(self, refused: int = 0) -> Verdict:
        """Compare what is stored now with what was sent."""
        self.stored += self.rows(after=len(self.stored))
        self.sent.read()
        return compare(list(self.sent.connections.values()), self.stored, self.sent.missed, refused)

    def rows(self, after: int = 0) -> list[StoredRow]:
        """Return the table's rows but the first `after`, in order; as one value, since blocks of one row are slow."""
        query = f"SELECT groupArray((ts, mt, m)) FROM ({_EACH_ROW} LIMIT 1000000000 OFFSET {after})"
        found: list[StoredRow] = []

        def read() -> bool:
            try:
                ((rows,),) = self.stack.query(f"{query} SETTINGS max_threads = 1")
            except ServerException as error:
                if is_missing_table(error):
                    return False
                raise
            found.extend(rows)
            return True

        eventually(read, "a table that is not being compacted")
        return found

    def suspicious_lines(self) -> list[str]:
        """Return what no collector should have said."""
        return [line for collector in self.collectors for line in collector.lines if _SUSPICIOUS.search(line)]

    def said_to_be_refused(self) -> int:
        """Return how many rows the collectors have called lost, since the journal was full."""
        lines = (line for collector in self.collectors for line in list(collector.lines))
        return sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith("LOST, journal full: "))


@contextmanager
def open_world(directory: Path, *, rate: int, rest: bool, **env: Any) -> Iterator[World]:
    """Give a world in which all runs, with `rate` frames/s, and with or without REST; end it.

    `env` are the collector's own settings.
    """
    with (
        open_stack(directory) as stack,
        open_proxy(stack.port) as proxy,
        small_disks(DISK, Path(stack.env["JOURNAL_DIR"]), stack.data) as disks,
    ):
        stack.prefix = disks.prefix
        exchange = stack.exchange("--rate", rate, *([] if rest else ["--fault", "rest-down"]))
        world = World(stack, disks, proxy, exchange, env)
        world.start_clickhouse()
        stack.setup()
        world.start_collector()
        eventually(lambda: stack.count() > FLOWING, "the first rows")
        world.sent.read()
        try:
            yield world
        finally:
            world.sent.close()
            stack.close()  # before its disks


def _freeze(process: Process) -> None:
    """Stop a process, and wait until each of its threads is stopped."""
    process.send(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    eventually(
        lambda: all("\nState:\tT" in (task / "status").read_text() for task in tasks.iterdir()), "a stopped process"
    )


def _unread_bytes(pid: int, port: int) -> int:
    """Return how many bytes wait in the sockets that are connected to 127.0.0.1:`port`."""
    peer = f"0100007F:{port:04X}"
    connections = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
    return sum(int(fields[4].partition(":")[2], 16) for fields in connections if fields[2] == peer)

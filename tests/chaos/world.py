"""The processes that chaos befalls: simulated exchange -> collector -> cutting proxy -> ClickHouse.

The journal and ClickHouse's data are on small disks of their own, which can be filled, and where the power can fail.
"""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

from clickhouse_driver.errors import ServerException

from bench.feeds import STORED_AT
from pipeline.store.client import is_missing_table
from pipeline.store.history import pieces
from pipeline.store.repair import examine
from tests.chaos.audit import SentLog, Verdict, compare, end_of, joined, must_have_read, places
from tests.chaos.power import PowerLoss
from tests.disks import Disks, small_disks
from tests.proxy import Proxy, open_proxy
from tests.stack import PATIENCE, Exchange, Process, Stack, StoredRow, eventually, open_stack

DISK = "128m"
Machine = Literal["collector", "clickhouse"]
FLOWING = 20  # rows after a fault that show that all is well again
_EACH_ROW = "SELECT toUnixTimestamp64Milli(ts) AS ts, toString(mt) AS mt, m FROM mexc_data.btc"
_SUSPICIOUS = re.compile(r"Traceback|WARNING: (?!new rows are LOST)|was reset|lost its last|This is a bug")


class World:
    """One collector and what surrounds it; use `open_world`."""

    def __init__(
        self,
        stack: Stack,
        disks: Disks,
        proxy: Proxy,
        exchange: Exchange,
        power: dict[Machine, PowerLoss],
        env: dict[str, Any],
    ) -> None:
        """`power` is of the machines whose power can fail; `env` are the collector's own settings."""
        self.stack, self.disks, self.proxy, self.exchange = stack, disks, proxy, exchange
        self._power = power
        self._env = {"CLICKHOUSE_PORT": proxy.port, "PING_INTERVAL": 5, **env}
        self._has_history = "HISTORY" in env
        self.journal = Path(stack.env["JOURNAL_DIR"])
        self.sent = SentLog(exchange.log, "BTC_USDT")
        self.stored: list[StoredRow] = []
        """What the table holds, after what those had that were reset."""
        self._again_before = self._again_now = 0
        self._former: list[StoredRow] = []  # of tables that were reset
        self._present: list[StoredRow] = []  # of the one that there is
        self.collectors: list[Process] = []
        self._expected: set[str] = set()  # what a collector may well say, after what was done
        self._ended = 0
        """The number of the last connection that has ended."""

    def start_clickhouse(self) -> None:
        with self._watched("clickhouse"):
            self.server = self.stack.clickhouse()

    def start_collector(self) -> None:
        with self._watched("collector"):
            self.collector = self.stack.collector(**self._env)
        self.collectors.append(self.collector)
        self._lines_before = 0

    @contextmanager
    def _watched(self, machine: Machine) -> Iterator[None]:
        """What is started meanwhile runs on this machine."""
        prefix = self.stack.prefix
        if machine in self._power:
            self.stack.prefix = [*prefix, *self._power[machine].prefix]
        try:
            yield
        finally:
            self.stack.prefix = prefix

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

    def lose_power(self, machines: Sequence[Machine], chance: Random) -> None:
        """Let the power fail on these machines at once, and come back: ClickHouse is repaired before it starts."""
        _freeze(self.exchange.process)
        victims = [self.collector if machine == "collector" else self.server for machine in machines]
        for victim in victims:
            _freeze(victim)
        port = int(self.exchange.http.rpartition(":")[2])
        unread = _unread_bytes(self.collector.pid, port) if "collector" in machines else 0
        for victim in victims:
            victim.stop(signal.SIGKILL)
        for machine in machines:
            self._power[machine].happens(chance)
        if "collector" in machines:
            self._end_with_what_the_journal_has(unread)
            self._expected.add("more than the journal knows")
        if "clickhouse" in machines:
            self._present.clear()
            self._expected.add("lost its last")
        self.exchange.process.send(signal.SIGCONT)
        starts: dict[Machine, Callable[[], None]] = {
            "collector": self.start_collector,
            "clickhouse": self._repair_and_start_clickhouse,
        }
        for machine in chance.sample(machines, len(machines)):
            time.sleep(chance.uniform(0, 0.5))
            starts[machine]()

    def _repair_and_start_clickhouse(self) -> None:
        repair = self.stack.run("ch_setup.py", "--repair", self.stack.data, "--yes")
        assert repair.wait() == 0, repair.output
        self.start_clickhouse()

    def _end_with_what_the_journal_has(self, unread_bytes: int) -> None:
        """Note that the connection has ended, and that what the journal still has of it must be stored."""
        self.end_connection(unread_bytes)
        connection = self.sent.connections[self._ended]
        connection.read, connection.must = connection.must, 0
        connection.must = end_of([sent.row for sent in connection.rows], self._last_in_the_journal())

    def _last_in_the_journal(self) -> list[StoredRow]:
        """Return the newest rows of the journal, which no process has open."""
        with TemporaryDirectory() as name:
            for file in self.disks.seen(self.journal).glob("btc.db*"):
                shutil.copy(file, name)
            with closing(sqlite3.connect(Path(name) / "btc.db")) as db:
                query = f"SELECT ts, mt, m FROM rows ORDER BY seq DESC LIMIT {FLOWING}"
                return db.execute(query).fetchall()[::-1]

    @contextmanager
    def reset(self) -> Iterator[Process]:
        """Give `ch_setup.py --reset` at its work, and wait for it at the end.

        What the table had when it was deleted need not be in the new one. That is known from its files, which stay
        here, deleted or not.
        """
        self._look()
        known = list(self._present)
        directory = self.disks.seen(self.stack.data) / STORED_AT
        self._expected.add("was reset")
        with (directory / "data.bin").open("rb") as data, (directory / "index.mrk").open("rb") as index:
            process = self.stack.start("ch_setup.py", "--reset", "--yes")
            yield process
            process.wait()
            count = _rows_in(data, index)
        self.sent.read()
        sent = [each.row for connection in self.sent.connections.values() for each in connection.rows]
        at = end_of(sent, known[-FLOWING:])
        self._former, again, _ = self._joined([*known, *sent[at : at + count - len(known)]])
        self._again_before += again
        self._present.clear()

    def begin_round(self) -> None:
        """Let `wait_for_line` see only what comes from now on; what ClickHouse has written so far is on the disk."""
        self._lines_before = len(self.collector.lines)
        if "clickhouse" in self._power:
            self._power["clickhouse"].write_back()

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
        return self._look(refused)

    def places(self) -> str:
        """Return where rows are that are stored more or less often than they were sent, for who has to find out why."""
        found = places(list(self.sent.connections.values()), self.stored)
        return "\n".join([f"{len(self._former)} rows of former tables, {self.again} of them again", *found])

    def check_history(self) -> None:
        """See that the history has all rows that were stored until now, in order; what it lacks is copied first."""
        at_least = len(self.stored)

        def is_whole() -> bool:
            query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history ORDER BY n"
            found = [(ts, mt, m) for ts, mt, m in self.stack.query(query)]
            return len(found) >= at_least and self.rows()[: len(found)] == found

        deadline = time.monotonic() + PATIENCE / 4
        while not is_whole():
            if time.monotonic() > deadline:
                self.stack.run("ch_setup.py", "--history")
                eventually(is_whole, "a history with all rows")
                return
            time.sleep(0.1)

    def check_again(self) -> None:
        """See that the rows which were read bit by bit are those of the table."""
        assert self.rows() == self._present + self.rows(after=len(self._present)), "the table has changed"

    @property
    def again(self) -> int:
        """How many rows a table had, and the one that was made in its place as well."""
        return self._again_before + self._again_now

    def _look(self, refused: int = 0) -> Verdict:
        self._present += self.rows(after=len(self._present))
        self.stored, self._again_now, verdict = self._joined(self._present, refused)
        return verdict

    def _joined(self, present: list[StoredRow], refused: int = 0) -> tuple[list[StoredRow], int, Verdict]:
        """Return all rows, how many came again, and what is to be said of them, in the way that is right if one is."""
        self.sent.read()
        connections = list(self.sent.connections.values())
        ways = [
            (rows, again, compare(connections, rows, self.sent.missed, refused))
            for rows, again in joined(self._former, present)
        ]
        return next((way for way in ways if way[2].is_right), ways[0])

    def rows(self, after: int = 0) -> list[StoredRow]:
        """Return the rows but the first `after`, in order: the table's, or with a history as a reader has them."""
        if self._has_history:
            return self._rows_of_both()[after:]
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

    def _rows_of_both(self) -> list[StoredRow]:
        found: list[StoredRow] = []

        def read() -> bool:
            found.clear()
            try:
                before = self._comment()
                for in_history, first, end in pieces(self.stack.client, "mexc_data", "btc", before):
                    if in_history:
                        table = f"{_EACH_ROW}_history WHERE n >= {first} AND n < {end} ORDER BY n"
                    else:
                        table = f"{_EACH_ROW} LIMIT {10**9 if end is None else end - first} OFFSET {first}"
                    ((rows,),) = self.stack.query(
                        f"SELECT groupArray((ts, mt, m)) FROM ({table}) SETTINGS max_threads = 1"
                    )
                    found.extend(rows)
                return self._comment() == before  # else it was turned over meanwhile
            except ServerException as error:
                if is_missing_table(error):
                    return False
                raise

        eventually(read, "a table that is there")
        return found

    def _comment(self) -> str:
        query = "SELECT comment FROM system.tables WHERE database = 'mexc_data' AND name = 'btc'"
        return str((self.stack.query(query) or [[""]])[0][0])

    def suspicious_lines(self) -> list[str]:
        """Return what no collector should have said."""
        return [
            line
            for collector in self.collectors
            for line in collector.lines
            if _SUSPICIOUS.search(line) and not any(expected in line for expected in self._expected)
        ]

    def said_to_be_refused(self) -> int:
        """Return how many rows the collectors have called lost, since the journal was full."""
        lines = (line for collector in self.collectors for line in list(collector.lines))
        return sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith("LOST, journal full: "))


@contextmanager
def open_world(directory: Path, *, rate: int, rest: bool, power: bool = False, **env: Any) -> Iterator[World]:
    """Give a world in which all runs, with `rate` frames/s, and with or without REST; end it.

    With `power`, that can fail. `env` are the collector's own settings.
    """
    with (
        open_stack(directory) as stack,
        open_proxy(stack.port) as proxy,
        small_disks(DISK, Path(stack.env["JOURNAL_DIR"]), stack.data) as disks,
        ExitStack() as watched,
    ):
        stack.prefix = disks.prefix
        exchange = stack.exchange("--rate", rate, *([] if rest else ["--fault", "rest-down"]))
        machines: dict[Machine, Path] = {"collector": Path(stack.env["JOURNAL_DIR"]), "clickhouse": stack.data}
        watchers: dict[Machine, PowerLoss] = {
            machine: watched.enter_context(closing(PowerLoss(disks.seen(path), directory / machine[:2])))
            for machine, path in machines.items()
            if power
        }
        world = World(stack, disks, proxy, exchange, watchers, env)
        world.start_clickhouse()
        stack.env |= {name: str(value) for name, value in env.items()}
        stack.setup()
        world.start_collector()
        eventually(lambda: len(world.rows()) > FLOWING, "the first rows")
        world.sent.read()
        try:
            yield world
        finally:
            world.sent.close()
            stack.close()  # before its disks


def _rows_in(data: IO[bytes], index: IO[bytes]) -> int:
    """Return how many rows are in these files of a table."""
    with TemporaryDirectory() as name:
        for file, content in (("data.bin", data), ("index.mrk", index)):
            (Path(name) / file).write_bytes(content.read())
        return examine(Path(name)).prefix.rows


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

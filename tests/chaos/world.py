"""The processes that chaos befalls: simulated exchange -> collector -> cutting proxy -> ClickHouse.

The journal and ClickHouse's data are on small disks of their own, which can be filled, and where the power can fail.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from random import Random
from typing import Any, Literal

from config import all_symbols, choose_symbols, load_settings
from tests.chaos.archive import FLOWING, Archive
from tests.chaos.audit import Verdict
from tests.chaos.power import PowerLoss
from tests.disks import Disks, small_disks
from tests.proxy import Proxy, open_proxy
from tests.stack import PATIENCE, Exchange, Process, Stack, eventually, open_stack

DISK, DISK_WITH_HISTORY = "128m", "384m"  # where what was merged stays for minutes
Machine = Literal["collector", "clickhouse"]
_SUSPICIOUS = re.compile(r"Traceback|WARNING: (?!new rows are LOST)|was reset|lost its last|This is a bug")


class World:
    """A collector, or collect.py with several, and what surrounds it; use `open_world`."""

    def __init__(
        self,
        stack: Stack,
        disks: Disks,
        proxy: Proxy,
        exchange: Exchange,
        power: dict[Machine, PowerLoss],
        fleet: Sequence[str],
    ) -> None:
        """`power` is of the machines whose power can fail; `fleet` are the tables of collect.py, or none."""
        self.stack, self.disks, self.proxy, self.exchange = stack, disks, proxy, exchange
        self._power = power
        self._fleet = fleet
        self.journal = Path(stack.env["JOURNAL_DIR"])
        symbols = all_symbols(load_settings(stack.env, dotenv=None))
        self.archives = [Archive(stack, disks, exchange, each) for each in choose_symbols(fleet or ["btc"], symbols)]
        self.collectors: list[Process] = []
        self._expected: set[str] = set()  # what a collector may well say, after what was done

    def start_clickhouse(self) -> None:
        with self._watched("clickhouse"):
            self.server = self.stack.clickhouse()

    def start_collector(self) -> None:
        with self._watched("collector"):
            command = ["collect.py", *self._fleet] if self._fleet else ["btcdat.py"]
            self.collector = self.stack.start(*command, CLICKHOUSE_PORT=self.proxy.port, PING_INTERVAL=5)
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
        """Kill it at once, and note what it had read until then; of a fleet, the parent is killed."""
        _freeze(self.exchange.process.pid)
        for pid in self._members().values():
            _freeze(pid)
        self._end_connections()
        self._stop(self.collector)
        self.exchange.process.send(signal.SIGCONT)

    def kill_child(self, archive: Archive) -> None:
        """Kill the collector of a fleet that has this table, as `kill_collector` does one that is alone."""
        eventually(lambda: archive in self._members(), f"a collector of {archive.name}")
        pid = self._members()[archive]
        _freeze(self.exchange.process.pid)
        _freeze(pid)
        archive.end_connection(self._unread_bytes(pid))
        os.kill(pid, signal.SIGKILL)
        self.exchange.process.send(signal.SIGCONT)

    def end_connections(self) -> None:
        """Note that the connections end now, and that it is not known how much of them will be unread."""
        for archive in self.archives:
            archive.end_connection()

    def _end_connections(self) -> None:
        """Note that the connections end now, the collectors being stopped."""
        for archive, pid in self._members().items():
            archive.end_connection(self._unread_bytes(pid))

    def _members(self) -> dict[Archive, int]:
        """Return the processes that collect now, by what they collect."""
        if not self._fleet:
            return {self.archives[0]: self.collector.pid}
        found: dict[Archive, int] = {}
        for pid in _children(self.collector.pid):
            files = _files(pid)
            found |= {each: pid for each in self.archives if str(self.journal / f"{each.name}.db") in files}
        return found

    def _stop(self, process: Process) -> None:
        """Kill a process, and wait until those that it has started have ended, too."""
        children = _children(process.pid)
        process.stop(signal.SIGKILL)
        eventually(lambda: not any(map(_is_alive, children)), "children that end with their parent")

    def _unread_bytes(self, pid: int) -> int:
        """Return how many bytes from the exchange wait in the sockets of a process."""
        peer = f"0100007F:{int(self.exchange.http.rpartition(':')[2]):04X}"
        sockets = _files(pid)
        connections = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]
        return sum(
            int(fields[4].partition(":")[2], 16)
            for fields in connections
            if fields[2] == peer and f"socket:[{fields[9]}]" in sockets
        )

    def lose_power(self, machines: Sequence[Machine], chance: Random) -> None:
        """Let the power fail on these machines at once, and come back: ClickHouse is repaired before it starts."""
        _freeze(self.exchange.process.pid)
        victims = {self.collector if machine == "collector" else self.server for machine in machines}
        for pid in [*(each.pid for each in victims), *(self._members().values() if "collector" in machines else ())]:
            _freeze(pid)
        unread = {each: self._unread_bytes(pid) for each, pid in self._members().items() if "collector" in machines}
        for victim in victims:
            self._stop(victim)
        for machine in machines:
            self._power[machine].happens(chance)
        for archive, count in unread.items():
            archive.end_with_what_the_journal_has(count)
            self._expected.add("more than the journal knows")
        if "clickhouse" in machines:
            self._expected.add("lost its last")
        for archive in self.archives:
            archive.forget()
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

    @contextmanager
    def reset(self) -> Iterator[Process]:
        """Give `ch_setup.py --reset` at its work, and wait for it at the end."""
        self._expected.add("was reset")
        with ExitStack() as tables:
            for archive in self.archives:
                tables.enter_context(archive.reset())
            process = self.stack.start("ch_setup.py", "--reset", "--yes")
            yield process
            process.wait()

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
        for archive in self.archives:
            archive.expect()
        eventually(lambda: all(each.flows() for each in self.archives), "market data after the fault")
        deadline = time.monotonic() + PATIENCE
        while True:
            refused = self.said_to_be_refused()
            verdict = self.look(refused)
            is_right = verdict.is_right and verdict.refused == refused
            if (is_right and all(each.complete() for each in self.archives)) or time.monotonic() > deadline:
                return verdict
            time.sleep(0.05)

    def look(self, refused: int = 0) -> Verdict:
        """Compare what is stored now with what was sent; the numbers are of all tables together."""
        return Verdict(*map(sum, zip(*(astuple(each.look(refused)) for each in self.archives), strict=True)))

    def places(self) -> str:
        """Return where rows are that are stored more or less often than they were sent, for who has to find out why."""
        return "\n".join(line for archive in self.archives for line in archive.places())

    def check_histories(self) -> None:
        """See that histories, where there are some, have all rows that were stored until now, in order."""
        for archive in self.archives:
            archive.check_history()

    def check_again(self) -> None:
        """See that the rows which were read bit by bit are those of the tables."""
        for archive in self.archives:
            archive.check_again()

    @property
    def stored(self) -> int:
        """How many rows were stored, in tables that were reset and in those that there are."""
        return sum(len(each.stored) for each in self.archives)

    @property
    def again(self) -> int:
        """How many rows a table had, and the one that was made in its place as well."""
        return sum(each.again for each in self.archives)

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
def open_world(
    directory: Path, *, rate: int, rest: bool, power: bool = False, fleet: Sequence[str] = (), **env: Any
) -> Iterator[World]:
    """Give a world in which all runs, with `rate` frames/s of each symbol, and with or without REST; end it.

    With `power`, that can fail. `fleet` are the tables of collect.py; else there is btcdat.py. `env` are settings.
    """
    with (
        open_stack(directory) as stack,
        open_proxy(stack.port) as proxy,
        small_disks(
            DISK_WITH_HISTORY if env.get("HISTORY") else DISK, Path(stack.env["JOURNAL_DIR"]), stack.data
        ) as disks,
        ExitStack() as watched,
    ):
        stack.prefix = disks.prefix
        stack.env |= {name: str(value) for name, value in env.items()}
        exchange = stack.exchange("--rate", rate, *([] if rest else ["--fault", "rest-down"]))
        machines: dict[Machine, Path] = {"collector": Path(stack.env["JOURNAL_DIR"]), "clickhouse": stack.data}
        watchers: dict[Machine, PowerLoss] = {
            machine: watched.enter_context(closing(PowerLoss(disks.seen(path), directory / machine[:2])))
            for machine, path in machines.items()
            if power
        }
        world = World(stack, disks, proxy, exchange, watchers, fleet)
        world.start_clickhouse()
        stack.setup()
        world.start_collector()
        for archive in world.archives:
            eventually(lambda archive=archive: len(archive.rows()) > FLOWING, "the first rows")  # type: ignore[misc]
            archive.sent.read()
        try:
            yield world
        finally:
            for archive in world.archives:
                archive.sent.close()
            stack.close()  # before its disks


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _files(pid: int) -> set[str]:
    """Return what a process has open; nothing where it has ended."""
    found = set()
    with suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(link.readlink()))
    return found


def _is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def _freeze(pid: int) -> None:
    """Stop a process, and wait until each of its threads is stopped."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    eventually(
        lambda: all("\nState:\tT" in (task / "status").read_text() for task in tasks.iterdir()), "a stopped process"
    )

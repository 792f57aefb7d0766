"""The real parts as processes on free ports, for tests: ClickHouse, the simulated exchange, the scripts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from clickhouse_driver import Client

from config import PROJECT, Settings

PATIENCE = 60.0  # seconds; reached only when a test fails

StoredRow = tuple[int, str, str]


def eventually(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `condition` holds; `what` names it if it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not after {timeout:.0f} s: {what}"
        time.sleep(0.02)


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that somebody writes to, without one that is not whole yet."""
    return path.read_text().rpartition("\n")[0].splitlines()


def free_port() -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running script; what it prints is kept, stdout and stderr together."""

    def __init__(self, *command: object, env: dict[str, str], cwd: Path = PROJECT, prefix: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, *map(str, command)],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait for a line in which `pattern` is found."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            found.extend(match for line in list(self.lines) if (match := re.search(pattern, line)))
            assert found or self._process.poll() is None or self._reader.is_alive(), f"no {pattern!r}:\n{self.output}"
            return bool(found)

        try:
            eventually(seen, pattern, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None
        return found[0]

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; return the exit code."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        if self.running:
            self.send(number)
        return self.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
        self._process.stdout.close()


class Stack:
    """What a test has started, all below one directory; use `open_stack`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()  # ClickHouse comes back where it was
        self.data = directory / "clickhouse"
        self.env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        # All of them, so that no .env of a developer has a say.
        self.env |= {field.name.upper(): str(field.default) for field in fields(Settings)}
        self.env |= {
            "PYTHONUNBUFFERED": "1",
            "CLICKHOUSE_PORT": str(self.port),
            "CLICKHOUSE_USER": "default",
            "CLICKHOUSE_PASSWORD": "of the tests",
            "JOURNAL_DIR": str(directory / "journal"),
            "MEXC_REST_URL": "http://127.0.0.1:9",  # nobody, until there is an exchange
            "KLINES_DIR": str(directory / "klines"),
            "STATS_INTERVAL": "1",
        }
        self.prefix: Sequence[str] = ()
        """A command that runs what follows it, for all processes; see tests.disks."""
        self.processes: list[Process] = []
        self._client: Client | None = None

    def start(self, *command: object, cwd: Path = PROJECT, **env: Any) -> Process:
        """Start a script of the project with extra environment variables."""
        extra = {name: str(value) for name, value in env.items()}
        self.processes.append(Process(*command, env=self.env | extra, cwd=cwd, prefix=self.prefix))
        return self.processes[-1]

    def run(self, *command: object, **env: Any) -> Process:
        """Run a script of the project to its end."""
        process = self.start(*command, **env)
        process.wait()
        return process

    def clickhouse(self) -> Process:
        """Start ClickHouse, for the first time or again, and wait for it."""
        server = self.start("-m", "local.clickhouse", "--port", self.port, "--data", self.data)
        server.wait_for("listening on")
        return server

    def exchange(self, *options: object) -> Exchange:
        """Start a simulated exchange; collectors started after it connect to it."""
        exchange = Exchange(self, *options)
        self.env |= {"MEXC_WS_URL": exchange.url, "MEXC_REST_URL": exchange.rest}
        return exchange

    def setup(self, *options: object) -> Process:
        """Run ch_setup.py."""
        setup = self.run("ch_setup.py", *options)
        assert setup.wait() == 0, setup.output
        return setup

    def collector(self, name: str = "btc", **env: Any) -> Process:
        """Start a collector, by its table's name."""
        return self.start(f"{name}dat.py", **env)

    def query(self, sql: str) -> Any:
        """Return the rows that ClickHouse answers `sql` with."""
        return self.client.execute(sql)

    @property
    def client(self) -> Client:
        """The test's own connection to ClickHouse."""
        if self._client is None:
            self._client = Client("127.0.0.1", port=self.port, password=self.env["CLICKHOUSE_PASSWORD"])
        return self._client

    def count(self, table: str = "btc") -> int:
        """Return how many rows a table has."""
        count: int = self.query(f"SELECT count() FROM mexc_data.{table}")[0][0]
        return count

    def rows(self, table: str = "btc") -> list[StoredRow]:
        """Return a table's rows `(ts_ms, mt, m)` in the order they are stored in."""
        found = self.query(f"SELECT toUnixTimestamp64Milli(ts), mt, m FROM mexc_data.{table} SETTINGS max_threads = 1")
        return [(ts, mt, m) for ts, mt, m in found]

    def wait_for_rows(self, count: int, table: str = "btc") -> list[StoredRow]:
        """Wait until a table has `count` rows, and return them."""
        eventually(lambda: self.count(table) >= count, f"{count} rows in {table}")
        return self.rows(table)

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
        for process in reversed(self.processes):
            if process.running:
                process.send(signal.SIGCONT)  # in case a test has stopped it
                process.stop(signal.SIGKILL)


class Exchange:
    """A running simulated exchange: `url` is its WebSocket's, `http` of the same host, `rest` that of REST alone."""

    def __init__(self, stack: Stack, *options: object) -> None:
        self.log = stack.directory / f"exchange-{len(stack.processes)}.jsonl"
        self.process = stack.start("-m", "local.exchange", "--port", 0, "--log", self.log, *options)
        self.url = self.process.wait_for(r"listening on (wss?://\S+)")[1]
        self.rest = self.process.wait_for(r"REST on (http://\S+)")[1]
        self.http = self.url.replace("ws", "http", 1).removesuffix("/edge")

    def get(self, path: str) -> Any:
        """Return the JSON that the exchange answers `path` with."""
        with urllib.request.urlopen(self.http + path, timeout=PATIENCE) as response:
            return json.load(response)

    def fault(self, name: str) -> None:
        """Make the exchange misbehave; see its --help."""
        self.get(f"/control?fault={name}")

    def sent(self, symbol: str | None = None) -> list[str]:
        """Return the market frames that were handed to connections, in order."""
        entries = [json.loads(line) for line in whole_lines(self.log)]
        return [entry["frame"] for entry in entries if entry["conn"] and symbol in (None, entry["symbol"])]


@contextmanager
def open_stack(directory: Path) -> Iterator[Stack]:
    """Give a stack with nothing started, and end all that it starts."""
    stack = Stack(directory)
    try:
        yield stack
    finally:
        stack.close()

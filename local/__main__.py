"""The whole pipeline on one machine in one command, without Docker: docker-compose's counterpart.

Starts the embedded ClickHouse, runs ch_setup.py, then runs every collector as a process of its own, and collect.py
where there are SYMBOLS, with the parts' names before what they print, and each block of statistics as one line. Parts
that fail are started again, as docker-compose does. Ctrl-C stops all, in order: the collectors first, so that what they
have taken in is stored. The end is verif.py's report, how it went, the last prices, and how to go on.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from config import ALL_CONFIGS, PROJECT, ConfigError, Settings, load_settings, more_symbols
from local.market import CONTRACTS
from local.summary import closing, summed_up

_ADDRESS = re.compile(r"\b(listening|REST) on ([^\s,]+)")  # in what a server of ours prints once it can be used
_STARTUP_TIMEOUT = 60.0  # seconds
_STOP_TIMEOUT = 20.0  # seconds; a collector drains for ten
_RESTART_DELAY = 1.0  # seconds
_EXIT_CONFIG = 2  # a part that ends with this would do so again
_NEXT = """To use what was stored: source venv/bin/activate && python3 -m local.clickhouse --data {data}
and then, in another terminal: source venv/bin/activate && {export}python3 verif.py --html report.html
"""


def say(line: str) -> None:
    """Print a line, whole and at once, from whichever thread; `line` ends as it is to be printed."""
    sys.stdout.write(line)
    sys.stdout.flush()


class Part:
    """A process of the stack, with its name before each line that it prints."""

    def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], *, prefixed: bool = False) -> None:
        """A process whose lines are `prefixed` says by itself whose they are."""
        self.name, self._command, self._environ = name, list(command), environ
        self._prefix = "" if prefixed else f"{name:<10} | "
        self._ready = threading.Event()
        self._addresses: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """Start the process, for the first time or again."""
        self._is_asked = False
        self.process = subprocess.Popen(
            [sys.executable, *self._command],
            cwd=PROJECT,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the others in order
        )
        self._printer = threading.Thread(target=self._print, args=(self.process,), daemon=True)
        self._printer.start()

    def wait_until_ready(self) -> bool:
        """Return whether the server has said that it can be used."""
        deadline = time.monotonic() + _STARTUP_TIMEOUT
        while not self._ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
        return True

    def keep_address(self, name: str, option: str) -> str:
        """Return one of the addresses of a server that took any port, to be the same after a restart."""
        self._command += [option, str(urlsplit(self._addresses[name]).port)]
        return self._addresses[name]

    def ask(self) -> None:
        """Ask the process to end, once: a collector that is asked again drops what it is about to store."""
        if not self._is_asked:
            self._is_asked = True
            self.process.terminate()

    def stop(self) -> None:
        """Ask the process to end, and see to it that it does."""
        self.ask()
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._printer.join(1)

    def _print(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in summed_up(line.removesuffix("\n") for line in process.stdout):
            say(f"{self._prefix}{line}\n")
            if found := _ADDRESS.search(line):
                self._addresses[found[1]] = found[2]
                if found[1] == "listening":  # the last of its addresses
                    self._ready.set()


def main() -> int:
    """Run the command line; return the exit code: 0 stopped, 1 something did not start, 2 a setting is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m local", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--simulate", action="store_true", help="take frames from a simulated exchange, not from MEXC")
    parser.add_argument(
        "--symbols", type=int, metavar="N", help="with --simulate: N symbols of the simulated exchange, not SYMBOLS"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="stop after N seconds, with verif.py's report")
    options = parser.parse_args()
    if options.symbols is not None:
        if not options.simulate or not len(ALL_CONFIGS) <= options.symbols <= len(CONTRACTS):
            parser.error(f"--symbols goes with --simulate, and is {len(ALL_CONFIGS)} to {len(CONTRACTS)}")
        os.environ["SYMBOLS"] = ",".join([*CONTRACTS][: options.symbols])
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    data = PROJECT / "local-data" / ("simulated" if options.simulate else "live")  # never into the same tables
    environ = os.environ | environ_of(settings, data)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    more = bool(more_symbols(settings))
    return run(data, environ, stop, more=more, simulate=options.simulate, seconds=options.seconds)


def environ_of(settings: Settings, data: Path) -> dict[str, str]:
    """Return what the parts are told, whatever `.env` has for servers elsewhere: all is here, and below `data`."""
    port = str(settings.clickhouse_port)
    return {
        "PYTHONUNBUFFERED": "1",
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": port,
        "CLICKHOUSE_SECURE": "0",
        "HISTORY_HOST": "127.0.0.1",
        "HISTORY_PORT": port,
        "HISTORY_USER": settings.clickhouse_user,
        "HISTORY_PASSWORD": settings.clickhouse_password,
        "HISTORY_SECURE": "0",
        "HISTORY_ENGINE": "MergeTree",
        "JOURNAL_DIR": str(data / "journal"),
        "KLINES_DIR": str(data / "klines"),
    }


def run(
    data: Path, environ: dict[str, str], stop: threading.Event, *, more: bool, simulate: bool, seconds: float | None
) -> int:
    """Run all parts until `stop`, or for `seconds`, those of SYMBOLS where there are `more`; return the exit code."""
    servers: list[Part] = []
    collectors: list[Part] = []
    given = {name: environ[name] for name in ("SYMBOLS", "HISTORY") if environ.get(name)}  # which no .env has
    try:
        port = environ["CLICKHOUSE_PORT"]
        servers.append(
            Part("clickhouse", ["-m", "local.clickhouse", "--port", port, "--data", str(data / "clickhouse")], environ)
        )
        if simulate:
            servers.append(Part("exchange", ["-m", "local.exchange", "--port", "0"], environ))
        if not all(server.wait_until_ready() for server in servers):
            return 1
        if simulate:
            exchange = servers[1]
            environ["MEXC_WS_URL"] = exchange.keep_address("listening", "--port")
            environ["MEXC_REST_URL"] = exchange.keep_address("REST", "--rest-port")
        if subprocess.run([sys.executable, "ch_setup.py"], cwd=PROJECT, env=environ, check=False).returncode:
            return 1
        metrics_port = load_settings(environ).metrics_port
        for number, config in enumerate(ALL_CONFIGS):
            name = config["table_name"]
            collectors.append(Part(name, [f"{name}dat.py"], environ | _metrics_at(metrics_port, number)))
        if more:
            its = environ | _metrics_at(metrics_port, len(ALL_CONFIGS))
            collectors.append(Part("more", ["collect.py"], its, prefixed=True))
        started = time.time()
        audit = ["verif.py", "--audit", "--from", _utc(started)]  # of earlier runs, this exchange knows nothing
        if simulate:
            its = {name: environ[name] for name in ("MEXC_REST_URL", "KLINES_DIR")}
            say(f"Does the exchange agree? In another terminal: {_typed(given | its)} python3 {' '.join(audit)}\n")
        exit_code = watch([*servers, *collectors], stop, seconds)
        stopped = time.time()
        for collector in collectors:
            collector.ask()  # all at once; `stop` below waits for each
        for collector in collectors:
            collector.stop()
        sys.stdout.flush()
        subprocess.run([sys.executable, "verif.py"], cwd=PROJECT, env=environ, check=False)
        if simulate and stopped // 60 - started // 60 >= 2:  # there is a whole minute
            subprocess.run([sys.executable, *audit, "--to", _utc(stopped)], cwd=PROJECT, env=environ, check=False)
        export = f"export {_typed(given)} && " if given else ""
        how_to_go_on = _NEXT.format(data=(data / "clickhouse").relative_to(PROJECT), export=export)
        say(f"\n{closing(load_settings(environ), started)}\n{how_to_go_on}")
        return exit_code
    finally:
        for part in [*collectors, *reversed(servers)]:
            part.stop()


def _metrics_at(port: int, number: int) -> dict[str, str]:
    """Return a METRICS_PORT for the collector of that number, where there is to be one: no two can have the same."""
    return {"METRICS_PORT": str(port + number)} if port else {}


def _typed(settings: dict[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())


def _utc(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S}"


def watch(parts: Sequence[Part], stop: threading.Event, seconds: float | None) -> int:
    """Start parts again that end by themselves, until `stop` or for `seconds`; return the exit code."""
    end = None if seconds is None else time.monotonic() + seconds
    while not stop.wait(_RESTART_DELAY if end is None else max(0.0, min(_RESTART_DELAY, end - time.monotonic()))):
        for part in parts:
            exit_code = part.process.poll()
            if exit_code is None:
                continue
            if exit_code == _EXIT_CONFIG:
                return exit_code
            say(f"{part.name} ended with exit code {exit_code}: starting it again\n")
            part.start()
        if end is not None and time.monotonic() >= end:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python3 -m local, in a copy of the project's folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from config import ALL_CONFIGS, PROJECT, load_settings
from local.__main__ import Part, environ_of
from local.market import CONTRACTS
from pipeline.store.history import server_of
from tests.stack import Process, Stack, eventually, free_port, open_stack


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what runs, so that the project's own local-data stays as it is."""
    copy = tmp_path / "project"
    for name in ("pipeline", "local"):
        shutil.copytree(PROJECT / name, copy / name)
    for file in PROJECT.glob("*.py"):
        shutil.copy(file, copy)
    return copy


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """As elsewhere; and what a failed `python3 -m local` has left running is ended, known by its directory."""
    with open_stack(tmp_path) as opened:
        yield opened
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if link.readlink().is_relative_to(tmp_path):
                os.kill(int(link.parent.name), signal.SIGKILL)


def local(stack: Stack, project: Path, *options: object, **env: object) -> Process:
    return stack.start("-m", "local", *options, cwd=project, **env)


def parts(process: Process) -> dict[int, str]:
    """Return the processes that `process` has started, by pid, with their command lines."""
    found = {}
    with suppress(FileNotFoundError):
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(FileNotFoundError):
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return found


def pid_of(process: Process, name: str) -> int:
    (pid,) = (pid for pid, command in parts(process).items() if name in command)
    return pid


def wait_until_all_collect(process: Process) -> None:
    for name in ("btc", "eth", "sol"):
        process.wait_for(rf"^{name} +\| Subscribed to: sub.deal for {name.upper()}_USDT$")


def test_it_collects_all_symbols_into_three_data_files_and_ends_with_the_report(stack: Stack, project: Path) -> None:
    process = local(stack, project, "--simulate", "--seconds", 4, HISTORY="")
    assert process.wait() == 0
    wait_until_all_collect(process)
    report = process.lines[process.lines.index("💾 Symbol-specific storage status:") :]
    counts = re.findall(r"^  (\w+)/data.bin: (\d+) records$", "\n".join(report), re.MULTILINE)
    assert [name for name, _ in counts] == ["btc", "eth", "sol"]
    assert all(int(count) > 0 for _, count in counts)
    assert f"Total records appended: {sum(int(count) for _, count in counts)}" in report
    verdict, prices, *use = process.lines[-4:]
    assert verdict == f"All is well. Stored in this run: {sum(int(count) for _, count in counts):,} records."
    assert re.fullmatch(r"Last prices: BTC_USDT [\d.]+, ETH_USDT [\d.]+, SOL_USDT [\d.]+", prices)
    assert "export" not in use[1], "nothing was given"
    commands = [re.search(r"python3 (.+)$", line) for line in use]
    serve, look = (command[1].split() for command in commands if command)
    server = stack.start(*serve, cwd=project)
    server.wait_for("listening on")
    assert stack.run(*look[:-1], project / look[-1]).wait() == 0
    assert (project / "report.html").exists()
    lines = [line for line in process.lines if re.match(r"btc +\| .*records", line)]
    assert lines, "its statistics"
    assert all(re.search(r" records in \d+ s \([\d.]+ records/sec\): ticker \d+, deal", line) for line in lines)
    assert "STATISTICS" not in process.output.partition("💾")[0]
    assert "Traceback" not in process.output
    store = project / "local-data" / "simulated" / "clickhouse" / "store"
    of_tables = {store / config["uuid"][:3] / config["uuid"] for config in ALL_CONFIGS}
    assert {directory.parent.name for directory in of_tables} == {"b7c", "e74", "507"}
    files = {path for path in store.rglob("*") if path.is_file() and path.suffix != ".sql"}
    names = ("data.bin", "index.mrk", "sizes.json")
    assert files == {directory / name for directory in of_tables for name in names}


def test_each_collector_has_a_metrics_port_of_its_own(stack: Stack, project: Path) -> None:
    port = free_ports(4)
    process = local(stack, project, "--simulate", "--symbols", 4, METRICS_PORT=port)

    def tables(number: int) -> set[str]:
        with urlopen(f"http://127.0.0.1:{port + number}/metrics", timeout=5) as answer:
            return set(re.findall(r'^mexc_frames_total{.*table="(\w+)"', answer.read().decode(), re.MULTILINE))

    wait_until_all_collect(process)
    process.wait_for(rf"^{[*CONTRACTS][3].split('_')[0].lower()} +\| Subscribed to: sub.deal")
    assert [tables(number) for number in range(4)] == [{"btc"}, {"eth"}, {"sol"}, {"xrp"}]
    assert process.stop(signal.SIGINT) == 0


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that nobody listens on."""
    while True:
        first = free_port()
        with suppress(OSError, OverflowError), ExitStack() as taken:
            for number in range(count):
                taken.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


def test_how_to_go_on_has_the_settings_that_were_given(stack: Stack, project: Path) -> None:
    process = local(stack, project, "--simulate", "--seconds", 1, "--symbols", 4, HISTORY=1)
    assert process.wait() == 0
    given = process.lines[-1].partition(" && export ")[2].partition(" && python3 ")[0].split()
    fourth = [*CONTRACTS][3]
    assert given == [f"SYMBOLS=BTC_USDT,ETH_USDT,SOL_USDT,{fourth}", "HISTORY=1"]
    audit = next(line for line in process.lines if line.startswith("Does the exchange agree?"))
    assert f": {' '.join(given)} MEXC_REST_URL=" in audit


@pytest.mark.timeout(300)
def test_the_exchange_agrees_with_what_was_stored(stack: Stack, project: Path) -> None:
    eventually(lambda: time.time() % 60 < 30, "a moment from which on all subscribe within the same minute")
    process = local(stack, project, "--simulate", "--seconds", 125)  # which has a whole minute in it
    command = process.wait_for(r"^Does the exchange agree\? In another terminal: (.*) python3 (verif.py --audit .*)$")
    environ = dict(setting.split("=", 1) for setting in command[1].split())
    eventually(lambda: stack.run(*command[2].split(), **environ).wait() == 0, "a minute is whole", timeout=180)
    assert (project / "local-data/simulated/klines").is_dir()
    assert process.wait(timeout=180) == 0
    report = process.lines[process.lines.index("💾 Symbol-specific storage status:") :]
    for name in ("BTC", "ETH", "SOL"):
        verdict = f"^{name}_USDT: 100.00 % of MEXC's contracts, (1 of 1 minute|2 of 2 minutes) agree exactly$"
        assert re.search(verdict, "\n".join(report), re.MULTILINE), process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_part(stack: Stack, project: Path, number: int) -> None:
    process = local(stack, project, "--simulate")
    wait_until_all_collect(process)
    started = parts(process)
    assert len(started) == 5
    assert process.stop(number) == 0
    assert "💾 Symbol-specific storage status:" in process.lines
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_parts_that_are_killed_are_started_again(stack: Stack, project: Path) -> None:
    process = local(stack, project, "--simulate")
    wait_until_all_collect(process)
    subscribed = "btc        | Subscribed to: sub.deal for BTC_USDT"

    def kill(part: str, script: str) -> None:
        os.kill(pid_of(process, script), signal.SIGKILL)
        process.wait_for(f"^{part} ended with exit code -9: starting it again$")

    kill("btc", "btcdat.py")
    eventually(lambda: process.lines.count(subscribed) == 2, "another collector collects")
    kill("exchange", "local.exchange")
    eventually(lambda: process.lines.count(subscribed) == 3, "the collector finds the exchange again")
    addresses = [line for line in process.lines if "| Simulated MEXC exchange" in line]
    assert len(addresses) == 4
    assert addresses[:2] == addresses[2:], "REST and WebSocket are where they were"
    rest = addresses[0].rpartition(" ")[2]
    environ = Path(f"/proc/{pid_of(process, 'btcdat.py')}/environ").read_text().split("\0")
    assert f"MEXC_REST_URL={rest}" in environ
    kill("clickhouse", "local.clickhouse")
    eventually(lambda: process.output.count("listening on 127.0.0.1") == 2, "ClickHouse is up again")
    before = stack.count()
    eventually(lambda: stack.count() > before, "rows are stored again")
    assert process.stop(signal.SIGINT) == 0


def test_a_port_in_use_is_said_and_nothing_is_left_running(stack: Stack, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = local(stack, project, "--simulate", CLICKHOUSE_PORT=port)
        assert process.wait() == 1
    (line,) = (line for line in process.lines if line.startswith("clickhouse"))
    assert line.startswith(f"clickhouse | cannot listen on 127.0.0.1:{port}: ")
    assert line.endswith(" Address already in use: end what runs there, or set CLICKHOUSE_PORT")
    assert "Traceback" not in process.output


def test_servers_elsewhere_that_env_names_are_left_alone(tmp_path: Path) -> None:
    """Simulated rows would go into a history that is not this stack's."""
    env = tmp_path / ".env"
    own = ["CLICKHOUSE_HOST=db", "CLICKHOUSE_PORT=9440", "CLICKHOUSE_SECURE=1", "CLICKHOUSE_PASSWORD=secret"]
    history = ["HOST=archive", "PORT=9440", "USER=writer", "PASSWORD=other", "SECURE=1", "ENGINE=ReplicatedMergeTree"]
    env.write_text("\n".join(["HISTORY=1", *own, *(f"HISTORY_{each}" for each in history)]))
    settings = load_settings(environ_of(load_settings({}, env), tmp_path), env)
    assert (settings.clickhouse_host, settings.clickhouse_secure) == ("127.0.0.1", 0)
    assert server_of(settings) == settings
    assert (settings.history, settings.history_engine) == (1, "MergeTree")


def test_an_unusable_setting_is_one_line(stack: Stack, project: Path) -> None:
    process = local(stack, project, "--simulate", STATS_INTERVAL="now and then")
    assert process.wait() == 2
    assert process.lines == ["STATS_INTERVAL=now and then is not a number"]


COUNTS = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("listening on http://127.0.0.1:1", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(asked))
"""


def test_a_part_is_asked_to_end_once() -> None:
    part = Part("counts", ["-c", COUNTS], dict(os.environ))
    assert part.wait_until_ready()
    part.ask()
    time.sleep(0.1)  # for it to take that, or another signal would be the same
    part.stop()
    assert part.process.returncode == 1

"""collect.py: many collectors as children of one process, on a real ClickHouse and the simulated exchange."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from config import PROJECT, all_symbols, load_settings
from local.market import CONTRACTS
from pipeline.collect.collector import EXIT_CONFIG
from pipeline.collect.fleet import Fleet
from pipeline.collect.voice import merged
from pipeline.messages import parse_frame
from tests.stack import PATIENCE, Exchange, Process, Stack, StoredRow, eventually, free_port, whole_lines

SYMBOLS = {"xrp": "XRP_USDT", "doge": "DOGE_USDT", "_1000bonk": "1000BONK_USDT"}


@pytest.fixture
def fleet(stack: Stack) -> Callable[..., Process]:
    """Start collect.py for SYMBOLS; ClickHouse and its tables are there."""
    stack.env["SYMBOLS"] = ",".join(SYMBOLS.values())
    stack.clickhouse()
    stack.setup()
    return lambda *names, **env: stack.start("collect.py", *names, **env)


def children(process: Process) -> list[int]:
    with suppress(FileNotFoundError):
        return [*map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
    return []


def collectors(process: Process) -> list[int]:
    """Return the processes of the symbols; the first child is the one that speaks for them."""
    return children(process)[1:]


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def wait_until_all_collect(process: Process, times: int = 1) -> None:
    for name, symbol in SYMBOLS.items():
        line = f"{name:<10} | Subscribed to: sub.deal for {symbol}"
        eventually(lambda line=line: process.lines.count(line) >= times, f"{line}\n{process.output}")  # type: ignore[misc]


def sent_rows(exchange: Exchange, symbol: str) -> list[StoredRow]:
    rows = [row for raw in exchange.sent(symbol) for row in parse_frame(raw, symbol, 0).rows]
    return [(row.ts_ms, row.mt, row.m) for row in rows]


def sent_by_connection(exchange: Exchange, symbol: str) -> list[list[StoredRow]]:
    """Return the rows that were sent on each connection of a symbol."""
    found: dict[int, list[StoredRow]] = {}
    for line in whole_lines(exchange.log):
        entry = json.loads(line)
        if entry["conn"] and entry["symbol"] == symbol:
            (row,) = parse_frame(entry["frame"], symbol, 0).rows
            found.setdefault(entry["conn"], []).append((row.ts_ms, row.mt, row.m))
    return [*found.values()]


def wait_until_all_are_sent_rows(exchange: Exchange, connections: int) -> None:
    """Wait until the exchange has sent rows of each symbol on so many connections."""
    for symbol in SYMBOLS.values():
        eventually(lambda symbol=symbol: len(sent_by_connection(exchange, symbol)) == connections, symbol)  # type: ignore[misc]


def grows(stack: Stack, table: str) -> None:
    before = stack.count(table)
    eventually(lambda: stack.count(table) > before, f"another row in {table}")


# What each collector has imported by the time it ends that its parent had not.
IMPORTING = """
import sys
from config import all_symbols, load_settings
from pipeline.collect import fleet
collect = fleet.collect
def collect_and_tell(*arguments):
    before = set(sys.modules)
    code = collect(*arguments)
    print("imported:", sorted(set(sys.modules) - before))
    return code
fleet.collect = collect_and_tell
settings = load_settings()
configs = [config for config in all_symbols(settings) if config["table_name"] in sys.argv[1:]]
sys.exit(fleet.Fleet(configs, settings).run())
"""


@pytest.mark.parametrize("history", [0, 1])
def test_all_that_collectors_import_is_imported_once(stack: Stack, history: int) -> None:
    stack.env |= {"SYMBOLS": ",".join(SYMBOLS.values()), "HISTORY": str(history)}
    certificate = PROJECT / "tests/data/self-signed.pem"
    stack.env["SSL_CERT_FILE"] = str(certificate)
    stack.clickhouse()
    stack.setup()
    stack.exchange("--tls", certificate)
    process = stack.start("-c", IMPORTING, *SYMBOLS, METRICS_PORT=free_port())
    for name in SYMBOLS:
        stack.wait_for_rows(5, name)
    assert process.stop() == 0
    assert [*map(process.lines.count, [f"{name:<10} | imported: []" for name in SYMBOLS])] == [1, 1, 1], process.output


def test_each_symbol_is_collected_into_its_table_and_ends_with_the_fleet(
    stack: Stack, fleet: Callable[..., Process]
) -> None:
    exchange = stack.exchange("--rate", 50, "--frames", 60)
    process = fleet()
    wait_until_all_collect(process)
    for name, symbol in SYMBOLS.items():
        eventually(lambda symbol=symbol: len(exchange.sent(symbol)) == 60, symbol)  # type: ignore[misc]
        assert stack.wait_for_rows(60, name) == sent_rows(exchange, symbol)
    assert stack.count("btc") == 0
    pids = children(process)
    assert process.stop(signal.SIGINT) == 0
    assert not any(map(is_alive, pids))
    assert all(re.match(r"\w+ +\| ", line) for line in process.lines), process.output
    for name in SYMBOLS:
        blocks = re.findall(rf"^{name} +\| Total Records Appended: (\d+)$", process.output, re.MULTILINE)
        assert sum(map(int, blocks)) == 60, "the last block is there, too"


def test_a_dozen_with_histories_have_all_rows_in_both_tables(stack: Stack) -> None:
    stack.env |= {"SYMBOLS": ",".join([*CONTRACTS][:12]), "HISTORY": "1", "HISTORY_INTERVAL": "0.2"}
    configs = all_symbols(load_settings(stack.env, dotenv=None))
    stack.clickhouse()
    stack.setup()
    exchange = stack.exchange("--rate", 20, "--frames", 40)
    port = free_port()
    process = stack.start("collect.py", *[*CONTRACTS][:12], METRICS_PORT=port)
    for config in configs:
        name, symbol = config["table_name"], config["symbol"]
        eventually(lambda symbol=symbol: len(exchange.sent(symbol)) == 40, symbol)  # type: ignore[misc]
        assert stack.wait_for_rows(40, name) == sent_rows(exchange, symbol)
        history = f"(SELECT * FROM mexc_data.{name}_history ORDER BY n)"
        found = f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM {history}"
        eventually(lambda sql=found, symbol=symbol: stack.query(sql) == sent_rows(exchange, symbol), name)  # type: ignore[misc]
    health = stack.run("-m", "pipeline.collect.health")
    assert (health.wait(), health.lines[0]) == (0, "12 of 12 collectors work")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        assert answer.read().decode().count("mexc_collector_up{") == 12
    assert process.stop() == 0
    report = stack.run("verif.py").lines
    assert "Total records appended: 480 in 12 tables" in report
    assert len(stack.run("verif.py", "--quality").lines) == 12


def test_with_log_time_each_line_has_one_time_before_its_name(stack: Stack, fleet: Callable[..., Process]) -> None:
    stack.exchange("--rate", 50, "--frames", 5)
    process = fleet("xrp", LOG_TIME=1)
    process.wait_for("Total Records Appended: ")
    assert process.stop() == 0
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z xrp +\| (?!\d{4}-)", line) for line in process.lines), (
        process.output
    )


def test_one_that_dies_is_started_again_and_the_others_go_on(stack: Stack, fleet: Callable[..., Process]) -> None:
    exchange = stack.exchange("--rate", 50, "--fault", "rest-down")
    process = fleet()
    wait_until_all_collect(process)
    first, *others = collectors(process)
    for _ in range(2):
        before = process.output.count("xrp ended with exit code -9: starting it again")
        os.kill(first, signal.SIGKILL)
        eventually(lambda n=before: process.output.count("xrp ended with exit code -9") == n + 1, "it is said")  # type: ignore[misc]
        eventually(lambda: len(collectors(process)) == 3, "three collectors")
        (first,) = set(collectors(process)) - set(others)
    assert re.search(r"starting it again in 0\.[5-9] s|starting it again in 1\.0 s", process.output), "the second waits"
    for name in SYMBOLS:
        grows(stack, name)
    assert set(others) < set(collectors(process))
    assert process.stop() == 0
    for name in ("doge", "_1000bonk"):
        rows = stack.rows(name)
        assert rows == sent_rows(exchange, SYMBOLS[name])[: len(rows)]
        assert len(rows) > 20
    sent = Counter(sent_rows(exchange, "XRP_USDT"))
    assert Counter(stack.rows("xrp")) <= sent, "no row twice, and none but what was sent"


def test_when_the_parent_is_killed_the_others_end_and_the_next_start_loses_nothing(
    stack: Stack, fleet: Callable[..., Process]
) -> None:
    exchange = stack.exchange("--rate", 50, "--fault", "rest-down")
    process = fleet()
    wait_until_all_collect(process)
    wait_until_all_are_sent_rows(exchange, 1)
    pids = children(process)
    assert len(pids) == 4
    process.stop(signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, pids)), "all have ended")
    again = fleet()  # at once: their locks are free
    wait_until_all_are_sent_rows(exchange, 2)
    for name in SYMBOLS:
        grows(stack, name)
    before = {name: sent_by_connection(exchange, symbol)[1] for name, symbol in SYMBOLS.items()}
    for name, symbol in SYMBOLS.items():
        eventually(lambda name=name, last=before[name][-1]: last in stack.rows(name), f"{symbol} so far")  # type: ignore[misc]
    assert again.stop() == 0
    for name, symbol in SYMBOLS.items():
        first, second = sent_by_connection(exchange, symbol)
        stored = stack.rows(name)
        at = stored.index(second[0])
        assert stored[:at] == first[:at], "of the first connection what was read"
        assert stored[at:] == second[: len(stored) - at], "and of the second"
        assert len(stored) - at >= len(before[name]), "all that was sent until it was told to stop"


def test_clickhouse_that_is_killed_has_all_rows_once_when_it_is_back(
    stack: Stack, fleet: Callable[..., Process]
) -> None:
    exchange = stack.exchange("--rate", 100, "--frames", 400)
    process = fleet()
    wait_until_all_collect(process)
    grows(stack, "xrp")
    stack.processes[0].stop(signal.SIGKILL)
    process.wait_for(r"^\w+ +\| ClickHouse at .*; [0-9,]+ rows? waits?$")
    stack.clickhouse()
    for name, symbol in SYMBOLS.items():
        eventually(lambda symbol=symbol: len(exchange.sent(symbol)) == 400, symbol)  # type: ignore[misc]
        assert stack.wait_for_rows(400, name) == sent_rows(exchange, symbol)
    assert process.stop() == 0


def refused(process: Process, times: int) -> None:
    """Wait until xrp was told so often that it cannot run, which is no reason never to start it again."""
    line = "xrp ended with exit code 2: starting it again"
    eventually(lambda: process.output.count(line) >= times, f"{times} refusals\n{process.output}")


def test_a_symbol_that_runs_already_is_refused_until_it_does_no_more_and_the_others_go_on(
    stack: Stack, fleet: Callable[..., Process]
) -> None:
    stack.exchange("--rate", 20)
    alone = fleet("xrp")
    alone.wait_for("xrp .* Subscribed to: sub.deal for XRP_USDT")
    process = fleet()
    process.wait_for(r"^xrp +\| .*xrp\.db is in use: a collector for this table is already running$")
    refused(process, times=4)
    grows(stack, "doge")
    second = fleet("xrp")
    assert second.wait() == 2
    assert second.lines[-1] == "xrp ended with exit code 2, as all did: ending"
    assert alone.stop() == 0
    wait_until_all_collect(process)
    assert process.stop() == 0


def test_what_worked_once_is_started_again_until_it_works_again(stack: Stack, fleet: Callable[..., Process]) -> None:
    exchange = stack.exchange("--rate", 20)
    process = fleet("xrp")
    process.wait_for("xrp .* Subscribed to: sub.deal for XRP_USDT")
    journals = Path(stack.env["JOURNAL_DIR"])
    journals.rename(journals.with_name("away"))
    journals.touch()  # where its folder is not, no journal can be
    (pid,) = collectors(process)
    os.kill(pid, signal.SIGKILL)
    process.wait_for(r"^xrp +\| .*xrp\.db cannot be opened: ")
    refused(process, times=4)
    journals.unlink()
    journals.with_name("away").rename(journals)
    eventually(lambda: len(sent_by_connection(exchange, "XRP_USDT")) == 2, "it collects again")
    grows(stack, "xrp")
    assert process.stop() == 0


def test_nothing_counts_against_a_symbol_after_a_steady_run() -> None:
    settings = load_settings({}, dotenv=None)
    fleet = Fleet(all_symbols(settings)[:1], settings)
    (member,) = fleet._members
    for _ in range(10):
        member.started, member.due = time.monotonic() - 24 * 3600, None
        fleet._ended(member, EXIT_CONFIG)
        assert member.due is not None
        assert member.due <= time.monotonic(), "at once"
    os.set_blocking(fleet._own_out, False)
    assert set(os.read(fleet._own_out, 4096).decode().splitlines()) == {"btc ended with exit code 2: starting it again"}


def test_nobody_waits_for_lines_that_nobody_reads(stack: Stack, fleet: Callable[..., Process]) -> None:
    stack.exchange("--rate", 100)
    env = stack.env | {"STATS_INTERVAL": "0.01"}
    command = [sys.executable, "collect.py"]
    with subprocess.Popen(command, cwd=PROJECT, env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            for name in SYMBOLS:
                eventually(lambda name=name: stack.count(name) > 500, f"500 rows in {name}")  # type: ignore[misc]
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_a_child_has_no_descriptor_of_anothers_and_the_parent_has_one_thread(
    stack: Stack, fleet: Callable[..., Process]
) -> None:
    stack.exchange()
    port = free_port()
    process = fleet(METRICS_PORT=port)
    wait_until_all_collect(process)
    for name in SYMBOLS:
        grows(stack, name)  # so that each has its files and connections
    assert len([*Path(f"/proc/{process.pid}/task").iterdir()]) == 1

    def descriptors(pid: int) -> list[str]:
        return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]

    assert not [target for target in descriptors(process.pid) if ".db" in target]
    shared = []
    for pid, name in zip(collectors(process), SYMBOLS, strict=True):
        found = descriptors(pid)
        assert {Path(target).stem for target in found if ".db" in target} == {name}
        # Figures, exchange, rows, claim; and for a moment another, which asks how many blocks there are.
        assert len([target for target in found if target.startswith("socket:")]) in (4, 5)
        shared.append({target for target in found if target.startswith(("socket:", "pipe:"))})
    assert not shared[0] & shared[1] & shared[2] - {str(Path(f"/proc/{process.pid}/fd/0").readlink())}
    assert process.stop() == 0


def test_where_all_give_up_the_fleet_ends_to_be_started_again(stack: Stack, fleet: Callable[..., Process]) -> None:
    process = fleet(MEXC_WS_URL=f"ws://127.0.0.1:{free_port()}", MAX_ERROR_COUNT=2)
    assert process.wait() == 1
    assert re.search(r"^\w+ ended with exit code 1, as all did: ending$", process.output, re.MULTILINE)


def test_it_ends_with_2_where_it_cannot_run_as_configured(stack: Stack) -> None:
    assert stack.run("collect.py", "nope", SYMBOLS="XRP_USDT").lines == [
        "There is no symbol nope in config.py or SYMBOLS: give some of btc (BTC_USDT), eth (ETH_USDT), sol (SOL_USDT),"
        " xrp (XRP_USDT)"
    ]
    (line,) = stack.run("collect.py").lines
    assert line == "SYMBOLS is empty: name some in .env, such as SYMBOLS=XRP_USDT,DOGE_USDT"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = stack.run("collect.py", SYMBOLS="XRP_USDT", METRICS_PORT=port)
    assert process.lines[0].startswith(f"METRICS_PORT={port} at 127.0.0.1 cannot be used: Address already in use")
    assert {each.wait() for each in stack.processes} == {2}


def test_list_says_what_would_run_and_what_does(stack: Stack, fleet: Callable[..., Process]) -> None:
    stack.exchange()
    process = fleet("xrp")
    eventually(lambda: stack.run("collect.py", "--list").lines[-1].endswith("working, 0 rows wait"), "xrp works")
    listed = stack.run("collect.py", "--list").lines
    the_worst_first = sorted(SYMBOLS.items(), key=lambda item: item[0] == "xrp")
    assert [line.split()[:2] for line in listed] == [[name, symbol] for name, symbol in the_worst_first]
    assert listed[0].endswith("the collector has not reported yet: it waits for the VPN, or is not running")
    health = stack.run("-m", "pipeline.collect.health")
    assert health.wait() == 1
    assert health.lines[0] == "1 of 3 collectors work"
    assert [line.partition(":")[0] for line in health.lines[1:]] == ["doge", "_1000bonk", "xrp"]
    assert process.stop() == 0


# One METRICS_PORT


def test_one_port_has_the_figures_of_all(stack: Stack, fleet: Callable[..., Process]) -> None:
    exchange = stack.exchange("--rate", 100, "--frames", 100)
    port = free_port()
    process = fleet(METRICS_PORT=port)
    wait_until_all_collect(process)

    def ask() -> dict[str, dict[str, float]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                table = found.setdefault(sample.name, {})
                table[sample.labels["table"]] = table.get(sample.labels["table"], 0) + sample.value
        return found

    eventually(lambda: all(value == 100 for value in ask()["mexc_table_rows"].values()), "all rows")
    found = ask()
    assert found["mexc_rows_appended_total"] == dict.fromkeys(SYMBOLS, 100)
    assert found["mexc_collector_up"] == dict.fromkeys(SYMBOLS, 1)
    assert all(value > 1e6 for value in found["process_resident_memory_bytes"].values())
    assert len(found["process_resident_memory_bytes"]) == 3
    assert exchange.sent("XRP_USDT")
    frozen = collectors(process)[1]
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: ask()["mexc_collector_up"] == {"xrp": 1, "doge": 0, "_1000bonk": 1}, "one is frozen")
    os.kill(frozen, signal.SIGCONT)
    eventually(lambda: ask()["mexc_collector_up"]["doge"] == 1, "it answers again")
    os.kill(children(process)[0], signal.SIGKILL)
    process.wait_for("^What prints these lines ended with exit code -9: it was started again$")
    assert ask()["mexc_collector_up"] == dict.fromkeys(SYMBOLS, 1)
    assert process.stop() == 0


def test_figures_are_merged_by_name() -> None:
    text = '# HELP a_total Things\n# TYPE a_total counter\na_total{table="%s"} 1.0\n# HELP p P\n# TYPE p gauge\np 2.0\n'
    labels = {"x": 'symbol="X",table="x"', "y": 'symbol="Y",table="y"', "z": 'symbol="Z",table="z"'}
    assert merged(labels, {"x": text % "x", "y": text % "y"}).splitlines() == [
        "# HELP a_total Things",
        "# TYPE a_total counter",
        'a_total{table="x"} 1.0',
        'a_total{table="y"} 1.0',
        "# HELP p P",
        "# TYPE p gauge",
        'p{symbol="X",table="x"} 2.0',
        'p{symbol="Y",table="y"} 2.0',
        "# HELP mexc_collector_up 1 where the collector has answered",
        "# TYPE mexc_collector_up gauge",
        'mexc_collector_up{symbol="X",table="x"} 1.0',
        'mexc_collector_up{symbol="Y",table="y"} 1.0',
        'mexc_collector_up{symbol="Z",table="z"} 0.0',
    ]

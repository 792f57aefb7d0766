"""What a collector serves to Prometheus against what was sent and stored, and what monitoring/ makes of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from config import PROJECT
from tests.stack import PATIENCE, Process, Stack, eventually, free_port, open_stack

MONITORING = PROJECT / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "collectors.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TYPES = {"t": "tickers", "d": "deals", "dp": "depth", "dl": "dead-letters"}
# What Prometheus itself knows: the state of a target, its name, and that of its job.
OF_PROMETHEUS = {"up", "job", "instance"}
OF_A_FLEET = {"mexc_collector_up"}

# btcdat.py, which tells at its end what it has imported.
TELLING = """
import atexit, sys
from config import BTC_CONFIG
from pipeline.collect.collector import collect
packages = ("prometheus_client", "pandas", "numpy", "pyarrow", "rich", "chdb")
atexit.register(lambda: print("imported:", [name for name in packages if name in sys.modules]))
sys.exit(collect(BTC_CONFIG))
"""


# A statement that takes eight seconds, under the name of a compaction's.
SLEEPING = """
from config import load_settings
from pipeline.store.client import connect
connect(load_settings()).execute("SELECT sum(sleepEachRow(1)) FROM numbers(8) SETTINGS max_block_size = 1",
    query_id="compact mexc_data.btc of another")
"""


class Metrics:
    """A collector that serves metrics, and what they were when last asked."""

    def __init__(self, stack: Stack, table: str, **env: object) -> None:
        self.port = free_port()
        self.collector = stack.collector(table, METRICS_PORT=self.port, **env)
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        self.history: dict[str, list[tuple[dict[str, str], float]]] = {}
        eventually(self._answers, "the metrics answer")

    def ask(self) -> None:
        """Bring `samples` up to date: by name, the labels and the value of each."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        self.samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def of(self, name: str, **labels: str) -> float:
        """Return a figure, as of now."""
        (value,) = self._find(name, labels)
        return value

    def by(self, name: str, label: str) -> dict[str, int]:
        """Return those figures of a name that are not 0, by the values of a label, as of now."""
        self.ask()
        return {labels[label]: int(value) for labels, value in self.samples[name] if value}

    def eventually(self, name: str, value: float, **labels: str) -> None:
        """Wait until a figure has this value at least."""
        eventually(lambda: max(self._find(name, labels), default=-1) >= value, f"{name} {labels} >= {value:g}")

    def _find(self, name: str, labels: dict[str, str]) -> list[float]:
        self.ask()
        return [value for found, value in self.samples.get(name, []) if labels.items() <= found.items()]

    def _answers(self) -> bool:
        assert self.collector.running, self.collector.output
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def by_type(stack: Stack, table: str) -> dict[str, int]:
    return {TYPES[mt]: count for mt, count in stack.query(f"SELECT mt, count() FROM mexc_data.{table} GROUP BY mt")}


def blocks(collector: Process, line: str) -> int:
    """Return the sum of what the statistics blocks say in their lines `line`."""
    return sum(int(count) for count in re.findall(rf"^{line}: (\d+)", collector.output, re.MULTILINE))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    """All that a collector serves once it has compacted its table, and what another one serves that has a history."""
    with open_stack(tmp_path_factory.mktemp("served")) as stack:
        stack.env["HISTORY"] = "1"
        stack.clickhouse()
        stack.setup()
        stack.exchange("--rate", 100)
        metrics = Metrics(stack, "btc", COMPACT_BLOCKS=10, HISTORY=0)
        metrics.eventually("mexc_compactions_total", 1)
        with_history = Metrics(stack, "eth", HISTORY_INTERVAL=1)
        with_history.eventually("mexc_history_last_insert_timestamp_seconds", 1)
        metrics.history = {name: each for name, each in with_history.samples.items() if "_history_" in name}
        # A history that is away shows.
        with_history.eventually("mexc_history_waiting_rows", 1)
        stack.query("RENAME TABLE mexc_data.eth_history TO mexc_data.away")
        with_history.eventually("mexc_history_stuck_seconds", 0.1)
        with_history.eventually("mexc_errors_total", 1, kind="failed_history_insert")
        assert with_history.of("mexc_errors_total", kind="failed_insert") == 0
        yield metrics


# The figures


def test_the_figures_are_those_of_the_frames_and_of_the_table(running: Stack) -> None:
    exchange = running.exchange("--rate", 100, "--frames", 150)
    metrics = Metrics(running, "btc", PING_INTERVAL="0.5")
    eventually(lambda: len(exchange.sent("BTC_USDT")) == 150, "all frames sent")
    exchange.fault("garbage")
    exchange.fault("error")
    metrics.eventually("mexc_errors_total", 1, kind="error_frame")
    metrics.eventually("mexc_frames_total", 1, channel="pong")
    sent = Counter(json.loads(frame)["channel"] for frame in exchange.sent("BTC_USDT")[:150])
    dead = running.wait_for_rows(150 + 8)[150:]
    assert {mt for _, mt, _ in dead} == {"dl"}
    metrics.eventually("mexc_table_rows", running.count())

    frames = metrics.by("mexc_frames_total", "channel")
    assert frames.pop("pong") >= 1
    # Of the garbage, one claims to be a deal; the others have no channel, or an unheard one.
    sent["push.deal"] += 1
    acknowledged = {f"rs.sub.{name}": 1 for name in ("ticker", "deal", "depth.full")}
    assert frames == {**sent, **acknowledged, "rs.error": 1, "other": 6}
    stored = by_type(running, "btc")
    assert metrics.by("mexc_rows_appended_total", "type") == stored
    assert metrics.of("mexc_table_rows") == metrics.of("mexc_insert_rows_sum") == sum(stored.values())
    inserts = running.query("SELECT countIf(rowNumberInBlock() = 0) FROM mexc_data.btc")[0][0]
    assert metrics.of("mexc_insert_rows_count") == metrics.of("mexc_insert_duration_seconds_count") == inserts
    assert metrics.of("mexc_insert_duration_seconds_sum") > 0
    assert metrics.of("mexc_table_small_blocks") == inserts
    assert metrics.of("mexc_journal_waiting_rows") == 0
    assert metrics.of("mexc_rows_lost_total") == metrics.of("mexc_frames_skipped_total") == 0
    assert metrics.of("mexc_connected") == 1
    assert metrics.of("mexc_reconnects_total") == 0
    for name in ("mexc_last_frame_timestamp_seconds", "mexc_last_market_data_timestamp_seconds"):
        assert abs(time.time() - metrics.of(name)) < PATIENCE
    assert metrics.of("mexc_compactions_total") == 0
    assert "mexc_last_compaction_duration_seconds" not in metrics.samples
    assert metrics.of("process_resident_memory_bytes") > 1e6
    own = [labels for name, samples in metrics.samples.items() if name.startswith("mexc_") for labels, _ in samples]
    assert {(labels["symbol"], labels["table"]) for labels in own} == {("BTC_USDT", "btc")}

    assert metrics.collector.stop() == 0
    assert blocks(metrics.collector, "Total Records Appended") == sum(stored.values())
    assert blocks(metrics.collector, "Errors") == 1


def test_a_dropped_connection_is_counted_and_the_next_one_too(running: Stack) -> None:
    exchange = running.exchange("--rate", 50)
    metrics = Metrics(running, "eth")
    metrics.eventually("mexc_rows_appended_total", 1, type="deals")
    exchange.fault("refuse")
    exchange.fault("drop")
    metrics.eventually("mexc_errors_total", 1, kind="dropped_connection")
    metrics.eventually("mexc_errors_total", 1, kind="failed_connect")
    assert metrics.of("mexc_connected") == 0
    assert metrics.of("mexc_reconnects_total") == 0
    exchange.fault("none")
    metrics.eventually("mexc_reconnects_total", 1)
    assert metrics.of("mexc_connected") == 1
    kinds = metrics.by("mexc_errors_total", "kind")
    assert set(kinds) == {"dropped_connection", "failed_connect"}
    assert metrics.collector.stop() == 0
    assert blocks(metrics.collector, "Errors") >= sum(kinds.values())


def test_an_outage_of_clickhouse_shows_and_passes(running: Stack) -> None:
    running.exchange("--rate", 50)
    metrics = Metrics(running, "sol")
    metrics.eventually("mexc_table_rows", 10)
    running.processes[0].stop(signal.SIGKILL)  # ClickHouse
    metrics.eventually("mexc_journal_waiting_rows", 20)
    metrics.eventually("mexc_errors_total", 1, kind="failed_insert")
    metrics.eventually("mexc_journal_stuck_seconds", 0.1)
    frames = metrics.of("mexc_frames_total", channel="push.deal")
    metrics.eventually("mexc_frames_total", frames + 1, channel="push.deal")
    running.clickhouse()
    eventually(lambda: metrics.of("mexc_journal_waiting_rows") < 5, "what waited is stored")
    eventually(lambda: metrics.of("mexc_journal_stuck_seconds") == 0, "nothing is stuck")
    assert metrics.of("mexc_insert_rows_bucket", le="10.0") < metrics.of("mexc_insert_rows_bucket", le="+Inf")
    assert metrics.collector.stop() == 0
    assert running.count("sol") > 20


def test_a_compaction_is_counted(served: Metrics) -> None:
    assert served.of("mexc_compactions_total") >= 1
    assert 0 < served.of("mexc_last_compaction_duration_seconds") < PATIENCE


def test_small_blocks_are_counted_anew_after_a_compaction_by_hand(running: Stack) -> None:
    running.exchange("--rate", 50)
    metrics = Metrics(running, "btc", COMPACT_BLOCKS=100_000)
    metrics.eventually("mexc_table_small_blocks", 150)
    assert running.run("ch_setup.py", "--compact", "btc").wait() == 0

    def are_few() -> bool:
        metrics.ask()
        return any(value < 100 for _, value in metrics.samples.get("mexc_table_small_blocks", []))

    eventually(are_few, "few small blocks")


def test_a_table_that_is_being_compacted_is_not_stuck(running: Stack) -> None:
    running.exchange("--rate", 50)
    metrics = Metrics(running, "btc")
    metrics.eventually("mexc_table_rows", 10)
    assert metrics.of("mexc_table_being_compacted") == 0
    # As another process would that copies for long.
    running.start("-c", SLEEPING)
    running.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00c0ffee")
    metrics.eventually("mexc_table_being_compacted", 1)
    metrics.eventually("mexc_journal_stuck_seconds", 3)
    health = running.run("-m", "pipeline.collect.health", STALE_TIMEOUT=2, PING_INTERVAL=1)
    assert re.fullmatch(r"btc: its table is being compacted, [0-9,]+ rows? waits?", health.output)
    assert health.wait() == 0
    eventually(lambda: metrics.of("mexc_table_being_compacted") == 0, "the collector brings it back")
    metrics.eventually("mexc_table_rows", 100)


def test_rows_that_the_journal_refuses_are_counted(stack: Stack) -> None:
    stack.exchange("--rate", 3000)
    metrics = Metrics(stack, "btc", JOURNAL_MAX_MB=1)
    metrics.eventually("mexc_rows_lost_total", 1)
    metrics.collector.stop(signal.SIGKILL)


# Where they are served, and what that takes


def test_without_a_port_nothing_is_imported_for_it(stack: Stack) -> None:
    for port, imported in ((0, "[]"), (free_port(), "['prometheus_client']")):
        collector = stack.start("-c", TELLING, METRICS_PORT=port, MEXC_WS_URL=f"ws://127.0.0.1:{free_port()}")
        collector.wait_for("Cannot connect to")
        assert collector.stop() == 0
        assert collector.lines[-1] == f"imported: {imported}"


@pytest.mark.parametrize(("host", "elsewhere"), [("", False), ("0.0.0.0", True)])
def test_only_this_machine_is_served_unless_told_otherwise(stack: Stack, host: str, elsewhere: bool) -> None:
    metrics = Metrics(stack, "btc", METRICS_HOST=host, MEXC_WS_URL=f"ws://127.0.0.1:{free_port()}")
    with socket.socket() as probe:  # 127.0.0.2 is the loopback interface, too, but not 127.0.0.1
        assert (probe.connect_ex(("127.0.0.2", metrics.port)) == 0) == elsewhere


def test_a_port_in_use_is_one_line_and_exit_code_2(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        collector = stack.collector("btc", METRICS_PORT=port)
        assert collector.wait() == 2
    assert collector.lines == [
        f"METRICS_PORT={port} at 127.0.0.1 cannot be used: Address already in use; each collector on a machine needs a"
        " port of its own"
    ]


def test_an_address_of_another_machine_is_one_line_and_exit_code_2(stack: Stack) -> None:
    port = free_port()
    collector = stack.collector("btc", METRICS_PORT=port, METRICS_HOST="192.0.2.1")
    assert collector.wait() == 2
    assert len(collector.lines) == 1
    assert collector.lines[0].startswith(f"METRICS_PORT={port} at 192.0.2.1 cannot be used: Cannot assign requested ")


# monitoring/


def expressions() -> dict[str, str]:
    """Return the PromQL of the dashboard and of the alerts, by where it stands."""
    found = {
        f"{panel['id']}{target['refId']}: {panel['title']}": target["expr"] + target["legendFormat"]
        for panel in PANELS
        for target in panel["targets"]
    }
    found["the symbols"] = DASHBOARD["templating"]["list"][1]["definition"]
    alerts = (MONITORING / "prometheus" / "alerts.yml").read_text()
    for name, expression, rest in re.findall(
        r"- alert: (\w+)\n +expr: (?:>-\n)?(.*)\n((?:(?! *- alert).*\n)*)", alerts
    ):
        found[name] = expression + rest
    return found


def test_the_dashboard_and_the_alerts_use_what_is_served(served: Metrics) -> None:
    names = {*served.samples, *served.history} | OF_PROMETHEUS | OF_A_FLEET
    labels = {label for samples in served.samples.values() for found, _ in samples for label in found} | OF_PROMETHEUS
    values = {value for samples in served.samples.values() for found, _ in samples for value in found.values()}
    used = expressions()
    assert len(used) > 30
    for where, text in used.items():
        assert set(re.findall(r"\b(?:mexc|process|up)(?:_\w+)?\b(?=[\[{) ]|$)", text)) <= names, where
        assert set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", text)) <= labels, where
        assert {name for group in re.findall(r"by \(([^)]*)\)", text) for name in group.split(", ")} <= labels, where
        for label, value in re.findall(r'[{,](\w+)=~?"([^"]*)"', text):
            assert label in labels, where
            assert value in values | {"$symbol", "mexc", "mexc-more"}, where


def test_each_figure_is_on_the_dashboard_and_explained(served: Metrics) -> None:
    explained = (MONITORING / "README.md").read_text()
    expected = {re.sub("_(bucket|sum|count)$", "", name) for name in served.samples if name.startswith("mexc_")}
    assert len(expected) == 22
    expected |= set(served.history)
    assert len(expected) == 25
    for name in expected:
        assert any(name in target["expr"] for panel in PANELS for target in panel["targets"]), name
        assert f"`{name}`" in explained
    assert set(re.findall(r"`(mexc_\w+)`", explained)) == expected | OF_A_FLEET


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # from where on a datasource is an object
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        sources: list[Any] = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "symbol"]


def test_prometheus_asks_every_collector_of_docker_compose() -> None:
    """Also one that is added to docker-compose.yml, and to no other file: its name comes with the anchor."""
    compose = (PROJECT / "docker-compose.yml").read_text()
    port = re.findall(r"^#METRICS_PORT=(\d+)$", (PROJECT / ".env.example").read_text(), re.MULTILINE)
    ((asked, more),) = re.findall(
        r"names: \[(.+)\]\n +type: A\n +port: (?:\d+)\n(?:.*\n)* +- (\S+)\n$",
        (MONITORING / "prometheus" / "prometheus.yml").read_text(),
    )
    anchor, services = re.split(r"^services:\n", compose.partition("x-client: &client\n")[2], flags=re.MULTILINE)
    assert re.findall(r"networks:\n    default:\n      aliases:\n        - (\w+)", anchor) == [asked]
    own = re.findall(
        r"^  ([\w-]+):.*\n(?:    .*\n)*?    networks:\n      default: (.*?)(?: #.*)?\n", services, re.MULTILINE
    )
    assert own == [("more-client", "{}")]
    assert more == f"more-client:{port[0]}"


def test_docker_compose_publishes_nothing_to_others_and_monitoring_only_on_demand() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    services = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n|\n)+)", text.partition("\nservices:\n")[2], re.MULTILINE))
    published = re.findall(r'^ +- "(\S*):\d+"', text, re.MULTILINE)
    assert len(published) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}", address) for address in published)
    for name, service in services.items():
        assert ("profiles: [monitoring]" in service) == (name in ("prometheus", "grafana"))
        assert ("ports:" in service) == (name in ("clickhouse", "prometheus", "grafana"))
    for folder in re.findall(r"- \./(monitoring/\S+?):", text):
        assert (PROJECT / folder).is_dir()


@contextmanager
def open_prometheus(directory: Path, scraped: int) -> Iterator[Callable[..., Any]]:
    """Run Prometheus with the project's files, but every second and on a collector at port `scraped`.

    Yields what asks its API.
    """
    text = (MONITORING / "prometheus" / "prometheus.yml").read_text()
    text = re.sub(r"_interval: \d+s", "_interval: 1s", text)
    static = f"static_configs: [{{targets: ['127.0.0.1:{scraped}']}}]\n"
    text = re.sub(r"(?:dns_sd|static)_configs:.*\n(?: {6,}.*\n)+", static, text)
    (directory / "prometheus.yml").write_text(text)
    shutil.copy(MONITORING / "prometheus" / "alerts.yml", directory)
    address = f"127.0.0.1:{free_port()}"
    config = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]

    def ask(what: str, **parameters: str) -> Any:
        url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)["data"]

    def is_ready() -> bool:
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        with suppress(OSError):
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=PATIENCE).close()
            return True
        return False

    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(["prometheus", *config, f"--web.listen-address={address}"], stderr=log)
    try:
        eventually(is_ready, "Prometheus is ready")
        yield ask
    finally:
        process.kill()
        process.wait()


@pytest.mark.prometheus
def test_prometheus_itself_takes_it_all(running: Stack, tmp_path: Path) -> None:
    running.env["HISTORY"] = "1"
    running.setup()
    running.exchange("--rate", 100)
    metrics = Metrics(running, "btc", HISTORY_INTERVAL=1)
    subprocess.run(["promtool", "check", "config", MONITORING / "prometheus" / "prometheus.yml"], check=True)
    with open_prometheus(tmp_path, metrics.port) as ask:

        def value(expression: str) -> float:
            result = ask("query", query=expression)["result"]
            return float(result[0]["value"][1]) if result else math.nan

        def alerts() -> dict[str, str]:
            return {alert["labels"]["alertname"]: alert["state"] for alert in ask("alerts")["alerts"]}

        eventually(lambda: value('sum(rate(mexc_rows_appended_total{type="deals"}[10s]))') > 1, "a rate of deals")
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} <= set(expressions())
        assert {rule["health"] for rule in rules} == {"ok"}
        assert alerts() == {}
        for where, target in ((panel["title"], target) for panel in PANELS for target in panel["targets"]):
            expression = target["expr"].replace("$symbol", ".+").replace("$__rate_interval", "10s")
            if expression.endswith("> 0") or "compaction" in expression:
                ask("query", query=expression)  # raises where it is none
            else:
                eventually(lambda query=expression: ask("query", query=query)["result"], where)  # type: ignore[misc]
        assert metrics.collector.stop() == 0
        eventually(lambda: alerts() == {"CollectorDown": "pending"}, "an alert")


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["alerts-first-sample.yml", "alerts-later.yml"])
def test_an_alert_sees_what_a_counter_has_when_it_is_first_asked(name: str, tmp_path: Path) -> None:
    for file in (PROJECT / "tests" / "data" / "deployment" / name, MONITORING / "prometheus" / "alerts.yml"):
        shutil.copy(file, tmp_path)
    command = ["promtool", "test", "rules", name]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

"""docker-compose.yml and the image as a customer runs them, on a Docker host and an internet of their own.

The tests are the life of one deployment and run in this order; what was lost in it is asked at the end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from config import Settings, all_symbols
from pipeline.messages import DEAL, parse_frame
from tests.docker.dockerlab import CLICKHOUSE_IMAGE, HOST, PASSWORD, USER, Deployment, wait

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

DATABASE_PASSWORD, COLLECTOR_PASSWORD = "0123456789abcdef", "fedcba9876543210"
CLIENTS = {"btc-client": "btc", "eth-client": "eth", "sol-client": "sol"}
SYMBOLS = "XRP_USDT"  # more-client's
README_COMMAND = "exec -T {} curl -s https://ipinfo.io/ip"  # -T: there is no terminal
IN_FLIGHT = 20  # rows at the end of a connection that the exchange sent and nobody read
tunnel_losses: list[int] = []  # when, ms since the epoch; what is sent on from then on, nobody can read


def configure(project: Deployment, **settings: str) -> None:
    passwords = {"CLICKHOUSE_PASSWORD": DATABASE_PASSWORD, "CLICKHOUSE_COLLECTOR_PASSWORD": COLLECTOR_PASSWORD}
    project.configure(**passwords, CLICKHOUSE_IMAGE=CLICKHOUSE_IMAGE, **settings)


def up(project: Deployment) -> None:
    """Do what the README says, and wait until all is well."""
    project.compose("up -d")
    for service in ("clickhouse", *CLIENTS):
        wait_for_health(project, service)


def wait_for_health(project: Deployment, service: str) -> None:
    try:
        wait(f"{service} to be healthy", lambda: project.health(service) == "healthy")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{project.compose(f'logs --tail 50 {service}')}") from None


def wait_for_more(project: Deployment, *tables: str) -> None:
    """Wait until the tables have records that they do not have now."""
    before = project.records()
    wait(f"more than {before}", lambda: all(project.records().get(name, 0) > before.get(name, 0) for name in tables))


def test_up_makes_everything_run(project: Deployment) -> None:
    configure(project, NORDVPN_USER=USER, NORDVPN_PASS=PASSWORD, METRICS_PORT="9101", SYMBOLS=SYMBOLS)
    up(project)
    setup = project.container("setup")["State"]
    assert isinstance(setup, dict)
    assert (setup["Status"], setup["ExitCode"]) == ("exited", 0)
    assert "Creating append-only btc table" in project.compose("logs setup")
    for service, table in CLIENTS.items():
        log = project.compose(f"logs {service}")
        assert "VPN connected successfully" in log
        assert f"Subscribed to: sub.ticker for {table.upper()}_USDT" in log


def test_each_client_has_its_own_address(project: Deployment) -> None:
    addresses = {service: project.compose(README_COMMAND.format(service)) for service in CLIENTS}
    assert addresses == {"btc-client": "10.8.1.2", "eth-client": "10.8.2.2", "sol-client": "10.8.3.2"}
    assert HOST not in addresses.values()


def test_records_arrive_in_all_tables(project: Deployment) -> None:
    wait_for_more(project, *CLIENTS.values())
    report = project.python("verif.py")
    assert report.returncode == 0, report.stderr
    assert "Total ClickHouse volume size: " in report.stdout


def test_more_symbols_are_collected_behind_an_exit_of_their_own(project: Deployment) -> None:
    wait_for_health(project, "more-client")
    wait_for_more(project, "xrp")
    assert "xrp        | Subscribed to: sub.deal for XRP_USDT" in project.compose("logs more-client")
    assert project.compose(README_COMMAND.format("more-client")) == "10.8.5.2"


def test_an_empty_volume_is_small(project: Deployment) -> None:
    volume = project.volume("clickhouse_data")
    data = sum(
        file.stat().st_size
        for config in all_symbols(Settings(symbols=SYMBOLS))
        for file in volume.glob(f"store/*/{config['uuid']}/*")
    )
    everything = sum(file.stat().st_size for file in volume.rglob("*") if file.is_file())
    assert data > 0
    assert everything - data < 4 * 1024 * 1024


def test_the_doctor_sees_all_of_it(project: Deployment) -> None:
    said = project.python("verif.py", "--doctor").stdout
    for service, address in {"btc-client": "10.8.1.2", "eth-client": "10.8.2.2", "sol-client": "10.8.3.2"}.items():
        assert re.search(rf"^\[ok\] +{service}: running; \d+ rows? waiting; .* ago$", said, re.MULTILINE), said
        assert re.search(rf"^\[ok\] +{service}: DNS, (REST, )?WebSocket reached, as {address}$", said, re.MULTILINE), (
            said
        )
    for part in ("[ok]     setup: done", "[ok]     clickhouse: running", "[ok]     compaction: running", "Docker 2"):
        assert part in said
    assert not [secret for secret in (USER, PASSWORD, DATABASE_PASSWORD, COLLECTOR_PASSWORD) if secret in said]


def test_the_collector_is_an_ordinary_user(project: Deployment) -> None:
    processes = project.docker("top", str(project.container("btc-client")["Id"]), "-eo", "pid,uid,args").splitlines()
    assert [line.split()[1] for line in processes if "python3 btcdat.py" in line and "entrypoint" not in line] == [
        "1000"
    ]


def python_in(project: Deployment, service: str, script: str, user: str = "collector") -> str:
    """Run Python in a service's container, with its environment; return what it printed, errors included."""
    identity = str(project.container(service)["Id"])
    return project.docker("exec", "--user", user, identity, "python3", "-c", script, check=False)


TRY_TO_WRITE = """
import os
for folder, _, files in os.walk("/"):
    if folder.startswith(("/proc", "/sys")):
        continue
    try:
        with open(os.path.join(folder, ".tried"), "w"):
            os.unlink(os.path.join(folder, ".tried"))
        print(folder)
    except OSError:
        pass
    for name in files:
        if os.access(os.path.join(folder, name), os.W_OK) and not folder.startswith("/dev"):  # devices
            print(os.path.join(folder, name))
"""


def test_a_collector_can_write_nowhere_but_to_its_volume(project: Deployment) -> None:
    found = python_in(project, "btc-client", TRY_TO_WRITE).splitlines()
    assert "/journal" in found
    assert [path for path in found if path.split("/")[1] != "journal"] == []


def test_a_tool_can_write_nowhere(project: Deployment) -> None:
    """Its root could, were the file system not read-only; what Docker keeps in memory is left."""
    found = python_in(project, "compaction", TRY_TO_WRITE, "root").splitlines()
    assert {"/".join(path.split("/")[:3]) for path in found} <= {"/dev", "/dev/shm", "/dev/mqueue", "/dev/pts"}


def test_no_process_can_gain_rights(project: Deployment) -> None:
    status = "print(open('/proc/self/status').read())"
    for service in ("compaction", *CLIENTS):
        said = python_in(project, service, status)
        assert "NoNewPrivs:\t1" in said
        assert "CapEff:\t0000000000000000" in said
        limit = project.container(service)["HostConfig"]
        assert isinstance(limit, dict)
        assert limit["PidsLimit"] == 200


def test_the_servers_password_reaches_no_collector(project: Deployment) -> None:
    for service in CLIENTS:
        assert DATABASE_PASSWORD not in json.dumps(project.container(service))


DROP = """
from config import load_settings
from pipeline.store.client import connect
connect(load_settings()).execute("{} TABLE mexc_data.btc")
"""


def test_a_collector_cannot_drop_a_table(project: Deployment) -> None:
    """The stand-in for the server has one user at a time, so for once it is the collectors'."""
    project.environ["ONLY_COLLECTOR"] = "1"
    project.compose("up -d clickhouse")
    wait_for_health(project, "clickhouse")
    for service in CLIENTS:
        wait_for_health(project, service)
    for word in ("DROP", "TRUNCATE"):
        assert "Not enough privileges" in python_in(project, "btc-client", DROP.format(word))
    del project.environ["ONLY_COLLECTOR"]
    project.compose("up -d clickhouse")
    wait_for_health(project, "clickhouse")
    wait_for_more(project, *CLIENTS.values())


def test_a_proxy_of_dockers_is_in_nobodys_way(project: Deployment) -> None:
    project.set_proxies(
        httpProxy="http://192.0.2.1:1", httpsProxy="http://192.0.2.1:1", noProxy="nordvpn.com,nordcdn.com"
    )
    project.compose("up -d --force-recreate clickhouse btc-client")
    for service in ("clickhouse", "btc-client"):
        assert "http_proxy=http://192.0.2.1:1" in json.dumps(project.container(service)), "Docker has not told it"
        wait_for_health(project, service)
    processes = project.docker("top", str(project.container("btc-client")["Id"]), "-eo", "pid,args").splitlines()
    project.set_proxies()
    (collector,) = (line.split()[0] for line in processes if line.split()[1:] == ["python3", "btcdat.py"])
    assert b"proxy" not in Path(f"/proc/{collector}/environ").read_bytes().lower()
    project.compose("up -d --force-recreate clickhouse btc-client")
    wait_for_health(project, "btc-client")


def test_nothing_secret_is_in_the_image(project: Deployment) -> None:
    history = project.docker("history", "--no-trunc", "mexc-pipeline") + project.docker("inspect", "mexc-pipeline")
    assert PASSWORD not in history
    files = project.docker(
        "run", "--rm", "--network", "none", "--entrypoint", "find", "mexc-pipeline", "/app", "-type", "f"
    )
    assert "/app/btcdat.py" in files
    assert not [name for name in files.splitlines() if ".env" in name or "/tests/" in name]


def test_ports_are_open_to_this_host_only(project: Deployment) -> None:
    ports = project.docker("port", str(project.container("clickhouse")["Id"]))
    assert sorted(ports.split("\n")) == ["", "8123/tcp -> 127.0.0.1:8123", "9000/tcp -> 127.0.0.1:9000"]


def test_prometheus_finds_all_collectors_by_one_name(project: Deployment) -> None:
    """As it asks for them: of several containers with a name, Docker tells all addresses."""
    found = python_in(project, "compaction", "import socket; print(*socket.gethostbyname_ex('collectors')[2])").split()
    networks = [project.container(service)["NetworkSettings"] for service in CLIENTS]
    addresses = [next(iter(each["Networks"].values()))["IPAddress"] for each in networks]  # type: ignore[index]
    assert sorted(found) == sorted(addresses)


def test_metrics_are_for_the_network_of_the_containers(project: Deployment) -> None:
    for service, table in CLIENTS.items():
        metrics = project.compose(f"exec -T clickhouse wget -q -T 10 -O - http://{service}:9101/metrics")
        assert f'mexc_connected{{symbol="{table.upper()}_USDT",table="{table}"}} 1.0' in metrics
        assert project.docker("port", str(project.container(service)["Id"])) == ""


def test_clickhouse_is_restarted(project: Deployment) -> None:
    project.compose("restart clickhouse")
    wait_for_health(project, "clickhouse")
    wait_for_more(project, *CLIENTS.values())


def test_a_client_is_restarted(project: Deployment) -> None:
    project.compose("restart btc-client")
    wait_for_more(project, "btc")
    assert project.compose(README_COMMAND.format("btc-client")) == "10.8.1.2"


def test_a_lost_tunnel_restarts_the_client_with_another_server(project: Deployment) -> None:
    processes = project.docker("top", str(project.container("btc-client")["Id"]), "-eo", "pid,comm").splitlines()
    tunnel_losses.append(time.time_ns() // 1_000_000)
    os.kill(next(int(line.split()[0]) for line in processes if line.endswith("openvpn")), signal.SIGKILL)
    wait("the container to be started again", lambda: project.container("btc-client")["RestartCount"] == 1)
    wait("another address", lambda: project.compose(README_COMMAND.format("btc-client"), check=False) == "10.8.4.2")
    assert "the tunnel to us1001.nordvpn.com is lost" in project.compose("logs btc-client")
    wait_for_more(project, "btc")


def test_down_and_up_keep_the_data(project: Deployment) -> None:
    before = project.records()
    project.compose("down")
    assert project.docker("ps", "--all", "--quiet") == ""
    up(project)
    after = project.records()
    assert all(after[name] >= before[name] > 0 for name in CLIENTS.values())
    assert "Keeping append-only btc table" in project.compose("logs setup")
    wait_for_more(project, *CLIENTS.values())


def test_nothing_was_lost(project: Deployment, exchange_log: Path) -> None:
    project.compose("stop more-client " + " ".join(CLIENTS))
    report = json.loads(project.python("verif.py", "--json").stdout)
    frames = [json.loads(line) for line in exchange_log.read_text().splitlines()]
    for config, table in zip(all_symbols(Settings(symbols=SYMBOLS)), report["tables"], strict=True):
        files = project.volume("clickhouse_data") / "store" / config["uuid"][:3] / config["uuid"]
        assert table["data_bin"] == (files / "data.bin").stat().st_size
        assert table["index_mrk"] == (files / "index.mrk").stat().st_size
        rows = project.rows(table["name"])
        assert len(rows) == table["records"]
        assert_complete(rows, [frame for frame in frames if frame["symbol"] == config["symbol"]])


def assert_complete(rows: list[tuple[int, str, str]], frames: list[dict[str, Any]]) -> None:
    """Each frame that a client was sent is in the table once, in order, but for the last ones of a connection.

    The others are deals that were made while nobody was connected (connection 0), and later asked for.
    """
    stored = Counter(rows)
    missed_deals: Counter[str] = Counter()
    connections: dict[int, list[tuple[int, str, str]]] = {}
    for frame in frames:
        found = [row[:3] for row in parse_frame(frame["frame"], frame["symbol"], 0).rows]
        if frame["conn"]:
            connections.setdefault(frame["conn"], []).extend(found)
        else:
            missed_deals.update(m for _, _, m in found)
    assert connections
    for sent in connections.values():
        taken = 0
        while taken < len(sent) and stored[sent[taken]]:
            stored[sent[taken]] -= 1
            taken += 1
        lost = [ts for ts, _, _ in sent[taken:] if not any(sent[0][0] < loss <= ts for loss in tunnel_losses)]
        assert len(lost) <= IN_FLIGHT, f"{len(lost)} of {len(sent)} rows are missing, from {sent[taken]}"
        missed_deals.update(m for _, mt, m in sent[taken:] if mt == DEAL)
    assert {mt for _, mt, _ in +stored} <= {DEAL}
    assert Counter(m for _, _, m in (+stored).elements()) <= missed_deals


def test_without_credentials_it_runs_and_says_so(project: Deployment) -> None:
    configure(project, TUN_DEVICE="/dev/null")  # as on a host without /dev/net/tun
    project.compose("up -d btc-client")
    wait_for_health(project, "btc-client")
    assert "No VPN credentials provided, running without VPN" in project.compose("logs btc-client")
    assert project.compose(README_COMMAND.format("btc-client")) == HOST
    wait_for_more(project, "btc")


def test_credentials_can_be_kept_out_of_docker_inspect(project: Deployment) -> None:
    secrets = project.directory / "secrets"
    secrets.mkdir(mode=0o700)
    for name, text in {"nordvpn_user": USER, "nordvpn_pass": PASSWORD}.items():
        (secrets / name).write_text(text)
        (secrets / name).chmod(0o600)
    configure(project, NORDVPN_USER_FILE="secrets/nordvpn_user", NORDVPN_PASS_FILE="secrets/nordvpn_pass")
    assert_behind_vpn_without_showing_it(project)
    configure(project)  # and as earlier versions had it
    project.environ["COMPOSE_FILE"] += ":docker-compose.secrets.yml"
    assert_behind_vpn_without_showing_it(project)


def assert_behind_vpn_without_showing_it(project: Deployment) -> None:
    project.compose("up -d --force-recreate btc-client")
    wait_for_health(project, "btc-client")
    assert project.compose(README_COMMAND.format("btc-client")) == "10.8.4.2"
    assert PASSWORD not in json.dumps(project.container("btc-client"))

"""verif.py --doctor on set-ups that are broken, each in one way: it names what is, and what to do.

ClickHouse, the exchange and the collectors are real; what Docker says is played, as it was seen to say it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from config import load_settings
from pipeline.show import doctor
from pipeline.show.doctor import Line, examine
from pipeline.status import Status
from tests.stack import Stack, eventually, free_port, open_stack

SECRETS = {
    "CLICKHOUSE_PASSWORD": "of the tests",
    "CLICKHOUSE_COLLECTOR_PASSWORD": "fedcba9876543210",
    "NORDVPN_USER": "service-user",
    "NORDVPN_PASS": "service-password",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("doctor")) as opened:
        opened.clickhouse()
        opened.setup()
        opened.exchange("--rate", 50)
        yield opened


class Patient:
    """An installation that is well until a test breaks it: a folder with .env, and a Docker that plays along."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name in ("bash", "cat"):
            found = shutil.which(name)
            assert found
            (self.bin / name).symlink_to(found)
        self.environ = stack.env | {"PATH": str(self.bin), "CLICKHOUSE_PASSWORD": "of the tests"}
        self.environ["JOURNAL_DIR"] = str(directory / "journal")
        self.env("".join(f"{name}={value}\n" for name, value in SECRETS.items()))
        self.containers: list[dict[str, Any]] = []
        self.answers = {"version": "echo 26.1.5", "compose": "echo 2.26.1"}
        self.probes: dict[str, dict[str, Any]] = {}

    def env(self, text: str, mode: int = 0o600) -> None:
        path = self.directory / ".env"
        path.write_text(text)
        path.chmod(mode)

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{self.bin}/bash\n{script}\n")
        path.chmod(0o755)

    def container(self, service: str, log: str = "", probe: dict[str, Any] | None = None, **state: Any) -> None:
        """Add a container; `probe` is what differs from one that reaches everything."""
        self.containers.append(
            {
                "Id": service,
                "Name": f"/{service}-1",
                "RestartCount": 0,
                "Config": {"Labels": {"com.docker.compose.service": service}},
                "State": {"Status": "running", "ExitCode": 0, "OOMKilled": False} | state,
            }
        )
        (self.directory / f"{service}.log").write_text(log)
        reached = {"dns": "", "rest": "", "websocket": "", "clock": 0.0, "address": ""} | (probe or {})
        (self.directory / f"{service}.probe").write_text(json.dumps(reached))

    def look(self) -> list[Line]:
        (self.directory / "containers").write_text(json.dumps(self.containers))
        answers = "".join(f"{name}) {script} ;;\n" for name, script in self.answers.items())
        ids = " ".join(each["Id"] for each in self.containers)
        self.command(
            "docker",
            f"cd {self.directory}\ncase $1 in\n{answers}"
            f"ps) echo {ids} ;;\n"
            'inspect) cat containers ;;\nlogs) cat "$4.log" ;;\n'
            'exec) if [[ $2 == --user ]]; then cat "$4.probe"; else exit 1; fi ;;\n'
            "*) exit 1 ;;\nesac",
        )
        return examine(self.directory, self.environ)


@pytest.fixture
def patient(stack: Stack, tmp_path: Path) -> Patient:
    return Patient(stack, tmp_path)


def complaints(patient: Patient) -> list[str]:
    found = [line.text for line in patient.look() if line.is_well is False]
    # What all of them share: this machine has no way to the internet, and perhaps no tun.
    return [text for text in found if not text.startswith("/dev/net/tun")]


def test_who_is_well_has_no_complaints(patient: Patient) -> None:
    patient.container("clickhouse")
    patient.container("setup", Status="exited")
    patient.container("btc-client", probe={"address": "198.51.100.1"})
    patient.container("eth-client", probe={"address": "198.51.100.2"})
    assert complaints(patient) == []
    said = "\n".join(map(str, patient.look()))
    for part in (
        "[ok]     VPN credentials",
        "Docker 26.1.5",
        "docker compose 2.26.1",
        "From here: DNS, REST, WebSocket reached",
        "btc-client: DNS, REST, WebSocket reached, as 198.51.100.1",
        "[ok]     Table btc: 0 rows",
        "[ok]     ClickHouse 26.",
        "setup: done",
    ):
        assert part in said
    assert not [secret for secret in SECRETS.values() if secret in said]


# In the order of the table in DEPLOYMENT.md


def test_a_password_that_is_missing(patient: Patient) -> None:
    patient.env("NORDVPN_USER=\nNORDVPN_PASS=''\nCLICKHOUSE_PASSWORD=\r\n")
    assert complaints(patient) == [
        ".env: CLICKHOUSE_PASSWORD is not in it: run ./setup.sh",
        ".env: CLICKHOUSE_COLLECTOR_PASSWORD is not in it: run ./setup.sh",
    ]
    assert any("none, so containers run without VPN" in line.text for line in patient.look())


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        ("me@example.com", "x", "an e-mail address is the account's; service credentials are needed"),
        ("x", "", "one is set without the other"),
    ],
)
def test_credentials_that_cannot_do(patient: Patient, user: str, password: str, said: str) -> None:
    passwords = "CLICKHOUSE_PASSWORD=x\nCLICKHOUSE_COLLECTOR_PASSWORD=x\n"
    patient.env(f"{passwords}NORDVPN_USER={user}\nNORDVPN_PASS={password}\n")
    (found,) = complaints(patient)
    assert said in found


def test_an_env_that_others_may_read(patient: Patient) -> None:
    patient.env((patient.directory / ".env").read_text(), 0o644)
    assert complaints(patient) == [".env: others may read it (mode 644): chmod 600 .env"]


def test_a_setting_that_cannot_be_used(patient: Patient) -> None:
    patient.environ["PING_INTERVAL"] = "soon"
    assert "PING_INTERVAL=soon is not a number" in complaints(patient)


@pytest.mark.parametrize(
    ("answers", "legacy", "said"),
    [
        ({"version": "exit 1"}, "", "Docker does not answer"),
        ({"compose": "exit 1"}, "", "Docker Compose is not installed"),
        ({"compose": "exit 1"}, "echo 1.29.2", "docker-compose 1.29.2 cannot replace containers with Docker 26.1.5"),
    ],
)
def test_docker_that_cannot_do(patient: Patient, answers: dict[str, str], legacy: str, said: str) -> None:
    patient.answers |= answers
    if legacy:
        patient.command("docker-compose", legacy)
    (found,) = complaints(patient)
    assert said in found


def test_a_tun_that_is_missing(patient: Patient) -> None:
    patient.env((patient.directory / ".env").read_text() + "TUN_DEVICE=/dev/there-is-none\n")
    (found,) = complaints(patient)
    assert found.startswith("/dev/there-is-none is missing: sudo modprobe tun")


def test_a_vpn_by_credentials_in_files_needs_a_tun(patient: Patient) -> None:
    patient.env("NORDVPN_USER_FILE=secrets/user\nNORDVPN_PASS_FILE=secrets/pass\nTUN_DEVICE=/dev/null\n")
    assert "TUN_DEVICE=/dev/null, but a VPN needs /dev/net/tun: take it out of .env" in complaints(patient)


@pytest.mark.parametrize(
    "log",
    [
        "VPN authentication failed - check NordVPN credentials",
        "VPN: no kill switch, so no collector: the rules cannot be loaded (cap_add: NET_ADMIN is needed)",
        "VPN: https://api.nordvpn.com/v1: curl: (6) Could not resolve host: api.nordvpn.com",
        "VPN: /dev/net/tun is missing: the container needs devices: /dev/net/tun",
        "Cannot connect to wss://contract.mexc.com/edge: timed out",
        "ClickHouse at clickhouse:9000 refuses user collector: check CLICKHOUSE_USER and CLICKHOUSE_PASSWORD",
        "Table mexc_data.btc does not exist: run ch_setup.py",
        "ClickHouse at clickhouse:9000 reports error 33: Cannot read all data",
    ],
)
def test_a_container_that_says_what_is_wrong(patient: Patient, log: str) -> None:
    patient.container("btc-client", f"starting\n{log}\nVPN: trying again in 5 s\n", Health={"Status": "unhealthy"})
    assert complaints(patient) == [f"btc-client: running, unhealthy: {log}"]


def test_a_container_that_ran_out_of_memory(patient: Patient) -> None:
    patient.container("clickhouse", Status="restarting", ExitCode=137)
    (found,) = complaints(patient)
    assert found.startswith("clickhouse: out of memory, exit code 137: compact, or set FLUSH_INTERVAL")


def test_a_container_that_is_about_to_reach_its_limit(patient: Patient) -> None:
    patient.container("clickhouse")
    patient.answers["stats"] = "echo 'clickhouse-1 97.30%'; echo 'of-somebody-else 99.00%'"
    (found,) = complaints(patient)
    assert found.startswith("clickhouse-1 takes 97.30% of its memory limit")


def test_a_container_that_cannot_get_out(patient: Patient) -> None:
    patient.container("btc-client", probe={"websocket": "wss://contract.mexc.com/edge: timed out"})
    assert complaints(patient) == ["btc-client, WebSocket fails: wss://contract.mexc.com/edge: timed out"]


def test_two_containers_with_one_exit(patient: Patient) -> None:
    for service in ("btc-client", "eth-client"):
        patient.container(service, probe={"address": "198.51.100.1"})
    (found,) = complaints(patient)
    assert found.startswith("btc-client and eth-client leave by one address, 198.51.100.1")


def test_a_port_where_nothing_or_something_else_is(patient: Patient, stack: Stack) -> None:
    patient.environ["CLICKHOUSE_PORT"] = str(free_port())
    (found,) = complaints(patient)
    assert "cannot be reached: connection refused" in found
    patient.environ["CLICKHOUSE_PORT"] = stack.env["MEXC_WS_URL"].rpartition(":")[2].partition("/")[0]
    (found,) = complaints(patient)
    assert "CLICKHOUSE_PORT" in found or "TLS" in found


def test_a_password_that_is_refused(patient: Patient) -> None:
    patient.environ["CLICKHOUSE_PASSWORD"] = "another"
    (found,) = complaints(patient)
    assert "refuses user default: check CLICKHOUSE_USER (" in found


def test_tables_that_are_missing(patient: Patient) -> None:
    patient.environ["CLICKHOUSE_DATABASE"] = "nowhere"
    assert complaints(patient) == [
        f"Table {name} does not exist: run ch_setup.py, or docker compose up -d setup" for name in ("btc", "eth", "sol")
    ]


def test_an_exchange_that_is_away(patient: Patient) -> None:
    patient.environ["MEXC_WS_URL"] = f"ws://127.0.0.1:{free_port()}/edge"
    patient.environ["MEXC_REST_URL"] = "http://no-such-host.invalid"
    rest, websocket = complaints(patient)
    assert rest.startswith("From here, REST fails: http://no-such-host.invalid/")
    assert websocket.startswith(f"From here, WebSocket fails: {patient.environ['MEXC_WS_URL']}: ")


@pytest.mark.parametrize(("seconds", "way"), [(3600, "1.0 h ahead of"), (-90, "behind")])
def test_a_clock_that_is_wrong(patient: Patient, monkeypatch: pytest.MonkeyPatch, seconds: int, way: str) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    (found,) = [text for text in complaints(patient) if "clock" in text]
    assert way.split()[-1] in found
    assert "timedatectl set-ntp true" in found


def test_logs_of_the_server_that_outgrow_the_data(
    patient: Patient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.query("CREATE TABLE system.query_log (a String) ENGINE = MergeTree ORDER BY a")
    stack.query("INSERT INTO system.query_log SELECT randomString(1000) FROM numbers(1000)")
    monkeypatch.setattr(doctor, "_LOGS", 100_000)
    (found,) = complaints(patient)
    assert found.startswith("ClickHouse's own logs take ")
    stack.query("DROP TABLE system.query_log SYNC")


def test_a_disk_that_is_full(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_FREE", 1 << 60)
    assert [text.split(":")[0] for text in complaints(patient)] == [
        "Disk of this folder",
        "Disk of journals",
        "ClickHouse's disk",
    ]


def test_collectors_that_run_here(patient: Patient, stack: Stack) -> None:
    collector = stack.collector(JOURNAL_DIR=patient.environ["JOURNAL_DIR"])
    stack.wait_for_rows(20)
    status = Path(patient.environ["JOURNAL_DIR"]) / "btc.status.json"
    eventually(status.exists, "a status")
    assert complaints(patient) == []
    said = "\n".join(map(str, patient.look()))
    assert "[ok]     Collector of btc: working" in said
    assert "Journal of btc: " in said
    assert " ago" in said
    collector.stop()
    status.write_text(json.dumps(json.loads(status.read_text()) | {"written": 1.0}))
    (found,) = complaints(patient)
    assert found.startswith("Collector of btc: the collector has not reported for ")


def test_one_who_runs_collectors_without_docker_need_not_have_it(patient: Patient) -> None:
    patient.env("".join(f"{name}={value}\n" for name, value in SECRETS.items() if "NORDVPN" not in name))
    patient.answers["version"] = "exit 1"
    (found,) = complaints(patient)
    assert found.startswith("Docker does not answer")
    status = Status(time.time() - 20, 0.0, 0.0, 0.0, 1, journal_full=False, channel_ages={"push.ticker": 100.0})
    journal = Path(patient.environ["JOURNAL_DIR"])
    journal.mkdir()
    (journal / "btc.status.json").write_text(json.dumps(asdict(status)))
    (journal / "btc.db").touch()
    assert complaints(patient) == []
    said = "\n".join(map(str, patient.look()))
    assert "[note]   Docker does not answer" in said
    assert re.search(r"Journal of btc: 0B; 1 row waiting; push.ticker 2 min [0-9]+ s ago", said), "as of now"


def test_the_command_tells_it_and_its_exit_code(stack: Stack) -> None:
    doctor = stack.run("verif.py", "--doctor", CLICKHOUSE_PASSWORD="another")
    assert doctor.wait() == 1
    assert any(line.startswith("[wrong]  ClickHouse at ") for line in doctor.lines)
    assert "another" not in doctor.output
    both = stack.run("verif.py", "--doctor", "--json")
    assert both.wait() == 2
    assert load_settings(stack.env, dotenv=None).clickhouse_password not in doctor.output

"""One look at everything that was ever wrong with an installation, a line each, with what to do about it.

In: the project's folder, the settings, Docker where there is one. Out: lines, for pasting into a report: no password is
in them. Promise: it changes nothing, and takes some seconds, whatever does not answer.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from config import ConfigError, Settings, SymbolConfig, all_symbols, load_settings
from pipeline.human import human_size, length, many, printable
from pipeline.probe import Reached, probe
from pipeline.status import Status, check, status_path
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.compact import is_being_compacted
from pipeline.store.schema import ENGINE

_TIMEOUT = 20.0  # seconds for an answer of Docker's
_CLOCK = 2.0  # seconds that clocks may differ
_FREE = 2 << 30  # bytes of disk that should be free
_LOGS = 100 << 20  # bytes of the server's own logs that are worth a line
_FULL = 0.9  # of a container's memory
_SECRET = re.compile("PASS|USER|TOKEN|KEY|SECRET")
_SAID = re.compile(r"VPN|Cannot|ClickHouse at|does not exist|error|[Ff]ailed")


@dataclass(frozen=True)
class Line:
    """One finding: what was looked at, and whether it is as it should be (None: nothing is wrong, but know it)."""

    is_well: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "[ok]", False: "[wrong]", None: "[note]"}[self.is_well]
        return f"{mark:<8} {self.text}"


def well(text: str) -> Line:
    return Line(True, text)


def wrong(text: str) -> Line:
    return Line(False, text)


def note(text: str) -> Line:
    return Line(None, text)


def examine(project: Path, environ: Mapping[str, str]) -> list[Line]:
    """Return what there is to say, in the order in which things depend on each other."""
    values = _values(project / ".env")
    try:
        settings = load_settings(environ, project / ".env")
    except ConfigError as error:
        return _without_secrets([*_env(project, values), wrong(str(error))], values, environ)
    configs = all_symbols(settings)
    docker = _Docker(project, environ)
    checks: list[Callable[[], Iterable[Line]]] = [
        lambda: _env(project, values),
        lambda: _docker(docker, values, wrong if _is_docker_used(docker, settings, configs, values) else note),
        lambda: _disk(project, settings),
        lambda: _here(settings),
        lambda: _clickhouse(settings, configs),
        lambda: _containers(docker, settings, values),
        lambda: _collectors(settings, configs),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        found = [line for lines in pool.map(lambda each: list(each()), checks) for line in lines]
    return _without_secrets(found, values, environ)


def _values(path: Path) -> dict[str, str]:
    try:
        return {name: value or "" for name, value in dotenv_values(path).items()}
    except (OSError, UnicodeDecodeError):
        return {}


def _without_secrets(lines: Sequence[Line], *sources: Mapping[str, str]) -> list[Line]:
    """Return the lines without any value that is nobody else's business, and without what could control a terminal."""
    secrets = {
        value
        for source in sources
        for name, value in source.items()
        if name.startswith(("NORDVPN_", "CLICKHOUSE_")) and _SECRET.search(name) and value not in ("", "default")
    }
    clean = []
    for line in lines:
        text = line.text
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        clean.append(Line(line.is_well, printable(" ".join(text.split()))))
    return clean


# .env


def _env(project: Path, values: Mapping[str, str]) -> Iterator[Line]:
    path = project / ".env"
    if not path.exists():
        yield note(".env: there is none; ./setup.sh makes one, which Docker needs")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield wrong(f".env: others may read it (mode {mode:o}): chmod 600 .env")
    for name in ("CLICKHOUSE_PASSWORD", "CLICKHOUSE_COLLECTOR_PASSWORD"):
        if not values.get(name):
            yield wrong(f".env: {name} is not in it: run ./setup.sh")
    for name, value in values.items():
        if value.startswith("# "):
            yield wrong(f".env: {name} is a note, not a value: give it a line of its own")
    yield _credentials(project, values)


def _credentials(project: Path, values: Mapping[str, str]) -> Line:
    user, password = values.get("NORDVPN_USER", ""), values.get("NORDVPN_PASS", "")
    if not user and not password:
        if _has_them_in_files(values):
            return well("VPN credentials: in files")
        if _is_vpn_required(values):
            return wrong("VPN credentials: none in .env, and VPN_REQUIRED: a container without any ends")
        return note("VPN credentials: none, so containers run without VPN, from this host's address")
    if not user or not password:
        return wrong("VPN credentials: NORDVPN_USER and NORDVPN_PASS, one is set without the other")
    override = project / "docker-compose.override.yml"
    if "@" in user and not (override.exists() and "VPN_CONFIG" in override.read_text(errors="replace")):
        return wrong(
            "VPN credentials: an e-mail address is the account's; service credentials are needed: VPN-SETUP.md"
        )
    return well("VPN credentials")


# Docker


class _Docker:
    """What Docker says; its answers are asked for once."""

    def __init__(self, project: Path, environ: Mapping[str, str]) -> None:
        self._project, self._environ = project, dict(environ)
        self.is_installed = bool(shutil.which("docker", path=self._environ.get("PATH")))
        self.version = self.run("docker", "version", "--format", "{{.Server.Version}}")
        self.containers: list[dict[str, Any]] = []
        if self.version:
            label = f"label=com.docker.compose.project.working_dir={project}"
            ids = self.run("docker", "ps", "--all", "--quiet", "--filter", label).split()
            if ids:
                self.containers = json.loads(self.run("docker", "inspect", *ids) or "[]")

    def run(self, *command: str) -> str:
        """Return what a command says; nothing where it fails."""
        try:
            result = subprocess.run(
                command,
                env=self._environ,
                cwd=self._project,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return result.stdout.strip()

    def status(self, container: Mapping[str, Any]) -> str:
        """Return the status file of a collector's container; nothing where there is none."""
        name = _service(container).removesuffix("-client")
        return self.run("docker", "exec", container["Id"], "cat", f"/journal/{name}.status.json")

    def log(self, container: Mapping[str, Any]) -> str:
        """Return the last line of a container's log that tells of a trouble."""
        try:
            result = subprocess.run(
                ["docker", "logs", "--tail", "40", container["Id"]],
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        said = [line for line in result.stdout.splitlines() if _SAID.search(line) and "trying again in" not in line]
        return said[-1] if said else ""


def _is_docker_used(
    docker: _Docker, settings: Settings, configs: Sequence[SymbolConfig], values: Mapping[str, str]
) -> bool:
    """Return whether containers collect, or are to: not where collectors have run here without them, nor without .env.

    A VPN is for containers only.
    """
    is_here = any(status_path(settings, config["table_name"]).exists() for config in configs)
    wants_vpn = _has_credentials(values) or _is_vpn_required(values)
    return bool(docker.containers or wants_vpn or (values and not is_here))


def _is_vpn_required(values: Mapping[str, str]) -> bool:
    return values.get("VPN_REQUIRED", "0") not in ("", "0")


def _has_credentials(values: Mapping[str, str]) -> bool:
    return bool(values.get("NORDVPN_USER")) or _has_them_in_files(values)


def _has_them_in_files(values: Mapping[str, str]) -> bool:
    return bool(values.get("NORDVPN_USER_FILE")) or "docker-compose.secrets.yml" in values.get("COMPOSE_FILE", "")


def _docker(docker: _Docker, values: Mapping[str, str], lacking: Callable[[str], Line]) -> Iterator[Line]:
    """Yield what Docker is; `lacking` makes the line of what containers need and is not there."""
    if not docker.is_installed:
        yield note("Docker: not installed; collectors run without it, too")
        return
    if not docker.version:
        yield lacking(
            "Docker does not answer: sudo systemctl start docker; or sudo usermod -aG docker you, then log in again"
        )
        return
    yield well(f"Docker {docker.version}")
    major = int(re.match(r"\d*", docker.version)[0] or 0)  # type: ignore[index]
    if version := docker.run("docker", "compose", "version", "--short"):
        yield well(f"docker compose {version}")
    elif (version := docker.run("docker-compose", "version", "--short")).startswith("1.") and major >= 25:
        yield lacking(
            f"docker-compose {version} cannot replace containers with Docker {docker.version} (KeyError:"
            " 'ContainerConfig'): sudo apt-get install docker-compose-v2, or docker-compose-plugin"
        )
    elif version:
        yield well(f"docker-compose {version}")
    else:
        yield lacking("Docker Compose is not installed: sudo apt-get install docker-compose-v2, or docker-compose")
    device = Path(values.get("TUN_DEVICE") or "/dev/net/tun")
    if not device.exists():
        yield lacking(f"{device} is missing: sudo modprobe tun; or, to run without VPN, TUN_DEVICE=/dev/null in .env")
    elif device == Path("/dev/null") and _has_credentials(values):
        yield lacking("TUN_DEVICE=/dev/null, but a VPN needs /dev/net/tun: take it out of .env")
    else:
        yield well(str(device))


def _containers(docker: _Docker, settings: Settings, values: Mapping[str, str]) -> Iterator[Line]:
    if docker.version and not docker.containers:
        yield note("Containers: none yet: docker compose up -d")
    with ThreadPoolExecutor(8) as pool:
        probed = list(pool.map(lambda each: _probe_in(docker, each), docker.containers))
    addresses: dict[str, list[str]] = {}
    for container, reached in zip(docker.containers, probed, strict=True):
        yield from _container(docker, container)
        if reached:
            yield from _reached(_service(container), reached)
            if reached.address:
                addresses.setdefault(reached.address, []).append(_service(container))
    for address, services in addresses.items():
        if len(services) > 1 and values.get("NORDVPN_USER"):
            yield wrong(f"{' and '.join(services)} leave by one address, {address}: give one another VPN_COUNTRY")
    for line in docker.run("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemPerc}}").splitlines():
        name, _, share = line.partition(" ")
        names = {each["Name"].strip("/") for each in docker.containers}
        if name in names and float(share.rstrip("%") or 0) / 100 > _FULL:
            yield wrong(f"{name} takes {share} of its memory limit: DEPLOYMENT.md, Blocks and memory")


def _service(container: Mapping[str, Any]) -> str:
    return str(container["Config"]["Labels"].get("com.docker.compose.service", container["Name"]))


def _container(docker: _Docker, container: Mapping[str, Any]) -> Iterator[Line]:
    service, state = _service(container), container["State"]
    health = (state.get("Health") or {}).get("Status", "healthy")
    if state.get("OOMKilled") or state["ExitCode"] == 137:
        yield wrong(f"{service}: out of memory, exit code 137: compact, or set FLUSH_INTERVAL: DEPLOYMENT.md, Settings")
    elif state["Status"] == "running" and health == "healthy":
        restarts = container.get("RestartCount", 0)
        yield well(f"{service}: running{f', {restarts} restarts' * (restarts > 0)}{_ages(docker.status(container))}")
    elif state["Status"] == "exited" and state["ExitCode"] == 0 and service == "setup":
        yield well("setup: done")
    else:
        told = docker.log(container) or state.get("Error") or "its log does not say why"
        is_well = None if health == "starting" else False
        yield Line(is_well, f"{service}: {state['Status']}{f', {health}' * (health != 'healthy')}: {told}")


def _probe_in(docker: _Docker, container: Mapping[str, Any]) -> Reached | None:
    if not _service(container).endswith("-client") or container["State"]["Status"] != "running":
        return None
    said = docker.run("docker", "exec", "--user", "collector", container["Id"], "python3", "-m", "pipeline.probe")
    try:
        return Reached(**json.loads(said))
    except (ValueError, TypeError):
        return None


# This machine


def _disk(project: Path, settings: Settings) -> Iterator[Line]:
    places = {"this folder": project, "journals": project / settings.journal_dir}
    for name, path in places.items():
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        if free < _FREE:
            yield wrong(f"Disk of {name}: {human_size(free)} free; when it is full, rows are lost: DEPLOYMENT.md, Disk")
        else:
            yield well(f"Disk of {name}: {human_size(free)} free")


def _here(settings: Settings) -> Iterator[Line]:
    yield from _reached("From here", probe(settings))


def _reached(where: str, reached: Reached) -> Iterator[Line]:
    ways = {"DNS": reached.dns, "REST": reached.rest, "WebSocket": reached.websocket}
    for way, failed in ways.items():
        if failed:
            yield wrong(f"{where}, {way} fails: {failed}")
    if there := [way for way, failed in ways.items() if not failed]:
        yield well(f"{where}: {', '.join(there)} reached{f', as {reached.address}' * bool(reached.address)}")
    if reached.clock is not None and abs(reached.clock) > _CLOCK:
        way = "ahead of" if reached.clock > 0 else "behind"
        yield wrong(
            f"{where}, the clock is {length(abs(reached.clock))} {way} the exchange's: timedatectl set-ntp true"
        )


# ClickHouse


def _clickhouse(settings: Settings, configs: Sequence[SymbolConfig]) -> Iterator[Line]:
    try:
        with connect(settings, timeout=5) as client:
            ((version, free),) = client.execute("SELECT version(), (SELECT min(free_space) FROM system.disks)")
            query = "SELECT name, engine, total_rows FROM system.tables WHERE database = %(database)s"
            found = {
                name: (engine, rows)
                for name, engine, rows in client.execute(query, {"database": settings.clickhouse_database})
            }
            query = "SELECT sum(total_bytes) FROM system.tables WHERE database = 'system' AND name LIKE '%\\_log%'"
            ((logs,),) = client.execute(query)
            if version.startswith("24.3."):
                yield note(f"ClickHouse {version}: it gets no fixes any more; DEPLOYMENT.md, ClickHouse's version")
            else:
                yield well(f"ClickHouse {version}")
            if free < _FREE:
                yield wrong(f"ClickHouse's disk: {human_size(free)} free; when it is full, rows wait in the journals")
            if (logs or 0) > _LOGS:
                yield wrong(
                    f"ClickHouse's own logs take {human_size(logs)}: docker compose up -d setup, or ch_setup.py"
                )
            for config in configs:
                name = config["table_name"]
                engine, rows = found.get(name, ("", None))
                if engine == ENGINE:
                    yield well(f"Table {name}" + ("" if rows is None else f": {many(rows, 'row')}"))
                elif engine:
                    yield wrong(
                        f"Table {name} has the engine {engine}, not {ENGINE}: rename or drop it, run ch_setup.py"
                    )
                elif is_being_compacted(client, settings.clickhouse_database, name):
                    yield note(f"Table {name} is being compacted")
                else:
                    yield wrong(f"Table {name} does not exist: run ch_setup.py, or docker compose up -d setup")
    except CLICKHOUSE_ERRORS as error:
        yield wrong(explain(error, settings))


# Collectors that run here, without Docker


def _collectors(settings: Settings, configs: Sequence[SymbolConfig]) -> Iterator[Line]:
    for config in configs:
        name = config["table_name"]
        path = status_path(settings, name)
        if not path.exists():
            continue
        works, text = check(path, settings, time.time())
        yield Line(works, f"Collector of {name}: {text}")
        with suppress(OSError):
            size = path.with_name(f"{name}.db").stat().st_size
            yield well(f"Journal of {name}: {human_size(size)}{_ages(path.read_text())}")


def _ages(status: str) -> str:
    """Return what a status file says of waiting rows, and how old the newest push of each channel is by now.

    Nothing where it cannot be read.
    """
    try:
        found = Status(**json.loads(status))
    except (ValueError, TypeError):
        return ""
    since = max(0.0, time.time() - found.written)
    newest = [f"{channel} {length(age + since)} ago" for channel, age in found.channel_ages.items()]
    return "".join(f"; {part}" for part in (f"{many(found.waiting, 'row')} waiting", *newest))

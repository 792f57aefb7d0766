"""A Docker host of its own, with an internet around it, both gone afterwards.

    containers -- Docker's bridges -- host  eth0 172.30.0.2 ---- 172.30.0.1 eth0  internet

`host` and `internet` are network namespaces. The Docker daemon, its images and its socket are in a temporary
directory, its mounts in a mount namespace, its bridges, rules and published ports in `host`: a Docker that this
machine has does not notice. Images are built by a first daemon, which has this machine's network and no bridge, since
`host` reaches nothing but internet.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config import PROJECT
from tests.docker.internet import DNS, EXCHANGE, IPINFO, NAMES, NORDVPN, SERVERS
from tests.vpn.vpnlab import make_certificates, run

TOOLS = ["dockerd", "docker", "docker-compose", "mmdebstrap", "openvpn", "ip", "nsenter", "openssl", "rsync"]
PACKAGES = "docker.io docker-compose mmdebstrap openvpn iproute2 iptables nftables openssl curl rsync"
HOST, GATEWAY = "172.30.0.2", "172.30.0.1"
USER, PASSWORD = "service-user", "service-password"
PYTHON_IMAGE = "python:3.11-slim-bookworm"
CLICKHOUSE_IMAGE = "clickhouse-stand-in"
IMAGE = "mexc-pipeline"
BEFORE = "20d3767"  # the version that people upgrade from; its images have the tag `before`
WAIT = 90.0  # seconds after which a condition that does not come true fails the test
CLIENT_CONFIG = """\
client
dev tun
proto udp
remote {address} 1194
resolv-retry infinite
nobind
persist-key
persist-tun
remote-cert-tls server
auth-user-pass
verb 3
cipher AES-256-CBC
auth SHA512
key-direction 1
<ca>
{ca}</ca>
<tls-auth>
{ta}</tls-auth>
"""


def wait(what: str, predicate: Callable[[], object], seconds: float = WAIT) -> None:
    """Wait until the predicate holds."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Ask a process to end, and see to it that it does."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def network() -> Iterator[tuple[str, str]]:
    """Make both namespaces, connected; yield the names of the host's and of the internet's."""
    host, internet = f"docker-host-{os.getpid()}", f"docker-internet-{os.getpid()}"
    try:
        for namespace in (host, internet):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", host, "type", "veth", "peer", "name", "eth0", "netns", internet)
        for namespace, address in ((host, HOST), (internet, GATEWAY)):
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", host, "route", "add", "default", "via", GATEWAY)
        for address in (DNS, NORDVPN, IPINFO, EXCHANGE, *(address for _, address in SERVERS.values())):
            run("ip", "-n", internet, "address", "add", address, "dev", "lo")
        yield host, internet
    finally:
        for namespace in (host, internet):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


@contextmanager
def internet(namespace: str, directory: Path) -> Iterator[Path]:
    """Run the VPN servers, the exchange and all that internet.py plays; yield the exchange's log."""
    make_certificates(directory)
    names = ",".join(f"DNS:{name}" for name in NAMES)
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
        "/CN=web", "-CA", directory / "ca.crt", "-CAkey", directory / "ca.key", "-addext", f"subjectAltName={names}",
        "-addext", "basicConstraints=CA:FALSE", "-keyout", directory / "web.key", "-out",
        directory / "web.crt")  # fmt: skip
    ca, ta = (directory / "ca.crt").read_text(), (directory / "ta.key").read_text()
    verify = directory / "verify.sh"
    verify.write_text(f'#!/bin/sh\n[ "$(cat "$1")" = \'{USER}\n{PASSWORD}\' ]\n')  # 0 lets the user in
    verify.chmod(0o755)
    log = directory / "frames.jsonl"
    inside = ["ip", "netns", "exec", namespace]
    python = [*inside, sys.executable]
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], ready: str) -> None:
        output = directory / f"{len(started)}.log"
        with output.open("wb") as file:
            started.append(subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT))
        wait(f"'{ready}' of {' '.join(command)}", lambda: ready in output.read_text())

    try:
        for number, (name, (_, address)) in enumerate(SERVERS.items(), 1):
            (directory / f"{name}.udp.ovpn").write_text(CLIENT_CONFIG.format(address=address, ca=ca, ta=ta))
            command = [*inside, "openvpn", "--cd", str(directory), "--local", address, "--port", "1194"]
            command += ["--proto", "udp", "--dev", f"tun{number}", "--disable-dco", "--topology", "subnet"]
            command += ["--server", f"10.8.{number}.0", "255.255.255.0", "--dh", "none", "--ca", "ca.crt"]
            command += ["--cert", "server.crt", "--key", "server.key", "--tls-auth", "ta.key", "0"]
            command += ["--cipher", "AES-256-CBC", "--auth", "SHA512", "--ping", "60", "--verify-client-cert", "none"]
            command += ["--username-as-common-name", "--script-security", "2"]
            command += ["--auth-user-pass-verify", str(verify), "via-file"]
            for option in ("redirect-gateway def1", f"dhcp-option DNS {DNS}", "explicit-exit-notify"):
                command += ["--push", option]
            start(command, "Initialization Sequence Completed")
        start([*python, "-m", "local.exchange", "--port", "8765", "--log", str(log)], "listening on")
        start([*python, "-m", "tests.docker.internet", str(directory), "8765"], "serving")
        yield log
    finally:
        for process in reversed(started):
            end(process)


class Docker:
    """A Docker daemon's data and socket; `daemon` runs it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.directory = self._directory = directory
        self._cgroup = f"docker-test-{os.getpid()}"
        home = directory / "home"  # not the user's: that may have a configuration
        home.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "DOCKER_HOST": f"unix://{directory}/socket",
            "DOCKER_BUILDKIT": "0",  # the plain builder finds images that only this daemon has
        }

    @contextmanager
    def daemon(self, namespace: str | None, *options: str) -> Iterator[None]:
        """Run the daemon, in this network namespace if one is given."""
        directory = self._directory
        command = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
        command += ["unshare", "--mount", "dockerd", "--data-root", str(self.data)]
        command += ["--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"), "--host"]
        command += [self.environ["DOCKER_HOST"], "--bridge", "none", "--cgroup-parent", f"/{self._cgroup}", *options]
        log = directory / "dockerd.log"
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            wait(f"the Docker daemon, see {log}", lambda: process.poll() is not None or self._answers())
            assert process.poll() is None, log.read_text()
            yield
        finally:
            end(process)

    def run(self, *command: str, check: bool = True, cwd: Path | None = None, **environ: str) -> str:
        """Run docker or docker-compose; return what it printed."""
        result = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}")
        return result.stdout

    def make_base_image(self) -> None:
        """Make the stand-in for Docker's Python image: Debian's Python, with this machine's ways to get packages."""
        tar = self._directory / "base.tar"
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        index = {name: value for name, value in os.environ.items() if name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")}
        pip = self._directory / "pip.conf"
        lines = [f"{name[4:].lower().replace('_', '-')} = {value}" for name, value in index.items()]
        pip.write_text("\n".join(["[global]", f"cert = {certificates}", *lines, ""]))
        command = ["mmdebstrap", "--quiet", "--variant=apt", "--mode=root"]
        command += ["--include=python3,python3-pip,ca-certificates,wget,socat"]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
        command += [f"--customize-hook=copy-in {certificates} /etc/ssl/certs", f"--customize-hook=copy-in {pip} /etc"]
        run(*command, "bookworm", str(tar))
        self.run("docker", "import", str(tar), PYTHON_IMAGE)
        tar.unlink()

    def fetch_compose(self) -> None:
        """Get version 2, which Debian 12 does not have, from Debian 13: a program that needs nothing else."""
        tree = self._directory / "trixie"
        run(
            "mmdebstrap", "--quiet", "--variant=extract", "--mode=root", "--include=docker-compose", "trixie", str(tree)
        )
        shutil.move(tree / "usr" / "libexec" / "docker" / "cli-plugins" / "docker-compose", self.compose_2)
        shutil.rmtree(tree)

    @property
    def compose_2(self) -> Path:
        return self._directory / "docker-compose-2"

    def set_proxies(self, **proxies: str) -> None:
        """Do what people behind a proxy do to Docker's client; without arguments, undo it."""
        config = Path(self.environ["HOME"]) / ".docker" / "config.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps({"proxies": {"default": proxies}} if proxies else {}))

    def left_behind(self) -> list[str]:
        """Return what is there that should not be, once the daemons have ended; removes the empty cgroups."""
        left = []
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self._directory).encode() in stat.read_bytes():
                    left.append(f"process {stat.parent.name}: {stat.read_bytes()!r}")
        left += [line for line in Path("/proc/mounts").read_text().splitlines() if str(self._directory) in line]
        for group in Path("/sys/fs/cgroup").rglob(self._cgroup):
            for directory in [*sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True), group]:
                try:
                    directory.rmdir()
                except OSError as error:
                    left.append(str(error))
        return left

    def _answers(self) -> bool:
        return subprocess.run(["docker", "version"], env=self.environ, check=False, capture_output=True).returncode == 0


class Deployment:
    """The project as a customer has it: in a directory of its own, with an .env, managed by Docker Compose."""

    def __init__(
        self, docker: Docker, namespace: str, directory: Path, ca: Path, compose: str, before: bool = False
    ) -> None:
        """Of this checkout, or as it was `before` the version that has to be upgraded to."""
        self.directory = directory / "mexc-pipeline"
        self.set_proxies = docker.set_proxies
        self._docker, self._compose = docker, compose
        self._namespace = namespace
        if before:
            self.directory.mkdir(parents=True)
            archive = subprocess.run(["git", "archive", BEFORE], cwd=PROJECT, capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x"], cwd=self.directory, input=archive, check=True)
        else:
            self.install()
        self.environ = {"COMPOSE_FILE": "docker-compose.yml:tests/docker/override.yml", "TEST_CA": str(ca)}

    def install(self) -> None:
        """Put this checkout there, as `git pull` does where there is another one."""
        ignored = shutil.ignore_patterns(
            ".*_cache", ".git", ".hypothesis", "__pycache__", "venv*", "*-data", "journal", ".env"
        )
        shutil.copytree(PROJECT, self.directory, ignore=ignored, dirs_exist_ok=True)

    def use(self, compose: str) -> None:
        """Go on with another version of Docker Compose."""
        self._compose = compose

    def configure(self, **settings: str) -> None:
        """Write .env."""
        lines = [f"{name}={value}" for name, value in settings.items()]
        (self.directory / ".env").write_text("\n".join([*lines, ""]))

    def build(self) -> None:
        """Build the images, with the daemon that has a network."""
        self.compose("build")
        context = ["--build-arg", f"PYTHON_IMAGE={PYTHON_IMAGE}", "-f", "tests/docker/clickhouse.Dockerfile"]
        (self.directory / ".dockerignore").rename(self.directory / "dockerignore")
        self._docker.run(
            "docker", "build", "--network", "host", "-t", CLICKHOUSE_IMAGE, *context, ".", cwd=self.directory
        )
        (self.directory / "dockerignore").rename(self.directory / ".dockerignore")

    def compose(self, command: str, check: bool = True) -> str:
        """Run Docker Compose with the arguments in `command`, in the project's directory."""
        words = [self._compose, "--ansi", "never", *command.split()]
        return self._docker.run(*words, check=check, cwd=self.directory, **self.environ)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the project on the Docker host, outside the containers."""
        command = ["ip", "netns", "exec", self._namespace, sys.executable, *arguments]
        environ = {name: self._docker.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST")}
        return subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, check=False)

    def container(self, service: str) -> dict[str, object]:
        """Return what `docker inspect` says of a service's container."""
        identity = self.compose(f"ps --all -q {service}").strip()
        return dict(json.loads(self._docker.run("docker", "inspect", identity))[0])

    def health(self, service: str) -> str:
        """Return healthy, unhealthy or starting."""
        state = self.container(service)["State"]
        assert isinstance(state, dict)
        return str(state["Health"]["Status"])

    def docker(self, *command: str, check: bool = True) -> str:
        """Run docker."""
        return self._docker.run("docker", *command, check=check)

    def records(self) -> dict[str, int]:
        """Return the number of records per table, as verif.py reports them; none where it cannot."""
        with suppress(ValueError):
            report = json.loads(self.python("verif.py", "--json").stdout)
            return {table["name"]: table["records"] for table in report["tables"]}
        return {}

    def bash(self, script: str) -> str:
        """Run commands as a guide has them, `docker compose` being this deployment's; return what they printed."""
        bash = (
            f'docker() {{ if [[ $1 == compose ]]; then shift; "{self._compose}" "$@"; else command docker "$@"; fi }}\n'
        )
        return self._docker.run("bash", "-c", bash + script, check=True, cwd=self.directory, **self.environ)

    def rows(self, table: str) -> list[tuple[int, str, str]]:
        """Return a table's rows, in the order in which they were stored."""
        query = f"SELECT toUnixTimestamp64Milli(ts), mt, m FROM mexc_data.{table} SETTINGS max_threads = 1"
        script = (
            "import json, clickhouse_driver, config; its = config.load_settings(); client = clickhouse_driver.Client"
        )
        script += (
            "(its.clickhouse_host, its.clickhouse_port, user=its.clickhouse_user, password=its.clickhouse_password)"
        )
        script += f"; print(json.dumps(client.execute({query!r})))"
        result = self.python("-c", script)
        assert result.returncode == 0, result.stderr
        return [(ts, mt, m) for ts, mt, m in json.loads(result.stdout)]

    def volume(self, name: str) -> Path:
        """Return where a volume's files are."""
        return self._docker.data / "volumes" / f"{self.directory.name}_{name}" / "_data"


COMPOSE = ("1.29", "2")
"""The versions of Docker Compose that are tried: that of Debian 12, and of Debian 13."""


@contextmanager
def docker_with_images() -> Iterator[Docker]:
    """Yield Docker with all images, and see to it that nothing of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="docker-"))  # short: a socket's path has at most 107 characters
    docker = Docker(directory)
    try:
        docker.fetch_compose()
        with docker.daemon(None, "--iptables=false", "--ip-forward=false"):
            docker.make_base_image()
            before = Deployment(docker, "", directory / "build-before", directory, "docker-compose", before=True)
            before.configure(CLICKHOUSE_PASSWORD="x")
            before.build()
            for image in (IMAGE, CLICKHOUSE_IMAGE):
                docker.run("docker", "tag", image, f"{image}:before")
            for version in COMPOSE:
                project = Deployment(docker, "", directory / f"build-{version}", directory, compose(docker, version))
                project.configure(CLICKHOUSE_PASSWORD="x", CLICKHOUSE_COLLECTOR_PASSWORD="x")
                project.build()
            docker.run("docker", "tag", IMAGE, f"{IMAGE}:now")
        yield docker
        left = docker.left_behind()
        assert not left, left
    finally:
        shutil.rmtree(directory)


def compose(docker: Docker, version: str) -> str:
    """Return the command of that version of Docker Compose."""
    return "docker-compose" if version == "1.29" else str(docker.compose_2)


@contextmanager
def deployment(
    docker: Docker, version: str, name: str = "life", before: bool = False
) -> Iterator[tuple[Deployment, Path]]:
    """Yield the project on a Docker host with an internet around it, and the exchange's log."""
    directory = docker.directory / f"{name}-{version}"
    certificates = directory / "internet"
    certificates.mkdir(parents=True)
    with network() as (host, world), internet(world, certificates) as log:
        project = Deployment(docker, host, directory, certificates / "ca.crt", compose(docker, version), before)
        with docker.daemon(host, "--dns", DNS, "--default-address-pool", "base=10.99.0.0/16,size=24"):
            yield project, log
            project.environ["COMPOSE_PROFILES"] = (
                "monitoring,export"  # 1.29 makes its volume, 2 removes what it is to use
            )
            project.compose("down --volumes", check=False)
            left = docker.run("docker", "ps", "--all", "--quiet") + docker.run("docker", "volume", "ls", "--quiet")
            assert not left, left

"""setup.sh on a machine that has only what a test gives it: a copy of the project's files, and a PATH of its own."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import PROJECT
from tests.stack import Stack

DATA = PROJECT / "tests" / "data" / "deployment"
FILES = ["setup.sh", "requirements-collector.lock", "docker-compose.yml", "Dockerfile", ".env.example", "config.py"]
FILES += ["clickhouse-config-simple.xml", "ch_setup.py", "btcdat.py", "ethdat.py", "soldat.py", "verif.py"]
TOOLS = "bash awk cat chmod cmp cp df dirname env grep id od rm sed tail tr".split()  # noqa: SIM905


class Machine:
    """A directory with the project, and the commands that there are."""

    def __init__(self, directory: Path) -> None:
        self.project = directory / "a project"
        self.project.mkdir()
        self._bin = directory / "bin"
        self._bin.mkdir()
        for name in FILES:
            shutil.copy(PROJECT / name, self.project)
        for name in ("docker", "pipeline"):
            shutil.copytree(PROJECT / name, self.project / name)
        (self.project / "requirements.lock").write_text("# none\n")
        for name in TOOLS:
            found = shutil.which(name)
            assert found
            (self._bin / name).symlink_to(found)
        self.command("python3", f'exec {sys.executable} "$@"')

    def make_venv(self) -> None:
        """Do what takes setup.sh longest."""
        python = self.project / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        shutil.copy(self.project / "requirements.lock", self.project / "venv" / "requirements.installed")

    def command(self, name: str, script: str) -> None:
        """Add a command, or replace it."""
        path = self._bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def setup(self, *arguments: str) -> tuple[int, str]:
        """Run setup.sh from elsewhere, without a terminal; return its exit code and all that it printed."""
        result = subprocess.run(
            [str(self.project / "setup.sh"), *arguments],
            cwd="/",
            env={"PATH": str(self._bin), "HOME": str(self.project)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout

    @property
    def env(self) -> Path:
        return self.project / ".env"


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """One with a venv."""
    bare.make_venv()
    return bare


def test_a_bare_machine_gets_an_environment_and_settings(bare: Machine) -> None:
    code, output = bare.setup()
    assert code == 0, output
    assert "[missing] Docker: see DEPLOYMENT.md" in output
    assert "[missing] VPN credentials" in output
    python = bare.project / "venv" / "bin" / "python"
    assert subprocess.run([python, "-c", ""], check=False).returncode == 0
    assert stat.S_IMODE(bare.env.stat().st_mode) == 0o600
    text = bare.env.read_text()
    passwords = re.findall(r"^CLICKHOUSE_(?:COLLECTOR_)?PASSWORD=([0-9a-f]{40})$", text, re.MULTILINE)
    assert len(set(passwords)) == 2
    for password in passwords:
        text = text.replace(password, "")
    assert text == (PROJECT / ".env.example").read_text()


def test_the_next_run_changes_nothing(machine: Machine) -> None:
    assert machine.setup()[0] == 0
    before = machine.env.read_text()
    marker = machine.project / "venv" / "marker"
    marker.touch()
    code, output = machine.setup()
    assert code == 0
    assert "Installing" not in output
    assert machine.env.read_text() == before
    assert marker.exists()


def test_new_requirements_are_installed(machine: Machine) -> None:
    (machine.project / "requirements.lock").write_text("./no-such-package\n")
    code, output = machine.setup()
    assert code == 1
    assert "[missing] the packages in requirements.lock could not be installed" in output
    assert machine.setup()[0] == 1, "a failed installation is tried again"


def test_a_clickhouse_without_a_password_is_used_with_the_env_that_was_made_for_docker(
    machine: Machine, stack: Stack
) -> None:
    """One's own, or the demo's that goes on running; and Docker's, once it is there."""
    assert machine.setup()[0] == 0
    stack.env["MEXC_PIPELINE_ENV"] = str(machine.env)
    stack.env["CLICKHOUSE_PASSWORD"] = ""
    server = stack.start("-m", "local.clickhouse", "--port", stack.port, "--data", stack.data, MEXC_PIPELINE_ENV="")
    server.wait_for("listening on")
    for command in (["ch_setup.py"], ["ch_setup.py", "--compact"]):
        process = stack.run(*command)
        assert process.wait() == 0, process.output
    server.stop()
    server = stack.start("-m", "local.clickhouse", "--port", stack.port, "--data", stack.data)
    server.wait_for("listening on")
    assert stack.run("ch_setup.py").wait() == 0
    server.stop()
    server = stack.start("-m", "local.clickhouse", "--port", stack.port, "--data", stack.data, CLICKHOUSE_PASSWORD="x")
    server.wait_for("listening on")
    refused = stack.run("ch_setup.py")
    assert refused.wait() == 2
    assert (
        "refuses user default: check CLICKHOUSE_USER (from the environment) and CLICKHOUSE_PASSWORD" in refused.output
    )


def test_what_the_user_wrote_into_env_stays(machine: Machine) -> None:
    machine.env.write_text("NORDVPN_USER=me\nNORDVPN_PASS='a $ecret'")
    machine.env.chmod(0o644)
    code, output = machine.setup()
    assert code == 0
    assert "[ok]      .env: VPN credentials" in output
    text = machine.env.read_text()
    assert text.startswith("NORDVPN_USER=me\nNORDVPN_PASS='a $ecret'\n")
    assert re.search(r"^CLICKHOUSE_PASSWORD=[0-9a-f]{40}$", text, re.MULTILINE)
    assert stat.S_IMODE(machine.env.stat().st_mode) == 0o600
    machine.setup()
    assert machine.env.read_text() == text


@pytest.mark.parametrize("form", ["values", "files", "files of before", "configuration"])
def test_once_there_are_credentials_nothing_runs_without(machine: Machine, form: str) -> None:
    assert machine.setup()[0] == 0
    assert not re.search("^VPN_REQUIRED=", machine.env.read_text(), re.MULTILINE), "there are none yet"
    text = machine.env.read_text()
    if form == "values":
        text = text.replace("NORDVPN_USER=", "NORDVPN_USER=me", 1).replace("NORDVPN_PASS=", "NORDVPN_PASS=secret", 1)
    elif form == "configuration":
        (machine.project / "docker-compose.override.yml").write_text("environment: {VPN_CONFIG: /vpn.ovpn}")
    else:
        (machine.project / "secrets").mkdir()
        (machine.project / "secrets" / "nordvpn_user").write_text("me")
        named = "NORDVPN_USER_FILE=secrets/nordvpn_user"
        before = "COMPOSE_FILE=docker-compose.yml:docker-compose.secrets.yml"
        text += f"{named if form == 'files' else before}\n"
    machine.env.write_text(text)
    code, output = machine.setup()
    assert code == 0, output
    assert "[ok]      .env: added VPN_REQUIRED=1" in output
    assert machine.env.read_text().endswith("\nVPN_REQUIRED=1\n")
    again = machine.env.read_text()
    assert machine.setup()[0] == 0
    assert machine.env.read_text() == again


def test_who_wants_no_vpn_is_obeyed(machine: Machine) -> None:
    machine.env.write_text("NORDVPN_USER=me\nNORDVPN_PASS=secret\nVPN_REQUIRED=0\n")
    machine.setup()
    assert "VPN_REQUIRED=1" not in machine.env.read_text()


@pytest.mark.parametrize("name", ["env-quoted-empty", "env-crlf-empty"])
def test_what_is_empty_to_the_collectors_is_empty(machine: Machine, name: str) -> None:
    shutil.copy(DATA / name, machine.env)
    code, output = machine.setup()
    assert code == 0
    assert "[missing] VPN credentials" in output
    assert "[ok]      .env: added a random CLICKHOUSE_PASSWORD" in output
    values = dotenv_values(machine.env)
    assert values["NORDVPN_USER"] == values["NORDVPN_PASS"] == ""
    assert re.fullmatch("[0-9a-f]{40}", values["CLICKHOUSE_PASSWORD"] or "")


FORMS = r"""NAME=
NAME=x
NAME = x
  export NAME="x"
NAME=''
NAME=""
NAME=\t
NAME=\r
NAME=x\r
NAME=''\r
NAME='' # note
NAME='x' # note
NAME=   # note
NAME=\t#note
NAME=#x
NAME=x#y
NAME=x # note
NAME=" "
NAME="a \\" b"
NAME='#'
NAME='x'y
NAME="x
'NAME'=x
#NAME=x
# NAME=x
ANOTHER_NAME=x
NAME_2=x
\ufeffNAME=x
NAME=x\nNAME=
NAME=\nNAME=x
NAME=x\nNAME='y
NAME=\rNAME=x\r""".splitlines()


@pytest.mark.parametrize("form", FORMS)
def test_env_is_read_as_python_dotenv_reads_it(machine: Machine, form: str) -> None:
    text = form.replace("NAME", "CLICKHOUSE_PASSWORD").encode().decode("unicode_escape")
    machine.env.write_bytes(f"{text}\n".encode())
    is_set = bool(dotenv_values(machine.env).get("CLICKHOUSE_PASSWORD"))
    code, output = machine.setup()
    assert code == 0
    assert ("added a random CLICKHOUSE_PASSWORD" not in output) == is_set
    assert dotenv_values(machine.env)["CLICKHOUSE_PASSWORD"]


def test_a_note_in_place_of_a_value_is_said(machine: Machine) -> None:
    machine.env.write_text("NORDVPN_USER=   # note\nNORDVPN_PASS=x # note\nFLUSH_INTERVAL=\t# note\n")
    _, output = machine.setup()
    said = re.findall(r"\[missing\] \.env: (\w+) has a note and no value; .*: give it a line of its own", output)
    assert said == ["NORDVPN_USER", "FLUSH_INTERVAL"]
    assert "[missing] VPN credentials" in output


def test_the_accounts_own_credentials_are_said(machine: Machine) -> None:
    machine.env.write_text("NORDVPN_USER=me@example.com\nNORDVPN_PASS=secret\n")
    _, output = machine.setup()
    assert "[missing] VPN credentials: NORDVPN_USER is an e-mail address" in output
    (machine.project / "docker-compose.override.yml").write_text("      VPN_CONFIG: /vpn/us.ovpn\n")
    _, output = machine.setup()
    assert "[ok]      .env: VPN credentials" in output, "another provider's user may be called so"


def test_an_old_python_is_said(machine: Machine) -> None:
    old = f'[[ $1 != -c ]] || exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 12); $2"'
    machine.command("python3", f'{old}; echo "Python 3.10.12"')
    code, output = machine.setup()
    assert code == 1
    assert "[missing] Python 3.11 or newer; python3 is Python 3.10.12." in output
    assert machine.env.exists(), "Docker can do without"
    machine.command("python3.12", f'exec {sys.executable} "$@"')
    assert machine.setup()[0] == 0


def test_a_missing_file_is_named(machine: Machine) -> None:
    (machine.project / "config.py").unlink()
    code, output = machine.setup()
    assert code == 1
    assert output == "[missing] the project's files are incomplete: config.py\n"


def test_a_full_disk_is_said(machine: Machine) -> None:
    machine.command("df", "echo; echo /dev/sda1 9 9 1048576 1% /")
    code, output = machine.setup()
    assert code == 0
    assert "[missing] free disk: 1024 MB here, at least 2 GB are needed" in output


def docker(version: str) -> str:
    """Return a Docker of that version, without its compose plug-in."""
    return f"case $1 in info) ;; version) echo {version} ;; *) exit 1 ;; esac"


@pytest.mark.parametrize(
    ("docker", "docker_compose", "said"),
    [
        ("exit 1", None, "[missing] Docker is installed, but does not answer"),
        ("[[ $1 == info ]]", None, "[missing] Docker Compose: sudo apt-get install docker-compose-v2"),
        ("exit 0", None, "[ok]      docker compose\n"),
        ("exit 0", "echo 1.29.2", "[ok]      docker compose\n"),
        (docker("20.10.24+dfsg1"), "echo 1.29.2", "[ok]      docker-compose: type it, with the dash"),
        (docker("24.0.7"), "echo 1.29.2", "[ok]      docker-compose: type it, with the dash"),
        (docker("25.0.3"), "echo 1.29.2", "[missing] docker-compose 1.29.2 cannot replace containers with Docker 25"),
        (docker("29.1.0"), "echo 1.29.2", "KeyError: 'ContainerConfig'"),
        (docker("29.1.0"), "echo 2.40.3", "[ok]      docker-compose: type it, with the dash"),
    ],
)
def test_what_there_is_of_docker_is_said(machine: Machine, docker: str, docker_compose: str | None, said: str) -> None:
    machine.command("docker", docker)
    if docker_compose:
        machine.command("docker-compose", docker_compose)
    code, output = machine.setup()
    assert code == 0
    assert said in output


@pytest.mark.parametrize("command", ["docker compose", "docker-compose"])
def test_images_are_made_on_demand(machine: Machine, command: str) -> None:
    log = machine.project / "log"
    machine.command("docker", f'echo "docker $*" >>"{log}"; [[ $1 != compose || "{command}" == "docker compose" ]]')
    machine.command("docker-compose", f'echo "docker-compose $*" >>"{log}"')
    assert machine.setup()[0] == 0
    assert "pull" not in log.read_text()
    code, output = machine.setup("--docker")
    assert code == 0, output
    made = f"{command} pull clickhouse\n{command} build --pull setup\n"
    assert log.read_text().endswith(made)
    with machine.env.open("a") as env:
        env.write("COMPOSE_PROFILES=monitoring,export\n")
    assert machine.setup("--docker")[0] == 0
    assert log.read_text().endswith(f"{made}{command} build --pull export\n")


def test_images_cannot_be_made_without_docker(machine: Machine) -> None:
    code, output = machine.setup("--docker")
    assert code == 1
    assert "[missing] --docker needs Docker and Docker Compose" in output


def test_unknown_arguments_are_refused(machine: Machine) -> None:
    assert machine.setup("--dokcer") == (1, "usage: ./setup.sh [--docker]\n")

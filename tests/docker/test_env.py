"""What people's editors make of .env, and what setup.sh and each version of Docker Compose then read in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from config import PROJECT
from tests.docker.dockerlab import COMPOSE, Docker, compose

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

CASES = PROJECT / "tests" / "data" / "deployment"


@pytest.mark.parametrize("version", COMPOSE)
@pytest.mark.parametrize("folder", ["", "/srv/archive"])
def test_exports_go_to_a_volume_or_to_a_folder(docker: Docker, version: str, folder: str) -> None:
    project = docker.directory / f"build-{version}" / "mexc-pipeline"
    shown = docker.run(compose(docker, version), "config", cwd=project, COMPOSE_PROFILES="export", EXPORT_DIR=folder)
    source = folder or "exports"
    export = shown.partition("\n  export:\n")[2].partition("-client:\n")[0]
    assert f"- {source}:/exports:rw" in export or f"source: {source}\n        target: /exports\n" in export


@pytest.mark.parametrize("version", COMPOSE)
@pytest.mark.parametrize("name", ["env-quoted-empty", "env-crlf-empty"])
def test_setup_and_compose_read_one_file_alike(docker: Docker, tmp_path: Path, name: str, version: str) -> None:
    project = tmp_path / "project"
    shutil.copytree(docker.directory / f"build-{version}" / "mexc-pipeline", project)
    shutil.copy(CASES / name, project / ".env")
    with pytest.raises(AssertionError, match=r"is not in \.env, run \./setup\.sh"):
        docker.run(compose(docker, version), "config", cwd=project)
    command = ["./setup.sh"]
    environ = {"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false"}
    setup = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    assert "[missing] VPN credentials" in setup.stdout
    shown = docker.run(compose(docker, version), "config", cwd=project)
    environment = shown.partition("btc-client:")[2].partition("NORDVPN_USER:")[2].splitlines()[0].strip()
    assert json.loads(environment.replace("'", '"')) == ""

"""Docker for all tests marked `docker`, and a deployment with each version of Docker Compose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.dockerlab import COMPOSE, PACKAGES, TOOLS, Deployment, Docker, deployment, docker_with_images


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        pytest.fail(f"these tests need {', '.join(missing)}: apt-get install {PACKAGES}")
    if os.geteuid() != 0:
        pytest.fail("these tests run a Docker daemon: run them as root")
    if not Path("/dev/net/tun").exists():
        pytest.fail("/dev/net/tun is missing: mkdir -p /dev/net && mknod /dev/net/tun c 10 200")
    with docker_with_images() as docker:
        yield docker


@pytest.fixture(scope="module", params=COMPOSE)  # the next module's deployments are on the same data: one at a time
def deployed(docker: Docker, request: pytest.FixtureRequest) -> Iterator[tuple[Deployment, Path]]:
    with deployment(docker, request.param) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def project(deployed: tuple[Deployment, Path]) -> Deployment:
    return deployed[0]


@pytest.fixture(scope="module")
def exchange_log(deployed: tuple[Deployment, Path]) -> Path:
    """What the exchange has sent, a line of JSON per frame."""
    return deployed[1]

"""The world and the client of tests marked `vpn`, new for each test and gone after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vpn.vpnlab import SCRIPTS, TOOLS, Client, World, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        pytest.fail(f"these tests need {', '.join(missing)}: apt-get install openvpn iproute2 nftables openssl curl")
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root")
    if not Path("/dev/net/tun").exists():
        pytest.fail("/dev/net/tun is missing: mkdir -p /dev/net && mknod /dev/net/tun c 10 200")
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


@pytest.fixture
def world(certificates: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(certificates, tmp_path, dirs_exist_ok=True)
    with World(tmp_path) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    client = Client(world)
    yield client
    client.remove()


@pytest.fixture
def scripts() -> Path:
    return SCRIPTS

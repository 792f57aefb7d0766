"""The container's start where there is nothing to collect; with something, tests/vpn has it."""

from __future__ import annotations

import os
import subprocess

from config import PROJECT
from tests.stack import PATIENCE


def test_more_client_is_idle_while_symbols_is_empty_and_ends_when_told_to() -> None:
    environ = os.environ | {"SYMBOLS": "", "NORDVPN_USER": "somebody", "NORDVPN_PASS": "something"}
    command = ["bash", "docker/entrypoint.sh", "python3", "collect.py"]
    with subprocess.Popen(command, cwd=PROJECT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "SYMBOLS is empty: nothing to collect here\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(PATIENCE) == 0

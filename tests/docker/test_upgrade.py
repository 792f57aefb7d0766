"""From the version before to this one, with data in place, and from docker-compose 1.29 to version 2 on the way."""

from __future__ import annotations

import json
import subprocess

import pytest

from config import ALL_CONFIGS
from tests.docker.dockerlab import CLICKHOUSE_IMAGE, IMAGE, Docker, compose, deployment
from tests.docker.test_deployment import CLIENTS, DATABASE_PASSWORD, assert_complete, up, wait_for_more

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def test_an_upgrade_keeps_every_row(docker: Docker) -> None:
    with deployment(docker, "1.29", "upgrade", before=True) as (project, exchange_log):
        project.configure(
            CLICKHOUSE_PASSWORD=DATABASE_PASSWORD,
            CLICKHOUSE_IMAGE=f"{CLICKHOUSE_IMAGE}:before",
            TUN_DEVICE="/dev/null",
        )
        docker.run("docker", "tag", f"{IMAGE}:before", IMAGE)
        up(project)
        wait_for_more(project, *CLIENTS.values())
        before = {table: project.rows(table) for table in CLIENTS.values()}

        # git pull; ./setup.sh; docker compose up -d
        project.install()
        docker.run("docker", "tag", f"{IMAGE}:now", IMAGE)
        setup = subprocess.run(
            ["./setup.sh"],
            cwd=project.directory,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "added a random CLICKHOUSE_COLLECTOR_PASSWORD" in setup.stdout
        env = project.directory / ".env"
        env.write_text(env.read_text().replace(f"{CLICKHOUSE_IMAGE}:before", CLICKHOUSE_IMAGE))
        project.use(compose(docker, "2"))
        up(project)
        wait_for_more(project, *CLIENTS.values())
        project.compose("stop " + " ".join(CLIENTS))

        frames = [json.loads(line) for line in exchange_log.read_text().splitlines()]
        for config in ALL_CONFIGS:
            rows = project.rows(config["table_name"])
            assert rows[: len(before[config["table_name"]])] == before[config["table_name"]]
            assert_complete(rows, [frame for frame in frames if frame["symbol"] == config["symbol"]])

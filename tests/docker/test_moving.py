"""To another server, by the commands of DEPLOYMENT.md."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from config import ALL_CONFIGS, PROJECT
from tests.docker.dockerlab import Docker, deployment
from tests.docker.test_deployment import CLIENTS, assert_complete, configure, up, wait_for_more

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


def test_a_move_to_another_server_keeps_every_row(docker: Docker, tmp_path: Path) -> None:
    """The other server is this one, once all volumes are gone; what was copied waits in a folder meanwhile."""
    (commands,) = re.findall(r"```bash\n(volumes=.*?)```", (PROJECT / "DEPLOYMENT.md").read_text(), re.DOTALL)
    commands, there = re.subn(r'"new:\$volumes/"', f'"{tmp_path}/"', commands)
    commands, started = re.subn(r"\nssh new .*", "", commands)
    assert there == started == 1
    with deployment(docker, "2", "moving") as (project, exchange_log):
        configure(project, TUN_DEVICE="/dev/null")
        up(project)
        wait_for_more(project, *CLIENTS.values())
        before = {table: project.rows(table) for table in CLIENTS.values()}
        project.bash(commands)
        project.compose("down --volumes")

        project.compose("up --no-start")
        project.bash(f'rsync --archive {tmp_path}/ "$(dirname {project.volume("clickhouse_data").parent})/"')
        up(project)
        wait_for_more(project, *CLIENTS.values())
        project.compose("stop " + " ".join(CLIENTS))
        frames = [json.loads(line) for line in exchange_log.read_text().splitlines()]
        for config in ALL_CONFIGS:
            rows = project.rows(config["table_name"])
            assert rows[: len(before[config["table_name"]])] == before[config["table_name"]]
            assert_complete(rows, [frame for frame in frames if frame["symbol"] == config["symbol"]])
            times = [ts for ts, _, _ in rows]
            gap = max(late - early for early, late in pairwise(times))  # for `pytest -rP`
            print(f"{config['symbol']}: {gap / 1000:.1f} s between the last row here and the first one there")

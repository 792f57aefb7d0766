"""HISTORY_ENGINE with a replicated engine: what ch_setup.py makes, against a real ZooKeeper (Debian's).

The embedded engine makes the table and notes it in ZooKeeper, but stays in its read-only mode: no INSERT can be tried.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.store.history import what_is_wrong
from tests.stack import Stack, eventually, free_port, open_stack

PATH = "/clickhouse/tables/{shard}/{database}/{table}"
JAVA = ["java", "-cp", "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar", "-Xmx64m"]

# local.clickhouse, with settings of a server for replicas.
SERVER = """
import os, sys
from local import clickhouse

class Engine(clickhouse.Engine):
    def connect(self):
        return self._connect(f"{self._data}?config-file={os.environ['SERVER_CONFIG']}")

clickhouse.Engine = Engine
sys.exit(clickhouse.main())
"""


@contextmanager
def zookeeper(directory: Path) -> Iterator[int]:
    """Run a ZooKeeper, and give its port."""
    port = free_port()
    (directory / "zoo.cfg").write_text(
        f"tickTime=500\ndataDir={directory}/zookeeper\nclientPort={port}\nclientPortAddress=127.0.0.1\n"
        "admin.enableServer=false\n4lw.commands.whitelist=srvr\n"
    )
    command = [*JAVA, "org.apache.zookeeper.server.ZooKeeperServerMain", "zoo.cfg"]
    with (directory / "zookeeper.log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (directory / "zookeeper.log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as asked:
            asked.sendall(b"srvr")
            return asked.recv(100).startswith(b"Zookeeper version")  # else it does not serve yet
        return False

    try:
        eventually(answers, "ZooKeeper answers")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with zookeeper(tmp_path) as port, open_stack(tmp_path) as opened:
        config = tmp_path / "replica.xml"
        config.write_text(
            f"<clickhouse><zookeeper><node><host>127.0.0.1</host><port>{port}</port></node></zookeeper>"
            "<macros><shard>1</shard><replica>one</replica></macros></clickhouse>"
        )
        opened.env["ZOOKEEPER"] = str(port)
        opened.env |= {"HISTORY": "1", "HISTORY_ENGINE": f"ReplicatedMergeTree('{PATH}', '{{replica}}')"}
        server = opened.start("-c", SERVER, "--port", opened.port, "--data", opened.data, SERVER_CONFIG=config)
        server.wait_for("listening on")
        yield opened


@pytest.mark.zookeeper
def test_histories_are_made_as_replicas(stack: Stack) -> None:
    stack.setup()
    stack.setup()  # keeps all
    replicas = stack.query("SELECT table, zookeeper_path, replica_name FROM system.replicas ORDER BY table")
    paths = [
        (f"{name}_history", f"/clickhouse/tables/1/mexc_data/{name}_history", "one") for name in ("btc", "eth", "sol")
    ]
    assert replicas == paths
    client = [*JAVA, "org.apache.zookeeper.ZooKeeperMain", "-server", f"127.0.0.1:{stack.env['ZOOKEEPER']}"]
    listed = subprocess.run([*client, "ls", "-R", "/"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{path}/replicas/one" for _, path, _ in paths} <= set(listed)
    for name in ("btc", "eth", "sol"):
        assert what_is_wrong(stack.client, "mexc_data", name) is None
    assert stack.query("SELECT count() FROM mexc_data.btc_deals") == [(0,)]
    ((files,),) = stack.query("SELECT count() FROM system.tables WHERE engine = 'StripeLog' AND name = 'btc'")
    assert files == 1

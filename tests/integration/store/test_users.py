"""What the collectors' user of ClickHouse may do, by docker/clickhouse-users.xml, in a real engine.

The engine is newer than the container's. It also shows what is in `system` to everybody, which a server does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import PROJECT
from tests.stack import Stack, eventually, open_stack

ACCESS_DENIED = 497


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse with its tables, and a row; only the collectors' user can log in, and with its own rights."""
    with open_stack(tmp_path_factory.mktemp("users")) as stack:
        server = stack.clickhouse()
        stack.env |= {"HISTORY": "1", "HISTORY_INTERVAL": "0.2"}
        stack.setup()
        stack.query("INSERT INTO mexc_data.btc VALUES (1788335242156, 'd', '77525.9|3|2')")
        stack.query("CREATE TABLE default.others (a Int8) ENGINE = StripeLog")
        assert server.stop() == 0
        stack.env |= {"CLICKHOUSE_USER": "collector", "CLICKHOUSE_COLLECTOR_PASSWORD": "of the collectors"}
        server = stack.start(
            *("-m", "tests.docker.clickhouse", "--port", stack.port, "--data", stack.data),
            ONLY_COLLECTOR="1",
            USERS=PROJECT / "docker" / "clickhouse-users.xml",
        )
        server.wait_for("listening on")
        stack.env["CLICKHOUSE_PASSWORD"] = "of the collectors"
        yield stack


@pytest.fixture(scope="module")
def client(stack: Stack) -> Client:
    return Client("127.0.0.1", port=stack.port, user="collector", password="of the collectors")


def test_a_collector_needs_no_more(stack: Stack, client: Client) -> None:
    exchange = stack.exchange("--rate", 50)
    collector = stack.collector(COMPACT_BLOCKS=0)
    count = "SELECT count() FROM mexc_data.btc"
    eventually(lambda: client.execute(count)[0][0] > 100, "rows")
    assert collector.stop() == 0
    assert client.execute("SELECT count() FROM mexc_data.btc_history") == [(client.execute(count)[0][0] - 1,)]
    assert "error" not in collector.output.lower().replace("errors: 0", "")
    on_its_way = 10  # frames, as the collector was told to stop
    assert len(exchange.sent()) - on_its_way <= client.execute(count)[0][0]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE mexc_data.btc",
        "DROP DATABASE mexc_data",
        "TRUNCATE TABLE mexc_data.btc",
        "RENAME TABLE mexc_data.btc TO mexc_data.gone",
        "EXCHANGE TABLES mexc_data.btc AND mexc_data.eth",
        "DETACH TABLE mexc_data.btc",
        "CREATE TABLE mexc_data.own (a Int8) ENGINE = StripeLog",
        "CREATE OR REPLACE TABLE mexc_data.btc (a Int8) ENGINE = StripeLog",
        "CREATE DATABASE own",
        "ALTER TABLE mexc_data.btc MODIFY COMMENT 'x'",
        "SELECT * FROM default.others",
        "INSERT INTO default.others VALUES (1)",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "INSERT INTO FUNCTION file('x', 'LineAsString') SELECT 'x'",
        "SELECT * FROM url('http://127.0.0.1/', 'LineAsString')",
        "SELECT * FROM system.users",
        "CREATE USER other",
        "GRANT DROP TABLE ON *.* TO default",
        "SYSTEM SHUTDOWN",
    ],
)
def test_it_can_do_nothing_else(client: Client, statement: str) -> None:
    with pytest.raises(ServerException) as caught:
        client.execute(statement)
    assert caught.value.code == ACCESS_DENIED, caught.value.message
    assert client.execute("SELECT m FROM mexc_data.btc LIMIT 1") == [("77525.9|3|2",)]


def test_nobody_else_can_log_in_here(stack: Stack) -> None:
    with pytest.raises(ServerException, match="Authentication failed"):
        Client("127.0.0.1", port=stack.port, password="of the tests").execute("SELECT 1")


def test_the_password_is_the_containers_business() -> None:
    assert "CLICKHOUSE_COLLECTOR_PASSWORD" in (PROJECT / "docker" / "clickhouse-users.xml").read_text()
    compose = (PROJECT / "docker-compose.yml").read_text()
    for line in compose.splitlines():
        if "clickhouse-users.xml:" in line:
            assert Path(line.split(":")[1]).parent == Path("/etc/clickhouse-server/users.d")

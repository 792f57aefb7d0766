"""What ClickHouse's users may do, in a real engine: collectors, by docker/clickhouse-users.xml; readers, by the docs.

The engine is newer than the container's. It also shows what is in `system` to everybody, which a server does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import PROJECT
from tests.stack import Stack, eventually, open_stack

ACCESS_DENIED = 497


@contextmanager
def only(name: str, users: Path, directory: Path) -> Iterator[Stack]:
    """ClickHouse with its tables, and a row; only that user can log in, and with the rights that `users` gives it."""
    with open_stack(directory) as stack:
        server = stack.clickhouse()
        stack.env |= {"HISTORY": "1", "HISTORY_INTERVAL": "0.2"}
        stack.setup()
        stack.query("INSERT INTO mexc_data.btc VALUES ('2026-09-02 07:07:22.156', 'd', '77525.9|3|2')")
        stack.query("CREATE TABLE default.others (a Int8) ENGINE = StripeLog")
        assert server.stop() == 0
        stack.env |= {"CLICKHOUSE_USER": name, "CLICKHOUSE_COLLECTOR_PASSWORD": "of the collectors"}
        server = stack.start(
            *("-m", "tests.docker.clickhouse", "--port", stack.port, "--data", stack.data),
            ONLY_COLLECTOR="1",
            NAME=name,
            USERS=users,
        )
        server.wait_for("listening on")
        stack.env["CLICKHOUSE_PASSWORD"] = "of the collectors"
        yield stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with only("collector", PROJECT / "docker" / "clickhouse-users.xml", tmp_path_factory.mktemp("users")) as stack:
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


def test_the_reader_of_the_docs_may_read_and_nothing_else(tmp_path: Path) -> None:
    (users,) = re.findall(r"```xml\n(.*?)```", (PROJECT / "docs/SETTINGS.md").read_text(), re.DOTALL)
    (tmp_path / "reader.xml").write_text(users)
    (sql,) = re.findall(r"\npython3 - <<'END'\n(.*?)END\n", (PROJECT / "docs/DATA.md").read_text(), re.DOTALL)
    with only("reader", tmp_path / "reader.xml", tmp_path) as stack:
        shown = stack.run("-c", sql)
        assert (shown.wait(), shown.output) == (0, "2026-09-02 07:07:22.156000 77525.9|3|2")
        loaded = stack.run("-c", "from pipeline.read import load; print(len(load('btc', 'deals')))", HISTORY=0)
        assert (loaded.wait(), loaded.output) == (0, "1")
        assert stack.run("verif.py", "--quality", "--only", "btc").wait() == 0
        client = Client("127.0.0.1", port=stack.port, user="reader", password="of the collectors")
        for statement in ("INSERT INTO mexc_data.btc (m) VALUES ('')", "DROP TABLE mexc_data.btc", "CREATE USER other"):
            with pytest.raises(ServerException) as caught:
                client.execute(statement)
            assert caught.value.code == ACCESS_DENIED, caught.value.message


def test_the_password_is_the_containers_business() -> None:
    assert "CLICKHOUSE_COLLECTOR_PASSWORD" in (PROJECT / "docker" / "clickhouse-users.xml").read_text()
    compose = (PROJECT / "docker-compose.yml").read_text()
    for line in compose.splitlines():
        if "clickhouse-users.xml:" in line:
            assert Path(line.split(":")[1]).parent == Path("/etc/clickhouse-server/users.d")

"""The local ClickHouse: a real process, real clickhouse-driver clients, and some that behave badly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from clickhouse_driver.protocol import ServerPacketTypes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import BTC_CONFIG, PROJECT
from local import native
from local.native import ProtocolError, Reader

USER, PASSWORD = "tester", "s3cret ü"
PER_EXAMPLE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class LocalServer:
    """A server process on a free port."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.process = launch("--port", "0", "--data", str(data))
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        found = re.fullmatch(
            r"ClickHouse [\d.]+ \(chdb\) listening on 127\.0\.0\.1:(\d+), data in (.+)\n", self.ready_line
        )
        assert found, (self.ready_line, self.process.communicate())
        self.port = int(found[1])

    def client(self, **options: Any) -> Client:
        return Client("127.0.0.1", **{"port": self.port, "user": USER, "password": PASSWORD, **options})

    def socket(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(30)
        return connection

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Return the exit code and what else was said on stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def launch(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CLICKHOUSE_USER": USER, "CLICKHOUSE_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "local.clickhouse", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    running = LocalServer(tmp_path_factory.mktemp("clickhouse") / "some data")
    running.client().execute("CREATE DATABASE d")
    yield running
    assert running.stop() == (0, "", "")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[], LocalServer]]:
    """Start servers that the test stops itself, all on the same data."""
    started: list[LocalServer] = []

    def start() -> LocalServer:
        started.append(LocalServer(tmp_path / "data"))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with server.client() as connected:
        yield connected


def new_table(client: Client, columns: str = "ts DateTime64(3), mt LowCardinality(String), m String") -> str:
    name = f"d.t{uuid.uuid4().hex}"
    client.execute(f"CREATE TABLE {name} ({columns}) ENGINE = StripeLog")
    return name


def new_market_table(client: Client) -> str:
    return new_table(client)


def count(client: Client, table: str) -> int:
    return int(client.execute(f"SELECT count() FROM {table}")[0][0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"


def running_ids(client: Client) -> set[str]:
    me = uuid.uuid4().hex
    return {row[0] for row in client.execute("SELECT query_id FROM system.processes", query_id=me)} - {me}


def ask(client: Client, sql: str, query_id: str = "") -> list[Any]:
    """Run a statement without the driver's habit of reconnecting after an exception; return all packets."""
    connection = client.connection
    connection.force_connect()
    connection.send_query(sql, query_id=query_id)
    connection.send_external_tables(None)
    packets: list[Any] = []
    while not packets or packets[-1].type not in (ServerPacketTypes.END_OF_STREAM, ServerPacketTypes.EXCEPTION):
        packets.append(connection.receive_packet())
    connection.is_query_executing = False
    return packets


def client_data(block: bytes) -> bytes:
    """A Data packet as a client sends it."""
    return bytes([native.DATA]) + native.encode_data(block)[1:]


def prepare(client: Client) -> Client:
    client.execute("SELECT 1")
    return client


def recorded(server: LocalServer, talk: Callable[[Client], Any]) -> bytes:
    """Return all bytes that a client sends while it talks to the server through a relay."""
    said = bytearray()

    def relay(source: socket.socket, target: socket.socket, record: bytearray) -> None:
        while data := source.recv(65536):
            record.extend(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener, server.socket() as upstream:
        client = server.client(port=listener.getsockname()[1])
        talking = threading.Thread(target=lambda: (talk(client), client.disconnect()))
        talking.start()
        downstream, _ = listener.accept()
        with downstream:
            answering = threading.Thread(target=relay, args=(upstream, downstream, bytearray()))
            answering.start()
            relay(downstream, upstream, said)
            talking.join()
            answering.join()
    return bytes(said)


def index_size(server: LocalServer, client: Client, table: str) -> int:
    """The size of a StripeLog table's index: every block adds one frame of the same size."""
    database, name = table.split(".")
    where = f"database = '{database}' AND name = '{name}'"
    ((paths,),) = client.execute(f"SELECT data_paths FROM system.tables WHERE {where}")
    index = Path(paths[0]) / "index.mrk"
    return index.stat().st_size if index.exists() else 0


# Connecting


def test_it_listens_on_loopback_only(server: LocalServer) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port))


def test_the_ready_line_names_version_and_data(server: LocalServer, client: Client) -> None:
    ((version,),) = client.execute("SELECT version()")
    assert server.ready_line.startswith(f"ClickHouse {version} (chdb) ")
    assert server.ready_line.endswith(f", data in {server.data}\n")
    info = client.connection.server_info
    assert (info.name, info.used_revision) == ("ClickHouse", native.REVISION)
    assert version.startswith(".".join(map(str, (info.version_major, info.version_minor, info.version_patch))))


@pytest.mark.parametrize("wrong", [{"password": "x"}, {"password": ""}, {"user": "default"}])
def test_wrong_credentials_are_refused(server: LocalServer, wrong: dict[str, str]) -> None:
    with pytest.raises(ServerException, match="Authentication failed") as refused:
        server.client(**wrong).execute("SELECT 1")
    assert refused.value.code == 516


def test_an_unknown_database_is_refused(server: LocalServer) -> None:
    with pytest.raises(ServerException, match="nowhere") as refused:
        server.client(database="nowhere").execute("SELECT 1")
    assert refused.value.code == 81


def test_each_connection_has_its_own_database(server: LocalServer, client: Client) -> None:
    table = new_market_table(client).removeprefix("d.")
    with server.client(database="d") as other:
        assert other.execute(f"INSERT INTO {table} (m) VALUES", [("x",)]) == 1
        assert other.execute(f"SELECT m FROM {table}") == [("x",)]
        with pytest.raises(ServerException) as unknown:
            client.execute(f"SELECT m FROM {table}")
        assert unknown.value.code == 60
        client.execute("USE d")
        other.execute("USE system")
        assert client.execute(f"SELECT m FROM {table}") == [("x",)]
        assert other.execute("SELECT currentDatabase()") == [("system",)]
        assert other.execute("SELECT current_database FROM system.processes") == [("system",)]


def test_a_client_that_wants_compression_is_told(server: LocalServer) -> None:
    client = prepare(server.client())
    client.connection.compression = 1
    with pytest.raises(ServerException, match="Compression is not supported") as refused:
        client.execute("SELECT 1")
    assert refused.value.code == 48


# Results


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("DateTime64(3)", [datetime(2025, 8, 21, 1, 2, 3, 456000), datetime(1970, 1, 1)]),
        ("DateTime64(6, 'UTC')", [datetime(2025, 8, 21, 1, 2, 3, 456789, tzinfo=UTC)]),
        ("DateTime", [datetime(2025, 8, 21, 1, 2, 3)]),
        ("Date", [date(2025, 8, 21)]),
        ("Enum8('t' = 1, 'it\\'s, (odd)' = -2)", ["t", "it's, (odd)"]),
        ("UInt8", [0, 255]),
        ("UInt64", [0, 2**64 - 1]),
        ("Int64", [-(2**63), 2**63 - 1]),
        ("Int128", [-(2**127), 2**127 - 1]),
        ("Float64", [0.1, -1e300]),
        ("Bool", [True, False]),
        ("UUID", [uuid.UUID(int=0), uuid.uuid4()]),
        ("Decimal(18, 4)", [Decimal("1.2345")]),
        ("Decimal(38, 4)", [Decimal("-1.2345")]),
        ("FixedString(3)", ["abc"]),
        ("String", ["", "ü", "x" * 127, "x" * 128, "x" * 70_000]),
        ("Nullable(String)", [None, "", "x"]),
        ("LowCardinality(String)", ["a", "b", "a"]),
        ("LowCardinality(Nullable(String))", ["a", None, "a"]),
        ("Array(String)", [[], ["a", "", "b" * 300], ["c"]]),
        ("Array(Array(Nullable(Int8)))", [[], [[1, None], []]]),
        ("Array(LowCardinality(String))", [["a", "b"], [], ["b"]]),
        ("Tuple(UInt8, String)", [(1, "a"), (2, "b")]),
        ("Tuple(a UInt8, c Array(LowCardinality(String)))", [(1, ["a"])]),
        ("Tuple(Decimal(9, 2), String)", [(Decimal("1.25"), "a")]),
        ("Array(Tuple(String, Array(Tuple(UInt8, String))))", [[("a", [(1, "b"), (2, "c")])], []]),
        ("Map(String, UInt64)", [{}, {"a": 1, "b": 2}]),
    ],
)
def test_values_come_back_as_they_went(client: Client, kind: str, values: list[Any]) -> None:
    table = new_table(client, f"i UInt32, v {kind}, last String")
    rows = [(i, value, "end") for i, value in enumerate(values)]
    client.execute(f"INSERT INTO {table} VALUES", rows)
    assert client.execute(f"SELECT * FROM {table} ORDER BY i") == rows
    client.execute(f"INSERT INTO {table} SELECT * FROM {table}")
    assert client.execute(f"SELECT * FROM {table} ORDER BY i") == [row for row in rows for _ in range(2)]


@PER_EXAMPLE
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=300), st.none() | st.text()), min_size=1))
def test_any_bytes_come_back_as_they_went(client: Client, rows: list[tuple[int, bytes, str | None]]) -> None:
    client.execute("CREATE TEMPORARY TABLE IF NOT EXISTS any (u UInt64, b String, s Nullable(String)) ENGINE = Memory")
    client.execute("TRUNCATE TABLE any")
    client.execute("INSERT INTO any (u, b, s) VALUES", rows, settings={"strings_as_bytes": False})
    stored = client.execute("SELECT u, hex(b), s FROM any", settings={"max_threads": 1})
    assert stored == [(u, b.hex().upper(), s) for u, b, s in rows]
    back = client.execute("SELECT b FROM any", settings={"max_threads": 1, "strings_as_bytes": True})
    assert back == [(b,) for _, b, _ in rows]


@pytest.mark.parametrize("where", ["1", "0"])
def test_a_result_says_its_columns_even_without_rows(client: Client, where: str) -> None:
    sql = f"/* with a comment */ SELECT 1 AS n, 'a' AS s WHERE {where};"
    rows, columns = client.execute(sql, with_column_types=True)
    assert (len(rows), columns) == (int(where), [("n", "UInt8"), ("s", "String")])


def test_statements_that_are_not_select_answer_too(client: Client) -> None:
    table = new_market_table(client)
    name = table.removeprefix("d.")
    assert (name,) in client.execute("SHOW TABLES FROM d")
    assert client.execute(f"EXISTS TABLE {table}") == [(1,)]
    assert client.execute(f"DESCRIBE {table}")[1][:2] == ("mt", "LowCardinality(String)")
    assert client.execute(f"EXPLAIN SELECT * FROM {table}")
    assert client.execute(f"SHOW CREATE TABLE {table} FORMAT TSVRaw")[0][0].startswith(f"CREATE TABLE {table}")
    assert client.execute("WITH 2 AS x SELECT x FORMAT JSON;") == [(2,)]
    assert client.execute("SELECT 'FORMAT JSON' AS format ORDER BY format DESC") == [("FORMAT JSON",)]


def test_a_big_result_comes_in_order_and_whole(client: Client) -> None:
    rows = client.execute_iter("SELECT number, toString(number) FROM numbers(200000) SETTINGS max_threads = 1")
    assert all(row == (i, str(i)) for i, row in enumerate(rows))
    few = client.execute("SELECT number FROM numbers(3000000) WHERE number % 1000000 = 1")
    assert few == [(1,), (1000001,), (2000001,)]


def test_a_huge_result_is_not_held_in_memory(server: LocalServer, client: Client) -> None:
    def memory() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])

    client.execute("SELECT * FROM numbers(200000)")
    before = memory()
    reader = prepare(server.client())
    reader.connection.send_query("SELECT number, repeat('x', 100) FROM numbers(10000000)")
    reader.connection.send_external_tables(None)
    received = 0
    while received < 1_000_000_000:
        received += len(reader.connection.socket.recv(1 << 20))
    assert memory() - before < 150_000
    reader.disconnect()


def test_a_select_can_be_cancelled(client: Client) -> None:
    rows = client.execute_iter("SELECT number FROM numbers(1000000000000)")
    next(rows)
    connection = client.connection
    client.cancel()
    assert client.execute("SELECT 1") == [(1,)]
    assert client.connection is connection
    assert running_ids(client) == set()


def test_a_reader_that_goes_away_ends_its_select(server: LocalServer, client: Client) -> None:
    reader = server.client()
    next(reader.execute_iter("SELECT number FROM numbers(1000000000000)", query_id="endless"))
    assert running_ids(client) == {"endless"}
    reader.disconnect()
    wait_until(lambda: not running_ids(client))


# Exceptions


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT * FROM nowhere", 60),
        ("SELECT nothing", 47),
        ("SELECT (", 62),
        ("", 62),
        ("SELECT throwIf(number = 100000) FROM numbers(200000)", 395),
        ("SELECT throwIf(1, concat('not UTF-8: ', char(255)))", 395),
        ("DROP TABLE d.nowhere", 60),
        ("DROP TABLE IF EXISTS a; DROP TABLE IF EXISTS b", 62),
        ("INSERT INTO d.nowhere (a) VALUES", 60),
        ("USE nowhere", 81),
    ],
)
def test_an_exception_has_its_code_and_the_connection_goes_on(client: Client, sql: str, code: int) -> None:
    *_, last = ask(client, sql)
    assert last.exception.code == code
    assert "DB::Exception: " in last.exception.message
    *_, data, end = ask(client, "SELECT 1")
    assert data.block.get_rows() == [(1,)]
    assert end.type == ServerPacketTypes.END_OF_STREAM


def test_an_insert_of_wrong_values_fails_and_the_connection_goes_on(client: Client) -> None:
    table = new_table(client, "i UInt8")
    connection = prepare(client).connection
    for name, kind in (("i", "String"), ("j", "UInt8")):
        connection.send_query(f"INSERT INTO {table} VALUES")
        connection.send_external_tables(None)
        connection.receive_packet()
        value = native.encode_string("no number") if kind == "String" else b"\1"
        block = b"\1\1" + native.encode_string(name) + native.encode_string(kind) + value
        connection.socket.sendall(client_data(block) + client_data(b"\0\0"))
        assert connection.receive_packet().exception.code == {"i": 6, "j": 10}[name]
    assert ask(client, f"SELECT count() FROM {table}")[1].block.get_rows() == [(0,)]
    assert client.connection is connection


def test_a_statement_id_can_run_once_at_a_time(server: LocalServer, client: Client) -> None:
    with server.client() as other:
        rows = other.execute_iter("SELECT number FROM numbers(1000000000000)", query_id="twin")
        next(rows)
        *_, last = ask(client, "SELECT 1", query_id="twin")
        assert last.exception.code == 216
        assert ask(client, "SELECT 1")[-1].type == ServerPacketTypes.END_OF_STREAM
        other.cancel()
    assert client.execute("SELECT 1", query_id="twin") == [(1,)]


# Settings


def test_settings_are_in_force_for_their_statement_only(client: Client) -> None:
    ask_for = "SELECT getSetting('max_threads'), getSetting('readonly')"
    ((threads, readonly),) = client.execute(ask_for)
    assert client.execute(ask_for, settings={"max_threads": 7}) == [(7, readonly)]
    assert client.execute(ask_for, settings={"max_threads": 6, "readonly": 1}) == [(6, 1)]
    assert client.execute(ask_for) == [(threads, readonly)]
    client.execute("SET max_block_size = 1234")
    assert client.execute("SELECT getSetting('max_block_size')", settings={"max_threads": 7}) == [(1234,)]
    assert client.execute("SELECT getSetting('max_block_size')") == [(1234,)]


def test_an_unknown_setting_fails_only_if_it_is_important(server: LocalServer, client: Client) -> None:
    assert client.execute("SELECT 1", settings={"no_such_setting": 1}) == [(1,)]
    with server.client(settings_is_important=True) as strict:
        with pytest.raises(ServerException, match="no_such_setting") as unknown:
            strict.execute("SELECT 1", settings={"no_such_setting": 1})
        assert unknown.value.code == 115
        assert strict.execute("SELECT getSetting('max_threads')", settings={"max_threads": 7}) == [(7,)]


def test_a_setting_with_a_bad_value_fails(client: Client) -> None:
    with pytest.raises(ServerException, match="many"):
        client.execute("SELECT 1", settings={"max_threads": "many"})
    assert client.execute("SELECT 1") == [(1,)]


# INSERT


@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("options", [{}, {"async_insert": 0}, {"insert_block_size": 999}])
def test_an_insert_is_one_block_of_the_engine(
    server: LocalServer, client: Client, rows: int, options: dict[str, int]
) -> None:
    table = new_market_table(client)
    sizes = [index_size(server, client, table)]
    for done in (1, 2):
        data = [(1_700_000_000_000 + i, "t", f"{i}|" + "x" * 600) for i in range(rows)]
        assert client.execute(f"INSERT INTO {table} (ts, mt, m) VALUES", data, settings=options) == rows
        assert count(client, table) == done * rows
        sizes.append(index_size(server, client, table))
    one_frame = range(90, 130)
    assert sizes[1] - sizes[0] in one_frame
    assert sizes[2] - sizes[1] in one_frame


def test_columns_left_out_get_their_defaults(client: Client) -> None:
    table = new_table(
        client, "a UInt8, b String DEFAULT concat('b', toString(a)), c String MATERIALIZED 'm', `d e` Int8"
    )
    client.execute(f"INSERT INTO {table} (`d e`, a) VALUES", [(-1, 1)])
    client.execute(f"INSERT INTO {table} (* EXCEPT(b)) VALUES", [(2, -2)])
    client.execute(f"INSERT INTO TABLE {table} SETTINGS max_threads = 1 FORMAT Native", [(3, "x", -3)])
    client.execute(f"-- inline\nINSERT INTO {table} (a) VALUES (4), (5)")
    rows = client.execute(f"SELECT a, b, c, `d e` FROM {table} ORDER BY a")
    assert rows == [(1, "b1", "m", -1), (2, "b2", "m", -2), (3, "x", "m", -3), (4, "b4", "m", 0), (5, "b5", "m", 0)]


def test_a_table_made_anew_with_other_columns_is_noticed(server: LocalServer, client: Client) -> None:
    table = new_table(client, "a UInt8")
    client.execute(f"INSERT INTO {table} VALUES", [(1,)])
    with server.client() as other:
        other.execute(f"DROP TABLE {table} SYNC")
        other.execute(f"CREATE TABLE {table} (b String) ENGINE = StripeLog")
    client.execute(f"INSERT INTO {table} VALUES", [("x",)])
    assert client.execute(f"SELECT b FROM {table}") == [("x",)]


def test_many_clients_at_once(server: LocalServer, client: Client) -> None:
    table = new_market_table(client)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with server.client() as own:
                for i in range(15):
                    own.execute(f"INSERT INTO {table} (ts, mt, m) VALUES", [(i, str(number), f"{i}")])
                    assert own.execute(f"SELECT count() FROM {table} WHERE mt = '{number}'") == [(i + 1,)]
        except BaseException as error:  # noqa: BLE001 (all of them fail the test)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(client, table) == 12 * 15


def test_an_insert_is_listed_until_its_silent_client_goes(server: LocalServer, client: Client) -> None:
    table = new_market_table(client)
    silent = prepare(server.client())
    sql = f"INSERT INTO {table} (m) VALUES"
    silent.connection.send_query(sql, query_id="fence-1")
    wait_until(lambda: running_ids(client) == {"fence-1"})
    mine = "WHERE query_id LIKE 'fence-%'"
    assert client.execute(f"SELECT count() FROM system.processes {mine}") == [(1,)]
    ((shown, user, elapsed),) = client.execute(f"SELECT query, user, elapsed FROM `system`.`processes` AS p {mine}")
    assert (shown, user) == (sql, USER)
    assert elapsed > 0
    silent.connection.send_external_tables(None)
    assert silent.connection.receive_packet().block.columns_with_types == [("m", "String")]
    assert running_ids(client) == {"fence-1"}
    silent.disconnect()
    wait_until(lambda: not running_ids(client))
    assert count(client, table) == 0


def test_an_insert_without_its_client_is_listed_until_it_is_stored(server: LocalServer, client: Client) -> None:
    table = new_table(client, "n UInt64, s UInt8")
    leaving = prepare(server.client())
    rows = "SELECT number, sleepEachRow(0.05) FROM numbers(10)"
    leaving.connection.send_query(f"INSERT INTO {table} {rows}", query_id="alone")
    leaving.connection.send_external_tables(None)
    wait_until(lambda: running_ids(client) == {"alone"})
    leaving.disconnect()
    wait_until(lambda: not running_ids(client))
    assert count(client, table) == 10


def test_system_processes_in_a_string_stays(client: Client) -> None:
    assert client.execute("SELECT 'system.processes', \"system.processes\" FROM (SELECT 1 AS `system.processes`)") == [
        ("system.processes", 1)
    ]


def test_a_client_may_vanish_at_any_byte_of_an_insert(server: LocalServer, client: Client) -> None:
    table = new_market_table(client)
    talk = recorded(server, lambda each: each.execute(f"INSERT INTO {table} (ts, mt, m) VALUES", [(1, "t", "row")]))
    assert count(client, table) == 1
    reader = native.reader_of(talk)
    for read in (native.read_hello, native.read_query, native.read_data):
        reader.varint()
        read(reader)
    question, data = talk[: reader.mark()], talk[reader.mark() :]
    for length in range(len(question)):
        with server.socket() as vanishing:
            vanishing.sendall(question[:length])
    for length in range(len(data) + 1):
        with server.socket() as vanishing:
            vanishing.sendall(question)
            answer = b""
            while not answer.endswith(b"\1m\6String"):  # the sample block
                answer += vanishing.recv(4096)
            vanishing.sendall(data[:length])
    wait_until(lambda: not running_ids(client))
    assert count(client, table) == 2  # the last one is stored, though nobody took the acknowledgement


# Nonsense


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" + b"\xff" * 40, b"\xff" * 11, b"\4"])
def test_nonsense_gets_an_exception(server: LocalServer, nonsense: bytes) -> None:
    with server.socket() as stranger:
        stranger.sendall(nonsense + bytes(2_000_000))
        assert stranger.recv(7).startswith(b"\2\x65\0\0\0")  # exception 101
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):  # a connection that was cut would raise ConnectionResetError
            pass


@pytest.mark.parametrize(
    ("read", "nonsense"),
    [
        (Reader.varint, b"\xff" * 20),
        (lambda reader: reader.skip_strings(1), b"\xff" * 20),
        (native.read_data, b"\0\3\0\0\0\0\0\0\0"),
        (native.read_block, b"\1\1\1n\7Unknown..."),
        (native.read_block, b"\1\1\1n\x12FixedString(three)..."),
        (native.read_block, b"\1\1\1n\xff\x7f" + b"Array(" * 2730 + b"..."),
    ],
)
def test_nonsense_is_noticed(read: Callable[[Reader], Any], nonsense: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(native.reader_of(nonsense))


def test_a_block_without_rows_is_only_its_columns() -> None:
    columns = [("a", "LowCardinality(String)"), ("b", "Array(LowCardinality(String))")]
    reader = native.reader_of(native.encode_header(columns) + b"next")
    assert reader.varint() == native.DATA - 1  # a server's Data is 1, a client's 2
    block = native.read_data(reader)
    assert (block.columns, block.rows) == (columns, 0)
    assert reader.take(4) == b"next"


def test_another_packet_amid_an_insert_ends_it(server: LocalServer, client: Client) -> None:
    table = new_table(client, "m String")
    confused = prepare(server.client()).connection
    confused.send_query(f"INSERT INTO {table} VALUES")
    confused.send_external_tables(None)
    confused.receive_packet()
    row = client_data(b"\1\1\1m\6String\1x")
    confused.socket.sendall(bytes([native.QUERY]) + row[1:] + client_data(b"\0\0"))
    assert confused.receive_packet().exception.code == 101
    assert count(client, table) == 0


@PER_EXAMPLE
@given(st.data())
def test_damaged_talk_hurts_nobody_else(server: LocalServer, client: Client, data: st.DataObject) -> None:
    if not hasattr(server, "talk"):
        table = new_market_table(client)
        rows = [(1, "t", "row"), (2, "d", "x" * 200)]
        server.talk = recorded(server, lambda each: each.execute(f"INSERT INTO {table} (ts, mt, m) VALUES", rows))  # type: ignore[attr-defined]
    talk = bytearray(server.talk)  # type: ignore[attr-defined]
    for _ in range(data.draw(st.integers(1, 3))):
        talk[data.draw(st.integers(0, len(talk) - 1))] = data.draw(st.integers(0, 255))
    with server.socket() as damaged:
        damaged.sendall(talk)
        damaged.shutdown(socket.SHUT_WR)
        try:
            while damaged.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert client.execute("SELECT 1") == [(1,)]


# The engine's tables and files


def test_tables_can_be_provisioned(client: Client) -> None:
    fixed = str(uuid.uuid4())
    create = f"CREATE TABLE d.prov UUID '{fixed}' (m String) ENGINE = StripeLog COMMENT 'token 1'"
    about = "SELECT toString(uuid), comment, total_rows FROM system.tables WHERE database = 'd' AND name = '{}'"
    client.execute(create)
    client.execute("INSERT INTO d.prov VALUES", [("a",), ("b",)])
    assert client.execute(about.format("prov")) == [(fixed, "token 1", 2)]
    client.execute("ALTER TABLE d.prov MODIFY COMMENT 'token 2'")
    client.execute("CREATE TABLE d.fresh (m String) ENGINE = StripeLog")
    client.execute("EXCHANGE TABLES d.prov AND d.fresh")
    assert client.execute(about.format("fresh")) == [(fixed, "token 2", 2)]
    client.execute("RENAME TABLE d.fresh TO d.renamed")
    assert client.execute("SELECT * FROM d.renamed") == [("a",), ("b",)]
    client.execute("DROP TABLE d.renamed SYNC")
    client.execute("DROP TABLE d.prov SYNC")
    client.execute(create)
    assert client.execute(about.format("prov")) == [(fixed, "token 1", 0)]


def test_file_sizes_can_be_asked_for(server: LocalServer, client: Client) -> None:
    table = new_market_table(client)
    client.execute(f"INSERT INTO {table} (m) VALUES", [("x",)])
    listed = client.execute("SELECT _path, _size FROM file('store/*/*/*', One)")
    stored = [path for path in server.data.glob("store/*/*/*") if path.is_file()]
    assert sorted(listed) == sorted((str(path), path.stat().st_size) for path in stored)
    everything = dict(client.execute("SELECT _path, _size FROM file('**', One)"))
    assert everything.items() >= dict(listed).items()
    assert str(server.data / "status") in everything


# Starting and stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_was_acknowledged_is_there_again(own_server: Callable[[], LocalServer], number: int) -> None:
    first = own_server()
    client = first.client()
    client.execute("CREATE DATABASE mexc_data")
    client.execute(
        "CREATE TABLE mexc_data.btc UUID 'b7c4f1d2-6a39-4e58-9c07-2d81f5ab3e60' (m String) ENGINE = StripeLog"
    )
    client.execute("INSERT INTO mexc_data.btc VALUES", [("row",)])
    assert first.stop(number) == (0 if number != signal.SIGKILL else -number, "", "")
    assert (first.data / "store" / BTC_CONFIG["uuid"][:3] / BTC_CONFIG["uuid"] / "data.bin").stat().st_size > 0
    assert (first.data / "status").exists() == (number == signal.SIGKILL)
    second = own_server()
    with second.client(database="mexc_data") as client:
        assert client.execute("SELECT m FROM btc") == [("row",)]
        client.execute("INSERT INTO btc VALUES", [("another",)])
        assert client.execute("SELECT count() FROM btc") == [(2,)]
    assert second.stop() == (0, "", "")


def test_stopping_lets_a_statement_finish(own_server: Callable[[], LocalServer]) -> None:
    server = own_server()
    client, watcher = prepare(server.client()), server.client()
    client.execute("CREATE TABLE slow (n UInt64, s UInt8) ENGINE = StripeLog")
    client.connection.send_query("INSERT INTO slow SELECT number, sleepEachRow(0.05) FROM numbers(20)", query_id="slow")
    client.connection.send_external_tables(None)
    wait_until(lambda: running_ids(watcher) == {"slow"})
    server.process.send_signal(signal.SIGTERM)
    assert client.connection.receive_packet().type == ServerPacketTypes.END_OF_STREAM
    assert server.stop() == (0, "", "")
    assert count(own_server().client(), "slow") == 20


def test_stopping_does_not_wait_for_clients_that_do_nothing(own_server: Callable[[], LocalServer]) -> None:
    server = own_server()
    client = server.client()
    client.execute("CREATE TABLE t (m String) ENGINE = StripeLog")
    not_reading = prepare(server.client())
    not_reading.connection.send_query("SELECT number FROM numbers(10000000) SETTINGS max_block_size = 10000000")
    not_reading.connection.send_external_tables(None)
    not_reading.connection.socket.recv(1000, socket.MSG_PEEK | socket.MSG_WAITALL)  # the server is amid sending
    not_sending = prepare(server.client())
    not_sending.connection.send_query("INSERT INTO t VALUES")
    wait_until(lambda: len(running_ids(client)) == 2)
    with server.socket():
        assert server.stop() == (0, "", "")


def test_the_engine_takes_no_signals(server: LocalServer) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    caught = int(re.findall(r"SigCgt:\s+([0-9a-f]+)", status)[0], 16)
    ordinary = {number for number in range(1, 32) if caught >> (number - 1) & 1}
    assert ordinary == {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("case", ["port", "data", "not a directory", "no such port", "options"])
def test_what_keeps_it_from_starting_is_one_line(server: LocalServer, tmp_path: Path, case: str) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    port = {"port": str(server.port), "no such port": "65536"}.get(case, "0")
    data = {"data": server.data, "not a directory": occupied, "options": tmp_path / "a?b"}.get(case, tmp_path)
    refused = launch("--port", port, "--data", str(data))
    out, err = refused.communicate(timeout=30)
    assert (refused.returncode, out, err.count("\n")) == (2, "", 1)
    expected = {
        "port": "in use",
        "data": "already running",
        "not a directory": "File exists",
        "no such port": "65535",
        "options": "options",
    }
    assert expected[case] in err

"""Each journaled row is in the table once, whatever happens to the connection, the server and the table."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config import BTC_CONFIG, Settings, load_settings
from pipeline.collect import table as table_module
from pipeline.collect.errors import StillInserting, TableMissing
from pipeline.collect.journal import RETAINED_ROWS, Journal
from pipeline.collect.table import APPEND_ERRORS, Table
from pipeline.store.client import connect
from pipeline.store.schema import create_table, drop_table
from tests.proxy import Direction, Proxy, open_proxy
from tests.stack import Stack, StoredRow


def numbered(first: int, last: int) -> list[StoredRow]:
    return [(1_788_335_242_000 + n, "d", f"{n}|1|1") for n in range(first, last + 1)]


class Writer:
    """A journal and a table as a collector has them, on a fresh table."""

    def __init__(self, stack: Stack, directory: Path, port: int) -> None:
        self.stack = stack
        self.said: list[str] = []
        self.path = directory / "btc.db"
        self.settings = replace(settings_of(stack), clickhouse_port=port)
        stack.setup("--reset", "--yes")
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.path, 1 << 30)
        self.table = Table(self.settings, "btc", self.journal, self.said.append)

    def close(self) -> None:
        self.table.close()
        self.journal.close()

    def reopen(self) -> None:
        """As after the process was killed."""
        self.close()
        self.open()

    def take(self, rows: list[StoredRow]) -> None:
        self.journal.append([(*row, 0) for row in rows])

    def store(self) -> int:
        """Send until all is stored; return how many tries failed."""
        failures = 0
        while self.journal.waiting or not self.table.in_step:
            try:
                self.table.append_pending()
            except APPEND_ERRORS:
                failures += 1
                assert failures < 1000
        return failures


def settings_of(stack: Stack) -> Settings:
    return load_settings(stack.env, dotenv=None)


@pytest.fixture
def proxy(served: Stack) -> Iterator[Proxy]:
    with open_proxy(served.port) as opened:
        yield opened


@pytest.fixture
def writer(served: Stack, proxy: Proxy, tmp_path: Path) -> Iterator[Writer]:
    opened = Writer(served, tmp_path, proxy.port)
    yield opened
    opened.close()


@pytest.fixture
def own_writer(running: Stack, tmp_path: Path) -> Iterator[Writer]:
    """A writer on a server that the test may end."""
    opened = Writer(running, tmp_path, running.port)
    yield opened
    opened.close()


@pytest.mark.parametrize("rows_an_insert", [1, 7])
@pytest.mark.parametrize("direction", ["to server", "to client"])
def test_a_connection_cut_at_any_byte_of_an_insert(
    writer: Writer, proxy: Proxy, direction: Direction, rows_an_insert: int
) -> None:
    writer.take(numbered(1, 1))
    writer.store()
    before = proxy.passed[direction]
    writer.take(numbered(2, 1 + rows_an_insert))
    writer.store()
    conversation = proxy.passed[direction] - before
    assert conversation > 20
    taken = 1 + rows_an_insert
    for byte in range(conversation):
        writer.take(numbered(taken + 1, taken + rows_an_insert))
        taken += rows_an_insert
        proxy.cut_after(direction, byte)
        assert writer.store() >= 1
    assert proxy.cuts == conversation
    assert writer.stack.rows() == numbered(1, taken)
    assert writer.said == []


def test_a_lost_acknowledgement_a_hundred_times(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 1))
    writer.store()
    before = proxy.passed["to client"]
    writer.take(numbered(2, 2))
    writer.store()
    answer = proxy.passed["to client"] - before
    for n in range(3, 103):
        writer.take(numbered(n, n))
        proxy.cut_after("to client", answer - 1)  # the last byte says that the row is stored
        with pytest.raises(APPEND_ERRORS):
            writer.table.append_pending()
        assert writer.stack.count() == n, "the row was stored, only the collector does not know"
        writer.store()
        assert writer.stack.count() == n
    assert writer.stack.rows() == numbered(1, 102)


def test_a_killed_process_takes_up_where_it_was(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.take(numbered(11, 15))
    proxy.cut_after("to client", 0)
    with pytest.raises(APPEND_ERRORS):
        writer.table.append_pending()
    writer.reopen()
    writer.store()
    assert writer.stack.rows() == numbered(1, 15)


def test_a_server_that_was_killed_and_came_back(own_writer: Writer) -> None:
    own_writer.take(numbered(1, 10))
    own_writer.store()
    own_writer.stack.processes[0].stop(signal.SIGKILL)
    own_writer.take(numbered(11, 20))
    with pytest.raises(APPEND_ERRORS):
        own_writer.table.append_pending()
    own_writer.stack.clickhouse()
    own_writer.store()
    assert own_writer.stack.rows() == numbered(1, 20)


def test_rows_that_the_server_acknowledged_and_lost_are_sent_again(own_writer: Writer) -> None:
    own_writer.take(numbered(1, 100))
    own_writer.store()
    backup = {path: path.read_bytes() for path in own_writer.stack.data.glob("store/b7c/*/*")}
    own_writer.take(numbered(101, 150))
    own_writer.store()
    own_writer.stack.processes[0].stop(signal.SIGKILL)
    for path, content in backup.items():  # the power failed, and the last writes never reached the disk
        path.write_bytes(content)
    own_writer.stack.clickhouse()
    own_writer.take(numbered(151, 160))
    own_writer.store()
    assert own_writer.stack.rows() == numbered(1, 160)
    assert own_writer.said == ["mexc_data.btc lost its last 50 rows: sending them again"]


def test_rows_lost_beyond_the_retained_ones_are_said(writer: Writer) -> None:
    writer.take(numbered(1, 2 * RETAINED_ROWS))
    writer.store()
    writer.journal.renumber(writer.journal.oldest - 1, 30_000, str(writer.journal.token))  # as if there were more
    writer.journal.acknowledge(writer.journal.newest)
    writer.table.in_step = False
    writer.store()
    assert writer.said == [
        "WARNING: mexc_data.btc lost 20,000 rows, and the first 10,000 of them are no longer in the journal;"
        " sending the others again"
    ]
    assert writer.stack.count() == 2 * RETAINED_ROWS + RETAINED_ROWS


def test_another_writer_is_said_and_none_of_ours_is_lost(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.stack.query("INSERT INTO mexc_data.btc SELECT 0, 'dl', 'somebody else' FROM numbers(3)")
    writer.reopen()
    writer.take(numbered(11, 12))
    writer.store()
    (line,) = writer.said
    assert line.startswith("WARNING: somebody else wrote to mexc_data.btc: it holds 13 rows")
    rows = writer.stack.rows()
    assert rows[:10] == numbered(1, 10)
    assert rows[13:] == numbered(11, 12)


def test_after_a_reset_waiting_rows_go_to_the_new_table_and_stored_ones_do_not_come_back(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.stack.setup("--reset", "--yes")
    writer.take(numbered(11, 15))
    writer.store()  # on the old connection, to which the table looks the same
    writer.reopen()
    writer.take(numbered(16, 18))
    writer.store()
    assert writer.stack.rows() == numbered(11, 18)
    assert writer.said == ["mexc_data.btc was reset: it holds 5 rows; 3 waiting rows go there"]


def test_a_new_journal_goes_on_after_what_the_table_holds(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.close()
    writer.path.unlink()
    writer.open()
    writer.take(numbered(11, 20))
    writer.store()
    assert writer.stack.rows() == numbered(1, 20)
    assert writer.said == []


def test_a_dropped_table_is_an_outage(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    client = connect(settings_of(writer.stack))
    drop_table(client, "mexc_data", BTC_CONFIG)
    writer.take(numbered(11, 12))
    for _ in range(2):
        with pytest.raises(TableMissing, match=r"run ch_setup\.py"):
            writer.table.append_pending()
    create_table(client, "mexc_data", BTC_CONFIG)
    client.disconnect()
    writer.store()
    assert writer.stack.rows() == numbered(11, 12)


def test_an_insert_that_is_still_under_way_is_waited_for(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was frozen may store what its client has long given up; counting before that would double it."""
    writer.take(numbered(1, 5))
    writer.store()
    slow = connect(writer.settings)
    slow.connection.force_connect()
    slow.connection.send_query(
        "INSERT INTO mexc_data.btc (ts, mt, m) VALUES", query_id="append mexc_data.btc of a killed collector"
    )
    slow.connection.send_external_tables(None)
    sample = slow.receive_sample_block()
    monkeypatch.setattr(table_module, "_FENCE_TIMEOUT", 0.2)
    writer.reopen()
    writer.take(numbered(6, 7))
    with pytest.raises(StillInserting):
        writer.table.append_pending()
    slow.send_data(sample, [])  # it ends, storing nothing
    slow.receive_end_of_insert_query()
    slow.disconnect()
    writer.store()
    assert writer.stack.rows() == numbered(1, 7)


def test_a_server_frozen_amid_an_insert(own_writer: Writer) -> None:
    own_writer.take(numbered(1, 5))
    own_writer.store()
    server = own_writer.stack.processes[0]
    own_writer.table._client.connection.socket.settimeout(0.5)
    server.send(signal.SIGSTOP)
    own_writer.take(numbered(6, 7))
    with pytest.raises(APPEND_ERRORS):
        own_writer.table.append_pending()
    server.send(signal.SIGCONT)
    own_writer.store()
    assert own_writer.stack.rows() == numbered(1, 7)

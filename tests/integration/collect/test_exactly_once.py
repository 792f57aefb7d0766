"""Each journaled row is in the table once, whatever happens to the connection, the server and the table."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver.errors import ServerException

from config import BTC_CONFIG, Settings, load_settings
from pipeline.collect import inserts as inserts_module
from pipeline.collect.errors import StillInserting, TableMissing
from pipeline.collect.inserts import APPEND_ERRORS
from pipeline.collect.journal import RETAINED_ROWS, Journal
from pipeline.collect.stripelog import StripeLog
from pipeline.collect.table import Table
from pipeline.store.client import connect
from pipeline.store.schema import create_table, drop_table
from tests.both import JournalKeeper, numbered
from tests.limited_clickhouse import limited
from tests.proxy import Direction, Proxy, open_proxy
from tests.stack import Stack, StoredRow


class Writer(JournalKeeper):
    """A journal and a table as a collector has them, on a fresh table."""

    tries = 1000

    def __init__(self, stack: Stack, directory: Path, port: int) -> None:
        self.stack = stack
        self.said: list[str] = []
        self.answer = 0
        self.path = directory / "btc.db"
        self.settings = replace(settings_of(stack), clickhouse_port=port)
        stack.setup("--reset", "--yes")
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.path, 1 << 30, self.said.append)
        self.position = self.journal.position("btc")
        self.stripelog = StripeLog(self.settings, "btc", self.said.append)
        self.table = Table(self.position, self.stripelog, self.said.append, self.settings.max_batch_rows)

    def close(self) -> None:
        self.stripelog.close()
        self.journal.close()

    def store(self) -> int:
        """Send until all is stored; return how many tries failed."""
        return self.store_in(self.table, self.position)


def lose_acknowledgement(writer: Writer, proxy: Proxy) -> None:
    """Send what waits: the table takes it, only the last byte of the answer, which says so, never comes."""
    expected = writer.stack.count() + writer.position.waiting
    proxy.cut_after("to client", writer.answer - 1)
    with pytest.raises(APPEND_ERRORS):
        writer.table.append_pending()
    assert writer.stack.count() == expected, "only the collector does not know"


def measure_answer(writer: Writer, proxy: Proxy, row: StoredRow) -> None:
    """Store a row, and note how many bytes the answer to an INSERT has."""
    before = proxy.passed["to client"]
    writer.take([row])
    writer.store()
    writer.answer = proxy.passed["to client"] - before


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
    told = len(writer.table.append_pending())
    measure_answer(writer, proxy, *numbered(2, 2))
    for n in range(3, 103):
        writer.take(numbered(n, n))
        lose_acknowledgement(writer, proxy)
        told += len(writer.table.append_pending())
        assert not writer.journal.waiting
        assert writer.stack.count() == n
    assert writer.stack.rows() == numbered(1, 102)
    assert told == 101, "rows settled by the count are told like others"


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
    writer.position.rows += 20_000  # as if there were more
    writer.table.doubt()
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
    writer.table.doubt()
    writer.take(numbered(11, 20))
    writer.store()
    (line,) = writer.said
    assert line.startswith("WARNING: somebody else wrote to mexc_data.btc: it holds 13 rows, at most 10 are this")
    rows = writer.stack.rows()
    assert rows[:10] == numbered(1, 10)
    assert rows[13:] == numbered(11, 20)


def test_another_writer_while_the_collector_is_stopped_and_rows_wait(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.take(numbered(11, 50))
    writer.reopen()
    writer.stack.query("INSERT INTO mexc_data.btc SELECT 0, 'dl', 'somebody else' FROM numbers(30)")
    writer.take(numbered(51, 60))
    writer.store()
    (line,) = writer.said
    assert "somebody else wrote" in line
    rows = writer.stack.rows()
    assert rows[:10] == numbered(1, 10)
    assert rows[40:] == numbered(11, 60)


def test_another_writer_amid_an_insert_in_doubt(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 9))
    writer.store()
    measure_answer(writer, proxy, *numbered(10, 10))
    writer.stack.query("INSERT INTO mexc_data.btc SELECT 0, 'dl', 'before' FROM numbers(3)")
    writer.take(numbered(11, 20))
    lose_acknowledgement(writer, proxy)
    writer.stack.query("INSERT INTO mexc_data.btc SELECT 0, 'dl', 'after' FROM numbers(2)")
    writer.take(numbered(21, 25))
    writer.store()
    assert [row for row in writer.stack.rows() if row[0]] == numbered(1, 25)
    assert "it holds 25 rows, at most 20 are this collector's" in writer.said[0]


# Power losses of the journal's machine


def test_what_the_journal_forgot_is_neither_doubled_nor_does_it_stand_for_new_rows(writer: Writer) -> None:
    writer.take(numbered(1, 100))
    writer.store()
    writer.take(numbered(101, 130))
    writer.journal.sync()
    writer.copy("synced")
    writer.store()
    writer.take(numbered(131, 322))
    writer.store()
    writer.put_back("synced")
    writer.take(numbered(323, 900))  # while ClickHouse cannot be reached
    writer.store()
    assert writer.stack.rows() == numbered(1, 900)
    (line,) = writer.said
    assert "192 more than the journal knows" in line


def test_a_journal_that_forgot_and_was_killed_before_it_reached_clickhouse(writer: Writer) -> None:
    writer.take(numbered(1, 100))
    writer.journal.sync()
    writer.store()
    writer.copy("old")
    writer.take(numbered(101, 300))
    writer.store()
    writer.put_back("old")
    writer.take(numbered(301, 400))
    writer.kill()
    writer.take(numbered(401, 500))
    writer.kill()
    writer.store()
    assert writer.stack.rows() == numbered(1, 500)


def test_an_older_copy_of_the_journal(writer: Writer) -> None:
    writer.take(numbered(1, 1_000))
    writer.store()
    writer.take(numbered(1_001, 1_010))
    writer.journal.sync()
    writer.copy("old")
    writer.store()
    writer.take(numbered(1_011, 9_000))
    writer.store()
    writer.put_back("old")
    writer.take(numbered(9_001, 17_000))
    writer.store()
    assert writer.stack.rows() == numbered(1, 17_000)
    (line,) = writer.said
    assert "7,990 more than the journal knows" in line


def test_a_power_loss_after_a_reset_while_rows_waited(writer: Writer) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    writer.take(numbered(11, 1_010))
    writer.journal.sync()
    writer.stack.setup("--reset", "--yes")
    writer.table.doubt()
    with pytest.MonkeyPatch.context() as patch:
        fsync = os.fsync

        def fsync_and_copy(descriptor: int) -> None:
            fsync(descriptor)
            writer.copy("synced")

        patch.setattr(os, "fsync", fsync_and_copy)
        writer.store()
    writer.put_back("synced")
    writer.take(numbered(1_011, 1_020))
    writer.store()
    assert writer.stack.rows() == numbered(11, 1_020)


def test_a_reset_amid_an_insert_whose_rows_the_new_table_took(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 9))
    writer.store()
    measure_answer(writer, proxy, *numbered(10, 10))
    writer.stack.setup("--reset", "--yes")
    writer.take(numbered(11, 15))
    lose_acknowledgement(writer, proxy)
    writer.take(numbered(16, 17))
    writer.store()
    assert writer.stack.rows() == numbered(11, 17)


def test_both_machines_forget(own_writer: Writer) -> None:
    own_writer.take(numbered(1, 100))
    own_writer.store()
    backup = {path: path.read_bytes() for path in own_writer.stack.data.glob("store/b7c/*/*")}
    own_writer.take(numbered(101, 120))
    own_writer.store()
    own_writer.journal.sync()
    own_writer.copy("synced")
    own_writer.take(numbered(121, 150))
    own_writer.store()
    own_writer.stack.processes[0].stop(signal.SIGKILL)
    for path, content in backup.items():
        path.write_bytes(content)
    own_writer.put_back("synced")
    own_writer.stack.clickhouse()
    own_writer.take(numbered(151, 160))
    own_writer.store()
    assert own_writer.stack.rows() == [*numbered(1, 120), *numbered(151, 160)], "but what both forgot, all is there"


def test_a_damaged_journal_amid_waiting_rows(writer: Writer) -> None:
    writer.take(numbered(1, 2_000))
    writer.store()
    writer.take(numbered(2_001, 6_000))
    writer.journal.sync()
    writer.journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.copy("whole")
    with writer.path.with_name("whole").open("r+b") as file:
        file.seek(-30 * 4096, os.SEEK_END)
        file.write(os.urandom(4096))
    writer.put_back("whole")
    writer.take(numbered(6_001, 6_010))
    writer.store()
    rows = writer.stack.rows()
    assert rows == sorted(set(rows))
    assert set(rows) <= set(numbered(1, 6_010))
    assert len(rows) > 6_010 - 200, "a page holds about a hundred such rows"
    assert rows[-10:] == numbered(6_001, 6_010)
    assert any("is damaged" in line for line in writer.said)


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


def test_rows_that_a_new_table_took_unnoticed_and_lost_are_sent_again(own_writer: Writer) -> None:
    own_writer.take(numbered(1, 10))
    own_writer.store()
    own_writer.stack.setup("--reset", "--yes")
    own_writer.take(numbered(11, 15))
    own_writer.store()  # on the old connection, to which the table looks the same
    backup = {path: path.read_bytes() for path in own_writer.stack.data.glob("store/b7c/*/*")}
    own_writer.take(numbered(15, 20))  # the first is another deal, equal to the last
    own_writer.store()
    own_writer.stack.processes[0].stop(signal.SIGKILL)
    for path, content in backup.items():
        path.write_bytes(content)
    own_writer.stack.clickhouse()
    own_writer.take(numbered(21, 22))
    own_writer.store()
    assert own_writer.stack.rows() == [*numbered(11, 15), *numbered(15, 22)]
    assert own_writer.said == [
        "mexc_data.btc was reset: it holds 5 rows; 8 waiting rows go there",
        "mexc_data.btc lost its last 6 rows: sending them again",
    ]


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
    assert writer.table.append_pending() == []  # it may only be being rewritten: the next call asks
    for _ in range(2):
        with pytest.raises(TableMissing, match=r"run ch_setup\.py"):
            writer.table.append_pending()
    create_table(client, "mexc_data", BTC_CONFIG)
    client.disconnect()
    writer.store()
    assert writer.stack.rows() == numbered(11, 12)


def test_a_view_that_keeps_rows_from_being_stored_is_said(writer: Writer) -> None:
    """ClickHouse then reports an unknown table, too, though not the collector's; without a pause that went on."""
    query = writer.stack.query
    writer.take(numbered(1, 2))
    writer.store()
    query("CREATE TABLE mexc_data.target (m String) ENGINE = Memory")
    query("CREATE MATERIALIZED VIEW mexc_data.view TO mexc_data.target AS SELECT m FROM mexc_data.btc")
    query("DROP TABLE mexc_data.target")
    try:
        writer.take(numbered(3, 4))
        assert writer.table.append_pending() == []
        with pytest.raises(ServerException, match=r"mexc_data\.target"):
            writer.table.append_pending()
    finally:
        query("DROP TABLE mexc_data.view")
    writer.store()
    assert writer.stack.rows() == numbered(1, 4)


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
    monkeypatch.setattr(inserts_module, "_FENCE_TIMEOUT", 0.2)
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
    own_writer.stripelog.inserts.client.connection.socket.settimeout(0.5)
    server.send(signal.SIGSTOP)
    own_writer.take(numbered(6, 7))
    with pytest.raises(APPEND_ERRORS):
        own_writer.table.append_pending()
    server.send(signal.SIGCONT)
    own_writer.store()
    assert own_writer.stack.rows() == numbered(1, 7)


@pytest.mark.parametrize(
    "limit",
    [
        {"profile": "<max_rows_to_read>50</max_rows_to_read><read_overflow_mode>break</read_overflow_mode>"},
        {"hidden": {"btc": "mt != 'd'"}},
    ],
    ids=["profile", "row policy"],
)
def test_a_user_who_cannot_read_all_rows_has_them_all_the_same(own_writer: Writer, limit: dict[str, Any]) -> None:
    for n in range(1, 201):
        own_writer.take(numbered(n, n))
        own_writer.store()
    server = limited(own_writer.stack, **limit)
    own_writer.reopen()
    own_writer.take(numbered(201, 210))
    own_writer.store()
    assert own_writer.said == []
    own_writer.stripelog.close()
    server.stop()
    own_writer.stack.clickhouse()
    assert own_writer.stack.rows() == numbered(1, 210)

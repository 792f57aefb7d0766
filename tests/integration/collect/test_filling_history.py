"""Each journaled row is in the history once, too, whatever happens to either table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from config import BTC_CONFIG
from pipeline.collect import historylog
from pipeline.collect.errors import TableUnusable
from pipeline.collect.historylog import HistoryLog
from pipeline.collect.inserts import APPEND_ERRORS
from pipeline.collect.journal import RETAINED_ROWS, Journal
from pipeline.collect.table import Table
from pipeline.store import history
from pipeline.store.copying import copy
from pipeline.store.history import Beginning, beginnings
from pipeline.store.schema import create_table, drop_table
from pipeline.store.turnover import turn_over
from tests.both import START, Writer, numbered
from tests.proxy import Proxy, open_proxy
from tests.stack import Stack, open_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("history")) as opened:
        opened.env["HISTORY"] = "1"
        opened.clickhouse()
        yield opened


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    """Between the collector and the history; StripeLog's table is reached without it."""
    with open_proxy(stack.port) as opened:
        yield opened


@pytest.fixture
def writer(stack: Stack, proxy: Proxy, tmp_path: Path) -> Iterator[Writer]:
    made = Writer(stack, tmp_path, proxy.port)
    yield made
    made.close()


def test_both_have_all_rows_with_what_is_known_of_them(writer: Writer) -> None:
    writer.journal.append([(START, "d", "1|1|1", 77, START - 5)], 1_788_335_242_000_123)
    writer.journal.append([(START + 1, "dl", "{}", 0, 0)], 0)
    writer.store()
    assert writer.rows() == writer.stack.rows() == [(START, "d", "1|1|1"), (START + 1, "dl", "{}")]
    query = (
        "SELECT toUnixTimestamp64Micro(received), toUnixTimestamp64Milli(event), id FROM mexc_data.btc_history"
        " ORDER BY n"
    )
    assert writer.stack.query(query) == [
        (1_788_335_242_000_123, START - 5, 77),
        ((START + 1) * 1000, START + 1, 0),
    ]
    assert writer.said == []


def test_one_away_does_not_hold_up_the_other(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 10))
    writer.store()
    with proxy.refusing():
        proxy.cut_after("to server", 0)
        writer.take(numbered(11, 20))
        with pytest.raises(APPEND_ERRORS):
            writer.history.append_pending()
        writer.store_in(writer.table, writer.live)
        assert (writer.live.waiting, writer.position.waiting) == (0, 10)
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 20)
    writer.stack.query("RENAME TABLE mexc_data.btc TO mexc_data.away")
    writer.take(numbered(21, 30))
    writer.table.doubt()
    with pytest.raises(APPEND_ERRORS):
        writer.table.append_pending()
    writer.store_in(writer.history, writer.position)
    assert writer.rows() == numbered(1, 30)
    writer.stack.query("RENAME TABLE mexc_data.away TO mexc_data.btc")
    writer.store()
    assert writer.stack.rows() == numbered(1, 30)
    assert writer.read() == numbered(1, 30)


def test_a_connection_cut_at_any_byte_of_an_insert(writer: Writer, proxy: Proxy) -> None:
    writer.take(numbered(1, 2))
    writer.store()
    before = {way: proxy.passed[way] for way in ("to server", "to client")}
    writer.take(numbered(3, 4))
    writer.store()
    bytes_of_one = {way: proxy.passed[way] - before[way] for way in ("to server", "to client")}
    last = 4
    for way, count in bytes_of_one.items():
        for at in range(0, count + 1, max(1, count // 20)):
            writer.take(numbered(last + 1, last + 2))
            last += 2
            proxy.cut_after(way, at)  # type: ignore[arg-type]
            writer.store()
    assert writer.rows() == numbered(1, last)


def test_a_kill_at_any_moment(writer: Writer) -> None:
    writer.store()
    for n in range(1, 6):
        writer.take(numbered(2 * n - 1, 2 * n))
        writer.kill()
        writer.store_in(writer.table, writer.live)
        writer.kill()
        writer.store_in(writer.history, writer.position)
        writer.kill()
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 10)
    assert writer.said == []


def test_each_insert_has_rows_of_one_month(writer: Writer) -> None:
    months = [(START + month * 31 * 86_400_000, "d", f"{month}|1|1") for month in (0, 0, 1, 2, 2, 1)]
    writer.take(months)
    sizes: list[int] = []
    writer.log.inserts.on_insert = lambda rows, seconds: sizes.append(rows)
    writer.store()
    assert sizes == [2, 1, 2, 1]
    assert writer.rows() == months


def test_it_begins_with_what_comes_and_says_what_can_be_copied(writer: Writer, tmp_path: Path) -> None:
    writer.take(numbered(1, 5))
    writer.store_in(writer.table, writer.live)
    writer.close()
    writer.path = tmp_path / "another.db"  # as if HISTORY=1 came with this start
    writer.stack.query("TRUNCATE TABLE mexc_data.history_begins")
    writer.open()
    with pytest.raises(TableUnusable, match="begins once it is known what"):
        writer.history.append_pending()
    writer.store()
    writer.take(numbered(6, 8))
    writer.store()
    assert writer.rows() == numbered(6, 8)
    assert writer.stack.rows() == writer.read() == numbered(1, 8)
    (begins,) = beginnings(writer.client, "mexc_data", "btc", writer.token())
    assert (begins.first, begins.rows, begins.n - begins.after) == (0, 5, 6)
    assert writer.said == [
        "mexc_data.btc_history begins with the row after the first 5 of mexc_data.btc: ch_setup.py --history copies 5"
        " rows of those"
    ]


def test_off_and_on_again(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    writer.close()
    writer.journal = Journal(writer.path, 1 << 30)
    live = writer.journal.position("btc")
    writer.table = Table(live, writer.stripelog, writer.said.append, 10_000)
    writer.take(numbered(6, 9))
    writer.store_in(writer.table, live)
    writer.reopen()
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 9), "the journal still had them"
    assert writer.said == []


def test_off_for_so_long_that_the_journal_has_forgotten(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    last = 5
    for _ in range(3):
        writer.close()
        writer.journal = Journal(writer.path, 1 << 30)
        live = writer.journal.position("btc")
        writer.table = Table(live, writer.stripelog, writer.said.append, 10_000)
        writer.take(numbered(last + 1, last + RETAINED_ROWS))
        last += RETAINED_ROWS
        writer.store_in(writer.table, live)
    writer.reopen()
    writer.take(numbered(last + 1, last + 10))
    writer.store()
    assert writer.rows()[:5] == numbered(1, 5)
    assert writer.rows()[-10:] == numbered(last + 1, last + 10)
    assert len(writer.rows()) < last
    assert writer.read() == numbered(1, 5) + writer.stack.rows()[5:]
    assert "ch_setup.py --history copies" in writer.said[-1]


def test_a_full_journal_makes_room_by_what_only_the_history_lacks(writer: Writer, proxy: Proxy) -> None:
    writer.close()
    writer.path.unlink()
    writer.open(max_bytes=200_000)
    writer.take(numbered(1, 10))
    writer.store()
    last = 10
    with proxy.refusing():
        writer.history.doubt()
        proxy.cut_after("to server", 0)
        for _ in range(60):
            writer.take(numbered(last + 1, last + 100))
            last += 100
            writer.store_in(writer.table, writer.live)
    assert writer.position.has_gap
    writer.store()
    assert writer.stack.rows() == numbered(1, last)
    assert writer.read() == numbered(1, last)
    assert len(writer.rows()) < last


def test_a_history_that_was_made_anew(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    history.drop(writer.client, "mexc_data", "btc")
    writer.stack.setup()
    writer.take(numbered(6, 7))  # goes there unnoticed
    writer.store()
    writer.take(numbered(8, 8))
    writer.reopen()
    writer.store()
    assert writer.rows() == numbered(6, 8)
    assert writer.read() == numbered(1, 8)


@pytest.mark.parametrize("before", ["_lost", "_found", "_look_at_the_seam", "record"])
@pytest.mark.parametrize("with_table", [False, True])
def test_a_history_that_is_made_anew_while_it_is_asked(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, before: str, with_table: bool
) -> None:
    """What is found of the one must not be noted of the other: `--reset` makes the table anew, and then the history."""
    writer.take(numbered(1, 5))
    writer.store()
    writer.take(numbered(6, 7))
    writer.store_in(writer.table, writer.live)
    if with_table:
        drop_table(writer.client, "mexc_data", BTC_CONFIG)
        create_table(writer.client, "mexc_data", BTC_CONFIG)
        writer.table.doubt()
        writer.take(numbered(8, 9))
        writer.store_in(writer.table, writer.live)
    place = historylog if before == "record" else HistoryLog
    step = getattr(place, before)

    def made_anew_before(*arguments: Any) -> Any:
        monkeypatch.setattr(place, before, step)
        history.drop(writer.client, "mexc_data", "btc")
        writer.stack.setup()
        found = step(*arguments)
        if before == "record":
            assert history.beginnings(writer.client, "mexc_data", "btc", writer.token()) == []
        return found

    monkeypatch.setattr(place, before, made_anew_before)
    writer.history.doubt()
    writer.store_in(writer.history, writer.position)
    for n in (10, 11, 12):
        writer.take(numbered(n, n))
        writer.store()
        writer.reopen()
    list(copy(writer.settings, "btc"))
    table, found = writer.stack.rows(), writer.rows()
    assert found[-len(table) :] == table
    assert found == sorted(set(found))
    assert writer.read() == found


def test_a_table_that_was_made_anew(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    drop_table(writer.client, "mexc_data", BTC_CONFIG)
    create_table(writer.client, "mexc_data", BTC_CONFIG)
    writer.table.doubt()
    writer.take(numbered(6, 7))
    writer.store()
    assert writer.log.has_parted
    writer.history.doubt()
    writer.take(numbered(8, 8))
    writer.store()
    assert writer.rows() == numbered(1, 8)
    assert writer.read() == numbered(1, 8)
    assert not writer.log.has_parted


def test_rows_that_the_journal_forgot(writer: Writer) -> None:
    """A power loss takes the last second of the journal; StripeLog's table had it, the history in part."""
    writer.take(numbered(1, 5))
    writer.store()
    writer.journal.sync()
    writer.copy("synced")
    writer.take(numbered(6, 7))
    writer.store()
    writer.take(numbered(8, 9))
    writer.store_in(writer.table, writer.live)
    writer.put_back("synced")
    writer.take(numbered(10, 11))
    writer.store()
    if writer.log.has_parted:
        writer.history.doubt()
        writer.store()
    assert writer.stack.rows() == numbered(1, 11)
    assert writer.rows() == numbered(1, 7) + numbered(10, 11)
    assert writer.read() == numbered(1, 11)
    assert not writer.log.has_parted
    assert any("more than the journal knows" in line for line in writer.said)
    assert "do not have the same rows among the " in writer.said[-1]


def test_rows_that_a_history_just_made_has_and_the_journal_forgot(writer: Writer) -> None:
    """Both tables are made anew, which is not noticed before the power fails; what comes first is known, though."""
    writer.take(numbered(1, 5))
    writer.store_in(writer.table, writer.live)
    writer.take(numbered(6, 10))
    writer.journal.sync()
    writer.copy("synced")
    writer.store_in(writer.history, writer.position)
    writer.stack.setup("--reset", "--yes")
    writer.take(numbered(11, 14))
    writer.store_in(writer.history, writer.position)
    assert writer.rows() == numbered(11, 14)
    writer.put_back("synced")
    writer.take(numbered(15, 16))
    writer.store()
    for n in range(17, 20):
        writer.take(numbered(n, n))
        if writer.log.has_parted:
            writer.history.doubt()
        writer.store()
    assert writer.stack.rows() == numbered(6, 10) + numbered(15, 19)
    assert writer.read() == writer.stack.rows()
    assert not writer.log.has_parted
    list(copy(writer.settings, "btc", keep_others=True))
    assert writer.read() == writer.rows() == numbered(6, 19)
    list(turn_over(writer.settings, "btc"))
    assert writer.stack.rows() == []


@pytest.mark.parametrize("forgotten", [2, 4, 6])
@pytest.mark.parametrize("waiting", [0, 3])
def test_rows_that_the_table_forgot_with_the_journal_and_the_history_has(
    writer: Writer, forgotten: int, waiting: int
) -> None:
    """The power fails on both machines, just when a turnover has noted up to where the two are the same."""
    kept = 20 - forgotten
    writer.take(numbered(1, kept - waiting))
    writer.store()
    writer.take(numbered(kept - waiting + 1, kept))
    writer.store_in(writer.table, writer.live)
    writer.journal.sync()
    writer.copy("synced")
    writer.take(numbered(kept + 1, 20))
    writer.store()
    ((last,),) = writer.stack.query("SELECT max(n) FROM mexc_data.btc_history")
    history.record(writer.client, "mexc_data", "btc", writer.token(), Beginning(20, 20, last, last + 1))
    left = writer.stack.rows()[: kept - 2]  # the journal has the other two
    writer.stack.query("TRUNCATE TABLE mexc_data.btc")
    writer.client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", left)
    writer.put_back("synced")
    writer.take(numbered(21, 20 + 3 * forgotten))
    writer.store()
    if writer.log.has_parted:
        writer.history.doubt()
        writer.store()
    assert writer.stack.rows() == numbered(1, kept) + numbered(21, 20 + 3 * forgotten)
    for _ in range(2):  # those that the history has besides may be read
        assert [row for row in writer.read() if row not in numbered(kept + 1, 20)] == writer.stack.rows()
        list(copy(writer.settings, "btc", keep_others=True))


def test_rows_that_the_history_lost_are_sent_again(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    writer.take(numbered(6, 9))
    writer.store()
    writer.stack.query("ALTER TABLE mexc_data.btc_history DELETE WHERE m >= '7' SETTINGS mutations_sync = 2")
    writer.take(numbered(10, 10))
    writer.reopen()
    writer.store()
    assert writer.rows() == numbered(1, 10)
    assert "mexc_data.btc_history lost its last 3 rows: sending them again" in writer.said


def test_a_block_that_the_history_lost_before_one_that_nobody_knows_of(writer: Writer) -> None:
    """The power fails on both machines: one block is broken, the next one is not, and its answer is forgotten."""
    writer.take(numbered(1, 5))
    writer.store()
    writer.take(numbered(6, 9))
    writer.store()
    writer.take(numbered(10, 12))
    writer.journal.sync()
    writer.copy("synced")
    writer.store()
    lost = "toUInt32(splitByChar('|', m)[1]) BETWEEN 6 AND 9"
    writer.stack.query(f"ALTER TABLE mexc_data.btc_history DELETE WHERE {lost} SETTINGS mutations_sync = 2")
    writer.put_back("synced")
    writer.take(numbered(13, 14))
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 14)
    assert "mexc_data.btc_history lost its last 4 rows: sending them again" in writer.said


def test_a_whole_block_that_the_history_lost_is_sent_again(writer: Writer) -> None:
    """ClickHouse still has the block's token, but not the rows."""
    writer.take(numbered(1, 5))
    writer.store()
    writer.take(numbered(6, 9))
    writer.store()
    for _ in range(2):
        writer.stack.query("ALTER TABLE mexc_data.btc_history DELETE WHERE m >= '6' SETTINGS mutations_sync = 2")
        writer.reopen()
        writer.store()
        assert writer.rows() == numbered(1, 9)
    assert writer.said == ["mexc_data.btc_history lost its last 4 rows: sending them again"] * 2


def test_rows_that_the_history_lost_and_the_journal_no_longer_has(writer: Writer) -> None:
    """Then it is no longer read, and ch_setup.py --history copies them."""
    writer.take(numbered(1, 9))
    writer.store()
    writer.journal._delete_spare()
    writer.stack.query("ALTER TABLE mexc_data.btc_history DELETE WHERE m >= '7' SETTINGS mutations_sync = 2")
    writer.history.doubt()
    writer.store()
    writer.take(numbered(10, 11))
    writer.history.doubt()
    writer.store()
    assert not writer.log.has_parted
    assert writer.read() == writer.stack.rows() == numbered(1, 11)
    assert "do not have the same rows among the " in writer.said[-1]
    list(copy(writer.settings, "btc"))
    assert writer.rows() == numbered(1, 11)


def test_somebody_else_who_writes_is_said_and_none_of_ours_is_lost(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    seq = writer.position.stand().next_seq
    columns = "(n, ts, received, event, mt, id, m)"
    row = "now64(3), now64(6), now64(3), 'd', 0, 'foreign'"
    writer.stack.query(f"INSERT INTO mexc_data.btc_history {columns} VALUES ({seq + 1}, {row}), ({10**18}, {row})")
    writer.take(numbered(6, 8))
    writer.kill()
    writer.store()
    ours = [row for row in writer.rows() if row[2] != "foreign"]
    assert ours == numbered(1, 8)
    assert any("somebody else wrote" in line for line in writer.said)


@pytest.mark.parametrize(
    ("change", "back", "line"),
    [
        ("RENAME TABLE {0} TO {0}_away", "RENAME TABLE {0}_away TO {0}", "does not exist: run ch_setup.py"),
        ("ALTER TABLE {0} RENAME COLUMN m TO text", "ALTER TABLE {0} RENAME COLUMN text TO m", "is not laid out as"),
    ],
)
def test_a_history_that_cannot_be_used_is_said_and_rows_wait(writer: Writer, change: str, back: str, line: str) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    writer.stack.query(change.format("mexc_data.btc_history"))
    writer.take(numbered(6, 7))
    writer.store_in(writer.table, writer.live)
    with suppress(*APPEND_ERRORS):
        writer.history.append_pending()  # notices
    with pytest.raises(APPEND_ERRORS, match=line):
        writer.history.append_pending()
    assert writer.position.waiting == 2
    writer.stack.query(back.format("mexc_data.btc_history"))
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 7)


def test_a_history_of_another_journal(writer: Writer, tmp_path: Path) -> None:
    """What is there is not this journal's: it is said, and with what is copied each row is there once."""
    writer.take(numbered(1, 5))
    writer.store()
    writer.close()
    writer.path = tmp_path / "another.db"
    writer.open()
    writer.take(numbered(6, 8))
    writer.store()
    assert writer.stack.rows() == writer.read() == numbered(1, 8)
    list(copy(writer.settings, "btc"))
    assert writer.rows() == writer.read() == numbered(1, 8)
    assert any("ch_setup.py --history copies 5 rows of those" in line for line in writer.said), writer.said


def test_without_the_note_of_beginnings_it_is_said_and_rows_wait(writer: Writer) -> None:
    writer.take(numbered(1, 5))
    writer.store()
    writer.stack.query("RENAME TABLE mexc_data.history_begins TO mexc_data.away")
    writer.take(numbered(6, 7))
    writer.reopen()
    writer.store_in(writer.table, writer.live)
    with pytest.raises(APPEND_ERRORS, match="history_begins"):
        writer.history.append_pending()
    assert writer.position.waiting == 2
    writer.stack.query("RENAME TABLE mexc_data.away TO mexc_data.history_begins")
    writer.store()
    assert writer.rows() == writer.stack.rows() == numbered(1, 7)


def test_beginnings_are_noted_once(writer: Writer) -> None:
    for n in range(1, 5):
        writer.take(numbered(n, n))
        writer.store()
        writer.reopen()
    writer.store()
    assert beginnings(writer.client, "mexc_data", "btc", writer.token()) == [
        Beginning(
            0,
            0,
            writer.stack.query("SELECT min(n) FROM mexc_data.btc_history")[0][0] - 1,
            *(writer.stack.query("SELECT min(n) FROM mexc_data.btc_history")[0]),
        )
    ]

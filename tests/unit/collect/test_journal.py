"""The journal keeps rows until the tables have them, whatever ends the process or forgets what it wrote."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from config import PROJECT
from pipeline.collect.errors import JournalError, JournalFull
from pipeline.collect.journal import RETAINED_ROWS, VERSION, Journal, NewRow, Position

Row = tuple[int, str, str]
PLENTY = 1 << 30
OLD = PROJECT / "tests/data/journal-version-0.db"
"""What the code before seqs has written: rows 101 to 130, of which a table with a token has those up to 120."""


def new(first: int, last: int) -> list[NewRow]:
    return [(*row, 0, 0) for row in rows(first, last)]


def rows(first: int, last: int) -> list[Row]:
    return [(n, "d", f"{n}|1|1") for n in range(first, last + 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "btc.db"


class Opened:
    """A journal that can be opened again, and where one table stands in it."""

    def __init__(self, path: Path, max_bytes: int = PLENTY) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.said: list[str] = []
        self.now = 1_790_000_000_000_000_000
        self.open()

    def open(self) -> None:
        self.now += 10**9
        self.journal = Journal(self.path, self.max_bytes, self.said.append, lambda: self.now)
        self.position = self.journal.position("btc")

    def reopen(self) -> None:
        self.journal.close()
        self.open()

    def copy(self, to: Path) -> None:
        """Copy its files, as a power loss would leave them that comes now, after a sync."""
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{to}{suffix}")

    def put_back(self, copy: Path) -> None:
        """Go on with such a copy, as if all that came after it had never been written."""
        self.journal.close()
        for suffix in ("", "-wal"):
            shutil.copy(f"{copy}{suffix}", f"{self.path}{suffix}")
        self.open()

    def seqs(self) -> list[int]:
        return [seq for (seq,) in self.journal._db.execute("SELECT seq FROM rows ORDER BY seq")]


@pytest.fixture
def opened(path: Path) -> Iterator[Opened]:
    opened = Opened(path)
    yield opened
    opened.journal.close()


@pytest.fixture
def journal(opened: Opened) -> Journal:
    return opened.journal


@pytest.fixture
def position(opened: Opened) -> Position:
    return opened.position


def fill(journal: Journal, batch: list[NewRow]) -> int:
    """Append `batch` again and again until the journal is full; return how many rows it took."""
    for taken in range(10_000):
        try:
            journal.append(batch)
        except JournalFull:
            return taken * len(batch)
    raise AssertionError("it takes everything")


# Rows and positions


def test_rows_come_back_in_order_until_the_table_has_them(journal: Journal, position: Position) -> None:
    journal.append(new(1, 1))
    journal.append(new(2, 5))
    assert position.pending(3) == rows(1, 3)
    assert position.pending(3, after=3) == rows(4, 5)
    position.advance(2)
    assert position.pending(10) == rows(3, 5)
    assert position.waiting == journal.waiting == 3


def test_what_was_appended_and_acknowledged_survives_closing(opened: Opened) -> None:
    opened.journal.append(new(1, 5))
    opened.position.adopt("token", 7, 0)
    opened.position.advance(3)
    opened.reopen()
    assert (opened.position.token, opened.position.rows, opened.position.waiting) == ("token", 10, 2)
    assert opened.position.pending(10) == rows(4, 5)


def test_what_a_row_is_kept_with(opened: Opened) -> None:
    opened.journal.append([(1, "d", "7|1|1", 16270106116, 1_789_614_158_011)], received_us=1_789_614_158_012_345)
    columns = "seq, ts, mt, m, id, received, event"
    (kept,) = opened.journal.position("another", columns).pending(10)
    assert kept == (opened.seqs()[0], 1, "d", "7|1|1", 16270106116, 1_789_614_158_012_345, 1_789_614_158_011)


def test_a_seq_is_a_time_at_first_and_rises_from_run_to_run(opened: Opened) -> None:
    opened.journal.append(new(1, 3))
    first = opened.now // 1000
    assert opened.seqs() == [first, first + 1, first + 2]
    opened.reopen()
    opened.journal.append(new(4, 4))
    second = opened.now // 1000
    assert opened.seqs()[3:] == [second]
    opened.now -= 10**12  # the clock was put back
    opened.reopen()
    opened.journal.append(new(5, 6))
    assert opened.seqs()[4:] == [second + 1, second + 2]
    assert opened.position.pending(10) == rows(1, 6)


def test_no_seq_is_given_twice_where_a_power_loss_made_the_journal_forget(opened: Opened, tmp_path: Path) -> None:
    opened.journal.append(new(1, 3))
    opened.journal.sync()
    opened.copy(tmp_path / "copy")
    opened.journal.append(new(4, 9))
    forgotten = opened.seqs()[3:]
    opened.put_back(tmp_path / "copy")
    opened.journal.append(new(10, 11))
    assert opened.position.pending(10) == [*rows(1, 3), *rows(10, 11)]
    assert min(opened.seqs()[3:]) > max(forgotten)


def test_holes_between_runs_count_nothing(opened: Opened) -> None:
    for n in range(0, 40, 4):
        opened.journal.append(new(n + 1, n + 4))
        opened.reopen()
        assert opened.position.waiting == n + 4 - n // 4 * 3
        opened.position.advance(3)
    assert opened.position.rows == 30
    assert opened.position.pending(100) == rows(31, 40)
    assert opened.position.pending(100, after=6) == rows(37, 40)
    assert opened.position.go_back(20) == 20
    assert opened.position.pending(100) == rows(11, 40)


def test_two_tables_stand_where_they_are(opened: Opened) -> None:
    other = opened.journal.position("history")
    opened.journal.append(new(1, 3 * RETAINED_ROWS))
    opened.position.advance(3 * RETAINED_ROWS)
    assert opened.journal.waiting == other.waiting == 3 * RETAINED_ROWS
    assert other.pending(1) == rows(1, 1), "what one of them has not got is kept"
    other.advance(2)
    opened.reopen()
    assert (opened.position.waiting, opened.journal.position("history").waiting) == (0, 3 * RETAINED_ROWS - 2)


def test_rows_that_the_table_lost_wait_again(journal: Journal, position: Position) -> None:
    journal.append(new(1, 5))
    position.advance(5)
    assert position.go_back(2) == 2
    assert (position.pending(10), position.rows) == (rows(4, 5), 3)


def test_rows_of_a_table_before_this_one_do_not_come_back(opened: Opened) -> None:
    opened.journal.append(new(1, 5))
    opened.position.advance(3)
    opened.position.adopt("another", 0, 0)
    opened.position.advance(2)
    assert opened.position.go_back(2) == 2
    opened.position.advance(2)
    opened.position.adopt("another", 10, 0)  # somebody else wrote
    opened.reopen()
    assert opened.position.go_back(4) == 0
    assert (opened.position.rows, opened.position.pending(10)) == (6, [])


def test_acknowledged_rows_are_kept_for_a_while_and_no_longer(opened: Opened) -> None:
    last = 3 * RETAINED_ROWS
    opened.journal.append(new(1, last))
    for _ in range(3):
        opened.position.advance(RETAINED_ROWS)
    assert len(opened.seqs()) == RETAINED_ROWS
    opened.reopen()
    assert len(opened.seqs()) == RETAINED_ROWS
    assert opened.position.go_back(last) == RETAINED_ROWS
    assert opened.position.pending(last) == rows(last - RETAINED_ROWS + 1, last)


def test_many_rows_are_forgotten_little_by_little(journal: Journal, position: Position) -> None:
    """All at once would keep the feed waiting: a minute for 500,000 rows."""
    journal.append(new(1, 50_000))
    position.adopt("token", 49_990, 49_990)
    left = []
    for _ in range(6):
        position.advance(1)
        left.append(len(position.held()))
    assert left == [39_991, 29_992, 19_993, 10_000, 10_001, 10_002]


def test_the_file_shrinks_after_an_outage(opened: Opened) -> None:
    opened.journal.append([(1, "dp", "x" * 600, 0, 0)] * 50_000)
    grown = opened.path.stat().st_size
    for _ in range(5):
        opened.position.advance(10_000)
    opened.reopen()
    assert opened.path.stat().st_size < grown / 3


# What may be in the table


def test_only_what_was_there_at_the_start_or_handed_over_can_be_in_the_table(opened: Opened) -> None:
    opened.journal.append(new(1, 5))
    assert opened.position.in_doubt == 0
    opened.position.open()
    assert opened.position.hand_over(2)
    assert opened.position.in_doubt == 2
    assert opened.position.acknowledge(2)
    assert opened.position.in_doubt == 0


def killed(opened: Opened, copy: Path) -> None:
    opened.copy(copy)
    opened.put_back(copy)


def test_after_a_kill_all_there_is_may_be_in_the_table_if_any_row_was_sent(opened: Opened, tmp_path: Path) -> None:
    opened.position.open()
    opened.journal.append(new(1, 5))
    killed(opened, tmp_path / "copy")
    assert opened.position.in_doubt == 5
    opened.journal.append(new(6, 8))
    assert opened.position.in_doubt == 5, "what came since the start was not sent"
    killed(opened, tmp_path / "copy")
    assert opened.position.in_doubt == 5, "nor was it by a run that never knew where the table stands"
    opened.position.advance(4)
    opened.position.open()
    killed(opened, tmp_path / "copy")
    assert opened.position.in_doubt == 4


def test_after_a_clean_end_nothing_is_in_doubt(opened: Opened) -> None:
    opened.position.open()
    opened.journal.append(new(1, 5))
    opened.position.advance(2)
    opened.reopen()
    assert (opened.position.in_doubt, opened.position.comparable, opened.position.waiting) == (0, 3, 3)


@pytest.mark.parametrize("change", ["adopt", "go_back", "open"])
def test_what_changes_the_meaning_of_a_position_is_on_the_disk_at_once(
    opened: Opened, tmp_path: Path, change: str
) -> None:
    fsyncs = SyncedCopy(opened, tmp_path / "copy")
    opened.journal.append(new(1, 10))
    opened.position.adopt("old", 0, 0)
    opened.position.advance(5)
    fsyncs.watch()
    if change == "adopt":
        opened.position.adopt("new", 3, 1)
        expected = ("new", 3, rows(7, 10))
    elif change == "go_back":
        opened.position._base = opened.position._number - 1
        opened.position.go_back(3)
        expected = ("old", 2, rows(5, 10))
    else:
        opened.position.open()
        expected = ("old", 5, rows(6, 10))
    assert fsyncs.count == 1
    opened.put_back(tmp_path / "copy")
    assert (opened.position.token, opened.position.rows, opened.position.pending(10)) == expected


class SyncedCopy:
    """Copies a journal's files at each fsync of them: what a power loss would leave."""

    def __init__(self, opened: Opened, to: Path) -> None:
        self._opened, self._to = opened, to
        self.count = 0
        self._patch = pytest.MonkeyPatch()

    def watch(self) -> None:
        fsync = os.fsync

        def fsync_and_copy(descriptor: int) -> None:
            fsync(descriptor)
            self.count += 1
            self._opened.copy(self._to)
            self._patch.undo()

        self._patch.setattr(os, "fsync", fsync_and_copy)


def test_a_position_that_cannot_be_noted_stays_as_it_was(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.journal.append(new(1, 5))
    opened.position.adopt("old", 0, 0)

    def fail(descriptor: int) -> None:
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalFull, match="cannot note where btc stands"):
        opened.position.adopt("new", 7, 2)
    assert (opened.position.token, opened.position.rows, opened.position.waiting) == ("old", 0, 5)
    monkeypatch.undo()
    opened.reopen()
    assert (opened.position.token, opened.position.rows, opened.position.waiting) == ("old", 0, 5)


def test_a_reset_rewrites_no_row(opened: Opened) -> None:
    opened.journal.append(new(1, 100_000))
    opened.position.adopt("old", 0, 0)
    before = opened.journal._db.total_changes
    opened.position.adopt("new", 0, 0)
    assert opened.journal._db.total_changes - before == 1


def test_opening_reads_a_few_pages_only(opened: Opened) -> None:
    opened.journal.append([(1, "dp", "x" * 600, 0, 0)] * 50_000)
    opened.journal.close()
    steps: list[str] = []
    connect = sqlite3.connect

    def counting(*args: Any, **more: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **more)
        db.set_progress_handler(lambda: steps.append("a thousand steps"), 1_000)
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", counting)
        opened.open()
    assert steps == []
    assert opened.position.waiting == 50_000


def test_a_plain_advance_is_noted_with_the_sync_only(opened: Opened) -> None:
    opened.journal.append(new(1, 5))
    before = opened.journal._db.total_changes
    for _ in range(5):
        opened.position.advance(1)
    assert opened.journal._db.total_changes == before
    opened.journal.sync()
    assert opened.journal._db.total_changes == before + 1
    opened.journal.sync()
    assert opened.journal._db.total_changes == before + 1


# What the newest rows are


def test_the_newest_deals_and_the_newest_market_data(journal: Journal) -> None:
    assert (journal.newest_deals(5), journal.newest_time()) == ([], None)
    journal.append([(4, "dl", "?", 0, 0), (5, "d", "1", 7, 3), (6, "d", "2", 0, 4), (7, "t", "t", 0, 0)])
    journal.append([(8, "dl", "?", 0, 0)])
    assert journal.newest_deals(5) == [(3, "1", 7, 5), (4, "2", 0, 6)]
    assert journal.newest_deals(1) == [(4, "2", 0, 6)]
    assert journal.newest_time() == 7


# Opening


def run(path: Path, sql: str) -> list[object]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(sql).fetchall()


@pytest.mark.usefixtures("opened")
def test_a_second_writer_is_turned_away(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalError, match="a collector for this table is already running"):
        Journal(path, PLENTY)
    journal.append(new(1, 1))


def test_a_directory_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"cannot be opened.*JOURNAL_DIR"):
        Journal(tmp_path / "file" / "btc.db", PLENTY)


def test_a_journal_of_the_version_before_is_converted(path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(OLD, path)
    opened = Opened(path)
    for _ in range(2):
        assert (opened.position.token, opened.position.rows) == ("0123456789abcdef", 120)
        assert opened.position.waiting == opened.position.in_doubt == 10
        assert opened.position.pending(100) == [
            (1_788_335_242_000 + n, "d", f"{77000 + n}|{n}|{1 + n % 2}") for n in range(21, 31)
        ]
        assert opened.seqs() == list(range(101, 131))
        opened.position.open()
        opened.journal.sync()
        killed(opened, path.with_name("copy"))
    opened.journal.append(new(1, 1))
    assert opened.seqs()[-1] > 10**15
    assert opened.position.go_back(50) == 20, "those before 101 are gone"
    assert (opened.position.rows, opened.position.waiting) == (70, 31)
    assert opened.journal.newest_deals(2)[0] == (0, "77030|30|1", 16270106030, 1_788_335_242_030)
    opened.journal.close()


def test_an_empty_journal_of_the_version_before_is_converted(path: Path) -> None:
    path.parent.mkdir()
    shutil.copy(OLD, path)
    run(path, "DELETE FROM rows")
    opened = Opened(path)
    assert (opened.position.rows, opened.position.waiting) == (120, 0)
    opened.journal.append(new(1, 2))
    opened.position.advance(1)
    opened.reopen()
    assert (opened.position.rows, opened.position.pending(9)) == (121, rows(2, 2))
    opened.journal.close()


@pytest.mark.parametrize(
    ("sql", "line"),
    [
        (f"PRAGMA user_version = {VERSION + 1}", rf"btc\.db is of a newer version of this program \({VERSION + 1}"),
        ("CREATE TABLE rows (id INTEGER PRIMARY KEY, ts INTEGER)", "btc.db is no journal of this program: move it"),
        ("CREATE TABLE other (id INTEGER PRIMARY KEY)", "btc.db is no journal of this program: move it"),
    ],
)
def test_another_schema_is_refused_in_one_line_and_left_as_it_is(path: Path, sql: str, line: str) -> None:
    path.parent.mkdir()
    run(path, sql)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=line):
        Journal(path, PLENTY)
    assert run(path, "SELECT count(*) FROM sqlite_master WHERE name = 'state'") == [(0,)]
    assert len(path.read_bytes()) == len(before)


# Full


def test_when_full_the_oldest_rows_stay_and_new_ones_are_refused(path: Path) -> None:
    opened = Opened(path, 1 << 20)
    taken = fill(opened.journal, new(1, 10))
    assert opened.journal.written == opened.position.waiting == taken
    assert opened.position.pending(10**6) == rows(1, 10) * (taken // 10)
    opened.position.adopt("token", 0, 0)
    opened.position.advance(taken)
    opened.reopen()
    assert opened.position.token == "token"
    opened.journal.close()


def test_there_is_room_again_once_the_table_has_taken_rows(path: Path) -> None:
    opened = Opened(path, 4 << 20)
    taken = fill(opened.journal, [(1, "dp", "x" * 600, 0, 0)] * 100)
    # The retained window alone would fill this journal, so it must give way.
    opened.position.advance(taken)
    opened.journal.append([(1, "dp", "x" * 600, 0, 0)] * 100)
    assert opened.position.waiting == 100
    opened.reopen()
    assert (opened.position.rows, opened.position.waiting) == (taken, 100)
    opened.journal.close()


# Ends that come too early

_WRITER = """
import sys
from pathlib import Path
from pipeline.collect.journal import Journal
journal = Journal(Path(sys.argv[1]), 1 << 30)
n = 0
while True:
    journal.append([(n + 1, "d", str(n + 1), 0, 0), (n + 2, "d", str(n + 2), 0, 0)])
    n += 2
    print(n, flush=True)
"""


@pytest.mark.parametrize("rounds", [1, 100, 2_000])
def test_what_was_taken_survives_kill_9(path: Path, rounds: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, path], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(rounds):
        taken = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.communicate()[0].split()
    taken = int(rest[-1]) if rest else taken
    opened = Opened(path)
    assert opened.journal.written in (taken, taken + 2)
    assert opened.position.pending(10**7) == [(n, "d", str(n)) for n in range(1, opened.journal.written + 1)]
    opened.journal.close()


def test_what_was_taken_is_on_the_disk_after_a_sync(opened: Opened, tmp_path: Path) -> None:
    opened.journal.append(new(1, 100))
    opened.journal.sync()
    opened.copy(tmp_path / "copy.db")
    assert sqlite3.connect(tmp_path / "copy.db").execute("SELECT count(*) FROM rows").fetchone() == (100,)


# Damage

PAGE = 2048


def damage(page: int) -> Callable[[Path], None]:
    """Return what overwrites a page of a file, counted from its end where it is negative."""

    def overwrite(path: Path) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(page * PAGE if page >= 0 else size + page * PAGE)
            file.write(os.urandom(PAGE))

    return overwrite


def big(first: int, last: int) -> list[NewRow]:
    return [(n, "dp", f"{n}" + "x" * 600, n, 0) for n in range(first, last + 1)]


@pytest.fixture
def stored(path: Path) -> Opened:
    """3,000 rows, of which the table has 1,000, in a closed file."""
    opened = Opened(path)
    opened.position.adopt("token", 0, 0)
    opened.position.open()
    for first in range(1, 3_001, 100):
        opened.journal.append(big(first, first + 99))
    opened.position.advance(1_000)
    opened.journal.close()
    return opened


def pending(opened: Opened) -> list[int]:
    return [ts for ts, _, _ in opened.position.pending(10**6)]


@pytest.mark.parametrize("page", [20, 150, 154, 300, 400, -1, -40])
def test_a_damaged_page_costs_the_rows_on_it(stored: Opened, page: int) -> None:
    damage(page)(stored.path)
    stored.open()
    found = pending(stored)
    assert found == sorted(set(found))
    missing = 2_000 - len(found)
    in_waiting_rows = bool(stored.said) and missing > 0
    assert missing <= 4, "a page holds three rows of 600 bytes"
    stored.journal.append(big(3_001, 3_010))
    assert pending(stored) == [*found, *range(3_001, 3_011)]
    stored.reopen()
    assert pending(stored) == [*found, *range(3_001, 3_011)]
    assert stored.position.token == "token"
    if in_waiting_rows:
        (line,) = stored.said
        assert "btc.db is damaged" in line
        assert "kept as btc.db.damaged" in line
        assert stored.path.with_name("btc.db.damaged").exists()
        assert stored.position.rows == 1_000
    stored.journal.close()


def test_every_page_damaged_in_turn(stored: Opened, tmp_path: Path) -> None:
    whole = stored.path.read_bytes()
    pages = len(whole) // PAGE
    for page in range(0, pages, 120):
        directory = tmp_path / f"{page}"
        directory.mkdir()
        copy = directory / "btc.db"
        copy.write_bytes(whole)
        damage(page)(copy)
        again = Opened(copy)
        found = pending(again)
        assert found == sorted(set(found))
        assert len(found) >= 2_000 - 4, "a page holds three rows of 600 bytes"
        again.journal.append(big(3_001, 3_001))
        assert pending(again)[-1] == 3_001
        again.journal.close()
        shutil.rmtree(directory)


def test_the_first_page_costs_where_the_table_stands_and_no_row(stored: Opened) -> None:
    damage(0)(stored.path)
    stored.open()
    assert (stored.position.token, stored.position.comparable) == (None, 3_000)
    assert pending(stored) == list(range(1, 3_001))
    stored.journal.append(big(3_001, 3_001))
    assert stored.position.waiting == 3_001
    assert "the 3,000 rows that can be read of it go on" in stored.said[0]
    stored.journal.close()


def test_a_file_that_is_nothing_at_all_is_put_aside(stored: Opened) -> None:
    stored.path.write_bytes(os.urandom(50_000))
    stored.open()
    stored.journal.append(new(1, 2))
    assert stored.position.pending(10) == rows(1, 2)
    assert "the 0 rows that can be read" in stored.said[0]
    stored.journal.close()


def test_damage_that_shows_while_it_runs(stored: Opened) -> None:
    stored.open()
    stored.position.open()
    damage(300)(stored.path)
    stored.journal._db.execute("PRAGMA cache_size = 10")
    found = pending(stored)
    assert 1_990 < len(found) <= 2_000
    assert not stored.position.is_open, "which rows wait is not what it was: the table has to be asked"
    assert not stored.position.hand_over(3)
    assert not stored.position.acknowledge(3)
    assert pending(stored) == found
    assert stored.position.in_doubt == 0
    assert stored.position.comparable == len(found)
    stored.journal.close()


def test_text_that_is_none_is_damage(stored: Opened) -> None:
    raw = stored.path.read_bytes()
    stored.path.write_bytes(raw.replace(b"2500xxx", b"2\xff00xxx"))
    stored.open()
    assert pending(stored) == [n for n in range(1_001, 3_001) if n != 2_500]
    assert "btc.db is damaged" in stored.said[0]
    stored.journal.close()


def test_a_row_that_no_table_takes_goes_as_a_dead_letter(stored: Opened) -> None:
    """Bits that flip unnoticed: in the text of its kind, and in SQLite's types of its values."""
    raw = stored.path.read_bytes()
    stored.path.write_bytes(raw.replace(b"dp2500xxx", b"dq2500xxx"))
    with closing(sqlite3.connect(stored.path, isolation_level=None)) as db:
        db.execute("UPDATE rows SET ts = x'00ff', m = x'6d' WHERE ts = 2501")
    stored.open()
    found = stored.position.pending(10**6)
    assert [row[:2] for row in found[1_498:1_502]] == [(2_499, "dp"), (2_500, "dl"), (0, "dp"), (2_502, "dp")]
    assert found[1_500] == (0, "dp", "m")
    assert not stored.said
    stored.journal.close()


def test_a_disk_that_cannot_be_read_is_one_line(stored: Opened) -> None:
    stored.open()
    stored.journal._db.execute("PRAGMA cache_size = 10")
    (file,) = (int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(stored.path))
    whole, unreadable = os.dup(file), os.open(os.devnull, os.O_WRONLY)
    os.dup2(unreadable, file)
    try:
        with pytest.raises(JournalError, match=r"btc\.db cannot be read: disk I/O error; see whether the disk fails$"):
            pending(stored)
    finally:
        os.dup2(whole, file)
        os.close(whole)
        os.close(unreadable)
    assert len(pending(stored)) == 2_000
    stored.journal.close()


def test_damage_that_cannot_be_mended_is_one_line_whoever_comes(stored: Opened) -> None:
    stored.open()
    damage(300)(stored.path)
    stored.journal._db.execute("PRAGMA cache_size = 10")
    stored.path.with_name("btc.db.saving").mkdir()
    line = r"btc\.db is damaged, and what is in it cannot be saved \(.*Is a directory.*\): move it elsewhere$"
    for do in (lambda: pending(stored), lambda: stored.journal.append(new(1, 1)), stored.journal.sync):
        with pytest.raises(JournalError, match=line):
            do()
    stored.journal.close()


def test_damage_that_shows_while_rows_are_forgotten(path: Path) -> None:
    """Only what is to be forgotten is damaged, and rows were forgotten before, so that the numbers begin anew."""
    opened = Opened(path)
    opened.position.adopt("token", 0, 0)
    opened.position.open()
    for first in range(1, 30_001, 1_000):
        opened.journal.append(big(first, first + 999))
        opened.position.advance(1_000)
    opened.journal.append(big(30_001, 35_000))
    opened.journal.close()
    damage(path.read_bytes().index(b"20500xxx") // PAGE)(path)
    opened.open()
    assert not opened.said
    opened.position.advance(2_000)
    assert opened.said
    assert pending(opened) == list(range(32_001, 35_001))
    opened.journal.close()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_salvage_that_is_killed_is_done_again_or_finished(
    stored: Opened, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(300)(stored.path)
    replace = Path.replace
    left = [renames]

    class Killed(BaseException):
        pass

    def replace_or_die(self: Path, target: Path | str) -> Path:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)

    def open_and_read() -> None:
        stored.open()
        pending(stored)

    with pytest.raises(Killed):
        open_and_read()
    monkeypatch.undo()
    stored.journal._db.close()
    stored.open()
    assert 1_990 < len(pending(stored)) <= 2_000
    stored.journal.append(new(1, 1))
    stored.journal.close()

"""The journal keeps rows until the table has them, whatever ends the process."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import PROJECT
from pipeline.collect.errors import JournalError, JournalFull
from pipeline.collect.journal import RETAINED_ROWS, Journal

Row = tuple[int, str, str]
PLENTY = 1 << 30


def new(first: int, last: int) -> list[tuple[int, str, str, int]]:
    return [(*row, 0) for row in rows(first, last)]


def rows(first: int, last: int) -> list[Row]:
    return [(n, "d", f"{n}|1|1") for n in range(first, last + 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "btc.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path, PLENTY)
    yield opened
    opened.close()


def fill(journal: Journal, batch: list[tuple[int, str, str, int]]) -> int:
    """Append `batch` again and again until the journal is full; return how many rows it took."""
    for taken in range(10_000):
        try:
            journal.append(batch)
        except JournalFull:
            return taken * len(batch)
    raise AssertionError("it takes everything")


def reopened(journal: Journal, path: Path) -> Journal:
    journal.close()
    journal.__init__(path, PLENTY)  # type: ignore[misc]  # so that the fixture closes the right one
    return journal


def test_rows_come_back_in_order_until_they_are_acknowledged(journal: Journal) -> None:
    journal.append(new(1, 1))
    journal.append(new(2, 5))
    assert journal.pending(3) == rows(1, 3)
    journal.acknowledge(2)
    assert journal.pending(10) == rows(3, 5)
    assert journal.waiting == 3


def test_what_was_appended_and_acknowledged_survives_closing(journal: Journal, path: Path) -> None:
    journal.append(new(1, 5))
    journal.renumber(0, 0, "token")
    journal.acknowledge(3)
    again = reopened(journal, path)
    assert (again.token, again.stored, again.oldest, again.newest) == ("token", 3, 1, 5)
    assert again.pending(10) == rows(4, 5)


def test_an_acknowledgement_taken_back_sends_rows_again(journal: Journal) -> None:
    journal.append(new(1, 5))
    journal.acknowledge(5)
    journal.acknowledge(3)
    assert journal.pending(10) == rows(4, 5)


def test_acknowledged_rows_are_kept_for_a_while_and_no_longer(journal: Journal, path: Path) -> None:
    last = 3 * RETAINED_ROWS
    journal.append(new(1, last))
    journal.acknowledge(last)
    assert journal.oldest == last - RETAINED_ROWS + 1
    assert reopened(journal, path).oldest == last - RETAINED_ROWS + 1
    journal.acknowledge(journal.oldest - 1)
    assert len(journal.pending(last)) == RETAINED_ROWS


def test_the_file_shrinks_after_an_outage(journal: Journal, path: Path) -> None:
    journal.append([(1, "dp", "x" * 600, 0)] * 50_000)
    grown = path.stat().st_size
    journal.acknowledge(50_000)
    reopened(journal, path)
    assert path.stat().st_size < grown / 3


def test_renumbering_gives_pending_rows_the_numbers_after_what_the_table_holds(journal: Journal, path: Path) -> None:
    journal.append(new(1, 5))
    journal.acknowledge(2)
    journal.renumber(journal.stored, 1_000, "another")
    for opened in (journal, reopened(journal, path)):
        assert (opened.stored, opened.oldest, opened.newest, opened.token) == (1_000, 1_001, 1_003, "another")
        assert opened.pending(10) == rows(3, 5)
    journal.append(new(6, 6))
    assert journal.newest == 1_004
    assert journal.pending(10) == rows(3, 6)


@pytest.mark.parametrize("shift", [-3, -1, 0, 1, 3])
def test_renumbering_works_where_old_and_new_numbers_overlap(journal: Journal, shift: int) -> None:
    journal.append(new(1, 9))
    journal.acknowledge(4)
    journal.renumber(4, 4 + shift, "token")
    assert journal.pending(10) == rows(5, 9)
    assert journal.newest == 9 + shift


def test_an_empty_journal_can_be_renumbered(journal: Journal) -> None:
    journal.renumber(0, 50, "token")
    assert (journal.oldest, journal.newest, journal.waiting) == (51, 50, 0)
    journal.append(new(1, 1))
    assert journal.newest == 51


def test_only_deals_that_were_missed_are_taken(journal: Journal) -> None:
    journal.append([(1, "t", "ticker", 0), (2, "d", "had", 7), (3, "d", "had as well", 9)])
    journal.acknowledge(2)
    assert journal.append_missed([(2, "d", "had", 7), (2, "d", "missed", 8), (3, "d", "had as well", 9)]) == 1
    assert journal.pending(10) == [(3, "d", "had as well"), (2, "d", "missed")]
    assert journal.append_missed([(2, "d", "missed", 8)]) == 0


def test_the_oldest_and_the_newest_time_are_those_of_market_data(journal: Journal) -> None:
    assert journal.times("t", "d") is None
    journal.append([(4, "dl", "?", 0), (5, "d", "deal", 7), (6, "t", "ticker", 0), (7, "dl", "?", 0)])
    assert journal.times("t", "d") == (5, 6)


def test_a_second_writer_is_turned_away(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalError, match="a collector for this table is already running"):
        Journal(path, PLENTY)
    journal.append(new(1, 1))


def test_a_directory_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"cannot be opened.*JOURNAL_DIR"):
        Journal(tmp_path / "file" / "btc.db", PLENTY)


def test_when_full_the_oldest_rows_stay_and_new_ones_are_refused(path: Path) -> None:
    journal = Journal(path, 1 << 20)
    taken = fill(journal, new(1, 10))
    assert journal.newest == journal.waiting == taken
    assert journal.pending(10**6) == rows(1, 10) * (taken // 10)
    journal.acknowledge(journal.newest)
    journal.close()


def test_there_is_room_again_once_the_table_has_taken_rows(path: Path) -> None:
    journal = Journal(path, 4 << 20)
    fill(journal, [(1, "dp", "x" * 600, 0)] * 100)
    # The retained window alone would fill this journal, so it must give way.
    journal.acknowledge(journal.newest)
    journal.append([(1, "dp", "x" * 600, 0)] * 100)
    journal.close()


_WRITER = """
import sys
from pathlib import Path
from pipeline.collect.journal import Journal
journal = Journal(Path(sys.argv[1]), 1 << 30)
n = 0
while True:
    journal.append([(n + 1, "d", str(n + 1), 0), (n + 2, "d", str(n + 2), 0)])
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
    journal = Journal(path, PLENTY)
    assert journal.newest in (taken, taken + 2)
    assert journal.pending(10**7) == [(n, "d", str(n)) for n in range(1, journal.newest + 1)]
    journal.close()


def test_what_was_taken_is_on_the_disk_after_a_sync(journal: Journal, path: Path, tmp_path: Path) -> None:
    journal.append(new(1, 100))
    journal.sync()
    copy = tmp_path / "copy.db"
    for suffix in ("", "-wal"):  # what a power loss would leave
        copy.with_name(f"copy.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    assert sqlite3.connect(copy).execute("SELECT count(*) FROM rows").fetchone() == (100,)

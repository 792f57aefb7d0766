"""ch_setup.py --history: what a history lacks of its table is copied, once, whatever happens meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from config import load_settings
from pipeline.store import copying
from pipeline.store.client import connect
from pipeline.store.compact import CompactionError
from pipeline.store.copying import copy
from pipeline.store.history import Beginning, beginnings, record
from tests.stack import Stack, StoredRow, open_stack

START = 1_788_335_242_000
FIRST_N = 1_788_000_000_000_000  # of what came by the journal


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("copying")) as opened:
        opened.env["HISTORY"] = "1"
        opened.clickhouse()
        yield opened


@pytest.fixture
def archive(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A table of 100 rows, some of them equal, and a history that has only the last ten."""
    monkeypatch.setattr(copying, "_CHUNK", 7)
    stack.setup("--reset", "--yes")
    fill(stack, 0, 100)
    add(stack, 90, 100)
    note(stack, Beginning(0, 90, FIRST_N - 91, FIRST_N))
    return stack


def fill(stack: Stack, first: int, end: int) -> None:
    stack.query(
        "INSERT INTO mexc_data.btc SELECT fromUnixTimestamp64Milli(toInt64("
        f"{START} + intDiv(number, 4) * 86400000)), 'd', toString(intDiv(number, 2)) || '|1|1'"
        f" FROM numbers({first}, {end - first})"
    )


def add(stack: Stack, first: int, end: int) -> None:
    """Put rows of the table into the history as its collector does."""
    for number, (ts, mt, m) in enumerate(stack.rows()[first:end]):
        moment = f"fromUnixTimestamp64Milli(toInt64({ts}))"
        stack.query(
            "INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m)"
            f" SELECT {FIRST_N + first - 90 + number}, {moment}, {moment}, {moment}, '{mt}', 5, '{m}'"
        )


def token(stack: Stack) -> str:
    ((comment,),) = stack.query("SELECT comment FROM system.tables WHERE name = 'btc'")
    return str(comment)


def note(stack: Stack, begins: Beginning) -> None:
    record(connect(load_settings(stack.env, None)), "mexc_data", "btc", token(stack), begins)


def found(stack: Stack) -> list[Beginning]:
    return beginnings(connect(load_settings(stack.env, None)), "mexc_data", "btc", token(stack))


def history(stack: Stack) -> list[StoredRow]:
    query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history ORDER BY n"
    return [(ts, mt, m) for ts, mt, m in stack.query(query)]


def test_all_is_copied_in_its_order_and_said(archive: Stack) -> None:
    setup = archive.setup("--history")
    setup.wait_for(r"^Copying 90 rows of mexc_data.btc into mexc_data.btc_history")
    setup.wait_for(r"^Copied 90 rows of mexc_data.btc into mexc_data.btc_history, and checked 90 rows; ")
    assert history(archive) == archive.rows()
    assert found(archive)[0].is_whole
    assert archive.query("SELECT uniq(n), max(n) FROM mexc_data.btc_history WHERE id = 0") == [(90, FIRST_N - 1)]
    again = archive.setup("--history")
    assert "mexc_data.btc_history lacks nothing of mexc_data.btc" in again.lines
    assert history(archive) == archive.rows()


@pytest.mark.parametrize("steps", range(1, 15, 2))
def test_cut_short_and_run_again(archive: Stack, steps: int) -> None:
    settings = load_settings(archive.env, None)
    list(islice(copy(settings, "btc"), steps))
    assert not found(archive)[0].is_whole
    list(copy(settings, "btc"))
    assert history(archive) == archive.rows()
    assert found(archive)[0].is_whole


def test_two_at_once(archive: Stack) -> None:
    settings = load_settings(archive.env, None)
    one, other = copy(settings, "btc"), copy(settings, "btc")
    for _ in range(5):
        next(one)
        next(other)
    list(one)
    list(other)
    assert history(archive) == archive.rows()


def test_a_gap_of_which_some_rows_are_there(archive: Stack) -> None:
    list(copy(load_settings(archive.env, None), "btc"))
    fill(archive, 100, 130)
    add(archive, 100, 108)
    add(archive, 120, 125)
    note(archive, Beginning(90, 130, FIRST_N - 1, FIRST_N + 10**9))
    list(copy(load_settings(archive.env, None), "btc"))
    assert history(archive) == archive.rows()
    assert found(archive)[-1].is_whole


def test_rows_that_are_not_there_yet_are_waited_for(archive: Stack) -> None:
    note(archive, Beginning(0, 101, FIRST_N - 91, FIRST_N + 10**9))
    setup = archive.run("ch_setup.py", "--history")
    assert setup.wait() == 1
    setup.wait_for("^mexc_data.btc has not got all these rows yet: ")


def test_what_is_copied_wrongly_is_never_called_whole(archive: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying._Copy, "_insert", lambda self, rows: None)
    with pytest.raises(CompactionError, match="differs"):
        list(copy(load_settings(archive.env, None), "btc"))
    assert not found(archive)[0].is_whole


def write_as_somebody_else(stack: Stack, n: int, row: StoredRow) -> None:
    ts, mt, m = row
    moment = f"fromUnixTimestamp64Milli(toInt64({ts}))"
    stack.query(
        "INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m)"
        f" SELECT {n}, {moment}, {moment}, {moment}, '{mt}', 0, '{m}'"
    )


def test_rows_that_only_the_history_has_are_named_and_it_is_not_called_whole(archive: Stack) -> None:
    archive.setup("--history")
    note(archive, Beginning(0, 92, FIRST_N - 91, FIRST_N + 2))  # what its collector notes of such a history
    again = archive.rows()[20]  # once more than the table has it
    write_as_somebody_else(archive, FIRST_N - 50, (START, "d", "foreign"))
    write_as_somebody_else(archive, FIRST_N - 3, again)
    refused = archive.run("ch_setup.py", "--history")
    assert refused.wait() == 1
    assert not found(archive)[0].is_whole
    ((one, other),) = archive.query(f"SELECT cityHash64('foreign'), cityHash64('{again[2]}')")
    rows = f"(n, cityHash64(m)) IN (({FIRST_N - 50}, {one}), ({FIRST_N - 3}, {other}))"
    delete = f"ALTER TABLE mexc_data.btc_history DELETE WHERE {rows}"
    assert (
        "mexc_data.btc_history has 94 rows where mexc_data.btc has 92, since that has lost 2 rows, or somebody else"
        f" wrote: to delete them, {delete}, then run this again; to keep them: ch_setup.py --history --yes"
    ) in refused.lines
    archive.query(f"{delete} SETTINGS mutations_sync = 1")
    archive.setup("--history").wait_for("^Copied 0 rows of mexc_data.btc .*, and checked 92 rows; ")
    assert found(archive)[0].is_whole
    assert history(archive) == archive.rows()


def test_rows_that_only_the_history_has_are_kept_on_request(archive: Stack) -> None:
    for n in range(30):
        write_as_somebody_else(archive, FIRST_N - 1 - n, (START - 1, "d", f"foreign {n}"))
    with pytest.raises(CompactionError, match=r"DELETE WHERE n > \d+ AND n < \d+, then"):
        list(copy(load_settings(archive.env, None), "btc"))
    setup = archive.setup("--history", "--yes")
    setup.wait_for("^Copied 0 rows of mexc_data.btc into .*, and found each of 90 rows there, with 30 rows more; ")
    assert found(archive)[0].is_whole
    assert [row for row in history(archive) if not row[2].startswith("foreign")] == archive.rows()


def test_what_is_deleted_as_it_says_is_copied_again(archive: Stack) -> None:
    """The same rows in the same blocks, which ClickHouse would take for those that it had."""
    for n in range(30):
        write_as_somebody_else(archive, FIRST_N - 1 - n, (START - 1, "d", f"foreign {n}"))
    settings = load_settings(archive.env, None)
    with pytest.raises(CompactionError, match=r"DELETE WHERE n > \d+ AND n < \d+, then") as refused:
        list(copy(settings, "btc"))
    delete = re.search("ALTER TABLE .* DELETE WHERE [^,;]*", str(refused.value))
    assert delete
    archive.query(f"{delete[0]} SETTINGS mutations_sync = 1")
    list(copy(settings, "btc"))
    assert found(archive)[0].is_whole
    assert history(archive) == archive.rows()


def test_a_history_that_has_not_begun_is_trouble_where_there_are_rows(stack: Stack) -> None:
    stack.setup("--reset", "--yes")
    setup = stack.run("ch_setup.py", "--history")
    assert setup.wait() == 0, "there is none to be copied"
    fill(stack, 0, 1)
    setup = stack.run("ch_setup.py", "--history")
    assert setup.wait() == 1
    assert (
        "mexc_data.btc_history has not begun, so that no row of mexc_data.btc was copied: let its collector run with"
        " HISTORY=1, then run this again"
    ) in setup.lines
    assert "mexc_data.sol_history has not begun, and mexc_data.sol has no row that it lacks" in setup.lines


def test_a_table_without_history_is_said(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        setup = stack.run("ch_setup.py", "--history")
        assert setup.wait() == 1
        assert "Table mexc_data.btc_history does not exist: run ch_setup.py with HISTORY=1" in setup.lines

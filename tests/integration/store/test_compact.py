"""A table is rewritten into big blocks: the same rows in the same order, whatever is killed and whenever."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from typing import Any, NamedTuple

import pytest
from clickhouse_driver import Client

import ch_setup
from config import BTC_CONFIG, Settings, load_settings
from pipeline.collect.autocompact import AutoCompaction
from pipeline.store import compact as module
from pipeline.store.client import ALL_ROWS, connect
from pipeline.store.compact import BeingCompacted, CompactionError, Progress, compact, resume
from tests.integration.collect.test_pipeline import assert_stored, expected_rows
from tests.limited_clickhouse import limited
from tests.stack import Stack, StoredRow, eventually

ONE_ROW_BLOCKS = (
    "SETTINGS max_block_size = 1, min_insert_block_size_rows = 1, min_insert_block_size_bytes = 1, max_threads = 1,"
    " max_insert_threads = 1"
)


@pytest.fixture
def filled(served: Stack) -> Stack:
    """The table btc anew, with 150 rows in as many blocks, and some in larger ones."""
    served.setup("--reset", "--yes")
    fill(served, 150)
    return served


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take over at once from those who seem to be gone."""
    monkeypatch.setattr(module, "_ALIVE", 0.1)


def fill(stack: Stack, one_row_blocks: int) -> None:
    """Add rows to the table btc."""
    ts = "fromUnixTimestamp64Milli(1788335242000 + toInt64(number))"
    values = f"SELECT {ts}, ['t', 'd', 'dp'][number % 3 + 1], concat(toString(number), '|ü') FROM"
    stack.query(f"INSERT INTO mexc_data.btc {values} numbers({one_row_blocks}) {ONE_ROW_BLOCKS}")
    for rows in (700, 1, 3):
        stack.query(f"INSERT INTO mexc_data.btc {values} numbers(10000, {rows})")
    stack.query("INSERT INTO mexc_data.btc VALUES (0, 'dl', 'first of two'), (0, 'dl', 'second of two')")


class Snapshot(NamedTuple):
    """All of a table that compaction must not change."""

    rows: list[StoredRow]
    token: str
    uuid: str
    path: str


def snapshot(stack: Stack) -> Snapshot:
    """Return what is in the table btc."""
    query = "SELECT comment, toString(uuid), data_paths[1] FROM system.tables"
    ((token, uuid, path),) = stack.query(f"{query} WHERE database = 'mexc_data' AND name = 'btc'")
    return Snapshot(stack.rows(), token, uuid, path)


def settings_of(stack: Stack) -> Settings:
    return load_settings(stack.env, dotenv=None)


def tables(stack: Stack) -> list[str]:
    """Return the names of all tables, with an X for what is random in them."""
    found = stack.query(
        "SELECT name FROM system.tables WHERE database = 'mexc_data' AND engine = 'StripeLog' ORDER BY name"
    )
    return [re.sub("_[0-9a-f]{8}$", "_X", name) for (name,) in found]


def hidden(stack: Stack, state: str) -> str:
    """Return the name of the table that a compaction of btc has in this state."""
    found = stack.query(f"SELECT name FROM system.tables WHERE startsWith(name, 'btc_{state}_')")
    ((name,),) = found
    return f"mexc_data.{name}"


def blocks(stack: Stack) -> int:
    found: int = stack.query("SELECT countIf(rowNumberInBlock() = 0) FROM mexc_data.btc SETTINGS max_threads = 1")[0][0]
    return found


def advance(steps: Iterator[Progress], text: str) -> None:
    """Go on up to the step whose line has `text`; it is not done yet."""
    assert any(text in step.text for step in steps), text


def run(steps: Iterator[Progress]) -> list[Progress]:
    return list(steps)


def begin_statement(stack: Stack, query_id: str, table: str = "btc") -> Any:
    """Start an INSERT that goes on until it is given its rows."""
    client = connect(settings_of(stack))
    client.connection.force_connect()
    client.connection.send_query(f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", query_id=query_id)
    client.connection.send_external_tables(None)
    sample = client.receive_sample_block()

    def finish(rows: list[StoredRow]) -> None:
        client.send_data(sample, rows)
        client.receive_end_of_insert_query()
        client.disconnect()

    return finish


@contextmanager
def reading(stack: Stack, table: str) -> Iterator[None]:
    """Read a table of one-row blocks, half a second each."""
    client = connect(settings_of(stack))
    rows = client.execute_iter(f"SELECT sleep(0.5) FROM {table} SETTINGS max_threads = 1, max_block_size = 1")
    next(rows)
    try:
        yield
    finally:
        client.disconnect()  # which ends it


UNTOUCHED = ["btc", "eth", "sol"]


# What it is for


def test_the_same_table_in_few_blocks(filled: Stack) -> None:
    before = snapshot(filled)
    assert blocks(filled) == 154
    steps = run(compact(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert before.uuid == BTC_CONFIG["uuid"]
    assert blocks(filled) == 1
    assert tables(filled) == UNTOUCHED
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert [done.count(0), done.count(1)] == [1, 1]
    assert re.search("856 rows; 154 blocks before, 1 now; .* MB before, .* MB now", steps[-1].text)


def test_rows_after_it_are_kept_by_the_next(filled: Stack) -> None:
    run(compact(settings_of(filled), "btc"))
    fill(filled, 20)
    before = snapshot(filled)
    run(compact(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert blocks(filled) == 1


def test_a_table_of_very_many_blocks_is_copied_in_halves(filled: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_BLOCKS", 100)
    monkeypatch.setattr(module, "FIRST_BLOCK_ROWS", 7)
    before = snapshot(filled)
    steps = run(compact(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert blocks(filled) == 1
    assert tables(filled) == UNTOUCHED
    assert [step.done for step in steps].count(1) == 1


def test_an_empty_table(served: Stack) -> None:
    served.setup("--reset", "--yes")
    before = snapshot(served)
    run(compact(settings_of(served), "btc"))
    assert snapshot(served) == before


def test_a_table_that_is_not_there(filled: Stack) -> None:
    with pytest.raises(CompactionError, match="nothing does not exist"):
        run(compact(settings_of(filled), "nothing"))


# Cut short


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("in_halves", [False, True])
def test_given_up_at_each_step_and_resumed(filled: Stack, in_halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_BLOCKS", 0 if in_halves else 1_000_000)
    before = snapshot(filled)
    states = set()
    for number in count(1):
        taken = len(list(islice(compact(settings_of(filled), "btc"), number)))
        states.add(tuple(tables(filled)))
        run(resume(settings_of(filled), "btc"))
        assert snapshot(filled) == before
        assert tables(filled) == UNTOUCHED
        if taken < number:
            break
    assert states == {
        ("btc", "eth", "sol"),
        ("btc_compacting_X", "eth", "sol"),
        ("btc_compacting_X", "btc_copying_X", "eth", "sol"),
        ("btc_compacting_X", "btc_copied_X", "eth", "sol"),
    }


@pytest.mark.usefixtures("impatient")
def test_resuming_is_given_up_at_each_step_and_resumed(filled: Stack) -> None:
    before = snapshot(filled)
    for number in count(1):
        advance(compact(settings_of(filled), "btc"), "Checking mexc_data.btc")
        filled.query(f"TRUNCATE TABLE {hidden(filled, 'compacting')}")
        taken = len(list(islice(resume(settings_of(filled), "btc"), number)))
        run(resume(settings_of(filled), "btc"))
        assert snapshot(filled) == before
        assert tables(filled) == UNTOUCHED
        if taken < number:
            break
    assert number > 4


@pytest.mark.usefixtures("impatient")
def test_taken_over_at_each_step_from_one_that_lives_on(filled: Stack) -> None:
    before = snapshot(filled)
    failures = 0
    for number in count(1):
        slow = compact(settings_of(filled), "btc")
        taken = len(list(islice(slow, number)))
        other = compact(settings_of(filled), "btc")
        advance(other, "Checking mexc_data.btc")
        try:
            run(slow)
        except BeingCompacted:
            failures += 1
        run(other)
        assert snapshot(filled) == before
        assert tables(filled) == UNTOUCHED
        if taken < number:
            break
    assert failures == number - 2, "all but before the first RENAME, and after the last"


@pytest.mark.parametrize("reached", ["Copying", "Filling"])
def test_the_process_is_killed(filled: Stack, reached: str) -> None:
    before = snapshot(filled)
    process = filled.start("ch_setup.py", "--compact", "btc")
    process.wait_for(reached)
    process.stop(signal.SIGKILL)
    filled.setup()
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


@pytest.mark.parametrize("reached", ["Copying", "Filling"])
def test_the_server_is_killed(running: Stack, reached: str) -> None:
    fill(running, 5000)
    before = snapshot(running)
    process = running.start("ch_setup.py", "--compact", "btc")
    process.wait_for(reached)
    running.processes[0].stop(signal.SIGKILL)
    assert process.wait() == 1
    running.clickhouse()
    assert "btc" not in tables(running)
    assert "mexc_data.btc is back" in running.setup().output
    assert snapshot(running) == before
    assert tables(running) == UNTOUCHED
    assert running.run("ch_setup.py", "--compact", "btc").wait() == 0
    assert snapshot(running) == before


@pytest.mark.parametrize("reached", ["Copying", "Filling"])
def test_the_server_is_killed_and_the_collector_finishes(running: Stack, reached: str) -> None:
    exchange = running.exchange("--rate", 50)
    collector = running.collector()
    running.wait_for_rows(50)
    process = running.start("ch_setup.py", "--compact", "btc")
    process.wait_for(reached)
    running.processes[0].stop(signal.SIGKILL)
    running.clickhouse()
    collector.wait_for("mexc_data.btc is back")
    assert_stored(running, exchange, "BTC_USDT", "btc", 300)
    assert tables(running) == UNTOUCHED


# Not done, with everything as it was


@pytest.mark.parametrize(
    "columns",
    [
        "ts, mt, m FROM mexc_data.btc LIMIT 800",
        "ts, mt, m FROM mexc_data.btc ORDER BY m, ts",
        "ts + 1, mt, m FROM mexc_data.btc",
        "ts, if(m = 'first of two', 'd', mt), m FROM mexc_data.btc",
        "ts, mt, replaceOne(m, '7', '8') FROM mexc_data.btc",
        "ts, mt, transform(m, ['first of two', 'second of two'], ['second of two', 'first of two']) FROM mexc_data.btc",
    ],
)
def test_a_copy_that_differs_is_not_used(filled: Stack, columns: str) -> None:
    before = snapshot(filled)
    filled.query(f"CREATE TABLE mexc_data.other AS mexc_data.btc COMMENT '{before.token}'")
    filled.query(f"INSERT INTO mexc_data.other SELECT {columns} SETTINGS max_threads = 1")
    steps = compact(settings_of(filled), "btc")
    advance(steps, "Checking the copy")
    filled.query(f"EXCHANGE TABLES {hidden(filled, 'copying')} AND mexc_data.other")
    with pytest.raises(CompactionError, match="differs from it"):
        run(steps)
    filled.query("DROP TABLE mexc_data.other SYNC")
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


@pytest.mark.usefixtures("impatient")
def test_a_table_that_was_filled_wrongly_is_filled_again(filled: Stack) -> None:
    before = snapshot(filled)
    steps = compact(settings_of(filled), "btc")
    advance(steps, "Checking mexc_data.btc")
    aside = hidden(filled, "compacting")
    filled.query(f"TRUNCATE TABLE {aside}")
    filled.query(f"INSERT INTO {aside} SELECT 0, 'd', 'wrong' FROM numbers({len(before.rows)})")
    with pytest.raises(CompactionError, match="differs from it"):
        run(steps)
    run(resume(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


def test_it_is_refused_without_enough_disk(filled: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(filled)
    monkeypatch.setattr(module, "SPARE_DISK", 1 << 60)
    with pytest.raises(CompactionError, match=r"needs [\d,]+\.\d MB of free disk, and there are [\d,]+\.\d MB"):
        run(compact(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert blocks(filled) == 154


@pytest.mark.parametrize(
    ("state", "same_token"), [("compacting", False), ("compacting", True), ("copying", False), ("copied", False)]
)
def test_a_table_that_only_looks_like_a_leftover_is_kept(filled: Stack, state: str, same_token: bool) -> None:
    before = snapshot(filled)
    token = before.token if same_token else "of another table"
    filled.query(f"CREATE TABLE mexc_data.btc_{state}_00c0ffee AS mexc_data.btc COMMENT '{token}'")
    with pytest.raises(CompactionError, match=f"btc_{state}_00c0ffee is not from a compaction"):
        run(compact(settings_of(filled), "btc"))
    setup = filled.run("ch_setup.py")
    assert setup.wait() == 1
    assert "is not from a compaction" in setup.output
    assert tables(filled) == sorted([*UNTOUCHED, f"btc_{state}_X"])
    assert snapshot(filled) == before
    filled.setup("--reset", "--yes")
    assert tables(filled) == UNTOUCHED


@pytest.mark.usefixtures("impatient")
def test_no_empty_table_is_created_where_it_cannot_be_told_which_one_has_the_rows(filled: Stack) -> None:
    filled.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00000001")
    filled.query("CREATE TABLE mexc_data.btc_compacting_00000002 AS mexc_data.eth")
    setup = filled.run("ch_setup.py")
    assert setup.wait() == 1
    assert "which of mexc_data.btc_compacting_00000001, mexc_data.btc_compacting_00000002" in setup.output
    assert "btc" not in tables(filled)


def test_nothing_is_deleted_before_what_replaces_it_is_on_the_disk(
    filled: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    execute = Client.execute

    def record(client: Client, query: str, *arguments: Any, **options: Any) -> Any:
        statements.append(query)
        return execute(client, query, *arguments, **options)

    monkeypatch.setattr(Client, "execute", record)
    run(compact(settings_of(filled), "btc"))
    words = [" ".join(query.split()[:2]) for query in statements if not query.startswith(("SELECT", "SYSTEM JEMALLOC"))]
    assert words == [
        "RENAME TABLE",  # to btc_compacting_X
        "CREATE TABLE",
        "TRUNCATE TABLE",  # the copy that is empty yet: is it allowed?
        "SYSTEM SYNC",  # the copy
        "RENAME TABLE",  # to btc_copied_X
        "SYSTEM SYNC",  # that
        "TRUNCATE TABLE",
        "SYSTEM SYNC",  # what it was filled with
        "RENAME TABLE",  # to btc
        "TRUNCATE TABLE",  # the copy
        "DROP TABLE",
    ]


# A user who may not do it all


def rows_to_read(kind: str = "") -> str:
    """Return the settings of a profile that lets a read end after 1,000 rows, without an error."""
    limit, mode = f"max_rows_to_read{kind}", f"read_overflow_mode{kind}"
    return f"<{limit}>1000</{limit}><{mode}>break</{mode}>"


@pytest.mark.parametrize("profile", [rows_to_read(), rows_to_read("_leaf")], ids=["all", "leaf"])
def test_a_profile_that_lets_reads_end_early_costs_no_rows(running: Stack, profile: str) -> None:
    fill(running, 3000)
    before = snapshot(running)
    server = limited(running, profile)
    process = running.run("ch_setup.py", "--compact", "btc")
    assert process.wait() == 0, process.output
    assert "Compacted mexc_data.btc: 3,706 rows; 3,004 blocks before, 1 now" in process.output
    server.stop()
    running.clickhouse()
    assert snapshot(running) == before


def test_all_ways_to_end_a_read_early_are_overruled(served: Stack) -> None:
    """A new version of ClickHouse may have another."""
    modes = served.query("SELECT name FROM system.settings WHERE name LIKE '%overflow_mode%'")
    assert {name for (name,) in modes} == {name for name in ALL_ROWS if "overflow_mode" in name}


def test_it_is_refused_where_a_profile_cannot_be_overruled(running: Stack) -> None:
    fill(running, 3000)
    before = snapshot(running)
    fixed = "<constraints><max_rows_to_read><const/></max_rows_to_read></constraints>"
    server = limited(running, rows_to_read() + fixed)
    process = running.run("ch_setup.py", "--compact", "btc")
    assert process.wait() == 1
    assert process.output == (
        f"ClickHouse at 127.0.0.1:{running.port} does not let user default do that: Setting max_rows_to_read should not"
        " be changed. (SETTING_CONSTRAINT_VIOLATION); allow it in the user's profile, or set CLICKHOUSE_USER to another"
    )
    server.stop()
    running.clickhouse()
    assert snapshot(running) == before


def test_it_is_refused_where_a_row_policy_hides_rows(running: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(running, 3000)
    before = snapshot(running)
    monkeypatch.setattr("secrets.token_hex", lambda _: "00c0ffee")
    server = limited(running, hidden={"btc_compacting_00c0ffee": "mt != 't'"})
    with pytest.raises(CompactionError, match=r"by user default, who can read only 2,472 of its 3,706 rows: a row pol"):
        run(compact(settings_of(running), "btc"))
    assert snapshot(running) == before
    assert tables(running) == UNTOUCHED
    server.stop()


@pytest.mark.usefixtures("impatient")
def test_who_may_not_empty_a_table_has_it_back_at_once(running: Stack) -> None:
    fill(running, 100)
    before = snapshot(running)
    advance(compact(settings_of(running), "btc"), "Filling")  # and then it is killed
    server = limited(running, grants="SHOW, SELECT, INSERT, CREATE, DROP, SYSTEM")
    run(resume(settings_of(running), "btc"))
    assert snapshot(running) == before
    refused = r"may not empty it: GRANT TRUNCATE ON mexc_data.\* TO default$"
    steps = compact(settings_of(running), "btc")
    with pytest.raises(CompactionError, match=refused):
        advance(steps, "Copying")
    assert snapshot(running) == before
    assert tables(running) == UNTOUCHED
    server.stop()


# Others at the same time


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for readers no longer than a second."""
    monkeypatch.setattr(module, "_READERS_TIMEOUT", 1)


@pytest.mark.usefixtures("hasty")
def test_a_reader_that_does_not_end_keeps_it_from_beginning(filled: Stack) -> None:
    before = snapshot(filled)
    with reading(filled, "mexc_data.btc"):
        with pytest.raises(CompactionError, match=r"now: query \S+ of user default reads it, and has not ended in 1 s"):
            run(compact(settings_of(filled), "btc"))
        assert snapshot(filled) == before
        assert tables(filled) == UNTOUCHED
    run(compact(settings_of(filled), "btc"))
    assert blocks(filled) == 1


@pytest.mark.usefixtures("hasty")
def test_a_reader_that_comes_later_has_the_table_brought_back(filled: Stack) -> None:
    before = snapshot(filled)
    steps = compact(settings_of(filled), "btc")
    advance(steps, "Checking the copy")
    with reading(filled, hidden(filled, "compacting")):
        with pytest.raises(CompactionError, match="now: somebody reads it"):
            run(steps)
        assert snapshot(filled) == before
        assert tables(filled) == UNTOUCHED


@pytest.mark.usefixtures("hasty", "impatient")
def test_a_table_that_equals_its_copy_goes_back_as_it_is(filled: Stack) -> None:
    before = snapshot(filled)
    advance(compact(settings_of(filled), "btc"), "Filling")
    with reading(filled, hidden(filled, "compacting")):
        run(resume(settings_of(filled), "btc"))
        assert snapshot(filled) == before
        assert blocks(filled) == 154


@pytest.mark.usefixtures("impatient")
def test_a_table_that_cannot_be_read_any_more_is_filled_from_its_copy(running: Stack) -> None:
    fill(running, 100)
    before = snapshot(running)
    advance(compact(settings_of(running), "btc"), "Filling")
    assert running.processes[0].stop() == 0
    (data,) = running.data.glob("store/b7c/*/data.bin")
    data.write_bytes(data.read_bytes()[:-1000] + bytes(1000))
    running.clickhouse()
    run(resume(settings_of(running), "btc"))
    assert snapshot(running) == before


@pytest.mark.usefixtures("hasty")
def test_a_reader_of_the_copy_does_not_hold_it_up(filled: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BLOCK_ROWS", 1)
    before = snapshot(filled)
    steps = compact(settings_of(filled), "btc")
    advance(steps, "Checking mexc_data.btc")
    with reading(filled, hidden(filled, "copied")):
        run(steps)
        assert tables(filled) == UNTOUCHED
        assert snapshot(filled) == before


@pytest.mark.parametrize("seen", ["with a copy of it", "without"])
def test_resuming_beside_a_compaction_that_begins(filled: Stack, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found the table, and what an earlier compaction has left; when it looks again, the table is set aside."""
    before = snapshot(filled)
    if seen == "with a copy of it":
        filled.query(f"CREATE TABLE mexc_data.btc_copied_00c0ffee AS mexc_data.eth COMMENT '{before.token}'")
    other = module.Compactor(settings_of(filled), "btc")
    look = module.tables_of

    def look_then_set_aside(client: Client, database: str, name: str) -> dict[str, str]:
        found = look(client, database, name)
        if name in found:
            other._rename(other._full_name, other._aside)
        return found

    monkeypatch.setattr(module, "tables_of", look_then_set_aside)
    with pytest.raises(BeingCompacted, match=r"^mexc_data.btc is being compacted by another process$"):
        run(compact(settings_of(filled), "btc"))
    monkeypatch.undo()
    other._bring_back()
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


def test_an_insert_that_is_under_way_is_waited_for(filled: Stack) -> None:
    """It knows the table by more than its name, and stores its row after the table was set aside."""
    before = snapshot(filled)
    finish = begin_statement(filled, "append mexc_data.btc of a collector", "eth")
    thread = threading.Thread(target=run, args=(compact(settings_of(filled), "btc"),))
    thread.start()
    eventually(lambda: "btc" not in tables(filled), "set aside")
    filled.query(
        f"INSERT INTO {hidden(filled, 'compacting')} SELECT fromUnixTimestamp64Milli(toInt64(7)), 'd', 'last'"
    )  # as a server would do
    finish([])
    thread.join()
    assert snapshot(filled) == before._replace(rows=[*before.rows, (7, "d", "last")])
    assert blocks(filled) == 1


def test_an_insert_that_does_not_end_keeps_it_from_beginning(filled: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(filled)
    monkeypatch.setattr(module, "_FENCE_TIMEOUT", 0.2)
    finish = begin_statement(filled, "append mexc_data.btc of a collector", "eth")
    with pytest.raises(CompactionError, match="does not end"):
        run(compact(settings_of(filled), "btc"))
    finish([])
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


def test_what_another_process_works_on_is_left_alone(filled: Stack) -> None:
    before = snapshot(filled)
    advance(compact(settings_of(filled), "btc"), "Checking mexc_data.btc")
    finish = begin_statement(filled, "compact mexc_data.btc of another", "eth")
    setup = filled.setup()
    assert "Leaving btc table alone: mexc_data.btc is being compacted by another process" in setup.output
    again = filled.run("ch_setup.py", "--compact", "btc")
    assert again.wait() == 1
    assert again.output == "mexc_data.btc is being compacted by another process"
    assert "btc" not in tables(filled)
    finish([])
    filled.setup()
    assert snapshot(filled) == before


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("rows", ["fewer", "more"])
def test_of_several_copies_the_largest_counts_unless_the_table_is_larger(filled: Stack, rows: str) -> None:
    before = snapshot(filled)
    advance(compact(settings_of(filled), "btc"), "Checking mexc_data.btc" if rows == "fewer" else "Copying")
    # What a process has left that was slow: it called its copy whole when the table had grown already.
    filled.query(f"CREATE TABLE mexc_data.btc_copied_00c0ffee AS mexc_data.eth COMMENT '{before.token}'")
    filled.query("INSERT INTO mexc_data.btc_copied_00c0ffee VALUES (0, 'd', '1|1|1')")
    if rows == "fewer":
        filled.query(f"TRUNCATE TABLE {hidden(filled, 'compacting')}")
    run(resume(settings_of(filled), "btc"))
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


def test_it_does_not_begin_beside_a_copy_of_somebody_else(filled: Stack) -> None:
    before = snapshot(filled)
    steps = compact(settings_of(filled), "btc")
    next(steps)
    filled.query(f"CREATE TABLE mexc_data.btc_copying_00c0ffee AS mexc_data.eth COMMENT '{before.token}'")
    with pytest.raises(CompactionError, match="btc_copying_00c0ffee came meanwhile"):
        run(steps)
    assert snapshot(filled) == before
    assert tables(filled) == UNTOUCHED


def test_who_is_late_is_told_that_the_table_is_back(filled: Stack) -> None:
    steps = compact(settings_of(filled), "btc")
    advance(steps, "Deleting the copy")
    filled.query(f"CREATE TABLE mexc_data.btc AS {hidden(filled, 'compacting')}")
    with pytest.raises(BeingCompacted):
        run(steps)


def test_one_table_that_is_not_compacted_does_not_keep_the_others_from_it(
    filled: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        filled.query("INSERT INTO mexc_data.sol VALUES (0, 'd', '1|1|1')")

    def refuse(settings: Settings, name: str) -> Iterator[Progress]:
        if name == "btc":
            raise CompactionError("btc was not compacted")
        return compact(settings, name)

    monkeypatch.setattr(ch_setup, "compact", refuse)
    assert ch_setup.compact_tables(settings_of(filled), "") == 1
    said = capsys.readouterr()
    assert said.err == "btc was not compacted\n"
    assert re.search(r"^Compacted mexc_data.sol: 3 rows; 3 blocks before, 1 now", said.out, re.MULTILINE)


# While collectors run


def test_a_collector_goes_on_meanwhile(running: Stack) -> None:
    exchange = running.exchange("--rate", 300)
    collector = running.collector()
    running.wait_for_rows(300)
    for _ in range(2):
        process = running.run("ch_setup.py", "--compact")
        assert process.wait() == 0, process.output
    assert_stored(running, exchange, "BTC_USDT", "btc", len(exchange.sent()) + 100)
    assert collector.stop() == 0
    for trouble in ("lost", "WARNING", "reset", "bug"):
        assert trouble not in collector.output


def test_a_collector_compacts_its_own_table(running: Stack) -> None:
    exchange = running.exchange("--rate", 100)
    collector = running.collector(COMPACT_BLOCKS=100)
    collector.wait_for("^Compacting mexc_data.btc, ")
    collector.wait_for("^Compacted mexc_data.btc: .* 101 blocks before, 1 now")
    assert_stored(running, exchange, "BTC_USDT", "btc", 300)
    assert collector.stop() == 0
    assert "ERROR" not in collector.output
    assert re.findall("Errors: [^0]", collector.output) == []
    assert tables(running) == UNTOUCHED


def test_a_collector_is_stopped_while_it_compacts(running: Stack) -> None:
    fill(running, 200)
    before = running.rows()
    exchange = running.exchange("--rate", 100)
    collector = running.collector(COMPACT_BLOCKS=100)
    collector.wait_for("^Compacting")
    running.processes[0].send(signal.SIGSTOP)  # ClickHouse: it takes for ever now
    assert collector.stop() == 0
    stay = int(collector.wait_for(r"^([\d,]+) rows? stays? in the journal")[1].replace(",", ""))
    running.processes[0].send(signal.SIGCONT)
    exchange.process.stop()
    again = running.collector()
    again.wait_for("^mexc_data.btc is back")
    eventually(lambda: "btc" in tables(running) and running.count() >= len(before) + stay, "rows of the journal")
    rows = running.rows()
    assert rows[: len(before)] == before
    assert rows[len(before) :] == expected_rows(exchange.sent(), "BTC_USDT")[: len(rows) - len(before)]
    assert again.stop() == 0


# When


def test_blocks_that_were_there_before_count(filled: Stack) -> None:
    said: list[str] = []
    compaction = AutoCompaction(replace(settings_of(filled), compact_blocks=150), "btc", said.append)
    before = snapshot(filled)
    assert compaction.inserted(lambda: False)
    assert len(said) == 2
    assert blocks(filled) == 1
    assert snapshot(filled) == before


# The command


def test_a_table_that_is_not_in_the_configuration(filled: Stack) -> None:
    process = filled.run("ch_setup.py", "--compact", "doge")
    assert process.wait() == 2
    assert process.output == "There is no table doge in config.py or SYMBOLS"


STEPS = [Progress("Begin", 0), Progress("Copy", 0.1), Progress("Copy", 0.5), Progress("Check", 0.7), Progress("End", 1)]


def test_a_line_for_each_step_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ch_setup.show(STEPS)
    assert capsys.readouterr().out == "Begin\nCopy\nCheck\nEnd\n"


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ch_setup.show(STEPS)
    lines = capsys.readouterr().out.split("\r\033[K")
    assert lines == [
        "",
        "Begin\n",
        f"[{'#' * 3:<30}]  10% Copy",
        f"[{'#' * 15:<30}]  50% Copy",
        f"[{'#' * 21:<30}]  70% Check",
        "End\n",
    ]

"""Old rows are dropped: exactly those, whatever is killed on the way, and no collector loses count."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import compact as module
from pipeline.store import dropping
from pipeline.store.client import connect
from pipeline.store.compact import CompactionError, Compactor, Progress, compact, read_table, resume
from pipeline.store.copying import copy
from pipeline.store.dropping import drop, survey
from pipeline.store.turnover import turn_over
from pipeline.times import iso
from tests.both import START, Writer, numbered
from tests.integration.collect.test_exactly_once import Writer as PlainWriter
from tests.integration.collect.test_pipeline import expected_rows
from tests.integration.store.test_compact import (
    UNTOUCHED,
    advance,
    blocks,
    hidden,
    reading,
    run,
    settings_of,
    snapshot,
    tables,
)
from tests.limited_clickhouse import limited
from tests.stack import Stack, StoredRow, eventually

DATE = START + 7
LATE: StoredRow = (START + 5, "d", "late|1|1")
"""A row of before DATE, which came after others that are not."""


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take over at once from those who seem to be gone; wait for readers no longer than a second."""
    monkeypatch.setattr(module, "_ALIVE", 0.1)
    monkeypatch.setattr(module, "_READERS_TIMEOUT", 1)


@pytest.fixture
def writer(served: Stack, tmp_path: Path) -> Iterator[PlainWriter]:
    """Rows 1 to 9, and one that came late before the last."""
    made = PlainWriter(served, tmp_path, served.port)
    for row in [*numbered(1, 8), LATE, *numbered(9, 9)]:
        made.take([row])
        made.store()
    yield made
    made.close()


@pytest.fixture
def both(served: Stack, tmp_path: Path) -> Iterator[Writer]:
    """The same rows in a table and its history."""
    served.env["HISTORY"] = "1"
    made = Writer(served, tmp_path, served.port)
    made.store()
    for row in [*numbered(1, 8), LATE, *numbered(9, 9)]:
        made.take([row])
        made.store()
    yield made
    made.close()
    served.env["HISTORY"] = "0"


# A table


def test_exactly_the_old_rows_are_dropped(writer: PlainWriter) -> None:
    before = snapshot(writer.stack)
    steps = run(drop(writer.settings, "btc", DATE))
    after = snapshot(writer.stack)
    assert after.rows == numbered(7, 9)
    assert (after.uuid, after.path, after.token) == (before.uuid, before.path, f"{before.token}+7")
    assert blocks(writer.stack) == 1
    assert tables(writer.stack) == UNTOUCHED
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done[-1] == 1
    assert re.match(r"Dropped 7 rows from mexc_data.btc, 3 stay; .* MB before, .* MB now; it was away", steps[-1].text)
    assert run(drop(writer.settings, "btc", DATE))[-1].text == f"mexc_data.btc has no row from before {iso(DATE)}"


def test_no_collector_loses_count(writer: PlainWriter) -> None:
    run(drop(writer.settings, "btc", DATE))
    writer.take(numbered(10, 10))
    writer.store()  # unnoticed
    writer.take(numbered(11, 12))
    writer.reopen()
    writer.store()  # asked
    run(drop(writer.settings, "btc", START + 100))  # all of it
    writer.take(numbered(13, 14))
    writer.kill()
    writer.store()
    assert writer.stack.rows() == numbered(13, 14)
    assert writer.said == []
    run(compact(writer.settings, "btc"))
    assert writer.stack.rows() == numbered(13, 14)


@pytest.mark.parametrize("date", [START + 11, START + 12, START + 100])
def test_what_a_journal_forgot_and_was_dropped_is_not_doubled(writer: PlainWriter, date: int) -> None:
    writer.take(numbered(10, 11))
    writer.journal.sync()
    writer.copy("synced")
    writer.take(numbered(12, 12))
    writer.store()
    run(drop(writer.settings, "btc", date))
    left = writer.stack.rows()
    writer.put_back("synced")  # a power loss
    writer.take(numbered(13, 13))
    writer.store()
    assert writer.stack.rows() == [*left, *numbered(13, 13)]
    assert ["1 more than the journal knows" in line for line in writer.said] == [True]


def kill(monkeypatch: pytest.MonkeyPatch, steps: Iterator[Progress], at: int) -> bool:
    """Go through the steps, killed after statement number `at`; return whether there was one."""
    done = 0

    def killing(method: Any) -> Any:
        def killed(self: Compactor, *args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            is_last = done == at
            result = method(self, *args, **kwargs)
            if is_last and result is None:
                raise Killed
            return then_killed(result) if is_last else result

        return killed

    def then_killed(result: Any) -> Iterator[Any]:
        yield from result
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Compactor, "_run", killing(Compactor._run))
        patch.setattr(Compactor, "_read", killing(Compactor._read))
        try:
            run(steps)
        except Killed:
            return True
    return False


def test_killed_at_each_statement(writer: PlainWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a collector brings the table back, with all rows or with those that stay, and goes on."""
    rows, date = [*numbered(1, 8), LATE, *numbered(9, 9)], DATE
    dropped = 0
    for at in count(1):
        if not kill(monkeypatch, drop(writer.settings, "btc", date), at):
            break
        writer.take(numbered(9 + at, 9 + at))
        writer.reopen()
        writer.store()
        rows += numbered(9 + at, 9 + at)
        kept = [row for row in rows if row[0] >= date]
        found = writer.stack.rows()
        assert found in (rows, kept)
        run(resume(writer.settings, "btc"))  # which deletes a copy that is left
        assert tables(writer.stack) == UNTOUCHED
        if found == kept:
            rows, date = kept, date + 1
            dropped += 1
    assert at > 15
    assert dropped > 5
    assert not [line for line in writer.said if "back" not in line.lower()]


def test_resuming_is_killed_at_each_statement(writer: PlainWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in count(1):
        advance(drop(writer.settings, "btc", DATE + at - 1), "Filling")
        if not kill(monkeypatch, resume(writer.settings, "btc"), at):
            break
        run(resume(writer.settings, "btc"))
        writer.take(numbered(9 + at, 9 + at))
        writer.store()
        assert writer.stack.rows() == numbered(6 + at, 9 + at)
        assert tables(writer.stack) == UNTOUCHED
    assert at > 8


def test_a_reader_has_what_stays_while_the_table_is_filled(writer: PlainWriter) -> None:
    steps = drop(writer.settings, "btc", DATE)
    advance(steps, "Filling")
    with connect(writer.settings) as client:
        query = "SELECT count() FROM"
        found = read_table(client, "mexc_data", "btc", lambda table: client.execute(f"{query} {table}"))
    assert found == [(3,)]
    run(steps)


def test_nothing_is_deleted_before_what_stays_is_on_the_disk(
    writer: PlainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    execute = Compactor._run

    def record(self: Compactor, sql: str, *arguments: Any, **options: Any) -> None:
        statements.append(" ".join(sql.split()[:2]))
        execute(self, sql, *arguments, **options)

    monkeypatch.setattr(Compactor, "_run", record)
    run(drop(writer.settings, "btc", DATE))
    assert statements == [
        "RENAME TABLE",  # to btc_turning_X
        "CREATE TABLE",
        "TRUNCATE TABLE",  # the copy that is empty yet: is it allowed?
        "SYSTEM SYNC",  # the copy
        "ALTER TABLE",  # from here on, the copy counts
        "TRUNCATE TABLE",
        "SYSTEM SYNC",  # what it was filled with
        "ALTER TABLE",
        "RENAME TABLE",  # to btc
        "TRUNCATE TABLE",  # the copy
        "DROP TABLE",
    ]


def test_what_keeps_it_from_being_done_leaves_the_table_as_it_was(
    writer: PlainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(writer.stack)

    def refused(match: str) -> None:
        with pytest.raises(CompactionError, match=match):
            run(drop(writer.settings, "btc", DATE))
        assert snapshot(writer.stack) == before
        assert tables(writer.stack) == UNTOUCHED

    with reading(writer.stack, "mexc_data.btc"):
        refused("btc cannot be rewritten now: query .* reads it, and has not ended in 1 s")
    steps = drop(writer.settings, "btc", DATE)
    advance(steps, "Checking the copy")
    with reading(writer.stack, hidden(writer.stack, "turning")):
        with pytest.raises(CompactionError, match="now: somebody reads it"):
            run(steps)
        assert snapshot(writer.stack) == before
        assert tables(writer.stack) == UNTOUCHED
    with monkeypatch.context() as patch:
        patch.setattr(dropping, "SPARE_DISK", 1 << 60)
        refused(r"keeps its rows: to copy those that stay needs [\d,.]+ MB of free disk, and there are [\d,.]+ MB")
    with monkeypatch.context() as patch:
        patch.setattr(dropping, "MANY_BLOCKS", 9)
        refused(r"it has 10 blocks, .*: ch_setup.py --compact btc, then this again")
    steps = drop(writer.settings, "btc", DATE)
    advance(steps, "Checking the copy")
    writer.stack.query(f"INSERT INTO {hidden(writer.stack, 'tail')} VALUES (0, 'd', 'another')")
    with pytest.raises(CompactionError, match="differs from it"):
        run(steps)
    assert snapshot(writer.stack) == before
    assert tables(writer.stack) == UNTOUCHED


def test_who_may_not_empty_tables_is_told_so_and_limits_of_reading_are_overruled(running: Stack) -> None:
    rows = "SELECT fromUnixTimestamp64Milli(toInt64(number)), 'd', '1|1|1' FROM numbers(3000)"
    running.query(f"INSERT INTO mexc_data.btc {rows}")
    limit = "<max_rows_to_read>1000</max_rows_to_read><read_overflow_mode>break</read_overflow_mode>"
    server = limited(running, limit, "SHOW, SELECT, INSERT, CREATE, DROP, ALTER, SYSTEM")
    before = survey(settings_of(running), "btc", 1500)
    assert [(each.rows, each.of) for each in before] == [(1500, 3000)]
    with pytest.raises(CompactionError, match=r"may not empty it: GRANT TRUNCATE ON mexc_data.\* TO default$"):
        run(drop(settings_of(running), "btc", 1500))
    assert survey(settings_of(running), "btc", 1500) == before
    assert tables(running) == UNTOUCHED
    server.stop()


# The command


def test_the_command_asks_first_and_says_what_goes(writer: PlainWriter) -> None:
    asked = writer.stack.run("ch_setup.py", "--drop-before", iso(DATE))
    assert asked.wait() == 1
    first, last = iso(START + 1), iso(START + 6)
    assert re.search(
        rf"^mexc_data.btc: 7 of 10 rows, from {first} to {last}, some \d.\d MB of \d.\d MB\n"
        rf"This deletes all rows from before {iso(DATE)} of these tables, for good.\n"
        r"Type yes to go on: \s*Nothing was deleted.$",
        asked.output,
    ), asked.output
    assert len(writer.stack.rows()) == 10
    other = writer.stack.run("ch_setup.py", "--drop-before", "-1d", "eth", "sol", "--yes")
    assert other.wait() == 0
    assert other.output.startswith("No row is from before 2")
    done = writer.stack.run("ch_setup.py", "--drop-before", iso(DATE), "btc", "--yes")
    assert done.wait() == 0, done.output
    assert "\nDropped 7 rows from mexc_data.btc, 3 stay; " in done.output
    assert writer.stack.rows() == numbered(7, 9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--drop-before", "2100-01-01"], "--drop-before 2100-01-01T00:00:00.000Z is yet to come: all rows would go"),
        (["--drop-before", "soon"], "soon is no time: give a UTC date"),
        (["--drop-before", "yesterday", "xyz"], "There is no table xyz in config.py or SYMBOLS"),
        (["--drop-before", "yesterday", "HISTORY=1"], "COMPACT_BLOCKS=0 keeps all rows beside a history"),
        (["btc"], "unrecognized arguments: btc"),
    ],
)
def test_what_cannot_be_meant_is_refused(served: Stack, arguments: list[str], said: str) -> None:
    env = {"HISTORY": "1", "COMPACT_BLOCKS": "0"} if "HISTORY=1" in arguments else {}
    process = served.run("ch_setup.py", *(each for each in arguments if each != "HISTORY=1"), **env)
    assert process.wait() == 2
    assert said in process.output


def test_a_collector_goes_on_meanwhile_and_the_process_is_killed(running: Stack) -> None:
    exchange = running.exchange("--rate", 300)
    collector = running.collector()
    rows = running.wait_for_rows(300)
    for reached in ("Copying", "Filling", None):
        date = rows[len(rows) // 2][0]
        process = running.start("ch_setup.py", "--drop-before", iso(date), "--yes")
        if reached:
            process.wait_for(reached)
            process.stop(signal.SIGKILL)
        else:
            assert process.wait() == 0, process.output
        sent = len(exchange.sent("BTC_USDT"))
        eventually(lambda sent=sent: len(exchange.sent("BTC_USDT")) > sent + 100, "more frames")  # type: ignore[misc]
        eventually(lambda: "btc" in tables(running), "the table is back")
        rows = running.rows()
    exchange.process.stop()
    assert collector.stop() == 0
    expected = expected_rows(exchange.sent("BTC_USDT"), "BTC_USDT")
    assert running.rows() == [row for row in expected if row[0] >= date]
    for trouble in ("lost", "WARNING", "reset", "bug"):
        assert trouble not in collector.output


# With a history


def test_old_rows_are_gone_in_both(both: Writer) -> None:
    (table, history) = survey(both.settings, "btc", DATE)
    assert (table.rows, table.of, history.rows, history.of) == (7, 10, 7, 10)
    steps = run(drop(both.settings, "btc", DATE))
    assert steps[-1].text.startswith("Deleted 7 rows of mexc_data.btc_history, 3 stay; ")
    assert both.rows() == both.read() == numbered(7, 9)
    assert survey(both.settings, "btc", DATE) == []
    for n in range(10, 16, 2):
        both.take(numbered(n, n))
        both.store()
        both.take(numbered(n + 1, n + 1))
        both.reopen()
        both.store()
        assert both.read() == both.rows() == numbered(7, n + 1)
        if n == 12:
            run(turn_over(both.settings, "btc"))
    assert both.said == []
    assert not both.log.has_parted


def test_the_newest_row_of_a_history_stays(both: Writer) -> None:
    for _ in range(2):
        run(drop(both.settings, "btc", START + 100))
        assert both.rows() == both.read() == numbered(9, 9)
    both.reopen()
    both.take(numbered(10, 10))
    both.store()
    assert both.rows() == both.read() == numbered(9, 10)
    assert both.said == []


def test_parts_that_are_old_go_as_a_whole(both: Writer) -> None:
    month = 31 * 86_400_000
    both.take([(START + month, "d", "1|1|1"), (START + month + 1, "d", "2|1|1")])
    both.store()
    run(drop(both.settings, "btc", START + month + 1))
    assert both.read() == [(START + month + 1, "d", "2|1|1")]
    mutations = both.stack.query("SELECT count() FROM system.mutations WHERE table = 'btc_history'")
    assert mutations == [(1,)], "only of the month that stays in part"


def test_what_a_history_never_had_is_dropped_and_the_rest_can_be_copied(both: Writer) -> None:
    both.stack.query("TRUNCATE TABLE mexc_data.btc_history")
    both.stack.query("TRUNCATE TABLE mexc_data.history_begins")
    both.position.adopt(None, 0, 0)
    both.reopen()
    both.take(numbered(10, 10))
    both.store()
    run(drop(both.settings, "btc", DATE))
    assert both.stack.rows() == numbered(7, 10)
    run(copy(both.settings, "btc"))
    run(turn_over(both.settings, "btc"))
    assert both.rows() == both.read() == numbered(7, 10)


def test_a_history_begun_after_old_rows_were_dropped(both: Writer) -> None:
    both.stack.query("DROP TABLE mexc_data.btc_history SYNC")
    plain = replace(both.settings, history=0)
    run(drop(plain, "btc", DATE))
    both.stack.setup()
    both.reopen()
    both.take(numbered(10, 10))
    both.store()
    run(copy(both.settings, "btc"))
    run(turn_over(both.settings, "btc"))
    assert both.rows() == both.read() == numbered(7, 10)


def test_beside_a_history_that_the_settings_do_not_have_nothing_goes(both: Writer) -> None:
    """Else rows that are in neither would count as turned over, and others be taken for them once HISTORY=1 again."""
    before = both.stack.rows()
    command = both.stack.run("ch_setup.py", "--drop-before", iso(DATE), "btc", "--yes", HISTORY=0)
    assert command.wait() == 1
    assert command.lines[0].startswith("mexc_data.btc keeps its rows, for it has a history, and HISTORY is not set: ")
    assert both.stack.rows() == before

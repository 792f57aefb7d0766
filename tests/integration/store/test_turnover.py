"""A table is emptied of what its history holds, and whatever is killed on the way, no row is in neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from pipeline.collect import journal
from pipeline.store import compact as module
from pipeline.store import copying, turnover
from pipeline.store.both import count_rows
from pipeline.store.compact import BeingCompacted, CompactionError, Compactor, Progress, compact, resume
from pipeline.store.copying import _Copy, copy
from pipeline.store.dropping import drop
from pipeline.store.history import Beginning, beginnings, connect_history, record
from pipeline.store.history import drop as drop_history
from pipeline.store.source import moment, open_history
from pipeline.store.turnover import NotInHistory, tidy, turn_over
from tests.both import START, Writer, numbered
from tests.stack import Stack, free_port, open_stack

ABOUT = "SELECT name, toString(uuid), comment FROM system.tables WHERE database = 'mexc_data' AND name LIKE 'btc%'"


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("turnover")) as opened:
        opened.env["HISTORY"] = "1"
        opened.clickhouse()
        yield opened


@pytest.fixture
def writer(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """Ten rows in both tables, and two more that the history has not got yet."""
    monkeypatch.setattr(module, "_ALIVE", 0.1)
    made = Writer(stack, tmp_path, stack.port)
    made.store()
    for n in range(1, 11):
        made.take(numbered(n, n))
        made.store()
    made.take(numbered(11, 12))
    made.store_in(made.table, made.live)
    yield made
    made.close()


def test_what_the_history_has_is_gone_and_the_rest_stays(writer: Writer) -> None:
    ((_, uuid, token),) = [each for each in writer.stack.query(ABOUT) if each[0] == "btc"]
    steps = list(turn_over(writer.settings, "btc"))
    assert steps[-1].text.startswith("Turned mexc_data.btc over: 10 rows are in mexc_data.btc_history only, 2 stay; ")
    assert writer.stack.rows() == numbered(11, 12)
    assert writer.read() == numbered(1, 12)
    assert [each for each in writer.stack.query(ABOUT) if each[0] == "btc"] == [("btc", uuid, f"{token}+10")]


def test_a_history_with_rows_that_its_table_has_lost_is_no_obstacle(writer: Writer) -> None:
    """They stay, and the table is turned over, with nobody there to say so."""
    ns = [n for (n,) in writer.stack.query("SELECT n FROM mexc_data.btc_history ORDER BY n")]
    lost = f"SELECT {ns[3]}, ts, received, event, mt, id, '7|8|9' FROM mexc_data.btc_history WHERE n = {ns[3]}"
    writer.stack.query(f"INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) {lost}")
    record(writer.client, "mexc_data", "btc", writer.token(), Beginning(0, 10, ns[0] - 1, ns[9] + 1))
    with pytest.raises(CompactionError, match="do not go on alike yet: try again when its collector has run"):
        list(turn_over(writer.settings, "btc"))
    writer.store()
    *steps, last = (step.text for step in turn_over(writer.settings, "btc"))
    assert any("found each of 10 rows there, with 1 row more" in text for text in steps)
    assert last.startswith("Turned mexc_data.btc over: 12 rows are in mexc_data.btc_history only, 0 stay; ")
    assert writer.stack.rows() == []
    assert len(writer.rows()) == 13


def test_rows_go_on_and_the_collector_takes_nothing_for_a_reset(writer: Writer) -> None:
    for round_ in range(3):
        list(turn_over(writer.settings, "btc"))
        n = 13 + 2 * round_
        writer.take(numbered(n, n))
        writer.store()  # unnoticed
        writer.take(numbered(n + 1, n + 1))
        writer.reopen()
        writer.store()  # asked
        assert writer.read() == numbered(1, n + 1)
        assert writer.rows() == numbered(1, n + 1)
    assert writer.said == []
    assert len(writer.stack.rows()) < 5
    assert not writer.log.has_parted


def test_what_a_journal_forgot_before_its_table_was_turned_over_is_not_sent_again(writer: Writer) -> None:
    writer.store()
    writer.journal.sync()
    writer.take(numbered(13, 15))
    writer.copy("power failed")
    writer.take(numbered(16, 20))
    writer.store()
    list(turn_over(writer.settings, "btc"))
    writer.put_back("power failed")
    writer.take(numbered(21, 21))
    writer.store()
    assert writer.read() == writer.rows() == numbered(1, 21)


def test_after_a_power_loss_only_what_the_journal_forgot_is_looked_for(writer: Writer) -> None:
    """It is in the table, and the history has not got it; of what was turned over before nothing is in doubt."""
    writer.store()
    list(turn_over(writer.settings, "btc"))
    writer.journal.sync()
    writer.copy("power failed")
    writer.take(numbered(13, 15))
    writer.store_in(writer.table, writer.live)
    writer.put_back("power failed")
    writer.take(numbered(16, 20))
    writer.store()
    begun = beginnings(writer.client, "mexc_data", "btc", writer.token())
    assert [(each.first, each.rows) for each in begun if not each.is_whole] == [(12, 15)]
    list(turn_over(writer.settings, "btc"))
    assert writer.rows() == numbered(1, 20)
    assert writer.stack.rows() == []


def test_other_rows_in_the_place_of_those_that_were_noted_stay(writer: Writer) -> None:
    """It was noted that the history has all; table and journal forgot some, and their collector has not noticed yet."""
    writer.copy("power failed")
    begins = 13
    writer.take(numbered(begins, begins + 2))
    writer.store()
    ((last,),) = writer.stack.query("SELECT max(n) FROM mexc_data.btc_history")
    record(writer.client, "mexc_data", "btc", writer.token(), Beginning(15, 15, last, last + 1))
    writer.stack.query("TRUNCATE TABLE mexc_data.btc")
    writer.put_back("power failed")
    writer.take(numbered(21, 23))
    writer.store_in(writer.table, writer.live)  # and not yet in the history
    assert writer.stack.rows() == [*numbered(1, 12), *numbered(21, 23)]
    for _ in range(2):
        with suppress(CompactionError):
            list(turn_over(writer.settings, "btc"))
        assert {*writer.stack.rows(), *writer.rows()} >= {*numbered(21, 23)}
        writer.store_in(writer.history, writer.position)
    assert sorted(writer.rows()) == [*numbered(1, 15), *numbered(21, 23)]


def test_a_table_whose_history_is_away_is_compacted(writer: Writer) -> None:
    port = free_port()
    said, *_, last = [step.text for step in tidy(replace(writer.settings, history_port=port), "btc")]
    assert said.startswith(f"mexc_data.btc cannot be turned over: ClickHouse at 127.0.0.1:{port} cannot be reached")
    assert said.endswith("; compacting it instead")
    assert last.startswith("Compacted mexc_data.btc: ")
    assert writer.stack.rows() == numbered(1, 12)


def steps_of_a_turn(writer: Writer, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> bool:
    """Turn the table over, killed before or after its statement number `at`; return whether there was one."""
    run, count = Compactor._run, 0

    def killed(self: Compactor, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == at and not after:
            raise Killed
        run(self, *args, **kwargs)
        if count == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Compactor, "_run", killed)
        try:
            list(turn_over(writer.settings, "btc"))
        except Killed:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_statement(writer: Writer, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    last, kills = 12, 0
    for at in range(1, 30):
        if not steps_of_a_turn(writer, monkeypatch, at, after=after):
            break
        kills += 1
        assert counted(writer) == last
        list(resume(writer.settings, "btc"))
        assert writer.read() == numbered(1, last)
        assert counted(writer) == last
        writer.take(numbered(last + 1, last + 2))
        last += 2
        writer.reopen()
        writer.store()
        assert writer.read() == writer.rows() == numbered(1, last)
        writer.take(numbered(last + 1, last + 1))
        last += 1
        writer.store_in(writer.table, writer.live)
    assert kills > 6
    assert writer.said == []


def counted(writer: Writer, where: str = "1") -> int:
    with open_history(writer.settings) as history:
        return count_rows(writer.client, "mexc_data", "btc", history, where).by_type.get("d", 0)


def test_each_row_of_both_is_counted_once(writer: Writer) -> None:
    late = f"ts > {moment(START + 8)}"
    assert (counted(writer), counted(writer, late)) == (12, 4)
    list(turn_over(writer.settings, "btc"))
    assert (counted(writer), counted(writer, late)) == (12, 4)
    writer.take(numbered(13, 15))
    writer.store_in(writer.table, writer.live)
    assert (counted(writer), counted(writer, late)) == (15, 7)
    writer.store()
    list(drop(replace(writer.settings, history=False), "btc", START + 13))
    assert (counted(writer), counted(writer, late)) == (15, 7), "the history has what is gone from the table"
    writer.take(numbered(16, 16))
    writer.store_in(writer.table, writer.live)
    assert counted(writer) == 16
    drop_history(writer.client, "mexc_data", "btc")
    assert counted(writer) == len(writer.stack.rows()) == 4


@pytest.mark.parametrize("at", range(2, 9, 2))
def test_the_collector_brings_it_back(writer: Writer, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    assert steps_of_a_turn(writer, monkeypatch, at, after=True)
    writer.take(numbered(13, 14))
    writer.reopen()
    writer.store()
    assert writer.read() == writer.rows() == numbered(1, 14)


@pytest.mark.parametrize("step", ["_copy_after", "_complete_tail"])
def test_a_failure_leaves_the_table_as_it_was(writer: Writer, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fails(self: Any, *args: Any) -> int:
        raise CompactionError("as it happens")

    before = writer.stack.query(ABOUT)
    monkeypatch.setattr(turnover._TurnOver, step, fails)
    with pytest.raises(CompactionError, match="as it happens"):
        list(turn_over(writer.settings, "btc"))
    assert sorted(writer.stack.query(ABOUT)) == sorted(before)
    assert writer.stack.rows() == numbered(1, 12)


def before_it_is_set_aside(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Have something done after the newest rows were copied, and before the table is set aside."""
    rename = Compactor._rename

    def renamed(self: Compactor, old: str, new: str) -> None:
        if old == self._full_name:
            do()
        rename(self, old, new)

    monkeypatch.setattr(Compactor, "_rename", renamed)


def test_rows_that_come_while_the_newest_are_copied_stay(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.take(numbered(13, 14))
    before_it_is_set_aside(monkeypatch, lambda: writer.store_in(writer.table, writer.live))
    (*_, last) = turn_over(writer.settings, "btc")
    assert ": 10 rows are in mexc_data.btc_history only, 4 stay; " in last.text
    assert writer.stack.rows() == numbered(11, 14)
    assert writer.read() == numbered(1, 14)


def test_rows_that_come_while_it_is_compared_do_not_count(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    to_come = [numbered(13, 14)]

    def connected(*arguments: Any, **options: Any) -> Any:
        client = connect_history(*arguments, **options)
        execute = client.execute

        def executed(sql: str, *arguments: Any, **options: Any) -> Any:
            found = execute(sql, *arguments, **options)
            if sql.startswith("SELECT count()") and "WHERE n >=" in sql and to_come:
                writer.take(to_come.pop())
                writer.store()
            return found

        client.execute = executed
        return client

    monkeypatch.setattr(turnover, "connect_history", connected)
    (*_, last) = turn_over(writer.settings, "btc")
    assert ": 10 rows are in mexc_data.btc_history only, 4 stay; " in last.text
    assert writer.read() == writer.rows() == numbered(1, 14)


def test_whoever_tidies_up_meanwhile_takes_no_row(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = writer.stack.query(ABOUT)
    before_it_is_set_aside(monkeypatch, lambda: list(resume(writer.settings, "btc")))
    with pytest.raises(CompactionError):
        list(turn_over(writer.settings, "btc"))
    assert sorted(writer.stack.query(ABOUT)) == sorted(before)
    assert writer.stack.rows() == numbered(1, 12)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE mexc_data.btc_history DELETE WHERE m = '4|1|1' SETTINGS mutations_sync = 2",
        "ALTER TABLE mexc_data.btc_history UPDATE m = '4|1|2' WHERE m = '4|1|1' SETTINGS mutations_sync = 2",
        "ALTER TABLE mexc_data.btc_history DELETE WHERE m = '1|1|1' SETTINGS mutations_sync = 2",
    ],
)
def test_a_row_that_the_history_lacks_keeps_all_and_it_is_compacted(writer: Writer, change: str) -> None:
    writer.store()
    writer.stack.query(change)
    with pytest.raises(CompactionError):
        list(turn_over(writer.settings, "btc"))
    assert writer.stack.rows() == numbered(1, 12)


def test_what_was_never_copied_is_compacted(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turnover, "_FEW", 3)
    writer.stack.query("TRUNCATE TABLE mexc_data.btc_history")
    writer.stack.query("TRUNCATE TABLE mexc_data.history_begins")
    writer.journal._delete_spare()
    writer.reopen()
    writer.store()
    writer.history.doubt()
    writer.store()
    with pytest.raises(NotInHistory):
        list(turn_over(writer.settings, "btc"))
    steps = [step.text for step in tidy(writer.settings, "btc")]
    assert any("compacting it instead" in step for step in steps)
    assert steps[-1].startswith("Compacted mexc_data.btc: 12 rows")


def test_a_few_rows_that_the_history_lacks_are_copied_first(writer: Writer) -> None:
    writer.journal.sync()
    writer.copy("synced")
    writer.take(numbered(13, 14))
    writer.store_in(writer.table, writer.live)
    writer.put_back("synced")  # a power loss: the journal has forgotten them
    writer.take(numbered(15, 15))
    writer.store()
    if writer.log.has_parted:
        writer.history.doubt()
        writer.store()
    list(turn_over(writer.settings, "btc"))
    assert writer.rows() == numbered(1, 15)
    assert writer.read() == numbered(1, 15)
    assert all(each.is_whole for each in beginnings(writer.client, "mexc_data", "btc", writer.token()))


def test_upkeep_turns_tables_over(writer: Writer) -> None:
    upkeep = writer.stack.start("-m", "pipeline.store.upkeep", COMPACT_BLOCKS=5)
    upkeep.wait_for("^Turned mexc_data.btc over: 10 rows")
    assert upkeep.stop() == 0
    assert writer.read() == numbered(1, 12)


@pytest.mark.parametrize(
    "begin",
    [
        lambda settings: turn_over(settings, "btc"),
        lambda settings: drop(replace(settings, history=False), "btc", START + 3),
        lambda settings: compact(settings, "btc"),
    ],
    ids=["turning over", "dropping", "compacting"],
)
def test_what_has_begun_when_another_turns_the_table_over_leaves_it(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Settings], Iterator[Progress]]
) -> None:
    wait, turns = Compactor._wait_for_readers, [lambda: list(turn_over(writer.settings, "btc"))]

    def waited(self: Compactor) -> None:
        wait(self)
        if turns:
            turns.pop()()

    monkeypatch.setattr(Compactor, "_wait_for_readers", waited)
    with pytest.raises(BeingCompacted):
        list(begin(writer.settings))
    list(resume(writer.settings, "btc"))
    writer.take(numbered(13, 13))
    writer.table.doubt()
    writer.store()
    assert writer.said == []
    assert writer.read() == writer.rows() == numbered(1, 13)


def test_what_is_copied_while_the_table_is_turned_over_is_put_off(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.store()
    writer.stack.query("TRUNCATE TABLE mexc_data.history_begins")
    writer.reopen()
    writer.store()
    writer.take(numbered(13, 13))
    writer.store()
    writer.take(numbered(14, 15))
    writer.store_in(writer.table, writer.live)
    ask_both, turns = _Copy._ask_both, [lambda: list(turn_over(writer.settings, "btc"))]

    def asked(self: _Copy, columns: str, clauses: str = "") -> tuple[list[Any], list[Any]]:
        if turns:
            turns.pop()()
        return ask_both(self, columns, clauses)

    monkeypatch.setattr(_Copy, "_ask_both", asked)
    with suppress(CompactionError):
        list(copy(writer.settings, "btc"))
    list(copy(writer.settings, "btc"))
    writer.store()
    assert writer.rows() == numbered(1, 15)


def test_a_history_made_anew_and_noticed_late_is_copied_in_order(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RETAINED_ROWS", "_TRIM_EVERY"):
        monkeypatch.setattr(journal, name, 1)
    monkeypatch.setattr(copying, "_CHUNK", 2)
    writer.store()
    writer.reopen()
    for n in (13, 14):
        writer.take(numbered(n, n))
        writer.store()
    drop_history(writer.client, "mexc_data", "btc")
    writer.stack.setup()
    for n in (15, 16):
        writer.take(numbered(n, n))
        writer.store()  # unnoticed
    writer.reopen()
    for n in (17, 18):
        writer.take(numbered(n, n))
        writer.store()
    list(copy(writer.settings, "btc"))
    assert writer.rows() == numbered(1, 18)

"""A table is emptied of what its history holds, and whatever is killed on the way, no row is in neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import compact as module
from pipeline.store import turnover
from pipeline.store.compact import CompactionError, Compactor, resume
from pipeline.store.history import beginnings
from pipeline.store.turnover import NotInHistory, tidy, turn_over
from tests.both import Writer, numbered
from tests.stack import Stack, open_stack

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
        list(resume(writer.settings, "btc"))
        assert writer.read() == numbered(1, last)
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


@pytest.mark.parametrize("at", range(2, 9, 2))
def test_the_collector_brings_it_back(writer: Writer, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    assert steps_of_a_turn(writer, monkeypatch, at, after=True)
    writer.take(numbered(13, 14))
    writer.reopen()
    writer.store()
    assert writer.read() == writer.rows() == numbered(1, 14)


def test_a_failure_leaves_the_table_as_it_was(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, sure: int) -> int:
        raise CompactionError("as it happens")

    before = writer.stack.query(ABOUT)
    monkeypatch.setattr(turnover._TurnOver, "_copy_tail", fails)
    with pytest.raises(CompactionError, match="as it happens"):
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

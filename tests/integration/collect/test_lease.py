"""One writer a table, whatever its journal: real collectors, each with a journal of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pipeline.messages import parse_frame
from tests.stack import Exchange, Process, Stack, StoredRow, eventually, whole_lines

REFUSED = r"mexc_data.btc has a writer already, since .* UTC: process (\d+) on \S+, journal (\S+); stop that first"


def start(stack: Stack, name: str) -> Process:
    """Start a collector of BTC with a journal of its own."""
    return stack.collector(JOURNAL_DIR=stack.directory / name)


def given(exchange: Exchange, connection: int) -> list[StoredRow]:
    """Return the rows of the frames that one connection was sent."""
    entries = [json.loads(line) for line in whole_lines(exchange.log)]
    frames = [entry["frame"] for entry in entries if entry["conn"] == connection]
    return [(row.ts_ms, row.mt, row.m) for raw in frames for row in parse_frame(raw, "BTC_USDT", 0).rows]


def differ(rows: list[StoredRow], others: list[StoredRow]) -> tuple[int, list[StoredRow], list[StoredRow]] | None:
    """Return where the first differ from as many of the others, and what is there; None where they do not."""
    for n, row in enumerate(rows):
        if others[n : n + 1] != [row]:
            return n, rows[n : n + 2], others[n : n + 2]
    return None


def claims(stack: Stack) -> list[tuple[str, int, int]]:
    """Return the owners that ever were, in order: since when, and until when they were good, in microseconds."""
    found = stack.query(
        "SELECT owner, toUnixTimestamp64Micro(min(since)), toUnixTimestamp64Micro(argMax(until, at))"
        " FROM mexc_data.collectors WHERE name = 'btc' GROUP BY owner ORDER BY min(at)"
    )
    return list(found)


def freeze(stack: Stack, collector: Process) -> None:
    """Stop a collector, but not amid an INSERT: a successor would wait until the server gives that up."""
    while True:
        collector.send(signal.SIGSTOP)
        if not stack.query("SELECT count() FROM system.processes WHERE startsWith(query_id, 'append ')")[0][0]:
            return
        collector.send(signal.SIGCONT)


def test_a_second_collector_with_another_journal_is_refused_and_leaves_nothing_behind(running: Stack) -> None:
    exchange = running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    second = start(running, "two")
    found = second.wait_for(REFUSED)
    assert (int(found[1]), found[2]) == (first.pid, str(running.directory / "one" / "btc.db"))
    assert second.wait() == 2
    assert first.stop() == 0
    stored = running.rows()
    assert differ(stored, given(exchange, 1)) is None
    again = start(running, "two")
    rows = running.wait_for_rows(len(stored) + 20)
    assert differ(stored, rows) is None
    assert differ(rows[len(stored) :], given(exchange, 3)) is None, "nothing of what the refused one had read"
    assert again.stop() == 0


def test_of_two_that_start_at_the_same_moment_one_stays(running: Stack) -> None:
    running.exchange()
    both = [start(running, name) for name in ("one", "two")]
    eventually(lambda: not all(each.running for each in both), "one of them ends")
    (refused,) = (each for each in both if not each.running)
    (stays,) = (each for each in both if each.running)
    assert refused.wait() == 2
    assert int(refused.wait_for(REFUSED)[1]) == stays.pid
    before = running.count()
    running.wait_for_rows(before + 20)
    assert len(claims(running)) == 1
    assert stays.stop() == 0


def test_a_dead_one_is_taken_over_from_and_what_came_meanwhile_is_stored(running: Stack) -> None:
    exchange = running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    first.stop(signal.SIGKILL)
    stored = running.rows()
    second = start(running, "two")
    rows = running.wait_for_rows(len(stored) + 20)
    (_, _, until), (_, since, _) = claims(running)
    assert since >= until
    assert differ(rows, stored + given(exchange, 2)) is None, "from its first frame on"
    assert second.stop() == 0


def test_a_successor_with_the_same_journal_does_not_wait(running: Stack) -> None:
    running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    first.stop(signal.SIGKILL)
    again = start(running, "one")
    running.wait_for_rows(running.count() + 20)
    (_, _, until), (_, since, _) = claims(running)
    assert since < until
    assert again.stop() == 0


def test_one_that_ends_gives_the_table_up(running: Stack) -> None:
    running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    assert first.stop() == 0
    (_, _, until) = claims(running)[0]
    ((now,),) = running.query("SELECT toUnixTimestamp64Micro(now64(6))")
    assert until <= now


def test_clickhouse_forgets_all_claims_and_the_first_stays(running: Stack) -> None:
    running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    running.processes[0].stop(signal.SIGKILL)
    second = start(running, "two")
    first.wait_for("cannot be reached")
    running.clickhouse()
    before = running.count()
    second.wait_for("another writer|a writer already")
    assert second.wait() == 2
    running.wait_for_rows(before + 20)
    assert first.running


@pytest.mark.timeout(300)
def test_one_that_slept_finds_its_table_taken_and_ends(running: Stack) -> None:
    exchange = running.exchange()
    first = start(running, "one")
    running.wait_for_rows(20)
    freeze(running, first)
    before = running.count()
    second = start(running, "two")
    running.wait_for_rows(before + 20)
    first.send(signal.SIGCONT)
    said = first.wait_for(r"mexc_data.btc has another writer since .* UTC: process (\d+) .*not heard of for 10 s")
    assert int(said[1]) == second.pid
    assert first.wait() == 2
    assert second.stop() == 0
    rows = running.rows()
    own = given(exchange, 1)
    kept = (differ(rows, own) or (len(rows),))[0]
    assert differ(rows[kept:], given(exchange, 2)) is None, "each its part, and nothing twice"


def test_a_compaction_makes_no_room_for_another(running: Stack) -> None:
    running.exchange()
    first = start(running, "one")
    running.wait_for_rows(50)
    compaction = running.start("ch_setup.py", "--compact", "btc")
    second = start(running, "two")
    assert second.wait() == 2
    assert compaction.wait() == 0
    running.wait_for_rows(running.count() + 20)
    assert first.stop() == 0


def test_without_the_table_of_claims_it_says_so_and_goes_on(running: Stack, tmp_path: Path) -> None:
    running.exchange()
    running.query("DROP TABLE mexc_data.collectors SYNC")
    collector = start(running, "one")
    collector.wait_for(
        "^WARNING: Table mexc_data.collectors does not exist, so nothing keeps a second collector from mexc_data.btc:"
        " run ch_setup.py$"
    )
    running.wait_for_rows(20)
    assert collector.stop() == 0

"""A short run of the chaos, each kind of fault once; and the comparison behind it, which has to find what is wrong."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import pytest

from config import PROJECT
from tests.chaos.audit import Connection, SentLog, SentRow, Verdict, compare, end_of, joined, must_have_read, places
from tests.chaos.power import PowerLoss
from tests.chaos.rounds import Chaos, faults_of, kinds_of, plan
from tests.proxy import open_proxy
from tests.stack import PATIENCE, StoredRow, open_stack

WRITES = """
import os
with open("synced", "wb") as one, open("other", "wb") as other:
    one.write(b"1" * 5000); one.flush(); os.fdatasync(one.fileno()); other.write(b"2" * 5000); other.flush()
    os.rename("synced", "renamed"); os.{sync}; one.write(b"3" * 5000); other.write(b"4" * 5000)
open("unsynced", "w").close(); os.unlink("other")
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "variant", "left_out"),
    [
        (20, {}, "nothing"),
        (7, {"history": True}, "^(?!.*turnover|.*around_reset)"),  # what others have done already
        (3, {"fleet": True}, "^(?!child|parent)"),
    ],
    ids=["plain", "history", "fleet"],
)
def test_each_fault_once(seed: int, variant: dict[str, bool], left_out: str) -> None:
    kinds = [
        (tuple(fault for fault in faults if not re.search(left_out, fault.__name__)), world)
        for faults, world in kinds_of(**variant)
    ]
    chaos = Chaos(seed, print, kinds)
    chaos.run(len(faults_of(kinds)))
    for name, tally in chaos.tallies.items():
        assert (tally.rounds, tally.lost, tally.doubled, tally.misplaced) == (1, 0, 0, 0), name
        assert tally.rows > 0, name


@pytest.mark.parametrize(("sync", "other"), [("fsync(one.fileno())", b""), ("sync()", b"2" * 5000)])
def test_a_power_loss_leaves_what_was_synced_and_may_leave_any_page_of_the_rest(
    tmp_path: Path, sync: str, other: bytes
) -> None:
    found = set()
    disk = tmp_path / "disk"
    disk.mkdir()
    with closing(PowerLoss(disk, tmp_path / "socket")) as power:
        for seed in range(20):
            subprocess.run(
                [*power.prefix, sys.executable, "-c", f"import os; os.chdir({str(disk)!r}){WRITES}".format(sync=sync)],
                cwd=PROJECT,
                check=True,
            )
            power.happens(Random(seed))
            assert sorted(path.name for path in disk.iterdir()) == ["other", "renamed"], "as it was at the last sync"
            assert (disk / "other").read_bytes() == other
            found.add((disk / "renamed").read_bytes())
    assert all(content.startswith(b"1" * 5000) for content in found)
    assert {b"1" * 5000, b"1" * 5000 + b"3" * 5000} < found


def test_a_plan_has_each_fault_equally_often_and_follows_from_its_seed() -> None:
    kinds = faults_of(kinds_of())
    faults = [fault for _, fault in plan(3 * len(kinds), 1, kinds)]
    assert sorted(map(kinds.index, faults)) == sorted([*range(len(kinds))] * 3)
    assert faults == [fault for _, fault in plan(3 * len(kinds), 1, kinds)]
    assert faults != [fault for _, fault in plan(3 * len(kinds), 2, kinds)]


def row(n: int) -> StoredRow:
    return (n, "d", f"{n}|1|1")


def late(n: int) -> StoredRow:
    """Deal `n` as REST gives it: with its own time, not the frame's."""
    return (n - 1000, "d", f"{n}|1|1")


def sent(first: int, last: int, must: int = 0) -> Connection:
    return Connection([SentRow(row(n), late(n), 100) for n in range(first, last + 1)], must)


def stored(*numbers: int) -> list[StoredRow]:
    return [row(n) for n in numbers]


def test_all_stored_in_order_is_right() -> None:
    assert compare([sent(1, 5, must=5)], stored(1, 2, 3, 4, 5)) == Verdict()


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [
        ((1, 2, 4, 5), Verdict(lost=1)),
        ((1, 2, 3, 4), Verdict(lost=1)),
        ((2, 3, 4, 5), Verdict(lost=1)),
        ((), Verdict(lost=5)),
        ((1, 2, 2, 3, 4, 5), Verdict(doubled=1)),
        ((1, 2, 3, 4, 5, 4, 5), Verdict(doubled=2)),
        ((1, 2, 9, 3, 4, 5), Verdict(doubled=1)),
        ((1, 3, 2, 4, 5), Verdict(misplaced=1)),
        ((1, 2, 2, 4, 5), Verdict(lost=1, doubled=1)),
    ],
)
def test_what_is_wrong_is_found(numbers: tuple[int, ...], wrong: Verdict) -> None:
    assert compare([sent(1, 5, must=5)], stored(*numbers)) == wrong
    assert not wrong.is_right


def test_the_end_of_a_broken_connection_may_be_unread_but_no_more_than_that() -> None:
    assert compare([sent(1, 5, must=3), sent(6, 8, must=3)], stored(1, 2, 3, 6, 7, 8)) == Verdict(unread=2, unfilled=2)
    assert compare([sent(1, 5, must=4), sent(6, 8, must=3)], stored(1, 2, 3, 6, 7, 8)).lost == 1
    assert not compare([sent(1, 5, must=3), sent(6, 8, must=3)], stored(1, 2, 3, 5, 6, 7, 8)).is_right


def test_what_was_missed_may_come_once_by_rest() -> None:
    connections = [sent(1, 3, must=1), sent(6, 8, must=3)]
    missed = [late(4), late(5)]
    rows = [row(1), row(6), late(2), late(3), late(4), late(5), row(7), row(8)]
    assert compare(connections, rows, missed) == Verdict(unread=2, filled=4)
    assert compare(connections, rows[:4] + rows[5:], missed) == Verdict(unread=2, filled=3, unfilled=1)
    assert compare(connections, [*rows, late(4)], missed).doubled == 1
    assert compare(connections, [*rows[:2], late(1), *rows[2:]], missed).doubled == 1


def test_rows_may_be_left_out_as_far_as_the_collector_says_so() -> None:
    assert compare([sent(1, 8, must=8)], stored(1, 2, 5, 8), refused=4) == Verdict(refused=4)
    assert compare([sent(1, 8, must=8)], stored(1, 2, 5, 8), refused=3).lost == 4
    unread_as_well = [sent(1, 5, must=2), sent(6, 9, must=3)]
    assert compare(unread_as_well, stored(1, 3, 6, 8), refused=2) == Verdict(unread=2, unfilled=2, refused=2)


def test_what_was_forgotten_is_told_from_what_was_not_read() -> None:
    power_failed = Connection(sent(1, 8).rows, must=3, read=6)
    assert compare([power_failed, sent(9, 9, must=1)], stored(1, 2, 3, 9)) == Verdict(unread=2, forgotten=3, unfilled=5)
    assert compare([power_failed, sent(9, 9, must=1)], stored(*range(1, 6), 9)) == Verdict(
        unread=2, forgotten=1, unfilled=3
    )
    assert compare([power_failed, sent(9, 9, must=1)], stored(1, 2, 9)).lost == 1
    assert not compare([power_failed, sent(9, 9, must=1)], stored(1, 2, 3, 5, 9)).is_right


def test_a_table_that_was_reset_and_the_new_one_are_taken_together() -> None:
    former = stored(1, 2, 3, 4, 5)
    for present, whole, again in (
        ((6, 7), (1, 2, 3, 4, 5, 6, 7), 0),
        ((4, 5, 6, 7), (1, 2, 3, 4, 5, 6, 7), 2),
        ((4, 5), (1, 2, 3, 4, 5), 2),
        ((4,), (1, 2, 3, 4, 5), 1),
        ((4, 6, 7), (1, 2, 3, 4, 5, 6, 7), 1),  # the journal had forgotten 5
        ((4, 5, 4, 6), (1, 2, 3, 4, 5, 4, 6), 2),
        ((), (1, 2, 3, 4, 5), 0),
    ):
        assert next(joined(former, stored(*present))) == (stored(*whole), again)
    assert next(joined([], stored(1, 2))) == (stored(1, 2), 0)


def test_of_equal_rows_each_counts_when_tables_are_taken_together() -> None:
    assert next(joined(stored(1, 2, 2), stored(2, 2, 3))) == (stored(1, 2, 2, 3), 2)
    assert list(joined(stored(1, 2), stored(2, 3))) == [(stored(1, 2, 3), 1), (stored(1, 2, 2, 3), 0)]
    assert list(joined(stored(1, 2, 2), stored(2, 3))) == [(stored(1, 2, 2, 3), 1), (stored(1, 2, 2, 2, 3), 0)]


def test_the_end_of_some_rows_is_found_among_others() -> None:
    rows = stored(1, 2, 3, 4, 4, 5)
    assert end_of(rows, stored(2, 3)) == 3
    assert end_of(rows, stored(3, 4)) == 4
    assert end_of(rows, stored(4, 4)) == 5
    assert end_of(rows, stored(9, 1)) == 1
    assert end_of(rows, stored(9)) == 0
    assert end_of(rows, []) == 0
    assert end_of([], stored(1)) == 0


def test_where_a_row_is_wrong_is_told() -> None:
    assert places([sent(1, 2), sent(3, 4)], stored(1, 2, 2, 3)) == [
        "(2, 'd', '2|1|1'): sent as [1], stored as [1, 2]",
        "(4, 'd', '4|1|1'): sent as [3], stored as []",
    ]


def test_what_was_read_follows_from_what_was_not() -> None:
    rows = sent(1, 10).rows
    assert must_have_read(rows, 0) == 8  # one may have been in each side's hand
    assert must_have_read(rows, 1) == 7
    assert must_have_read(rows, 100) == 7
    assert must_have_read(rows, 101) == 6
    assert must_have_read(rows, 5000) == 0


def test_the_proxy_goes_on_after_connections_cut_at_their_first_byte() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, open_proxy(server.getsockname()[1]) as proxy:
        for _ in range(200):
            proxy.cut_after("to server", 0)
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
                accepted, _ = server.accept()
                with accepted, suppress(ConnectionError):
                    client.sendall(b"hello")
                    assert client.recv(1) == b""
        assert proxy.cuts == 200


def test_the_log_is_read_as_it_grows(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        exchange = stack.exchange("--rate", 100, "--frames", 100)
        log = SentLog(exchange.log, "BTC_USDT")
        stack.collector()
        for count in (30, 60, 100):
            stack.wait_for_rows(count)
            log.read()
        log.close()
        (connection,) = log.connections.values()
        assert [one.row for one in connection.rows] == stack.rows()

"""A journal that can take no more: the oldest rows stay, new ones are counted as lost, and it goes on when it can."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.world import World, open_world
from tests.stack import eventually

LOUD = "WARNING: new rows are LOST, the journal takes no more: "
RATE = 300


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, rate=RATE, rest=False) as opened:
        yield opened


def warnings(world: World) -> int:
    return sum(line.startswith(LOUD) for line in world.collector.lines)


def waiting(world: World) -> int:
    """Return what the newest block says to wait."""
    lines = [line for line in list(world.collector.lines) if line.startswith("Waiting in journal: ")]
    return int(lines[-1].rpartition(" ")[2]) if lines else 0


def drained(world: World) -> bool:
    """Return whether nothing waits any more, by the newest block."""
    return "Waiting in journal" not in world.collector.output.rpartition("STATISTICS")[2]


def fill_up(world: World) -> None:
    """Wait until rows are lost, for more than one block."""
    world.collector.wait_for(f"^{LOUD}database or disk is full; see JOURNAL_MAX_MB$")
    before = world.said_to_be_refused()
    eventually(lambda: world.said_to_be_refused() > before + RATE, "rows counted as lost")
    assert world.collector.running


def assert_all_but_the_refused(world: World) -> None:
    """Compare the table with what was sent: what is missing is what was said to be."""
    verdict = world.settle()
    assert verdict.is_right, verdict
    assert verdict.refused == world.said_to_be_refused() > 0
    assert world.suspicious_lines() == []


def test_a_full_disk_during_an_outage(world: World) -> None:
    world.server.stop(signal.SIGKILL)
    with world.disks.full(world.journal):
        fill_up(world)
        before = waiting(world)
        assert before > 0
    eventually(lambda: waiting(world) > before + RATE, "rows that wait, now that there is room")
    world.start_clickhouse()
    assert_all_but_the_refused(world)
    assert warnings(world) == 1


def test_an_outage_that_ends_while_the_disk_is_still_full(world: World) -> None:
    """What ClickHouse takes then cannot be noted in the journal; after a restart, the table's count tells it."""
    world.server.send(signal.SIGSTOP)
    with world.disks.full(world.journal):
        fill_up(world)
        assert waiting(world) > 0
        world.server.send(signal.SIGCONT)
        eventually(lambda: drained(world), "all rows sent")
        assert world.collector.stop() == 0
        world.end_connections()
        world.start_collector()
        assert world.collector.wait() == 2
        assert "btc.db cannot be opened: database or disk is full; see JOURNAL_DIR" in world.collector.output
    world.start_collector()
    stored = world.stack.count()
    eventually(lambda: world.stack.count() > stored + RATE, "new rows")
    verdict = world.look()
    assert verdict.is_right, verdict
    assert verdict.unread >= world.said_to_be_refused() > 0, "the refused rows are the last of the first connection"


def test_a_journal_that_has_reached_its_limit(tmp_path: Path) -> None:
    with open_world(tmp_path, rate=RATE, rest=False, JOURNAL_MAX_MB=1) as world:
        world.server.stop(signal.SIGKILL)
        fill_up(world)
        kept = waiting(world)
        assert kept > 0
        refused = world.said_to_be_refused()
        eventually(lambda: world.said_to_be_refused() > refused + RATE, "more rows refused")
        assert waiting(world) >= kept, "the oldest rows have to stay"
        world.start_clickhouse()
        assert_all_but_the_refused(world)

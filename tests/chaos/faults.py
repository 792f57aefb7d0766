"""What is done to a world. Each fault takes the world and a source of chance, and leaves all running again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from random import Random

from local.clickhouse import MIN_FREE
from tests.chaos.world import Machine, World
from tests.stack import Process, eventually

Fault = Callable[[World, Random], None]


def clickhouse_killed(world: World, chance: Random) -> None:
    world.server.stop(signal.SIGKILL)
    time.sleep(chance.uniform(0, 1))
    world.start_clickhouse()


def clickhouse_frozen(world: World, chance: Random) -> None:
    world.server.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0, 1.5))
    world.server.send(signal.SIGCONT)


def clickhouse_disk_full(world: World, chance: Random) -> None:
    with world.disks.full(world.stack.data, spare=chance.randrange(MIN_FREE)):
        world.wait_for_line("ClickHouse at .* reports error 243: ")
        time.sleep(chance.uniform(0, 1))


def connection_cut(world: World, chance: Random) -> None:
    for _ in range(chance.randint(1, 3)):
        time.sleep(chance.uniform(0, 0.2))
        wanted = world.proxy.cuts + 1
        world.proxy.cut_after(chance.choice(["to server", "to client"]), chance.randrange(2000))
        eventually(partial(_cut, world, wanted), "a cut")


def _cut(world: World, times: int) -> bool:
    return world.proxy.cuts >= times


def connection_refused(world: World, chance: Random) -> None:
    with world.proxy.refusing():
        time.sleep(chance.uniform(0, 2))


def collector_frozen(world: World, chance: Random) -> None:
    world.collector.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0, 1.5))
    world.collector.send(signal.SIGCONT)


def collector_killed(world: World, chance: Random) -> None:
    world.kill_collector()
    time.sleep(chance.uniform(0, 0.5))
    world.start_collector()


def both_killed(world: World, chance: Random) -> None:
    kills: list[Callable[[], object]] = [world.kill_collector, lambda: world.server.stop(signal.SIGKILL)]
    starts: list[Callable[[], object]] = [world.start_collector, world.start_clickhouse]
    for steps in (kills, starts):
        chance.shuffle(steps)
        for step in steps:
            step()
            time.sleep(chance.uniform(0, 0.3))


def collector_killed_while_clickhouse_is_frozen(world: World, chance: Random) -> None:
    world.server.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0, 0.3))
    world.kill_collector()
    world.start_collector()
    time.sleep(chance.uniform(0, 1.5))
    world.server.send(signal.SIGCONT)


def child_killed(world: World, chance: Random) -> None:
    for archive in chance.sample(world.archives, chance.randint(1, len(world.archives))):
        world.kill_child(archive)
        time.sleep(chance.uniform(0, 0.1))


def parent_killed(world: World, chance: Random) -> None:
    collector_killed(world, chance)


def child_and_clickhouse_killed(world: World, chance: Random) -> None:
    child_killed(world, chance)
    clickhouse_killed(world, chance)


def child_killed_while_clickhouse_is_frozen(world: World, chance: Random) -> None:
    world.server.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0, 0.3))
    child_killed(world, chance)
    time.sleep(chance.uniform(0, 1.5))
    world.server.send(signal.SIGCONT)


def child_killed_amid_compaction(world: World, chance: Random) -> None:
    compaction = _begin_compaction(world, chance)
    child_killed(world, chance)
    compaction.wait()


def compaction_killed(world: World, chance: Random) -> None:
    _begin_compaction(world, chance).stop(signal.SIGKILL)


def clickhouse_killed_amid_compaction(world: World, chance: Random) -> None:
    compaction = _begin_compaction(world, chance)
    clickhouse_killed(world, chance)
    compaction.wait()


def compaction_and_collector_killed(world: World, chance: Random) -> None:
    _kill_with_collector(world, _begin_compaction(world, chance), chance.uniform(0, 0.3))


def _kill_with_collector(world: World, process: Process, after: float) -> None:
    """Kill the collector, and so many seconds later the other process."""
    world.kill_collector()
    time.sleep(after)
    process.stop(signal.SIGKILL)
    world.start_collector()


def _begin_compaction(world: World, chance: Random) -> Process:
    """Return `ch_setup.py --compact` at some moment of its work, or just before or after it."""
    compaction = world.stack.start("ch_setup.py", "--compact", chance.choice(world.archives).name)
    compaction.wait_for("^Compacting ")
    time.sleep(chance.uniform(0, 0.5))
    return compaction


def turnover(world: World, chance: Random) -> None:
    upkeep = _begin_turnover(world, chance)
    upkeep.wait_for("^(Turned |.* stays as it is for now)")
    assert upkeep.stop() == 0, upkeep.output  # or it would turn tables over amid other faults, too


def turnover_killed(world: World, chance: Random) -> None:
    _begin_turnover(world, chance).stop(signal.SIGKILL)


def clickhouse_killed_amid_turnover(world: World, chance: Random) -> None:
    upkeep = _begin_turnover(world, chance)
    clickhouse_killed(world, chance)
    upkeep.stop(signal.SIGKILL)


def turnover_and_collector_killed(world: World, chance: Random) -> None:
    _kill_with_collector(world, _begin_turnover(world, chance), chance.uniform(0, 0.1))


def _begin_turnover(world: World, chance: Random) -> Process:
    """Return what turns the table over, at some moment of its work, or just after it."""
    upkeep = world.stack.start("-m", "pipeline.store.upkeep", COMPACT_BLOCKS=1)
    upkeep.wait_for("^Comparing mexc_data.btc, |stays as it is for now")
    time.sleep(chance.uniform(0, 0.3))
    return upkeep


def journal_disk_full(world: World, chance: Random) -> None:
    world.server.send(signal.SIGSTOP)  # or the journal would reuse the space of what is stored
    with world.disks.full(world.journal, spare=chance.randrange(1 << 15)):
        world.wait_for_line("new rows are LOST")
        time.sleep(chance.uniform(0, 0.5))
    world.server.send(signal.SIGCONT)


def reset(world: World, chance: Random) -> None:
    with world.proxy.refusing() if chance.random() < 0.5 else nullcontext():
        time.sleep(chance.uniform(0, 1))
        with world.reset():
            pass


def reset_and_child_killed(world: World, chance: Random) -> None:
    reset(world, chance)
    time.sleep(chance.uniform(0, 0.3))
    child_killed(world, chance)


def feed_cut(world: World, chance: Random) -> None:
    world.end_connections()
    world.exchange.fault(chance.choice(["drop", "close"]))
    world.wait_for_line("missed deals? filled in; none is missing")


def feed_cut_and_collector_frozen(world: World, chance: Random) -> None:
    world.end_connections()
    world.exchange.fault("drop")
    world.wait_for_line("no market data from .* to ")
    time.sleep(chance.uniform(0, 1))
    world.collector.send(signal.SIGSTOP)
    time.sleep(chance.uniform(1, 3))
    world.collector.send(signal.SIGCONT)
    world.wait_for_line("missed deals? filled in; none is missing")


def collector_killed_and_filled(world: World, chance: Random) -> None:
    collector_killed(world, chance)
    world.wait_for_line("missed deals? filled in; none is missing")


def _power_fails(*machines: Machine) -> tuple[Fault, Fault, Fault, Fault]:
    """Return the faults in which the power fails on these machines at once; the last one is for a history."""
    where = "both" if len(machines) > 1 else machines[0]

    def power_fails(world: World, chance: Random) -> None:
        time.sleep(chance.uniform(0, 2))
        with world.proxy.refusing() if chance.random() < 0.5 else nullcontext():
            time.sleep(chance.choice([0, chance.uniform(0, 1)]))
            world.lose_power(machines, chance)
            time.sleep(chance.uniform(0, 2))

    def power_fails_amid_compaction(world: World, chance: Random) -> None:
        time.sleep(chance.uniform(0, 1))
        compaction = _begin_compaction(world, chance)
        world.lose_power(machines, chance)
        compaction.wait()

    def power_fails_around_reset(world: World, chance: Random) -> None:
        if chance.random() < 0.5:
            _lose_power_amid_reset(world, machines, chance)
        else:
            _lose_power_after_reset(world, machines, chance)

    def power_fails_amid_turnover(world: World, chance: Random) -> None:
        time.sleep(chance.uniform(0, 1))
        upkeep = _begin_turnover(world, chance)
        world.lose_power(machines, chance)
        upkeep.stop(signal.SIGKILL)

    faults = power_fails, power_fails_amid_compaction, power_fails_around_reset, power_fails_amid_turnover
    for fault in faults:
        fault.__name__ = f"{where}: {fault.__name__}"
    return faults


def _lose_power_amid_reset(world: World, machines: Sequence[Machine], chance: Random) -> None:
    """Let it fail while rows wait and `--reset` works; where it failed for that, too, it is done again."""
    with world.proxy.refusing():
        time.sleep(chance.uniform(0, 1))
        with world.reset() as reset:
            reset.wait_for("Dropping system log tables")
            time.sleep(chance.uniform(0, 0.3))
            world.lose_power(machines, chance)
        if "clickhouse" in machines:
            world.stack.setup("--reset", "--yes")


def _lose_power_after_reset(world: World, machines: Sequence[Machine], chance: Random) -> None:
    """Let it fail when `--reset` is done, with rows that waited for that or without."""
    reset(world, chance)
    time.sleep(chance.uniform(0, 1))
    world.lose_power(machines, chance)


UNDER_LOAD: tuple[Fault, ...] = (
    clickhouse_killed,
    clickhouse_frozen,
    clickhouse_disk_full,
    connection_cut,
    connection_refused,
    collector_frozen,
    collector_killed,
    both_killed,
    collector_killed_while_clickhouse_is_frozen,
    compaction_killed,
    clickhouse_killed_amid_compaction,
    compaction_and_collector_killed,
    journal_disk_full,
)
"""At a high rate, and without REST, so that it is known of each row whether it has to be there."""

_POWER_LOSSES = _power_fails("collector"), _power_fails("clickhouse"), _power_fails("collector", "clickhouse")
POWER_LOSSES: tuple[Fault, ...] = tuple(fault for faults in _POWER_LOSSES for fault in faults[:-1])
"""As `UNDER_LOAD`, in a world whose power can fail."""

WITH_REST: tuple[Fault, ...] = (feed_cut, feed_cut_and_collector_frozen, collector_killed_and_filled)
"""At the market's own rate, where REST's list covers a short gap: no deal may be missing."""

TURNOVERS: tuple[Fault, ...] = (
    turnover,
    turnover_killed,
    clickhouse_killed_amid_turnover,
    turnover_and_collector_killed,
)
"""As `UNDER_LOAD`, in a world with HISTORY=1."""

TURNOVERS_AND_POWER: tuple[Fault, ...] = tuple(faults[-1] for faults in _POWER_LOSSES)
"""As `POWER_LOSSES`, in a world with HISTORY=1."""

WITH_FLEET: tuple[Fault, ...] = (
    child_killed,
    parent_killed,
    clickhouse_killed,
    both_killed,
    child_and_clickhouse_killed,
    child_killed_while_clickhouse_is_frozen,
    connection_cut,
    connection_refused,
    compaction_killed,
    child_killed_amid_compaction,
    clickhouse_killed_amid_compaction,
    compaction_and_collector_killed,
    reset,
    reset_and_child_killed,
)
"""As `UNDER_LOAD`, in a world with collect.py; its parent is the collector that is killed."""

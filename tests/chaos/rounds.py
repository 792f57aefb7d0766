"""Many rounds: in each a fault at a random moment, then the comparison. What was found is counted by fault."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from bench.tables import print_table
from tests.chaos.audit import Verdict
from tests.chaos.faults import POWER_LOSSES, TURNOVERS, TURNOVERS_AND_POWER, UNDER_LOAD, WITH_FLEET, WITH_REST, Fault
from tests.chaos.world import World, open_world

LOAD = 200  # frames/s
CALM = 15  # frames/s, about BTC's own rate
ROUNDS_A_WORLD = 48
UNSYNCED = 3 * LOAD  # rows; those of the last second, and what a busy machine makes of a second
UNKNOWN = 10 * LOAD  # rows; those stored in such a second, when many had waited

Kind = tuple[tuple[Fault, ...], dict[str, Any]]
"""Faults, and the world in which they are done, as `open_world` takes it."""

_HISTORY = {"HISTORY": 1, "HISTORY_INTERVAL": 0.5}
_FLEET = {"fleet": ("btc", "eth", "xrp", "doge"), "SYMBOLS": "XRP_USDT,DOGE_USDT", "rate": LOAD // 4}


def kinds_of(*, history: bool = False, fleet: bool = False) -> tuple[Kind, ...]:
    """Return what there is to be done, to btcdat.py or to a fleet, with a history or without."""
    loaded = {"rate": LOAD, "rest": False} | (_FLEET if fleet else {}) | (_HISTORY if history else {})
    turnovers = TURNOVERS if history else ()
    if fleet:
        return (((*WITH_FLEET, *turnovers), loaded),)
    power = TURNOVERS_AND_POWER if history else ()
    return (
        ((*UNDER_LOAD, *turnovers), loaded),
        ((*POWER_LOSSES, *power), {**loaded, "power": True}),
        *([] if history else [(WITH_REST, {"rate": CALM, "rest": True})]),
    )


_STATISTICS = re.compile(r"=|Total Records|Rate: |Errors: |\w+ Messages: |Waiting |\w+ STATISTICS")

Say = Callable[[str], None]


class Broken(AssertionError):
    """A promise was broken; the text holds all that is known about it."""


@dataclass
class Tally:
    """What the rounds of one fault have found, in rows."""

    rounds: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0
    unread: int = 0
    filled: int = 0
    refused: int = 0
    forgotten: int = 0
    again: int = 0


def faults_of(kinds: Sequence[Kind]) -> list[Fault]:
    """Return all faults of these kinds."""
    return [fault for faults, _ in kinds for fault in faults]


def plan(rounds: int, seed: int, faults: Sequence[Fault]) -> Iterator[tuple[int, Fault]]:
    """Yield the number of each round, from 1, and its fault: all kinds equally often, in random order."""
    chance = Random(seed)
    left: list[Fault] = []
    for number in range(1, rounds + 1):
        if not left:
            left = [*faults]
            chance.shuffle(left)
        yield number, left.pop()


class Chaos:
    """Runs rounds; `tallies` holds what they have found so far, by the fault's name."""

    def __init__(self, seed: int, say: Say, kinds: Sequence[Kind]) -> None:
        """`say` takes a line for each round."""
        self._seed = seed
        self._say = say
        self._kinds = kinds
        self._faults = faults_of(kinds)
        self.tallies = {fault.__name__: Tally() for fault in self._faults}

    def run(self, rounds: int) -> None:
        """Run rounds. Raises Broken at the first that finds something wrong."""
        todo = list(plan(rounds, self._seed, self._faults))
        for first in range(0, rounds, ROUNDS_A_WORLD):
            chunk = todo[first : first + ROUNDS_A_WORLD]
            for faults, world in self._kinds:
                self._run_in_a_world([step for step in chunk if step[1] in faults], world)

    def _run_in_a_world(self, steps: list[tuple[int, Fault]], options: dict[str, Any]) -> None:
        if not steps:
            return
        with TemporaryDirectory(prefix="chaos-") as name, open_world(Path(name), **options) as world:
            before = Verdict()
            for number, fault in steps:
                with self._explaining(f"round {number}, {fault.__name__}", world):
                    before = self._round(number, fault, world, before)
            with self._explaining("the end", world):
                assert world.collector.stop() == 0, "the collector does not stop as it should"
                world.check_again()

    def _round(self, number: int, fault: Fault, world: World, before: Verdict) -> Verdict:
        chance = Random(f"{self._seed} {number}")
        begin, rows, again = time.monotonic(), world.stored, world.again
        time.sleep(chance.uniform(0, 0.3))
        world.begin_round()
        fault(world, chance)
        after = world.settle()
        tally = self.tallies[fault.__name__]
        tally.rounds += 1
        tally.rows += world.stored - rows
        tally.lost += after.lost
        tally.doubled += after.doubled
        tally.misplaced += after.misplaced
        tally.unread += after.unread - before.unread
        tally.filled += after.filled - before.filled
        tally.refused += after.refused - before.refused
        tally.forgotten += after.forgotten - before.forgotten
        tally.again += world.again - again
        self._say(f"round {number}: {fault.__name__}, {time.monotonic() - begin:.1f} s, {after}")
        assert after.is_right, f"{after}\n{world.places()}"
        world.check_histories()
        assert after.forgotten - before.forgotten <= UNSYNCED, "the journal was not synced"
        assert world.again - again <= UNKNOWN, "rows of a table that was reset came back"
        assert world.collector.running, "the collector has ended"
        assert not (lines := world.suspicious_lines()), lines
        if fault in WITH_REST:
            assert not after.unfilled, f"{after.unfilled} deals are missing"
        return after

    @contextmanager
    def _explaining(self, where: str, world: World) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            outputs = [
                f"--- process {process.pid}{'' if process.running else ', ended'}:\n"
                + "\n".join([line for line in process.lines if not _STATISTICS.match(line)][-60:])
                for process in dict.fromkeys([*world.collectors[-2:], *world.stack.processes[-8:]])
            ]
            raise Broken("\n".join([f"seed {self._seed}, {where}: {error}", *outputs])) from error

    def print_table(self) -> None:
        """Print what was found, one line for each fault."""
        lines = [[name.replace("_", " "), *astuple(tally)] for name, tally in self.tallies.items()]
        sums = [sum(column) for column in zip(*(astuple(tally) for tally in self.tallies.values()), strict=True)]
        header = [
            "fault",
            "rounds",
            "rows",
            "lost",
            "doubled",
            "out of order",
            "unread",
            "filled in",
            "refused",
            "forgotten",
            "again",
        ]
        print_table(header, [*lines, ["all", *sums]])

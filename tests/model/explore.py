"""All that can happen, in every order, up to a number of steps: python3 -m tests.model.explore [STEPS] [--history]

States that are alike are looked at once. After each step all that waits is sent, in a world apart, and the table is
compared with what has to be in it. With ``--by-chance SECONDS`` runs are longer, and of random steps, and those that go
astray are printed.
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, mkdtemp

from tests.model.both import FED, WorldWithHistory
from tests.model.world import World

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where journals are synced at no cost."""

Run = tuple[str, ...]


@dataclass
class Covered:
    """What was looked at."""

    states: int = 0
    runs: int = 0
    by_depth: Counter[int] = field(default_factory=Counter)


def explore(steps: int, directory: Path, kind: type[World] = World, begin: Run = ()) -> Covered:
    """Look at all runs of up to `steps` actions after `begin`.

    Raises AssertionError, with the run, where one goes astray.
    """
    covered = Covered()
    known: set[object] = set()
    frontier: list[Run] = [begin]
    for depth in range(1, steps + 1):
        further = []
        for run in frontier:
            for action in kind.ACTIONS:
                covered.runs += 1
                if _leads_on((*run, action), known, directory, kind):
                    further.append((*run, action))
                    covered.by_depth[depth] += 1
        frontier = further
    covered.states = len(known)
    return covered


def _leads_on(run: Run, known: set[object], directory: Path, kind: type[World]) -> bool:
    """Return whether a run leads to a state that was not known; what follows from such a one is checked."""
    place = Path(mkdtemp(dir=directory))
    world = kind(place)
    try:
        for action in run:
            getattr(world, action)()
        if (key := world.key()) in known:
            return False
        known.add(key)
        world.check()
    except Exception as error:
        raise AssertionError(f"{' '.join(run)}: {error}") from error
    finally:
        world.close()
        shutil.rmtree(place)
    return True


def go_by_chance(seconds: float, seed: int, directory: Path, kind: type[World]) -> int:
    """Print the random runs that go astray, and how many there were; return how many went astray."""
    chance, until = Random(seed), time.monotonic() + seconds
    usual = [action for action in FED if action in kind.ACTIONS]
    runs = astray = 0
    while time.monotonic() < until:
        length = chance.randint(4, 20)
        run = tuple(chance.choice(usual if chance.random() < 0.4 else kind.ACTIONS) for _ in range(length))
        runs += 1
        try:
            _leads_on(run, set(), directory, kind)
        except AssertionError as error:
            print(error, flush=True)
            astray += 1
    print(f"seed {seed}: {runs:,} runs, {astray} astray")
    return astray


def main(steps: int, kind: type[World], begin: Run) -> None:
    """Explore, and print what was covered."""
    started = time.monotonic()
    with TemporaryDirectory(dir=MEMORY) as directory:
        covered = explore(steps, Path(directory), kind, begin)
    for depth, states in sorted(covered.by_depth.items()):
        print(f"{depth} steps: {states:,} new states")
    print(f"{covered.states:,} states, {covered.runs:,} runs, 0 astray; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    parser = ArgumentParser(description="Look at all that can happen around a journal and its tables, in every order.")
    parser.add_argument("steps", type=int, nargs="?", default=5)
    parser.add_argument("--history", action="store_true", help="with HISTORY=1")
    parser.add_argument("--fed", action="store_true", help="begin with two rows that are in both tables")
    parser.add_argument("--by-chance", type=float, metavar="SECONDS", help="runs of 4 to 20 random steps instead")
    parser.add_argument("--seed", type=int, default=1, help="of chance")
    given = parser.parse_args()
    world = WorldWithHistory if given.history else World
    if given.by_chance:
        with TemporaryDirectory(dir=MEMORY) as place:
            sys.exit(go_by_chance(given.by_chance, given.seed, Path(place), world) > 0)
    main(given.steps, world, FED if given.fed else ())

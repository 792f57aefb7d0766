"""All that can happen, in every order, up to a number of steps: python3 -m tests.model.explore [STEPS]

States that are alike are looked at once. After each step all that waits is sent, in a world apart, and the table is
compared with what has to be in it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.model.world import World

Run = tuple[str, ...]


@dataclass
class Covered:
    """What was looked at."""

    states: int = 0
    runs: int = 0
    by_depth: Counter[int] = field(default_factory=Counter)


def explore(steps: int, directory: Path) -> Covered:
    """Look at all runs of up to `steps` actions; raises AssertionError, with the run, where one goes astray."""
    covered = Covered()
    known = set()
    frontier: list[Run] = [()]
    for depth in range(1, steps + 1):
        further = []
        for run in frontier:
            for action in World.ACTIONS:
                key = _outcome((*run, action), directory)
                covered.runs += 1
                if key not in known:
                    known.add(key)
                    further.append((*run, action))
                    covered.by_depth[depth] += 1
        frontier = further
    covered.states = len(known)
    return covered


def _outcome(run: Run, directory: Path) -> object:
    """Return the state after a run, having checked what follows from it."""
    place = Path(mkdtemp(dir=directory))
    world = World(place)
    try:
        for action in run:
            getattr(world, action)()
        key = world.key()
        world.check()
    except Exception as error:
        raise AssertionError(f"{' '.join(run)}: {error}") from error
    finally:
        world.close()
        shutil.rmtree(place)
    return key


def main(steps: int) -> None:
    """Explore, and print what was covered."""
    begin = time.monotonic()
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        covered = explore(steps, Path(directory))
    for depth, states in sorted(covered.by_depth.items()):
        print(f"{depth} steps: {states:,} new states")
    print(f"{covered.states:,} states, {covered.runs:,} runs checked, 0 astray; {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

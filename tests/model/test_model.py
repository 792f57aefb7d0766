"""Positions and counts do not lead astray: long runs by chance, and all short ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.explore import explore
from tests.model.world import World


class Chance(RuleBasedStateMachine):
    """Anything may happen at any time."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(mkdtemp(prefix="model-"))
        self.world = World(self.directory)

    @rule(action=st.sampled_from(World.ACTIONS))
    def happens(self, action: str) -> None:
        getattr(self.world, action)()

    @rule()
    def all_is_there_once(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.check()
            finally:
                self.world.close()
                shutil.rmtree(self.directory)


TestByChance = Chance.TestCase
TestByChance.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)


def test_all_runs_of_a_few_steps(tmp_path: Path) -> None:
    covered = explore(3, tmp_path)
    assert covered.states > 100

"""Positions and counts do not lead astray: long runs by chance, and all short ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.both import FED, FORGOTTEN, OUTDATED, RESET, WorldWithHistory
from tests.model.explore import MEMORY, explore, go_by_chance
from tests.model.world import World


class Chance(RuleBasedStateMachine):
    """Anything may happen at any time."""

    kind: type[World] = World

    @initialize()
    def begin(self) -> None:
        self.directory = Path(mkdtemp(prefix="model-", dir=MEMORY))
        self.world = self.kind(self.directory)

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


class ChanceWithHistory(Chance):
    """The same with HISTORY=1, and what may happen to a history."""

    kind = WorldWithHistory

    @rule(action=st.sampled_from(WorldWithHistory.OF_HISTORY))
    def happens_to_the_history(self, action: str) -> None:
        getattr(self.world, action)()


TestByChance = Chance.TestCase
TestByChance.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
TestByChanceWithHistory = ChanceWithHistory.TestCase
TestByChanceWithHistory.settings = settings(
    max_examples=60,
    stateful_step_count=16,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_all_runs_of_a_few_steps() -> None:
    with TemporaryDirectory(dir=MEMORY) as directory:
        covered = explore(3, Path(directory))
    assert covered.states > 100


def test_long_runs_by_chance_are_printed_where_they_go_astray(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(dir=MEMORY) as directory:
        assert go_by_chance(1, 1, Path(directory), World) == 0
        monkeypatch.setattr(World, "check", lambda world: 1 / 0)
        assert go_by_chance(0.1, 1, Path(directory), World) > 0
    assert ": division by zero\n" in capsys.readouterr().out


@pytest.mark.parametrize("begin", [(), FED, FORGOTTEN, RESET, OUTDATED])
def test_all_runs_of_two_steps_with_a_history(begin: tuple[str, ...]) -> None:
    with TemporaryDirectory(dir=MEMORY) as directory:
        covered = explore(2, Path(directory), WorldWithHistory, begin)
    assert covered.states > 40

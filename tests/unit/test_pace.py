"""The pace of a replay, by a clock that is told what to say."""

from __future__ import annotations

import math

from local.replay import LATE, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rows_are_as_far_apart_as_they_were_divided_by_the_speed() -> None:
    clock = Clock()
    pace = Pace(10, 5_000, clock)
    assert pace.wait(5_000) == 0
    assert math.isclose(pace.wait(15_000), 1.0)
    clock.now += 0.5
    assert pace.now_ms() == 10_000
    clock.now += 0.5
    assert math.isclose(pace.wait(16_000), 0.1)


def test_the_clock_never_passes_the_next_row() -> None:
    clock = Clock()
    pace = Pace(1, 5_000, clock)
    assert pace.now_ms() == 5_000
    pace.wait(5_000)
    pace.wait(6_000)
    clock.now += 60
    assert pace.now_ms() == 6_000


def test_after_a_wait_there_is_no_rush() -> None:
    clock = Clock()
    pace = Pace(1, 0, clock)
    pace.wait(0)
    clock.now += 60
    assert pace.wait(1_000) == 0
    assert math.isclose(pace.wait(2_000), 1.0)


def test_what_is_a_little_late_is_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1, 0, clock)
    pace.wait(0)
    clock.now += 1 + LATE / 2
    assert pace.wait(1_000) == 0
    assert math.isclose(pace.wait(2_000), 1 - LATE / 2)


def test_at_full_speed_nothing_waits() -> None:
    pace = Pace(math.inf, 0, Clock())
    assert [pace.wait(ms) for ms in (0, 10_000, 10**12)] == [0, 0, 0]
    assert pace.now_ms() == 10**12

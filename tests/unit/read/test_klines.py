"""What is made of an answer with klines, however odd."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from pipeline.read.klines import MINUTE, Bar, read_bars

T0 = 1_790_812_800  # 2026-10-01


def columns(*times: int, **others: list[Any]) -> dict[str, Any]:
    """Return an answer's data, as texts of numbers, with some columns replaced."""
    count = len(times)
    prices = {name: ["84000.10"] * count for name in ("open", "close", "high", "low", "realOpen", "realClose")}
    prices |= {"realHigh": ["8.40002E+4"] * count, "realLow": ["84000"] * count}
    rest = {"vol": ["5587051.0"] * count, "amount": ["6.106243567181E7"] * count}
    return {"time": [str(time) for time in times], **prices, **rest, **others}


def test_bars_come_with_every_digit_and_without_the_last_one_which_is_under_way() -> None:
    bars, nonsense = read_bars(columns(T0, T0 + 60, T0 + 120), T0, T0 + 120)
    first = Bar(T0, *map(Decimal, ("5587051", "84000.10", "84000.2", "84000", "84000.10")))
    assert (bars, nonsense) == ([first, first._replace(time=T0 + 60)], [])


def test_bars_that_were_not_asked_for_are_left_out() -> None:
    bars, nonsense = read_bars(columns(T0 - 60, T0, T0 + 60, T0 + 120), T0, T0)
    assert ([bar.time for bar in bars], nonsense) == ([T0], [])


def test_prices_of_a_minute_without_contracts_say_nothing() -> None:
    data = columns(T0, T0 + 60, vol=["0", "0.0"], realOpen=["0", "0"])
    assert [bar.contracts for bar in read_bars(data, T0, T0)[0]] == [0]


def test_no_bars_are_no_nonsense() -> None:
    assert read_bars(columns(), T0, T0) == ([], [])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no columns, but []"),
        ("1", "no columns, but 1"),
        ({}, "no column time"),
        ({"time": []}, "no column vol"),
        (columns(T0, realLow=[]), "1 times, and 0 of realLow"),
        (columns(T0, vol=["1", "2"]), "1 times, and 2 of vol"),
        (columns(T0) | {"realHigh": "8"}, "no column realHigh"),
        (columns(T0 + 60, T0), "bars that are not in the order of their times"),
        (columns(T0, T0), "bars that are not in the order of their times"),
        (columns(T0 + 1), f"a time that is {T0 + 1}"),
        (columns(T0, time=["NaN"]), "a time that is NaN"),
        (columns(T0, time=[None]), "a time that is None"),
        (columns(T0, time=["-60"]), "a time that is -60"),
        (columns(T0, time=["1" * 5000]), "a time that is 1111"),
        (columns(T0, time=["٣٠"]), "a time that is ٣٠"),
    ],
)
def test_what_are_no_columns_of_bars_is_said(data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        read_bars(data, T0, T0)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("vol", "-1", "a number that is -1"),
        ("vol", "NaN", "a number that is NaN"),
        ("vol", "Infinity", "a number that is Infinity"),
        ("vol", None, "a number that is None"),
        ("vol", True, "a number that is True"),
        ("vol", ["1"], "a number that is ['1']"),
        ("vol", "much", "a number that is much"),
        ("vol", "1E+999999999", "a number that is 1E+999999999"),
        ("realOpen", "1E-999999999", "a number that is 1E-999999999"),
        ("realLow", "0", "open 84000.10, high 84000.2, low 0, close 84000.10"),
        ("realLow", "84000.11", "open 84000.10, high 84000.2, low 84000.11, close 84000.10"),
        ("realHigh", "84000.05", "open 84000.10, high 84000.05, low 84000, close 84000.10"),
        ("realClose", "84001", "open 84000.10, high 84000.2, low 84000, close 84001"),
    ],
)
def test_a_bar_that_is_nonsense_is_named_and_the_others_are_taken(column: str, value: Any, said: str) -> None:
    data = columns(T0, T0 + 60, T0 + 120, T0 + 180)
    data[column] = [*data[column][:1], value, *data[column][2:]]
    bars, (refused,) = read_bars(data, T0, T0 + 180)
    assert [bar.time for bar in bars] == [T0, T0 + 120]
    assert (refused.start, refused.end, refused.why) == (
        T0 + MINUTE,
        T0 + 2 * MINUTE,
        f"MEXC's kline is nonsense: {said}",
    )

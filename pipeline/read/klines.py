"""MEXC's own one-minute bars, asked of REST once and kept.

In: a symbol and a range of minutes. Out: the bars of minutes that are over, oldest first, and for what cannot be had, a
line that says why. Promises: a bar is either as MEXC sent it and sound, or refused; what was kept is not asked for
again; a file of kept bars is there as a whole or not at all.

They are kept in files, one a day, and not in a table: whoever may only read the archive can audit it, a server has no
table that is not its collectors', and the files can be deleted at any time. What is asked of another address, such as
the simulated exchange's, is kept apart.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from config import PROJECT, Settings
from pipeline.files import write_whole
from pipeline.rest import TOO_MANY_REQUESTS, Rest, RestError

MINUTE = 60
"""Seconds; all times here are seconds since the epoch, and a bar's is its beginning."""

_DAY = 86_400
_AT_ONCE = 1_998  # minutes: MEXC gives 2,000 bars, and one more than is wanted tells that the last of these is over
_TRIES = 3
_RETRY = 1.0  # seconds
_COLUMNS = ("vol", "realOpen", "realHigh", "realLow", "realClose")  # of the bar's own deals; `open` is the close before
_HEADER = "time,contracts,open,high,low,close"
_LONGEST = 64  # characters
_NUMBER = re.compile(r"[0-9]{1,16}(\.[0-9]{1,18}0*)?")  # as pipeline.read.decode has it for deals


class Bar(NamedTuple):
    """What was traded in a minute, by MEXC. The prices, in USDT, say something only where there are contracts."""

    time: int
    contracts: Decimal
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal


@dataclass(frozen=True)
class Refused:
    """Minutes whose bars cannot be had: from `start`, and before `end`."""

    start: int
    end: int
    why: str
    """A line."""
    is_answer: bool
    """Whether MEXC answered, and what it said of these minutes is nonsense; else there was no answer to use."""


class Klines:
    """The bars of one symbol."""

    def __init__(self, settings: Settings, rest: Rest, symbol: str) -> None:
        self._rest = rest
        self._symbol = symbol
        address = urlsplit(settings.mexc_rest_url).netloc
        self._directory = PROJECT / settings.klines_dir / address.rpartition("@")[2] / symbol
        self._unkept: dict[int, dict[int, Bar]] = {}
        self.trouble = ""
        """A line on why bars could not be kept; empty while they can."""

    def fetch(self, start: int, end: int, advance: Callable[[float], None] = lambda count: None) -> list[Refused]:
        """Ask for the bars from `start` until before `end` that are not kept; return what could not be had.

        Minutes that are not over, or of which MEXC lists no bar, are not among that. `advance` is told how many minutes
        are done. Once there is no answer, no more is asked.
        """
        refused: list[Refused] = []
        missing: list[int] = []
        for day in _days(start, end):
            kept = self._load(day)
            minutes = range(max(start, day), min(end, day + _DAY), MINUTE)
            not_kept = [minute for minute in minutes if minute not in kept]
            missing += not_kept
            advance(len(minutes) - len(not_kept))
        while missing:
            wanted = [minute for minute in missing if minute < missing[0] + _AT_ONCE * MINUTE]
            missing = missing[len(wanted) :]
            first, last = wanted[0], wanted[-1]
            try:
                bars, nonsense = read_bars(self._ask(first, last), first, last)
            except RestError as error:
                refused.append(Refused(first, (missing or wanted)[-1] + MINUTE, str(error), False))
                break
            except ValueError as error:
                refused.append(Refused(first, last + MINUTE, f"MEXC's klines are nonsense: {error}", True))
            else:
                self._keep(bars)
                refused += nonsense
            advance(len(wanted))
        return refused

    def bars(self, start: int, end: int) -> Iterator[Bar]:
        """Yield the bars that were fetched, now or before, from `start` until before `end`."""
        for day in _days(start, end):
            yield from (bar for minute, bar in sorted(self._load(day).items()) if start <= minute < end)

    def _ask(self, first: int, last: int) -> Any:
        """Return the data that MEXC answers with for these minutes and the one after them. Raises RestError."""
        path = f"/api/v1/contract/kline/{self._symbol}"
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._rest.get(path, interval="Min1", start=first, end=last + 2 * MINUTE - 1)
            except RestError as error:
                if not tries_left or error.code not in (0, TOO_MANY_REQUESTS):
                    raise
            time.sleep(_RETRY)
        raise AssertionError

    def _path(self, day: int) -> Path:
        return self._directory / f"{datetime.fromtimestamp(day, UTC):%Y-%m-%d}.csv"

    def _load(self, day: int) -> dict[int, Bar]:
        """Return the bars of a day that are kept; of a file that cannot be used, none."""
        if day in self._unkept:
            return self._unkept[day]
        try:
            header, *lines = self._path(day).read_text().splitlines()
            bars = [_bar(int(minute), values) for minute, *values in (line.split(",") for line in lines)]
        except (OSError, ValueError):
            return {}
        return {bar.time: bar for bar in bars} if header == _HEADER else {}

    def _keep(self, bars: Iterable[Bar]) -> None:
        by_day: dict[int, dict[int, Bar]] = {}
        for bar in bars:
            by_day.setdefault(bar.time // _DAY * _DAY, {})[bar.time] = bar
        for day, found in by_day.items():
            merged = self._load(day) | found
            lines = [
                ",".join([str(bar.time), *(f"{value:f}" for value in bar[1:])]) for _, bar in sorted(merged.items())
            ]
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                write_whole(self._path(day), "\n".join([_HEADER, *lines, ""]))
            except OSError as error:
                self._unkept[day] = merged
                reason = (error.strerror or str(error)).lower()
                self.trouble = f"{self._path(day)} cannot be written: {reason}; its klines will be asked for again"


def read_bars(data: Any, first: int, last: int) -> tuple[list[Bar], list[Refused]]:
    """Return the bars from `first` to `last` in the data of an answer, and those of them that are nonsense.

    The last bar that was sent is under way, and left out. Raises a ValueError that says what is wrong where the data
    are no columns of bars at all.
    """
    if not isinstance(data, dict):
        raise ValueError(f"no columns, but {str(data)[:40]}")  # noqa: TRY004 (the type of an answer's value)
    for name in ("time", *_COLUMNS):
        if not isinstance(data.get(name), list):
            raise ValueError(f"no column {name}")  # noqa: TRY004
        if len(data[name]) != len(data["time"]):
            raise ValueError(f"{len(data['time'])} times, and {len(data[name])} of {name}")
    times = [_time(value) for value in data["time"]]
    if any(after <= before for before, after in pairwise(times)):
        raise ValueError("bars that are not in the order of their times")
    bars, nonsense = [], []
    for place, minute in enumerate(times[:-1]):
        if first <= minute <= last:
            try:
                bars.append(_bar(minute, [data[name][place] for name in _COLUMNS]))
            except ValueError as error:
                why = f"MEXC's kline is nonsense: {error}"
                nonsense.append(Refused(minute, minute + MINUTE, why, True))
    return bars, nonsense


def _bar(minute: int, values: list[Any]) -> Bar:
    """Return a bar of its contracts and prices, open, high, low, close. Raises ValueError."""
    contracts, *prices = (_number(value) for value in values)
    bar = Bar(minute, contracts, *prices)
    if bar.contracts and not 0 < bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high:
        raise ValueError(f"open {bar.open:f}, high {bar.high:f}, low {bar.low:f}, close {bar.close:f}")
    return bar


def _time(value: Any) -> int:
    """Return the beginning of a minute. Raises ValueError."""
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isdecimal()
        and len(value) < 12
        and int(value) % MINUTE == 0
    ):
        return int(value)
    raise ValueError(f"a time that is {str(value)[:40]}")


def _number(value: Any) -> Decimal:
    """Return a number that is not negative, quoted or not. Raises ValueError."""
    if isinstance(value, str) and len(value) <= _LONGEST:
        with suppress(InvalidOperation):
            number = Decimal(value)
            if number.is_finite() and abs(number.adjusted()) < _LONGEST and _NUMBER.fullmatch(f"{number:f}"):
                return number
    raise ValueError(f"a number that is {str(value)[:40]}")


def _days(start: int, end: int) -> range:
    return range(start // _DAY * _DAY, end, _DAY)

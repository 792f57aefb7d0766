"""Times on the command line and in reports: always UTC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_AGO = re.compile(r"-([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Return the moment that `text` names: a date (its first moment), or ISO date and time; UTC unless it says else.

    ``today`` and ``yesterday`` are dates of UTC, ``-24h`` is so long before `now` (in s, m, h or d), which is the
    current time unless given. Raises ValueError, with a line that says what to give, where it is none of these.
    """
    now = now or datetime.now(UTC)
    word = text.strip().lower()
    try:
        if word in ("today", "yesterday"):
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            return midnight - timedelta(days=word == "yesterday")
        if ago := _AGO.fullmatch(word):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # the second: what leads out of the years 1 to 9999
        raise ValueError(
            f"{text} is no time: give a UTC date or ISO time, such as 2026-10-01 or 2026-10-01T13:30:00,"
            " yesterday or -24h"
        ) from None


def with_times_joined(arguments: Sequence[str]) -> list[str]:
    """Return arguments of a command with ``--from -24h`` as ``--from=-24h``, which argparse takes for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and _AGO.fullmatch(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def to_ms(time: datetime) -> int:
    """Return an aware time as the tables have it: whole milliseconds since the epoch, rounded down."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def from_ms(ts_ms: int) -> datetime:
    """Return milliseconds since the epoch as an aware time, in UTC."""
    return _EPOCH + timedelta(milliseconds=ts_ms)


def iso(ts_ms: int) -> str:
    """Return milliseconds since the epoch as ISO text: 2026-10-01T13:30:00.125Z."""
    return from_ms(ts_ms).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

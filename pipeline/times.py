"""Times on the command line and in reports: always UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_time(text: str) -> datetime:
    """Return the moment that `text` names: a date (its first moment), or ISO date and time; UTC unless it says else.

    Raises ValueError, with a line that says what to give, where it is neither.
    """
    try:
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # the second: an offset that leads out of the years 1 to 9999
        raise ValueError(
            f"{text} is no time: give a UTC date or ISO time, such as 2026-10-01 or 2026-10-01T13:30:00"
        ) from None


def to_ms(time: datetime) -> int:
    """Return an aware time as the tables have it: whole milliseconds since the epoch, rounded down."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def from_ms(ts_ms: int) -> datetime:
    """Return milliseconds since the epoch as an aware time, in UTC."""
    return _EPOCH + timedelta(milliseconds=ts_ms)


def iso(ts_ms: int) -> str:
    """Return milliseconds since the epoch as ISO text: 2026-10-01T13:30:00.125Z."""
    return from_ms(ts_ms).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

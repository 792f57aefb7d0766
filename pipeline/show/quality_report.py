"""What pipeline.read.quality has found, as text of one screen a symbol, and as JSON that leaves nothing out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from math import floor, inf
from typing import Any

from pipeline.human import aligned, length, many, printable
from pipeline.read.quality import NEVER_SILENT, ChannelQuality, Finding, Gap, Newest, Reconnect, SymbolQuality
from pipeline.times import iso, to_ms

_GAPS, _RECONNECTS = 8, 4  # lines of each, in the text
_MINUTES = 3  # examples, in the text
_WIDTH = 120  # characters of a line


def as_json(quality: SymbolQuality) -> dict[str, Any]:
    """Return all of `quality` for json.dumps; times, in fields without ``_ms`` here, are ISO texts in UTC."""
    found: dict[str, Any] = _with_iso_times(asdict(quality))
    for channel in found["channels"]:
        channel["by_minute"] = {iso(minute * 1000): count for minute, count in channel["by_minute"].items()}
    found["minutes_without_deals"] = [iso(minute * 1000) for minute in quality.minutes_without_deals]
    return found


def as_text(quality: SymbolQuality) -> str:
    """Return the report on one symbol; its first line says the most important."""
    lines = [verdict(quality)]
    if quality.start_ms is not None and quality.end_ms is not None:
        lines += [f"  {iso(quality.start_ms)} to {iso(quality.end_ms)}, {many(quality.rows, 'row')}", ""]
        lines += _indented(aligned([_CHANNEL_HEADER, *map(_channel_cells, quality.channels)], "<>>><<<>"))
        lines += _indented(["", *_gap_lines(quality.uncovered), *_reconnect_lines(quality.reconnects)])
        lines += _indented([_deals(quality.minutes_without_deals), _books(quality)])
        if quality.misdated.count:
            misdated = _finding(quality.misdated, "rows")
            lines += _indented([f"{misdated} dated before 2018 or after tomorrow, not examined"])
    lines += _indented(_dead_letter_lines(quality))
    return "\n".join(lines)


def verdict(quality: SymbolQuality) -> str:
    """Return the most important in one line."""
    if quality.problem:
        return f"{quality.symbol}: {quality.problem}"
    parts = coverage(quality)
    if quality.minutes_without_deals:
        parts.append(f"{many(len(quality.minutes_without_deals), 'minute')} with trades and no deal")
    parts += [
        many(finding.count, thing)
        for finding, thing in (
            (quality.crossed_books, "crossed book"),
            (quality.unsorted_books, "unsorted book"),
            (quality.unreadable_books, "unreadable book"),
            (quality.misdated, "misdated row"),
        )
        if finding.count
    ]
    if duplicates := sum(channel.duplicates.count for channel in quality.channels if channel.duplicates):
        parts.append(many(duplicates, "duplicate"))
    if letters := sum(each.count for each in quality.dead_letters):
        parts.append(many(letters, "dead letter"))
    return f"{quality.symbol}: {', '.join(parts)}"


def coverage(quality: SymbolQuality) -> list[str]:
    """Return how much of the examined time is covered, and how many gaps there are."""
    if quality.coverage is None:
        parts = ["too few rows to speak of coverage"]
    else:
        # Rounded down: what is not whole must not seem to be.
        parts = [f"{floor(round(quality.coverage * 100, 6)) / 100:.2f} % covered", many(len(quality.uncovered), "gap")]
    if quality.uncovered:
        parts.append(f"longest {length(max(gap.seconds for gap in quality.uncovered))}")
    return parts


def worst_first(symbols: Iterable[SymbolQuality]) -> list[SymbolQuality]:
    """Return symbols in the order in which they need a look: what cannot be examined, then the least covered."""
    return sorted(symbols, key=lambda each: -1 if each.problem else 2 if each.coverage is None else each.coverage)


def late_channels(newest: Newest, max_age: float, now: datetime) -> list[str]:
    """Return the channels whose newest row is older than `max_age` seconds, or that have none, deals aside.

    That is no fault while the table is being compacted: new rows wait for the end of it.
    """
    if newest.being_compacted:
        return []
    return [name for name in NEVER_SILENT if _age(newest.channels[name], now) > max_age]


def age_line(newest: Newest, max_age: float, now: datetime) -> str:
    """Return how old the newest row is, in a line, and which channels alone are late."""
    if not newest.exists:
        return f"{newest.symbol}: there is no table {newest.table}, run ch_setup.py"
    if newest.ts_ms is None:
        return f"{newest.symbol}: there is no row of market data"
    line = f"{newest.symbol}: the newest row is {length(_age(newest.ts_ms, now))} old, of {iso(newest.ts_ms)}"
    if newest.being_compacted:
        return f"{line}; its table is being compacted, new ones wait"
    late = late_channels(newest, max_age, now)
    if not late or _age(newest.ts_ms, now) > max_age:
        return line
    ages = {name: _age(newest.channels[name], now) for name in late}
    silent = (f"no {name} at all" if age == inf else f"no {name} for {length(age)}" for name, age in ages.items())
    return f"{line}; {', '.join(silent)}"


def age_as_json(newest: Newest, max_age: float, now: datetime) -> dict[str, Any]:
    """Return `newest` with ages in seconds, and what is late, for json.dumps."""
    late = late_channels(newest, max_age, now)

    def aged(ts_ms: int | None) -> dict[str, Any]:
        return {"ts": None, "age": None} if ts_ms is None else {"ts": iso(ts_ms), "age": _age(ts_ms, now)}

    found: dict[str, Any] = {**_with_iso_times(asdict(newest)), **aged(newest.ts_ms), "late": bool(late)}
    found["channels"] = {name: {**aged(ts_ms), "late": name in late} for name, ts_ms in newest.channels.items()}
    return found


def _age(ts_ms: int | None, now: datetime) -> float:
    """Return the age in seconds; clocks may differ a little, so none is less than 0."""
    return inf if ts_ms is None else max(0, to_ms(now) - ts_ms) / 1000


# The parts of the text

_CHANNEL_HEADER = ("channel", "rows", "per minute", "least", "first", "last", "out of order", "duplicates")


def _channel_cells(channel: ChannelQuality) -> tuple[str, ...]:
    late = f"{channel.out_of_order.count:,}"
    if channel.out_of_order.count:
        late += f", up to {length(channel.worst_seconds)}"
    return (
        channel.name,
        f"{channel.rows:,}",
        "n/a" if channel.median_per_minute is None else f"{channel.median_per_minute:,.10g}",
        "n/a" if channel.min_per_minute is None else f"{channel.min_per_minute:,}",
        "" if channel.first_ms is None else iso(channel.first_ms),
        "" if channel.last_ms is None else iso(channel.last_ms),
        late,
        "" if channel.duplicates is None else f"{channel.duplicates.count:,}",
    )


def _gap_lines(gaps: Sequence[Gap]) -> list[str]:
    what = "gaps (depth silent for over 10 s, tickers for over 30 s)"
    if not gaps:
        return [f"no {what}"]
    longest = sorted(gaps, key=lambda gap: -gap.seconds)
    cells = [(iso(gap.start_ms), "to", iso(gap.end_ms), length(gap.seconds), gap.channel) for gap in longest[:_GAPS]]
    lines = [f"{what}, longest first:", *_indented(aligned(cells, "<<<><"))]
    if rest := longest[_GAPS:]:
        lines.append(f"  and {len(rest):,} of {length(rest[0].seconds)} and less; --json has all")
    return lines


def _reconnect_lines(reconnects: Sequence[Reconnect]) -> list[str]:
    if not reconnects:
        return ["no reconnects to be seen"]
    lines = [f"{many(len(reconnects), 'reconnect')} to be seen, newest first:"]
    for each in list(reversed(reconnects))[:_RECONNECTS]:
        seconds = (each.end_ms - each.start_ms) / 1000
        how = f"no market data for {length(seconds)}" if each.silent else "short"
        filled_in = f", {many(each.filled_in, 'deal')} filled in or late" * (each.filled_in > 0)
        lines.append(f"  {iso(each.start_ms)} {how}{filled_in}")
    if len(reconnects) > _RECONNECTS:
        lines.append(f"  and {len(reconnects) - _RECONNECTS:,} older; --json has all")
    return lines


def _deals(minutes: Sequence[int]) -> str:
    if not minutes:
        return "deals: no minute with trades and no deal"
    examples = ", ".join(iso(minute * 1000) for minute in minutes[:_MINUTES])
    rest = len(minutes) - _MINUTES
    more = f" and {rest:,} more; --json has all" if rest > 0 else ""
    return f"deals: {many(len(minutes), 'minute')} with trades and no deal: {examples}{more}"


def _books(quality: SymbolQuality) -> str:
    findings = {
        "crossed": quality.crossed_books,
        "unsorted": quality.unsorted_books,
        "unreadable": quality.unreadable_books,
    }
    found = [_finding(finding, name) for name, finding in findings.items()]
    return f"books: {', '.join(found)}"


def _finding(finding: Finding, name: str) -> str:
    since = f" (first {iso(finding.first_ms)})" if finding.first_ms is not None else ""
    return f"{finding.count:,} {name}{since}"


def _dead_letter_lines(quality: SymbolQuality) -> list[str]:
    if not quality.dead_letters:
        return [] if quality.problem else ["no dead letters"]
    lines = ["dead letters by kind, with the first of each:"]
    for each in quality.dead_letters:
        lines.append(f"  {each.count:,} {each.kind}, {iso(each.first_ms)}: {printable(each.example)}")
    return [line if len(line) < _WIDTH - 2 else line[: _WIDTH - 5] + "..." for line in lines]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _with_iso_times(value: Any) -> Any:
    """Return a value of asdict with each field ``x_ms`` made into ``x``, an ISO text."""
    if isinstance(value, list):
        return [_with_iso_times(each) for each in value]
    if not isinstance(value, dict):
        return value
    changed = {}
    for name, each in value.items():
        if str(name).endswith("_ms"):
            changed[name.removesuffix("_ms")] = None if each is None else iso(each)
        else:
            changed[name] = _with_iso_times(each)
    return changed

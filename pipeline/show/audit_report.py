"""What pipeline.read.audit has found, as text of a few lines a symbol, and as JSON that leaves nothing out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from math import floor
from typing import Any

from pipeline.human import many
from pipeline.read.audit import LATEST_MS, Difference, SymbolAudit
from pipeline.times import iso

_LISTED = 20  # minutes that differ, in the text


def as_json(audit: SymbolAudit) -> dict[str, Any]:
    """Return all of `audit` for json.dumps; times are ISO texts in UTC."""
    found = asdict(audit)
    for each in (found, *found["differences"], *found["not_compared"]):
        for name in [name for name in each if name.endswith("_ms")]:
            ts_ms = each.pop(name)
            each[name.removesuffix("_ms")] = None if ts_ms is None else iso(ts_ms)
    return {**found, "percent": audit.percent}


def as_text(audit: SymbolAudit) -> str:
    """Return the report on one symbol; its first line says the most important."""
    lines = [verdict(audit)]
    if audit.problem is None and audit.start_ms is not None and audit.end_ms is not None:
        lines.append(f"{iso(audit.start_ms)} to {iso(audit.end_ms)}, {_contracts(audit.contracts)} by MEXC's klines")
    lines += _difference_lines(audit)
    if audit.earlier:
        lines.append(
            f"{many(audit.earlier, 'deal')} pushed in the first {LATEST_MS / 1000:g} s of a minute, counted in the"
            " one before"
        )
    if audit.undecoded:
        lines.append(f"{many(audit.undecoded, 'deal')} not counted, not decodable")
    if audit.problem is None:
        lines += [
            f"not compared: {iso(each.start_ms)} to {iso(each.end_ms)}: {each.why}" for each in audit.not_compared
        ]
    return "\n  ".join([*lines, *audit.notes])


def verdict(audit: SymbolAudit) -> str:
    """Return the most important in one line."""
    if audit.problem is not None:
        return f"{audit.symbol}: not compared: {audit.problem}"
    parts = [f"{audit.exact:,} of {many(audit.minutes, 'minute')} agree exactly"]
    if audit.percent is None:
        parts.insert(0, "MEXC has no contracts in this time")
    else:
        parts.insert(0, f"{percent(audit.percent)} of MEXC's contracts")
    if audit.missing:
        parts.append(f"{_contracts(audit.missing)} missing")
    if audit.too_many:
        parts.append(f"{_contracts(audit.too_many)} too many")
    if audit.not_compared:
        minutes = sum(each.end_ms - each.start_ms for each in audit.not_compared) // 60_000
        parts.append(f"{many(minutes, 'minute')} not compared")
    return f"{audit.symbol}: {', '.join(parts)}"


def worst_first(audits: Iterable[SymbolAudit]) -> list[SymbolAudit]:
    """Return symbols in the order in which they need a look: what was not compared, then where most is missing."""

    def agreeing(audit: SymbolAudit) -> float:
        return -1 if audit.problem is not None else 2 if audit.percent is None else audit.percent

    return sorted(audits, key=agreeing)


def percent(share: float) -> str:
    """Rounded down: where a contract is missing, it is not 100 %."""
    return f"{floor(round(share * 100, 6)) / 100:.2f} %"


def what_differs(difference: Difference) -> str:
    """Return what is not the same in a minute, in a few words."""
    parts = []
    if difference.missing:
        parts.append(f"{abs(difference.missing):,.10g} {'missing' if difference.missing > 0 else 'too many'}")
    if difference.prices:
        parts.append(f"{' and '.join(difference.prices)} differ{'s' * (len(difference.prices) == 1)}")
    return ", ".join(parts)


def most_first(audit: SymbolAudit) -> list[Difference]:
    """Return the minutes that differ, those with the most contracts first."""
    return sorted(audit.differences, key=lambda each: -abs(each.missing))


def _difference_lines(audit: SymbolAudit) -> list[str]:
    differences = most_first(audit)
    if not differences:
        return []
    lines = ["minutes that differ, most contracts first:"]
    for each in differences[:_LISTED]:
        lines.append(f"  {iso(each.start_ms)}  {what_differs(each)}; {_contracts(each.contracts)} by MEXC")
    if len(differences) > _LISTED:
        lines.append(f"  and {len(differences) - _LISTED:,} more; --json has all")
    return lines


def _contracts(count: float) -> str:
    return f"{count:,.10g} contract{'s' * (count != 1)}"

"""How figures are written for people: sizes, lengths of time, numbers of things."""

from __future__ import annotations

import warnings
from collections.abc import Sequence


def show_warnings_plainly() -> None:
    """Have warnings printed as a line that only says what they say."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"


def human_size(size: int) -> str:
    """Return `size` bytes as du -h would: 221B, 124.0K, 4.1M, in units of 1024."""
    value, unit = float(size), "B"
    for larger in "KMGT":
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{size}B" if unit == "B" else f"{value:.1f}{unit}"


def length(seconds: float) -> str:
    """Return a length of time: 14.2 s, 3 min 20 s, 5 h 3 min, 12 d 5 h."""
    for big, of_big, small, of_small in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= 2 * of_big:
            return f"{seconds // of_big:,.0f} {big} {seconds % of_big // of_small:.0f} {small}"
    return f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Return `text` with what has no look of its own, or could control a terminal, as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def many(count: int, thing: str) -> str:
    """Return a number of things: 1 row, 12,345 rows."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def rows_that(count: int, verb: str) -> str:
    """Return a number of rows with what they do: 1 row waits, 12,345 rows wait."""
    return f"{many(count, 'row')} {verb}{'s' * (count == 1)}"


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return rows of cells as lines with aligned columns; `sides` is < or > for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]

"""Order books as what changes from one to the next, which is what tools that keep a book of their own are fed with.

In: tables of depth, oldest book first, and what book was there before. Out: the changes that lead to each book.
Promise: whoever makes them, in their order, has each book at all its levels, those of 20 that left it included. The
first book, and each one after a gap, comes whole: nothing is known of what it has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.messages import DEPTH_LEVELS
from pipeline.read.quality import DEPTH_SILENCE_MS

_SIDES = (slice(0, DEPTH_LEVELS), slice(DEPTH_LEVELS, 2 * DEPTH_LEVELS))  # of a book's levels, as they lie in `Books`
_AT_ONCE = 4096  # books: each level of a book is compared with each of the one before

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Books(NamedTuple):
    """Some books: a row each, in it the bids and then the asks, best first; nan where there is no such level."""

    ts_ms: Integers
    prices: Floats
    contracts: Floats


class Changes(NamedTuple):
    """Levels that got another size, and 0 is that of one that went; an element each, in the order to make them in."""

    book: Integers
    """Of which book of the table: its place."""
    is_snapshot: Flags
    """Whether it is a part of a book that comes whole."""
    is_bid: Flags
    price: Floats
    contracts: Floats


def books(depth: pa.Table) -> Books:
    """Return the books of a table of depth, of floats."""
    prices, contracts = (
        np.column_stack(
            [depth[f"{side}_{what}_{level + 1}"].to_numpy() for side in ("bid", "ask") for level in range(DEPTH_LEVELS)]
        )
        for what in ("price", "contracts")
    )
    return Books(depth["ts"].cast(pa.int64()).to_numpy(), prices, contracts)


def last_prices(depth: pa.Table) -> list[float | None]:
    """Return the prices of the levels of a table's last book, as `changes` takes them."""
    ((*prices,),) = books(depth.slice(len(depth) - 1)).prices.tolist()
    return [None if np.isnan(price) else price for price in prices]


def changes(tables: Iterable[pa.Table], after: Sequence[float | None] = ()) -> Iterator[tuple[pa.Table, Changes]]:
    """Yield parts of these tables of depth, and what leads to their books.

    `after` are the prices of the book that the reader has when this begins, see `last_prices`; none if it has none.

    A book that comes whole comes so: first each level of the one before it as one that went, then its own levels as a
    snapshot, then the same once more, as changes. For there are tools that make nothing of a snapshot that no change
    follows (hftbacktest), cut it to as many levels as the first one had (the same), or leave what was there before in
    their book (nautilus_trader).
    """
    nothing = np.full((1, 2 * DEPTH_LEVELS), np.nan)
    prices = np.array([after], np.float64) if after else nothing
    before = Books(np.array([-DEPTH_SILENCE_MS - 1]), prices, nothing)
    for table in tables:
        for start in range(0, len(table), _AT_ONCE):
            part = table.slice(start, _AT_ONCE)
            found = books(part)
            yield (
                part,
                _between(
                    Books(
                        np.append(before.ts_ms, found.ts_ms),
                        np.vstack([before.prices, found.prices]),
                        np.vstack([before.contracts, found.contracts]),
                    )
                ),
            )
            before = Books(found.ts_ms[-1:], found.prices[-1:], found.contracts[-1:])


def _between(books: Books) -> Changes:
    """Return what leads from each book to the next one."""
    old, new = books.prices[:-1], books.prices[1:]
    size = books.contracts[1:]
    is_whole = (np.diff(books.ts_ms) > DEPTH_SILENCE_MS)[:, None]
    stays, is_as_before = np.empty_like(old, np.bool_), np.empty_like(new, np.bool_)
    for side in _SIDES:
        same = new[:, side, None] == old[:, None, side]  # each with each; what is nan equals nothing
        stays[:, side] = same.any(axis=1)
        same &= size[:, side, None] == books.contracts[:-1, None, side]
        is_as_before[:, side] = same.any(axis=2)
    was_there, is_there = ~np.isnan(old), ~np.isnan(new)
    # First what went, so that on the way a bid never meets an ask that is there no more.
    made = np.hstack(
        [was_there & (~stays | is_whole), is_there & (~is_as_before | is_whole), is_there & is_whole],
    )
    book, place = np.nonzero(made)
    part, level = np.divmod(place, 2 * DEPTH_LEVELS)
    return Changes(
        book,
        is_whole[book, 0] & (part == 1),
        level < DEPTH_LEVELS,
        np.hstack([old, new, new])[made],
        np.hstack([np.zeros_like(size), size, size])[made],
    )

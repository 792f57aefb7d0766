"""Whoever makes the changes that lead from book to book has each book, whatever that is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.messages import DEPTH
from pipeline.read import books as module
from pipeline.read.books import changes, last_prices
from pipeline.read.decode import decode

Side = dict[float, float]
Book = tuple[int, Side, Side]
"""When it was, in milliseconds, and the contracts at each price: bids, asks."""

GAP = 10_001
SIZES = st.integers(1, 3).map(float)
SIDES = st.dictionaries(st.integers(1, 25).map(float), SIZES, max_size=20)
BOOKS = st.lists(st.tuples(st.sampled_from([0, 1, 300, GAP - 1, GAP, 2 * GAP]), SIDES, SIDES), max_size=12)


def table(books: Sequence[Book]) -> pa.Table:
    """Return books as they are decoded; times are given as what has passed since the one before."""
    now, times, texts = 1_790_812_800_000, [], []
    for passed, *sides in books:
        now += passed
        times.append(now)
        bids, asks = (sorted(side.items(), reverse=not place) for place, side in enumerate(sides))
        texts.append("|".join(",".join(f"[{price},{size}]" for price, size in side) for side in (bids, asks)))
    batch = decode(DEPTH, times, texts)
    assert not batch.bad
    return batch.table


def replay(tables: Sequence[pa.Table], after: pa.Table | None = None) -> list[tuple[Side, Side]]:
    """Return the books that somebody has who makes the changes, and heeds neither snapshots nor gaps.

    `after` has the one that was there before.
    """
    (book,) = replay([after]) if after else [({}, {})]
    seen = []
    for part, changed in changes(tables, last_prices(after) if after else ()):
        each = list(zip(*(column.tolist() for column in changed), strict=True))
        for place in range(len(part)):
            for _, _, is_bid, price, size in (change for change in each if change[0] == place):
                side = book[0 if is_bid else 1]
                side[price] = size
                if not size:
                    del side[price]
            seen.append((dict(book[0]), dict(book[1])))
    return seen


@settings(deadline=None)
@given(BOOKS, st.integers(1, 5))
def test_each_book_is_had_by_its_changes(books: list[Book], at_once: int) -> None:
    whole = table(books)
    parts = [whole.slice(start, at_once) for start in range(0, len(whole), at_once)]
    assert replay(parts) == [(bids, asks) for _, bids, asks in books]


@settings(deadline=None)
@given(BOOKS.filter(bool), st.data())
def test_books_go_on_from_another_table(books: list[Book], data: st.DataObject) -> None:
    whole = table(books)
    place = data.draw(st.integers(0, len(books) - 1))
    before, parts = whole.slice(place, 1), [whole.slice(place + 1)]
    assert replay(parts, before) == [(bids, asks) for _, bids, asks in books[place + 1 :]]


def test_many_books_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    books: list[Book] = [(100, {float(price): float(place)}, {9.0: 1.0}) for place in range(1, 9) for price in (1, 2)]
    whole = replay([table(books)])
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    assert replay([table(books)]) == whole == [(bids, asks) for _, bids, asks in books]


@settings(deadline=None)
@given(BOOKS)
def test_the_first_book_and_each_after_a_gap_come_whole(books: list[Book]) -> None:
    found = [changed for _, changed in changes([table(books)])]
    told = [tuple(each) for changed in found for each in zip(*(column.tolist() for column in changed), strict=True)]
    for place, (passed, bids, asks) in enumerate(books):
        whole = [(True, price, size) for price, size in sorted(bids.items(), reverse=True)]
        whole += [(False, price, size) for price, size in sorted(asks.items())]
        mine = [each[1:] for each in told if each[0] == place]
        is_whole = not place or passed >= GAP
        assert [each[1:] for each in mine if each[0]] == (whole if is_whole else [])
        if is_whole:
            before = [] if not place else [*books[place - 1][1], *books[place - 1][2]]
            gone = mine[: len(before)]
            assert sorted(price for _, _, price, _ in gone) == sorted(before)
            assert all(not is_snapshot and not size for is_snapshot, _, _, size in gone)
            assert [each[1:] for each in mine[len(before) + len(whole) :]] == whole  # once more, as changes
            assert not any(is_snapshot for is_snapshot, *_ in mine[len(before) + len(whole) :])


@settings(deadline=None)
@given(BOOKS)
def test_a_book_like_the_one_before_changes_nothing(books: list[Book]) -> None:
    told = [place for _, changed in changes([table(books)]) for place in changed.book.tolist()]
    for place, (before, after) in enumerate(pairwise(books), 1):
        if before[1:] == after[1:] and after[0] < GAP:
            assert place not in told


def test_what_went_comes_first() -> None:
    """So that a price that moves on never lets a bid meet an ask that is gone."""
    ((_, changed),) = changes([table([(0, {1.0: 5.0}, {2.0: 5.0}), (100, {2.0: 5.0}, {3.0: 5.0})])])
    last = [change[2:] for change in zip(*(column.tolist() for column in changed), strict=True) if change[0] == 1]
    assert last == [(True, 1.0, 0.0), (False, 2.0, 0.0), (True, 2.0, 5.0), (False, 3.0, 5.0)]

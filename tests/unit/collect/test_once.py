"""What has come already, whichever way it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.collect.errors import JournalFull
from pipeline.collect.journal import Journal
from pipeline.collect.once import Once
from pipeline.messages import Row

T = 1_790_000_000_000


def deal(number: int, id: int | None = None) -> Row:
    return Row(T + number, "d", f"{number}|1|1", number if id is None else id, T + number)


def book(version: int) -> Row:
    return Row(T, "dp", "[1,1]|[2,2]", version, T)


def ticker(at: int, price: int = 1) -> Row:
    return Row(T + 500, "t", f"{price}||||", 0, T + at if at else 0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "btc.db", 1 << 30)
    yield journal
    journal.close()


@pytest.fixture
def once(journal: Journal) -> Once:
    return Once(journal, connections=2)


def stored(journal: Journal) -> list[str]:
    return [m for _, _, m in journal.position("btc").pending(10_000)]


def test_a_deal_that_came_already_is_dropped(journal: Journal, once: Once) -> None:
    assert once.keep([deal(1), deal(2)], 0) == 0
    assert once.keep([deal(2), deal(3), deal(3)], 0) == 2
    assert stored(journal) == ["1|1|1", "2|1|1", "3|1|1"]


def test_only_what_is_the_same_in_all_of_it_came_already(journal: Journal, once: Once) -> None:
    once.keep([Row(T, "d", "5|1|1", 7, T)], 0)
    others = [Row(T, "d", "5|1|1", 8, T), Row(T, "d", "5|1|1", 7, T + 1), Row(T, "d", "5|1|2", 7, T)]
    assert once.keep(others, 0) == 0


def test_deals_without_a_number_may_be_equal(once: Once) -> None:
    assert once.keep([deal(1, id=0), deal(1, id=0)], 0) == 0


def test_deals_of_an_earlier_run_came_already(journal: Journal, once: Once) -> None:
    once.keep([deal(1)], 0)
    assert Once(journal).keep([deal(1), deal(2)], 0) == 1


def test_on_one_connection_books_and_tickers_are_kept_as_they_come(once: Once) -> None:
    for row in (book(7), ticker(5)):
        assert once.keep([row], 0) == once.keep([row], 0) == 0


def test_of_two_connections_each_message_is_kept_once(journal: Journal, once: Once) -> None:
    for row in (deal(1), book(7), ticker(5)):
        assert once.keep([row], 0, 1) == 0
        assert once.keep([row], 0, 2, in_front=False) == 1
    for row in (book(9), book(8), ticker(6), ticker(5, price=2)):  # one may be seconds behind the other
        assert once.keep([row], 0, 2, in_front=False) == 0
        assert once.keep([row], 0, 1) == 1
    assert len(stored(journal)) == 7


def test_what_has_no_number_comes_from_the_connection_in_front(once: Once) -> None:
    for row in (deal(1, id=0), book(0), ticker(0), Row(T, "dl", "?")):
        assert once.keep([row], 0, 1, in_front=True) == 0
        assert once.keep([row], 0, 2, in_front=False) == 1


def test_what_the_full_journal_refused_has_not_come(
    journal: Journal, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise JournalFull("full")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", full)
        with pytest.raises(JournalFull):
            once.keep([deal(1)], 0)
    assert once.keep([deal(1)], 0) == 0


def test_a_list_fills_in_what_is_missing_and_no_more(journal: Journal, once: Once) -> None:
    once.keep([deal(1), deal(2), deal(2, id=20)], 0)
    listed = [deal(n, id=0) for n in (1, 2, 2, 2, 3)]
    assert once.fill(listed, 0) == 2
    assert once.fill(listed, 0) == 0
    assert stored(journal) == ["1|1|1", "2|1|1", "2|1|1", "2|1|1", "3|1|1"]
    assert once.keep([deal(3), deal(3, id=30), deal(2, id=21), deal(4)], 0) == 2, "two of them were filled in"


def test_a_deal_that_was_filled_in_comes_from_each_connection(journal: Journal, once: Once) -> None:
    assert once.fill([deal(1, id=0), deal(2, id=0)], 0) == 2
    assert once.keep([deal(1)], 0, 1) == 1
    assert once.keep([deal(1)], 0, 2, in_front=False) == 1
    assert once.keep([deal(2, id=0)], 0, 2, in_front=False) == 1
    assert once.keep([deal(2, id=0)], 0, 1) == 1
    assert stored(journal) == ["1|1|1", "2|1|1"]


def test_a_deal_that_came_does_not_stand_for_one_that_was_filled_in(journal: Journal, once: Once) -> None:
    came, filled = deal(1, id=7), deal(1, id=8)  # at the same time, of the same numbers
    once.keep([came], 0, 1)
    assert once.fill([came._replace(id=0), filled._replace(id=0)], 0) == 1
    assert once.keep([came], 0, 2, in_front=False) == 1
    assert once.keep([filled], 0, 1) == 1
    assert stored(journal) == ["1|1|1", "1|1|1"]


def test_deals_of_a_journal_of_before_are_told_by_the_time_of_their_frame(journal: Journal, once: Once) -> None:
    journal.append([(T + 400, "d", "1|1|1", 7, 0), (T + 400, "d", "2|1|1", 8, 0)])
    listed = [
        Row(T + t, "d", m, 0, T + t) for t, m in ((350, "1|1|1"), (350, "1|1|1"), (390, "2.0|1|1"), (450, "2|1|1"))
    ]
    assert once.fill(listed, 0) == 2
    assert stored(journal) == ["1|1|1", "2|1|1", "1|1|1", "2|1|1"]

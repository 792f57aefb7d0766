"""Empties a table of the rows that its history holds, in place of compacting it: same UUID, path and creation token.

In: a StripeLog table of many small blocks, and its history (pipeline.store.history). Out: the table with its newest
rows only, those that the history did not have yet, in one block; its comment says how many it had before. Promise: no
row is deleted before it was found in the history, by count and by a hash over the rows; those that are to stay are
copied aside first; and whatever is killed, at whatever moment, the tables that are left say how to go on, and
`pipeline.store.compact.resume` does. What takes long, comparing and copying, is done while the table is there; then it
goes by another name for a moment or, where rows came meanwhile, for as long as it takes to read it once more. Whatever
is amiss then, it is brought back as it was.

    btc             [btc_copying_X]         before, and after; the newest rows are being copied
    btc_turning_X   [btc_copying_X or btc_tail_X]
                                            set aside; the tail is not known to be whole yet
    btc_turning_X    btc_tail_X             the tail is whole, and the comment of the first ends with `!`: it is being
                                            emptied, filled from the tail, and its comment changed
    btc             [btc_tail_X]            done; the tail is to be deleted
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any

from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS
from pipeline.store.compact import CompactionError, Compactor, NotEmptied, Progress, compact, resume
from pipeline.store.copying import HASH, HistoryDiffers, copy, look_for
from pipeline.store.history import (
    Beginning,
    beginnings,
    connect_history,
    explain_history,
    first_number,
    history_of,
    is_there,
    record,
    start_of,
    token_of,
)
from pipeline.store.schema import parse_comment

_FEW = 100_000  # rows that a history lacks, at most, to be copied there at once, or to come there by themselves
_FENCE_TIMEOUT = 1.0  # seconds for an INSERT under way to end, while the table is away


class NotInHistory(CompactionError):
    """The table was not turned over: its history lacks rows that it has, and will until they are copied."""


def tidy(settings: Settings, name: str) -> Iterator[Progress]:
    """Turn the table `name` over where its history has its rows, else compact it; yields as `compact` does.

    Raises CompactionError and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    is_due = True
    if settings.history:
        try:
            yield from turn_over(settings, name)
            is_due = False
        except NotInHistory as error:
            yield Progress(f"{error}; compacting it instead", done=0)
    if is_due:
        yield from compact(settings, name)


def turn_over(settings: Settings, name: str) -> Iterator[Progress]:
    """Empty the table `name` of what its history holds, after finishing what was left of an earlier attempt.

    Raises NotInHistory, other CompactionErrors and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    yield from resume(settings, name)
    with closing(_TurnOver(settings, name)) as turning:
        try:
            with connect_history(settings, timeout=3600, query_settings=ALL_ROWS) as there:
                yield from turning.run(settings, there)
        except CLICKHOUSE_ERRORS:
            _refuse_if_away(settings, name)
            raise


def _refuse_if_away(settings: Settings, name: str) -> None:
    """Raise NotInHistory where the server of the history does not answer."""
    try:
        with connect_history(settings, timeout=10) as there:
            there.execute("SELECT 1")
    except CLICKHOUSE_ERRORS as error:
        why = explain_history(error, settings)
        raise NotInHistory(f"{settings.clickhouse_database}.{name} cannot be turned over: {why}") from None


class _TurnOver(Compactor):
    """One process's work on one table."""

    def run(self, settings: Settings, there: Any) -> Iterator[Progress]:
        started = time.monotonic()
        place = self._database, self._name
        history = f"{self._database}.{history_of(self._name)}"
        comment = self._tables().get(self._full_name)
        if comment is None:
            raise CompactionError(f"Table {self._full_name} does not exist: run ch_setup.py")
        if not is_there(there, *place):
            raise NotInHistory(f"{self._full_name} has no history")
        token, before = parse_comment(comment)
        own = token_of(there, *place)
        gaps = [each for each in beginnings(there, *place, token, own) if not each.is_whole]
        if gaps:
            missing = sum(each.rows - each.first for each in gaps)
            if missing > _FEW:
                raise NotInHistory(f"{history} lacks {missing:,} rows of {self._full_name}: ch_setup.py --history")
            try:
                yield from copy(settings, self._name, keep_others=True)  # nobody is here to be asked
            except HistoryDiffers:
                raise NotInHistory(
                    f"{history} does not have the same rows as {self._full_name}: ch_setup.py --history"
                ) from None
        rows, _, _ = self._look(self._full_name)
        yield Progress(f"Comparing {self._full_name}, {many(rows, 'row')}, with its history", done=0)
        sure, last = yield from self._in_history(settings, there, token, before, rows)
        record(there, *place, token, Beginning(before + sure, before + sure, last, last + 1), own)
        self._wait_for_readers()
        try:
            self._create(self._copying, comment, self._full_name)
            self._copy_after(sure, self._full_name, self._copying)
            away = time.monotonic()
            self._set_aside(self._turning, comment)
        except (ServerException, CompactionError, KeyboardInterrupt):
            self._drop(self._copying)
            raise
        try:
            self._rename(self._copying, self._tail)  # whoever takes that for left behind knows it by its former name
            self._wait_for_others(_FENCE_TIMEOUT)
            self._refuse_other_copies()
            kept = self._complete_tail(sure)
            whole = f"{token}+{before + sure}"
            self._set_comment(self._tail, whole)
            self._set_comment(self._turning, f"{whole}!")
        except (ServerException, CompactionError, KeyboardInterrupt):
            self._back_as_it_was(comment)
            raise
        try:
            for _ in self._finish_turning(f"{whole}!", self._tail):
                pass
        except NotEmptied:
            self._back_as_it_was(comment)
            raise
        away = time.monotonic() - away
        self._drop(self._tail)
        yield Progress(
            f"Turned {self._full_name} over: {many(sure, 'row')} are in {history} only, {kept:,} stay; it was away for"
            f" {1000 * away:.0f} ms; {time.monotonic() - started:.1f} s",
            done=1,
        )

    def _copy_after(self, rows: int, source: str, target: str) -> None:
        """Copy what comes after the first so many rows of a table."""
        self._run(f"INSERT INTO {target} SELECT ts, mt, m FROM {source} LIMIT 1000000000 OFFSET {rows}")

    def _complete_tail(self, sure: int) -> int:
        """Bring the tail up to all but the first `sure` rows of the table set aside; return how many rows it has."""
        rows = self._look(self._turning)[0]
        if sure + (kept := self._look(self._tail)[0]) < rows:
            self._copy_after(sure + kept, self._turning, self._tail)
            kept = self._look(self._tail)[0]
        if sure + kept != rows:
            raise CompactionError(f"The newest rows of {self._full_name} cannot be copied")
        return kept

    def _in_history(
        self, settings: Settings, there: Any, token: str, before: int, rows: int
    ) -> Generator[Progress, None, tuple[int, int]]:
        """Return how many of the table's `rows` rows, from the first on, the history has, and the n of the last one.

        Raises CompactionError where it has not got enough of them yet, and NotInHistory where it has others.
        """
        history = f"{self._database}.{history_of(self._name)}"
        found = beginnings(there, self._database, self._name, token)
        if not found:
            raise NotInHistory(f"The history of {self._full_name} has not begun")
        first, skipped = start_of(found, before)
        same = self._compare(there, history, first, skipped, 0, rows)
        if same is None:
            # The history may have more: rows that the table has lost. Up to the last note, each row is looked for.
            known = [each for each in found if each.is_whole and before < each.rows <= before + rows]
            if known:
                first = first_number(there, self._database, self._name, token, before) or first
                since = known[-1]._replace(first=before, after=first - 1)
                with suppress(HistoryDiffers):
                    yield from look_for(settings, self._name, since)
                    same = self._compare(there, history, since.n, 0, since.rows - before, rows)
        if same is None:
            raise NotInHistory(f"{history} does not have the same rows as {self._full_name}")
        return same

    def _compare(
        self, there: Any, history: str, first: int, skipped: int, found: int, rows: int
    ) -> tuple[int, int] | None:
        """Compare the table's `rows` rows, but the first `found`, with those of the history from n = `first` on.

        Of the latter, the first `skipped` are not among them. Returns as `_in_history`; None where they are not the
        same. Raises CompactionError.
        """
        # Together, for more rows come meanwhile.
        ((fed, newest),) = there.execute(f"SELECT count(), max(n) FROM {history} WHERE n >= {first}")
        ahead = fed - skipped - (rows - found)
        sure = rows + min(ahead, 0)
        if not sure or -ahead > _FEW:
            problem = NotInHistory if -ahead > _FEW else CompactionError
            raise problem(f"{history} has not got the newest {-ahead:,} rows of {self._full_name} yet")
        if sure == found:
            return sure, first - 1
        found_n = f"SELECT n FROM {history} WHERE n >= {first} AND n <= {newest} ORDER BY n"
        ((last,),) = there.execute(f"{found_n} DESC LIMIT 1 OFFSET {max(ahead, 0)}")
        if skipped:
            ((first,),) = there.execute(f"{found_n} LIMIT 1 OFFSET {skipped}")
        theirs = there.execute(f"SELECT {HASH} FROM {history} WHERE n >= {first} AND n <= {last}")
        part = f"(SELECT ts, mt, m FROM {self._full_name} LIMIT {sure - found} OFFSET {found})"
        ours = self._client.execute(f"SELECT {HASH} FROM {part}", query_id=self._query_id())
        return (sure, last) if ours == theirs else None

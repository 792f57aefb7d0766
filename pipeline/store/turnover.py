"""Empties a table of the rows that its history holds, in place of compacting it: same UUID, path and creation token.

In: a StripeLog table of many small blocks, and its history (pipeline.store.history). Out: the table with its newest
rows only, those that the history did not have yet, in one block; its comment says how many it had before. Promise: no
row is deleted before it was found in the history, by count and by a hash over the rows; those that are to stay are
copied aside first; and whatever is killed, at whatever moment, the tables that are left say how to go on, and
`pipeline.store.compact.resume` does. The long part, the comparing, is done while rows come; then the table goes by
another name for as long as it takes to read it once, and whatever is amiss then, it is brought back as it was.

    btc                                     before, and after
    btc_turning_X   [btc_tail_X]            set aside; the tail is not whole yet
    btc_turning_X    btc_tail_X             the tail is whole, and the comment of the first ends with `!`: it is being
                                            emptied, filled from the tail, and its comment changed
    btc             [btc_tail_X]            done; the tail is to be deleted
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.human import many
from pipeline.store.client import ALL_ROWS
from pipeline.store.compact import CompactionError, Compactor, NotEmptied, Progress, compact, resume
from pipeline.store.copying import HASH, copy
from pipeline.store.history import Beginning, beginnings, connect_history, history_of, is_there, record
from pipeline.store.schema import parse_comment

_FEW = 100_000  # rows that a history lacks, at most, to be copied there at once
_FENCE_TIMEOUT = 1.0  # seconds for an INSERT under way to end, while the table is away
_SPARE = 100_000  # rows that it has not got yet, at most, to turn the table over all the same


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
    with (
        closing(_TurnOver(settings, name)) as turning,
        connect_history(settings, timeout=3600, query_settings=ALL_ROWS) as there,
    ):
        yield from turning.run(settings, there)


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
        gaps = [each for each in beginnings(there, *place, token) if not each.is_whole]
        if gaps:
            missing = sum(each.rows - each.first for each in gaps)
            if missing > _FEW:
                raise NotInHistory(f"{history} lacks {missing:,} rows of {self._full_name}: ch_setup.py --history")
            yield from copy(settings, self._name)
        rows, _, _ = self._look(self._full_name)
        yield Progress(f"Comparing {self._full_name}, {many(rows, 'row')}, with its history", done=0)
        sure, last = self._in_history(there, history, token, before, rows)
        record(there, *place, token, Beginning(before + sure, before + sure, last, last + 1))
        self._wait_for_readers()
        away = time.monotonic()
        self._rename(self._full_name, self._turning)
        try:
            self._wait_for_others(_FENCE_TIMEOUT)
            self._refuse_other_copies()
            whole = f"{token}+{before + sure}"
            self._create(self._tail, whole, self._turning)
            kept = self._copy_tail(sure)
            self._set_comment(self._turning, f"{whole}!")
        except (ServerException, CompactionError, KeyboardInterrupt):
            self._back_as_it_was(comment)
            raise
        try:
            self._finish_turning(f"{whole}!", [self._tail])
        except NotEmptied:
            self._back_as_it_was(comment)
            raise
        now = time.monotonic()
        yield Progress(
            f"Turned {self._full_name} over: {many(sure, 'row')} are in {history} only, {kept:,} stay; it was away for"
            f" {1000 * (now - away):.0f} ms; {now - started:.1f} s",
            done=1,
        )

    def _copy_tail(self, sure: int) -> int:
        """Copy aside what comes after the first `sure` rows of the table that is set aside; return how many rows."""
        query = f"SELECT ts, mt, m FROM {self._turning} LIMIT 1000000000 OFFSET {sure}"
        self._run(f"INSERT INTO {self._tail} {query}")
        kept, _, _ = self._look(self._tail)
        if sure + kept != self._look(self._turning)[0]:
            raise CompactionError(f"The newest rows of {self._full_name} cannot be copied")
        return kept

    def _in_history(self, there: Any, history: str, token: str, before: int, rows: int) -> tuple[int, int]:
        """Return how many of the table's `rows` rows, from the first on, the history has, and the n of the last one.

        Raises CompactionError where it has not got enough of them yet, and NotInHistory where it has others.
        """
        found = beginnings(there, self._database, self._name, token)
        if not found:
            raise NotInHistory(f"The history of {self._full_name} has not begun")
        since = max((each for each in found if each.rows <= before), key=lambda each: each.n, default=None)
        if since is None and before:
            raise NotInHistory(f"Where the history of {self._full_name} begins is not known")
        first, skipped = (since.n, before - since.rows) if since else (found[0].after + 1, 0)
        ((fed,),) = there.execute(f"SELECT count() FROM {history} WHERE n >= {first}")
        ahead = fed - skipped - rows
        sure = rows + min(ahead, 0)
        if not sure or -ahead > _SPARE:
            raise CompactionError(f"{history} has not got the newest {-ahead:,} rows of {self._full_name} yet")
        query = f"SELECT n FROM {history} WHERE n >= {first} ORDER BY n"
        ((last,),) = there.execute(f"{query} DESC LIMIT 1 OFFSET {max(ahead, 0)}")
        if skipped:
            ((first,),) = there.execute(f"{query} LIMIT 1 OFFSET {skipped}")
        theirs = there.execute(f"SELECT {HASH} FROM {history} WHERE n >= {first} AND n <= {last}")
        ours = self._client.execute(
            f"SELECT {HASH} FROM (SELECT ts, mt, m FROM {self._full_name} LIMIT {sure})", query_id=self._query_id()
        )
        if ours != theirs:
            raise NotInHistory(f"{history} does not have the same rows as {self._full_name}")
        return sure, last

    def _back_as_it_was(self, comment: str) -> None:
        self._set_comment(self._turning, comment)
        self._drop(self._tail)
        self._rename(self._turning, self._full_name)

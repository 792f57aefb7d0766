"""Drops the rows from before a moment, while collectors run: python3 ch_setup.py --drop-before 2026-08-01.

In: a StripeLog table, with HISTORY=1 its history too, and a moment. Out: the same table, under the same UUID, path and
creation token, with the rows whose `ts` is at that moment or later, in their order, in big blocks; its comment says how
many rows it had besides, so that collectors go on counting. Promise: what stays is copied aside, compared and on the
disk before anything is deleted, and whatever is killed, at whatever moment, the tables that are left say how to go on,
and `pipeline.store.compact.resume` does, by the same states as when a table is turned over (pipeline.store.turnover):

    btc                                     before, and after
    btc_turning_X   [btc_tail_X]            set aside; what stays is not whole yet
    btc_turning_X    btc_tail_X             it is, and the comment of the first ends with `!`: it is being emptied,
                                            filled from the second, and its comment changed
    btc             [btc_tail_X]            done; the copy is to be deleted

Where a history has the table's rows, the table is turned over instead, and old rows are deleted from the history: those
parts at once that have no others, the rest by a mutation. Its newest row stays, however old: by it the collector knows
which rows the history has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS, connect
from pipeline.store.compact import (
    FIRST_BLOCK_ROWS,
    MANY_BLOCKS,
    SPARE_DISK,
    SYNC,
    CompactionError,
    Compactor,
    NotEmptied,
    Progress,
    free_disk,
    megabytes,
    read_comment,
    read_table,
    resume,
)
from pipeline.store.history import beginnings, connect_history, explain_history, history_of, is_there
from pipeline.store.schema import parse_comment
from pipeline.store.source import moment
from pipeline.store.turnover import turn_over
from pipeline.times import iso

_LONG = 86_400.0  # seconds without a word from the server, while it looks for rows or deletes them
_NO_SUCH_PART = 232  # error code


@dataclass(frozen=True)
class Old:
    """What a table has from before a moment."""

    table: str
    rows: int
    of: int
    """Rows that it has in all."""
    size: int
    """Bytes that it takes in all."""
    oldest_ms: int
    newest_ms: int
    """Of those rows, milliseconds since the epoch."""

    def __str__(self) -> str:
        return (
            f"{self.table}: {self.rows:,} of {many(self.of, 'row')}, from {iso(self.oldest_ms)} to"
            f" {iso(self.newest_ms)}, some {megabytes(self.size * self.rows // self.of)} of {megabytes(self.size)}"
        )


def survey(settings: Settings, name: str, before_ms: int) -> list[Old]:
    """Return what the table `name` has from before that moment, and with HISTORY=1 its history; nothing for none.

    All rows are read for it. Raises CompactionError, and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    database = settings.clickhouse_database
    with connect(settings, timeout=_LONG, query_settings=ALL_ROWS) as client:
        found = [read_table(client, database, name, lambda table: _look(client, table, before_ms))]
    if found == [None]:
        raise CompactionError(f"Table {database}.{name} does not exist: run ch_setup.py")
    if settings.history:
        with _explained(settings), _history(settings) as there:
            if is_there(there, database, name):
                found.append(_look(there, f"{database}.{history_of(name)}", before_ms))
    return [each for each in found if each and each.rows]


def refuse_beside_a_history(settings: Settings, name: str) -> None:
    """Raise CompactionError where the table `name` has a history that the settings do not speak of.

    Rows that are in neither are then among those that count as turned over, and once HISTORY=1 again, others would be
    taken for them. Raises one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    if settings.history:
        return
    place = settings.clickhouse_database, name
    with connect(settings) as client:
        token, _ = parse_comment(read_comment(client, *place) or "")
    with _explained(settings), _history(settings) as there:
        if not is_there(there, *place) or not beginnings(there, *place, token):
            return
    history = f"{place[0]}.{history_of(name)}"
    raise CompactionError(
        f"{place[0]}.{name} keeps its rows, for it has a history, and HISTORY is not set: set HISTORY=1, so that old"
        f" ones go from both, or DROP TABLE {history} first"
    )


def drop(settings: Settings, name: str, before_ms: int) -> Iterator[Progress]:
    """Drop what the table `name` has from before that moment, and its history; yields as compaction does.

    What was left of an earlier attempt is finished first. Raises CompactionError, and
    pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    yield from resume(settings, name)
    if not settings.history:
        with closing(_Dropping(settings, name)) as dropping:
            yield from dropping.run(before_ms)
        return
    place = settings.clickhouse_database, name
    with connect(settings, timeout=_LONG, query_settings=ALL_ROWS) as client, _history(settings) as there:
        comment = read_comment(client, *place)
        token, before = parse_comment(comment or "")
        with _explained(settings):
            if not is_there(there, *place):
                raise CompactionError(f"Table {place[0]}.{history_of(name)} does not exist: run ch_setup.py")
            begun = beginnings(there, *place, token)
        found = read_table(client, *place, lambda table: _look(client, table, before_ms))
        if found and found.rows:
            lacking = [each for each in begun if not each.is_whole]
            if not begun or (lacking == begun[:1] and lacking[0].first <= before):
                # What it has not got is the table's oldest rows, so they go from there.
                alone = begun[0].rows - before if begun else None
                with closing(_Dropping(settings, name)) as dropping:
                    yield from dropping.run(before_ms, alone)
            else:
                yield from turn_over(settings, name)
        with _explained(settings):
            bound = max((each.n for each in beginnings(there, *place, token)), default=None)
            yield from _delete(there, f"{place[0]}.{history_of(name)}", before_ms, bound)


def _history(settings: Settings) -> Client:
    return connect_history(settings, timeout=_LONG, query_settings=ALL_ROWS)


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what the server of the history answers into a CompactionError: it may be another one."""
    try:
        yield
    except CLICKHOUSE_ERRORS as error:
        raise CompactionError(explain_history(error, settings)) from None


def _look(client: Client, table: str, before_ms: int) -> Old:
    """Look at the table with this full name."""
    old = f"ts < {moment(before_ms)}"
    ((rows, of, oldest, newest),) = client.execute(
        f"SELECT countIf({old}), count(), toUnixTimestamp64Milli(minIf(ts, {old})),"
        f" toUnixTimestamp64Milli(maxIf(ts, {old})) FROM {table}"
    )
    parameters = dict(zip(("database", "name"), table.split("."), strict=True))
    query = "SELECT total_bytes FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    ((size,),) = client.execute(query, parameters) or [(0,)]
    return Old(table, rows, of, size or 0, oldest, newest)


class _Dropping(Compactor):
    """One process's work on one StripeLog table."""

    _aim = "rewritten"

    def run(self, before_ms: int, alone: int | None = None) -> Iterator[Progress]:
        """Drop the rows from before that moment, which are to be among the first `alone` ones, if that is given."""
        started = time.monotonic()
        comment = self._tables().get(self._full_name)
        if comment is None:
            raise CompactionError(f"Table {self._full_name} does not exist: run ch_setup.py")
        self._rows, size, path = self._look(self._full_name)
        self._passes = 9
        old, new = f"ts < {moment(before_ms)}", f"ts >= {moment(before_ms)}"
        yield self._begin(f"Looking at {self._full_name}, {many(self._rows, 'row')} in {megabytes(size)}")
        ((seen, going, blocks),) = yield from self._read(
            f"SELECT count(), countIf({old}), countIf(rowNumberInBlock() = 0) FROM {self._full_name}"
        )
        if seen < self._rows:
            self._see_all(self._full_name, seen)
        if not going:
            yield Progress(f"{self._full_name} has no row from before {iso(before_ms)}", done=1)
            return
        free, needed = free_disk(self._client, path), size * (seen - going) // seen + SPARE_DISK
        needs = f"needs {megabytes(needed)} of free disk, and there are {megabytes(free)}"
        if free < needed:
            raise CompactionError(f"{self._full_name} keeps its rows: to copy those that stay {needs}")
        if blocks > MANY_BLOCKS:
            raise CompactionError(
                f"{self._full_name} keeps its rows: it has {blocks:,} blocks, and to go through them once more takes"
                f" much memory: ch_setup.py --compact {self._name}, then this again"
            )
        self._wait_for_readers()
        yield self._begin(f"Dropping {going:,} of {many(seen, 'row')} of {self._full_name}: that {needs}")
        away = time.monotonic()
        self._set_aside(self._turning, comment)
        try:
            self._wait_for_others()
            self._refuse_other_copies()
            if alone is not None:
                self._refuse_later(f"(SELECT ts FROM {self._turning} LIMIT 1000000000000 OFFSET {alone}) WHERE {old}")
            _, kept = yield from self._fingerprint(self._turning, f"Reading what stays of {self._full_name}", new)
            total, _, _ = self._look(self._turning)
            token, before = parse_comment(comment)
            whole = f"{token}+{before + total - kept.rows}"
            self._create(self._tail, whole, self._turning)
            self._empty(self._tail)  # who may not empty the copy may not empty the table
            yield self._begin(f"Copying what stays of {self._full_name}")
            yield from self._copy(f"{self._turning} WHERE {new}", self._tail, FIRST_BLOCK_ROWS)
            _, copy = yield from self._fingerprint(self._tail, f"Checking the copy of {self._full_name}")
            self._verify(copy, kept)
            self._run(SYNC)
            self._set_comment(self._turning, f"{whole}!")
        except (ServerException, CompactionError, KeyboardInterrupt):
            self._back_as_it_was(comment)
            raise
        try:
            yield from self._finish_turning(f"{whole}!", self._tail, kept)
        except NotEmptied:
            self._back_as_it_was(comment)
            raise
        away = time.monotonic() - away
        self._drop(self._tail)
        _, size_now, _ = self._look(self._full_name)
        yield Progress(
            f"Dropped {many(total - kept.rows, 'row')} from {self._full_name}, {kept.rows:,} stay; {megabytes(size)}"
            f" before, {megabytes(size_now)} now; it was away for {away:.1f} s; {time.monotonic() - started:.1f} s",
            done=1,
        )

    def _refuse_later(self, source: str) -> None:
        ((later,),) = self._client.execute(f"SELECT count() FROM {source}", query_id=self._query_id())
        if later:
            raise CompactionError(
                f"{self._full_name} keeps its rows: its history lacks some, and has others of that age:"
                " ch_setup.py --history, then this again"
            )


def _delete(there: Client, history: str, before_ms: int, bound: int | None) -> Iterator[Progress]:
    """Delete a history's rows from before that moment, whose n is below `bound`, if given, and not the highest."""
    started = time.monotonic()
    ((newest, size),) = there.execute(f"SELECT max(n), {_size_of(history)} FROM {history}")
    where = f"ts < {moment(before_ms)} AND n < {newest if bound is None else min(newest, bound)}"
    count = f"SELECT count() FROM {history} WHERE {where}"
    ((rows,),) = there.execute(count)
    if not rows:
        yield Progress(f"{history} has no row from before {iso(before_ms)}", done=1)
        return
    yield Progress(f"Deleting {many(rows, 'row')} of {history}", done=0)
    whole = there.execute(f"SELECT _part FROM {history} GROUP BY _part HAVING count() = countIf({where})")
    for (part,) in whole:
        try:
            there.execute(f"ALTER TABLE {history} DROP PART '{part}'")
        except ServerException as error:
            if error.code != _NO_SUCH_PART:  # it was merged with others meanwhile
                raise
    if there.execute(count) != [(0,)]:
        _refuse_without_disk(there, history, where)
        there.execute(f"ALTER TABLE {history} DELETE WHERE {where} SETTINGS mutations_sync = 1")
    ((left, size_now),) = there.execute(f"SELECT count(), {_size_of(history)} FROM {history}")
    yield Progress(
        f"Deleted {many(rows, 'row')} of {history}, {left:,} stay; {megabytes(size)} before, {megabytes(size_now)} now;"
        f" {time.monotonic() - started:.1f} s",
        done=1,
    )


def _size_of(history: str, where: str = "") -> str:
    database, _, name = history.partition(".")
    return (
        f"(SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = '{database}' AND table = '{name}'"
        f" {where})"
    )


def _refuse_without_disk(there: Client, history: str, where: str) -> None:
    """Raise CompactionError where there is no room for what is rewritten of parts that have other rows as well."""
    parts = f"AND name IN (SELECT DISTINCT _part FROM {history} WHERE {where})"
    database, _, name = history.partition(".")
    ((needed, path),) = there.execute(
        f"SELECT {_size_of(history, parts)}, data_paths[1] FROM system.tables"
        f" WHERE database = '{database}' AND name = '{name}'"
    )
    free = free_disk(there, path)
    if free < needed + SPARE_DISK:
        raise CompactionError(
            f"{history} keeps rows from before that: to delete them needs {megabytes(needed + SPARE_DISK)} of free"
            f" disk, and there are {megabytes(free)}"
        )

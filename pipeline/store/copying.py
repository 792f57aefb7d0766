"""Copies into a history what it lacks of its table, while collectors run: python3 ch_setup.py --history.

In: a table, and the beginnings of its history (pipeline.store.history) that say between which rows something is
missing. Out: the missing rows in the history, in their order, told from those that are there by what is in them; where
it was not known, `received` and `event` are the row's own time. Promise: no row is copied that is there already, also
where this was killed and is run again, or runs twice at once; a beginning is noted as whole only once the rows on both
sides are counted and hashed alike. Where the history has more of them, since the table has lost some or somebody else
wrote, that is said, and it is only where it is to keep them. Where the table was turned over amid a gap, its rows are
there besides those that are in the history only, so that there each is only looked for. Memory is bounded by a chunk of
rows.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby, islice, zip_longest
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, connect
from pipeline.store.compact import CompactionError, Progress, read_comment, read_table
from pipeline.store.history import (
    Beginning,
    beginnings,
    connect_history,
    history_of,
    is_there,
    kept_days,
    look_at_seam,
    partition_of,
    record,
    token_of,
    what_is_wrong,
)
from pipeline.store.schema import parse_comment

_LONG = 3600.0  # seconds without a word from the server, while it counts or looks for rows
_CHUNK = 10_000  # rows; their times have to fit into a query of 256 KB
_REMEMBERED = 20 * _CHUNK  # of rows that are equal in all, which was found for another one, or put there, already
HASH = "count(), sum(cityHash64(toUnixTimestamp64Milli(ts), toString(mt), m))"
_HOUR_MS = 3_600_000
_NAMED = 20  # rows, at most, that a line names
_ONE_BY_ONE = ALL_ROWS | {"max_threads": 1}  # with more, rows come in any order

Row = tuple[int, str, str]


class HistoryDiffers(CompactionError):
    """A history has all rows of its table, and others among them; or those that it has cannot be told."""


def copy(settings: Settings, name: str, *, keep_others: bool = False) -> Iterator[Progress]:
    """Copy what the history of the table `name` lacks; yields before each step and amid them.

    Rows that the history has among those of the table, and the table has not, are an error unless it is to keep them.
    Raises HistoryDiffers for that, other CompactionErrors, and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    database = settings.clickhouse_database
    with _connected(settings) as (client, there):
        if not is_there(there, database, name):
            raise CompactionError(f"Table {database}.{history_of(name)} does not exist: run ch_setup.py with HISTORY=1")
        if wrong := what_is_wrong(there, database, name):
            raise CompactionError(wrong)
        comment = read_comment(client, database, name)
        if comment is None:
            raise CompactionError(f"Table {database}.{name} does not exist: run ch_setup.py")
        token, _ = parse_comment(comment)
        found = beginnings(there, database, name, token)
        if not found:
            place = f"{database}.{history_of(name)}"
            count = "SELECT count() FROM {}"
            if read_table(client, database, name, lambda table: client.execute(count.format(table))) != [(0,)]:
                raise CompactionError(
                    f"{place} has not begun, so that no row of {database}.{name} was copied: let its collector run with"
                    " HISTORY=1, then run this again"
                )
            yield Progress(f"{place} has not begun, and {database}.{name} has no row that it lacks", done=1)
            return
        for gap, beyond in zip_longest(found, found[1:]):
            if not gap.is_whole:
                yield from _Copy(settings, name, client, there, comment, gap, beyond).run(keep_others=keep_others)
        if all(each.is_whole for each in found):
            yield Progress(f"{database}.{history_of(name)} lacks nothing of {database}.{name}", done=1)


def look_for(settings: Settings, name: str, rows: Beginning) -> Iterator[Progress]:
    """See that the history of the table `name` has each of its rows after number `rows.first`, up to `rows.rows`.

    That is between `rows.after` and `rows.n`; others may be among them. What is missing is copied. Yields and raises as
    `copy` does, also where no row after them tells whether the table has lost some of them since that was noted.
    """
    database = settings.clickhouse_database
    with _connected(settings) as (client, there):
        comment = read_comment(client, database, name) or ""
        yield from _Copy(settings, name, client, there, comment, rows, None).run(keep_others=True, by_what_follows=True)


@contextmanager
def _connected(settings: Settings) -> Iterator[tuple[Client, Client]]:
    with (
        connect(settings, timeout=_LONG, query_settings=_ONE_BY_ONE) as client,
        connect_history(settings, timeout=_LONG, query_settings=ALL_ROWS | {"async_insert": 0}) as there,
    ):
        yield client, there


class _Copy:
    """The copying into one gap."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        client: Client,
        there: Client,
        comment: str,
        gap: Beginning,
        beyond: Beginning | None,
    ) -> None:
        """`comment` is the table's, by which its rows are counted; `beyond` is the next beginning, if there is one."""
        self._settings, self._client, self._there = settings, client, there
        self._comment = comment
        token, before = parse_comment(comment)
        self._place = settings.clickhouse_database, name
        self._own_token = token_of(there, *self._place)
        self._name = f"{settings.clickhouse_database}.{name}"
        self._history = f"{settings.clickhouse_database}.{history_of(name)}"
        self._token, self._before, self._gap, self._beyond = token, before, gap, beyond
        self._offset = max(gap.first, before) - before
        self._count = max(0, gap.rows - before - self._offset)
        days = kept_days(there, *self._place)
        self._oldest_ms = int((time.time() - days * 86_400) * 1000) if days else 0
        self._in_gap = f"n > {gap.after} AND n < {gap.n}"
        self._mutations = 0  # how often rows of the history were deleted
        query = "SELECT count() FROM system.mutations WHERE database = %(database)s AND table = %(name)s"
        with suppress(ServerException):  # who may not look there, or has an engine without it: then it is not known
            ((self._mutations,),) = there.execute(query, {"database": self._place[0], "name": history_of(name)})

    def run(self, *, keep_others: bool, by_what_follows: bool = False) -> Iterator[Progress]:
        started = time.monotonic()
        yield Progress(f"Copying {many(self._count, 'row')} of {self._name} into {self._history}", done=0)
        if read_table(self._client, *self._place, self._total) != self._count:
            raise CompactionError(f"{self._name} has not got all these rows yet: try again when its collector has run")
        self._refuse_if_outdated(needs_some=by_what_follows)
        copied = 0
        checked = f"checked {many(self._count, 'row')}"
        for reading in range(2):
            text = "Comparing" if reading else "Copying"
            inserted = 0
            for rows, at in self._fill():
                inserted += rows
                yield Progress(f"{text} {self._name}", done=min(0.99, max(0.01, at / max(1, self._count))))
            copied += inserted
            yield Progress(f"Checking {self._history}", done=0.99)
            ours, theirs = self._ask_both(HASH)
            if ours == theirs:
                break
        else:
            if inserted:
                raise CompactionError(f"{self._history} differs from {self._name}: run it again")
            checked = f"found each of {many(self._count, 'row')} there"
            more = theirs[0][0] - ours[0][0]
            if self._before <= self._gap.first:
                if more <= 0 or not keep_others:
                    raise HistoryDiffers(self._how_they_differ(ours[0][0], theirs[0][0]))
                checked += f", with {many(more, 'row')} more"
        record(self._there, *self._place, self._token, self._gap._replace(first=self._gap.rows), self._own_token)
        yield Progress(
            f"Copied {many(copied, 'row')} of {self._name} into {self._history}, and {checked};"
            f" {time.monotonic() - started:.1f} s",
            done=1,
        )

    def _total(self, source: str) -> int:
        ((count,),) = self._client.execute(f"SELECT count() FROM {self._of(source, 'ts')}")
        return int(count)

    def _refuse_if_outdated(self, *, needs_some: bool) -> None:
        """Raise CompactionError unless the rows after the gap are the same in both, as far as there are some.

        Else what seems to be in the gap may be in the history already, or come there by itself.
        """
        if self._gap.rows < self._before:  # they are in the history only
            return
        seam = look_at_seam(self._there, *self._place, self._rows_after, self._gap, self._beyond)
        self._refuse_if_rewritten()
        if needs_some > seam.is_seen or not seam.is_closed:
            raise CompactionError(
                f"{self._name} and {self._history} do not go on alike yet: try again when its collector has run"
            )

    def _rows_after(self, number: int) -> Iterator[Row]:
        select = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM {} LIMIT 1000 OFFSET {}"

        def read(table: str) -> list[Row]:
            return list(self._client.execute(select.format(table, number - self._before)))

        yield from read_table(self._client, *self._place, read) or []

    def _of(self, source: str, columns: str) -> str:
        return f"(SELECT {columns} FROM {source} LIMIT {self._count} OFFSET {self._offset})"

    def _ask_both(self, columns: str, clauses: str = "") -> tuple[list[Any], list[Any]]:
        """Ask the same of the rows of the table and of the history; of those of the table, n is 0."""
        where = f"toUnixTimestamp64Milli(ts) >= {self._oldest_ms} {clauses}"
        ours = read_table(
            self._client,
            *self._place,
            lambda table: self._client.execute(
                f"SELECT {columns} FROM {self._of(table, 'ts, mt, m, 0 AS n')} WHERE {where}"
            ),
        )
        self._refuse_if_rewritten()
        return ours or [], self._there.execute(
            f"SELECT {columns} FROM {self._history} WHERE {self._in_gap} AND {where}"
        )

    def _how_they_differ(self, ours: int, theirs: int) -> str:
        """Return a line on a history that has so many rows where the table has so many, with what to do."""
        counts = f"{self._history} has {many(theirs, 'row')} where {self._name} has {ours:,}"
        others = self._others() if ours < theirs else []
        if others and len(others) == theirs - ours:
            listed = ", ".join(f"({n}, {hashed})" for n, hashed in others)  # rows of the table may have the same n
            rows, aim = f"(n, cityHash64(m)) IN ({listed})", "to delete them"
        else:
            rows, aim = self._in_gap, f"to have those of {self._name} only, without received, event and id"
        keep = "; to keep them: ch_setup.py --history --yes" if ours < theirs else ""
        why = f", since that has lost {many(theirs - ours, 'row')}, or somebody else wrote" if ours < theirs else ""
        return f"{counts}{why}: {aim}, ALTER TABLE {self._history} DELETE WHERE {rows}, then run this again{keep}"

    def _others(self) -> list[tuple[int, int]]:
        """Return the n of rows that only the history has, each with a hash of its m; nothing where they are many."""
        hour = f"intDiv(toUnixTimestamp64Milli(ts), {_HOUR_MS})"
        ours, theirs = map(set, self._ask_both(f"{hour} AS hour, {HASH}", "GROUP BY hour"))
        hours = sorted({row[0] for row in ours ^ theirs})
        if len(hours) > _NAMED:
            return []
        listed = ", ".join(map(str, hours))
        rows = "toUnixTimestamp64Milli(ts), toString(mt), m, cityHash64(m)"
        ours_of, theirs_of = self._ask_both(f"n, {rows}", f"AND {hour} IN ({listed}) ORDER BY n")
        left = Counter(row[1:] for row in ours_of)
        others = []
        for n, *row in theirs_of:
            if not left[tuple(row)]:
                others.append((n, row[-1]))
            left[tuple(row)] -= 1
        return others if len(others) <= _NAMED else []

    def _refuse_if_rewritten(self) -> None:
        """Raise CompactionError where the table was turned over, or old rows dropped: what is counted is another row.

        Whoever has begun to read it has those that there were.
        """
        with connect(self._settings) as client:
            if read_comment(client, *self._place) != self._comment:
                raise CompactionError(f"{self._name} was rewritten meanwhile: run it again")

    def _fill(self) -> Iterator[tuple[int, int]]:
        """Go through the table once; yield after each chunk how many of its rows went in, and how many are done."""
        ((left,),) = self._there.execute(f"SELECT count() FROM {self._history} WHERE {self._in_gap}")
        source = read_table(self._client, *self._place, lambda table: table)
        select = f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM {source}"
        query = f"{select} LIMIT {self._count} OFFSET {self._offset}"
        rows = iter(self._client.execute_iter(query))
        used: deque[int] = deque(maxlen=_REMEMBERED)
        last: int | None = None  # the n of the row before
        at = 0
        while chunk := [(ts, mt, m) for ts, mt, m in islice(rows, _CHUNK)]:
            if not at:
                self._refuse_if_rewritten()
            there = self._there_of(chunk, Counter(used)) if left else {}
            taken = {n for numbers in there.values() for n in numbers}
            missing: list[tuple[int, Row]] = []
            for row in chunk:
                if row[0] < self._oldest_ms:
                    continue
                if numbers := there.get(row):
                    last = numbers.popleft()
                    used.append(hash((last, row)))
                    left -= 1
                    continue
                if last is None:
                    last = self._n_before(chunk, there)
                elif last + 1 not in taken and last + 1 < self._gap.n:
                    last += 1
                missing.append((last, row))
                used.append(hash((last, row)))
            for _, month in groupby(missing, lambda each: partition_of(each[1][0])):
                self._insert(list(month))
            at += len(chunk)
            yield len(missing), at

    def _n_before(self, rows: list[Row], there: dict[Row, deque[int]]) -> int:
        """Return the n for the table's first `rows`, of which the history has none of those before any in `there`.

        Below all that are there, unless those are rows that the table had before it was turned over.
        """
        lowest = self._gap.after + 1
        if self._before <= self._gap.first:
            return lowest
        following = ((there[row][0], at) for at, row in enumerate(rows) if there.get(row))
        n, at = next(following, (self._gap.n, self._count))
        return max(lowest, n - at)

    def _there_of(self, chunk: Iterable[Row], used: Counter[int]) -> dict[Row, deque[int]]:
        """Return the n of the history's rows at the times of the chunk's, by what is in them."""
        times = sorted({ts for ts, _, _ in chunk})
        found = self._there.execute(
            f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m, n FROM {self._history} WHERE {self._in_gap}"
            f" AND ts >= fromUnixTimestamp64Milli({times[0]}) AND ts <= fromUnixTimestamp64Milli({times[-1]})"
            f" AND toUnixTimestamp64Milli(ts) IN ({', '.join(map(str, times))}) ORDER BY n"
        )
        numbers: dict[Row, deque[int]] = defaultdict(deque)
        for ts, mt, m, n in found:
            row = (ts, mt, m)
            if used[hash((n, row))]:  # rows may share an n
                used[hash((n, row))] -= 1
            else:
                numbers[row].append(n)
        return numbers

    def _insert(self, rows: list[tuple[int, Any]]) -> None:
        # Who copies the same at the same time sends the same block, and ClickHouse takes it once; but again where rows
        # have been deleted since.
        token = f"copy {self._gap.rows} {self._gap.n} {rows[0][0]} {rows[-1][0]} {len(rows)} {self._mutations}"
        self._there.execute(
            f"INSERT INTO {self._history} (n, ts, received, event, mt, id, m) VALUES",
            [(n, ts, ts * 1000, ts, mt, 0, m) for n, (ts, mt, m) in rows],
            settings={"insert_deduplication_token": token},
        )

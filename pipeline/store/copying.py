"""Copies into a history what it lacks of its table, while collectors run: python3 ch_setup.py --history.

In: a table, and the beginnings of its history (pipeline.store.history) that say between which rows something is
missing. Out: the missing rows in the history, in their order, told from those that are there by what is in them; where
it was not known, `received` and `event` are the row's own time. Promise: no row is copied that is there already, also
where this was killed and is run again, or runs twice at once; a beginning is noted as whole only once the rows on both
sides are counted and hashed alike, or each was found. Memory is bounded by a chunk of rows.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any

from clickhouse_driver import Client

from config import Settings
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, connect
from pipeline.store.compact import CompactionError, Progress, read_table
from pipeline.store.history import (
    Beginning,
    beginnings,
    connect_history,
    history_of,
    is_there,
    kept_days,
    partition_of,
    record,
)
from pipeline.store.schema import comment_of, parse_comment

_LONG = 3600.0  # seconds without a word from the server, while it counts or looks for rows
_CHUNK = 10_000  # rows; their times have to fit into a query of 256 KB
_REMEMBERED = 20 * _CHUNK  # of rows that are equal in all, which was found for another one already
HASH = "count(), sum(cityHash64(toUnixTimestamp64Milli(ts), toString(mt), m))"
_ONE_BY_ONE = ALL_ROWS | {"max_threads": 1}  # with more, rows come in any order

Row = tuple[int, str, str]


def copy(settings: Settings, name: str) -> Iterator[Progress]:
    """Copy what the history of the table `name` lacks; yields before each step and amid them.

    Raises CompactionError, and pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    database = settings.clickhouse_database
    with (
        connect(settings, timeout=_LONG, query_settings=_ONE_BY_ONE) as client,
        connect_history(settings, timeout=_LONG, query_settings=ALL_ROWS | {"async_insert": 0}) as there,
    ):
        if not is_there(there, database, name):
            raise CompactionError(f"Table {database}.{history_of(name)} does not exist: run ch_setup.py with HISTORY=1")
        comments = read_table(client, database, name, lambda table: comment_of(client, *table.split(".")))
        if comments is None:
            raise CompactionError(f"Table {database}.{name} does not exist: run ch_setup.py")
        token, before = parse_comment(comments)
        found = beginnings(there, database, name, token)
        if not found:
            yield Progress(f"{database}.{history_of(name)} has not begun: its collector has to run for that", done=0)
            return
        gaps = [each for each in found if not each.is_whole]
        for gap in gaps:
            yield from _Copy(settings, name, client, there, token, before, gap).run()
        if not gaps:
            yield Progress(f"{database}.{history_of(name)} lacks nothing of {database}.{name}", done=1)


class _Copy:
    """The copying into one gap."""

    def __init__(
        self, settings: Settings, name: str, client: Client, there: Client, token: str, before: int, gap: Beginning
    ) -> None:
        self._client, self._there = client, there
        self._place = settings.clickhouse_database, name
        self._name = f"{settings.clickhouse_database}.{name}"
        self._history = f"{settings.clickhouse_database}.{history_of(name)}"
        self._token, self._before, self._gap = token, before, gap
        self._offset = max(gap.first, before) - before
        self._count = max(0, gap.rows - before - self._offset)
        days = kept_days(there, *self._place)
        self._oldest_ms = int((time.time() - days * 86_400) * 1000) if days else 0
        self._in_gap = f"n > {gap.after} AND n < {gap.n}"

    def run(self) -> Iterator[Progress]:
        started = time.monotonic()
        yield Progress(f"Copying {many(self._count, 'row')} of {self._name} into {self._history}", done=0)
        if read_table(self._client, *self._place, self._total) != self._count:
            raise CompactionError(f"{self._name} has not got all these rows yet: try again when its collector has run")
        copied = 0
        for reading in range(2):
            text = "Comparing" if reading else "Copying"
            inserted = 0
            for rows, at in self._fill():
                inserted += rows
                yield Progress(f"{text} {self._name}", done=min(0.99, max(0.01, at / max(1, self._count))))
            copied += inserted
            yield Progress(f"Checking {self._history}", done=0.99)
            if self._is_verified():
                break
        else:
            if inserted:
                raise CompactionError(f"{self._history} differs from {self._name}: run it again")
        record(self._there, *self._place, self._token, self._gap._replace(first=self._gap.rows))
        yield Progress(
            f"Copied {many(copied, 'row')} of {self._name} into {self._history}, and checked"
            f" {many(self._count, 'row')}; {time.monotonic() - started:.1f} s",
            done=1,
        )

    def _total(self, source: str) -> int:
        ((count,),) = self._client.execute(f"SELECT count() FROM {self._of(source, 'ts')}")
        return int(count)

    def _of(self, source: str, columns: str) -> str:
        return f"(SELECT {columns} FROM {source} LIMIT {self._count} OFFSET {self._offset})"

    def _is_verified(self) -> bool:
        where = f"toUnixTimestamp64Milli(ts) >= {self._oldest_ms}"
        ours = read_table(
            self._client,
            *self._place,
            lambda source: self._client.execute(f"SELECT {HASH} FROM {self._of(source, 'ts, mt, m')} WHERE {where}"),
        )
        return bool(ours == self._there.execute(f"SELECT {HASH} FROM {self._history} WHERE {self._in_gap} AND {where}"))

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
            there = self._there_of(chunk, set(used)) if left else {}
            taken = {n for numbers in there.values() for n in numbers}
            missing: list[tuple[int, Row]] = []
            for index, row in enumerate(chunk, at + self._offset + self._before):
                if row[0] < self._oldest_ms:
                    continue
                if numbers := there.get(row):
                    last = numbers.popleft()
                    used.append(last)
                    left -= 1
                    continue
                if last is None:
                    last = self._gap.n - (self._gap.rows - index)
                elif last + 1 not in taken and last + 1 < self._gap.n:
                    last += 1
                missing.append((last, row))
            for _, month in groupby(missing, lambda each: partition_of(each[1][0])):
                self._insert(list(month))
            at += len(chunk)
            yield len(missing), at

    def _there_of(self, chunk: Iterable[Row], used: set[int]) -> dict[Row, deque[int]]:
        """Return the n of the history's rows at the times of the chunk's, by what is in them."""
        times = sorted({ts for ts, _, _ in chunk})
        found = self._there.execute(
            f"SELECT toUnixTimestamp64Milli(ts), toString(mt), m, n FROM {self._history} WHERE {self._in_gap}"
            f" AND ts >= fromUnixTimestamp64Milli({times[0]}) AND ts <= fromUnixTimestamp64Milli({times[-1]})"
            f" AND toUnixTimestamp64Milli(ts) IN ({', '.join(map(str, times))}) ORDER BY n"
        )
        numbers: dict[Row, deque[int]] = defaultdict(deque)
        for ts, mt, m, n in found:
            if n not in used:
                numbers[ts, mt, m].append(n)
        return numbers

    def _insert(self, rows: list[tuple[int, Any]]) -> None:
        # Who copies the same at the same time sends the same block, and ClickHouse takes it once.
        token = f"copy {rows[0][0]} {rows[-1][0]} {len(rows)}"
        self._there.execute(
            f"INSERT INTO {self._history} (n, ts, received, event, mt, id, m) VALUES",
            [(n, ts, ts * 1000, ts, mt, 0, m) for n, (ts, mt, m) in rows],
            settings={"insert_deduplication_token": token},
        )

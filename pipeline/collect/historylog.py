"""A symbol's history, as rows are written to it: the second table that the journal feeds, with HISTORY=1.

In: rows `(seq, ts_ms, received_us, event_ms, mt, id, m)`, a block for an INSERT. Out: the same rows in ClickHouse, and
how many of those that wait are there already. Promise: an INSERT is stored as a whole or not at all, for it has rows of
one month; and each row is there once, for it has its seq, by which it is known wherever it stands. Where the history
and the symbol's StripeLog table do not go on together, that is noted before anything is sent (`Beginning`), so that
nobody takes the one for the other: where the history begins; where the journal no longer has what comes next; and where
the table has got rows, or lost some, that never came by here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import takewhile, zip_longest
from typing import Any, Protocol

from config import Settings
from pipeline.collect.errors import TableUnusable
from pipeline.collect.inserts import Inserts
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, CLICKHOUSE_ERRORS, explain
from pipeline.store.history import (
    Beginning,
    beginnings,
    history_of,
    kept_days,
    look_at_seam,
    partition_of,
    record,
    server_of,
    token_of,
    what_is_wrong,
)

_SELECT = (
    "SELECT n, toUnixTimestamp64Milli(ts), toUnixTimestamp64Micro(received), toUnixTimestamp64Milli(event),"
    " toString(mt), id, m"
)
_TARGETS = "n, ts, received, event, mt, id, m"
_CHUNK = 10_000  # rows of the journal in memory at a time, while they are compared


class Standing(Protocol):
    """Where a table stands: see pipeline.collect.journal.Standing."""

    @property
    def token(self) -> str | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def base(self) -> int: ...
    @property
    def base_seq(self) -> int: ...
    @property
    def last_seq(self) -> int: ...
    @property
    def next_seq(self) -> int: ...
    @property
    def is_known(self) -> bool: ...


class Position(Protocol):
    """See pipeline.collect.journal.Position."""

    token: str | None
    rows: int

    @property
    def has_gap(self) -> bool: ...
    @property
    def losses(self) -> int: ...
    @property
    def in_doubt(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def stand(self) -> Standing: ...
    def count(self, first: int, last: int) -> int: ...
    def seq_of(self, number: int) -> int: ...
    def pending(self, limit: int, after: int = 0) -> list[Any]: ...
    def held(self, limit: int = ...) -> list[Any]: ...
    def adopt_here(self, token: str, number: int) -> None: ...


class Readable(Protocol):
    """The StripeLog table: see pipeline.collect.table.Target."""

    @property
    def before(self) -> int: ...

    def rows(self, after: int) -> Iterator[Any]: ...


class HistoryLog:
    """The history of the table `name`; for use by one thread."""

    rows = None
    before = 0

    def __init__(
        self,
        settings: Settings,
        name: str,
        position: Position,
        live: Position,
        table: Readable,
        say: Callable[[str], None],
    ) -> None:
        """`position` is the history's, `live` that of the StripeLog `table`; `say` takes lines for the user."""
        self._settings = settings
        self._place = settings.clickhouse_database, name
        self._token = ""  # of the history that was asked last
        self._table = f"{settings.clickhouse_database}.{name}"
        self.name = f"{settings.clickhouse_database}.{history_of(name)}"
        self._position, self._live, self._stripelog = position, live, table
        self._say = say
        self.inserts = Inserts(server_of(settings), self.name)
        self._together: tuple[str | None, int] | None = (
            None  # what of the live position stays, as long as nothing happens
        )
        self._strangers = 0  # rows that were said to be of somebody else
        self._kept_to: int | None = None  # the last row that it still had when it was seen to have lost some
        self._there: set[int] = set()  # rows that wait, after one that the table does not hold, and that it does hold

    @property
    def has_parted(self) -> bool:
        """Whether the StripeLog table has got or lost rows that did not come by here, since that was looked at."""
        live = self._live.stand()
        return live.is_known and self._together != (live.token, live.rows - live.number)

    def at_once(self, rows: list[Any]) -> list[Any]:
        """Return the first ones of the rows, those of one month: an INSERT into several parts may be stored in part."""
        if not rows:
            return rows
        partition = partition_of(rows[0][1])
        return list(takewhile(lambda row: partition_of(row[1]) == partition, rows))

    def insert(self, rows: list[Any]) -> None:
        """Store `rows` as one block. Raises one of APPEND_ERRORS."""
        missing = [_as_stored(row) for row in rows if row[0] not in self._there]
        if missing:
            # By its token, ClickHouse knows a block that it has already: a replica may have it without telling so. It
            # knows it also where it has lost the rows, so those have another one then.
            token = f"{missing[0][0]} {missing[-1][0]} {len(missing)} {self._position.losses}"
            self.inserts.insert(_TARGETS, missing, {"insert_deduplication_token": token})

    def state(self) -> tuple[int, str]:
        """Return the position's rows and those that the history has besides, and its token.

        Raises one of APPEND_ERRORS; TableUnusable where it cannot be used, or cannot begin yet.
        """
        self.inserts.settle()
        client = self.inserts.client
        if wrong := what_is_wrong(client, *self._place):
            raise TableUnusable(wrong)
        token = self._token = token_of(client, *self._place)
        self._there.clear()
        if token != self._position.token or self._position.has_gap:
            self._begin(token)
        found = self._lost()
        if found:
            self._together = None  # the journal may no longer have them: that is seen when it is asked again
        else:
            found = self._found()
        if not found:  # else it is asked again, when that is noted
            self._look_at_the_seam()
        if self._position.in_doubt > max(found, 0) or self._strangers:
            # That these are there once they are sent again is looked at, too; likewise once ours come after somebody's.
            self._together = None
        return self._position.rows + found, token

    def close(self) -> None:
        """Close the connection."""
        self.inserts.client.disconnect()

    # Which rows it has

    def _found(self) -> int:
        """Return how many of the rows that wait, from the first on, are in the history."""
        found = strangers = asked = 0
        here = self._position.stand()
        first = here.last_seq + 1 if here.last_seq else here.next_seq
        while chunk := self._position.pending(_CHUNK, after=asked):
            asked += len(chunk)
            last = chunk[-1][0]
            query = f"{_SELECT} FROM {self.name} WHERE n >= {first} AND n <= {last}"
            rows = set(self.inserts.client.execute(query, settings=ALL_ROWS))
            if not rows:
                break
            ours = [seq for row in chunk if (seq := row[0]) and _as_stored(row) in rows]
            strangers += len(rows) - len(ours)
            at_once = (
                0
                if self._there
                else sum(1 for _ in takewhile(lambda both: both[0][0] == both[1], zip(chunk, ours, strict=False)))
            )
            found += at_once
            self._there.update(ours[at_once:])
            first = last + 1
        self._say_who_else_wrote(strangers)
        return found

    def _say_who_else_wrote(self, strangers: int) -> None:
        if strangers > self._strangers:
            self._say(
                f"WARNING: {self.name} holds {strangers:,} rows, from the last one that was stored on, more than the"
                " journal knows: it has forgotten them (a power loss, an older copy of it), or somebody else wrote"
            )
        self._strangers = strangers

    def _lost(self) -> int:
        """Return, below 0, how many of the rows that it was known to have are no longer there, from the last one on."""
        here = self._position.stand()
        if not here.last_seq:
            return 0
        query = f"SELECT max(n) FROM {self.name} WHERE n > {here.base_seq} AND n <= {here.last_seq}"
        ((last,),) = self.inserts.client.execute(query)
        if last == here.last_seq or self._was_dropped():
            return 0
        self._kept_to = max(last, here.base_seq)
        return -self._position.count(max(last, here.base_seq) + 1, here.last_seq)

    def _was_dropped(self) -> bool:
        """Whether the last row that it was known to have is older than what it keeps."""
        days = kept_days(self.inserts.client, *self._place)
        newest = self._position.held(1)
        return bool(days and newest and newest[0][2] / 1e6 < time.time() - days * 86_400)

    # How it goes together with the table

    def _begin(self, token: str) -> None:
        """Go on in a history that is another one, or without rows that the journal no longer has."""
        live = self._live.stand()
        if not live.is_known:
            raise TableUnusable(f"{self.name} begins once it is known what {self._table} holds")
        noted = beginnings(self.inserts.client, *self._place, live.token or "", self._token)
        was_made_anew = self._position.token not in (None, token)
        known = self._still_true(noted, live)
        rows, first, number = self._note_beginning(live, noted, known, was_made_anew=was_made_anew)
        self._position.adopt_here(token, number)
        if rows > first:
            self._say(
                f"{self.name} begins with the row after the first {rows:,} of {self._table}:"
                f" ch_setup.py --history copies {many(rows - first, 'row')} of those"
            )

    def _look_at_the_seam(self) -> None:
        """See whether the table and the history have the same rows since the last beginning; if not, note another."""
        live, here = self._live.stand(), self._position.stand()
        offset = live.rows - live.number
        if not live.is_known or self._together == (live.token, offset) or here.number < max(live.base, -offset):
            return  # or it is looked at again, once the history has come to where they may have parted
        token, client = live.token or "", self.inserts.client
        noted = beginnings(client, *self._place, token, self._token)
        if noted and noted[-1].n > here.next_seq:
            return  # likewise: it has lost rows, which come again
        known = self._still_true(noted, live)
        is_whole = False
        if known:
            query = f"SELECT count() FROM {self.name} WHERE n >= {known[-1].n} AND n < {here.next_seq}"
            ((fed,),) = client.execute(query)
            rows, n = offset + here.number, here.next_seq
            is_whole = known[-1].rows + fed == rows
            if is_whole and known[-1] != noted[-1]:
                record(client, *self._place, token, Beginning(rows, rows, n - 1, n), self._token)
        if not is_whole:
            rows, first, _ = self._note_beginning(live, noted, known, was_made_anew=False)
            if known and rows > first:
                self._say(
                    f"{self._table} and {self.name} do not have the same rows among the {many(rows - first, 'row')}"
                    f" until now: ch_setup.py --history sees to that"
                )
        self._together, self._kept_to = (live.token, offset), None

    def _still_true(self, known: list[Beginning], live: Standing) -> list[Beginning]:
        """Return those of the beginnings that are still true.

        None is before which the history was seen to have lost rows; nor one where the table has lost rows that the
        journal forgot, too, so that others stand in their place by now. As far back as all its rows are this journal's,
        that is told by their numbers; before that, by the rows themselves, for which the table is read.
        """
        kept_to = self._kept_to
        if kept_to is not None:
            known = [each for each in known if self._position.count(kept_to + 1, each.n - 1) <= 0]
        offset = live.rows - live.number
        return [
            each
            for each, beyond in zip_longest(known, known[1:])
            if (
                self._is_after(each.rows - offset, each.n)
                if each.rows >= live.base + offset
                else self._goes_on_alike(each, beyond)
            )
        ]

    def _is_after(self, number: int, n: int) -> bool:
        """Whether the rows after that number begin with `n`, as far as the journal knows."""
        seq = self._position.seq_of(number)
        return number <= 0 or (seq < n and self._position.count(seq + 1, n - 1) <= 0)

    def _goes_on_alike(self, begins: Beginning, beyond: Beginning | None) -> bool:
        """Whether the rows after a beginning are the same in both, where there are some."""
        if begins.rows < self._stripelog.before:  # each was found in the history before it went
            return True
        seam = look_at_seam(self.inserts.client, *self._place, self._rows_of_table, begins, beyond)
        return seam.is_closed or not seam.is_seen

    def _rows_of_table(self, after: int) -> Iterator[Any]:
        try:
            yield from self._stripelog.rows(after)
        except CLICKHOUSE_ERRORS as error:  # of another server, perhaps
            raise TableUnusable(explain(error, self._settings)) from None

    def _note_beginning(
        self, live: Standing, noted: list[Beginning], known: list[Beginning], *, was_made_anew: bool
    ) -> tuple[int, int, int]:
        """Note from where on the two go on together; of what was `noted` before, the `known` ones are still true.

        Returns how many rows the table has until there, how many of those are sure to be in the history, and the number
        of the last of them.
        """
        here = self._position.stand()
        client, token = self.inserts.client, live.token or ""
        number = max(here.number, live.base)
        following = self._position.pending(1, after=number - here.number)
        rows = live.rows - (live.number - number)
        n = following[0][0] if following else max(live.next_seq, here.next_seq)
        if rows < 0:  # the table was made after the rows that come next
            n = self._position.pending(1, after=number - here.number - rows)[0][0]
            rows = 0
        known = [each for each in known if each.rows <= rows and each.n < n]
        if known:
            first, after = known[-1].rows, known[-1].n - 1
        else:
            first, after = 0, min([n - rows - 1, *(each.after for each in noted)])  # above those, some were copied
            # Of those, the history may have some.
            if before := self._position.seq_of(number - rows):
                after = min(after, before)
            if was_made_anew or not before:  # it took rows before that was noticed; or its newest, so many at most
                newest = f"SELECT n FROM {self.name} WHERE n < {n} ORDER BY n DESC LIMIT {rows}"
                ((count, lowest),) = client.execute(f"SELECT count(), min(n) FROM ({newest})")
                after = min(after, lowest - 1 - (rows - count)) if count else after  # the others come below them
        record(client, *self._place, token, Beginning(first, rows, max(0, after), n), self._token)
        return rows, first, number


def _as_stored(row: Any) -> Any:
    """Return a row of the journal as the history has it: where a time is not known, the row's own stands for it."""
    seq, ts, received, event, mt, number, m = row
    return seq, ts, received or ts * 1000, event or ts, mt, number, m

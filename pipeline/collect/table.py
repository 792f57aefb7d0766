"""Rows from the journal into one table, each exactly once.

In: the rows that wait at a position of the journal. Out: the same rows, in the same order, in the table. Promise:
whatever happens to the connection, the server, the journal's disk or this process, no row is sent again that the table
holds, and none is skipped that it does not hold. This rests on being the table's only writer: what it has more than at
the known position are the rows after that, in order, so its own row count tells which. It is asked for whenever the
outcome of an INSERT can be in doubt: at the start, after a lost connection and after any failed INSERT. Where the count
cannot be explained by rows that were handed over, the rows themselves are compared, and what is not ours is said. A
table that has the journal's numbers of its rows need not have its count explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pipeline.collect.errors import TableMissing
from pipeline.human import many

_TAIL = 20  # rows by which a table's last one is told from others that are equal to it
_CHUNK = 10_000  # rows of the journal in memory at a time, while they are compared


class Position(Protocol):
    """Where a table stands, and the rows that wait for it: see pipeline.collect.journal.Position."""

    token: str | None
    rows: int
    is_open: bool

    @property
    def waiting(self) -> int: ...
    @property
    def in_doubt(self) -> int: ...
    @property
    def comparable(self) -> int: ...
    def pending(self, limit: int, after: int = 0) -> list[Any]: ...
    def held(self) -> list[Any]: ...
    def hand_over(self, count: int) -> bool: ...
    def open(self) -> None: ...
    def fence(self) -> None: ...
    def acknowledge(self, count: int) -> bool: ...
    def advance(self, count: int) -> None: ...
    def go_back(self, count: int) -> int: ...
    def adopt(self, token: str, rows: int, skip: int) -> None: ...


class Target(Protocol):
    """What rows go to: StripeLog in pipeline.collect.stripelog, HistoryLog in pipeline.collect.historylog.

    Its calls raise whatever keeps them from working.
    """

    name: str

    @property
    def before(self) -> int:
        """How many rows it had before it was turned over, or old ones dropped: they count, and are this journal's."""

    def state(self) -> tuple[int, str]:
        """Return the number of rows and the creation token, when nothing of ours is under way any more."""

    def at_once(self, rows: list[Any]) -> list[Any]:
        """Return the first ones of the rows, as many as one INSERT may have."""

    def insert(self, rows: list[Any]) -> None:
        """Store the rows, all or none; an exception leaves open which. TableMissing is none that has to be said."""

    @property
    def rows(self) -> Callable[[int], Iterator[Any]] | None:
        """What yields the rows but the first so many, in order, as they were handed to `insert`.

        None where it tells rows by their seq: then `state` counts those of this journal, from the position on.
        """


class Table:
    """The writing end of one table; for use by one thread."""

    def __init__(self, position: Position, target: Target, say: Callable[[str], None], max_rows: int) -> None:
        """`say` takes lines for the user; an INSERT has `max_rows` at most."""
        self._position = position
        self._target = target
        self._say = say
        self._max_rows = max_rows
        self._in_flight = 0  # rows of an INSERT whose outcome is not known
        self._is_new = True  # nothing was sent since the journal was opened

    @property
    def in_step(self) -> bool:
        """Whether it is known which rows the table holds, so that more can be sent."""
        return self._position.is_open

    def doubt(self) -> None:
        """Have the table asked for what it holds before anything more is sent."""
        self._position.fence()

    def append_pending(self) -> list[Any]:
        """Send what waits, in one INSERT; return the rows that are now known to be stored, and were not before.

        Raises what the target raises, and JournalFull; the rows then wait on, and it may be called again.
        """
        position = self._position
        was_there = not position.is_open
        if was_there:
            settled = self._get_in_step()
            position.open()
            self._is_new = False
            if settled:
                return settled
        rows = self._target.at_once(position.pending(self._max_rows))
        if not rows or not position.hand_over(len(rows)):
            return []
        self._in_flight = len(rows)
        try:
            self._target.insert(rows)
        except TableMissing as missing:  # reset or being rewritten; its state will tell
            position.fence()
            if was_there:  # just now: what is missing is what a view on it writes to, say
                raise (missing.__cause__ or missing) from None
            return []
        except BaseException:
            position.fence()
            raise
        if not position.acknowledge(len(rows)):
            return []
        self._in_flight = 0
        return rows

    def _get_in_step(self) -> list[Any]:
        """Find out which rows the table holds; return those of an INSERT of this process that it turned out to have."""
        position, name = self._position, self._target.name
        count, token = self._target.state()
        sent = position.in_doubt
        # The rows of one INSERT are stored together or not at all. (If the journal was damaged meanwhile, it has
        # forgotten that they were sent.)
        in_flight, self._in_flight = self._in_flight, 0
        is_one_insert = 0 < in_flight == sent
        possible = range(0, sent + 1, sent) if is_one_insert else range(sent + 1)
        known = position.rows if token == position.token else None
        if known is not None and count < known:
            self._say_what_was_lost(known - count, position.go_back(known - count))
            # By seq, rows that come after those that are lost may be there: it is asked which.
            return self._get_in_step() if self._target.rows is None else []
        if known is not None and (count - known in possible or self._target.rows is None):
            settled = position.pending(count - known) if is_one_insert else []
            position.advance(count - known)
            return settled
        comparable = position.comparable
        was = position.token
        ours, at_once = self._compare(known, comparable) if count > (known or 0) and comparable else (0, True)
        settled = position.pending(ours) if is_one_insert else []
        lost = self._lost_since_its_last(count) if known is None and was is not None and count and not ours else 0
        position.adopt(token, count, ours - lost)
        if known is None:
            if was is not None:
                go = f"{many(position.waiting, 'waiting row')} go{'es' * (position.waiting == 1)}"
                self._say(f"{name} was reset: it holds {many(count, 'row')}; {go} there")
            if lost:
                self._say_what_was_lost(lost, lost)
        elif self._is_new and at_once:
            self._say(
                f"WARNING: {name} holds {many(count, 'row')}, {count - known - ours:,} more than the journal knows: it"
                " has forgotten them (a power loss, an older copy of it), or somebody else wrote; going on after them."
                " A table must have one writer"
            )
        else:
            self._say(
                f"WARNING: somebody else wrote to {name}: it holds {many(count, 'row')}, at most {known + ours:,} are"
                " this collector's; going on after them. A table must have one writer"
            )
        return settled

    def _rows(self, after: int) -> Iterator[Any]:
        assert self._target.rows is not None
        return self._target.rows(after)

    def _say_what_was_lost(self, count: int, again: int) -> None:
        name = self._target.name
        if again == count:
            rows = "row: sending it" if count == 1 else f"{count:,} rows: sending them"
            self._say(f"{name} lost its last {rows} again")
        else:
            self._say(
                f"WARNING: {name} lost {many(count, 'row')}, and the first {count - again:,} of them are no longer in"
                " the journal; sending the others again"
            )

    def _lost_since_its_last(self, count: int) -> int:
        """Return how many rows a table must have lost that was made anew, and took rows before that was noticed.

        Those that were sent after the last one of its `count` rows went to it, too. Which one that is, the rows before
        it tell, for there are equal ones.
        """
        held = [tuple(row) for row in self._position.held()]
        newest = [tuple(row) for row in self._rows(max(0, count - _TAIL))][::-1]
        return next((n for n in range(len(held)) if held[n : n + len(newest)] == newest[: len(held) - n]), 0)

    def _compare(self, known: int | None, comparable: int) -> tuple[int, bool]:
        """Return how many of the first `comparable` waiting rows the table has been sent.

        They were sent in order. So after the `known` rows of a table these are the ones that it had before it was
        turned over, and as many of the next ones as are found there in order. In another table, or one of which nothing
        is known, they may begin with any row: those before it went elsewhere. The second value is whether they stand
        there at once, with none of somebody else's before or between.
        """
        found = 0 if known is None else min(max(0, self._target.before - known), comparable)
        at_once = True
        chunk: list[Any] = self._position.pending(min(_CHUNK, comparable - found), after=found)
        at = 0
        first = None if known is not None else {tuple(row): n for n, row in reversed(list(enumerate(chunk)))}
        for row in self._rows(known or 0):
            if first is not None:
                if (at := first.get(tuple(row), -1)) < 0:
                    continue
                first, found = None, at
            if at == len(chunk):
                chunk, at = self._position.pending(min(_CHUNK, comparable - found), after=found), 0
                if not chunk:
                    break
            if tuple(row) == tuple(chunk[at]):
                at += 1
                found += 1
            else:
                at_once = False
        return found, at_once

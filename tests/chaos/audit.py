"""What the exchange sent against what the table holds: pure functions, and the reader of the exchange's log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.messages import DEAL, parse_frame
from tests.stack import StoredRow


@dataclass(frozen=True)
class SentRow:
    """A row that the exchange sent, one to a frame; `size` is the frame's on the wire, in bytes."""

    row: StoredRow
    as_filled: StoredRow | None = None
    """The row that REST gives for it; None where it is no deal."""
    size: int = 0


@dataclass
class Connection:
    """What was sent on one of the exchange's connections. Its first `must` rows have to be stored."""

    rows: list[SentRow] = field(default_factory=list)
    must: int = 0
    read: int = 0
    """How many rows the journal had for sure before the power failed; 0 where it did not fail."""


@dataclass(frozen=True)
class Verdict:
    """Numbers of rows; the first three are what must never happen."""

    lost: int = 0
    doubled: int = 0
    misplaced: int = 0
    unread: int = 0
    """Sent on a connection that broke, or whose reader was killed, and not stored."""
    filled: int = 0
    """Deals that were missed and that REST gave."""
    unfilled: int = 0
    """Deals that were missed and are still missing."""
    refused: int = 0
    """Not stored, and the collector said so: its journal was full."""
    forgotten: int = 0
    """Not stored, and the journal had them, but not on the disk when the power failed."""

    @property
    def is_right(self) -> bool:
        """Whether each row is stored once and in order."""
        return not (self.lost or self.doubled or self.misplaced)


def compare(
    connections: Sequence[Connection], stored: Sequence[StoredRow], missed: Iterable[StoredRow] = (), refused: int = 0
) -> Verdict:
    """Return how `stored`, a table's rows in order, follows from what was sent on `connections`, in order.

    Of each connection a prefix has to be stored, `must` rows at least: what a reader that was killed had not read can
    only be the last. The deals in that rest, and `missed` ones that were sent to nobody, may come later, by REST. Up to
    `refused` rows may be left out anywhere.
    """
    fillable = Counter(missed)
    used: Counter[StoredRow] = Counter()
    at = unread = omitted = lost = forgotten = 0
    for connection in connections:
        rows, n = connection.rows, 0
        while at < len(stored):
            if n < len(rows) and stored[at] == rows[n].row:
                at, n = at + 1, n + 1
            elif used[stored[at]] < fillable[stored[at]]:
                used[stored[at]] += 1
                at += 1
            elif left_out := _distance(stored[at], rows[n : n + refused - omitted + 1]):
                n, omitted = n + left_out, omitted + left_out
            else:
                break
        lost += max(0, connection.must - n)
        if connection is not connections[-1]:  # which goes on
            forgotten += max(0, connection.read - n)
            unread += len(rows) - max(connection.read, n)
            fillable.update(sent.as_filled for sent in rows[n:] if sent.as_filled)
    if at < len(stored) or lost:
        return _difference(connections, stored, fillable)
    filled = used.total()
    unfilled = fillable.total() - filled
    return Verdict(unread=unread, filled=filled, unfilled=unfilled, refused=omitted, forgotten=forgotten)


def joined(former: Sequence[StoredRow], present: Sequence[StoredRow]) -> Iterator[tuple[list[StoredRow], int]]:
    """Yield what was stored in all, where `former` are the rows of a table that was reset and `present` the new one's.

    The new one may begin with some that the old one had, in the same order: where the collector did not know them to be
    stored. How many these are is the second value. Since there are equal rows, that may be taken in several ways; the
    one with the most such rows comes first.
    """
    begins = [at for at, row in enumerate(former) if present and row == present[0]]
    runs = {_common(former[at:], present) for at in begins}
    for again in sorted({0} | runs, reverse=True):
        yield [*former, *present[again:]], again


def end_of(rows: Sequence[StoredRow], tail: Sequence[StoredRow]) -> int:
    """Return after how many of `rows` one is where `tail` ends, or as much of its end as is found; 0 if nothing is."""
    for length in range(len(tail), 0, -1):
        for end in range(len(rows), length - 1, -1):
            if rows[end - 1] == tail[-1] and rows[end - length : end] == tail[-length:]:
                return end
    return 0


def _common(one: Sequence[StoredRow], other: Sequence[StoredRow]) -> int:
    """Return how many rows are the same at the beginning of both."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))


def _distance(row: StoredRow, rows: Sequence[SentRow]) -> int:
    """Return how many of `rows` come before `row`; 0 if it is not there."""
    return next((n for n, sent in enumerate(rows) if sent.row == row), 0)


def _difference(
    connections: Sequence[Connection], stored: Sequence[StoredRow], fillable: Counter[StoredRow]
) -> Verdict:
    """Return what is wrong, where something is, by the numbers of equal rows."""
    have = Counter(stored)
    sent = Counter(row.row for connection in connections for row in connection.rows)
    needed = Counter(row.row for connection in connections for row in connection.rows[: connection.must])
    lost, doubled = (needed - have).total(), (have - sent - fillable).total()
    return Verdict(lost, doubled, misplaced=0 if lost or doubled else 1)


def places(connections: Sequence[Connection], stored: Sequence[StoredRow]) -> list[str]:
    """Return a line for each of the first rows that are stored more or less often than they were sent, and where."""
    sent = [each.row for connection in connections for each in connection.rows]
    wrong = Counter(stored)
    wrong.subtract(Counter(sent))
    return [
        f"{row}: sent as {_where(row, sent)}, stored as {_where(row, stored)}"
        for row in dict.fromkeys([*stored, *sent])
        if wrong[row]
    ][:20]


def _where(row: StoredRow, rows: Sequence[StoredRow]) -> list[int]:
    return [at for at, each in enumerate(rows) if each == row]


class SentLog:
    """What the simulated exchange has sent so far, by its log."""

    def __init__(self, path: Path, symbol: str) -> None:
        """`path` is the log, of which the frames of `symbol` count."""
        self._file = path.open("rb")
        self._symbol = symbol
        self._begun = b""
        self.connections: dict[int, Connection] = {}
        """By number; in the order they were made."""
        self.missed: list[StoredRow] = []
        """Deals that no connection was there for, as REST gives them."""

    def read(self) -> None:
        """Take in what has been added."""
        *lines, self._begun = (self._begun + self._file.read()).split(b"\n")
        for line in lines:
            entry = json.loads(line)
            if entry["symbol"] != self._symbol:
                continue
            frame = entry["frame"]
            (row,) = parse_frame(frame, self._symbol, 0).rows
            as_filled = (json.loads(frame)["data"]["t"], row.mt, row.m) if row.mt == DEAL else None
            if entry["conn"]:
                connection = self.connections.setdefault(entry["conn"], Connection())
                connection.rows.append(SentRow((row.ts_ms, row.mt, row.m), as_filled, _size_on_the_wire(frame)))
            elif as_filled:
                self.missed.append(as_filled)

    def close(self) -> None:
        self._file.close()


def _size_on_the_wire(frame: str) -> int:
    payload = len(frame.encode())
    return payload + (2 if payload < 126 else 4 if payload < 65536 else 10)


def must_have_read(rows: Sequence[SentRow], unread_bytes: int) -> int:
    """Return how many of the `rows` sent to it a reader has journaled for sure, who left so many bytes unread.

    One frame may have been in the exchange's hand, logged and not yet sent, and one in the reader's, read and not yet
    journaled.
    """
    count = len(rows)
    while count and unread_bytes > 0:
        count -= 1
        unread_bytes -= rows[count].size
    return max(0, count - 2)

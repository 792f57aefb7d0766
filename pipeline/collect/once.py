"""What has come already: each deal is journaled once, whichever way and however often it comes.

In: rows of frames, and deals that REST lists. Out: those that are new, in the journal. Promise: a deal that the feed
brings after REST gave it, or twice, is dropped and counted; of two connections, each deal, book and ticker is taken
from whichever brings it first. They are told apart by the exchange's own numbers and times.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from decimal import Decimal

from pipeline.collect.journal import Journal
from pipeline.messages import DEAL, DEPTH, TICKER, Row

_REMEMBERED = 5_000  # of what came, the newest; at BTC's rate some minutes
_PUSHED_MS = 5_000  # milliseconds from a deal to the frame that brings it, at most
_COMPARED = 20_000  # deals of the journal that a list is compared with


class Once:
    """The rows of one symbol, by whichever thread."""

    def __init__(self, journal: Journal, connections: int = 1) -> None:
        """Begin with the deals that `journal` has. Of one connection, all books and tickers are new."""
        self._journal = journal
        self._has_several = connections > 1
        self._lock = threading.Lock()
        self._came: OrderedDict[Hashable, int] = OrderedDict()  # -> the connection that brought it
        self._filled: Counter[Hashable] = Counter()  # deals that REST gave, until the feed brings them
        for event, m, number, _ in journal.newest_deals(_REMEMBERED):
            self._remember((number, event, m), -1)

    def keep(self, rows: Sequence[Row], received_us: int, connection: int = 0, *, in_front: bool = True) -> int:
        """Journal the rows of a frame that are new; return how many are not. Raises JournalFull.

        What has no number and no time of its own is taken from the connection that is `in_front` only.
        """
        with self._lock:
            new: list[Row] = []
            keys: list[Hashable] = []
            for row in rows:
                key = _key(row) if row.mt == DEAL or self._has_several else None
                if self._is_new(row, key, connection, in_front) and not (row.mt == DEAL and key and key in keys):
                    new.append(row)
                    keys.append(key)
            if new:
                self._journal.append(new, received_us)
                for key in keys:
                    if key:
                        self._remember(key, connection)
            return len(rows) - len(new)

    def fill(self, deals: Sequence[Row], received_us: int) -> int:
        """Journal those of `deals`, as REST lists them, that are not there; return how many. Raises JournalFull.

        Which are there is told by how often each is in the list and among the rows; by their ids where they have any.
        """
        with self._lock:
            begin = min((deal.event_ms for deal in deals), default=0)
            kept = [deal for deal in self._journal.newest_deals(_COMPARED) if (deal[0] or deal[3]) >= begin]
            ids = {number for _, _, number, _ in kept if number}
            there = Counter(_likeness(event, m) for event, m, _, _ in kept if event)
            undated = [(_likeness(0, m), ts) for event, m, _, ts in kept if not event]
            missed: dict[Hashable, Row] = {}
            for n, deal in enumerate(deals):
                likeness = _likeness(deal.event_ms, deal.m)
                if deal.id in ids or (not deal.id and there[likeness]):
                    there[likeness] -= 1
                elif not _take(undated, deal):
                    missed[deal.id or -n - 1] = deal
            if missed:
                self._journal.append(list(missed.values()), received_us)
                self._filled.update(_likeness(deal.event_ms, deal.m) for deal in missed.values())
            return len(missed)

    def _is_new(self, row: Row, key: Hashable, connection: int, in_front: bool) -> bool:
        if not key and not in_front:
            return False
        if key and (first := self._came.get(key)) is not None:
            return row.mt != DEAL and first == connection
        if row.mt == DEAL and self._filled and self._filled[likeness := _likeness(row.event_ms, row.m)]:
            self._filled[likeness] -= 1
            if key:
                self._remember(key, connection)  # it comes from another connection, too
            return False
        return True

    def _remember(self, key: Hashable, connection: int) -> None:
        self._came[key] = connection
        if len(self._came) > _REMEMBERED:
            self._came.popitem(last=False)


def _key(row: Row) -> Hashable:
    """Return what tells a row from all others; None where nothing does."""
    if row.mt == DEAL:
        return (row.id, row.event_ms, row.m) if row.id else None
    if row.mt == DEPTH:
        return (DEPTH, row.id) if row.id else None
    if row.mt == TICKER:
        return (row.event_ms, row.m) if row.event_ms else None
    return None


def _take(undated: list[tuple[Hashable, int]], deal: Row) -> bool:
    """Take out the deal that `deal` is, of those of which only the time of the frame is known; whether there is one."""
    likeness = _likeness(0, deal.m)
    for n, (other, ts_ms) in enumerate(undated):
        if other == likeness and ts_ms - _PUSHED_MS <= deal.event_ms <= ts_ms:
            del undated[n]
            return True
    return False


def _likeness(event_ms: int, m: str) -> Hashable:
    """Return what a deal has in common with the same one from elsewhere: its time, and its numbers however written."""
    return event_ms, *map(Decimal, m.split("|"))

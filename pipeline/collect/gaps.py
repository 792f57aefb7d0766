"""The time without market data between two connections: how long it was, and the deals that were made in it.

In: what the feed and the messages tell of connections and frames. Out: a line on each gap, and the missed deals, from
MEXC's REST interface. Promise: no deal is journaled twice; what cannot be filled is said, and that none is missing is
said only where MEXC's list goes back far enough, and up to the end. Times are the exchange's own, so a jump of the
local clock makes no gap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pipeline.collect.errors import JournalError, JournalFull
from pipeline.collect.journal import Journal
from pipeline.collect.once import Once
from pipeline.human import many
from pipeline.messages import Row, parse_deals
from pipeline.rest import Rest, RestError
from pipeline.times import iso

LISTED = 100
"""How many deals MEXC lists at most, the newest."""

_OVERLAP_MS = 1_000  # a deal is pushed a little later than it was made, and not in order with what is no deal
_UNNOTICED_MS = 2_000  # milliseconds between two frames that are no gap, while another connection is up
_TRIES = 3
_RETRY = 2.0  # seconds


class Gaps:
    """The gaps of one symbol's feed."""

    def __init__(self, rest: Rest, symbol: str, journal: Journal, once: Once, say: Callable[[str], None]) -> None:
        """`say` takes lines for the user."""
        self._rest = rest
        self._path = f"/api/v1/contract/deals/{symbol}"
        self._symbol = symbol
        self._journal = journal
        self._once = once
        self._say = say
        self._silent_since: int | None = None
        self._least_gap_ms = 0
        self._unfilled_since: int | None = None
        self._until: int | None = None
        self._filler: threading.Thread | None = None

    def connected(self, *, others_up: bool = False) -> None:
        """Note where the gap began: with the newest row there is, of this process or of one before it.

        Where other connections are up there may be none.
        """
        self._silent_since = self._journal.newest_time()
        self._least_gap_ms = _UNNOTICED_MS if others_up else 0
        if not (others_up and self._until is not None):  # else the others bring all from there on
            self.deals_stopped()

    def deals_stopped(self) -> None:
        """Note where a gap in the deals began, with the newest of them; they may have stopped before all else did."""
        self._until = None
        if self._unfilled_since is None and (deals := self._journal.newest_deals(LISTED)):
            # They are not in the order of their times, so one from before the newest may be missing. Which were kept
            # before the oldest is not known.
            times = [event_ms or ts_ms for event_ms, _, _, ts_ms in deals]
            self._unfilled_since = max(max(times) - _OVERLAP_MS, min(times))

    def data_came(self, ts_ms: int) -> None:
        """Say at the first market data how long the gap was, and later fill it; `ts_ms` is the data's time."""
        if self._silent_since is not None:
            since, self._silent_since = self._silent_since, None
            if ts_ms - since > self._least_gap_ms:
                gap = (ts_ms - since) / 1000
                self._say(f"{self._symbol}: no market data from {_clock(since)} to {_clock(ts_ms)} ({gap:.1f} s)")
        # However late the feed is read, this much data later most deals up to `_until` have come that it brings.
        if self._until is not None and ts_ms > self._until + _OVERLAP_MS and self.finish(timeout=0):
            self._filler = threading.Thread(target=self._fill, args=(self._unfilled_since, self._until), daemon=True)
            self._filler.start()
            self._unfilled_since = self._until = None

    def deals_confirmed(self, ts_ms: int) -> None:
        """Note where the gap in the deals ended; `ts_ms` is the time of the confirmation, from which on they come."""
        if self._unfilled_since is not None:
            self._until = ts_ms + _OVERLAP_MS

    def finish(self, timeout: float) -> bool:
        """Return whether nothing is being filled in, waiting for it at most `timeout` seconds."""
        if self._filler:
            self._filler.join(timeout)
        return not (self._filler and self._filler.is_alive())

    def _fill(self, since: int, until: int) -> None:
        filled = 0
        for tries_left in reversed(range(_TRIES)):
            try:
                listed = parse_deals(self._rest.get(self._path, limit=LISTED))
                filled += self._once.fill(
                    [deal for deal in listed if since <= deal.ts_ms <= until], time.time_ns() // 1000
                )
            except (RestError, JournalFull, JournalError, ValueError) as error:
                again = "; asking again" if tries_left else ""
                self._say(f"{self._symbol}: missed deals cannot be filled in: {error}{again}")
            else:
                reach = self._reach(listed, since, until)
                if reach != _BEHIND or not tries_left:
                    self._say(f"{self._symbol}: {many(filled, 'missed deal')} filled in; {reach}")
                    return
            if tries_left:
                time.sleep(_RETRY)

    def _reach(self, listed: Sequence[Row], since: int, until: int) -> str:
        """Return what can be said of the list: whether it covers all from `since` to `until`."""
        if not listed:
            return "MEXC lists none"
        newest = max((event_ms for event_ms, _, _, _ in self._journal.newest_deals(LISTED)), default=0)
        if listed[-1].ts_ms < min(newest, until):
            return _BEHIND
        if len(listed) < LISTED or listed[0].ts_ms < since:
            return "none is missing"
        return f"MEXC's list goes back only to {_clock(listed[0].ts_ms)}"


_BEHIND = "MEXC's list is behind what it has pushed"


def _clock(ts_ms: int) -> str:
    """Return a time of the exchange for people to read."""
    return f"{iso(ts_ms)[:19].replace('T', ' ')} UTC"

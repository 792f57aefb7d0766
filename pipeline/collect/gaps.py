"""The time without market data between two connections: how long it was, and the deals that were made in it.

In: what the feed and the messages tell of connections and frames. Out: a line on each gap, and the missed deals, from
MEXC's REST interface into the journal. Promise: no deal is journaled twice, by its trade id; what cannot be filled is
said. Times are the exchange's own, so a jump of the local clock makes no gap.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pipeline.collect.errors import JournalFull
from pipeline.collect.journal import Journal
from pipeline.messages import DEAL, DEPTH, TICKER, parse_rest_deals

_OVERLAP_MS = 1_000  # a deal is pushed a little later than it was made, and not in order with what is no deal
_TRIES = 3
_RETRY = 2.0  # seconds
_TIMEOUT = 5.0  # seconds


class Gaps:
    """The gaps of one symbol's feed."""

    def __init__(self, ws_url: str, symbol: str, journal: Journal, say: Callable[[str], None]) -> None:
        """REST is asked at the host of `ws_url`; `say` takes lines for the user."""
        address = urlsplit(ws_url)
        scheme = {"ws": "http", "wss": "https"}[address.scheme]
        self._url = f"{scheme}://{address.netloc}/api/v1/contract/deals/{symbol}?limit=100"
        self._symbol = symbol
        self._journal = journal
        self._say = say
        self._silent_since: int | None = None
        self._unfilled_since: int | None = None
        self._until: int | None = None
        self._filler: threading.Thread | None = None

    def connected(self) -> None:
        """Note where the gap began: with the newest row there is, of this process or of one before it."""
        self._until = None
        if times := self._journal.times(TICKER, DEAL, DEPTH):
            oldest, self._silent_since = times
            if self._unfilled_since is None:  # else the gap before this one is not filled yet
                self._unfilled_since = max(self._silent_since - _OVERLAP_MS, oldest)

    def data_came(self, ts_ms: int) -> None:
        """Say at the first market data how long the gap was, and later fill it; `ts_ms` is the data's time."""
        if self._silent_since is not None:
            since, self._silent_since = self._silent_since, None
            if ts_ms > since:
                gap = (ts_ms - since) / 1000
                self._say(f"{self._symbol}: no market data from {_clock(since)} to {_clock(ts_ms)} ({gap:.1f} s)")
        # However late the feed is read, this much data later all deals up to `_until` have come that it brings.
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
        for tries_left in reversed(range(_TRIES)):
            try:
                with urllib.request.urlopen(self._url, timeout=_TIMEOUT) as answer:
                    deals = parse_rest_deals(answer.read().decode())
                filled = self._journal.append_missed([deal for deal in deals if since <= deal.ts_ms <= until])
            except (OSError, ValueError, JournalFull) as error:
                if not tries_left:
                    self._say(f"{self._symbol}: missed deals cannot be filled in: {error}")
            else:
                whole = bool(deals) and deals[0].ts_ms <= since
                reach = f"MEXC's list goes back only to {_clock(deals[0].ts_ms)}" if deals else "MEXC lists none"
                self._say(f"{self._symbol}: {filled} missed deals filled in; {'none is missing' if whole else reach}")
                return
            time.sleep(_RETRY)


def _clock(ts_ms: int) -> str:
    """Return a time of the exchange for people to read."""
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"

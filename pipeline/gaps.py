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

from pipeline.journal import Journal, JournalFull
from pipeline.messages import DEAL, DEPTH, TICKER, parse_rest_deals

_SETTLE = 2.0  # seconds from the deals' confirmation until all that it did not cover can be asked for
_OVERLAP_MS = 1_000  # deals this long after the confirmation have all come by the feed after _SETTLE
_TRIES = 3
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
        self._since: int | None = None
        self._unsaid = False
        self._filler: threading.Thread | None = None

    def connected(self) -> None:
        """Note where the gap began: with the newest row there is, of this process or of one before it."""
        self._since = self._journal.newest_ts(TICKER, DEAL, DEPTH)
        self._unsaid = self._since is not None

    def data_came(self, ts_ms: int) -> None:
        """Say how long the gap was, at the first market data after it; `ts_ms` is its time."""
        if self._unsaid and self._since is not None:
            self._unsaid = False
            if ts_ms > self._since:
                gap = (ts_ms - self._since) / 1000
                self._say(f"{self._symbol}: no market data from {_clock(self._since)} to {_clock(ts_ms)} ({gap:.1f} s)")

    def deals_confirmed(self, ts_ms: int) -> None:
        """Begin to fill in the missed deals, now that new ones come; `ts_ms` is the time of the confirmation."""
        if self._since is not None and not (self._filler and self._filler.is_alive()):
            self._filler = threading.Thread(target=self._fill, args=(self._since, ts_ms + _OVERLAP_MS), daemon=True)
            self._filler.start()

    def finish(self, timeout: float) -> bool:
        """Return whether nothing is being filled in, waiting for it at most `timeout` seconds."""
        if self._filler:
            self._filler.join(timeout)
        return not (self._filler and self._filler.is_alive())

    def _fill(self, since: int, until: int) -> None:
        time.sleep(_SETTLE)
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
            time.sleep(_SETTLE)


def _clock(ts_ms: int) -> str:
    """Return a time of the exchange for people to read."""
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"

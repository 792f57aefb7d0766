"""What the simulated exchange answers to REST requests: MEXC's ``/api/v1/contract/...``, as far as it is simulated.

In: a path, its query, the markets, the clock. Out: JSON texts. As with MEXC, an error is one of them and not a status
of HTTP, no answer holds more than MEXC's own limits, and who asks too often is refused.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable

from local.market import CONTRACTS, KEPT_DEALS, Market

PREFIX = "/api/v1/contract/"
MAX_BARS = 2_000
REQUESTS = {"deals": 20, "kline": 20, "funding_rate": 20, "detail": 10}  # in WINDOW
WINDOW = 2.0  # seconds
_SETTLED = 8 * 3_600_000  # milliseconds between two funding times


def error(code: int, message: str) -> str:
    """Return what MEXC answers, with HTTP 200, to what it cannot do."""
    return json.dumps({"success": False, "code": code, "message": message}, separators=(",", ":"))


TOO_MANY = error(510, "Requests are too frequent, please try again later!")
UNKNOWN = error(1001, "Contract does not exist!")
UNUSABLE = error(600, "Parameter error!")


class Pace:
    """Who asks for one kind of thing too often is refused, until it has been quiet for long enough."""

    def __init__(self) -> None:
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)

    def allows(self, kind: str, now: float) -> bool:
        """Return whether a request may be answered; `now` is in seconds."""
        asked = self._asked[kind]
        while asked and asked[0] <= now - WINDOW:
            asked.popleft()
        if len(asked) >= REQUESTS[kind]:
            return False
        asked.append(now)
        return True


def kind_of(path: str) -> str | None:
    """Return what a path asks for, one of REQUESTS; None where it is not simulated."""
    kind = path.removeprefix(PREFIX).partition("/")[0] if path.startswith(PREFIX) else ""
    return kind if kind in REQUESTS else None


def answer(path: str, query: dict[str, str], market_of: Callable[[str], Market], now_ms: int) -> str:
    """Return the text for a path that has a kind; `market_of` knows all CONTRACTS."""
    kind, _, symbol = path.removeprefix(PREFIX).partition("/")
    if kind == "detail" and "symbol" not in query:
        return _success("[" + ",".join(map(_detail, CONTRACTS)) + "]")
    symbol = symbol or query.get("symbol", "")
    if symbol not in CONTRACTS:
        return UNKNOWN
    if kind == "detail":
        return _success(_detail(symbol))
    market = market_of(symbol)
    if kind == "deals":
        limit = query.get("limit", "")
        count = min(KEPT_DEALS, max(1, int(limit))) if limit.isdecimal() else KEPT_DEALS
        return _success("[" + ",".join([deal.text() for deal in reversed(market.deals)][:count]) + "]")
    if kind == "kline":
        start, end = query.get("start", "0"), query.get("end", str(now_ms // 1000))
        if query.get("interval", "Min1") != "Min1" or not (start.isdecimal() and end.isdecimal()):
            return UNUSABLE
        return _success(market.klines(int(start), int(end), MAX_BARS, now_ms))
    return _success(
        f'{{"symbol":"{symbol}","fundingRate":{market.funding_rate},"maxFundingRate":0.0018,"minFundingRate":-0.0018,'
        f'"collectCycle":8,"nextSettleTime":{now_ms // _SETTLED * _SETTLED + _SETTLED},"timestamp":{now_ms}}}'
    )


def _success(data: str) -> str:
    return f'{{"success":true,"code":0,"data":{data}}}'


def _detail(symbol: str) -> str:
    contract = CONTRACTS[symbol]
    unit = f"{10**-contract.decimals:.{contract.decimals}f}"
    return (
        f'{{"symbol":"{symbol}","contractSize":{contract.size},"priceUnit":{unit},"priceScale":{contract.decimals},'
        f'"volUnit":1,"volScale":0,"state":0}}'
    )

"""Raw frames in, rows out.

In: one WebSocket frame as MEXC sent it, text or bytes, of whatever content. Out: the rows to store, zero or more,
each `(ts_ms, mt, m)`. Pure functions; the clock is a parameter. Promise: nothing that arrives raises out of
`parse_frame`; what cannot be understood comes out as a dead letter, and every number keeps exactly the value, and as
far as plain notation allows the digits, that MEXC sent.

========  =============================================================  ======
mt        m                                                              source
========  =============================================================  ======
t         ``lastPrice|fairPrice|indexPrice|holdVol|fundingRate``         push.ticker
d         ``price|volume|direction`` (1 = buy, 2 = sell)                 push.deal
dp        ``bids|asks``, each ``[price,amount],[price,amount]...``       push.depth.full
dl        the frame's first 500 characters                               anything else
========  =============================================================  ======
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

TICKER, DEAL, DEPTH, DEADLETTER = "t", "d", "dp", "dl"
TYPE_NAMES = {TICKER: "tickers", DEAL: "deals", DEPTH: "depth", DEADLETTER: "dead-letters"}
"""The names that people use for the message types."""

DEADLETTER_CHARACTERS = 500
DEPTH_LEVELS = 20

_LAST_TS = 10_413_791_999_999  # 2299-12-31 23:59:59.999, the last moment that DateTime64(3) can hold
_MAX_EXPONENT = 400  # beyond any float; keeps 1E+999999999 from becoming a gigabyte of zeros


class Row(NamedTuple):
    """One row of a table: milliseconds since the epoch (UTC), the message type, the text.

    What follows is not stored there: the exchange's own number of it, a deal's `i` or a book's `version`, and its own
    time of it, a deal's `t` or a book's `cts`. 0 is none.
    """

    ts_ms: int
    mt: str
    m: str
    id: int = 0
    event_ms: int = 0


class Message(NamedTuple):
    """What one frame held.

    `channel` is as sent (``push.deal``, ``rs.sub.deal``, ``pong``, ...) and empty if there is none. `ts_ms` is the
    frame's time. `text` is the `data` of a frame whose data is a string: an acknowledgement's ``success`` or an error's
    description.
    """

    channel: str
    ts_ms: int
    rows: list[Row]
    text: str = ""

    @property
    def is_market_data(self) -> bool:
        """Whether this is a push that was subscribed to, and understood at least in part."""
        return self.channel in _FORMATTERS and not (self.rows and self.rows[0].mt == DEADLETTER)


class Number(str):
    """The text of a JSON number, so that its digits survive parsing and no string is taken for a number."""

    __slots__ = ()


class _Unusable(ValueError):
    """A field is missing or is not what the row needs."""


def parse_frame(raw: str | bytes, symbol: str, now_ms: int) -> Message:
    """Return the message in `raw`, a frame received by the collector of `symbol` (such as ``BTC_USDT``).

    `raw` is bytes where the frame was binary or no UTF-8: MEXC sends neither, so that is a dead letter.
    All rows have the frame's own `ts`, or `now_ms` where that is missing or unusable. Never raises.
    """
    if isinstance(raw, bytes):
        return Message("", now_ms, [_dead_letter(raw.decode("utf-8", "backslashreplace"), now_ms)])
    try:
        frame = _decode(raw)
        channel = frame.get("channel")
    except (ValueError, RecursionError, AttributeError):  # not JSON, bottomless JSON, JSON that is no object
        return Message("", now_ms, [_dead_letter(raw, now_ms)])
    if not isinstance(channel, str) or isinstance(channel, Number):
        channel = ""
    ts_ms = _timestamp(frame.get("ts"), now_ms)
    data = frame.get("data")
    if channel == "pong" or channel.startswith("rs.sub."):
        return Message(channel, ts_ms, [], data if isinstance(data, str) else "")
    formatter = _FORMATTERS.get(channel)
    if formatter is None or frame.get("symbol") != symbol:
        return Message(channel, ts_ms, [_dead_letter(raw, ts_ms)], data if isinstance(data, str) else "")
    try:
        rows, complete = formatter(data, ts_ms)
    except _Unusable:
        rows, complete = [], False
    if not complete:
        rows.append(_dead_letter(raw, ts_ms))
    return Message(channel, ts_ms, rows)


def parse_rest_deals(text: str) -> list[Row]:
    """Return the deals in an answer of REST's ``/api/v1/contract/deals``, oldest first, each with its own time.

    Deals without time or id are left out. Raises a ValueError that says why if the answer holds no list of deals.
    """
    try:
        answer = _object(_decode(text))
    except (ValueError, RecursionError):
        raise ValueError(f"the answer is no JSON object: {text[:80]}") from None
    deals = answer.get("data")
    if not isinstance(deals, list):
        raise ValueError(f"the answer holds no deals: {text[:80]}")  # noqa: TRY004 (the type of an answer's value)
    rows = []
    for deal in deals:
        try:
            row = _deal(deal, _timestamp(_object(deal).get("t"), 0))
        except _Unusable:
            continue
        if row.ts_ms and row.id:
            rows.append(row)
    return sorted(rows, key=lambda row: (row.ts_ms, row.id))


def format_ticker_data(data: Any, ts_ms: int) -> tuple[list[Row], bool]:
    """Return the row of a push.ticker's `data`, and True. Raises a ValueError where a field cannot be used."""
    fields = _object(data)
    text = "|".join(
        (
            _plain(fields.get("lastPrice")),
            _plain(fields.get("fairPrice")),
            _plain(fields.get("indexPrice")),
            _integer(fields.get("holdVol")),
            format(_decimal(fields.get("fundingRate")), ".8f"),
        )
    )
    return [Row(ts_ms, TICKER, text)], True


def format_deal_data(data: Any, ts_ms: int) -> tuple[list[Row], bool]:
    """Return the rows of a push.deal's `data`, one deal or a list of them, oldest first.

    The second value is False if some deal could not be used; the others are there all the same. Raises a ValueError
    where `data` is neither.
    """
    if isinstance(data, dict):
        return [_deal(data, ts_ms)], True
    if not isinstance(data, list):
        raise _Unusable
    deals = []
    for deal in data:
        try:
            row = _deal(deal, ts_ms)
        except _Unusable:
            continue
        deals.append((_timestamp(deal.get("t"), ts_ms), row.id, row))
    deals.sort(key=lambda deal: deal[:2])  # MEXC sends the newest first; deals that tie stay as sent
    return [row for _, _, row in deals], len(deals) == len(data)


def format_depth_data(data: Any, ts_ms: int) -> tuple[list[Row], bool]:
    """Return the row of a push.depth.full's `data`, and True. Raises a ValueError where a side cannot be used."""
    book = _object(data)
    return [Row(ts_ms, DEPTH, f"{_side(book.get('bids'))}|{_side(book.get('asks'))}")], True


_FORMATTERS: dict[str, Callable[[Any, int], tuple[list[Row], bool]]] = {
    "push.ticker": format_ticker_data,
    "push.deal": format_deal_data,
    "push.depth.full": format_depth_data,
}


def _no_constant(name: str) -> Any:
    raise _Unusable(name)  # NaN and Infinity are Python's idea of JSON, not MEXC's


_decode = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_no_constant).decode


def _dead_letter(text: str, ts_ms: int) -> Row:
    kept = text[:DEADLETTER_CHARACTERS]
    return Row(ts_ms, DEADLETTER, kept.encode("utf-8", "backslashreplace").decode())


def _timestamp(value: Any, otherwise: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,14}", value) and 0 < (ts_ms := int(value)) <= _LAST_TS:
        return ts_ms
    return otherwise


def _trade_id(value: Any) -> int:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else 0


def _deal(deal: Any, ts_ms: int) -> Row:
    fields = _object(deal)
    direction = _integer(fields.get("T"))
    if direction not in ("1", "2"):
        raise _Unusable
    text = f"{_plain(fields.get('p'))}|{_plain(fields.get('v'))}|{direction}"
    return Row(ts_ms, DEAL, text, _trade_id(fields.get("i")))


def _side(levels: Any) -> str:
    if not isinstance(levels, list):
        raise _Unusable
    try:
        # Forty levels a frame: no function of its own for a level, and no f-string, which is slow to take a Number.
        return ",".join(["[" + _plain(level[0]) + "," + _plain(level[1]) + "]" for level in levels[:DEPTH_LEVELS]])
    except (TypeError, LookupError):  # a level is no list, or too short
        raise _Unusable from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unusable
    return value


def _plain(value: Any) -> str:
    """Return a number in plain decimal notation, every digit kept: 2384.60 -> 2384.60, 7.548E+4 -> 75480."""
    if type(value) is not Number:
        raise _Unusable
    if "e" in value or "E" in value:
        return format(_decimal(value), "f")
    return value


def _integer(value: Any) -> str:
    number = _decimal(value)
    if number != number.to_integral_value():
        raise _Unusable
    return format(number.to_integral_value(), "f")


def _decimal(value: Any) -> Decimal:
    if type(value) is not Number:
        raise _Unusable
    try:
        number = Decimal(value)
    except ArithmeticError:  # an exponent beyond what even Decimal holds
        raise _Unusable from None
    if not -_MAX_EXPONENT <= number.adjusted() <= _MAX_EXPONENT:
        raise _Unusable
    return number

"""Raw frames in, rows out; and back.

In: one WebSocket frame as MEXC sent it, text or bytes, of whatever content. Out: the rows to store, zero or more,
each `(ts_ms, mt, m, id, event_ms)`. Pure functions; the clock is a parameter. Promise: nothing that arrives raises out
of `parse_frame`; what cannot be understood comes out as a dead letter, and every number keeps exactly the value, and as
far as plain notation allows the digits, that MEXC sent.

========  =============================================================  ======
mt        m                                                              source
========  =============================================================  ======
t         ``lastPrice|fairPrice|indexPrice|holdVol|fundingRate``         push.ticker
d         ``price|volume|direction`` (1 = buy, 2 = sell)                 push.deal
dp        ``bids|asks``, each ``[price,amount],[price,amount]...``       push.depth.full
dl        the frame's first 500 characters                               anything else
========  =============================================================  ======

`format_frame` makes a frame of a row again, for who replays them: with what the row has and nothing else.

A number may be quoted. What may be empty, since MEXC sent null or nothing: the fields of a ticker but `lastPrice`, and
one side of a book.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

TICKER, DEAL, DEPTH, DEADLETTER = "t", "d", "dp", "dl"
TYPE_NAMES = {TICKER: "tickers", DEAL: "deals", DEPTH: "depth", DEADLETTER: "dead-letters"}
"""The names that people use for the message types."""

DEADLETTER_CHARACTERS = 500
DEPTH_LEVELS = 20

_FIRST_TIME = "1514764800000"  # 2018-01-01, before this market; what has as many digits is up to 2286
_MAX_EXPONENT = 400  # beyond any float; keeps 1E+999999999 from becoming a gigabyte of zeros
_GZIP = b"\x1f\x8b"
_MAX_UNPACKED = 16 << 20  # bytes
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")  # JSON's

_PLAIN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"  # a number as rows have it
_LEVELS = rf"(?:\[{_PLAIN},{_PLAIN}\](?:,\[{_PLAIN},{_PLAIN}\])*)?"
_ROWS = {
    TICKER: re.compile(rf"{_PLAIN}\|(?:{_PLAIN})?\|(?:{_PLAIN})?\|(?:-?(?:0|[1-9][0-9]*))?\|(?:{_PLAIN})?"),
    DEAL: re.compile(rf"{_PLAIN}\|{_PLAIN}\|[12]"),
    DEPTH: re.compile(rf"{_LEVELS}\|{_LEVELS}"),
}


class Row(NamedTuple):
    """One row of a table: milliseconds since the epoch (UTC), the message type, the text.

    The others are not stored there. `id` is the exchange's number of the deal or the book, `event_ms` its own time of
    it: a deal's `t`, a book's `cts`, a ticker's `timestamp`. 0 is none.
    """

    ts_ms: int
    mt: str
    m: str
    id: int = 0
    event_ms: int = 0


class Message(NamedTuple):
    """What one frame held.

    `channel` is as sent (``push.deal``, ``rs.sub.deal``, ``pong``, ...) and empty if there is none. `ts_ms` is the
    frame's time. `text` is ``success`` of an acknowledgement, or in a line what an error or a refusal says.
    `missing` are the fields that a ticker (``fairPrice``) or a book (``bids``) came without, and `volume24` the
    contracts that a ticker says were traded in a day; 0 where it does not say.
    """

    channel: str
    ts_ms: int
    rows: list[Row]
    text: str = ""
    missing: tuple[str, ...] = ()
    volume24: int = 0

    @property
    def is_market_data(self) -> bool:
        """Whether this is a push that was subscribed to, and understood at least in part."""
        return self.channel in _FORMATTERS and not (self.rows and self.rows[0].mt == DEADLETTER)

    @property
    def refused(self) -> str:
        """The method of a subscription that was refused, such as ``sub.deal``; empty if this is no refusal."""
        return self.channel.removeprefix("rs.") if self.channel.startswith("rs.sub.") and self.rows else ""


class Number(str):
    """The text of a JSON number, so that its digits survive parsing and most need no look at whether they are one."""

    __slots__ = ()


class _Unusable(ValueError):
    """A field is missing or is not what the row needs."""


_Content = tuple[list[Row], bool, tuple[str, ...], int]
"""What a push's `data` holds: the rows, whether that is all of it, the fields that are missing, and volume24."""


def parse_frame(raw: str | bytes, symbol: str, now_ms: int) -> Message:
    """Return the message in `raw`, a frame received by the collector of `symbol` (such as ``BTC_USDT``).

    `raw` is bytes where the frame was binary or no UTF-8. If these are UTF-8, or gzip of it, they are read like a text.
    All rows have the frame's own `ts`; where that is missing or no time of this market, that of its data (`timestamp`,
    `cts`, the newest deal's `t`), or `now_ms`. Never raises.
    """
    if isinstance(raw, str):
        text = raw
    elif (unpacked := _unpack(raw)) is not None:
        text = unpacked
    else:
        return Message("", now_ms, [_dead_letter(raw.decode("utf-8", "backslashreplace"), now_ms)])
    try:
        frame = _decode(text)
        channel = frame.get("channel")
    except (ValueError, RecursionError, AttributeError):  # not JSON, bottomless JSON, JSON that is no object
        return Message("", now_ms, [_dead_letter(text, now_ms)])
    if type(channel) is not str:
        channel = ""
    data = frame.get("data")
    ts_ms = _time(frame.get("ts")) or _time_of(data) or now_ms
    formatter = _FORMATTERS.get(channel)
    if formatter is None or frame.get("symbol") != symbol:
        if channel == "pong":
            return Message(channel, ts_ms, [])
        if channel.startswith("rs.sub.") and data == "success":
            return Message(channel, ts_ms, [], "success")
        words = data if type(data) is str else text
        return Message(channel, ts_ms, [_dead_letter(text, ts_ms)], _shortened(words, DEADLETTER_CHARACTERS))
    try:
        rows, complete, missing, volume24 = formatter(data, ts_ms)
    except _Unusable:
        return Message(channel, ts_ms, [_dead_letter(text, ts_ms)])
    if not complete:
        rows.append(_dead_letter(text, ts_ms))
    return Message(channel, ts_ms, rows, "", missing, volume24)


def parse_answer(raw: bytes) -> dict[str, Any]:
    """Return the JSON object that is an answer of REST, gzipped or not, its numbers as Number.

    Raises a ValueError that says in one line what came instead.
    """
    text = _unpack(raw)
    if text is None:
        if raw.startswith(_GZIP):
            raise ValueError("the answer is gzip, and cannot be unpacked")
        raise ValueError(f"the answer is no text: {_shortened(raw[:80].decode('utf-8', 'backslashreplace'))}")
    if not text.strip():
        raise ValueError("the answer is empty")
    try:
        return _object(_decode(text))
    except (ValueError, RecursionError):
        raise ValueError(f"the answer is no JSON object: {_shortened(text)}") from None


def parse_deals(data: Any) -> list[Row]:
    """Return the deals that REST lists at ``/api/v1/contract/deals``, oldest first, each with its own time.

    `data` is that of its answer. They are without ids, as MEXC sends them, so that two may be equal; deals without a
    time are left out. Raises a ValueError where it is no list.
    """
    if not isinstance(data, list):
        raise ValueError(f"the answer holds no deals: {_shortened(str(data))}")  # noqa: TRY004 (of an answer's value)
    rows = []
    for deal in reversed(data):  # MEXC lists the newest first, and of those that tie nothing else tells which it is
        try:
            row = _deal(deal, _time(_object(deal).get("t")))
        except _Unusable:
            continue
        if row.ts_ms:
            rows.append(row)
    return sorted(rows, key=lambda row: (row.ts_ms, row.id))


def format_ticker_data(data: Any, ts_ms: int) -> _Content:
    """Return the row of a push.ticker's `data`. Raises a ValueError where a field cannot be used."""
    fields = _object(data)
    fair, index, held, funding = map(fields.get, _OPTIONAL)
    text = "|".join(
        (
            _plain(fields.get("lastPrice")),
            "" if fair is None else _plain(fair),
            "" if index is None else _plain(index),
            "" if held is None else _integer(held),
            "" if funding is None else format(_decimal(funding), ".8f"),
        )
    )
    missing: tuple[str, ...] = ()
    if fair is None or index is None or held is None or funding is None:
        missing = tuple(name for name in _OPTIONAL if fields.get(name) is None)
    row = Row(ts_ms, TICKER, text, 0, _time(fields.get("timestamp")))
    return [row], True, missing, _whole(fields.get("volume24"))


def format_deal_data(data: Any, ts_ms: int) -> _Content:
    """Return the rows of a push.deal's `data`, one deal or a list of them, oldest first.

    The second value is False if some deal could not be used; the others are there all the same. Raises a ValueError
    where `data` is neither.
    """
    if isinstance(data, dict):
        return [_deal(data, ts_ms)], True, (), 0
    if not isinstance(data, list):
        raise _Unusable
    rows = []
    for deal in data:
        try:
            rows.append(_deal(deal, ts_ms))
        except _Unusable:
            continue
    rows.sort(key=lambda row: (row.event_ms or ts_ms, row.id))  # MEXC sends the newest first; what ties stays as sent
    return rows, len(rows) == len(data), (), 0


def format_depth_data(data: Any, ts_ms: int) -> _Content:
    """Return the row of a push.depth.full's `data`. Raises a ValueError where a side cannot be used."""
    book = _object(data)
    bids, asks = book.get("bids"), book.get("asks")
    text = f"{_side(bids)}|{_side(asks)}"
    missing: tuple[str, ...] = ()
    if bids is None or asks is None:
        if not (bids or asks):
            raise _Unusable
        missing = ("bids",) if bids is None else ("asks",)
    return [Row(ts_ms, DEPTH, text, _whole(book.get("version")), _time(book.get("cts")))], True, missing, 0


def format_frame(row: Row, symbol: str, *, compress: bool = False, limit: int = DEPTH_LEVELS) -> str | None:
    """Return the push that `parse_frame` would make `row` of; None where the row is no deal, book or ticker of MEXC's.

    What was not kept is left out, and for an event's own time its `ts` stands. `compress` and `limit` are those of the
    subscription: a deal comes in a list, and a book has so many levels.
    """
    if not (pattern := _ROWS.get(row.mt)) or not pattern.fullmatch(row.m):
        return None
    fields = row.m.split("|")
    if row.mt == TICKER:
        channel = "push.ticker"
        named = [f'"{name}":{value}' for name, value in zip(_TICKER, fields, strict=True) if value]
        data = f'{{"symbol":"{symbol}",{",".join(named)},"timestamp":{row.event_ms or row.ts_ms}}}'
    elif row.mt == DEAL:
        channel = "push.deal"
        number = f',"i":"{row.id}"' if row.id else ""
        price, volume, direction = fields
        data = f'{{"p":{price},"v":{volume},"T":{direction},"t":{row.event_ms or row.ts_ms}{number}}}'
        if compress:
            data = f"[{data}]"
    else:
        channel = "push.depth.full"
        number = f',"version":{row.id}' if row.id else ""
        bids, asks = (_first_levels(side, limit) for side in fields)
        data = f'{{"asks":[{asks}],"bids":[{bids}]{number}}}'
    return f'{{"symbol":"{symbol}","data":{data},"channel":"{channel}","ts":{row.ts_ms}}}'


_OPTIONAL = ("fairPrice", "indexPrice", "holdVol", "fundingRate")
_TICKER = ("lastPrice", *_OPTIONAL)
_FORMATTERS: dict[str, Callable[[Any, int], _Content]] = {
    "push.ticker": format_ticker_data,
    "push.deal": format_deal_data,
    "push.depth.full": format_depth_data,
}


def _unpack(raw: bytes) -> str | None:
    """Return the text of a binary frame, gzipped or not; None where it has none, or too much."""
    try:
        if raw.startswith(_GZIP):
            unpacker = zlib.decompressobj(wbits=31)
            raw = unpacker.decompress(raw, _MAX_UNPACKED)
            if not unpacker.eof or unpacker.unused_data:
                return None
        return raw.decode()
    except (ValueError, zlib.error):
        return None


def _no_constant(name: str) -> Any:
    raise _Unusable(name)  # NaN and Infinity are Python's idea of JSON, not MEXC's


_decode = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_no_constant).decode


def _dead_letter(text: str, ts_ms: int) -> Row:
    kept = text[:DEADLETTER_CHARACTERS]
    return Row(ts_ms, DEADLETTER, kept.encode("utf-8", "backslashreplace").decode())


def _shortened(text: str, limit: int = 80) -> str:
    """Return the first characters of a text, in one line."""
    return " ".join(text[:limit].split())


def _time(value: Any) -> int:
    """Return the milliseconds since the epoch that `value` says, or 0 where it is no time of this market."""
    if isinstance(value, str) and len(value) == 13 and value >= _FIRST_TIME and value.isdecimal() and value.isascii():
        return int(value)
    return 0


def _time_of(data: Any) -> int:
    """Return the own time of a push's data, or 0."""
    if isinstance(data, dict):
        return _time(data.get("timestamp")) or _time(data.get("t")) or _time(data.get("cts"))
    if isinstance(data, list):
        return max((_time(deal.get("t")) for deal in data if isinstance(deal, dict)), default=0)
    return 0


def _whole(value: Any) -> int:
    """Return a whole number above 0, quoted or not, or 0 where `value` is none."""
    return int(value) if isinstance(value, str) and len(value) <= 18 and value.isdecimal() and value.isascii() else 0


def _deal(deal: Any, ts_ms: int) -> Row:
    fields = _object(deal)
    direction = _integer(fields.get("T"))
    if direction not in ("1", "2"):
        raise _Unusable
    text = f"{_plain(fields.get('p'))}|{_plain(fields.get('v'))}|{direction}"
    return Row(ts_ms, DEAL, text, _whole(fields.get("i")), _time(fields.get("t")))


def _side(levels: Any) -> str:
    if levels is None:
        return ""
    if not isinstance(levels, list):
        raise _Unusable
    try:
        # Forty levels a frame: no function of its own for a level, and no f-string, which is slow to take a Number.
        return ",".join(["[" + _plain(level[0]) + "," + _plain(level[1]) + "]" for level in levels[:DEPTH_LEVELS]])
    except (TypeError, LookupError):  # a level is no list, or too short
        raise _Unusable from None


def _first_levels(side: str, limit: int) -> str:
    """Return the first levels of a side, which is as rows have it."""
    return "],".join(side.split("],", limit)[:limit]) + "]" if side.count("],") >= limit else side


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Unusable
    return value


def _text_of(value: Any) -> str:
    """Return the text of a number, quoted or not."""
    if type(value) is Number or (type(value) is str and _NUMBER.fullmatch(value)):
        return value
    raise _Unusable


def _plain(value: Any) -> str:
    """Return a number in plain decimal notation, every digit kept: 2384.60 -> 2384.60, 7.548E+4 -> 75480."""
    text = value if type(value) is Number else _text_of(value)
    if "e" in text or "E" in text:
        return format(_decimal(text), "f")
    return text


def _integer(value: Any) -> str:
    if type(value) is Number and len(value) < 20 and value.isdecimal():
        return value
    number = _decimal(value)
    if number != number.to_integral_value():
        raise _Unusable
    return format(number.to_integral_value(), "f")


def _decimal(value: Any) -> Decimal:
    try:
        number = Decimal(_text_of(value))
    except ArithmeticError:  # an exponent beyond what even Decimal holds
        raise _Unusable from None
    if not -_MAX_EXPONENT <= number.adjusted() <= _MAX_EXPONENT:
        raise _Unusable
    return number

"""Rows as Tardis.dev sells them, a format that backtesting tools read: docs.tardis.dev/downloadable-csv-files.

In: tables of deals, depth or tickers, in the order they were received in. Out: tables with Tardis' columns. Promise:
each deal, book and ticker is in them, with the numbers that MEXC sent. What MEXC does not send is null.

Two tools decide what a book has to look like (`pipeline.read.books.changes`): hftbacktest and nautilus_trader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.messages import DEPTH_LEVELS
from pipeline.read.books import Changes, changes
from pipeline.read.spool import local_us

OF_CHANGES = "incremental_book_L2"
"""What has changed from book to book: the type whose files go on from each other."""

SOURCES = {
    "trades": "deals",
    OF_CHANGES: "depth",
    "book_snapshot_25": "depth",
    "quotes": "depth",
    "derivative_ticker": "tickers",
}
"""What there is, and which messages it is made of."""

EXCHANGE = "mexc-futures"
"""Tardis' name of this exchange."""

_LEVELS = 25
_US, _FLAG, _NUMBER = pa.int64(), pa.bool_(), pa.float64()
_TEXT = pa.dictionary(pa.int8(), pa.string())
_FIRST = [("exchange", _TEXT), ("symbol", _TEXT), ("timestamp", _US), ("local_timestamp", _US)]
_COLUMNS = {
    "trades": [("id", pa.string()), ("side", _TEXT), ("price", _NUMBER), ("amount", _NUMBER)],
    OF_CHANGES: [("is_snapshot", _FLAG), ("side", _TEXT), ("price", _NUMBER), ("amount", _NUMBER)],
    "book_snapshot_25": [
        (f"{side}[{level}].{what}", _NUMBER)
        for level in range(_LEVELS)
        for side in ("asks", "bids")
        for what in ("price", "amount")
    ],
    "quotes": [(name, _NUMBER) for name in ("ask_amount", "ask_price", "bid_price", "bid_amount")],
    "derivative_ticker": [
        ("funding_timestamp", _US),
        *((name, _NUMBER) for name in ("funding_rate", "predicted_funding_rate", "open_interest")),
        *((name, _NUMBER) for name in ("last_price", "index_price", "mark_price")),
    ],
}


@dataclass(frozen=True)
class Tardis:
    """What to make of one symbol's messages. Raises ValueError for an exchange that cannot be in a file's name."""

    type: str
    """One of SOURCES."""
    symbol: str
    exchange: str = EXCHANGE
    contract_size: Decimal | None = None
    """How many coins a contract is, if amounts are to be coins; None: they are contracts."""

    def __post_init__(self) -> None:
        check_exchange(self.exchange)

    def file_name(self, day: date) -> str:
        """Return what Tardis calls the file of a day."""
        return f"{self.exchange}_{self.type}_{day}_{self.symbol}.csv.gz"

    def tables(self, messages: Iterable[pa.Table], after: Sequence[float | None] = ()) -> Iterator[pa.Table]:
        """Yield what is made of all messages of a day, which come in the order they were received in.

        `after` is how the file of books before this one ends, for `pipeline.read.books.changes`.
        """
        if self.type == OF_CHANGES:
            for depth, changed in changes(messages, after):
                yield self._changes(depth, changed)
            return
        make = {"trades": self._trades, "derivative_ticker": self._tickers}.get(self.type, self._books)
        for table in messages:
            yield self._table(table, make(table))

    def _changes(self, depth: pa.Table, changed: Changes) -> pa.Table:
        side = pa.DictionaryArray.from_arrays(pa.array((~changed.is_bid).astype(np.int8)), ["bid", "ask"])
        columns = [pa.array(changed.is_snapshot), side, pa.array(changed.price)]
        # One time for each book is enough to look up; the depth's other columns would be copied for each change.
        times = depth.select([name for name in ("ts", "received") if name in depth.column_names])
        return self._table(times.take(pa.array(changed.book)), [*columns, self._amount(pa.array(changed.contracts))])

    def _trades(self, deals: pa.Table) -> list[Any]:
        numbers = pa.nulls(len(deals), pa.string())
        if "id" in deals.column_names:  # 0 is that of a deal that MEXC gave none
            number = deals["id"]
            numbers = pc.if_else(pc.equal(number, pa.scalar(0, number.type)), None, number.cast(pa.string()))
        return [numbers, deals["side"], deals["price"], self._amount(deals["contracts"])]

    def _books(self, depth: pa.Table) -> list[Any]:
        of_quotes = (("ask", "contracts"), ("ask", "price"), ("bid", "price"), ("bid", "contracts"))
        of_snapshots = (("ask", "price"), ("ask", "contracts"), ("bid", "price"), ("bid", "contracts"))
        is_quote = self.type == "quotes"
        columns = [
            depth[f"{side}_{what}_{level + 1}"] if level < DEPTH_LEVELS else pa.nulls(len(depth), _NUMBER)
            for level in range(1 if is_quote else _LEVELS)
            for side, what in (of_quotes if is_quote else of_snapshots)
        ]
        names = [name for name, _ in _COLUMNS[self.type]]
        return [
            self._amount(column) if name.endswith("amount") else column
            for name, column in zip(names, columns, strict=True)
        ]

    def _tickers(self, tickers: pa.Table) -> list[Any]:
        prices = [tickers[name] for name in ("last_price", "index_price", "fair_price")]
        interest = self._amount(tickers["open_interest"].cast(_NUMBER))
        unknown = (pa.nulls(len(tickers), kind) for kind in (_US, _NUMBER))
        return [next(unknown), tickers["funding_rate"], next(unknown), interest, *prices]

    def _amount(self, contracts: Any) -> Any:
        if self.contract_size is None:
            return contracts
        times, parts = self.contract_size.as_integer_ratio()  # so that 3 x 0.1 is 0.3
        return pc.divide(pc.multiply(contracts, float(times)), float(parts))

    def _table(self, rows: pa.Table, columns: list[Any]) -> pa.Table:
        names = [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int8)), [name])
            for name in (self.exchange, self.symbol)
        ]
        timestamp = pc.multiply(rows["ts"].cast(pa.int64()), 1000)
        first = [*names, timestamp, pa.array(local_us(rows))]
        return pa.table([*first, *columns], schema=schema(self.type))


def schema(type: str) -> pa.Schema:
    """Return the columns of a type."""
    return pa.schema([*_FIRST, *_COLUMNS[type]])


def check_exchange(name: str) -> None:
    """Raise ValueError where a file cannot be named after an exchange of this name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"{name} is no exchange's name: give one of Tardis', such as {EXCHANGE} or binance-futures")

"""Stored rows as typed columns, and what is made of them: candles, the top of the book.

In: rows of one message type, their times and texts ("Rows, as they are stored" in docs/DATA.md), from a list or
streamed from ClickHouse. Out: pyarrow Tables; `.to_pandas()` makes DataFrames of them. Promise: each row comes out
once, in the order it was stored in, either in a table or as a BadRow that says why not. A field that is empty is null,
and a level of a book that has no contracts is none. A float is the one nearest to the text; with `exact`, numbers are
decimals and nothing is rounded.

    from pipeline.read import candles, load
    deals = load("btc", "deals", "2026-10-01", "2026-10-02")
    print(candles(deals, "1h").to_pandas())

What the columns mean, and more examples: docs/DATA.md.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_driver import Client

from config import Settings, SymbolConfig, all_symbols, find_symbol, known_symbols, load_settings
from pipeline.contracts import known_contract
from pipeline.messages import DEADLETTER, DEAL, DEPTH, DEPTH_LEVELS, TICKER, TYPE_NAMES
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain, is_missing_table, permitted
from pipeline.store.compact import tables_of
from pipeline.store.source import HistoryError, Source, find_source, in_range, open_history
from pipeline.times import from_ms, iso, parse_time

TYPES = {name: mt for mt, name in TYPE_NAMES.items()}
"""The message types by the names that people use for them."""

DECIMAL = pa.decimal128(34, 18)
"""The type of exact numbers: 16 digits before the point and 18 after it.

Coins themselves are divided no finer than that, and prices less fine. decimal128 holds 38 digits; pyarrow wants the
other 4 for sums and halves.
"""

_DAY = timedelta(days=1)
_TIME = pa.timestamp("ms", tz="UTC")
_ORIGIN = [("event", _TIME), ("received", pa.timestamp("us", tz="UTC")), ("id", pa.uint64())]  # what a history knows
_SIDE = pa.dictionary(pa.int8(), pa.string())

# What the fields of a row have to be. All that matches fits the columns' types, so nothing can fail after that.
_INTEGER = r"[0-9]{1,18}"
_NUMBER = r"[0-9]{1,16}(?:\.[0-9]{1,18}0*)?"
_LEVEL = rf"\[{_NUMBER},{_NUMBER}\]"
_LEVELS = rf"(?:{_LEVEL}(?:,{_LEVEL}){{0,{DEPTH_LEVELS - 1}}})?"
_FIELDS = {
    TICKER: {
        "last_price": _NUMBER,
        "fair_price": f"(?:{_NUMBER})?",
        "index_price": f"(?:{_NUMBER})?",
        "open_interest": f"(?:{_INTEGER})?",
        "funding_rate": f"(?:-?{_NUMBER})?",
    },
    DEAL: {"price": _NUMBER, "contracts": _NUMBER, "side": "[12]"},
    DEPTH: {"bids": _LEVELS, "asks": _LEVELS},
}
ROWS = {mt: "^" + r"\|".join(fields.values()) + "$" for mt, fields in _FIELDS.items()}
"""What the texts of rows that decode match: message type -> regular expression of RE2, which ClickHouse has, too."""

_LONGEST_NUMBER = 16 + 1 + 18  # characters; what is longer ends in zeros

_OF_ALL = pc.ScalarAggregateOptions(skip_nulls=False)
_BATCH_ROWS = 50_000
_SLICE = 16_384  # rows that are split at a time: what a book's text is split into takes ten times its memory


class LoadError(Exception):
    """Nothing was loaded; the text is one line that says why."""


@dataclass(frozen=True)
class BadRow:
    """A row that does not decode: milliseconds since the epoch, its text, and what is wrong with it."""

    ts_ms: int
    m: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Rows in stored order: those that decode, with the columns of `schema`, and those that do not."""

    table: pa.Table
    bad: list[BadRow]


@dataclass(frozen=True)
class Origin:
    """Where rows came from, as a history has it: a number of each for each row."""

    event_ms: Sequence[int]
    received_us: Sequence[int]
    """That of `ts` where it is not known."""
    ids: Sequence[int]
    """0 where there is none."""


def schema(mt: str, *, exact: bool = False, history: bool = False) -> pa.Schema:
    """Return the columns that rows of type `mt` decode to; those of a `history` have three more.

    Raises ValueError for an unknown type.
    """
    number = DECIMAL if exact else pa.float64()
    if mt == TICKER:
        prices = [(name, number) for name in ("last_price", "fair_price", "index_price")]
        columns = [*prices, ("open_interest", pa.int64()), ("funding_rate", number)]
    elif mt == DEAL:
        columns = [("price", number), ("contracts", number), ("coins", number), ("side", _SIDE)]
    elif mt == DEPTH:
        columns = [(name, number) for side in ("bid", "ask") for name in _level_columns(side)]
    elif mt == DEADLETTER:
        columns = [("text", pa.string())]
    else:
        raise ValueError(f"unknown message type {mt!r}: give one of {', '.join(TYPES.values())}")
    return pa.schema([("ts", _TIME), *columns, *(_ORIGIN if history else [])])


def decode(
    mt: str,
    ts_ms: Sequence[int],
    texts: Sequence[str],
    *,
    exact: bool = False,
    contract_size: Decimal | None = None,
    origin: Origin | None = None,
) -> Batch:
    """Return rows of type `mt` as typed columns; a row is a time, in milliseconds since the epoch, and a text.

    `contract_size` is how many coins a contract is; without it, the coins of deals are null. `origin` gives three
    columns more. Raises ValueError for an unknown type.
    """
    columns = schema(mt, exact=exact, history=origin is not None)
    times = pa.array(ts_ms, pa.int64())
    origins = _origin_columns(times, origin) if origin else []
    rows = pa.array(texts, pa.large_string())  # a string array ends at 2 GB, which a million books come close to
    bad = []
    if mt != DEADLETTER:
        good = pc.match_substring_regex(rows, ROWS[mt])
        if good.false_count:
            places = np.flatnonzero(~good.to_numpy(zero_copy_only=False)).tolist()
            bad = [BadRow(int(ts_ms[i]), texts[i], _what_is_wrong(mt, texts[i])) for i in places]
            times, rows, *origins = (each.filter(good) for each in (times, rows, *origins))
    times = times.cast(_TIME)
    tables = [columns.empty_table()]
    for start in range(0, len(rows), _SLICE):
        arrays = [times.slice(start, _SLICE), *_split(mt, rows.slice(start, _SLICE), exact, contract_size)]
        arrays += [each.slice(start, _SLICE) for each in origins]
        tables.append(pa.Table.from_arrays(arrays, schema=columns))
    return Batch(pa.concat_tables(tables), bad)


def read(
    client: Client,
    database: str,
    table: str,
    mt: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    exact: bool = False,
    batch_rows: int = _BATCH_ROWS,
) -> Iterator[Batch]:
    """Yield the rows of type `mt` with start <= ts < end, in stored order, `batch_rows` at a time.

    Rows are streamed: memory is that of a batch or two. Where there are no rows there is no batch. A table has no
    index, so it is read as a whole; where the settings have a history (HISTORY=1) that has all its rows, these come
    from there, and only those of the range are read. The coins of deals are null where the contract is not known.
    `client` is of no other use until all is read or the iterator is closed; then it is free for the next query.

    Raises ValueError at once for an unknown type and for a time without zone; while reading, one of
    pipeline.store.client.CLICKHOUSE_ERRORS, and pipeline.store.source.HistoryError. A table does not exist while it is
    compacted; a query that has begun is not disturbed by that.
    """
    condition = condition_of(mt, start, end)
    config = find_symbol(table) or find_symbol(table, all_symbols(load_settings()))
    contract = config["contract"] if config else None
    if config and not contract:
        contract = known_contract(load_settings(), config)
    size = contract.size if contract else None

    def batches() -> Iterator[Batch]:
        with open_history(load_settings()) as history:
            source = find_source(client, database, table, history)
            yield from stream(source, mt, condition, exact=exact, contract_size=size, batch_rows=batch_rows)

    return batches()


def condition_of(mt: str, start: datetime | None, end: datetime | None) -> str:
    """Return as SQL that rows are of type `mt`, and start <= ts < end. Raises ValueError as `read` does."""
    schema(mt)
    bounds = (None if time is None else _milliseconds(time) for time in (start, end))
    return " AND ".join([f"mt = '{mt}'", *in_range(*bounds)])


def stream(
    source: Source,
    mt: str,
    condition: str,
    *,
    exact: bool,
    contract_size: Decimal | None,
    batch_rows: int,
    with_origin: bool = True,
) -> Iterator[Batch]:
    """Yield the rows of `condition`, see `condition_of`, as `read` does; `with_origin` is what only a history has."""
    with_origin = with_origin and source.history is not None
    with source.explained():
        rows = chain.from_iterable(_rows(source, condition, with_origin))
        try:
            while chunk := list(islice(rows, batch_rows)):
                ts_ms, texts, *origin = zip(*chunk, strict=True)
                del chunk
                known = Origin(*origin) if with_origin else None
                yield decode(mt, ts_ms, texts, exact=exact, contract_size=contract_size, origin=known)
        except BaseException:  # GeneratorExit, too: the rest of the answer must not meet the next query
            source.client.disconnect()
            raise


def _rows(source: Source, condition: str, with_origin: bool) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Yield the rows of each of the queries that it takes: ts, m, and what an Origin has."""
    columns = "toUnixTimestamp64Milli(ts), toValidUTF8(m)"
    if with_origin:
        columns += ", toUnixTimestamp64Milli(event), toUnixTimestamp64Micro(received), id"
    if source.history:
        for clauses in source.in_order(condition):
            yield source.client.execute_iter(f"SELECT {columns} FROM {source.table} {clauses}")
        return
    # Rows that were stored one by one would come in a packet each, at 40 us of this process. A JOIN, here with one row,
    # makes big blocks of them on its way, as long as ClickHouse does not swap its sides.
    settings = permitted(source.client, {"query_plan_join_swap_table": "false"}) | source.settings
    for clauses in source.in_order(condition):
        rows = f"SELECT {columns} FROM {source.table} {clauses}"
        query = f"SELECT r.* FROM ({rows}) AS r CROSS JOIN (SELECT 1) AS one"
        yield source.client.execute_iter(query, settings=settings)


def load(
    symbol: str,
    name: str,
    start: datetime | date | str | None = None,
    end: datetime | date | str | None = None,
    *,
    exact: bool = False,
) -> pa.Table:
    """Return all rows with start <= ts < end, from the ClickHouse of the settings, as one table in memory.

    `symbol` is one of config.py's or of SYMBOLS, by its name or its table's ("BTC_USDT", "btc"); `name` is one of
    TYPES. Times are aware datetimes, or dates and ISO 8601 texts such as "2026-10-01" or "2026-10-01 12:30", which
    are UTC unless they say otherwise. Rows that do not decode are left out, with a warning that names them. Raises
    ValueError for an argument that cannot be used, and LoadError.

    Where there is a history (HISTORY=1), three columns more say where a row came from; see docs/DATA.md.
    """
    mt = _type(name)
    settings = load_settings()
    table = symbol_config(symbol, settings)["table_name"]
    database = settings.clickhouse_database
    condition = condition_of(mt, as_moment(start), as_moment(end))
    contract = known_contract(settings, symbol_config(symbol, settings))
    size = contract.size if contract else None
    with _open_source(settings, table) as source:
        batches = list(stream(source, mt, condition, exact=exact, contract_size=size, batch_rows=_BATCH_ROWS))
    if bad := [row for batch in batches for row in batch.bad]:
        warnings.warn(f"{len(bad)} {name} of {database}.{table} do not decode: {_some_of(bad)}", stacklevel=2)
    columns = schema(mt, exact=exact, history=source.history is not None)
    return pa.concat_tables([columns.empty_table(), *(batch.table for batch in batches)])


def newest_day(symbol: str, name: str) -> tuple[datetime, datetime]:
    """Return the start and the end of the newest whole day of UTC with rows of the type `name`, one of TYPES.

    A day is whole where there are such rows of a later one; where there are rows of one day only, it is that. `symbol`
    is as `load` takes it. Reads the times of the whole table. Raises ValueError for an argument that cannot be used,
    and LoadError, also where there is no row.
    """
    settings = load_settings()
    table = symbol_config(symbol, settings)["table_name"]
    day = f"intDiv(toUnixTimestamp64Milli(ts), {_DAY // timedelta(milliseconds=1)})"
    select, of_type = f"SELECT DISTINCT {day} AS day FROM", f"WHERE mt = '{_type(name)}' ORDER BY day DESC LIMIT 2"
    with _open_source(settings, table) as source, source.explained():
        found = source.client.execute(f"{select} {source.table} {of_type}")
    if not found:
        raise LoadError(f"There are no {name} of {symbol} yet: see `verif.py`, and whether its collector runs")
    start = from_ms(0) + found[-1][0] * _DAY
    return start, start + _DAY


def candles(deals: pa.Table, interval: str | timedelta) -> pa.Table:
    """Return the candles of `deals`, oldest first.

    The columns are start, open, high, low, close, contracts, coins, buy_contracts, deals and vwap.

    `interval` is such as "1s", "5m", "1h" or "1d", or a timedelta of whole milliseconds; candles begin at its
    multiples since 1970-01-01 UTC, so days are UTC's. `open` and `close` are of the first and the last deal by time,
    where deals of the same millisecond keep the order they are stored in. `contracts` is what was traded, `coins` how
    much that is, or null where it is not known of each deal; `buy_contracts` is what of the contracts was bought by
    the taker. Of these three, a float is the one nearest to the sum. `deals` is their number and `vwap` the volume-
    weighted average price, a float also where `deals` is exact. An interval without deals has no candle. Raises
    ValueError for an interval that cannot be used.
    """
    step = interval_ms(interval)
    times = deals["ts"].cast(_TIME).cast(pa.int64()).to_numpy()  # those of a file that others wrote may be finer
    if (times[1:] < times[:-1]).any():
        order = np.argsort(times, kind="stable")
        times, deals = times[order], deals.take(order)
    price, contracts, side = (deals[name] for name in ("price", "contracts", "side"))
    is_old = "coins" not in deals.column_names  # in a file of an older version
    coins = pa.nulls(len(deals), contracts.type) if is_old else deals["coins"]
    paid = pc.multiply(price.cast(pa.float64()), contracts.cast(pa.float64()))
    (contracts, whole_contract), (coins, whole_coin) = _whole(contracts), _whole(coins)
    start_of_each = times // step * step
    first = np.append(0, np.flatnonzero(start_of_each[1:] != start_of_each[:-1]) + 1)[: len(times)]
    starts, count = start_of_each[first], np.diff(first, append=len(times))
    del times  # which may be as large as all of this
    columns = {
        "start": start_of_each,
        "price": price,
        "contracts": contracts,
        "coins": coins,
        "bought": pc.if_else(pc.equal(side, "buy"), contracts, pa.scalar(0, pa.int8()).cast(contracts.type)),
        "paid": paid,
    }
    totals = [(name, "sum", _OF_ALL) for name in ("contracts", "coins", "bought", "paid")]
    grouped = pa.table(columns).group_by("start", use_threads=False)  # with threads, sums differ from run to run
    found = grouped.aggregate([("price", "max"), ("price", "min"), *totals]).sort_by("start")
    summed = _divided(found["contracts_sum"], whole_contract)
    traded = summed.cast(pa.float64())
    return pa.table(
        {
            "start": pa.array(starts).cast(_TIME),
            "open": price.take(first),
            "high": found["price_max"],
            "low": found["price_min"],
            "close": price.take(first + count - 1),
            "contracts": summed,
            "coins": _divided(found["coins_sum"], whole_coin),
            "buy_contracts": _divided(found["bought_sum"], whole_contract),
            "deals": count,
            "vwap": pc.divide(found["paid_sum"], pc.if_else(pc.equal(traded, 0), None, traded)),
        }
    )


def _whole(amounts: pa.Array | pa.ChunkedArray) -> tuple[pa.Array | pa.ChunkedArray, float]:
    """Return floats times a power of ten that makes them whole, and that: whole numbers add up without rounding.

    What has more than 15 digits after the point stays as it is, and so do decimals.
    """
    if not pa.types.is_floating(amounts.type):
        return amounts, 1.0
    rest = amounts.drop_null().to_numpy()
    for scale in 10.0 ** np.arange(16):
        rest = rest[np.rint(rest * scale) / scale != rest]
        if not len(rest):
            return pc.round(pc.multiply(amounts, scale)), float(scale)
    return amounts, 1.0


def _divided(sums: pa.ChunkedArray, whole: float) -> pa.ChunkedArray:
    return sums if whole == 1 else pc.divide(sums, whole)


def top_of_book(depth: pa.Table) -> pa.Table:
    """Return the best level of each book, and what follows from it.

    The columns are ts, bid_price, bid_contracts, ask_price, ask_contracts, spread, mid and imbalance. `spread` is
    ask - bid and `mid` the price half-way. `imbalance` is (bid - ask) / (bid + ask) of the contracts of the two levels,
    from -1 (none bid) to 1, a float also where `depth` is exact. Where a side is empty, its columns and those three are
    null.
    """
    bid, bid_contracts, ask, ask_contracts = (
        depth[name] for name in ("bid_price_1", "bid_contracts_1", "ask_price_1", "ask_contracts_1")
    )
    total = pc.add(bid, ask)
    half = pa.scalar("0.5").cast(pa.decimal128(1, 1)) if pa.types.is_decimal(total.type) else 0.5
    bid_size, ask_size = bid_contracts.cast(pa.float64()), ask_contracts.cast(pa.float64())
    both = pc.add(bid_size, ask_size)
    return pa.table(
        {
            "ts": depth["ts"],
            "bid_price": bid,
            "bid_contracts": bid_contracts,
            "ask_price": ask,
            "ask_contracts": ask_contracts,
            "spread": pc.subtract(ask, bid),
            "mid": pc.multiply(total, half),
            "imbalance": pc.divide(pc.subtract(bid_size, ask_size), pc.if_else(pc.equal(both, 0), None, both)),
        }
    )


def depth_levels(depth: pa.Table) -> pa.Table:
    """Return each level of each book as a row: ts, side ("bid" or "ask"), level (1 is the best), price, contracts.

    Books stay in order; in each, bids come before asks and the best level first. That is forty rows a book: do it batch
    by batch where there are many.
    """
    books = len(depth)
    side = np.repeat(np.arange(2, dtype=np.int8), DEPTH_LEVELS)
    level = np.tile(np.arange(1, DEPTH_LEVELS + 1, dtype=np.int8), 2)
    # All best bids come first, then all second-best ...; this is where the levels of the first book are, and so on.
    by_book = np.arange(2 * DEPTH_LEVELS * books).reshape(2 * DEPTH_LEVELS, books).T.ravel()
    price, contracts = (
        pa.chunked_array(
            [chunk for name in depth.column_names if f"_{what}_" in name for chunk in depth[name].chunks],
            depth[f"bid_{what}_1"].type,
        )
        .combine_chunks()
        .take(by_book)
        for what in ("price", "contracts")
    )
    table = pa.table(
        {
            "ts": depth["ts"].take(np.repeat(np.arange(books), 2 * DEPTH_LEVELS)),
            "side": pa.DictionaryArray.from_arrays(np.tile(side, books), ["bid", "ask"]),
            "level": np.tile(level, books),
            "price": price,
            "contracts": contracts,
        }
    )
    return table.filter(price.is_valid())


# From text to columns


def _origin_columns(times: pa.Array, origin: Origin) -> list[pa.Array]:
    """Return the columns of _ORIGIN; what is not known is null."""
    received, ids = pa.array(origin.received_us, pa.int64()), pa.array(origin.ids, pa.uint64())
    is_known = pc.not_equal(received, pc.multiply(times, 1000))
    arrays = [
        pa.array(origin.event_ms, pa.int64()),
        pc.if_else(is_known, received, pa.scalar(None, pa.int64())),
        pc.if_else(pc.equal(ids, pa.scalar(0, pa.uint64())), pa.scalar(None, pa.uint64()), ids),
    ]
    return [array.cast(kind) for array, (_, kind) in zip(arrays, _ORIGIN, strict=True)]


def _level_columns(side: str) -> list[str]:
    """Return the names of a side's columns, all prices before all contracts."""
    return [f"{side}_{what}_{level}" for what in ("price", "contracts") for level in range(1, DEPTH_LEVELS + 1)]


def _split(mt: str, rows: pa.Array, exact: bool, contract_size: Decimal | None) -> list[pa.Array]:
    """Return the columns of `rows` after `ts`; each row is as ROWS has it."""
    if mt == DEADLETTER:
        return [rows.cast(pa.string())]
    lists = pc.split_pattern(rows, "|")
    fields = [pc.list_element(lists, place) for place in range(len(_FIELDS[mt]))]
    if mt == DEPTH:
        return [column for side in fields for column in _split_side(side, exact)]
    if mt == DEAL:
        direction = fields[2]
        price, contracts = (_numbers(field, exact) for field in fields[:2])
        side = pa.DictionaryArray.from_arrays(pc.equal(direction, "2").cast(pa.int8()), ["buy", "sell"])
        return [price, contracts, _coins(contracts, contract_size), side]
    *prices, open_interest, funding_rate = map(_or_null, fields)
    numbers = [_numbers(price, exact) for price in prices]
    return [*numbers, open_interest.cast(pa.int64()), _numbers(funding_rate, exact)]


def _split_side(levels: pa.Array, exact: bool) -> list[pa.Array]:
    """Return the prices of each level, then the contracts of each; `levels` are texts ``[price,amount],...``."""
    levels = _or_null(levels)  # else "" would count as one number
    pairs = pc.split_pattern(pc.ascii_trim(pc.replace_substring(levels, "],[", ","), "[]"), ",")
    numbers = _numbers(pairs.flatten(), exact)
    counts = pc.list_value_length(pairs).fill_null(0).to_numpy()
    deleted = pc.equal(numbers, pa.scalar(0, pa.int8()).cast(numbers.type)).to_numpy(zero_copy_only=False)[1::2]
    if deleted.any():
        numbers = numbers.filter(pa.array(np.repeat(~deleted, 2)))
        books = np.repeat(np.arange(len(counts)), counts // 2)
        counts = counts - 2 * np.bincount(books[deleted], minlength=len(counts))
    starts = np.cumsum(counts) - counts
    places = [2 * level + offset for offset in range(2) for level in range(DEPTH_LEVELS)]
    return [numbers.take(pa.array(starts + place, mask=counts <= place)) for place in places]


def _coins(contracts: pa.Array, contract_size: Decimal | None) -> pa.Array:
    """Return how many coins these are, of the type of `contracts`."""
    if contract_size is None:
        return pa.nulls(len(contracts), contracts.type)
    if not pa.types.is_decimal(contracts.type):
        times, parts = contract_size.as_integer_ratio()  # so that 3 x 0.1 is 0.3
        numbers, whole = _whole(contracts)
        return pc.divide(pc.multiply(numbers, float(times)), parts * whole)
    size = pa.scalar(Decimal(f"{contract_size:f}"))
    wide = (contracts.cast(pa.decimal256(34, 18)), size.cast(pa.decimal256(size.type.precision, size.type.scale)))
    coins = pc.round(pc.multiply(*wide), 18)
    fits = pc.less(coins, pa.scalar(Decimal(10) ** 16).cast(coins.type))
    return pc.if_else(fits, coins, pa.scalar(None, coins.type)).cast(DECIMAL)


def _or_null(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)


def _numbers(texts: pa.Array, exact: bool) -> pa.Array:
    if not exact:
        return texts.cast(pa.float64())
    if (pc.max(pc.binary_length(texts)).as_py() or 0) > _LONGEST_NUMBER:
        texts = pc.replace_substring_regex(texts, r"(\.[0-9]{18})0+$", r"\1")
    return texts.cast(DECIMAL)


def _what_is_wrong(mt: str, text: str) -> str:
    """Return why `text` is not as ROWS has it."""
    fields = text.split("|")
    expected = _FIELDS[mt]
    if len(fields) != len(expected):
        return f"{len(fields)} fields, not {len(expected)}"
    for (name, pattern), field in zip(expected.items(), fields, strict=True):
        if mt == DEPTH:
            # Level by level: to match them all, Python would try each way to tell a number's last zeros apart.
            levels = field.removeprefix("[").removesuffix("]").split("],[") if field else []
            if len(levels) > DEPTH_LEVELS:
                return f"{len(levels)} {name}, more than {DEPTH_LEVELS}"
            for level in levels:
                if not re.fullmatch(f"{_NUMBER},{_NUMBER}", level):
                    return f"{_shortened(level)} among the {name}"
        elif not re.fullmatch(pattern, field):
            return f"{name} is {_shortened(field)}"
    return "brackets are missing"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _some_of(bad: list[BadRow]) -> str:
    """Return a line that names the rows, ten at most."""
    named = [f"{iso(row.ts_ms)} {_shortened(row.m)} ({row.reason})" for row in bad[:10]]
    return "; ".join([*named, *(["..."] if len(bad) > len(named) else [])])


# What to read


def _type(name: str) -> str:
    if name not in TYPES:
        raise ValueError(f"unknown type {name!r}: give one of {', '.join(TYPES)}")
    return TYPES[name]


@contextmanager
def _open_source(settings: Settings, table: str) -> Iterator[Source]:
    """Give where the rows of a table are. Raises LoadError where they cannot be read."""
    database = settings.clickhouse_database
    with connect(settings) as client, open_history(settings) as history:
        try:
            yield find_source(client, database, table, history)
        except HistoryError as error:
            raise LoadError(str(error)) from None
        except CLICKHOUSE_ERRORS as error:
            if not is_missing_table(error):
                raise LoadError(explain(error, settings)) from None
            if tables_of(client, database, table):
                raise LoadError(f"{database}.{table} is being compacted: try again in a minute") from None
            raise LoadError(f"Table {database}.{table} does not exist: run ch_setup.py") from None


def symbol_config(name: str, settings: Settings) -> SymbolConfig:
    """Return the symbol of a name, as `load` takes it. Raises ValueError."""
    configs = all_symbols(settings)
    config = find_symbol(name, configs)
    if config is None:
        raise ValueError(f"unknown symbol {name!r}: give one of {known_symbols(configs)}")
    return config


def as_moment(time: datetime | date | str | None) -> datetime | None:
    """Return a time, as `load` takes it, as a datetime. Raises ValueError."""
    return time if time is None or isinstance(time, datetime) else parse_time(str(time))


def _milliseconds(moment: datetime) -> int:
    """Return the milliseconds from the epoch to `moment`, rounded up: no row has a time in between."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: give such as datetime(2026, 10, 1, tzinfo=UTC)")
    return -int((datetime.fromtimestamp(0, UTC) - moment) // timedelta(milliseconds=1))


_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def interval_ms(interval: str | timedelta) -> int:
    """Return the milliseconds of an interval, such as 5m. Raises ValueError where it is none."""
    if isinstance(interval, timedelta):
        milliseconds, rest = divmod(interval, timedelta(milliseconds=1))
        if milliseconds > 0 and not rest:
            return milliseconds
    elif found := re.fullmatch(r"([1-9][0-9]{0,8})(ms|s|m|h|d)", interval):
        return int(found[1]) * _UNITS[found[2]]
    raise ValueError(f"{interval!r} is no interval: give such as 1s, 5m, 1h, 1d, or a timedelta of whole milliseconds")

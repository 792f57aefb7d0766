"""Deals and books as hftbacktest's array of events, straight from ClickHouse.

In: a symbol and a range of time. Out: what `hftbacktest.data.utils.tardis.convert` makes of Tardis' files of the same
day, without the files, and without hftbacktest being there; of a longer range the same books, though each day's file
begins with a whole one. Quantities are contracts: `linear_asset(contract_size)` tells a backtest what one is.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.read.books import Changes, Floats, changes
from pipeline.read.decode import load
from pipeline.read.spool import in_order, local_us

EVENT = np.dtype(
    [
        ("ev", "u8"),
        ("exch_ts", "i8"),
        ("local_ts", "i8"),
        ("px", "f8"),
        ("qty", "f8"),
        ("order_id", "u8"),
        ("ival", "i8"),
        ("fval", "f8"),
    ],
    align=True,
)
"""hftbacktest's `event_dtype`; times are nanoseconds since the epoch."""

# Its numbers for them, from hftbacktest.types.
_DEPTH, _TRADE, _CLEAR, _SNAPSHOT = 1, 2, 3, 4
_AT_EXCHANGE, _LOCAL, _BUY, _SELL = 1 << 31, 1 << 30, 1 << 29, 1 << 28
_RUN = 256  # rows that are compared at once, where two orders differ here and there

Events = npt.NDArray[np.void]


def hftbacktest(
    symbol: str, start: datetime | date | str | None = None, end: datetime | date | str | None = None
) -> Events:
    """Return the deals and books with start <= ts < end as events, an array of EVENT; arguments are those of `load`.

    It is held in memory as a whole. `numpy.savez_compressed("day.npz", data=events)` makes a file that hftbacktest
    opens. Raises what `load` does.
    """
    return events(load(symbol, "deals", start, end), load(symbol, "depth", start, end))


def events(deals: pa.Table, depth: pa.Table) -> Events:
    """Return the events of deals and depth, as `load` gives them.

    At one moment deals come before books: a book has what a deal took no more, and to take it from an order's queue
    before the deal does would be to take it twice.
    """
    deals, depth = in_order(deals), in_order(depth)
    found = [_trades(deals), *(_changes(part, changed) for part, changed in changes([depth]))]
    return _in_both_orders(_with_latency(np.concatenate(found)))


def _events(rows: pa.Table, ev: npt.NDArray[Any], price: Floats, contracts: Floats) -> Events:
    made = np.zeros(len(ev), EVENT)
    made["ev"], made["px"], made["qty"] = ev, price, contracts
    made["exch_ts"] = rows["ts"].cast(pa.int64()).to_numpy() * 1_000_000
    made["local_ts"] = local_us(rows) * 1000
    return made


def _trades(deals: pa.Table) -> Events:
    is_buy = pc.equal(deals["side"], "buy").to_numpy()
    ev = np.where(is_buy, _BUY, _SELL) | _TRADE
    return _events(deals, ev, deals["price"].to_numpy(), deals["contracts"].to_numpy())


def _changes(depth: pa.Table, changed: Changes) -> Events:
    times = depth.select([name for name in ("ts", "received") if name in depth.column_names])
    ev = np.where(changed.is_bid, _BUY, _SELL) | np.where(changed.is_snapshot, _SNAPSHOT, _DEPTH)
    made = _events(times.take(pa.array(changed.book)), ev, changed.price, changed.contracts)
    first, last = _sides_of_snapshots(changed)
    clear = made[first]
    clear["ev"] ^= _SNAPSHOT ^ _CLEAR
    clear["px"], clear["qty"] = made["px"][last], 0  # up to the worst price
    return np.insert(made, first, clear)


def _sides_of_snapshots(changed: Changes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each side of each snapshot has its first change, and its last."""
    is_other = np.ones(len(changed.book) + 1, np.bool_)
    columns: Iterable[npt.NDArray[Any]] = (changed.book, changed.is_bid, changed.is_snapshot)
    is_other[1:-1] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    (bounds,) = np.nonzero(is_other)
    firsts, lasts = bounds[:-1], bounds[1:] - 1
    is_snapshot = changed.is_snapshot[firsts]
    return firsts[is_snapshot], lasts[is_snapshot]


def _with_latency(found: Events) -> Events:
    """Let nothing be received before it happened: where clocks say so, the local one is put forward for all."""
    if len(found):
        found["local_ts"] += max(0, int((found["exch_ts"] - found["local_ts"]).max()))
    return found


def _in_both_orders(found: Events) -> Events:
    """Return events in the order in which they happened and in that in which they were received, at the same time.

    Where the two agree, an event is there once, for the exchange and for the local side; else it is there twice.
    """
    by_exchange, by_local = (np.argsort(found[name], kind="stable") for name in ("exch_ts", "local_ts"))
    if (by_exchange == by_local).all():
        found = found[by_exchange]
        found["ev"] |= _AT_EXCHANGE | _LOCAL
        return found
    times = [np.stack([found["exch_ts"][order], found["local_ts"][order]], axis=1) for order in (by_exchange, by_local)]
    places, flags = [], []
    here = there = 0  # how far the two orders are done
    while here < len(found) or there < len(found):
        pair = times[0][here : here + _RUN], times[1][there : there + _RUN]
        length = min(map(len, pair))
        same = (pair[0][:length] == pair[1][:length]).all(axis=1)
        run = length if same.all() else int(same.argmin())
        if run:
            places.append(by_exchange[here : here + run])
            flags.append(np.full(run, _AT_EXCHANGE | _LOCAL))
            here, there = here + run, there + run
        elif there == len(found) or (here < len(found) and tuple(pair[0][0]) < tuple(pair[1][0])):
            places.append(by_exchange[here : here + 1])
            flags.append(np.array([_AT_EXCHANGE]))
            here += 1
        else:
            places.append(by_local[there : there + 1])
            flags.append(np.array([_LOCAL]))
            there += 1
    found = found[np.concatenate(places)]
    found["ev"] |= np.concatenate(flags).astype(np.uint64)
    return found

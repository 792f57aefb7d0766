"""What other tools make of our files, by their own code: run by the Python of venv-tools/, where they are.

    venv-tools/bin/python tests/tools/readers.py NAME ARGUMENT ...

In: files of export.py, and an npz file of the books as they should be. Out: a line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TICK = 0.1


def convert(npz: str, trades: str, depth: str) -> Any:
    """Let hftbacktest convert Tardis' files into its events."""
    from hftbacktest.data.utils import tardis

    data = tardis.convert([trades, depth], npz, buffer_size=5_000_000)
    return {"events": len(data), "trades": float(data["qty"][data["ev"] & 0xFF == 2].sum())}


def books(npz: str, expected: str) -> Any:
    """Count the books that are not in hftbacktest as expected, level by level, after the events of each moment."""
    from hftbacktest import HashMapMarketDepthBacktest
    from numba import njit

    @njit  # type: ignore[untyped-decorator]
    def count(hbt: Any, times: Any, bids: Any, asks: Any) -> Any:
        wrong = np.zeros(2, np.int64)
        hbt.elapse(0)  # to the first event; before it, there is no current time
        for place in range(len(times)):
            hbt.elapse(times[place] - hbt.current_timestamp)
            depth = hbt.depth(0)
            is_wrong = False
            for tick in range(bids.shape[1]):
                is_wrong |= depth.bid_qty_at_tick(first + tick) != bids[place, tick]
                is_wrong |= depth.ask_qty_at_tick(first + tick) != asks[place, tick]
            wrong[0] += is_wrong
            wrong[1] += 1
        return wrong

    found = np.load(expected)
    is_last = np.append(found["ts_ms"][1:] != found["ts_ms"][:-1], True)
    prices, contracts = found["prices"][is_last], found["contracts"][is_last]
    ticks = np.nan_to_num(np.round(prices / TICK), nan=-1).astype(np.int64)
    first, last = int(ticks[ticks >= 0].min()) - 5, int(ticks.max()) + 5
    sides = []
    for side in (slice(0, 20), slice(20, 40)):
        dense = np.zeros((len(ticks), last - first))
        book, level = np.nonzero(ticks[:, side] >= 0)
        dense[book, ticks[:, side][book, level] - first] = contracts[:, side][book, level]
        sides.append(dense)
    hbt = HashMapMarketDepthBacktest([_asset(npz)])
    wrong, compared = count(hbt, found["ts_ms"][is_last] * 1_000_000, *sides)
    hbt.close()
    return {"wrong": int(wrong), "compared": int(compared)}


def backtest(npz: str) -> Any:
    """Bid for a hundred contracts at the best bid, or offer them at the best ask, until the data end."""
    from hftbacktest import GTX, LIMIT, HashMapMarketDepthBacktest
    from numba import njit

    @njit  # type: ignore[untyped-decorator]
    def quote(hbt: Any) -> Any:
        steps = 0
        while hbt.elapse(1_000_000_000) == 0:
            steps += 1
            hbt.clear_inactive_orders(0)
            depth = hbt.depth(0)
            if len(hbt.orders(0)) or np.isnan(depth.best_bid) or np.isnan(depth.best_ask):
                continue
            if hbt.position(0) > 0:
                hbt.submit_sell_order(0, steps, depth.best_ask, 100, GTX, LIMIT, False)
            else:
                hbt.submit_buy_order(0, steps, depth.best_bid, 100, GTX, LIMIT, False)
        return steps

    hbt = HashMapMarketDepthBacktest([_asset(npz)])
    steps = quote(hbt)
    values = hbt.state_values(0)
    result = {"steps": steps, "trades": int(values.num_trades), "end": int(hbt.current_timestamp)}
    hbt.close()
    return result


def _asset(npz: str) -> Any:
    from hftbacktest import BacktestAsset

    return (
        BacktestAsset()
        .data([npz])
        .linear_asset(0.0001)
        .constant_order_latency(1_000_000, 1_000_000)
        .risk_adverse_queue_model()
        .no_partial_fill_exchange()
        .trading_value_fee_model(0.0, 0.0002)
        .tick_size(TICK)
        .lot_size(1)
    )


def nautilus(expected: str, folder: str) -> Any:
    """Let nautilus_trader load each of Tardis' files, and keep a book by its deltas."""
    from nautilus_trader.adapters.tardis.loaders import TardisCSVDataLoader
    from nautilus_trader.model.book import OrderBook
    from nautilus_trader.model.enums import BookType
    from nautilus_trader.model.identifiers import InstrumentId

    instrument = InstrumentId.from_str("BTC_USDT-PERP.MEXC")
    loader = TardisCSVDataLoader(price_precision=1, size_precision=0, instrument_id=instrument)
    files = {kind: next(iter(Path(folder).glob(f"*_{kind}_*")), None) for kind in KINDS}
    found = np.load(expected)
    result: dict[str, Any] = {}
    trades = loader.load_trades(files["trades"])
    result["trades"] = len(trades)
    result["contracts"] = sum(float(trade.size) for trade in trades)
    result["buys"] = sum(trade.aggressor_side.name == "BUYER" for trade in trades)
    result["paid"] = sum(float(str(trade.price)) * float(trade.size) for trade in trades)
    should = {
        int(ts): _sides(prices, contracts)
        for ts, prices, contracts in zip(found["ts_ms"], found["prices"], found["contracts"], strict=True)
    }
    book = OrderBook(instrument, BookType.L2_MBP)
    deltas = loader.load_deltas(files["incremental_book_L2"])
    wrong = compared = 0
    for place, delta in enumerate(deltas):
        book.apply_delta(delta)
        if place + 1 == len(deltas) or deltas[place + 1].ts_event != delta.ts_event:
            is_there = [
                [(float(str(level.price)), round(level.size())) for level in side]
                for side in (book.bids(), book.asks())
            ]
            wrong += is_there != should[delta.ts_event // 1_000_000]
            compared += 1
    result |= {"wrong": wrong, "compared": compared}
    depths = loader.load_depth10(files["book_snapshot_25"], levels=25)
    result["depths"] = len(depths)
    result["wrong_depths"] = sum(
        [
            [(float(str(level.price)), float(str(level.size))) for level in side if float(level.size)]
            for side in (depth.bids, depth.asks)
        ]
        != [side[:10] for side in _sides(prices, contracts)]
        for depth, prices, contracts in zip(depths, found["prices"], found["contracts"], strict=True)
    )
    result["quotes"] = len(loader.load_quotes(files["quotes"]))
    result["funding_rates"] = len(loader.load_funding_rates(files["derivative_ticker"]))
    return result


KINDS = ("trades", "incremental_book_L2", "book_snapshot_25", "quotes", "derivative_ticker")


def _sides(prices: Any, contracts: Any) -> list[list[tuple[float, float]]]:
    return [
        [(float(price), float(size)) for price, size in zip(prices[side], contracts[side], strict=True) if size > 0]
        for side in (slice(0, 20), slice(20, 40))
    ]


def freqtrade(folder: str) -> Any:
    """Let freqtrade load its candles."""
    from freqtrade.data.history import load_pair_history
    from freqtrade.data.history.datahandlers import get_datahandler
    from freqtrade.enums import CandleType, TradingMode

    datadir = Path(folder)
    there = get_datahandler(datadir, "feather").ohlcv_get_available_data(datadir, TradingMode.FUTURES)
    frames = {
        fill: load_pair_history(
            "BTC/USDT:USDT", "1m", datadir, fill_up_missing=fill, candle_type=CandleType.FUTURES, data_format="feather"
        )
        for fill in (False, True)
    }
    raw = frames[False]
    return {
        "there": [[pair, timeframe, str(kind)] for pair, timeframe, kind in there],
        "columns": list(raw.columns),
        "types": [str(kind) for kind in raw.dtypes],
        "rows": len(raw),
        "rows_filled": len(frames[True]),
        "volume": float(raw["volume"].sum()),
        "dates": [str(raw["date"].iloc[0]), str(raw["date"].iloc[-1])],
    }


def vectorbt(folder: str) -> Any:
    """Let vectorbt trade the crossings of two averages."""
    import pandas as pd
    import vectorbt as vbt

    frame = pd.concat(pd.read_parquet(path) for path in sorted(Path(folder).rglob("*.parquet"))).set_index("date")
    bars = frame.vbt.ohlcv(freq="1m")
    fast, slow = (vbt.MA.run(bars.close, window) for window in (5, 20))
    portfolio = vbt.Portfolio.from_signals(bars.close, fast.ma_crossed_above(slow), fast.ma_crossed_below(slow))
    return {"bars": len(bars.close), "volume": float(bars.volume.sum()), "orders": int(portfolio.orders.count())}


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))

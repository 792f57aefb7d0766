"""What other tools make of our files, by their own code: run by the Python of venv-tools/, where they are.

    venv-tools/bin/python tests/tools/readers.py NAME ARGUMENT ...

In: files of export.py, and an npz file of the books as they should be. Out: a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

TICK = 0.1


def convert(npz: str, trades: str, depth: str) -> Any:
    """Let hftbacktest convert Tardis' files into its events."""
    from hftbacktest.data.utils import tardis

    data = tardis.convert([trades, depth], npz, buffer_size=5_000_000)
    return {"events": len(data), "trades": float(data["qty"][data["ev"] & 0xFF == 2].sum())}


def books(npz: str, expected: str, *others: str) -> Any:
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
    hbt = HashMapMarketDepthBacktest([_asset(npz, *others)])
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


def _asset(*npz: str) -> Any:
    from hftbacktest import BacktestAsset

    return (
        BacktestAsset()
        .data([*npz])
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
    from nautilus_trader.model.identifiers import InstrumentId

    instrument = InstrumentId.from_str("BTC_USDT-PERP.MEXC")
    loader = TardisCSVDataLoader(price_precision=1, size_precision=0, instrument_id=instrument)
    files = {kind: next(iter(Path(folder).glob(f"*_{kind}_*")), None) for kind in KINDS}
    found = np.load(expected)
    result = _books_of_deltas(loader.load_deltas(files["incremental_book_L2"]), found)
    trades = loader.load_trades(files["trades"])
    result["trades"] = len(trades)
    result["contracts"] = sum(float(trade.size) for trade in trades)
    result["buys"] = sum(trade.aggressor_side.name == "BUYER" for trade in trades)
    result["paid"] = sum(float(str(trade.price)) * float(trade.size) for trade in trades)
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


def days_in_hftbacktest(expected: str, folder: str) -> Any:
    """Let hftbacktest convert several days' files, each day by itself, and keep a book by them, one after the other."""
    converted = []
    for depth in sorted(Path(folder).glob("*_incremental_book_L2_*")):
        trades = depth.with_name(depth.name.replace("incremental_book_L2", "trades"))
        converted.append(f"{depth}.npz")
        convert(converted[-1], str(trades), str(depth))
    return books(converted[0], expected, *converted[1:])


def days_in_nautilus(expected: str, folder: str) -> Any:
    """Let nautilus_trader keep a book by the deltas of several days' files, one after the other."""
    from nautilus_trader.adapters.tardis.loaders import TardisCSVDataLoader
    from nautilus_trader.model.identifiers import InstrumentId

    instrument = InstrumentId.from_str("BTC_USDT-PERP.MEXC")
    loader = TardisCSVDataLoader(price_precision=1, size_precision=0, instrument_id=instrument)
    files = sorted(Path(folder).glob("*_incremental_book_L2_*"))
    return _books_of_deltas([delta for file in files for delta in loader.load_deltas(file)], np.load(expected))


def _books_of_deltas(deltas: list[Any], found: Any) -> dict[str, Any]:
    """Count the books that deltas do not lead to."""
    from nautilus_trader.model.book import OrderBook
    from nautilus_trader.model.enums import BookType

    should = {
        int(ts): _sides(prices, contracts)
        for ts, prices, contracts in zip(found["ts_ms"], found["prices"], found["contracts"], strict=True)
    }
    book = OrderBook(deltas[0].instrument_id, BookType.L2_MBP)
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
    return {"wrong": wrong, "compared": compared}


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


def duckdb(endpoint: str, files: str) -> Any:
    """Let DuckDB read deals in a bucket, by its own extension for that, which it would download elsewhere."""
    import duckdb
    import duckdb_extension_httpfs

    folder = Path(duckdb_extension_httpfs.__file__).parent / "extensions" / f"v{duckdb.__version__}"
    session = duckdb.connect()
    session.load_extension(str(folder / "httpfs.duckdb_extension"))
    session.execute(
        "CREATE SECRET (TYPE s3, KEY_ID 'key', SECRET 'secret', REGION 'us-east-1',"
        f" ENDPOINT '{endpoint}', URL_STYLE 'path', USE_SSL false)"
    )
    session.execute(f"CREATE VIEW deals AS SELECT * FROM '{files}'")
    counts = session.execute("SELECT symbol, date, count(*), sum(contracts) FROM deals GROUP BY ALL ORDER BY ALL")
    result = {"counts": [[symbol, str(date), *more] for symbol, date, *more in counts.fetchall()]}
    plan = session.execute("EXPLAIN SELECT count(*) FROM deals WHERE date = '2026-10-01'").fetchall()
    return {**result, "plan": plan[0][1]}


def _as_documented(library: str, url: str) -> dict[str, Any]:
    """Run what docs/REPLAY.md has for a library, with another address; return what it has defined."""
    text = (Path(__file__).parents[2] / "docs/REPLAY.md").read_text().replace("ws://127.0.0.1:8765/edge", url)
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"import {library}." in each)
    defined: dict[str, Any] = {}
    exec(block, defined)
    return defined


def pymexc(url: str, expected: str) -> Any:
    """Let pymexc take what replay.py pushes, until so many frames have come; return deals, tickers and books."""
    came: dict[str, list[Any]] = {"push.deal": [], "push.ticker": [], "push.depth.full": []}
    is_all = threading.Event()

    def take(frame: Any) -> None:
        came[frame["channel"]].append([frame["ts"], frame["data"]])
        if sum(len(frames) for frames in came.values()) == int(expected):
            is_all.set()

    socket = _as_documented("pymexc", url)["socket"]
    socket.ticker_stream(take, "BTC_USDT")
    socket.deal_stream(take, "BTC_USDT")
    socket.depth_full_stream(take, "BTC_USDT", 20)
    is_all.wait(60)
    deals = [deal for _, data in came["push.deal"] for deal in (data if isinstance(data, list) else [data])]
    return {
        "deals": [[deal["t"], deal["p"], deal["v"], deal["T"]] for deal in deals],
        "tickers": [[ts, ticker["lastPrice"], ticker["fundingRate"]] for ts, ticker in came["push.ticker"]],
        "books": [
            [ts, book["bids"][0][0] if book["bids"] else None, book["asks"][0][1] if book["asks"] else None]
            for ts, book in came["push.depth.full"]
        ],
    }


def ccxt(url: str) -> Any:
    """Let ccxt's pro client take the deals that replay.py pushes, to the end; return them."""
    return asyncio.run(_ccxt(url))


async def _ccxt(url: str) -> Any:
    import ccxt.pro

    exchange = _as_documented("ccxt", url)["exchange"]
    came: list[Any] = []
    with contextlib.suppress(ccxt.pro.NetworkError):  # all is pushed: the connection is closed. Until then the replay
        async with asyncio.timeout(60):  # needs a subscriber, for rows of other channels, too, that it goes through
            while True:
                trades = await exchange.watch_trades("BTC/USDT:USDT")
                came += [[trade["timestamp"], trade["price"], trade["amount"], trade["side"]] for trade in trades]
    await exchange.close()
    return came


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps(globals()[name](*arguments)))

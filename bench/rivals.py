"""Collectors that people write or pick instead, for bench.burst: python3 -m bench.rivals plain|pymexc|ccxt.

In: the BTC_USDT frames of MEXC_WS_URL. Out: rows like this project's, one INSERT each, made where the frame is handed
over. They promise nothing: no journal, what fails is lost. Prices go through binary floats, as the libraries have it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import websocket

from config import BTC_CONFIG, load_settings
from pipeline.store.client import connect

_SYMBOL = BTC_CONFIG["symbol"]
_settings = load_settings(dotenv=None)
_client = connect(_settings, query_settings={"async_insert": 0})


def insert(ts_ms: int, mt: str, m: str) -> None:
    """Store one row."""
    _client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [(ts_ms, mt, m)])


def take(frame: dict[str, Any]) -> None:
    """Store the rows of a frame as MEXC documents it."""
    data, ts_ms = frame["data"], frame["ts"]
    match frame["channel"]:
        case "push.deal":
            for deal in reversed(data) if isinstance(data, list) else [data]:
                insert(ts_ms, "d", f"{deal['p']}|{deal['v']}|{deal['T']}")
        case "push.depth.full":
            insert(ts_ms, "dp", "|".join(",".join(f"[{p},{v}]" for p, v, _ in data[side]) for side in ("bids", "asks")))
        case "push.ticker":
            prices = f"{data['lastPrice']}|{data['fairPrice']}|{data['indexPrice']}"
            insert(ts_ms, "t", f"{prices}|{data['holdVol']}|{data['fundingRate']:.8f}")


def plain() -> None:
    """Take frames with websocket-client, json.loads and nothing else."""

    def subscribe(app: websocket.WebSocketApp) -> None:
        for subscription in BTC_CONFIG["subscriptions"]:
            app.send(json.dumps(subscription))

    app = websocket.WebSocketApp(
        _settings.mexc_ws_url, on_open=subscribe, on_message=lambda _, text: take(json.loads(text))
    )
    app.run_forever()


def pymexc() -> None:
    """Take frames with pymexc."""
    socket = import_module("pymexc.futures").WebSocket()
    socket.endpoint = _settings.mexc_ws_url
    socket.ticker_stream(take, _SYMBOL)
    socket.deal_stream(take, _SYMBOL)
    socket.depth_full_stream(take, _SYMBOL, 20)
    threading.Event().wait()


def ccxt() -> None:
    """Take deals and tickers with ccxt; its order book is another channel, of changes, and needs REST."""
    asyncio.run(_ccxt())


async def _ccxt() -> None:
    exchange = import_module("ccxt.pro").mexc({"newUpdates": True})
    exchange.urls["api"]["ws"]["swap"] = _settings.mexc_ws_url
    base, quote = _SYMBOL.split("_")
    market = {"id": _SYMBOL, "symbol": f"{base}/{quote}:{quote}", "base": base, "quote": quote, "settle": quote}
    kind = {"type": "swap", "spot": False, "swap": True, "contract": True, "linear": True, "contractSize": 0.0001}
    exchange.set_markets([exchange.safe_market_structure({**market, **kind})])  # it would ask REST for all markets

    def store_trades(trades: list[dict[str, Any]]) -> None:
        for trade in trades:
            insert(trade["timestamp"], "d", f"{trade['price']}|{trade['amount']}|{1 if trade['side'] == 'buy' else 2}")

    def store_ticker(ticker: dict[str, Any]) -> None:
        take({"channel": "push.ticker", "ts": ticker["timestamp"], "data": ticker["info"]})

    async def watch(method: Callable[[str], Any], store: Callable[[Any], None]) -> None:
        while True:
            store(await method(market["symbol"]))

    await asyncio.gather(watch(exchange.watch_trades, store_trades), watch(exchange.watch_ticker, store_ticker))


if __name__ == "__main__":
    {"plain": plain, "pymexc": pymexc, "ccxt": ccxt}[sys.argv[1]]()

"""Rows of the simulated exchange's market at times of one's choice, as a collector stores them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from config import load_settings
from local.market import Market
from pipeline.messages import Row, parse_frame
from pipeline.store.client import connect
from tests.stack import Stack

Span = tuple[int, int]
"""From when to when somebody collects, in milliseconds since the epoch."""


def market_rows(
    symbol: str, spans: Sequence[Span], *, seed: int = 0, market: Market | None = None, pace: float = 1.0
) -> Iterator[Row]:
    """Yield what is stored of a market while it goes on from the first span to the last.

    It is a new one, unless it is given; with a `pace` of less than 1, less happens in a second.
    """
    market = market or Market(symbol, seed)
    for start, end in spans:
        now = float(start)
        while now < end:
            event = market.step(round(now))
            for text in event.frames():
                yield from parse_frame(text, symbol, round(now)).rows
            now += event.pause * 1000 / pace


def store(stack: Stack, rows: Sequence[Row], table: str = "btc") -> None:
    """Add rows to a table, in the order they have."""
    with connect(load_settings(stack.env, dotenv=None)) as client:
        client.execute(f"INSERT INTO mexc_data.{table} (ts, mt, m) VALUES", [row[:3] for row in rows])

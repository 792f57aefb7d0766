"""Rows out again, as typed data; the door for scripts and notebooks.

In: a symbol, a type of row, a range of time. Out: pyarrow Tables (decode), files of them (export), and what is missing
or odd (quality, audit). Promise: each row comes out once, in the order it was stored in, with the numbers that MEXC
sent, or is named as one that does not decode. Nothing here writes to ClickHouse.

    from pipeline.read import candles, load, top_of_book

What the columns mean: docs/DATA.md.
"""

from pipeline.read.audit import audit_symbol
from pipeline.read.decode import BadRow, LoadError, candles, depth_levels, load, newest_day, read, top_of_book
from pipeline.read.hft import hftbacktest

__all__ = [
    "BadRow",
    "LoadError",
    "audit_symbol",
    "candles",
    "depth_levels",
    "hftbacktest",
    "load",
    "newest_day",
    "read",
    "top_of_book",
]

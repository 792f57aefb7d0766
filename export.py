#!/usr/bin/env python3
"""Export what is stored as files, one a UTC day: typed columns in Parquet, CSV or Arrow, or what other tools read.

Run again it writes the days that are new or have grown, and no others. A row that does not decode is left out and
reported. Rows are checked by number against ClickHouse before a file gets its name.

Exit codes: 0 all that is asked for is there, 1 it is not, one line says why, 2 an argument or a setting cannot be used.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clickhouse_driver.errors import ServerException

from config import (
    ALL_CONFIGS,
    ConfigError,
    SymbolConfig,
    all_symbols,
    check_identifier,
    choose_symbols,
    load_settings,
)
from pipeline.human import human_size, many, show_warnings_plainly
from pipeline.read import tardis
from pipeline.read.export import COMPRESSIONS, FORMATS, TYPES, ExportError, Job, Result, export
from pipeline.read.freqtrade import export_for_freqtrade
from pipeline.read.places import Bucket, without_keys
from pipeline.store.client import CLICKHOUSE_ERRORS, explain, is_misconfigured
from pipeline.times import parse_time, with_times_joined

LAYOUTS = ("ohlcv", "freqtrade")


def main() -> int:
    """Run the command line; return the exit code."""
    show_warnings_plainly()
    parser = argparse.ArgumentParser(
        description="Export records as files of typed columns, one a UTC day:"
        " DIR/type=deals/symbol=BTC_USDT/date=2026-10-01/part-0.parquet. Days that are there are not done again."
    )
    known = ", ".join(config["table_name"] for config in ALL_CONFIGS)
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL", help=f"such as btc or BTC_USDT, or all: {known}")
    parser.add_argument(
        "--type",
        required=True,
        choices=[*TYPES, *tardis.SOURCES],
        help="depth has a column, depth-levels a row a level; those from trades on are of --format tardis",
    )
    parser.add_argument("--from", dest="start", type=_day, metavar="DATE", help="first day, UTC (default: the oldest)")
    parser.add_argument("--to", dest="end", type=_day, metavar="DATE", help="day before which to end (default: none)")
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="default: parquet")
    parser.add_argument(
        "--compress", choices=COMPRESSIONS, help="CSV files; default: none, so that a spreadsheet opens them"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="a folder, it is made if need be; or s3://bucket/prefix, or gs://"
    )
    parser.add_argument("--interval", metavar="LENGTH", help="of candles: such as 1s, 5m, 1h, 1d (default: 1m)")
    parser.add_argument(
        "--exact", action="store_true", help="numbers as decimals with the digits of MEXC, not as floats"
    )
    parser.add_argument(
        "--fill-from-exchange",
        action="store_true",
        help="candles of whole minutes: where there are no deals, MEXC's own bars, and a column that says so",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="candles for other tools: ohlcv has date, open, high, low, close, volume; freqtrade puts these into the"
        " file that it looks for",
    )
    parser.add_argument(
        "--fill", action="store_true", help="with --layout: each interval has a candle, flat where there are no deals"
    )
    parser.add_argument("--coins", action="store_true", help="for other tools: amounts are coins, not contracts")
    parser.add_argument("--tardis-exchange", metavar="NAME", help=f"for their files; default: {tardis.EXCHANGE}")
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    if options.start and options.end and options.start >= options.end:
        parser.error(f"--from {options.start} is not before --to {options.end}, which is the day after the last")
    if why := _misfit(options):
        parser.error(why)
    try:
        job = _job(options)
    except ValueError as error:
        parser.error(str(error))
    result = Result()
    settings = None
    try:
        out = _place(options.out)
    except ValueError as error:
        parser.error(f"--out {without_keys(str(error))}")
    except OSError as error:
        print(f"{without_keys(options.out)} cannot be used: {error}", file=sys.stderr)
        return 1
    try:
        settings = load_settings()
        configs = chosen(options.symbols, all_symbols(settings))
        troubles: list[str] = []  # a line for each symbol that was not exported
        for config in configs:
            check_identifier("table_name", config["table_name"])
            try:
                if options.layout == "freqtrade" and isinstance(out, Path):
                    export_for_freqtrade(settings, config, job, out, result, start=options.start, end=options.end)
                else:
                    export(settings, config, job, out, result, start=options.start, end=options.end)
            except (ExportError, ServerException) as error:  # which is of this symbol, as far as can be known
                if is_misconfigured(error):
                    raise
                line = explain(error, settings) if isinstance(error, ServerException) else str(error)
                if line not in troubles:
                    print(line, file=sys.stderr)
                troubles.append(line)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except CLICKHOUSE_ERRORS as error:
        assert settings is not None
        print(explain(error, settings), file=sys.stderr)
        return 1
    if len(troubles) < len(configs):
        print(summary(result, out))
    return 1 if result.kept or troubles else 0


def _misfit(options: argparse.Namespace) -> str:
    """Return what of the options does not go together; nothing if all does."""
    is_tardis, is_candles = options.format == "tardis", options.type == "candles"
    if is_tardis != (options.type in tardis.SOURCES):
        return f"--type {options.type} is not of --format {options.format}: see --help"
    for option in ("interval", "fill_from_exchange", "layout"):
        if getattr(options, option) and not is_candles:
            return f"--{option.replace('_', '-')} is for candles only"
    if options.fill and not options.layout:
        return "--fill is for candles with --layout only"
    if options.fill and options.fill_from_exchange:
        return (
            "--fill and --fill-from-exchange do not go together: the price of an empty interval is of one or the other"
        )
    if options.coins and not (is_tardis or options.layout):
        return "--coins is for --format tardis and --layout only: candles and deals have coins in a column"
    if options.tardis_exchange and not is_tardis:
        return "--tardis-exchange is for --format tardis only"
    if options.compress and options.format != "csv":
        return "--compress is for --format csv only"
    if options.exact and (is_tardis or options.layout):
        return "--exact is not for what other tools read: they take floats"
    if options.layout == "freqtrade" and "://" in options.out:
        return "--layout freqtrade is for a folder: freqtrade reads no object storage"
    if options.layout == "freqtrade" and options.format != "parquet":
        return "--format is not for --layout freqtrade, which has one of its own"
    return ""


def _job(options: argparse.Namespace) -> Job:
    """Return what to make of each day. Raises ValueError."""
    return Job(
        options.type,
        options.format,
        options.exact,
        options.interval or "1m" if options.type == "candles" else None,
        options.fill_from_exchange,
        compress=options.compress or "none",
        coins=options.coins,
        exchange=options.tardis_exchange or tardis.EXCHANGE,
        is_ohlcv=bool(options.layout),
        is_flat=options.fill,
    )


def _place(text: str) -> Path | Bucket:
    """Return where to export to. Raises ValueError for an address that cannot be used, and OSError."""
    address = urlsplit(text)
    if address.scheme == "file" and "://" in text:
        if address.netloc not in ("", "localhost"):
            raise ValueError(f"{text} is a file of another machine: give such as file:///srv/archive")
        return Path(unquote(address.path))
    return Bucket(text) if "://" in text else Path(text)


def _day(text: str) -> date:
    try:
        moment = parse_time(text)
        if text.strip().startswith("-"):
            return moment.date()  # the day it was
        return date.fromisoformat(text) if text[:1].isdigit() else moment.date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no date: give such as 2026-10-01, yesterday or -7d") from None


def chosen(names: Sequence[str], configs: Sequence[SymbolConfig]) -> list[SymbolConfig]:
    """Return those of `configs` that `names` are of, each once. Raises ConfigError for one that is not there."""
    try:
        found = choose_symbols([name for name in names if name != "all"], configs)
    except ConfigError as error:
        raise ConfigError(f"{error}, or all") from None
    return [*configs] if "all" in names else found


def summary(result: Result, out: Path | Bucket) -> str:
    """Return the last line: what was written, and what was not."""
    parts = [f"{many(result.files, 'file')} written to {out}, {many(result.rows, 'row')}, {human_size(result.bytes)}"]
    if result.already_there:
        parts.append(f"{many(result.already_there, 'day')} there already")
    if result.filled:
        parts.append(f"{many(result.filled, 'row')} of MEXC's own bars")
    if result.undecoded:
        parts.append(f"{many(result.undecoded, 'row')} left out, not decodable")
    if result.kept:
        parts.append(f"{many(result.kept, 'file')} kept, see above")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

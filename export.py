#!/usr/bin/env python3
"""Export what is stored as files of typed columns, one a UTC day: Parquet, CSV or Arrow, compressed with zstd.

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

from config import (
    ALL_CONFIGS,
    ConfigError,
    SymbolConfig,
    all_symbols,
    check_identifier,
    find_symbol,
    known_symbols,
    load_settings,
)
from pipeline.human import human_size, many
from pipeline.read.export import FORMATS, TYPES, ExportError, Job, Result, export
from pipeline.store.client import CLICKHOUSE_ERRORS, explain
from pipeline.times import parse_time, with_times_joined


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Export records as files of typed columns, one a UTC day, compressed with zstd:"
        " DIR/type=deals/symbol=BTC_USDT/date=2026-10-01/part-0.parquet. Days that are there are not done again."
    )
    known = ", ".join(config["table_name"] for config in ALL_CONFIGS)
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL", help=f"such as btc or BTC_USDT, or all: {known}")
    parser.add_argument("--type", required=True, choices=TYPES, help="depth has a column, depth-levels a row a level")
    parser.add_argument("--from", dest="start", type=_day, metavar="DATE", help="first day, UTC (default: the oldest)")
    parser.add_argument("--to", dest="end", type=_day, metavar="DATE", help="day before which to end (default: none)")
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="default: parquet")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to, it is made if need be")
    parser.add_argument("--interval", metavar="LENGTH", help="of candles: such as 1s, 5m, 1h, 1d (default: 1m)")
    parser.add_argument(
        "--exact", action="store_true", help="numbers as decimals with the digits of MEXC, not as floats"
    )
    parser.add_argument(
        "--fill-from-exchange",
        action="store_true",
        help="candles of whole minutes: where there are no deals, MEXC's own bars, and a column that says so",
    )
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    if options.start and options.end and options.start >= options.end:
        parser.error(f"--from {options.start} is not before --to {options.end}, which is the day after the last")
    if options.interval and options.type != "candles":
        parser.error("--interval is for candles only")
    if options.fill_from_exchange and options.type != "candles":
        parser.error("--fill-from-exchange is for candles only")
    try:
        interval = options.interval or "1m" if options.type == "candles" else None
        job = Job(options.type, options.format, options.exact, interval, options.fill_from_exchange)
    except ValueError as error:
        parser.error(str(error))
    result = Result()
    settings = None
    try:
        settings = load_settings()
        configs = chosen(options.symbols, all_symbols(settings))
        for config in configs:
            check_identifier("table_name", config["table_name"])
            export(settings, config, job, options.out, result, start=options.start, end=options.end)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ExportError as error:
        print(error, file=sys.stderr)
        return 1
    except CLICKHOUSE_ERRORS as error:
        assert settings is not None
        print(explain(error, settings), file=sys.stderr)
        return 1
    print(summary(result, options.out))
    return 1 if result.kept else 0


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
    found = {name: find_symbol(name, configs) for name in names if name != "all"}
    for name, config in found.items():
        if config is None:
            raise ConfigError(f"There is no symbol {name} in config.py: give some of {known_symbols(configs)}, or all")
    return [config for config in configs if "all" in names or config in found.values()]


def summary(result: Result, out: Path) -> str:
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

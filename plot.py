#!/usr/bin/env python3
"""Plot what is stored of a symbol: candles with their volume, mid and spread, the depth of the book, gaps shaded.

As a PNG, or as an HTML page to zoom in, which needs nothing else. However long the range is, it takes little memory.

Exit codes: 0 it is written, 1 it is not, one line says why, 2 an argument or a setting cannot be used.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

from config import ALL_CONFIGS, ConfigError, all_symbols, check_identifier, choose_symbols, load_settings
from pipeline.human import show_warnings_plainly
from pipeline.show.chart import Chart, NoChart, read_chart
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.source import HistoryError, open_history
from pipeline.times import with_times_joined
from verif import file_argument, replace_file, time_argument

_PATIENCE = 3600.0  # seconds without a word from the server; some say none while they look for rows


def main() -> int:
    """Run the command line; return the exit code."""
    show_warnings_plainly()
    parser = argparse.ArgumentParser(
        description="Plot what is stored of a symbol: candles with volume, mid and spread, depth, gaps. Times are UTC."
    )
    known = ", ".join(config["table_name"] for config in ALL_CONFIGS)
    parser.add_argument("symbol", metavar="SYMBOL", help=f"such as btc or BTC_USDT: {known}")
    parser.add_argument("--from", dest="start", type=time_argument, metavar="TIME", help="a UTC date or ISO time")
    parser.add_argument("--to", dest="end", type=time_argument, metavar="TIME", help="likewise, at which to end")
    parser.add_argument(
        "--out", required=True, type=_picture, metavar="FILE", help="such as btc.png, or btc.html, a page to zoom in"
    )
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    if options.start and options.end and options.start >= options.end:
        parser.error("--from has to be before --to")
    drawn = _drawing(options.out)  # before anything is read, for a package may be missing
    try:
        settings = load_settings()
        (config,) = choose_symbols([options.symbol], all_symbols(settings))
        check_identifier("table_name", config["table_name"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with connect(settings, timeout=_PATIENCE) as client, open_history(settings, timeout=_PATIENCE) as history:
            chart = read_chart(client, settings, config, options.start, options.end, history)
    except (NoChart, HistoryError) as error:
        print(error, file=sys.stderr)
        return 1
    except CLICKHOUSE_ERRORS as error:
        print(explain(error, settings), file=sys.stderr)
        return 1
    try:
        replace_file(options.out, drawn(chart))
    except OSError as error:
        print(f"{options.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for what in chart.lacks:
        print(f"{chart.symbol}: there are no {what} in this range", file=sys.stderr)
    print(f"Written: {options.out.absolute()}")
    return 0


def _picture(text: str) -> Path:
    if not text.lower().endswith((".png", ".html")):
        raise argparse.ArgumentTypeError(f"{text} is neither: give a name that ends in .png or .html")
    return file_argument(text)


def _drawing(path: Path) -> Callable[[Chart], bytes | str]:
    """Return what makes a file's content of a chart."""
    if path.name.lower().endswith(".html"):
        from pipeline.show.interactive import page

        return page
    from pipeline.show.picture import draw

    def png(chart: Chart) -> bytes:
        file = io.BytesIO()
        draw(chart).savefig(file, format="png")
        return file.getvalue()

    return png


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

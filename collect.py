#!/usr/bin/env python3
"""Collect the symbols of SYMBOLS, or those named, each as btcdat.py does for one, until Ctrl-C or SIGTERM.

Exit codes, those of a collector: 0 stopped, 1 all had too many errors, start it again, 2 it cannot run as configured.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import sys
import time

from config import ConfigError, all_symbols, check_identifier, choose_symbols, load_settings, more_symbols
from pipeline.collect.fleet import Fleet
from pipeline.status import check, status_path


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Collect many symbols, a process each.")
    parser.add_argument("symbols", nargs="*", metavar="SYMBOL", help="such as xrp or XRP_USDT (default: SYMBOLS)")
    parser.add_argument(
        "--list", action="store_true", help="only list them, and whether a collector of each works, the worst first"
    )
    options = parser.parse_args()
    try:
        settings = load_settings()
        configs = choose_symbols(options.symbols, all_symbols(settings)) or more_symbols(settings)
        for config in configs:
            check_identifier("table_name", config["table_name"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if not configs:
        print("SYMBOLS is empty: name some in .env, such as SYMBOLS=XRP_USDT,DOGE_USDT", file=sys.stderr)
        return 2
    if options.list:
        paths = [status_path(settings, config["table_name"]) for config in configs]
        states = [(*check(path, settings, time.time()), config) for path, config in zip(paths, configs, strict=True)]
        for _, line, config in sorted(states, key=lambda state: state[0]):  # those that do not work come first
            print(f"{config['table_name']:<10} {config['symbol']:<15} {line}")
        return 0
    return Fleet(configs, settings).run()


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

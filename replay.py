#!/usr/bin/env python3
"""Replay what is stored as MEXC would push it: a bot that is written for MEXC runs on it with another address.

It begins when each symbol is subscribed to, and ends when all is pushed. docs/REPLAY.md has what is pushed.

Exit codes: 0 all was pushed and taken, 1 it was not, one line says why, 2 an argument or a setting cannot be used,
130 it was stopped.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import asyncio
import math
import os
import sys

from config import ALL_CONFIGS, ConfigError, all_symbols, check_identifier, load_settings
from export import chosen
from local.replay import Replay
from pipeline.files import silence_stdout
from pipeline.human import many, show_warnings_plainly
from pipeline.read import LoadError
from pipeline.read.rows import stored_rows
from pipeline.times import with_times_joined
from verif import time_argument


def main() -> int:
    """Run the command line; return the exit code."""
    show_warnings_plainly()
    parser = argparse.ArgumentParser(
        description="Replay what is stored as MEXC would push it, on ws://127.0.0.1:8765/edge. It begins when each"
        " symbol is subscribed to, and ends when all is pushed."
    )
    known = ", ".join(config["table_name"] for config in ALL_CONFIGS)
    parser.add_argument("symbols", nargs="+", metavar="SYMBOL", help=f"such as btc or BTC_USDT, or all: {known}")
    parser.add_argument(
        "--from", dest="start", type=time_argument, metavar="TIME", help="UTC (default: the oldest row's)"
    )
    parser.add_argument("--to", dest="end", type=time_argument, metavar="TIME", help="at which to end (default: none)")
    parser.add_argument("--speed", type=_speed, default=1.0, help="so many times as fast, or max (default: 1)")
    parser.add_argument("--port", type=_port, default=8765, help="0 takes any free one (default: 8765)")
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    if options.start and options.end and options.start >= options.end:
        parser.error(f"--from {options.start:%Y-%m-%dT%H:%M:%S} is not before --to {options.end:%Y-%m-%dT%H:%M:%S}")
    try:
        settings = load_settings()
        configs = chosen(options.symbols, all_symbols(settings))
        for config in configs:
            check_identifier("table_name", config["table_name"])
        rows = stored_rows(settings, configs, options.start, options.end)
        replay = Replay(rows, [config["symbol"] for config in configs], options.speed, options.port)
        is_whole = asyncio.run(replay.run())
        left_out = f"; {many(replay.unusable, 'row')} left out, not decodable" if replay.unusable else ""
        how = "All" if is_whole else "Stopped:"
        print(f"{how} pushed up to {replay.now}: {many(replay.pushed, 'row')}{left_out}", flush=True)
    except StopIteration:
        print("There are no rows in this range: verif.py --quality says what there is", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = f"Cannot listen on {error.filename}"
        if not error.filename:
            where = "Standard output cannot be written"
            silence_stdout()
        print(f"{where}: {os.strerror(error.errno or 0).lower()}", file=sys.stderr)
        return 1
    return 0 if is_whole else interrupts.INTERRUPTED


def _speed(text: str) -> float:
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = 0.0
    if not (speed >= 0.001 and (speed <= 1e6 or text == "max")):
        raise argparse.ArgumentTypeError(f"{text} is no speed: give such as 1, 10, 0.5, or max")
    return speed


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

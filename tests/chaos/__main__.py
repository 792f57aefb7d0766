"""The long run: python3 -m tests.chaos --rounds 300 [--seed N]."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time

from tests.chaos.rounds import Broken, Chaos, kinds_of


def main() -> int:
    """Run the rounds and print the table; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="the choices of a former run")
    parser.add_argument("--history", action="store_true", help="with HISTORY=1, and turning over among the faults")
    parser.add_argument("--fleet", action="store_true", help="four symbols of collect.py")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)  # the test's own connection breaks, too
    kinds = kinds_of(history=arguments.history, fleet=arguments.fleet)
    chaos = Chaos(arguments.seed, lambda line: print(line, file=sys.stderr, flush=True), kinds)
    begin = time.monotonic()
    try:
        chaos.run(arguments.rounds)
    except Broken as broken:
        print(broken)
        return 1
    finally:
        chaos.print_table()
    print(f"{arguments.rounds} rounds in {(time.monotonic() - begin) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

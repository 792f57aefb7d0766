"""Run benchmarks by name, all of them by default: python3 -m bench [NAME ...]."""

from __future__ import annotations

import argparse
import importlib
import sys

BENCHES = ("latency",)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    names = parser.parse_args().names or BENCHES
    for name in names:
        if name not in BENCHES:
            parser.error(f"there is no benchmark {name}: {', '.join(BENCHES)}")
    for name in names:
        bench = importlib.import_module(f"bench.{name}")
        print(f"\n## {name}: {(bench.__doc__ or "").splitlines()[0]}\n", flush=True)
        bench.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

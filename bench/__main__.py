"""Run benchmarks by name, all of them by default: python3 -m bench [NAME ...]."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from importlib.metadata import version

BENCHES = (
    "burst",
    "latency",
    "cpu",
    "growth",
    "flush",
    "disk",
    "catchup",
    "compaction",
    "journal",
    "connections",
    "symbols",
    "sockets",
    "arrays",
    "history",
)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    names = parser.parse_args().names or BENCHES
    for name in names:
        if name not in BENCHES:
            parser.error(f"there is no benchmark {name}: {', '.join(BENCHES)}")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, chdb {version('chdb')}")
    for name in names:
        bench = importlib.import_module(f"bench.{name}")
        print(f"\n### {name}\n\n{(bench.__doc__ or '').strip()}\n", flush=True)
        begin = time.monotonic()
        bench.main()
        print(f"\n({time.monotonic() - begin:.0f} s; load average {os.getloadavg()[0]:.1f})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

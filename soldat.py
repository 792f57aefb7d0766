#!/usr/bin/env python3
"""SOL_USDT from MEXC futures into the table sol (sol/data.bin), until Ctrl-C or SIGTERM."""

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import sys

from config import SOL_CONFIG
from pipeline.collect.collector import collect

if __name__ == "__main__":
    sys.exit(collect(SOL_CONFIG))

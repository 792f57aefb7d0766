#!/usr/bin/env python3
"""BTC_USDT from MEXC futures into the table btc (btc/data.bin), until Ctrl-C or SIGTERM."""

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import sys

from config import BTC_CONFIG
from pipeline.collect.collector import collect

if __name__ == "__main__":
    sys.exit(collect(BTC_CONFIG))

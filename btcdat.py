#!/usr/bin/env python3
"""BTC_USDT from MEXC futures into the table btc (btc/data.bin), until Ctrl-C or SIGTERM."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C amid the imports just ends it; afterwards the collector takes it

from config import BTC_CONFIG
from pipeline.collect.collector import collect

if __name__ == "__main__":
    sys.exit(collect(BTC_CONFIG))

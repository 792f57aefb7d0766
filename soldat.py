#!/usr/bin/env python3
"""SOL_USDT from MEXC futures into the table sol (sol/data.bin), until Ctrl-C or SIGTERM."""

import sys

from config import SOL_CONFIG
from pipeline.collect.collector import collect

if __name__ == "__main__":
    sys.exit(collect(SOL_CONFIG))

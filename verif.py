#!/usr/bin/env python3
"""Report how many records the tables hold, of which type, and what they take on disk.

Exit codes: 0 there are records, 1 there are none or ClickHouse cannot be asked, 2 a setting cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from config import ALL_CONFIGS, ConfigError, Settings, check_identifier, load_settings
from pipeline.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.storage import Storage, TableStorage, survey

_TYPES = {"t": "Ticker messages", "d": "Deal messages", "dp": "Depth messages", "dl": "Dead letters"}


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Report records and storage of all symbols in config.py.")
    parser.add_argument("--json", action="store_true", help="print the same as JSON; sizes in bytes")
    options = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        settings = load_settings()
        for config in ALL_CONFIGS:
            check_identifier("table_name", config["table_name"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        storage = survey(connect(settings), settings.clickhouse_database, ALL_CONFIGS, show_progress=True)
    except CLICKHOUSE_ERRORS as error:
        print(explain(error, settings), file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"records": storage.records, **asdict(storage)}, indent=2))
    elif any(table.exists for table in storage.tables):
        print(report(storage, settings.compact_blocks))
    if not any(table.exists for table in storage.tables):
        print(f"There are no tables in {settings.clickhouse_database}: run ch_setup.py", file=sys.stderr)
        return 1
    if not storage.records:
        print("The tables are empty: no collector has stored a record yet", file=sys.stderr)
        return 1
    return 0


def report(storage: Storage, compact_blocks: int) -> str:
    """Return the report as text; `compact_blocks` is the setting COMPACT_BLOCKS."""
    lines = ["💾 Symbol-specific storage status:", "", f"Total records appended: {storage.records}"]
    lines += [f"  {table.name}/data.bin: {table.records} records" for table in storage.tables]
    lines += ["", "Records by symbol and message type:"]
    for table in storage.tables:
        if table.records:
            lines.append(f"  {table.name.upper()}: {table.records} total")
            lines += [f"    {f'{mt}: {count}':<8} # {_TYPES[mt]}" for mt, count in table.by_type.items()]
    lines += ["", "STORAGE STATISTICS"]
    if storage.volume is not None:
        lines.append(f"  Total ClickHouse volume size: {human_size(storage.volume)}")
    else:
        lines.append("  This server does not show its files; sizes are from system.tables, data.bin + index.mrk:")
    lines += [f"  {table.name}/data.bin: {_size(table, storage.files_seen)}" for table in storage.tables]
    if storage.records:
        lines += ["", "Blocks, and what they cost the server in memory:"]
    lines += [f"  {table.name}: {_blocks(table)}" for table in storage.tables if table.records]
    for table in storage.tables:
        if advice := _advice(table, compact_blocks):
            lines.append(f"  {table.name} is fragmented: {advice}")
    return "\n".join(lines)


def _blocks(table: TableStorage) -> str:
    blocks = f"{table.blocks:,} block{'s' * (table.blocks != 1)}"
    return f"{blocks} of {table.records / table.blocks:,.1f} rows on average, about {human_size(table.block_memory)}"


def _advice(table: TableStorage, compact_blocks: int) -> str:
    """Return what to do about the table's small blocks; nothing where they are no more than they have to be."""
    compact_now = f"python3 ch_setup.py --compact {table.name}"
    if not compact_blocks and table.small_blocks > Settings.compact_blocks:
        return f"run {compact_now}, and set COMPACT_BLOCKS for collectors to do it"
    if compact_blocks and table.small_blocks > 2 * compact_blocks:
        return (
            f"{table.small_blocks:,} small blocks, more than twice COMPACT_BLOCKS. If its collector's log says that the"
            f" next compaction waits, raise FLUSH_INTERVAL; if no collector runs, {compact_now}"
        )
    return ""


def _size(table: TableStorage, files_seen: bool) -> str:
    if not table.exists:
        return "No such table, run ch_setup.py"
    if not files_seen:
        return human_size(table.total_bytes or 0)
    if table.data_bin is None:
        return "File not found yet"
    return f"{human_size(table.data_bin)} ({table.data_bin} bytes), index.mrk: {human_size(table.index_mrk or 0)}"


def human_size(size: int) -> str:
    """Return `size` bytes as du -h would: 221B, 124.0K, 4.1M, in units of 1024."""
    value, unit = float(size), "B"
    for larger in "KMGT":
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{size}B" if unit == "B" else f"{value:.1f}{unit}"


if __name__ == "__main__":
    sys.exit(main())

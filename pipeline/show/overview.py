"""The report on the storage of many symbols: a line each, the worst first.

In: what pipeline.store.storage and pipeline.store.tiers found out. Out: text. It imports none of the packages that
reading rows takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.human import aligned, human_size, many
from pipeline.messages import TYPE_NAMES
from pipeline.store.storage import Storage, TableStorage, advice, records_by_type
from pipeline.store.tiers import Tier, Tiers
from pipeline.times import iso

_MISSING = "No such table, run ch_setup.py"


def storage_overview(storage: Storage, compact_blocks: int, both: Mapping[str, Mapping[str, int]]) -> str:
    """Return records and sizes.

    `compact_blocks` is the setting COMPACT_BLOCKS; `both` are the records by type of each table and its history, by
    table, where there are histories.
    """
    by_type = records_by_type(storage.tables, both)
    records = sum(sum(counts.values()) for counts in by_type.values())
    said = {table.name: advice(table, compact_blocks) for table in storage.tables if table.exists}
    said |= {table.name: f"{table.name}: {_MISSING}" for table in storage.tables if not table.exists}
    tables = sorted(storage.tables, key=lambda table: _rank(table, by_type[table.name], said[table.name]))
    header = ("table", "records", *TYPE_NAMES.values(), "data.bin", "index.mrk", "blocks", "their memory")
    cells = [_cells(table, by_type[table.name]) for table in tables]
    lines = ["💾 Symbol-specific storage status:", ""]
    lines += [f"Total records appended: {records} in {many(len(tables), 'table')}", ""]
    if trouble := [said[table.name] for table in tables if said[table.name]]:
        lines += [*(f"  {line}" for line in trouble), ""]
    lines += [f"  {line}" for line in aligned([header, *cells], "<" + ">" * (len(header) - 1))]
    lines += ["", "STORAGE STATISTICS"]
    if storage.volume is not None:
        lines.append(f"  Total ClickHouse volume size: {human_size(storage.volume)}")
    else:
        lines.append("  This server does not show its files; sizes are from system.tables, data.bin + index.mrk")
    return "\n".join(lines)


def tiers_overview(tiers: Sequence[Tiers]) -> str:
    """Return from when to when each history has rows, and how many its table has beside it."""
    in_order = sorted(tiers, key=lambda each: not each.amiss)
    header = ("history", "records", "on disk", "from", "to", "in its table")
    cells = [_tier_cells(each.history, each.live) for each in in_order if each.history]
    lines = ["", "History, and what its table has beside it:", ""]
    if trouble := [each.amiss for each in in_order if each.amiss]:
        lines += [*(f"  {line}" for line in trouble), ""]
    return "\n".join([*lines, *(f"  {line}" for line in aligned([header, *cells], "<>><<>"))])


def _tier_cells(history: Tier, live: Tier | None) -> list[str]:
    times = ["" if ms is None else iso(ms) for ms in (history.oldest_ms, history.newest_ms)]
    beside = str(live.records) if live else "no table"
    return [history.name, str(history.records), human_size(history.total_bytes), *times, beside]


def _rank(table: TableStorage, by_type: Mapping[str, int], said: str) -> int:
    return 0 if not table.exists else 1 if said else 2 if not sum(by_type.values()) else 3 if by_type.get("dl") else 4


def _cells(table: TableStorage, by_type: Mapping[str, int]) -> list[str]:
    sizes = [table.data_bin, table.index_mrk] if table.data_bin is not None else [table.total_bytes or 0, None]
    return [
        table.name,
        str(sum(by_type.values())),
        *(str(by_type.get(mt, 0)) for mt in TYPE_NAMES),
        *("" if size is None else human_size(size) for size in sizes),
        str(table.blocks),
        human_size(table.block_memory),
    ]

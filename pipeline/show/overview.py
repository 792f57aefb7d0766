"""The report on the storage of many symbols: a line each, the worst first.

In: what pipeline.store.storage found out. Out: text. It imports none of the packages that reading rows takes.
"""

from __future__ import annotations

from pipeline.human import aligned, human_size, many
from pipeline.messages import TYPE_NAMES
from pipeline.store.storage import Storage, TableStorage, advice

_MISSING = "No such table, run ch_setup.py"


def storage_overview(storage: Storage, compact_blocks: int) -> str:
    """Return records and sizes; `compact_blocks` is the setting COMPACT_BLOCKS."""
    said = {table.name: advice(table, compact_blocks) for table in storage.tables if table.exists}
    said |= {table.name: f"{table.name}: {_MISSING}" for table in storage.tables if not table.exists}
    tables = sorted(storage.tables, key=lambda table: _rank(table, said[table.name]))
    header = ("table", "records", *TYPE_NAMES.values(), "data.bin", "index.mrk", "blocks", "their memory")
    cells = [_cells(table) for table in tables]
    lines = ["💾 Symbol-specific storage status:", ""]
    lines += [f"Total records appended: {storage.records} in {many(len(tables), 'table')}", ""]
    if trouble := [said[table.name] for table in tables if said[table.name]]:
        lines += [*(f"  {line}" for line in trouble), ""]
    lines += [f"  {line}" for line in aligned([header, *cells], "<" + ">" * (len(header) - 1))]
    lines += ["", "STORAGE STATISTICS"]
    if storage.volume is not None:
        lines.append(f"  Total ClickHouse volume size: {human_size(storage.volume)}")
    else:
        lines.append("  This server does not show its files; sizes are from system.tables, data.bin + index.mrk")
    return "\n".join(lines)


def _rank(table: TableStorage, said: str) -> int:
    return 0 if not table.exists else 1 if said else 2 if not table.records else 3 if table.by_type.get("dl") else 4


def _cells(table: TableStorage) -> list[str]:
    sizes = [table.data_bin, table.index_mrk] if table.data_bin is not None else [table.total_bytes or 0, None]
    return [
        table.name,
        str(table.records),
        *(str(table.by_type.get(mt, 0)) for mt in TYPE_NAMES),
        *("" if size is None else human_size(size) for size in sizes),
        str(table.blocks),
        human_size(table.block_memory),
    ]

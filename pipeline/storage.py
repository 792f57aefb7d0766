"""How many records there are, and what they take on disk, for verif.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import SymbolConfig


@dataclass
class TableStorage:
    """One table. Sizes are bytes; None where the file does not exist or cannot be seen."""

    name: str
    exists: bool = False
    records: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    """Records by message type: t, d, dp, dl."""
    data_bin: int | None = None
    index_mrk: int | None = None
    total_bytes: int | None = None
    """Both files together, as ClickHouse counts them; there even where the files cannot be seen."""


@dataclass
class Storage:
    """All tables, and the whole of ClickHouse's data directory."""

    tables: list[TableStorage]
    files_seen: bool
    """Whether the sizes are those of the files; if not, `total_bytes` of each table is all that is known."""
    volume: int | None
    """Bytes of all files below ClickHouse's data directory; None where they cannot be seen."""

    @property
    def records(self) -> int:
        """Records of all tables."""
        return sum(table.records for table in self.tables)


def survey(client: Client, database: str, configs: Sequence[SymbolConfig]) -> Storage:
    """Ask ClickHouse for all of it. Raises one of pipeline.client.CLICKHOUSE_ERRORS."""
    query = "SELECT name, data_paths, total_bytes FROM system.tables WHERE database = %(database)s"
    found = {name: rest for name, *rest in client.execute(query, {"database": database})}
    tables = [TableStorage(config["table_name"]) for config in configs]
    files = _files(client)
    seen = False
    for table in tables:
        if table.name not in found:
            continue
        table.exists = True
        for mt, count in client.execute(f"SELECT mt, count() FROM {database}.{table.name} GROUP BY mt ORDER BY mt"):
            table.by_type[mt] = count
        table.records = sum(table.by_type.values())
        paths, table.total_bytes = found[table.name]
        if files is not None:
            table.data_bin = files.get(f"{paths[0]}data.bin")
            table.index_mrk = files.get(f"{paths[0]}index.mrk")
            # The server may show files and yet not these; an empty table has none, which proves nothing.
            seen = seen or table.data_bin is not None or (not table.records and bool(files))
    return Storage(tables, seen, sum(files.values()) if files is not None and seen else None)


def _files(client: Client) -> dict[str, int] | None:
    """Return the bytes of every file below user_files_path, by path; None where the server does not allow it.

    clickhouse-config-simple.xml and the local stack set user_files_path to the data directory itself. In it, data/
    holds links to the tables' directories, which would count their files twice.
    """
    query = """
        SELECT _path, _size FROM file('**', One)
        WHERE NOT startsWith(_path, (SELECT path || 'data/' FROM system.disks WHERE name = 'default'))
    """
    try:
        return dict(client.execute(query))
    except ServerException:
        return None

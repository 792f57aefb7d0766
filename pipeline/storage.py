"""How many records there are, and what they take on disk, for verif.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import SymbolConfig
from pipeline.schema import existing_tables


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
    tables = [TableStorage(config["table_name"]) for config in configs]
    found = existing_tables(client, database)
    for table in tables:
        table.exists = table.name in found
        if table.exists:
            query = f"SELECT mt, count() FROM {database}.{table.name} GROUP BY mt ORDER BY mt"
            table.by_type = dict(client.execute(query))
            table.records = sum(table.by_type.values())
    # Last, for after a restart ClickHouse knows total_bytes only of a table that was read.
    query = "SELECT name, data_paths[1], total_bytes FROM system.tables WHERE database = %(database)s"
    directories = {name: rest for name, *rest in client.execute(query, {"database": database})}
    files = _files(client)
    for table in tables:
        if table.name in directories:
            path, table.total_bytes = directories[table.name]
            table.data_bin = files.get(f"{path}data.bin")
            table.index_mrk = files.get(f"{path}index.mrk")
    # The server may show other files than these; an empty table has none.
    seen = bool(files) and all(table.data_bin is not None for table in tables if table.records)
    return Storage(tables, seen, sum(files.values()) if seen else None)


def _files(client: Client) -> dict[str, int]:
    """Return the bytes of every file below user_files_path, by path; nothing where the server does not allow it.

    clickhouse-config-simple.xml and the local stack set user_files_path to the data directory itself. In it, data/ and
    metadata/ hold links into store/, which would count those files twice.
    """
    query = """
        WITH (SELECT length(path) FROM system.disks WHERE name = 'default') AS root
        SELECT _path, _size FROM file('**', One)
        WHERE NOT match(substring(_path, root + 1), '^(data|metadata/[^/]+)/')
    """
    try:
        return dict(client.execute(query))
    except ServerException:
        return {}

"""How many records there are, and what they take on disk, for verif.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException

from config import Settings, SymbolConfig
from pipeline.progress import progress
from pipeline.store.compact import BLOCK_ROWS, read_table

_TRIES = 50  # to see all files: each INSERT makes one that is gone a moment later, and then a try fails
_BLOCK_MEMORY = 450  # bytes of the server's; 430 to 475 were measured


@dataclass
class TableStorage:
    """One table. Sizes are bytes; None where the file does not exist or cannot be seen."""

    name: str
    exists: bool = False
    being_compacted: bool = False
    """Whether the rows have been counted where a compaction keeps them meanwhile, since there is none by this name."""
    records: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    """Records by message type: t, d, dp, dl."""
    hidden: int = 0
    """How many more the table has, kept from this user by a row policy, or by a profile that ends reads early."""
    data_bin: int | None = None
    index_mrk: int | None = None
    total_bytes: int | None = None
    """Both files together, as ClickHouse counts them; there even where the files cannot be seen."""
    blocks: int = 0
    """Each INSERT makes one, and compaction makes few of many."""
    small_blocks: int = 0
    """How many more these are than a compacted table would have."""
    block_memory: int = 0
    """Bytes of memory that the blocks cost the server for as long as it runs, about."""


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


def records_by_type(
    tables: Iterable[TableStorage], both: Mapping[str, Mapping[str, int]]
) -> dict[str, Mapping[str, int]]:
    """Return the records of each table by message type, by its name: those of `both`, where it is among them."""
    return {table.name: both.get(table.name, table.by_type) for table in tables}


def survey(client: Client, database: str, configs: Sequence[SymbolConfig], *, show_progress: bool = False) -> Storage:
    """Ask ClickHouse for all of it. Raises one of pipeline.store.client.CLICKHOUSE_ERRORS.

    All rows are read, of their columns only `mt`; with `show_progress` a terminal sees how far that is.
    """
    tables = [TableStorage(config["table_name"]) for config in configs]
    query = "SELECT sum(total_rows) FROM system.tables WHERE database = %(database)s AND name IN %(names)s"
    ((rows,),) = client.execute(query, {"database": database, "names": [table.name for table in tables]})
    with progress("Counting records", rows) if show_progress else nullcontext(lambda count: None) as advance:
        for table in tables:
            table.exists = bool(read_table(client, database, table.name, partial(_count, client, table, advance)))
    files = _files(client)
    for table in tables:
        path = read_table(client, database, table.name, partial(_look, client, table)) if table.exists else None
        table.data_bin = files.get(f"{path}data.bin")
        table.index_mrk = files.get(f"{path}index.mrk")
    # The server may show other files than these; an empty table has none.
    seen = bool(files) and all(table.data_bin is not None for table in tables if table.records)
    return Storage(tables, seen, sum(files.values()) if seen else None)


def advice(table: TableStorage, compact_blocks: int) -> str:
    """Return a line on what to do about the table's small blocks; nothing where they are no more than they have to be.

    Where it is being compacted already, or not all of it was read, that is the line. `compact_blocks` is the setting
    COMPACT_BLOCKS.
    """
    if table.hidden:
        return (
            f"{table.name} has {table.hidden:,} records more, which this user cannot read: see its row policies, and"
            " max_rows_to_read and its like in the user's profile"
        )
    if table.being_compacted:
        return f"{table.name} is being compacted: new rows wait in the journal"
    begin = f"{table.name} is fragmented: {table.small_blocks:,} small blocks"
    compact_now = f"python3 ch_setup.py --compact {table.name}"
    if not compact_blocks and table.small_blocks > Settings.compact_blocks:
        return f"{begin}. Run {compact_now}, and set COMPACT_BLOCKS for collectors to do it"
    if compact_blocks and table.small_blocks > 2 * compact_blocks:
        return (
            f"{begin}, more than twice COMPACT_BLOCKS. If its collector's log says that the next compaction waits,"
            f" raise FLUSH_INTERVAL; if no collector runs, {compact_now}"
        )
    return ""


def _count(client: Client, table: TableStorage, advance: Callable[[float], None], source: str) -> bool:
    """Count the rows and blocks of `table`, which are in the table `source`; return True."""
    client.execute(f"SELECT 1 FROM {source} LIMIT 1")  # before it is touched, the server does not know its size
    held = _total_rows(client, source)
    query = f"SELECT mt, count(), countIf(rowNumberInBlock() = 0) FROM {source} GROUP BY mt ORDER BY mt"
    answer = client.execute_with_progress(query)
    seen = 0
    for counted, _ in answer:
        advance(counted - seen)
        seen = counted
    counts = answer.get_result()
    table.by_type = {mt: records for mt, records, _ in counts}
    table.records = sum(table.by_type.values())
    table.hidden = max(0, min(held, _total_rows(client, source)) - table.records)  # it may have been emptied meanwhile
    table.blocks = sum(first_in_block for *_, first_in_block in counts)
    table.small_blocks = max(0, table.blocks - -(-table.records // BLOCK_ROWS))
    table.block_memory = table.blocks * _BLOCK_MEMORY
    table.being_compacted = source.partition(".")[2] != table.name
    return True


def _total_rows(client: Client, source: str) -> int:
    """Return how many rows a table has, whatever this user may see of it."""
    query = "SELECT total_rows FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    database, _, name = source.partition(".")
    return sum(rows or 0 for (rows,) in client.execute(query, {"database": database, "name": name}))


def _look(client: Client, table: TableStorage, source: str) -> str:
    """Note the bytes of `table`, whose rows are in the table `source`; return the directory that they are in.

    After a restart, ClickHouse knows them only of a table that was read.
    """
    query = "SELECT data_paths[1], total_bytes FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    database, _, name = source.partition(".")
    for path, table.total_bytes in client.execute(query, {"database": database, "name": name}):
        return str(path)
    return ""


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
    for _ in range(_TRIES):
        try:
            return dict(client.execute(query))
        except ServerException as error:
            if error.code != ErrorCodes.FILE_DOESNT_EXIST:
                break
    return {}

"""The tables in ClickHouse: what they are made of, creating and resetting them, and silencing the server's own logs."""

from __future__ import annotations

import secrets

from clickhouse_driver import Client

from config import SymbolConfig

ENGINE = "StripeLog"

_TABLE = """
CREATE TABLE {name} UUID '{uuid}' (
    ts DateTime64(3),
    mt Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4),
    m String
) ENGINE = {engine} COMMENT '{token}'
"""


def parse_comment(comment: str) -> tuple[str, int]:
    """Return a table's creation token, and how many rows it had before it was last turned over, by its COMMENT.

    Turning over leaves the token as it is, so `token+1000` is the same table as `token`, and its first row the 1001st.
    A `!` at the end is that of a table that is being emptied for that.
    """
    token, _, before = comment.removesuffix("!").partition("+")
    return (token, int(before)) if before.isdecimal() else (comment, 0)


CLAIMS = "collectors"
"""The table by which a collector sees that another one writes to its table: pipeline.collect.lease."""

# Buffer without a table behind it: rows are in memory, without a file, and all of them go when there are too many.
_CLAIMS = """
CREATE TABLE {name} (
    name String, owner String, lock String, who String,
    since DateTime64(6, 'UTC'), at DateTime64(6, 'UTC'), until DateTime64(6, 'UTC')
) ENGINE = Buffer('', '', 1, 86400, 86400, 10000, 10000, 100000000, 100000000)
"""


def drop_system_logs(client: Client) -> list[str]:
    """Drop ClickHouse's own log tables, which outgrow the data otherwise; return their names."""
    found = client.execute(
        "SELECT name FROM system.tables WHERE database = 'system' AND engine LIKE '%MergeTree'"
        " AND match(name, '_log(_[0-9]+)?$') ORDER BY name"
    )
    names = [f"system.{name}" for (name,) in found]
    for name in names:
        client.execute(f"DROP TABLE IF EXISTS {name} SYNC")
    return names


def create_database(client: Client, database: str) -> None:
    """Create `database` unless it is there. Atomic is what gives a table a UUID, and its UUID a fixed path."""
    client.execute(f"CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic")


def create_claims(client: Client, database: str) -> None:
    """Create the table of claims unless it is there; one that was just made is known to have lost none."""
    if CLAIMS in existing_tables(client, database):
        return
    name = f"{database}.{CLAIMS}"
    client.execute(_CLAIMS.format(name=f"IF NOT EXISTS {name}"))
    client.execute(f"INSERT INTO {name} (at) SELECT now64(6) - INTERVAL 1 HOUR")


def existing_tables(client: Client, database: str) -> dict[str, str]:
    """Return the engines of the tables of `database` by name; nothing where there is no such database."""
    query = "SELECT name, engine FROM system.tables WHERE database = %(database)s"
    return dict(client.execute(query, {"database": database}))


def comment_of(client: Client, database: str, name: str) -> str:
    """Return the comment of a table; empty where it has none, or does not exist."""
    query = "SELECT comment FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    found = client.execute(query, {"database": database, "name": name})
    return str(found[0][0]) if found else ""


def table_with_uuid(client: Client, uuid: str) -> str | None:
    """Return ``database.table`` of the table that has this UUID; None if there is none."""
    found = client.execute("SELECT database, name FROM system.tables WHERE uuid = %(uuid)s", {"uuid": uuid})
    return ".".join(found[0]) if found else None


def create_table(client: Client, database: str, config: SymbolConfig) -> None:
    """Create the table of `config`.

    Its comment is a random creation token: by it, a collector tells this table from the one it replaced.
    """
    name = f"{database}.{config['table_name']}"
    client.execute(_TABLE.format(name=name, uuid=config["uuid"], engine=ENGINE, token=secrets.token_hex(8)))


def drop_table(client: Client, database: str, config: SymbolConfig) -> None:
    """Delete the table of `config` with all that is in it, if it is there."""
    client.execute(f"DROP TABLE IF EXISTS {database}.{config['table_name']} SYNC")  # SYNC frees the UUID

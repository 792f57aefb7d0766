"""The history: with HISTORY=1, a table's rows once more, in a MergeTree, where a range of time costs what is in it.

In: settings, and a client of the server that has it, which may be another one (`server_of`, `connect_history`). Out:
its tables and views, made (`provide`) and checked (`what_is_wrong`). Promise: nothing here deletes rows but `drop`.

For a table `btc` there are, in the same database,

    btc_history                         the rows. n is their order: the journal's seq, in microseconds since the epoch
                                        where a run began; of rows that ch_setup.py --history copied, numbers below that
    btc_deals, btc_tickers, btc_depth   views on it with typed columns
    history_begins                      one for all tables: which of their rows are in the history

A row of `btc` has a number that stays: where the table was turned over, its comment says how
many rows it had before, and those count (`parse_comment` in pipeline.store.schema). A `Beginning` says: of the rows
after number `first`, up to number `rows`, the history may lack some, and has the others with `after` < n' < `n`; every
row after them is in it, or will be, with n' >= `n`, in the same order. `ch_setup.py --history` copies what is missing
into that gap of n, and then notes the same once more with `first` = `rows`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from clickhouse_driver import Client

from config import Settings
from pipeline.store.client import connect, explain
from pipeline.store.schema import comment_of
from pipeline.times import from_ms

COLUMNS = {
    "n": "UInt64",
    "ts": "DateTime64(3)",
    "received": "DateTime64(6)",
    "event": "DateTime64(3)",
    "mt": "Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4)",
    "id": "UInt64",
    "m": "String",
}
"""The names and types of a history's columns."""

BEGINS = "history_begins"
"""The table of beginnings."""

_SEAM = 20  # rows by which a table and its history are seen to go on alike

_WIDE = "min_bytes_for_wide_part = 0, min_rows_for_wide_part = 0"  # a compact part has a file called data.bin

# Partitions are months of UTC, whatever the server's time zone: who sends an INSERT has to know where one ends.
_PARTITION, _ORDER = "toYYYYMM(ts, 'UTC')", "mt, ts, n"

# By when rows came, not by their own time: a row whose time is wrong stays as long as those beside it.
_TTL = "toDate(received, 'UTC') + toIntervalDay({days})"

# The index on n is for who asks what was added since some n. What was acknowledged is on the disk: blocks come every
# few seconds, so that costs little. Rows are dropped with the whole part of a month, never rewritten for it.
_TABLE = """
CREATE TABLE {table} ({columns}, INDEX n_range n TYPE minmax GRANULARITY 1)
ENGINE = {engine} PARTITION BY {partition} ORDER BY ({order}) {ttl}
SETTINGS {wide}, non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1,
    ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1
COMMENT '{token}'
"""
_BEGINS_TABLE = """
CREATE TABLE IF NOT EXISTS {table} (
    name String, token String, history String, first UInt64, rows UInt64, after UInt64, n UInt64,
    at DateTime64(6) DEFAULT now64(6)
) ENGINE = MergeTree ORDER BY (name, n) SETTINGS {wide}, fsync_after_insert = 1, fsync_part_directory = 1
"""
# Earlier ones had none; without the second statement, what they have would seem to be of whenever it is read.
_BEGINS_AT = (
    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS at DateTime64(6) DEFAULT now64(6)",
    "ALTER TABLE {table} MATERIALIZE COLUMN at SETTINGS mutations_sync = 1",
)

# Decimal(76, 18), not (38, 18): the product of two of the latter overflows, and no error says so. More than 18 digits
# after the point, which no coin has, would be cut off: such a number is NULL, as is a field that is empty.
_NUMBER = r"""if(match({0}, '^-?[0-9]{{1,58}}([.][0-9]{{1,18}}0*)?$'), toDecimal256OrNull({0}, 18), NULL)"""
_LEVELS = (
    "arrayFilter(level -> level.1 IS NOT NULL AND level.2 > 0, arrayMap(level -> ({price}, {amount}),"
    " arrayMap(text -> splitByChar(',', text), splitByString('],[', trim(BOTH '[]' FROM {side})))))"
)
_LEVEL = "Tuple(price Decimal(76, 18), contracts Decimal(76, 18))"


def _levels(side: str) -> str:
    numbers = {"price": _NUMBER.format("level[1]"), "amount": _NUMBER.format("level[2]")}
    return f"CAST({_LEVELS.format(side=side, **numbers)}, 'Array({_LEVEL})')"


def _field(number: int) -> str:
    return _NUMBER.format(f"splitByChar('|', m)[{number}]")


_SELECTS = {
    "deals": (
        "d",
        {
            "id": "id",
            "price": _field(1),
            "contracts": _field(2),
            "side": "transform(splitByChar('|', m)[3], ['1', '2'], ['buy', 'sell'], '')",
        },
    ),
    "tickers": (
        "t",
        {
            "last_price": _field(1),
            "fair_price": _field(2),
            "index_price": _field(3),
            "open_interest": "toInt64OrNull(splitByChar('|', m)[4])",
            "funding_rate": _field(5),
        },
    ),
    "depth": (
        "dp",
        {
            "version": "id",
            "bids": _levels("splitByChar('|', m)[1]"),
            "asks": _levels("splitByChar('|', m)[2]"),
            "bid": "if(empty(bids), NULL, bids[1].1)",
            "bid_contracts": "if(empty(bids), NULL, bids[1].2)",
            "ask": "if(empty(asks), NULL, asks[1].1)",
            "ask_contracts": "if(empty(asks), NULL, asks[1].2)",
        },
    ),
}


class Beginning(NamedTuple):
    """From where on a table and its history have the same rows; see the top of this module."""

    first: int
    rows: int
    after: int
    n: int

    @property
    def is_whole(self) -> bool:
        """Whether the history has all rows up to there."""
        return self.first == self.rows


def server_of(settings: Settings) -> Settings:
    """Return settings whose CLICKHOUSE_ ones lead to the server that has the history."""
    return replace(
        settings,
        clickhouse_host=settings.history_host or settings.clickhouse_host,
        clickhouse_port=settings.history_port or settings.clickhouse_port,
        clickhouse_user=settings.history_user or settings.clickhouse_user,
        clickhouse_password=settings.history_password or settings.clickhouse_password,
        clickhouse_secure=(settings.clickhouse_secure if settings.history_secure < 0 else settings.history_secure),
    )


def connect_history(
    settings: Settings, *, timeout: float = 120, query_settings: dict[str, Any] | None = None, **options: Any
) -> Client:
    """Return a client of the server that has the history, as pipeline.store.client.connect does."""
    return connect(server_of(settings), timeout=timeout, query_settings=query_settings, **options)


def explain_history(error: BaseException, settings: Settings) -> str:
    """Return one line on an error of the server that has the history, as pipeline.store.client.explain does."""
    server = server_of(settings)
    return explain(error, server, "CLICKHOUSE" if server == settings else "HISTORY")


def history_of(name: str) -> str:
    """Return the name of the history of the table `name`."""
    return f"{name}_history"


def views_of(name: str) -> list[str]:
    """Return the names of the views on the history of the table `name`."""
    return [f"{name}_{view}" for view in _SELECTS]


def partition_of(ts_ms: int) -> tuple[int, int]:
    """Return the year and the month of the partition of a row with this `ts`: an INSERT is to have rows of one."""
    moment = from_ms(ts_ms)
    return moment.year, moment.month


def is_there(client: Client, database: str, name: str) -> bool:
    """Return whether the table `name` has a history."""
    query = "SELECT count() FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    return bool(client.execute(query, {"database": database, "name": history_of(name)})[0][0])


def provide(client: Client, settings: Settings, name: str) -> None:
    """Make the history of the table `name` unless it is there, and what belongs to it.

    Of one that is there, views and HISTORY_KEEP_DAYS are made anew. Its layout is not touched: see `what_is_wrong`.
    """
    database, history = settings.clickhouse_database, f"{settings.clickhouse_database}.{history_of(name)}"
    client.execute(_BEGINS_TABLE.format(table=f"{database}.{BEGINS}", wide=_WIDE))
    query = "SELECT name FROM system.columns WHERE database = %(database)s AND table = %(name)s"
    if ("at",) not in client.execute(query, {"database": database, "name": BEGINS}):
        for statement in _BEGINS_AT:
            client.execute(statement.format(table=f"{database}.{BEGINS}"))
    days = settings.history_keep_days
    if not is_there(client, database, name):
        client.execute(
            _TABLE.format(
                table=history,
                columns=", ".join(f"{column} {kind} {_codec(column)}" for column, kind in COLUMNS.items()),
                engine=settings.history_engine,
                partition=_PARTITION,
                order=_ORDER,
                ttl=f"TTL {_TTL.format(days=days)}" if days else "",
                wide=_WIDE,
                token=secrets.token_hex(8),
            )
        )
    elif kept_days(client, database, name) != days:
        client.execute(f"ALTER TABLE {history} {f'MODIFY TTL {_TTL.format(days=days)}' if days else 'REMOVE TTL'}")
    for view, (mt, columns) in _SELECTS.items():
        listed = ", ".join(f"{value} AS {column}" if value != column else column for column, value in columns.items())
        client.execute(
            f"CREATE OR REPLACE VIEW {database}.{name}_{view} AS"
            f" SELECT ts, received, event, n, {listed} FROM {history} WHERE mt = '{mt}'"
        )


def _codec(column: str) -> str:
    return "CODEC(ZSTD(1))" if column in ("mt", "m") else "CODEC(Delta, ZSTD(1))"


def kept_days(client: Client, database: str, name: str) -> int:
    """Return for how many days the history of the table `name` keeps rows; 0 is for ever."""
    query = "SELECT create_table_query FROM system.tables WHERE database = %(database)s AND name = %(name)s"
    ((text,),) = client.execute(query, {"database": database, "name": history_of(name)})
    found = re.search(r" TTL .*?toIntervalDay\((\d+)\)", text)
    return int(found[1]) if found else 0


def what_is_wrong(client: Client, database: str, name: str) -> str | None:
    """Return one line on why the history of the table `name` cannot be used, and what to do; None where it can be."""
    history = history_of(name)
    parameters = {"database": database, "name": history}
    found = client.execute(
        "SELECT engine, partition_key, sorting_key FROM system.tables"
        " WHERE database = %(database)s AND name = %(name)s",
        parameters,
    )
    if not found:
        return f"Table {database}.{history} does not exist: run ch_setup.py"
    ((engine, partition, order),) = found
    columns = dict(
        client.execute(
            "SELECT name, type FROM system.columns WHERE database = %(database)s AND table = %(name)s"
            " ORDER BY position",
            parameters,
        )
    )
    if not engine.endswith("MergeTree"):
        difference = f"its engine is {engine}, not a MergeTree"
    elif list(columns.items()) != list(COLUMNS.items()):
        listed = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        difference = f"its columns are {listed}"
    elif (partition, order) != (_PARTITION, _ORDER):
        difference = f"it is PARTITION BY {partition} ORDER BY ({order})"
    else:
        return None
    return (
        f"Table {database}.{history} is not laid out as this version needs it, {difference}: rename it, run ch_setup.py"
        " and then ch_setup.py --history"
    )


def drop(client: Client, database: str, name: str) -> None:
    """Delete the history of the table `name` with all that is in it and belongs to it, if it is there."""
    for view in views_of(name):
        client.execute(f"DROP VIEW IF EXISTS {database}.{view} SYNC")
    client.execute(f"DROP TABLE IF EXISTS {database}.{history_of(name)} SYNC")


def token_of(client: Client, database: str, name: str) -> str:
    """Return the creation token of the history of the table `name`; empty where it has none."""
    return comment_of(client, database, history_of(name))


def beginnings(client: Client, database: str, name: str, token: str, history: str = "") -> list[Beginning]:
    """Return the beginnings of the history of the table `name` with this creation token, by `n`.

    `history` is the history's own token, or else it is the present one. A beginning that a later one covers is none any
    more; of those with the same `n`, the one that was noted last is.
    """
    query = (
        f"SELECT first, rows, after, n, at FROM {database}.{BEGINS}"
        " WHERE name = %(name)s AND token = %(token)s AND history = %(history)s ORDER BY at"
    )
    parameters = {"name": name, "token": token, "history": history or token_of(client, database, name)}
    noted = client.execute(query, parameters)
    since = {row[1:4]: row[4] for row in reversed(noted)}  # when each was noted for the first time
    found: list[Beginning] = []
    for *row, _ in sorted(noted, key=lambda row: (row[3], since[row[1:4]], row[1], row[0])):
        begins = Beginning(*row)
        if found and found[-1][1:] == begins[1:]:  # the same once more, for more is known to be in the history
            found[-1] = begins
        else:
            while found and (found[-1].rows > begins.first or found[-1].n >= begins.n):
                found.pop()  # both rise from one to the next
            found.append(begins)
    return found


def start_of(found: Sequence[Beginning], before: int) -> tuple[int, int]:
    """Return where the rows after number `before` begin in a history that has these beginnings.

    That is from an n on, without the first ones of them; the second value is how many these are.
    """
    since = max((each for each in found if each.rows <= before), key=lambda each: each.n, default=None)
    return (since.n, before - since.rows) if since else (found[0].after + 1, 0)


def first_number(client: Client, database: str, name: str, token: str, before: int) -> int | None:
    """Return the n in the history of the first row after number `before` of the table `name` with this creation token.

    None where it has none of them. Of rows of a gap that is not copied yet, some may be lacking after it.
    """
    found = beginnings(client, database, name, token)
    if not found:
        return None
    first, skipped = start_of(found, before)
    if not skipped:
        return first
    rest = client.execute(
        f"SELECT n FROM {database}.{history_of(name)} WHERE n >= {first} ORDER BY n LIMIT 1 OFFSET {skipped}"
    )
    return int(rest[0][0]) if rest else None


class Seam(NamedTuple):
    """The first rows after a beginning, `(ts_ms, mt, m)`: of the table and of the history."""

    ours: list[Any]
    theirs: list[Any]

    @property
    def is_seen(self) -> bool:
        """Whether there are some of both."""
        return bool(self.ours and self.theirs)

    @property
    def is_closed(self) -> bool:
        """Whether they are the same, as far as they go; somebody else's may be among those of the history."""
        left = iter(self.theirs)
        return self.ours[:1] == self.theirs[:1] and all(row in left for row in self.ours[: len(self.theirs)])


def look_at_seam(
    client: Client,
    database: str,
    name: str,
    rows_after: Callable[[int], Iterable[Any]],
    begins: Beginning,
    beyond: Beginning | None,
) -> Seam:
    """Return what comes after a beginning of the history of the table `name`, up to the next one, `beyond`.

    It is not the same where the table has lost rows, others stand in their place, and its collector has not noted that
    yet. `client` is of the history's server; `rows_after` gives the table's rows after so many.
    """
    count = min(_SEAM, beyond.first - begins.rows) if beyond else _SEAM
    if count <= 0:
        return Seam([], [])
    ours = [tuple(row) for row in islice(rows_after(begins.rows), count)]
    days = kept_days(client, database, name)
    if days and ours and ours[0][0] / 1e3 < time.time() - days * 86_400:  # the history may have dropped it
        return Seam([], [])
    return Seam(
        ours,
        client.execute(
            "SELECT toUnixTimestamp64Milli(ts), toString(mt), m"
            f" FROM {database}.{history_of(name)} WHERE n >= {begins.n} ORDER BY n LIMIT {2 * _SEAM}"
        ),
    )


def record(client: Client, database: str, name: str, token: str, begins: Beginning, history: str = "") -> None:
    """Note a beginning of the history of the table `name` with this creation token, for good.

    `history` is the history's own token, as it was when that was found out: it may have been made anew since. Without
    it, that is the present one.
    """
    row = (name, token, history or token_of(client, database, name), *begins)
    client.execute(f"INSERT INTO {database}.{BEGINS} (name, token, history, first, rows, after, n) VALUES", [row])

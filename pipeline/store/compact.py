"""Rewrite a table into big blocks: the same rows in the same order, under the same UUID, path and creation token.

In: a StripeLog table of many small blocks, each of which costs disk, server memory and INSERT time. Out: the same
table in blocks of 65,536 rows. Promise: nothing old is deleted before a copy is verified, rows and order, and on the
disk; and whatever is killed, at whatever moment, the tables that are left say how to go on, and `resume` does.
Meanwhile the table does not go by its name, so that nothing can be written: rows wait in the journal. A table that
cannot be emptied, since somebody reads it and does not end, or may not be, has its name again within seconds.

A table's UUID and path stay with it, so its rows go out to a copy and back in again. By its tables, a compaction of
`btc` is in one of these states, where X is a random number of whoever works on it:

    btc                                     before, and after
    btc_compacting_X  [btc_copying_X]       set aside, so that nobody writes; the copy is not whole yet
                                            (for very many blocks, btc_contents_X and btc_types_X are halves of it)
    btc_compacting_X   btc_copied_X         the copy is whole; the table is, too, or is being emptied and filled from it
    btc               [any of the copies]   done; the copy is to be deleted

Each step from one state to the next is a RENAME, which ClickHouse does at once or not at all. A table that could not be
emptied, or that was filled already, equals its copy, and goes back as it is. Whoever resumes another one's work begins
by renaming btc_compacting_X to a number of its own: should the other live after all, its next statement fails because
that table is gone.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException

from config import Settings, all_symbols, more_symbols
from pipeline.human import many
from pipeline.store.client import ALL_ROWS, connect, is_missing_table
from pipeline.store.schema import ENGINE, comment_of

_T = TypeVar("_T")

BLOCK_ROWS = 65_536
"""Rows of a big block."""

FIRST_BLOCK_ROWS = 500  # of one-row blocks, each takes some 16 KB of the server's memory until it is joined to others
MANY_BLOCKS = 500_000  # beyond that, copy in halves
_INDEX_BYTES = 340  # of memory for each block, to read all columns
_OF_ALL_TABLES = 300_000  # small blocks, which take 135 MB of memory
SPARE_DISK = 100_000_000  # bytes that are to stay free
_ALIVE = 3.0  # seconds; who has had no statement on the server for so long does not work on it any more
_FENCE_TIMEOUT = 60.0  # seconds
_READERS_TIMEOUT = 5  # seconds for the SELECTs of others to end, so that the table can be emptied
_POLL = 0.05  # seconds
_LOCKED, _ACCESS_DENIED = 473, 497  # error codes; the first is called DEADLOCK_AVOIDED, and is a lock's timeout

_QUERY_SETTINGS = {
    **ALL_ROWS,
    "max_threads": 1,  # with more, rows come in any order
    "max_insert_threads": 1,
    "min_insert_block_size_bytes": 0,  # rows decide
    "database_atomic_wait_for_drop_and_detach_synchronously": 0,  # it would be as long as somebody reads the table
}
SYNC = "SYSTEM SYNC FILE CACHE"  # to the disk; ClickHouse itself syncs no data
_LONG = 86_400.0  # seconds; one statement may copy a hundred gigabytes, and says nothing until it is done
_KEEPALIVE = (60, 10, 6)  # seconds of silence, seconds between probes, probes: a server that is gone is noticed


class CompactionError(Exception):
    """The table was not compacted, and no row of it is lost; the text is one line that says why."""


class BeingCompacted(CompactionError):
    """Another process is at work on the table; it is there again when that is done."""


class NotEmptied(CompactionError):
    """A table cannot be emptied, and has all its rows."""


@dataclass(frozen=True)
class Progress:
    """What is being done, as one line, and how much of all is done: 0 only in the first, 1 only in the last."""

    text: str
    done: float


def compact(settings: Settings, name: str) -> Iterator[Progress]:
    """Rewrite the table `name`, after finishing what was left of an earlier attempt.

    Yields before each step and, if the server tells, amid them. The first line says how much disk it takes, the last
    what was gained. To give up half-way, stop iterating: `resume` does the rest. Raises CompactionError and
    pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    yield from resume(settings, name)
    with closing(Compactor(settings, name)) as compactor:
        yield from compactor.compact()


def resume(settings: Settings, name: str) -> Iterator[Progress]:
    """Bring the table `name` back under its name, if a compaction of it was cut short; yields as `compact` does.

    A copy that is whole is used, one that is not is deleted. Raises BeingCompacted if somebody else works on it, and
    CompactionError, pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    with closing(Compactor(settings, name)) as compactor:
        yield from compactor.resume()


def blocks_allowed(settings: Settings) -> int:
    """Return how many small blocks a table may have until it is to be compacted; 0 is any number.

    That is COMPACT_BLOCKS, or with SYMBOLS, where there are many tables, a table's share of what all of them may have.
    """
    if not more_symbols(settings):
        return settings.compact_blocks
    return min(settings.compact_blocks, _OF_ALL_TABLES // len(all_symbols(settings)))


def tables_of(client: Client, database: str, name: str) -> dict[str, str]:
    """Return the table `name`, if it is there, and those that its compaction has made; with their comments."""
    query = "SELECT name, comment FROM system.tables WHERE database = %(database)s AND match(name, %(pattern)s)"
    pattern = f"^{re.escape(name)}(_(compacting|copying|contents|types|copied|turning|tail)_[0-9a-f]{{8}})?$"
    return dict(client.execute(query, {"database": database, "pattern": pattern}))


def read_table(client: Client, database: str, name: str, read: Callable[[str], _T]) -> _T | None:
    """Return what `read` makes of the table that has the rows of `name`; None if there is no such table.

    That is the table itself or, while it is being compacted or rewritten, the one that its rows are in.
    """
    while True:
        tables = tables_of(client, database, name)
        copied, aside, turning, tails = (
            [each for each in tables if f"_{state}_" in each] for state in ("copied", "compacting", "turning", "tail")
        )
        if any(tables[each].endswith("!") for each in turning):  # it is being emptied, and filled from there
            turning = tails
        sources = [name] if name in tables else copied or aside or turning
        if not sources:
            return None
        try:
            return read(f"{database}.{sources[0]}")
        except ServerException as error:
            if not is_missing_table(error):
                raise
            time.sleep(_POLL)  # it has another name since a moment ago


def read_comment(client: Client, database: str, name: str) -> str | None:
    """Return the comment of the table that has the rows of `name` now; None where there is none."""
    return read_table(client, database, name, lambda table: comment_of(client, *table.split(".")))


def is_being_compacted(client: Client, database: str, name: str) -> bool:
    """Return whether somebody is compacting the table; what is left of a compaction that died does not count."""
    query = "SELECT count() FROM system.processes WHERE startsWith(query_id, %(id)s)"
    give_up = time.monotonic() + _ALIVE
    while (tables := tables_of(client, database, name)) and name not in tables and time.monotonic() < give_up:
        ((running,),) = client.execute(query, {"id": f"compact {database}.{name} "})
        if running:
            return True
        time.sleep(_POLL)
    return False


class _Fingerprint(NamedTuple):
    """Equal for two tables with the same rows in the same order, and for no others that could come about."""

    rows: int
    types: int
    contents: int


class Compactor:
    """One process's work on one table."""

    _aim = "compacted"
    """What it was to be, in what is said where it was not."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._client = _connect(settings)
        self._user = settings.clickhouse_user
        self._database, self._name = settings.clickhouse_database, name
        self._full_name = f"{self._database}.{name}"
        self._query_ids = f"compact {self._full_name} "
        owner = secrets.token_hex(4)
        self._aside, self._copying, self._contents, self._types, self._copied, self._turning, self._tail = (
            f"{self._full_name}_{state}_{owner}"
            for state in ("compacting", "copying", "contents", "types", "copied", "turning", "tail")
        )
        self._text = ""
        self._rows = 0
        self._passes, self._passed = 1, 0  # how often all rows are read, and have been

    def close(self) -> None:
        self._client.disconnect()

    def compact(self) -> Iterator[Progress]:
        started = time.monotonic()
        found = self._tables()
        if self._full_name not in found:
            if found:
                raise self._taken()
            raise CompactionError(f"Table {self._full_name} does not exist: run ch_setup.py")
        self._rows, size, path = self._look(self._full_name)
        free = free_disk(self._client, path)
        needs = f"needs {megabytes(size + SPARE_DISK)} of free disk, and there are {megabytes(free)}"
        if free < size + SPARE_DISK:
            raise CompactionError(f"{self._full_name} was not compacted: that {needs}")
        self._wait_for_readers()
        self._passes = 8
        yield Progress(f"Compacting {self._full_name}, {many(self._rows, 'row')} in {megabytes(size)}: {needs}", done=0)
        token = found[self._full_name]
        self._set_aside(self._aside, token)
        try:
            self._wait_for_others()
            self._refuse_other_copies()
            yield self._begin(f"Reading {self._full_name}")
            self._create(self._copying, token)
            self._empty(self._copying)  # who may not empty the copy may not empty the table
            blocks, original = yield from self._fingerprint(self._aside, f"Reading {self._full_name}")
            yield self._begin(f"Copying {self._full_name}")
            if blocks > MANY_BLOCKS and free > 2 * size + SPARE_DISK:
                yield from self._copy_in_halves(self._aside, self._copying, token)
            else:
                if blocks > MANY_BLOCKS:
                    needs = f"some {megabytes(_INDEX_BYTES * blocks)} of memory"
                    less = f"less where {megabytes(2 * size + SPARE_DISK)} of disk are free"
                    yield self._begin(f"Copying {self._full_name} at once: that takes {needs}, and {less}")
                yield from self._copy(self._aside, self._copying, FIRST_BLOCK_ROWS)
            _, copy = yield from self._fingerprint(self._copying, f"Checking the copy of {self._full_name}")
            self._verify(copy, original)
            self._run(SYNC)
        except (ServerException, CompactionError, KeyboardInterrupt):
            self._bring_back()
            raise
        self._rename(self._copying, self._copied)
        try:
            blocks_now = yield from self._refill(self._copied, copy)
        except NotEmptied:
            self._bring_back()
            raise
        _, size_now, _ = self._look(self._aside)
        yield self._begin(f"Deleting the copy of {self._full_name}")
        self._bring_back()
        yield Progress(
            f"Compacted {self._full_name}: {many(copy.rows, 'row')}; {blocks:,} blocks before, {blocks_now:,} now;"
            f" {megabytes(size)} before, {megabytes(size_now)} now; {time.monotonic() - started:.1f} s",
            done=1,
        )

    def resume(self) -> Iterator[Progress]:
        found = self._tables()
        if found and self._full_name not in found:
            self._wait_for_idleness()
            found = self._tables()
        if not found.keys() - {self._full_name}:
            return
        if self._full_name in found:
            self._delete_copies()
            return
        if turning := self._of("turning", found):
            yield from self._resume_turning(turning[0])
            return
        asides = self._of("compacting", found)
        if len(asides) != 1:
            raise CompactionError(
                f"Table {self._full_name} does not exist, and which of {', '.join(found)} is the one with its rows"
                " cannot be told: rename that one"
            )
        self._rename(asides[0], self._aside)  # from now on it is ours
        self._wait_for_others()
        # A table only grows. So the copy that counts is the largest, and one with fewer rows than the table itself is
        # of an earlier compaction.
        rows = {each: self._look(each)[0] for each in self._of("copied", self._tables())}
        try:
            rows[self._aside], _, _ = self._look(self._aside)
        except ServerException:
            if not rows:
                raise
            rows[self._aside] = 0  # torn while it was being filled
        source = max(rows, key=rows.__getitem__)
        self._rows = rows[source]
        self._passes = 7
        yield Progress(f"Bringing {self._full_name} back: its compaction was cut short", done=0)
        if source != self._aside:
            _, copy = yield from self._fingerprint(source, f"Reading the copy of {self._full_name}")
            if rows[self._aside] < copy.rows or not (yield from self._equals(copy)):
                yield from self._refill(source, copy)
        self._bring_back()
        yield Progress(f"{self._full_name} is back: {many(self._rows, 'row')}", done=1)

    def _resume_turning(self, turning: str) -> Iterator[Progress]:
        """Bring a table back that was being turned over, or freed of old rows (pipeline.store.turnover, .dropping)."""
        self._rename(turning, self._turning)  # from now on it is ours
        self._wait_for_others()
        yield Progress(f"Bringing {self._full_name} back: its rewriting was cut short", done=0)
        found = self._tables()  # what it was before it was ours, may have changed
        comment, tails = found[self._turning], self._of("tail", found)
        if comment.endswith("!"):
            if len(tails) != 1:
                raise CompactionError(f"{self._turning} is to be filled from one table, and there are {len(tails)}")
            self._rows, _, _ = self._look(tails[0])
            self._passes = 5
            _, kept = yield from self._fingerprint(tails[0], f"Reading what stays of {self._full_name}")
            yield from self._finish_turning(comment, tails[0], kept)
            self._drop(tails[0])
        else:
            for each in [*tails, *self._of("copying", found)]:
                self._drop(each)  # before the table has its name: one that is nearly done does not seem to be its copy
            self._rename(self._turning, self._full_name)
        rows, _, _ = self._look(self._full_name)
        yield Progress(f"{self._full_name} is back: {many(rows, 'row')}", done=1)

    def _finish_turning(self, comment: str, tail: str, kept: _Fingerprint | None = None) -> Iterator[Progress]:
        """Empty the table that is set aside, fill it from what is to stay, and give it its name and comment again.

        With the fingerprint of what is to stay, it is compared and on the disk before that is deleted. Raises
        NotEmptied before anything was changed.
        """
        self._empty(self._turning)
        if not kept:  # a few, and there is no time to lose
            self._run(f"INSERT INTO {self._turning} SELECT ts, mt, m FROM {tail}")
        else:
            yield self._begin(f"Filling {self._full_name} with what stays")
            yield from self._copy(tail, self._turning, BLOCK_ROWS)
            _, refilled = yield from self._fingerprint(self._turning, f"Checking {self._full_name}")
            self._verify(refilled, kept)
            self._run(SYNC)
        self._set_comment(self._turning, comment.removesuffix("!"))
        self._rename(self._turning, self._full_name)

    def _set_aside(self, aside: str, comment: str) -> None:
        """Give the table another name, so that nobody writes to it; `comment` is what its own was when this began.

        Raises BeingCompacted, with the table as it is, where another process has rewritten it since: that tells by its
        comment, which is the number of rows that it has no more.
        """
        self._rename(self._full_name, aside)
        if self._tables().get(aside) != comment:
            self._rename(aside, self._full_name)
            raise self._taken()

    def _back_as_it_was(self, comment: str) -> None:
        self._set_comment(self._turning, comment)
        self._drop(self._copying)
        self._drop(self._tail)
        self._rename(self._turning, self._full_name)

    def _set_comment(self, table: str, comment: str) -> None:
        self._run(f"ALTER TABLE {table} MODIFY COMMENT %(comment)s", {"comment": comment})

    def _refuse_other_copies(self) -> None:
        """Raise CompactionError if there are copies of others: their owner, if only slow, could yet call them whole."""
        if others := self._tables().keys() - {self._aside, self._turning, self._tail}:
            came = f"{', '.join(sorted(others))} came meanwhile"
            raise CompactionError(f"{self._full_name} was not {self._aim}: {came}")

    def _refill(self, copied: str, copy: _Fingerprint) -> Generator[Progress, None, int]:
        """Empty the table and fill it from `copied`, whose fingerprint is `copy`; return its number of blocks, then.

        Raises NotEmptied before anything was changed.
        """
        yield self._begin(f"Filling {self._full_name} from its copy")
        self._run(SYNC)
        self._empty(self._aside)
        yield from self._copy(copied, self._aside, BLOCK_ROWS)
        blocks, refilled = yield from self._fingerprint(self._aside, f"Checking {self._full_name}")
        self._verify(refilled, copy)
        self._run(SYNC)
        return blocks

    def _bring_back(self) -> None:
        """Give the table, whole as it is, its name again, and delete the copies."""
        self._rename(self._aside, self._full_name)
        self._delete_copies()

    def _delete_copies(self) -> None:
        copies = self._tables()
        if self._full_name not in copies:  # the next compaction has begun, and what is there is its affair
            raise self._taken()
        own = copies.pop(self._full_name)
        for each, token in copies.items():
            if token != own or each in self._of("compacting", copies):
                raise CompactionError(
                    f"{each} is not from a compaction of the {self._full_name} that there is: see whose rows it has,"
                    " then rename or drop it"
                )
            self._drop(each)

    # What the steps are made of

    def _begin(self, text: str) -> Progress:
        self._text = text
        return self._progress(0)

    def _progress(self, rows: int) -> Progress:
        """Return where things are when the present pass has read `rows`."""
        done = (self._passed + min(1, rows / max(self._rows, 1))) / self._passes
        return Progress(self._text, min(max(done, 0.01), 0.99))

    def _create(self, table: str, token: str, like: str = "") -> None:
        """Create a table like the one set aside; `token` tells to whose compaction it belongs."""
        self._run(
            f"CREATE TABLE {table} AS {like or self._aside} ENGINE = {ENGINE} COMMENT %(token)s", {"token": token}
        )

    def _empty(self, table: str) -> None:
        """Delete all rows of a table. Raises NotEmptied."""
        try:
            self._run(f"TRUNCATE TABLE {table}", settings={"lock_acquire_timeout": _READERS_TIMEOUT})
        except ServerException as error:
            if error.code == _LOCKED:
                raise NotEmptied(
                    f"{self._full_name} cannot be {self._aim} now: somebody reads it, and has not ended in"
                    f" {_READERS_TIMEOUT} s"
                ) from None
            if error.code == _ACCESS_DENIED:
                raise NotEmptied(
                    f"{self._full_name} cannot be {self._aim} by user {self._user}, who may not empty it:"
                    f" GRANT TRUNCATE ON {self._database}.* TO {self._user}"
                ) from None
            raise

    def _drop(self, table: str) -> None:
        """Delete a copy, also while somebody reads it: then its files go when ClickHouse cleans up, minutes later."""
        with suppress(NotEmptied):
            self._empty(f"IF EXISTS {table}")
        self._run(f"DROP TABLE IF EXISTS {table}")

    def _copy(
        self, source: str, target: str, block_rows: int, columns: str = "ts, mt, m"
    ) -> Generator[Progress, None, None]:
        yield from self._read(
            f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source}"
            f" SETTINGS min_insert_block_size_rows = {block_rows}"
        )

    def _copy_in_halves(self, source: str, target: str, token: str) -> Generator[Progress, None, None]:
        """Copy two columns at a time, and paste them together.

        That takes less memory, see `_fingerprint`, but writes all rows twice; and PASTE JOIN is a young part of
        ClickHouse. So this is for very many blocks only.
        """
        self._passes += 2
        for half, columns in ((self._contents, "ts, m"), (self._types, "ts, mt")):
            self._create(half, token)
            yield from self._copy(source, half, FIRST_BLOCK_ROWS, columns)
        both = f"(SELECT ts, m FROM {self._contents}) PASTE JOIN (SELECT mt FROM {self._types})"
        yield from self._copy(both, target, FIRST_BLOCK_ROWS)
        for half in (self._contents, self._types):
            self._drop(half)

    def _fingerprint(
        self, table: str, text: str, where: str = ""
    ) -> Generator[Progress, None, tuple[int, _Fingerprint]]:
        """Return the table's number of blocks, and its fingerprint; with `where`, that of these rows by themselves.

        To read, ClickHouse copies the index of the columns that it reads, for all blocks: 340 bytes a block for three,
        some 200 for two. So two are read at a time.
        """
        yield self._begin(text)
        source = f"(SELECT ts, mt, m FROM {table} WHERE {where})" if where else table
        numbered = "cityHash64(rowNumberInAllBlocks(), "
        ((rows, blocks, types),) = yield from self._read(
            f"SELECT count(), countIf(rowNumberInBlock() = 0), sum({numbered}ts, mt)) FROM {source}"
        )
        ((rows_again, contents),) = yield from self._read(f"SELECT count(), sum({numbered}ts, m)) FROM {source}")
        if not where:
            self._see_all(table, min(rows, rows_again))
        return blocks, _Fingerprint(rows, types, contents)

    def _see_all(self, table: str, seen: int) -> None:
        """Raise CompactionError where the table has others than the rows that were `seen`."""
        counted, _, _ = self._look(table)
        if seen != counted:
            raise CompactionError(
                f"{self._full_name} cannot be {self._aim} by user {self._user}, who can read only {seen:,} of its"
                f" {counted:,} rows: a row policy hides the others"
            )

    def _equals(self, copy: _Fingerprint) -> Generator[Progress, None, bool]:
        """Return whether the table set aside is as its copy is."""
        try:
            _, found = yield from self._fingerprint(self._aside, f"Reading {self._full_name}")
        except ServerException:  # a TRUNCATE that went wrong half-way can leave what cannot be read
            return False
        return found == copy

    def _read(self, sql: str) -> Generator[Progress, None, Any]:
        """Run a statement that reads all rows once; return its result."""
        with self._explained():
            result = self._client.execute_with_progress(sql, query_id=self._query_id())
            for rows, _ in result:
                yield self._progress(rows)
        self._passed += 1
        with suppress(ServerException):  # a server may be built without it
            self._client.execute("SYSTEM JEMALLOC PURGE")  # the next reading may take the memory elsewhere
        return result.get_result()

    def _verify(self, copy: _Fingerprint, original: _Fingerprint) -> None:
        if copy != original:
            raise CompactionError(f"A copy of {self._full_name} differs from it: {copy}, not {original}")

    def _run(self, sql: str, params: dict[str, str] | None = None, settings: dict[str, Any] | None = None) -> None:
        with self._explained():
            self._client.execute(sql, params, query_id=self._query_id(), settings=settings)

    def _rename(self, old: str, new: str) -> None:
        try:
            self._run(f"RENAME TABLE {old} TO {new}")
        except ServerException as error:
            if error.code == ErrorCodes.TABLE_ALREADY_EXISTS:  # whoever took it has already brought it back
                raise self._taken() from None
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A table that is gone from under our hands was taken by somebody else."""
        try:
            yield
        except BaseException as error:
            self._client.disconnect()  # which ends the statement, too
            if is_missing_table(error):
                raise self._taken() from None
            raise

    def _query_id(self) -> str:
        return f"{self._query_ids}{uuid.uuid4()}"

    def _taken(self) -> BeingCompacted:
        return BeingCompacted(f"{self._full_name} is being compacted by another process")

    def _tables(self) -> dict[str, str]:
        found = tables_of(self._client, self._database, self._name)
        return {f"{self._database}.{each}": token for each, token in found.items()}

    def _of(self, state: str, tables: Iterable[str]) -> list[str]:
        return [each for each in tables if each.startswith(f"{self._full_name}_{state}_")]

    def _look(self, table: str) -> tuple[int, int, str]:
        """Return the table's number of rows, its bytes, and the directory that it is in."""
        query = (
            "SELECT total_rows, total_bytes, data_paths[1] FROM system.tables"
            " WHERE database = %(database)s AND name = %(name)s"
        )
        parameters = {"database": self._database, "name": table.partition(".")[2]}
        found = self._client.execute(query, parameters)
        if found and found[0][0] is None:  # not touched since the server started
            with self._explained():
                self._client.execute(f"SELECT count() FROM {table}")
            found = self._client.execute(query, parameters)
        if not found:
            raise self._taken()
        rows, size, path = found[0]
        return rows, size, path

    def _running(self, *prefixes: str) -> int:
        """Return how many statements are running whose ids begin with one of `prefixes`."""
        query = "SELECT count() FROM system.processes WHERE arrayExists(id -> startsWith(query_id, id), %(ids)s)"
        ((count,),) = self._client.execute(query, {"ids": list(prefixes)})
        return int(count)

    def _wait_for_readers(self) -> None:
        """Wait for the statements that name the table to end: it cannot be emptied before. Raises CompactionError.

        Not every reader is seen, nor one that comes later; then `_empty` raises.
        """
        query = "SELECT query_id, user FROM system.processes WHERE match(query, %(name)s) AND query_id != %(own)s"
        own = self._query_id()
        parameters = {"name": rf"\b{re.escape(self._name)}\b", "own": own}
        give_up = time.monotonic() + _READERS_TIMEOUT
        readers = found = dict(self._client.execute(query, parameters, query_id=own))
        while readers := {query_id: user for query_id, user in found.items() if query_id in readers}:
            if time.monotonic() > give_up:
                query_id, user = next(iter(readers.items()))
                raise CompactionError(
                    f"{self._full_name} cannot be {self._aim} now: query {query_id} of user {user} reads it, and has"
                    f" not ended in {_READERS_TIMEOUT} s"
                )
            time.sleep(_POLL)
            found = dict(self._client.execute(query, parameters, query_id=own))

    def _wait_for_others(self, timeout: float | None = None) -> None:
        """Wait for what was begun under the table's former name: the collector's INSERTs, and compactions."""
        give_up = time.monotonic() + (timeout or _FENCE_TIMEOUT)
        while self._running(f"append {self._full_name} ", self._query_ids):
            if time.monotonic() > give_up:
                raise CompactionError(f"A statement on {self._full_name} does not end: not {self._aim}")
            time.sleep(_POLL)

    def _wait_for_idleness(self) -> None:
        """Return once nobody seems to work on the table, or it is back. Raises BeingCompacted where somebody does."""
        alive_until = time.monotonic() + _ALIVE
        while time.monotonic() < alive_until and self._full_name not in self._tables():
            if self._running(self._query_ids):
                raise self._taken()
            time.sleep(_POLL)


def free_disk(client: Client, path: str) -> int:
    """Return the free bytes of the server's disk that `path` is on."""
    query = "SELECT free_space FROM system.disks WHERE startsWith(%(path)s, path) ORDER BY length(path) DESC LIMIT 1"
    found = client.execute(query, {"path": path})
    return int(found[0][0]) if found else 1 << 62  # of what is no disk, such as a bucket, it is not known


def count_small_blocks(settings: Settings, name: str) -> int:
    """Return how many blocks the table has beyond those that it would have, were it compacted; all rows are read.

    Raises one of pipeline.store.client.CLICKHOUSE_ERRORS.
    """
    with _connect(settings) as client:
        query = f"SELECT countIf(rowNumberInBlock() = 0), count() FROM {settings.clickhouse_database}.{name}"
        ((blocks, rows),) = client.execute(query)
    return int(blocks) - int(rows) // BLOCK_ROWS


def _connect(settings: Settings) -> Client:
    return connect(settings, timeout=_LONG, query_settings=_QUERY_SETTINGS, tcp_keepalive=_KEEPALIVE)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"

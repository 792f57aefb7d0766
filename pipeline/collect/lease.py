"""One writer a table: a collector's claim on its table, kept in ClickHouse for as long as it lives.

In: time. Out: whether this collector may write now. Promise: of all collectors of a table, whatever their journals, one
at most may write at any time. Another one is refused while the first lives, and takes over when nothing was heard of
that for `LEASE` seconds; at once where it has the same journal, for whoever had that before is dead.

A claim is the newest row of its owner in the table `collectors`, which ClickHouse keeps in memory. It is made, and
renewed, by one statement that adds a row only where nobody else's claim is good; a server runs no two statements of the
same id, so no two of these look at the same time. The owner counts a claim's seconds from before it asked, so it stops
writing before anybody else begins.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from clickhouse_driver.errors import ServerException

from config import Settings
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, is_missing_table
from pipeline.store.schema import CLAIMS, existing_tables
from pipeline.times import iso

LEASE = 10.0
"""Seconds that a claim is good for."""

_RENEWAL = 3.0  # seconds from one to the next
_RETRY = 1.0  # seconds to the next try, where one failed
_HEARD_OF = 4.0  # seconds, within which whoever lives has renewed its claim
_WITHOUT = 600.0  # seconds until the next look for the table of claims, where there is none
_TIMEOUT = 5.0  # seconds for an answer
_SAME_ID = 216  # error code: a statement with this id is running

_GOOD = """
    SELECT owner, argMax(who, at), toUnixTimestamp64Micro(argMax(since, at)), max(at)
    FROM {claims} WHERE name = %(name)s
    GROUP BY owner HAVING argMax(until, at) > now64(6) AND (owner = %(owner)s OR argMax(lock, at) != %(lock)s)
"""
_CLAIM = f"""
    INSERT INTO {{claims}} SELECT %(name)s, %(owner)s, %(lock)s, %(who)s,
        if(%(since)s = 0, now64(6), fromUnixTimestamp64Micro(%(since)s)),
        now64(6), now64(6) + toIntervalSecond(%(good)s)
    FROM (SELECT countIf(owner != %(owner)s) AS others FROM ({_GOOD})) WHERE others = 0
"""
_OLDEST = """
    SELECT if(count() = 0, 0, toUnixTimestamp64Micro(now64(6)) - toUnixTimestamp64Micro(min(at))) / 1e6 FROM {claims}
"""


class TableTaken(Exception):
    """Another collector writes to the table, and lives; the text is one line that says which."""


class Lease:
    """The claim of this process on one table. `claim` is for the thread that writes, `renew` for another one."""

    def __init__(self, settings: Settings, name: str, journal: Path, say: Callable[[str], None]) -> None:
        """`journal` is the file that this process has locked; `say` takes lines for the user."""
        self._database, self._name = settings.clickhouse_database, name
        self._full_name = f"{self._database}.{name}"
        self._say = say
        self._client = connect(settings, timeout=_TIMEOUT)
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {
            "name": name,
            "owner": str(uuid.uuid4()),
            "lock": _identity(journal),
            "who": f"process {os.getpid()} on {socket.gethostname()}, journal {journal}",
        }
        self._since = 0  # microseconds of the server's clock; 0 where there is no claim
        self._good_until = 0.0  # by `_now`
        self._began = 0.0  # to look whether there is anybody, by `_now`
        self._heard: dict[str, datetime] = {}  # the newest claims of others when they were first seen
        self._has_warned = False
        self.was_held = False
        """Whether the table was this collector's at some time."""

    @property
    def is_held(self) -> bool:
        """Whether this collector may write."""
        return _now() < self._good_until

    def claim(self) -> bool:
        """Claim the table, where it is not held; return whether it is now. Where not, that is to be seen: try again.

        Raises TableTaken where another collector lives, and one of pipeline.store.client.CLICKHOUSE_ERRORS.
        """
        with self._lock:
            self._since = 0
            self._began = self._began or _now()
            try:
                others = self._good()
                for owner, who, since, newest in others:
                    if newest > self._heard.setdefault(owner, newest):
                        raise TableTaken(self._refusal(who, since))
                return not others and self._is_known() and self._ask()
            except ServerException as error:
                if not is_missing_table(error):
                    raise
                return self._go_without()

    def renew(self, ended: threading.Event) -> None:
        """Keep the claim good until `ended`; to be run in a thread."""
        wait = _RENEWAL
        while not ended.wait(wait):
            try:
                with self._lock:
                    wait = _RENEWAL if not (self.is_held and self._since) or self._ask() else _RETRY
            except CLICKHOUSE_ERRORS:  # the thread that writes says it
                wait = _RETRY

    def release(self) -> None:
        """Give the table up, so that nobody has to wait for it."""
        with self._lock, suppress(*CLICKHOUSE_ERRORS):
            if self.is_held and self._since:
                self._good_until = 0.0
                self._run(_CLAIM, good=0)
            self._client.disconnect()

    def _is_known(self) -> bool:
        """Whether all claims are to be seen: ClickHouse keeps them in memory, and may have forgotten them just now.

        Then whoever lives will have renewed its own in a moment.
        """
        ((oldest,),) = self._run(_OLDEST)
        return self.was_held or oldest > _HEARD_OF or _now() - self._began > _HEARD_OF

    def _ask(self) -> bool:
        """Make or renew the claim; return whether that is done."""
        asked = _now()
        try:
            self._run(_CLAIM, query_id=f"claim {self._full_name}", good=int(LEASE))
        except ServerException as error:
            if error.code != _SAME_ID:
                raise
            return False
        claims = self._good()
        if [owner for owner, *_ in claims] != [self._values["owner"]]:
            self._good_until = 0.0
            return False
        ((_, _, since, _),) = claims
        self._since = since
        self._good_until = asked + LEASE
        self.was_held = True
        return True

    def _good(self) -> list[Any]:
        """Return the claims that are good, this one included: owner, who, since when, and when it was renewed."""
        return list(self._run(_GOOD))

    def _run(self, sql: str, query_id: str | None = None, **values: object) -> Any:
        given = self._values | {"since": self._since} | values
        return self._client.execute(sql.format(claims=f"{self._database}.{CLAIMS}"), given, query_id=query_id)

    def _refusal(self, who: str, since: int) -> str:
        began = f"since {iso(since // 1000)[:19].replace('T', ' ')} UTC: {who}"
        if self.was_held:  # and then not renewed in time
            return (
                f"{self._full_name} has another writer {began}; this collector was not heard of for {LEASE:.0f} s, and"
                " ends. A table must have one writer"
            )
        return f"{self._full_name} has a writer already, {began}; stop that first. A table must have one writer"

    def _go_without(self) -> bool:
        """Write without a claim, for there is no table of claims: the archive is of an older version, or has none."""
        if not self._has_warned and self._name in existing_tables(self._client, self._database):
            self._has_warned = True
            self._say(
                f"WARNING: Table {self._database}.{CLAIMS} does not exist, so nothing keeps a second collector from"
                f" {self._full_name}: run ch_setup.py"
            )
        self._good_until = _now() + _WITHOUT
        return True


def _identity(journal: Path) -> str:
    """Return what tells the lock on a journal from all others: the running system, the disk, the file."""
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        system = socket.gethostname()
    file = journal.stat()
    return f"{system} {file.st_dev} {file.st_ino}"


def _now() -> float:
    """Return seconds of a clock that goes on while this process, or the machine, sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

"""When a collector compacts its table: often enough to keep it small, seldom enough to keep it at hand.

In: word of each INSERT. Out: now and then a compaction (pipeline.store.compact) in between two of them. Promise: at
most a twentieth of the time goes to it, one that fails leaves the table as it was and is put off, and of the collectors
whose journals are in one directory, one at a time does it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from config import PROJECT, Settings
from pipeline.store.client import CLICKHOUSE_ERRORS, explain
from pipeline.store.compact import CompactionError, blocks_allowed, count_small_blocks
from pipeline.store.turnover import tidy

_SHARE = 20  # a collector spends one part in so many of its time on compaction
_RETRY = 600.0  # seconds from a compaction that failed to the next try


class AutoCompaction:
    """Compacts a collector's table in between its INSERTs; for the thread that does them."""

    def __init__(self, settings: Settings, name: str, say: Callable[[str], None]) -> None:
        """`say` takes lines for the user."""
        self._settings, self._name = settings, name
        self._full_name = f"{settings.clickhouse_database}.{name}"
        self._limit = blocks_allowed(settings)
        self._say = say
        self._lock = PROJECT / settings.journal_dir / "compaction.lock"
        self.small_blocks: int | None = None
        """How many blocks the table has beyond those of a compacted one; None where they were not counted yet."""
        self.under_way = False
        """Whether rows have to wait for a compaction of the table: this one's, or one that its `Table` has met."""
        self.compactions = 0
        """How often it has compacted the table."""
        self.took = 0.0
        """Seconds that the last compaction took."""
        self._not_before = 0.0  # on the monotonic clock
        self._has_warned = False

    def inserted(self, stopping: Callable[[], bool]) -> bool:
        """Note that an INSERT was made, and compact the table if it is time for that.

        That is when there are more small blocks than allowed, and the last compaction is twenty times as long
        ago as it took. It is given up half-way as soon as `stopping`. Returns whether the table is known to be there,
        as it was; where not, it has to be asked for its state.
        """
        if not self._limit:
            return True
        if self.small_blocks is not None:
            self.small_blocks += 1
            if self.small_blocks <= self._limit or not self._is_time():
                return True
        with self._turn() as is_ours:
            return self._compact(stopping) if is_ours else True

    def _compact(self, stopping: Callable[[], bool]) -> bool:
        started = time.monotonic()
        try:
            if self.small_blocks is None:
                self.small_blocks = 0  # if counting fails, those that come have to do
                self.small_blocks = count_small_blocks(self._settings, self._name)
                if self.small_blocks <= self._limit or not self._is_time():
                    return True
            self.under_way = True
            for step in tidy(self._settings, self._name):
                if step.done in (0, 1):
                    self._say(step.text)
                if stopping():
                    return False
        except (CompactionError, *CLICKHOUSE_ERRORS) as error:
            reason = error if isinstance(error, CompactionError) else explain(error, self._settings)
            self._say(f"{self._full_name} stays as it is for now: {reason}")
            self._wait(max(_RETRY, _SHARE * (time.monotonic() - started)))
            self._has_warned = True  # it was just said
            return False
        finally:
            self.under_way = False
        self.small_blocks = 0
        self.compactions += 1
        self.took = time.monotonic() - started
        self._wait(_SHARE * self.took)
        return True

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Give whether no other collector counts blocks or compacts now; none begins to meanwhile."""
        try:
            descriptor = os.open(self._lock, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError:  # the disk of the journals is full
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def _is_time(self) -> bool:
        wait = self._not_before - time.monotonic()
        if wait > 0 and not self._has_warned:
            self._say(
                f"WARNING: {self._full_name} grows fragmented: it holds {self.small_blocks:,} small blocks, and the"
                f" next compaction waits {wait:.0f} s, the last took {self.took:.0f} s and a twentieth of the time is"
                " the most for it; raise FLUSH_INTERVAL, so that rows share blocks"
            )
            self._has_warned = True
        return wait <= 0

    def _wait(self, seconds: float) -> None:
        self._not_before = time.monotonic() + seconds
        self._has_warned = False

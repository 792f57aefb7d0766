"""One collector: the intake, the journal and the tables of one symbol wired together, and watched over.

Threads: one for each connection does nothing but read, format and journal, and never waits for the database. Each
table's (StripeLog's and, with HISTORY=1, the history's) sends what the journal holds. The main one takes the signals,
has the statistics printed and syncs the journal.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NamedTuple

from config import PROJECT, ConfigError, Settings, SymbolConfig, check_identifier, load_settings
from pipeline.collect.backoff import backoff
from pipeline.collect.errors import JournalError, JournalFull, TableMissing
from pipeline.collect.health import Heartbeat
from pipeline.collect.historylog import HistoryLog
from pipeline.collect.inserts import APPEND_ERRORS, TABLE_ERRORS
from pipeline.collect.intake import Intake
from pipeline.collect.journal import HISTORY, Journal, Position
from pipeline.collect.lease import LEASE, Lease, TableTaken
from pipeline.collect.lines import Lines
from pipeline.collect.stats import ErrorKind, Stats
from pipeline.collect.stripelog import StripeLog
from pipeline.collect.table import Table
from pipeline.contracts import UnknownContract
from pipeline.human import rows_that
from pipeline.store.client import explain, is_misconfigured
from pipeline.store.history import explain_history, history_of

EXIT_STOPPED, EXIT_ERRORS, EXIT_CONFIG = 0, 1, 2

_DRAIN_TIMEOUT = 10.0  # seconds to send what is pending, once told to stop
_SETUP_TIMEOUT = 60.0  # seconds to wait for ch_setup.py at the start
_RETRY = 1.0  # seconds between two tries to reach ClickHouse
_SYNC = 1.0  # seconds; the most that a power loss takes from the journal
_TICK = 0.2  # seconds; how soon a signal is noticed
_LOOK = 0.5  # seconds between two looks whether the table is free
_LAST_LINES = 2.0  # seconds that the last lines have to be read


class Membership(NamedTuple):
    """What a collector of a fleet is given. For the fleet, one process asks MEXC for the contracts."""

    settings: Settings
    figures_on: int
    """The descriptor of a socket, to answer on with what others serve at METRICS_PORT."""


def collect(config: SymbolConfig, fleet: Membership | None = None) -> int:
    """Collect the symbol of `config` until stopped by SIGINT or SIGTERM; return the exit code.

    0: stopped by a signal. 1: too many errors in a row, start it again. 2: it cannot run as configured.
    """
    lines = Lines()
    try:
        return _collect(config, lines, fleet)
    finally:
        lines.flush(_LAST_LINES)


def _collect(config: SymbolConfig, lines: Lines, fleet: Membership | None) -> int:
    say = lines.say
    try:
        settings = fleet.settings if fleet else load_settings()
        if settings.log_time and fleet is None:  # the fleet's own process adds them for all
            lines.add_times()
        check_identifier("table_name", config["table_name"])
        path = PROJECT / settings.journal_dir / f"{config['table_name']}.db"
        journal = Journal(path, settings.journal_max_mb * 1024 * 1024, say)
        collector = _Collector(config, settings, journal, say)
    except (ConfigError, JournalError, JournalFull) as error:
        say(str(error))
        return EXIT_CONFIG
    if settings.metrics_port:
        try:
            collector.serve_metrics(fleet)
        except OSError as error:
            say(metrics_refused(settings, error))
            return EXIT_CONFIG
    return collector.run(asks=fleet is None)


def metrics_refused(settings: Settings, error: OSError) -> str:
    """Return a line on a METRICS_PORT that cannot be used."""
    return (
        f"METRICS_PORT={settings.metrics_port} at {settings.metrics_host} cannot be used: {error.strerror};"
        " each collector on a machine needs a port of its own"
    )


def _channels(methods: list[str]) -> list[str]:
    """Return the channels of the frames that a session with these subscriptions consists of."""
    names = [method.removeprefix("sub.") for method in methods]
    return [*(f"push.{name}" for name in names), *(f"rs.sub.{name}" for name in names), "rs.error", "pong"]


class _History:
    """The second table that the journal of a symbol feeds."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        journal: Journal,
        live: Position,
        table: StripeLog,
        say: Callable[[str], None],
    ) -> None:
        self.position = journal.position(history_of(name), HISTORY, beside=live)
        self.log = HistoryLog(settings, name, self.position, live, table, say)
        self.table = Table(self.position, self.log, say, settings.max_batch_rows)
        self.is_in_trouble = False
        """Whether it could not take rows when that was last tried."""


class _Tries:
    """Tells how the tries to fill a table go: it is tried each second, but said and counted less and less often."""

    def __init__(self, who: str, position: Position, fail: Callable[[str], None], say: Callable[[str], None]) -> None:
        """`who` takes the rows that wait at `position`."""
        self._who, self._position, self._fail, self._say = who, position, fail, say
        self._delays: Iterator[float] | None = None
        self._say_after = 0.0

    def failed(self, line: str) -> None:
        """Note that a try has failed, and why."""
        if self._delays is None:
            self._delays, self._say_after = backoff(), time.monotonic()
        if time.monotonic() >= self._say_after:
            self._say_after = time.monotonic() + next(self._delays)
            self._fail(f"{line}; {rows_that(self._position.waiting, 'wait')}")

    def succeeded(self) -> None:
        """Note that one has not."""
        if self._delays is not None:
            self._delays = None
            self._say(f"{self._who} takes rows again; {rows_that(self._position.waiting, 'wait')}")


class _Collector:
    def __init__(self, config: SymbolConfig, settings: Settings, journal: Journal, say: Callable[[str], None]) -> None:
        self._say = say
        self._symbol = config["symbol"]
        self._settings = settings
        self._journal = journal
        self._table_name = config["table_name"]
        methods = [subscription["method"] for subscription in config["subscriptions"]]
        self._stats = Stats(self._symbol, self._table_name, _channels(methods), settings.connections)
        self._position = journal.position(self._table_name)
        self._stripelog = StripeLog(settings, self._table_name, say)
        self._table = Table(self._position, self._stripelog, say, settings.max_batch_rows)
        self._lease = Lease(settings, self._table_name, journal.path, say)
        self._history = (
            _History(settings, self._table_name, journal, self._position, self._stripelog, say)
            if settings.history
            else None
        )
        self._heartbeat = Heartbeat(
            settings, self._table_name, self._position, self._history.position if self._history else None
        )
        self._waited = journal.waiting > 0  # rows of before
        give_up = partial(self._end, EXIT_ERRORS)
        self._intake = Intake(config, settings, journal, self._stats, self._heartbeat, say, give_up)
        self._refusal = ""  # of ClickHouse, that it does not let this user in
        self._beat()
        self._signals = 0
        self._started = time.monotonic()
        self._is_refused = False  # for another collector has the table
        self._exit_code = EXIT_STOPPED
        self._last_words = ""
        self._ending = threading.Event()  # nothing more is read
        self._ended = threading.Event()  # nothing more is sent

    def serve_metrics(self, fleet: Membership | None) -> None:
        """Serve this collector's figures to Prometheus, or to its fleet. Raises OSError where it cannot be done."""
        from pipeline.collect.metrics import Metrics  # what it imports takes memory, so only where it is wanted

        log = self._history.log if self._history else None
        metrics = Metrics(self._symbol, self._table_name, self._stats, self._heartbeat, self._stripelog, log)
        if fleet:
            metrics.answer(fleet.figures_on)
        else:
            metrics.serve(self._settings)

    def run(self, *, asks: bool) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note_signal)
        fills = [self._fill_table, *([self._fill_history] if self._history else [])]
        feeds, tables = (
            [threading.Thread(target=self._guard, args=(target,), name=target.__name__, daemon=True) for target in part]
            for part in (self._intake.feeds(), fills)
        )
        renew = partial(self._lease.renew, self._ended)
        renews = threading.Thread(target=self._guard, args=(renew,), name="lease", daemon=True)
        if asks:
            ask = self._check_contract
            threading.Thread(target=self._guard, args=(ask,), name="contract", daemon=True).start()
        for thread in (*feeds, *tables, renews):
            thread.start()
        last_block = self._watch()
        self._intake.stop()
        self._drain(feeds, tables)
        if self._is_refused:
            self._leave()
        if (waiting := self._journal.waiting) and (self._is_refused or self._exit_code != EXIT_CONFIG):
            it = "it" if waiting == 1 else "them"
            self._say(f"{rows_that(waiting, 'stay')} in the journal; the next start sends {it}")
        if self._exit_code != EXIT_CONFIG:
            self._say_block(time.monotonic() - last_block)
        if self._last_words:
            self._say(self._last_words)
        self._sync()
        if self._intake.finish(_RETRY) and not any(thread.is_alive() for thread in (*feeds, *tables)):
            self._journal.close()
        return self._exit_code

    def _guard(self, target: Callable[[], None]) -> None:
        """Run a thread's `target`; a thread that dies takes the process with it, to be started afresh."""
        try:
            target()
        except JournalError as error:
            self._end(EXIT_ERRORS, str(error))
        except TableTaken as error:
            self._is_refused = True
            self._end(EXIT_CONFIG, str(error))
        except Exception:  # noqa: BLE001 (whatever it was)
            self._say(traceback.format_exc().rstrip())
            self._end(EXIT_ERRORS, "This is a bug: please report the lines above")

    def _end(self, exit_code: int, line: str) -> None:
        """End the process with `exit_code`, and with `line` as the last one."""
        self._exit_code, self._last_words = exit_code, line
        self._ending.set()

    def _leave(self) -> None:
        """Have no later start bring what was taken meanwhile: the collector that has the table has the same."""
        if time.monotonic() - self._started < 2 * LEASE and not (self._waited or self._lease.was_held):
            with suppress(JournalFull):
                self._journal.leave()

    def _failed(self, kind: ErrorKind, line: str) -> None:
        """Say and count an error that is not the exchange's: a fresh start would not mend it, and costs frames."""
        self._say(line)
        self._stats.error(kind)

    # The tables' threads

    def _fill_table(self) -> None:
        setup_until = time.monotonic() + _SETUP_TIMEOUT
        was_in_step = False
        tries = _Tries("ClickHouse", self._position, partial(self._failed, "failed INSERT"), self._say)
        while not self._ended.is_set():
            if self._lease.is_held and self._table.in_step and not self._wait_for_rows():
                continue
            try:
                if not self._lease.is_held:
                    if not self._lease.claim():
                        self._ended.wait(_LOOK)
                        continue
                    for table in (self._table, *([self._history.table] if self._history else [])):
                        table.doubt()  # somebody else may have written meanwhile
                rows = self._table.append_pending()
            except APPEND_ERRORS as error:
                line = str(error) if isinstance(error, TABLE_ERRORS) else explain(error, self._settings)
                self._refusal = line if is_misconfigured(error) else ""
                is_missing = isinstance(error, TableMissing)
                late = time.monotonic() > setup_until
                if is_missing and self._intake.unknown:  # ch_setup.py makes no table for it, and that is no news
                    self._ended.wait(_RETRY)
                    continue
                if not was_in_step and (late if is_missing else is_misconfigured(error)):
                    self._end(EXIT_CONFIG, line)
                    return
                tries.failed(line)
                self._ended.wait(_RETRY)
                continue
            was_in_step, self._refusal = True, ""
            self._stats.appended(mt for _, mt, _ in rows)
            tries.succeeded()
            if rows and not self._stripelog.compaction.inserted(self._ended.is_set):
                self._table.doubt()
        self._stripelog.close()

    def _check_contract(self) -> None:
        try:
            self._intake.check_contract()
        except UnknownContract as error:
            self._end(EXIT_CONFIG, f"{error}; give another in SYMBOLS, or config.py")

    def _wait_for_rows(self) -> bool:
        if not self._position.wait(timeout=_TICK):
            return False
        if self._settings.flush_interval:
            self._ending.wait(self._settings.flush_interval)
        return True

    def _fill_history(self) -> None:
        assert self._history is not None
        history = self._history
        failed = partial(self._failed, "failed history INSERT")
        tries = _Tries(history.log.name, history.position, failed, self._say)
        while not self._ended.is_set():
            if not self._wait_for_history(history):
                continue
            try:
                history.table.append_pending()
            except APPEND_ERRORS as error:
                tries.failed(str(error) if isinstance(error, TABLE_ERRORS) else explain_history(error, self._settings))
                history.is_in_trouble = True
                self._ended.wait(_RETRY)
                continue
            tries.succeeded()
            history.is_in_trouble = False
        history.log.close()

    def _wait_for_history(self, history: _History) -> bool:
        """Return whether it is time for an INSERT, having waited a moment for that."""
        if not self._lease.is_held:
            self._ended.wait(_TICK)
            return False
        if not history.table.in_step:
            # It is told from what the table holds where the history begins, and at the start that is known in a moment.
            if history.position.token is not None or self._table.in_step:
                return True
            self._ended.wait(_TICK)
            return False
        if not history.position.wait(timeout=_TICK):
            return False
        until = time.monotonic() + self._settings.history_interval
        while time.monotonic() < until and not self._ending.is_set():
            if history.position.wait(timeout=_TICK, count=self._settings.max_batch_rows):
                break
        if history.log.has_parted:
            history.table.doubt()
        return True

    # The main thread

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _watch(self) -> float:
        """Print the statistics and sync the journal until it is time to end; return when the last block was printed."""
        last_block = last_sync = time.monotonic()
        while not (self._signals or self._ending.is_set()):
            time.sleep(_TICK)
            now = time.monotonic()
            if now - last_sync >= _SYNC:
                self._sync()
                self._beat()
                last_sync = now
            if now - last_block >= self._settings.stats_interval:
                self._say_block(now - last_block)
                last_block = now
        self._ending.set()
        return last_block

    def _say_block(self, seconds: float) -> None:
        history = self._history.position.waiting if self._history and self._history.is_in_trouble else 0
        self._say(self._stats.block(seconds, self._position.waiting, self._intake.up, history))

    def _beat(self) -> None:
        self._heartbeat.beat(
            journal_full=self._intake.journal_full,
            being_compacted=self._stripelog.compaction.under_way,
            connections_down=self._settings.connections - self._intake.up,
            blocked=self._intake.unknown or self._refusal,
            trouble=self._intake.trouble(),
            channel_ages=self._intake.channel_ages(),
        )

    def _sync(self) -> None:
        try:
            self._journal.sync()
        except JournalError as error:
            self._end(EXIT_ERRORS, str(error))
        except OSError as error:
            self._failed("failed sync", f"The journal cannot be put on the disk for good: {error}")

    def _drain(self, feeds: list[threading.Thread], tables: list[threading.Thread]) -> None:
        """Give the threads time to end reading and to send what is pending; a second signal cuts it short."""
        until = time.monotonic() + _DRAIN_TIMEOUT
        signals = min(self._signals, 1)  # the first one began this
        while any(feed.is_alive() for feed in feeds) or (
            self._journal.waiting and any(table.is_alive() for table in tables)
        ):
            if time.monotonic() > until or self._signals > signals:
                break
            time.sleep(_TICK / 10)
        self._ended.set()
        for table in tables:
            table.join(_RETRY)
        if not any(table.is_alive() for table in tables):  # else it may yet store something
            self._lease.release()

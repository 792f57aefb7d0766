"""One collector: the feed, the messages, the journal and the table of one symbol wired together, and watched over.

Three threads. The feed's does nothing but read, format and journal, and never waits for the database. The table's
sends what the journal holds. The main one takes the signals, prints the statistics and syncs the journal.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from types import FrameType

from config import PROJECT, ConfigError, Settings, SymbolConfig, check_identifier, load_settings
from pipeline.collect.backoff import backoff
from pipeline.collect.errors import JournalError, JournalFull, TableMissing
from pipeline.collect.feed import Feed, FeedEvents
from pipeline.collect.gaps import Gaps
from pipeline.collect.health import Heartbeat
from pipeline.collect.journal import Journal
from pipeline.collect.lines import Lines
from pipeline.collect.stats import ErrorKind, Stats
from pipeline.collect.stripelog import APPEND_ERRORS, TABLE_ERRORS, StripeLog
from pipeline.collect.table import Table
from pipeline.messages import Row, parse_frame
from pipeline.store.client import explain, is_misconfigured

EXIT_STOPPED, EXIT_ERRORS, EXIT_CONFIG = 0, 1, 2

_DRAIN_TIMEOUT = 10.0  # seconds to send what is pending, once told to stop
_SETUP_TIMEOUT = 60.0  # seconds to wait for ch_setup.py at the start
_RETRY = 1.0  # seconds between two tries to reach ClickHouse
_SYNC = 1.0  # seconds; the most that a power loss takes from the journal
_TICK = 0.2  # seconds; how soon a signal is noticed
_LAST_LINES = 2.0  # seconds that the last lines have to be read
_OF_THE_EXCHANGE: tuple[ErrorKind, ...] = ("failed connect", "dropped connection", "error frame")
"""Errors that a fresh start may mend, with another VPN server. One of ClickHouse or of a disk it would not, and costs
frames."""


def collect(config: SymbolConfig) -> int:
    """Collect the symbol of `config` until stopped by SIGINT or SIGTERM; return the exit code.

    0: stopped by a signal. 1: too many errors in a row, start it again. 2: it cannot run as configured.
    """
    lines = Lines()
    try:
        return _collect(config, lines.say)
    finally:
        lines.flush(_LAST_LINES)


def _collect(config: SymbolConfig, say: Callable[[str], None]) -> int:
    try:
        settings = load_settings()
        check_identifier("table_name", config["table_name"])
        path = PROJECT / settings.journal_dir / f"{config['table_name']}.db"
        journal = Journal(path, settings.journal_max_mb * 1024 * 1024, say)
        collector = _Collector(config, settings, journal, say)
    except (ConfigError, JournalError, JournalFull) as error:
        say(str(error))
        return EXIT_CONFIG
    if settings.metrics_port:
        try:
            collector.serve_metrics()
        except OSError as error:
            say(
                f"METRICS_PORT={settings.metrics_port} at {settings.metrics_host} cannot be used: {error.strerror};"
                " each collector on a machine needs a port of its own"
            )
            return EXIT_CONFIG
    return collector.run()


def _channels(methods: list[str]) -> list[str]:
    """Return the channels of the frames that a session with these subscriptions consists of."""
    names = [method.removeprefix("sub.") for method in methods]
    return [*(f"push.{name}" for name in names), *(f"rs.sub.{name}" for name in names), "rs.error", "pong"]


class _Collector(FeedEvents):
    def __init__(self, config: SymbolConfig, settings: Settings, journal: Journal, say: Callable[[str], None]) -> None:
        self._say = say
        self._symbol = config["symbol"]
        self._methods = [subscription["method"] for subscription in config["subscriptions"]]
        self._unconfirmed: set[str] = set()
        self._settings = settings
        self._journal = journal
        self._journal_full = False
        self._table_name = config["table_name"]
        self._stats = Stats(self._symbol, self._table_name, _channels(self._methods))
        position = journal.position(self._table_name)
        self._stripelog = StripeLog(settings, self._table_name, say)
        self._table = Table(position, self._stripelog, say, settings.max_batch_rows)
        self._feed = Feed(
            settings.mexc_ws_url,
            config["subscriptions"],
            self,
            ping_interval=settings.ping_interval,
            stale_timeout=settings.stale_timeout,
        )
        self._gaps = Gaps(settings.mexc_ws_url, self._symbol, journal, say)
        self._heartbeat = Heartbeat(settings, self._table_name, position)
        self._failures: Counter[ErrorKind] = Counter()  # consecutive ones, by kind
        self._signals = 0
        self._exit_code = EXIT_STOPPED
        self._last_words = ""
        self._ending = threading.Event()  # nothing more is read
        self._ended = threading.Event()  # nothing more is sent

    def serve_metrics(self) -> None:
        """Serve this collector's figures to Prometheus. Raises OSError where METRICS_PORT cannot be used."""
        from pipeline.collect.metrics import Metrics  # what it imports takes memory, so only where it is wanted

        metrics = Metrics(self._symbol, self._table_name, self._stats, self._heartbeat, self._stripelog)
        metrics.serve(self._settings)

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note_signal)
        feed, table = (
            threading.Thread(target=self._guard, args=(target,), name=target.__name__, daemon=True)
            for target in (self._feed.run, self._fill_table)
        )
        feed.start()
        table.start()
        last_block = self._watch()
        self._feed.stop()
        self._drain(feed, table)
        if self._exit_code != EXIT_CONFIG:
            if self._journal.waiting:
                self._say(f"{self._journal.waiting} rows stay in the journal; the next start sends them")
            self._say(self._stats.block(time.monotonic() - last_block, self._journal.waiting))
        if self._last_words:
            self._say(self._last_words)
        self._sync()
        if self._gaps.finish(_RETRY) and not table.is_alive() and not feed.is_alive():
            self._journal.close()
        return self._exit_code

    def _guard(self, target: Callable[[], None]) -> None:
        """Run a thread's `target`; a thread that dies takes the process with it, to be started afresh."""
        try:
            target()
        except JournalError as error:
            self._end(EXIT_ERRORS, str(error))
        except Exception:  # noqa: BLE001 (whatever it was)
            self._say(traceback.format_exc().rstrip())
            self._end(EXIT_ERRORS, "This is a bug: please report the lines above")

    def _end(self, exit_code: int, line: str) -> None:
        """End the process with `exit_code`, and with `line` as the last one."""
        self._exit_code, self._last_words = exit_code, line
        self._ending.set()

    def _failed(self, kind: ErrorKind, line: str) -> None:
        self._say(line)
        self._stats.error(kind)
        self._failures[kind] += 1
        if kind in _OF_THE_EXCHANGE and self._failures[kind] == self._settings.max_error_count:
            self._end(EXIT_ERRORS, f"Giving up after {self._failures[kind]} consecutive errors ({kind})")

    def _succeeded(self, *kinds: ErrorKind) -> None:
        if self._failures:
            for kind in kinds:
                self._failures.pop(kind, None)

    # The feed's thread

    def frame(self, raw: str | bytes) -> bool:
        now_us = time.time_ns() // 1000
        message = parse_frame(raw, self._symbol, now_us // 1000)
        self._stats.frame(message.channel)
        if message.rows:
            self._keep(message.rows, now_us)
        if message.is_market_data:
            self._succeeded("dropped connection", "error frame")
            self._gaps.data_came(message.ts_ms)
            self._confirm("sub." + message.channel.removeprefix("push."), message.ts_ms)
            if not message.rows:
                self._stats.skipped()
        elif message.channel == "rs.error":
            self._failed("error frame", f"MEXC reports: {message.text}")
        elif message.channel.startswith("rs.sub.") and message.text == "success":
            self._confirm(message.channel.removeprefix("rs."), message.ts_ms)
        self._heartbeat.frame(is_market_data=message.is_market_data)
        return message.is_market_data

    def connected(self) -> None:
        self._stats.connection(is_up=True)
        self._succeeded("failed connect")
        self._unconfirmed = set(self._methods)
        self._gaps.connected()

    def not_connected(self, line: str) -> None:
        self._failed("failed connect", line)

    def dropped(self, line: str) -> None:
        self._stats.connection(is_up=False)
        self._failed("dropped connection", line)

    def _keep(self, rows: list[Row], received_us: int) -> None:
        try:
            self._journal.append(rows, received_us)
        except JournalFull as error:
            self._stats.refused(len(rows))
            if not self._journal_full:
                self._say(f"WARNING: new rows are LOST, the journal takes no more: {error}; see JOURNAL_MAX_MB")
            self._journal_full = True
        else:
            self._journal_full = False

    def _confirm(self, method: str, ts_ms: int) -> None:
        if method in self._unconfirmed:
            self._unconfirmed.remove(method)
            self._say(f"Subscribed to: {method} for {self._symbol}")
            if method == "sub.deal":
                self._gaps.deals_confirmed(ts_ms)

    # The table's thread

    def _fill_table(self) -> None:
        setup_until = time.monotonic() + _SETUP_TIMEOUT
        was_in_step = False
        delays = say_after = None
        while not self._ended.is_set():
            if self._table.in_step and not self._wait_for_rows():
                continue
            try:
                rows = self._table.append_pending()
            except APPEND_ERRORS as error:
                line = str(error) if isinstance(error, TABLE_ERRORS) else explain(error, self._settings)
                late = time.monotonic() > setup_until
                if not was_in_step and (late if isinstance(error, TableMissing) else is_misconfigured(error)):
                    self._end(EXIT_CONFIG, line)
                    return
                # It is tried each second, but said and counted less and less often.
                delays = delays or backoff()
                if say_after is None or time.monotonic() >= say_after:
                    say_after = time.monotonic() + next(delays)
                    self._failed("failed INSERT", f"{line}; {self._journal.waiting} rows wait")
                self._ended.wait(_RETRY)
                continue
            was_in_step = True
            self._stats.appended(mt for _, mt, _ in rows)
            if delays:
                delays = say_after = None
                self._succeeded("failed INSERT")
                self._say(f"ClickHouse takes rows again; {self._journal.waiting} rows wait")
            if rows and not self._stripelog.compaction.inserted(self._ended.is_set):
                self._table.doubt()
        self._stripelog.close()

    def _wait_for_rows(self) -> bool:
        if not self._journal.wait(timeout=_TICK):
            return False
        if self._settings.flush_interval:
            self._ending.wait(self._settings.flush_interval)
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
                self._heartbeat.beat(
                    journal_full=self._journal_full, being_compacted=self._stripelog.compaction.under_way
                )
                last_sync = now
            if now - last_block >= self._settings.stats_interval:
                self._say(self._stats.block(now - last_block, self._journal.waiting))
                last_block = now
        self._ending.set()
        return last_block

    def _sync(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            self._failed("failed sync", f"The journal cannot be put on the disk for good: {error}")
        else:
            self._succeeded("failed sync")

    def _drain(self, feed: threading.Thread, table: threading.Thread) -> None:
        """Give the threads time to end reading and to send what is pending; a second signal cuts it short."""
        until = time.monotonic() + _DRAIN_TIMEOUT
        signals = min(self._signals, 1)  # the first one began this
        while feed.is_alive() or (self._journal.waiting and table.is_alive()):
            if time.monotonic() > until or self._signals > signals:
                break
            time.sleep(_TICK / 10)
        self._ended.set()
        table.join(_RETRY)

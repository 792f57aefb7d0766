"""From the exchange into the journal: the connections of one symbol, and what is known of each.

In: frames of one or more WebSockets, and time. Out: rows in the journal, lines, counts. Promise: each message is
journaled once, from whichever connection brings it first; a gap is only where no connection was up; what is wrong with
a connection or with one of its subscriptions is said, counted and mended.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from config import Settings, SymbolConfig
from pipeline.collect.channels import Channels, Hopeless
from pipeline.collect.errors import JournalFull
from pipeline.collect.feed import Feed, FeedEvents
from pipeline.collect.gaps import Gaps
from pipeline.collect.health import Heartbeat
from pipeline.collect.journal import Journal
from pipeline.collect.once import Once
from pipeline.collect.stats import ErrorKind, Stats
from pipeline.contracts import UnknownContract, check_contract, unknown_contract
from pipeline.messages import Message, Row, parse_frame
from pipeline.rest import Rest

_PROOF = 5  # seconds that market data has to show that MEXC knows a symbol after all
_FULL = 0.5  # seconds that the journal has to take all rows until it is full no more
_LAGS = 2.0  # seconds without market data, after which another connection is the one in front


class Intake:
    """The exchange's end of a collector."""

    def __init__(
        self,
        config: SymbolConfig,
        settings: Settings,
        journal: Journal,
        stats: Stats,
        heartbeat: Heartbeat,
        say: Callable[[str], None],
        give_up: Callable[[str], None],
    ) -> None:
        """`say` takes lines for the user; `give_up` is called with one where too much failed in a row."""
        self.symbol = config["symbol"]
        self._settings = settings
        self._stats = stats
        self._heartbeat = heartbeat
        self._say = say
        self._give_up = give_up
        self._once = Once(journal, settings.connections)
        self._config = config
        self._rest = Rest(settings)
        self._gaps = Gaps(self._rest, self.symbol, journal, self._once, say)
        self._lock = threading.RLock()
        self._missing: set[tuple[str, str]] = set()  # fields that were said to be missing
        self.journal_full = False
        """Whether new rows are lost, because the journal takes no more."""
        self._refused_at = 0.0  # on the monotonic clock
        self._has_data = False  # market data came
        self.unknown = ""
        """That MEXC does not know the symbol, where it says so and has sent nothing of it; else empty."""
        self.connections = [
            _Connection(self, number, config, settings) for number in range(1, settings.connections + 1)
        ]
        self._front = self.connections[0]

    def check_contract(self) -> None:
        """Ask MEXC, once, whether the contract is what it is taken for; where it cannot be asked, some other time.

        Raises pipeline.contracts.UnknownContract, unless there is market data of it all the same.
        """
        try:
            if line := check_contract(self._rest, self._settings, self._config):
                self._say(line)
        except UnknownContract as error:
            for _ in range(_PROOF):
                if self._has_data:
                    self._say(str(error))
                    return
                time.sleep(1)
            raise

    def feeds(self) -> Iterator[Callable[[], None]]:
        """Yield what is to be run in threads, until `stop`."""
        return (connection.feed.run for connection in self.connections)

    def stop(self) -> None:
        """Read nothing more."""
        for connection in self.connections:
            connection.feed.stop()

    def finish(self, timeout: float) -> bool:
        """Return whether nothing is being filled in, waiting for it at most `timeout` seconds."""
        return self._gaps.finish(timeout)

    @property
    def up(self) -> int:
        """How many connections there are now."""
        return sum(connection.is_up for connection in self.connections)

    def trouble(self) -> list[str]:
        """Return what is wrong with subscriptions that no connection has in order, a line each."""
        up = [connection.channels.trouble for connection in self.connections if connection.is_up]
        return [
            f"{method} {text}" for method, text in (up[0].items() if up else ()) if all(method in each for each in up)
        ]

    def channel_ages(self) -> dict[str, float]:
        """Return the seconds since the newest push of each channel, of any connection, or since the start."""
        now = time.monotonic()
        channels = [connection.channels for connection in self.connections]
        return {
            method.replace("sub.", "push."): now - max(each.newest(method) for each in channels)
            for method in channels[0].methods
        }

    # What the connections tell, each in its own thread

    def take(self, connection: _Connection, raw: str | bytes) -> bool:
        """Take a frame; return whether it was market data."""
        now_us = time.time_ns() // 1000
        message = parse_frame(raw, self.symbol, now_us // 1000)
        is_market_data = message.is_market_data
        with self._lock:
            self._stats.frame(message.channel)
            if message.rows:
                self._keep(message.rows, now_us, connection)
            if is_market_data:
                self._market_data(connection, message)
            elif message.channel == "rs.error":
                self.failed(connection, "error frame", f"MEXC reports: {message.text}")
                if f"[{self.symbol}] not exist" in message.text and not self._has_data:
                    self.unknown = unknown_contract(self.symbol)
            elif message.refused:
                connection.channels.refused(message.refused, message.text)
            elif message.channel.startswith("rs.sub."):
                method = message.channel.removeprefix("rs.")
                if connection.channels.confirmed(method):
                    self._subscribed(connection, method, message.ts_ms)
            self._heartbeat.frame(is_market_data=is_market_data)
        return is_market_data

    def connected(self, connection: _Connection) -> None:
        """Note a connection, and where the gap before it began."""
        with self._lock:
            self._gaps.connected(others_up=self.up > 0)
            connection.is_up = True
            self._stats.connection(is_up=True)
            self.succeeded(connection, "failed connect")

    def dropped(self, connection: _Connection, line: str) -> None:
        """Note that a connection ended."""
        with self._lock:
            if connection.is_up:  # it is not where it ended before all subscriptions were sent
                self._stats.connection(is_up=False)
            connection.is_up = False
            self.failed(connection, "dropped connection", line)

    def deals_stopped(self) -> None:
        """Note that deals may be missing, though the connection is up."""
        with self._lock:
            self._gaps.deals_stopped()

    def failed(self, connection: _Connection, kind: ErrorKind, line: str) -> None:
        """Say and count an error; give up where no connection has had anything but such for long."""
        with self._lock:
            self._say(connection.named(line))
            self._stats.error(kind)
            connection.failures[kind] += 1
            limit = self._settings.max_error_count
            if min(each.failures[kind] for each in self.connections) == limit == connection.failures[kind]:
                self._give_up(f"Giving up after {limit} consecutive errors ({kind})")

    def succeeded(self, connection: _Connection, *kinds: ErrorKind) -> None:
        """Begin to count errors of these kinds anew."""
        for kind in kinds:
            connection.failures.pop(kind, None)

    def _market_data(self, connection: _Connection, message: Message) -> None:
        now = connection.newest = time.monotonic()
        self._has_data, self.unknown = True, ""
        if connection is not self._front and (not self._front.is_up or now - self._front.newest > _LAGS):
            self._front = connection
        self._gaps.data_came(message.ts_ms)
        method = "sub." + message.channel.removeprefix("push.")
        if connection.channels.came(method, now):
            self._subscribed(connection, method, message.ts_ms)
        if connection.failures:
            self.succeeded(connection, "dropped connection", "error frame")
            if not connection.channels.trouble:
                self.succeeded(connection, "dead subscription")
        if message.volume24:
            connection.channels.traded(message.volume24, now)
        if not message.rows:
            self._stats.skipped()
        for field in message.missing:
            if (message.channel, field) not in self._missing:
                self._missing.add((message.channel, field))
                self._say(f"{self.symbol}: {message.channel} comes without {field}; it is stored as empty")

    def _keep(self, rows: Sequence[Row], received_us: int, connection: _Connection) -> None:
        try:
            in_front = connection is self._front
            repeated = self._once.keep(rows, received_us, connection.number, in_front=in_front)
        except JournalFull as error:
            self._stats.refused(len(rows))
            if not self.journal_full:
                self._say(f"WARNING: new rows are LOST, the journal takes no more: {error}; see JOURNAL_MAX_MB")
            self.journal_full, self._refused_at = True, time.monotonic()
        else:
            if self.journal_full:  # at first a short row may still go in where a long one does not
                self.journal_full = time.monotonic() - self._refused_at < _FULL
            if repeated:
                self._stats.repeated(repeated)

    def _subscribed(self, connection: _Connection, method: str, ts_ms: int) -> None:
        self._say(connection.named(f"Subscribed to: {method} for {self.symbol}"))
        if method == "sub.deal":
            self._gaps.deals_confirmed(ts_ms)


class _Connection(FeedEvents):
    """One WebSocket after the other, and its subscriptions."""

    def __init__(self, intake: Intake, number: int, config: SymbolConfig, settings: Settings) -> None:
        self._intake = intake
        self.number = number
        self._name = f" (connection {number})" if settings.connections > 1 else ""
        self.is_up = False
        self.newest = time.monotonic()  # when market data came, or the start
        self.failures: Counter[ErrorKind] = Counter()  # consecutive ones, by kind
        methods = [subscription["method"] for subscription in config["subscriptions"]]
        self.channels = Channels(methods, self._dead_subscription)
        self.feed = Feed(
            settings.mexc_ws_url,
            config["subscriptions"],
            self,
            ping_interval=settings.ping_interval,
            stale_timeout=settings.stale_timeout,
        )

    def named(self, line: str) -> str:
        """Return a line with this connection's name, where there is more than one."""
        return line + self._name

    def frame(self, raw: str | bytes) -> bool:
        return self._intake.take(self, raw)

    def connected(self) -> None:
        self.channels.connected(time.monotonic())
        self._intake.connected(self)

    def not_connected(self, line: str) -> None:
        self._intake.failed(self, "failed connect", line)

    def dropped(self, line: str) -> None:
        self.channels.dropped()
        self._intake.dropped(self, line)

    def check(self) -> Sequence[str]:
        if unknown := self._intake.unknown:
            raise Hopeless(unknown)
        again = self.channels.check(time.monotonic())
        if "sub.deal" in again:
            self._intake.deals_stopped()
        return again

    def _dead_subscription(self, line: str) -> None:
        self._intake.failed(self, "dead subscription", f"{self._intake.symbol}: {line}")

"""A collector's figures for Prometheus, where METRICS_PORT is set.

In: what the parts of a collector count anyway, read when Prometheus asks; only INSERTs are noted one by one. Out: those
figures on http://METRICS_HOST:METRICS_PORT/metrics, with the labels `symbol` and `table`, and the process's own ones.
Counters begin at 0 with each start of the collector, as Prometheus expects. This is the only module of a collector that
imports prometheus_client; without METRICS_PORT nobody imports it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config import Settings
from pipeline.collect.health import Heartbeat
from pipeline.collect.historylog import HistoryLog
from pipeline.collect.stats import ErrorKind, Stats
from pipeline.collect.stripelog import StripeLog
from pipeline.messages import TYPE_NAMES
from pipeline.status import Status

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Metrics(Collector):
    """The figures of one collector."""

    def __init__(
        self,
        symbol: str,
        table_name: str,
        stats: Stats,
        heartbeat: Heartbeat,
        stripelog: StripeLog,
        history: HistoryLog | None,
    ) -> None:
        """Begin to note the INSERTs into `stripelog`, and into `history` where there is one."""
        self._labels = {"symbol": symbol, "table": table_name}
        self._stats = stats
        self._heartbeat = heartbeat
        self._compaction = stripelog.compaction
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        disable_created_metrics()  # type: ignore[no-untyped-call]  # Prometheus notices a restart without them
        self._insert_seconds = self._histogram(
            "mexc_insert_duration_seconds", "From sending an INSERT to its acknowledgement", _SECONDS
        )
        self._insert_rows = self._histogram("mexc_insert_rows", "Rows of an INSERT", _ROWS)
        stripelog.inserts.on_insert = self._inserted
        self._history_took: float | None = None
        if history:
            history.inserts.on_insert = self._inserted_into_history

    def serve(self, settings: Settings) -> None:
        """Answer Prometheus in a thread of its own, for as long as the process lives. Raises OSError."""
        start_http_server(settings.metrics_port, settings.metrics_host, self._registry)

    def answer(self, descriptor: int) -> None:
        """Answer whatever comes in at a socket with it and the figures, in a thread of its own."""
        thread = threading.Thread(target=self._answer, args=(socket.socket(fileno=descriptor),), daemon=True)
        thread.start()

    def _answer(self, asked: socket.socket) -> None:
        while question := asked.recv(100):
            asked.send(question + generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield all figures but those of INSERTs, as they are now."""
        stats, status, compaction = self._stats, self._heartbeat.status, self._compaction
        totals = stats.totals()
        types = {name: totals[mt] for mt, name in TYPE_NAMES.items()}
        errors = {kind.lower().replace(" ", "_"): stats.errors[kind] for kind in get_args(ErrorKind)}
        yield self._counters("mexc_frames", "Frames from the exchange", "channel", stats.frames)
        yield self._counter("mexc_frames_skipped", "Frames of a known channel with nothing in them", totals["skipped"])
        yield self._counters("mexc_rows_appended", "Rows of acknowledged INSERTs", "type", types)
        yield self._counter("mexc_rows_lost", "Rows that the journal had no room for", totals["refused"])
        yield self._counters("mexc_errors", "Errors, those of the statistics block", "kind", errors)
        yield self._counter("mexc_rows_repeated", "Rows that had come already, and were dropped", totals["repeated"])
        yield self._gauge("mexc_connected", "Connections to the exchange that are there", stats.connected)
        yield self._gauge("mexc_connections_wanted", "Connections that are to be there", stats.wanted)
        reconnects = max(0, stats.connections - stats.wanted)
        yield self._counter("mexc_reconnects", "Connections to the exchange after the first", reconnects)
        yield self._channel_times(status)
        yield self._gauge("mexc_subscriptions_in_trouble", "Refused, not confirmed or dead ones", len(status.trouble))
        yield self._gauge(
            "mexc_last_frame_timestamp_seconds",
            "When the newest frame came, a pong included; the collector's start where none did",
            status.written - status.frame_age,
        )
        yield self._gauge(
            "mexc_last_market_data_timestamp_seconds",
            "When the newest market data came; the collector's start where none did",
            status.written - status.market_age,
        )
        yield self._gauge(
            "mexc_journal_waiting_rows", "Rows not known to be in the table", self._heartbeat.position.waiting
        )
        yield self._gauge(
            "mexc_journal_stuck_seconds", "For how long rows wait and ClickHouse has taken none", status.stuck_for
        )
        yield self._gauge("mexc_table_rows", "Rows that the table is known to hold", self._heartbeat.position.rows)
        yield self._gauge("mexc_table_being_compacted", "1 while rows wait for a compaction", compaction.under_way)
        yield self._gauge("mexc_table_small_blocks", "Blocks that a compaction would save", compaction.small_blocks)
        yield self._counter("mexc_compactions", "Compactions of the table by the collector", compaction.compactions)
        yield self._gauge(
            "mexc_last_compaction_duration_seconds", "How long the last of them took", compaction.took or None
        )

        if status.history_waiting is not None:
            yield self._gauge(
                "mexc_history_waiting_rows", "Rows not known to be in the history", status.history_waiting
            )
            yield self._gauge(
                "mexc_history_stuck_seconds",
                "For how long rows wait and the history has taken none",
                status.history_stuck_for,
            )
            yield self._gauge(
                "mexc_history_last_insert_timestamp_seconds", "When the history last took rows", self._history_took
            )

    def _channel_times(self, status: Status) -> Metric:
        family = GaugeMetricFamily(
            "mexc_last_push_timestamp_seconds",
            "When the newest push of a channel came; the collector's start where none did",
            labels=[*self._labels, "channel"],
        )
        for channel, age in status.channel_ages.items():
            family.add_metric([*self._labels.values(), channel], status.written - age)
        return family

    def _inserted(self, rows: int, seconds: float) -> None:
        self._insert_rows.observe(rows)
        self._insert_seconds.observe(seconds)

    def _inserted_into_history(self, rows: int, seconds: float) -> None:
        self._history_took = time.time()

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(name, text, self._labels, registry=self._registry, buckets=buckets)
        return family.labels(**self._labels)

    def _counters(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[*self._labels, label])
        for value_of_label, value in list(values.items()):
            family.add_metric([*self._labels.values(), value_of_label], value)
        return family

    def _counter(self, name: str, text: str, value: int) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _gauge(self, name: str, text: str, value: float | None) -> Metric:
        """Return a gauge, without a sample where there is no `value` yet."""
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        if value is not None:
            family.add_metric(list(self._labels.values()), value)
        return family

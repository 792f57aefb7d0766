#!/usr/bin/env python3
"""Report how many records the tables hold, of which type, and what they take on disk.

With --quality, how complete and sound they are; with --audit, whether MEXC's own klines agree; with --html, all of it
as a page; with --max-age, only whether new rows come; with --watch, a live view until Ctrl-C; with --doctor, what may
be wrong here, whatever runs. With SYMBOLS, reports have a line for each symbol, the worst first; with --only, they are
in full.

Exit codes: 0 there are records, 1 there are none, or ClickHouse or MEXC cannot be asked, 2 a setting or an option
cannot be used, 3 --max-age was given and a symbol's newest ticker or book is older, or it has none; or
--fail-on-gaps, and there are some; or --audit, and more contracts are missing than --audit-tolerance allows. With
--doctor, 1 is that something is wrong.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import (
    PROJECT,
    ConfigError,
    Settings,
    SymbolConfig,
    all_symbols,
    check_identifier,
    choose_symbols,
    load_settings,
    more_symbols,
)
from pipeline.files import silence_stdout
from pipeline.human import human_size, many, show_warnings_plainly
from pipeline.show.overview import storage_overview, tiers_overview
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.compact import blocks_allowed
from pipeline.store.history import history_of
from pipeline.store.source import History, HistoryError
from pipeline.store.storage import Storage, TableStorage, advice, records_by_type, survey
from pipeline.store.tiers import Tiers, survey_tiers
from pipeline.times import from_ms, parse_time, with_times_joined

if TYPE_CHECKING:  # what the other reports take to import, the plain one need not wait for
    from pipeline.read.audit import SymbolAudit
    from pipeline.read.quality import SymbolQuality

_TYPES = {"t": "Ticker messages", "d": "Deal messages", "dp": "Depth messages", "dl": "Dead letters"}
_SHORT, _LONG = 120.0, 3600.0  # seconds without a word from the server; some say none while they look for rows
_WATCH_EVERY = 5.0  # seconds
_MOST_SECONDS = 1e9  # of an option
_TOLERANCE = 0.1  # percent


def main() -> int:
    """Run the command line; return the exit code."""
    show_warnings_plainly()
    options = parse_options()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    if options.doctor:
        from pipeline.show.doctor import examine

        lines = examine(PROJECT, os.environ)
        print("\n".join(map(str, lines)))
        return int(any(line.is_well is False for line in lines))
    try:
        settings = load_settings()
        configs = all_symbols(settings)
        configs = choose_symbols(options.only, configs) or configs
        for config in configs:
            check_identifier("table_name", config["table_name"])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if options.watch is not None:
            from pipeline.show.watch import watch

            return watch(settings, configs, options.watch)
        reports = Reports(options, settings, configs)
        code = reports.make()
    except HistoryError as error:
        print(error, file=sys.stderr)
        return 1
    except CLICKHOUSE_ERRORS as error:
        print(explain(error, settings), file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:  # in the image of the collectors
        print(f"That needs {error.name}: use the environment that setup.sh makes", file=sys.stderr)
        return 2
    try:
        for text, is_trouble in reports.said:
            print(text, file=sys.stderr if is_trouble else sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `verif.py | head`, which has seen enough
        silence_stdout()
    except OSError as error:
        silence_stdout()
        print(f"The report cannot be printed: {error.strerror}", file=sys.stderr)
        return 1
    return code


def parse_options() -> argparse.Namespace:
    """Return the options; those that do not go together end the process with exit code 2."""
    parser = argparse.ArgumentParser(description="Report records and storage of all symbols in config.py.")
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="SYMBOL", help="of these, such as btc or BTC_USDT, and in full")
    add("--json", action="store_true", help="print it as JSON, and all of it; sizes in bytes")
    add("--quality", action="store_true", help="report coverage, gaps, order, duplicates, books and dead letters")
    add(
        "--fail-on-gaps",
        action="store_true",
        help="exit with 3 if --quality finds a gap, or minutes without their deals",
    )
    add("--audit", action="store_true", help="compare the deals with MEXC's own one-minute klines, by REST")
    add(
        "--audit-tolerance",
        type=_percent,
        metavar="PERCENT",
        help=f"exit with 3 if more of a symbol's contracts are missing (default: {_TOLERANCE})",
    )
    add("--html", type=file_argument, metavar="FILE", help="write a page that shows it, with --audit that, too")
    add(
        "--from",
        type=time_argument,
        dest="start",
        metavar="TIME",
        help="for --quality, --audit, --html: a UTC date or ISO time, yesterday, or -24h",
    )
    add("--to", type=time_argument, dest="end", metavar="TIME", help="likewise; rows of this time are not included")
    add(
        "--max-age",
        type=_seconds,
        metavar="SECONDS",
        help="exit with 3 if a symbol's newest ticker or book is older, or it has none",
    )
    add("--watch", type=_seconds, nargs="?", const=_WATCH_EVERY, metavar="SECONDS", help="show it live until Ctrl-C")
    add("--doctor", action="store_true", help="look at everything that may be wrong, and say what to do")
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    others = (options.json, options.quality, options.audit, options.html, options.start, options.end, options.max_age)
    if options.watch is not None and any(others):
        parser.error("--watch goes with no other option")
    if (options.start or options.end) and not (options.quality or options.audit or options.html):
        parser.error("--from and --to go with --quality, --audit or --html")
    if options.fail_on_gaps and not options.quality:
        parser.error("--fail-on-gaps goes with --quality")
    if options.audit_tolerance is not None and not options.audit:
        parser.error("--audit-tolerance goes with --audit")
    if options.doctor and (any(others) or options.watch is not None):
        parser.error("--doctor goes with no other option")
    if options.start and options.end and options.start >= options.end:
        parser.error("--from has to be before --to")
    return options


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # argparse tells it


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 <= percent <= 100:
        raise ValueError
    return percent


_percent.__name__ = "number from 0 to 100"


def time_argument(text: str) -> datetime:
    """Return the moment that an option names. Raises argparse.ArgumentTypeError."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_argument(text: str) -> Path:
    """Return the file that an option names, which can be written as far as is known. Raises likewise."""
    path = Path(text)
    with suppress(OSError):
        if not path.is_dir() and path.absolute().parent.is_dir():
            return path
    raise argparse.ArgumentTypeError(f"{text} cannot be written: give a file in a directory that is there")


class Reports:
    """The reports that were asked for."""

    def __init__(self, options: argparse.Namespace, settings: Settings, configs: Sequence[SymbolConfig]) -> None:
        self._options, self._settings, self._configs = options, settings, configs
        self._in_short = bool(more_symbols(settings)) and not options.only  # a line for each symbol
        timeout = _LONG if options.quality or options.audit or options.html else _SHORT
        self._client, self._database = connect(settings, timeout=timeout), settings.clickhouse_database
        self._history = History(settings, timeout=timeout) if settings.history else None
        self._asked_at = datetime.now(UTC)
        self._answer: dict[str, Any] = {}  # for --json
        self.said: list[tuple[str, bool]] = []
        """What is to be printed, each with whether it is trouble, for stderr."""

    def make(self) -> int:
        """Make all of them; return the exit code. Raises one of CLICKHOUSE_ERRORS."""
        options = self._options
        codes = []
        if not (options.quality or options.audit or options.max_age):
            codes.append(self._report_storage())
        if options.quality:
            codes.append(self._report_quality())
        if options.audit:
            codes.append(self._report_audit())
        if options.max_age:
            codes.append(self._report_age())
        if options.html:
            codes.append(self._write_page())
        if options.json:
            self.said.append((json.dumps(self._answer, indent=2), False))
        return max(codes)

    @cached_property
    def _storage(self) -> Storage:
        return survey(self._client, self._database, self._configs, show_progress=True)

    @cached_property
    def _tiers(self) -> list[Tiers]:
        return survey_tiers(self._client, self._database, self._configs, self._history) if self._history else []

    @cached_property
    def _quality(self) -> list[SymbolQuality]:
        from pipeline.read.quality import examine

        start, end = self._options.start, self._options.end
        bounds = {"start": start, "end": end}
        return examine(self._client, self._database, self._configs, **bounds, show_progress=True, history=self._history)

    @cached_property
    def _audit(self) -> list[SymbolAudit]:
        from pipeline.read.audit import audit

        options = self._options
        bounds = {"start": options.start, "end": options.end}
        return audit(self._client, self._settings, self._configs, **bounds, show_progress=True, history=self._history)

    def _report_storage(self) -> int:
        storage = self._storage
        by_type = {tiers.table: tiers.by_type for tiers in self._tiers}
        beyond = {tiers.table: tiers.beyond for tiers in self._tiers}
        self._answer |= {"records": self._records, **asdict(storage)}
        if any(table.exists for table in storage.tables):
            blocks = blocks_allowed(self._settings)
            self._say(
                storage_overview(storage, blocks, by_type)
                if self._in_short
                else report(storage, blocks, by_type, beyond)
            )
        if self._history:
            self._answer["history"] = [asdict(tiers) for tiers in self._tiers]
            self._say((tiers_overview if self._in_short else tiers_report)(self._tiers))
        return self._code_for_records

    @property
    def _records(self) -> int:
        """What all tables have; with histories what both have, each counted once."""
        return sum(tiers.records for tiers in self._tiers) if self._history else self._storage.records

    @cached_property
    def _code_for_records(self) -> int:
        """0 if there are some, else 1, and a line that says why."""
        if not self._records and not any(table.exists for table in self._storage.tables):
            self._warn(f"There are no tables in {self._database}: run ch_setup.py")
        elif not self._records:
            self._warn("The tables are empty: no collector has stored a record yet")
        return 0 if self._records else 1

    def _report_quality(self) -> int:
        from pipeline.show.quality_report import as_json, as_text, verdict, worst_first

        self._answer["quality"] = [as_json(symbol) for symbol in self._quality]
        if self._in_short:
            self._say("\n".join(map(verdict, worst_first(self._quality))))
        else:
            self._say("\n\n".join(map(as_text, self._quality)))
        if self._options.fail_on_gaps and any(
            symbol.uncovered or symbol.minutes_without_deals for symbol in self._quality
        ):
            return 3
        if self._options.fail_on_gaps and any(symbol.problem for symbol in self._quality):
            return 1
        return 0 if any(symbol.rows for symbol in self._quality) else 1

    def _report_audit(self) -> int:
        from pipeline.show.audit_report import as_json, as_text, verdict, worst_first

        given = self._options.audit_tolerance
        tolerance = _TOLERANCE if given is None else given
        self._answer["audit"] = [as_json(symbol) for symbol in self._audit]
        as_said = verdict if self._in_short else as_text
        for symbol in worst_first(self._audit) if self._in_short else self._audit:
            if symbol.problem is not None:
                self._warn(as_said(symbol))
            else:
                self._say(as_said(symbol))
        if any(100 * symbol.missing > tolerance * symbol.contracts for symbol in self._audit):
            return 3
        return 1 if any(symbol.problem is not None or symbol.not_compared for symbol in self._audit) else 0

    def _report_age(self) -> int:
        from pipeline.read.quality import find_newest
        from pipeline.show.quality_report import age_as_json, age_line, late_channels

        self._answer["newest"] = []
        code = 0
        max_age = self._options.max_age
        for newest in find_newest(self._client, self._database, self._configs, self._history):
            now = datetime.now(UTC)
            self._answer["newest"].append(age_as_json(newest, max_age, now))
            if late_channels(newest, max_age, now):
                self._warn(age_line(newest, max_age, now))
                code = 3
            else:
                self._say(age_line(newest, max_age, now))
        return code

    def _write_page(self) -> int:
        from pipeline.show.figures import read_prices
        from pipeline.show.page import render

        if self._code_for_records:
            return self._code_for_records
        prices = {
            symbol.table: read_prices(
                self._client,
                self._database,
                symbol.table,
                from_ms(symbol.start_ms),
                self._options.end or from_ms(symbol.end_ms + 1),  # the newest row is in it
                history=self._history,
            )
            for symbol in self._quality
            if symbol.start_ms is not None and symbol.end_ms is not None
        }
        path = self._options.html
        audits = self._audit if self._options.audit else ()
        page = render(self._storage, self._quality, prices, self._asked_at, self._settings, audits, self._tiers)
        try:
            replace_file(path, page)
        except OSError as error:
            self._warn(f"{path} cannot be written: {error.strerror}")
            return 2
        self._say(f"Written: {path.absolute()}")
        return 0

    def _say(self, text: str) -> None:
        if not self._options.json:
            self.said.append((text, False))

    def _warn(self, text: str) -> None:
        self.said.append((text, True))


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file so that, whatever happens, there is the old one or the new one. Raises OSError.

    What is no file, such as a pipe, is written to; a link stays one.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def tiers_report(tiers: Sequence[Tiers]) -> str:
    """Return as text from when to when each table and its history have rows."""
    lines = (f"  {line}" for each in tiers for line in each.as_text())
    return "\n".join(["", "History, and what its table has beside it:", *lines])


def report(
    storage: Storage, compact_blocks: int, both: Mapping[str, Mapping[str, int]], beyond: Mapping[str, int]
) -> str:
    """Return the report as text.

    `compact_blocks` is the setting COMPACT_BLOCKS; `both` are the records by type of each table and its history, by
    table, where there are histories, and `beyond` how many of them only the history has.
    """
    by_type = records_by_type(storage.tables, both)
    records = {name: sum(counts.values()) for name, counts in by_type.items()}
    lines = ["💾 Symbol-specific storage status:", "", f"Total records appended: {sum(records.values())}"]
    for table in storage.tables:
        more = beyond.get(table.name, 0)
        elsewhere = f", {more} of them only in {history_of(table.name)}" if more > 0 else ""
        lines.append(f"  {table.name}/data.bin: {records[table.name]} records{elsewhere}")
    lines += ["", "Records by symbol and message type:"]
    for name, counts in by_type.items():
        if records[name]:
            lines.append(f"  {name.upper()}: {records[name]} total")
            lines += [f"    {f'{mt}: {count}':<8} # {_TYPES[mt]}" for mt, count in counts.items()]
    lines += ["", "STORAGE STATISTICS"]
    if storage.volume is not None:
        lines.append(f"  Total ClickHouse volume size: {human_size(storage.volume)}")
    else:
        lines.append("  This server does not show its files; sizes are from system.tables, data.bin + index.mrk:")
    lines += [f"  {table.name}/data.bin: {_size(table, storage.files_seen)}" for table in storage.tables]
    if storage.records:
        lines += ["", "Blocks, and what they cost the server in memory:"]
    lines += [f"  {table.name}: {_blocks(table)}" for table in storage.tables if table.records]
    for table in storage.tables:
        if line := advice(table, compact_blocks):
            lines.append(f"  {line}")
    return "\n".join(lines)


def _blocks(table: TableStorage) -> str:
    rows = f"{table.records / table.blocks:,.1f} rows on average"
    return f"{many(table.blocks, 'block')} of {rows}, about {human_size(table.block_memory)}"


def _size(table: TableStorage, files_seen: bool) -> str:
    if not table.exists:
        return "No such table, run ch_setup.py"
    if not files_seen:
        return human_size(table.total_bytes or 0)
    if table.data_bin is None:
        return "File not found yet"
    return f"{human_size(table.data_bin)} ({table.data_bin} bytes), index.mrk: {human_size(table.index_mrk or 0)}"


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

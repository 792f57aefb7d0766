"""The picture of an archive: one HTML page that needs nothing else, for verif.py --html.

In: what pipeline.store.storage, pipeline.read.quality and pipeline.read.audit found out, and the prices of
pipeline.show.figures. Out: the text of the page. Promises: its size is bounded, however long the archive; it loads
nothing and says so in its Content-Security-Policy; whatever the exchange has sent is shown as text and is never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

from config import Settings
from pipeline.human import human_size, length, many, printable
from pipeline.read.audit import Difference, SymbolAudit
from pipeline.read.quality import (
    ALL_SILENCE_MS,
    DEPTH_SILENCE_MS,
    TICKER_SILENCE_MS,
    ChannelQuality,
    Finding,
    Gap,
    SymbolQuality,
)
from pipeline.show.audit_report import most_first, percent
from pipeline.show.figures import PricePoint, disk_bytes, examined_range, figures, has_minutes
from pipeline.status import stale_after
from pipeline.store.storage import Storage, TableStorage, advice, records_by_type
from pipeline.store.tiers import Tiers
from pipeline.times import iso, to_ms

_ASSETS = Path(__file__).parent / "assets"
_LAG = 10.0  # seconds, that one of two connections may be behind the other
_NAMED = 3  # symbols in the headline, and below it; where there are more, they have their number, and the worst first
_LISTED_GAPS = 8
_LISTED_MINUTES = 8
_LISTED_KINDS = 8
_EXAMPLE = 160  # characters of something that the exchange has sent
_REPEATED = 16  # times that a character comes in a row, from where on it is said how often
_COMPACTING = 300.0  # seconds; a compaction can keep rows waiting that long
_LEVELS = ("bad", "look", "well")
_TYPES = {"t": "tickers", "d": "deals", "dp": "depth", "dl": "dead letters"}
_DEPTH, _TICKERS, _ALL = (f"{ms / 1000:g} s" for ms in (DEPTH_SILENCE_MS, TICKER_SILENCE_MS, ALL_SILENCE_MS))
_KINDS = {
    "rs.error": "error messages of MEXC",
    "another symbol": "of another symbol",
    "unknown channel": "of a channel that was not subscribed to",
    "bad field": "with a field that is missing or of the wrong kind",
    "cut short": "too long to tell what is wrong",
}
"""Dead letters, where the name of their kind is not plain enough."""


def render(
    storage: Storage,
    quality: Sequence[SymbolQuality],
    prices: dict[str, list[PricePoint]],
    made_at: datetime,
    settings: Settings,
    audits: Sequence[SymbolAudit] = (),
    tiers: Sequence[Tiers] = (),
) -> str:
    """Return the page.

    `prices` is by table, and may lack some; `made_at` is an aware time: that of the ages, when it was all
    asked for; `audits` are those that were made, if any; `tiers` are there with HISTORY=1.
    """
    made_ms = to_ms(made_at)
    tables = {table.name: table for table in storage.tables}
    for each in tiers:
        if each.history and not each.trouble:  # what is read, and so shown
            records, size = each.history.records, each.history.total_bytes
            tables[each.table] = replace(tables[each.table], records=records, data_bin=None, total_bytes=size)
    audit_of = {audit.table: audit for audit in audits}
    shown = [tables.get(symbol.table, TableStorage(symbol.table)) for symbol in quality]
    limits = [_COMPACTING if table.being_compacted else stale_after(settings) for table in shown]
    looks = [
        _look(symbol, made_ms, limit, audit_of.get(symbol.table)) for symbol, limit in zip(quality, limits, strict=True)
    ]
    if len(quality) > _NAMED:
        pairs = sorted(zip(quality, looks, strict=True), key=lambda pair: (_urgency(pair[1]), pair[0].coverage or 0))
        quality, looks = [symbol for symbol, _ in pairs], [look for _, look in pairs]
    ranges = [examined_range(symbol) for symbol in quality if symbol.start_ms is not None]
    whole = [min(start for start, _ in ranges), max(end for _, end in ranges)] if ranges else None
    data: dict[str, Any] = {"range": whole, "symbols": {}}
    cards: list[_Html] = []
    sections: list[_Html] = []
    for symbol, look in zip(quality, looks, strict=True):
        table = tables.get(symbol.table, TableStorage(symbol.table))
        cards.append(_card(symbol, look, table, made_ms))
        charts = _Html("")
        if symbol.start_ms is not None:
            audit = audit_of.get(symbol.table)
            drawn = figures(symbol, table, prices.get(symbol.table, []), audit)
            data["symbols"][symbol.table] = drawn
            charts = _charts(symbol, drawn, whole, audit)
        level = _LEVELS[_urgency(look)]
        is_shown = len(quality) <= _NAMED or (level != "well" and len(sections) < _NAMED)
        sections.append(
            _fill(
                "symbol.html" if is_shown else "folded.html",
                table=symbol.table,
                symbol=symbol.symbol,
                level=level,
                verdict=_in_short(symbol, look),
                range=_whole_times(_examined(symbol)),
                findings=_join(_finding(said) for said in look),
                charts=charts,
            )
        )
    verdict, whole_level = _verdict(quality, looks)
    styles = {name: _asset(f"{name}.css") for name in ("uPlot.min", "page")}
    scripts = {name: _asset(f"{name}.js") for name in ("uPlot.iife.min", "page")}
    return _fill(
        "page.html",
        policy=_policy(scripts.values(), styles.values()),
        title=f"{verdict} · MEXC archive",
        level=whole_level,
        verdict=verdict,
        subject=_whole_times(_subject(quality, whole, made_ms)),
        cards=_join(cards),
        symbols=_join(sections),
        storage=_storage(storage, {symbol.table: symbol.symbol for symbol in quality}, settings.compact_blocks, tiers),
        made_at=_time(made_ms),
        uplot_licence=_asset("uPlot.LICENSE"),
        data=_Html(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
        uplot_css=styles["uPlot.min"],
        page_css=styles["page"],
        uplot_js=scripts["uPlot.iife.min"],
        page_js=scripts["page"],
    )


# Words


@dataclass(frozen=True)
class _Said:
    """A thing to know about a symbol."""

    level: str
    """``well``, ``note``, ``look`` or ``bad``: the last two are what the verdict counts."""
    short: str
    text: str
    example: str = ""
    """Something that the exchange has sent."""


def _look(symbol: SymbolQuality, made_ms: int, limit: float, audit: SymbolAudit | None) -> list[_Said]:
    """Return what there is to say of a symbol, in the order of importance; `limit` is when it is stale, in seconds."""
    counted = _audit(audit) if audit else ()
    if symbol.problem is not None:
        problem = f"{symbol.problem[:1].upper()}{symbol.problem[1:]}."
        return [_Said("bad", "no data", problem), *counted, *_dead_letters(symbol)]
    return [*_completeness(symbol, made_ms, limit), *counted, *_soundness(symbol), *_dead_letters(symbol)]


def _audit(audit: SymbolAudit) -> Iterable[_Said]:
    if audit.problem is not None:
        yield _Said("note", "", f"Not compared with MEXC's klines: {audit.problem}.")
        return
    agree = f"{audit.exact:,} of {many(audit.minutes, 'minute')} agree exactly"
    of_all = f"of the {audit.contracts:,.10g} contracts by MEXC's klines"
    if audit.missing:
        worst = most_first(audit)[0]
        most = f"most of them, {worst.missing:,.10g}, at {_time(worst.start_ms)}" if worst.missing > 0 else agree
        share = percent(audit.percent or 0)
        yield _Said(
            "look", "missing contracts", f"{audit.missing:,.10g} {of_all} are missing, {share} are here; {most}."
        )
    elif audit.contracts:
        yield _Said("well", "", f"None {of_all} is missing; {agree}.")
    if audit.too_many:
        yield _Said("look", "contracts too many", f"{audit.too_many:,.10g} contracts too many, by MEXC's klines.")
    if prices := [each for each in audit.differences if not each.missing]:
        text = f"{many(len(prices), 'minute')} with all contracts, and other prices than MEXC's kline"
        yield _Said("note", "", f"{text}; first {_time(prices[0].start_ms)}.")
    for each in audit.not_compared[:_LISTED_GAPS]:
        span = f"{_time(each.start_ms)} to {_time(each.end_ms)}"
        yield _Said("note", "", f"Not compared with MEXC's klines: {span}.", each.why)


def _completeness(symbol: SymbolQuality, made_ms: int, limit: float) -> Iterable[_Said]:
    newest = _newest(symbol)
    if newest is not None and newest == symbol.end_ms and made_ms - newest > limit * 1000:
        age = length((made_ms - newest) / 1000)
        yield _Said("look", "no new rows", f"The newest row is {age} old: is the collector running?")
    if symbol.uncovered:
        longest = max(symbol.uncovered, key=lambda gap: gap.seconds)
        total = length(sum(gap.seconds for gap in symbol.uncovered))
        most = f"{length(longest.seconds)} from {_time(longest.start_ms)} on"
        one = f"1 gap, {most}."
        several = f"{len(symbol.uncovered):,} gaps, {total} in all; the longest, {most}."
        yield _Said("look", "gaps", one if len(symbol.uncovered) == 1 else several)
    elif symbol.coverage is not None:
        yield _Said(
            "well", "", f"No gaps: depth was never silent for over {_DEPTH}, tickers never for over {_TICKERS}."
        )
    if symbol.minutes_without_deals:
        minutes = f"{many(len(symbol.minutes_without_deals), 'minute')} with trades and no deal"
        first = _time(symbol.minutes_without_deals[0] * 1000)
        text = f"{minutes}: tickers show a new last price or open interest; first {first}."
        yield _Said("look", "missing deals", text)
    if symbol.reconnects:
        filled_in = sum(reconnect.filled_in for reconnect in symbol.reconnects)
        filled = f"; {filled_in:,} deals were filled in afterwards, or came late" if filled_in else ""
        yield _Said("note", "", f"{many(len(symbol.reconnects), 'reconnect')}{filled}.")


def _soundness(symbol: SymbolQuality) -> Iterable[_Said]:
    for channel in symbol.channels:
        late = channel.out_of_order
        if late.count:
            is_lag = channel.worst_seconds <= _LAG
            level = "note" if channel.name == "deals" or is_lag else "look"
            worst = f"by {length(channel.worst_seconds)} at worst"
            if channel.name == "deals":
                worst += ", as deals are that were filled in after a gap, or that the slower of two connections brought"
            elif is_lag:
                worst += ", as those are that only the slower of two connections brought"
            yield _found(level, "row order", late, f"of {channel.name} older than one stored before, {worst}")
        if channel.duplicates is not None and channel.duplicates.count:
            yield _found("look", "duplicates", channel.duplicates, f"of {channel.name} equal to the one before")
    yield from (
        _found("look", short, found, text)
        for short, found, text in (
            ("crossed books", symbol.crossed_books, "of depth crossed: the best bid is not below the best ask"),
            ("unsorted books", symbol.unsorted_books, "of depth with levels that are not in the order of their price"),
            ("unreadable books", symbol.unreadable_books, "of depth that cannot be read, or without two sides"),
            ("misdated rows", symbol.misdated, "dated before 2018 or after tomorrow, not examined"),
        )
        if found.count
    )


def _dead_letters(symbol: SymbolQuality) -> Iterable[_Said]:
    for kind in symbol.dead_letters[:_LISTED_KINDS]:
        text = f"{many(kind.count, 'dead letter')}, {_KINDS.get(kind.kind, kind.kind)}; first {_time(kind.first_ms)}:"
        yield _Said("look", "dead letters", text, kind.example)
    if more := symbol.dead_letters[_LISTED_KINDS:]:
        count = sum(kind.count for kind in more)
        yield _Said("look", "dead letters", f"{many(count, 'dead letter')} of {len(more):,} more kinds.")


def _found(level: str, short: str, finding: Finding, text: str) -> _Said:
    first = f"; first {_time(finding.first_ms)}" if finding.first_ms is not None else ""
    return _Said(level, short, f"{many(finding.count, 'row')} {text}{first}.")


def _verdict(quality: Sequence[SymbolQuality], looks: Sequence[list[_Said]]) -> tuple[str, str]:
    """Return what the whole archive is like, and the level of that."""
    if all(symbol.problem is not None for symbol in quality):
        return "Nothing is stored yet", "bad"
    levels = {symbol.symbol: {said.level for said in look} for symbol, look in zip(quality, looks, strict=True)}
    named = [name for name, level in levels.items() if level & {"look", "bad"}]
    if not named:
        return "All is well", "well"
    need = "needs" if len(named) == 1 else "need"
    who = _and(named) if len(named) <= _NAMED else f"{len(named)} of {many(len(quality), 'symbol')}"
    return f"{who} {need} a look", "bad" if any("bad" in level for level in levels.values()) else "look"


def _urgency(look: Sequence[_Said]) -> int:
    """Return the place in _LEVELS of the worst that is said."""
    return min((_LEVELS.index(said.level) for said in look if said.level in _LEVELS), default=_LEVELS.index("well"))


def _newest(symbol: SymbolQuality) -> int | None:
    return max((channel.last_ms for channel in symbol.channels if channel.last_ms is not None), default=None)


def _subject(quality: Sequence[SymbolQuality], whole: list[float] | None, made_ms: int) -> str:
    names = [symbol.symbol for symbol in quality]
    symbols = _and(names) if len(names) <= _NAMED else many(len(names), "symbol")
    if whole is None:
        return f"{symbols}, as of {_time(made_ms)} UTC."
    start, end = (round(second * 1000) for second in whole)
    return f"{symbols} from {_time(start)} to {_time(end)} UTC, {length((end - start) / 1000)}."


def _examined(symbol: SymbolQuality) -> str:
    if symbol.start_ms is None or symbol.end_ms is None:
        return ""
    span = length((symbol.end_ms - symbol.start_ms) / 1000)
    return f"{_time(symbol.start_ms)} to {_time(symbol.end_ms)} UTC, {span}, {many(symbol.rows, 'row')}"


def _time(ts_ms: int) -> str:
    """2026-10-12 03:14:05"""
    return iso(ts_ms)[:19].replace("T", " ")


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def _percent(share: float) -> str:
    """Rounded down: 100 % has no gaps."""
    return f"{math.floor(share * 100) / 100:.2f} %"


# Markup


class _Html(str):
    """Text that is markup already; `_fill` escapes all other."""

    __slots__ = ()


def _asset(name: str) -> _Html:
    return _Html((_ASSETS / name).read_text(encoding="utf-8"))


def _fill(name: str, /, **values: object) -> _Html:
    """Return a template of pipeline/show/assets/ with its placeholders filled."""
    return _Html(Template(_asset(name)).substitute({key: _text(value) for key, value in values.items()}))


def _text(value: object) -> _Html:
    """Return `value` as markup that shows it: what has no look of its own, or turns others around, as an escape."""
    if isinstance(value, _Html):
        return value
    return _Html(html.escape(printable(str(value))))


def _join(parts: Iterable[str]) -> _Html:
    return _Html("\n".join(parts))


def _policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    def hashes(texts: Iterable[str]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)};"
        " base-uri 'none'; form-action 'none'"
    )


def _card(symbol: SymbolQuality, look: list[_Said], table: TableStorage, made_ms: int) -> _Html:
    newest = _newest(symbol)
    most = f", longest {length(max(gap.seconds for gap in symbol.uncovered))}" if symbol.uncovered else ""
    disk = disk_bytes(table)
    of_it = "" if table.data_bin is None else f", data.bin {human_size(table.data_bin)}"
    facts = {
        "Gaps": "–" if symbol.coverage is None else f"{len(symbol.uncovered):,}" + most,
        "Newest row": "–" if newest is None else f"{length(max(0, made_ms - newest) / 1000)} old",
        "Rows": f"{symbol.rows:,}",
        "Disk": "–" if disk is None else human_size(disk) + of_it,
    }
    return _fill(
        "card.html",
        table=symbol.table,
        symbol=symbol.symbol,
        level=_LEVELS[_urgency(look)],
        verdict=_in_short(symbol, look),
        coverage="–" if symbol.coverage is None else _percent(symbol.coverage),
        facts=_join(_tag("dt", name) + _tag("dd", value) for name, value in facts.items()),
    )


def _in_short(symbol: SymbolQuality, look: Sequence[_Said]) -> str:
    wrong = dict.fromkeys(said.short for said in look if said.level in ("look", "bad"))
    return "No data" if symbol.problem else f"To look at: {', '.join(wrong)}" if wrong else "All is well"


def _finding(said: _Said) -> _Html:
    example = _tag("code", _shortened(said.example)) if said.example else ""
    return _tag("li", _tag("span", _whole_times(said.text)), example, class_=said.level)


def _shortened(text: str) -> str:
    """Return the beginning of what the exchange has sent; of a character that comes again and again, how often."""

    def counted(found: re.Match[str]) -> str:
        return f"{found[1] * 4}… ({len(found[0]):,} times)"

    text = re.sub(rf"(.)\1{{{_REPEATED - 1},}}", counted, text)
    return text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]}…"


def _whole_times(text: str) -> _Html:
    """Return `text` with its times marked, so that no line breaks amid them."""
    return _Html(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", r"<time>\g<0></time>", _text(text)))


def _charts(
    symbol: SymbolQuality, drawn: dict[str, Any], whole: list[float] | None, audit: SymbolAudit | None
) -> _Html:
    key = [_tag("span", "rows came", class_="covered")]
    if symbol.gaps:
        key.append(_tag("span", "gap", class_="missing"))
    start, end = drawn["range"]
    if whole and end - start < 0.995 * (whole[1] - whole[0]):
        key.append(_tag("span", "not examined", class_="outside"))
    count = many(len(symbol.uncovered), "gap")
    coverage = "too short to tell" if symbol.coverage is None else f"{_percent(symbol.coverage)}, {count}"
    channels = [channel for channel in symbol.channels if channel.name in drawn["rates"]]
    rates = [
        _figure(
            symbol,
            "rate",
            channel.name.capitalize(),
            _pace(channel),
            channel=channel.name,
            labelled=channel is channels[-1],
        )
        for channel in channels
    ]
    return _fill(
        "charts.html",
        coverage=_figure(symbol, "coverage", "Time covered", coverage),
        key=_join(key),
        depth_silence=_DEPTH,
        tickers_silence=_TICKERS,
        all_silence=_ALL,
        gaps=_gaps(symbol.uncovered),
        audit=_own_count(symbol, audit, drawn["missing"]) if audit and audit.minutes else "",
        rates=_join(rates) if rates else _tag("p", _too_short(symbol), class_="note"),
        prices=_prices(symbol, drawn["prices"]),
        growth=_growth(symbol, drawn["growth"]),
    )


def _figure(
    symbol: SymbolQuality, chart: str, name: str, readout: str, channel: str = "", labelled: bool = True
) -> _Html:
    return _fill(
        "figure.html",
        chart=chart,
        table=symbol.table,
        channel=channel,
        labelled="yes" if labelled else "no",
        name=name,
        readout=readout,
        label=f"{symbol.symbol}, {name}: {readout}",
    )


def _pace(channel: ChannelQuality) -> str:
    if channel.median_per_minute is None:
        return many(channel.rows, "row")
    return f"median {channel.median_per_minute:,.0f} a minute, fewest {channel.min_per_minute:,}"


def _too_short(symbol: SymbolQuality) -> str:
    """Return what is said instead of rows a minute."""
    rows = [f"{channel.rows:,} {channel.name}" for channel in symbol.channels if channel.rows]
    return f"Rows: {_and(rows)}. A rate takes two whole minutes." if rows else "There are no rows in this time."


def _prices(symbol: SymbolQuality, prices: dict[str, Any] | None) -> _Html:
    if prices is None:
        return _tag("p", "There is no order book in this time.", class_="note")
    digits = prices["digits"]
    lowest, highest = _least(prices["low"]), _most(prices["high"])
    spread = statistics.fmean(value for value in prices["spread"] if value is not None)
    price = f"last {prices['mid'][-1]:,.{digits}f}, {lowest:,.{digits}f} to {highest:,.{digits}f}"
    widest = f"average {spread:,.{digits}f}, widest {_most(prices['widest']):,.{digits}f}"
    return _join(
        (
            _figure(symbol, "price", "Mid price, USDT", price, labelled=False),
            _figure(symbol, "spread", "Spread, USDT", widest),
        )
    )


def _growth(symbol: SymbolQuality, growth: dict[str, Any] | None) -> _Html:
    if growth is None:
        return _tag("p", "ClickHouse does not say what the table takes.", class_="note")
    rows, each = growth["rows"][-1], growth["bytes_per_row"]
    hours = (growth["times"][-1] - growth["times"][0]) / 3600
    daily = f", {human_size(round(rows * each / hours * 24))} a day" if hours >= 1 else ""
    note = (
        f"An estimate: the rows of market data by then, times what the table takes for a row today, {each:,.1f} bytes. "
        "How large it was then is not recorded; small blocks take more until they are compacted."
    )
    added = f"{many(rows, 'row')}, about {human_size(round(rows * each))}{daily}"
    if not has_minutes(symbol):
        return _tag("p", f"{added}; too short to draw.", class_="note")
    return _join((_figure(symbol, "growth", "Added in this time", added), _tag("p", note, class_="note")))


def _gaps(gaps: Sequence[Gap]) -> _Html:
    if not gaps:
        return _Html("")
    longest = sorted(gaps, key=lambda gap: gap.seconds, reverse=True)[:_LISTED_GAPS]
    rows = [
        _tag(
            "tr",
            _tag("td", gap.channel.replace("+", ", ")),
            _tag("td", _time(gap.start_ms)),
            _tag("td", _time(gap.end_ms)),
            _tag("td", length(gap.seconds), class_="number"),
            _tag("td", class_="number"),
            data_start=gap.start_ms / 1000,
            data_end=gap.end_ms / 1000,
            data_length=length(gap.seconds),
        )
        for gap in longest
    ]
    caption = (
        "All gaps, the longest first"
        if len(longest) == len(gaps)
        else f"The longest {len(longest)} of {len(gaps):,} gaps"
    )
    return _fill("gaps.html", caption=caption, rows=_join(rows))


def _own_count(symbol: SymbolQuality, audit: SymbolAudit, missing: dict[str, Any] | None) -> _Html:
    """Return what MEXC's klines say: what is missing when, and the minutes."""
    start, end = (_time(ts_ms or 0) for ts_ms in (audit.start_ms, audit.end_ms))
    agree = f"{audit.exact:,} of {many(audit.minutes, 'minute')} agree exactly"
    share = f"{percent(audit.percent)} of MEXC's are here" if audit.percent is not None else "MEXC has none"
    chart = _tag("p", f"Contracts: {share}; {agree}.") if missing is None else ""
    if missing is not None:
        chart = _figure(symbol, "missing", "Contracts missing", f"{audit.missing:,.10g}; {share}, {agree}")
    return _fill(
        "audit.html",
        range=_whole_times(f"from {start} to {end}"),
        missing=chart,
        differences=_differences(audit),
    )


def _differences(audit: SymbolAudit) -> _Html:
    if not audit.differences:
        return _Html("")
    listed = most_first(audit)[:_LISTED_MINUTES]

    def row(each: Difference) -> _Html:
        start = each.start_ms / 1000
        off = f"{abs(each.missing):,.10g}{' too many' * (each.missing < 0)}"
        return _tag(
            "tr",
            _tag("td", _tag("time", _time(each.start_ms)[:16])),
            _tag("td", f"{each.contracts:,.10g}", class_="number"),
            _tag("td", off, class_="number"),
            _tag("td", ", ".join(each.prices)),
            _tag("td", class_="number"),
            data_start=start,
            data_end=start + 60,
            data_length="a minute",
        )

    all_of_them = len(listed) == len(audit.differences)
    which = "All minutes" if all_of_them else f"{len(listed)} of {len(audit.differences):,} minutes"
    caption = f"{which} that differ, the most contracts first"
    return _fill("differences.html", caption=caption, rows=_join(map(row, listed)))


def _storage(storage: Storage, symbols: dict[str, str], compact_blocks: int, tiers: Sequence[Tiers]) -> _Html:
    """Return what the tables take, and what to do about it."""
    tables = storage.tables
    both = {each.table: each.by_type for each in tiers}
    by_type = records_by_type(tables, both)
    lines: list[tuple[str, Callable[[TableStorage], str]]] = [
        ("Rows", lambda table: f"{sum(by_type[table.name].values()) if both else table.records:,}")
    ]
    many_tables = len(tables) > _NAMED  # which are a line each then
    lines += [(f"{'' if many_tables else '– '}{name}", partial(_of_type, by_type, mt)) for mt, name in _TYPES.items()]
    if storage.files_seen:
        lines.append(("data.bin", lambda table: human_size(table.data_bin or 0)))
        lines.append(("index.mrk", lambda table: human_size(table.index_mrk or 0)))
    else:
        lines.append(("data.bin and index.mrk", lambda table: human_size(table.total_bytes or 0)))
    lines += [
        ("Bytes a row", lambda table: f"{(disk_bytes(table) or 0) / table.records:,.1f}" if table.records else "–"),
        ("Blocks", lambda table: f"{table.blocks:,}"),
        ("Rows a block", lambda table: f"{table.records / table.blocks:,.1f}" if table.blocks else "–"),
        ("Memory for blocks, about", lambda table: human_size(table.block_memory)),
    ]
    cells = [["", *(symbols.get(table.name, table.name) for table in tables)]]
    cells += [[name, *(value(table) if table.exists else "–" for table in tables)] for name, value in lines]
    if many_tables:
        cells = [list(column) for column in zip(*cells, strict=True)]
    head = [_tag("th", name, scope="col", class_="number") for name in cells[0][1:]]
    body = [
        _tag("tr", _tag("th", name, scope="row"), *(_tag("td", value, class_="number") for value in values))
        for name, *values in cells[1:]
    ]
    notes = [f"{line}." for table in tables if (line := advice(table, compact_blocks))]
    if many_tables:
        notes += [f"{each.amiss}." for each in tiers if each.amiss]
    else:
        notes += [f"{line}." for each in tiers for line in each.as_text()]
    if storage.volume is not None:
        notes.append(f"All of ClickHouse takes {human_size(storage.volume)}.")
    return _fill(
        "storage.html",
        head=_join(head),
        body=_join(body),
        notes=_join(_tag("p", note) for note in notes),
        histories=_histories(tiers, symbols) if many_tables else "",
    )


def _of_type(by_type: Mapping[str, Mapping[str, int]], mt: str, table: TableStorage) -> str:
    return f"{by_type[table.name].get(mt, 0):,}"


def _histories(tiers: Sequence[Tiers], symbols: dict[str, str]) -> _Html:
    """Return from when to when each history has rows, and how many its table has beside it, a line each."""
    rows = [
        _tag(
            "tr",
            _tag("th", symbols.get(each.table, each.table), scope="row"),
            *(_tag("td", "–" if ms is None else _whole_times(_time(ms))) for ms in (tier.oldest_ms, tier.newest_ms)),
            *(
                _tag("td", value, class_="number")
                for value in (
                    f"{tier.records:,}",
                    human_size(tier.total_bytes),
                    f"{each.live.records:,}" if each.live else "–",
                )
            ),
        )
        for each in sorted(tiers, key=lambda each: not each.amiss)
        if (tier := each.history)
    ]
    return _fill("histories.html", rows=_join(rows)) if rows else _Html("")


def _tag(name: str, /, *inside: object, **attributes: object) -> _Html:
    """Return an element; of attributes' names, a last _ is dropped and others become -."""
    written = (f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"' for key, value in attributes.items())
    return _Html(f"<{name}{''.join(written)}>{''.join(map(_text, inside))}</{name}>")


def _least(values: Iterable[float | None]) -> float:
    return min(value for value in values if value is not None)


def _most(values: Iterable[float | None]) -> float:
    return max(value for value in values if value is not None)

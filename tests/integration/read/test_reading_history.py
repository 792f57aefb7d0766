"""What is read from a history is what is read from its table: values, order, bytes of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from clickhouse_driver import Client

from config import ALL_CONFIGS, BTC_CONFIG, Settings, load_settings
from local.market import frames
from pipeline.messages import Row, parse_frame
from pipeline.read import audit, decode, hftbacktest, load, quality, tardis
from pipeline.read import export as exporting
from pipeline.read import rows as stored_rows_of
from pipeline.read.audit import Minutes
from pipeline.read.decode import LoadError
from pipeline.read.export import ExportError, Job, Result, export
from pipeline.show.chart import read_chart
from pipeline.show.figures import read_prices
from pipeline.store import source
from pipeline.store.client import connect
from pipeline.store.history import Beginning, record
from pipeline.store.source import History, HistoryError, Source, find_source, moment, open_history
from pipeline.store.tiers import survey_tiers
from pipeline.times import from_ms, iso
from tests.stack import Stack, free_port, open_stack

TIMES = ("2026-09-30T23:59:40", "2026-10-01T11:00:00", "2026-10-01T23:59:40")
"""When the market is looked at, for a while: across days and months."""

DAY = datetime(2026, 10, 1, tzinfo=UTC)
COPIED = 700  # rows that came by ch_setup.py --history, with numbers below those of a collector
RUN = 1_790_000_000_000_000  # where n of a collector begins
ORIGIN = ["event", "received", "id"]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


def stored() -> list[Row]:
    """Return rows in the order they were stored in, which is not that of their times everywhere."""
    rows: list[Row] = []
    for seed, begin in enumerate(TIMES):
        for _, frame in islice(frames("BTC_USDT", seed, ms(begin)), 600):
            rows += parse_frame(frame, "BTC_USDT", 0).rows
    same_time = [Row(rows[-1].ts_ms, "d", f"84000.{number}|3|1") for number in range(9, 0, -1)]
    rows += same_time
    rows[900:900] = [rows[300], rows[200], rows[100]]  # deals and books that came late
    rows[1000:1000] = [Row(rows[1000].ts_ms, "dl", "oops"), Row(rows[1000].ts_ms + 1, "d", "84000.1|nothing|2")]
    rows.append(Row(ms("2026-10-01T12:00:00"), "d", "84000.1|7|2"))  # filled in after a gap of half a day
    return rows


ROWS = stored()


def n_of(place: int) -> int:
    return place + 1 if place < COPIED else RUN + place


def origin_of(place: int) -> tuple[int, int, int]:
    """Return the time of the event, when it was received in microseconds, and its number."""
    ts = ROWS[place].ts_ms
    return (ts, ts * 1000, 0) if place < COPIED else (ts - 3, ts * 1000 + 12_345, 1 << 63 | place)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse with ROWS in btc and in its history, that in several parts, in no order of their own."""
    with open_stack(tmp_path_factory.mktemp("history")) as stack:
        stack.clickhouse()
        stack.env["HISTORY"] = "1"
        stack.setup()
        with connect(load_settings(stack.env, None)) as client:
            for part in range(4):
                places = list(range(part, len(ROWS), 4))[::-1]
                columns = "n, ts, received, event, mt, id, m"
                rows = [
                    (n_of(place), ROWS[place].ts_ms, received, event, ROWS[place].mt, number, ROWS[place].m)
                    for place in places
                    for event, received, number in [origin_of(place)]
                ]
                for month in {from_ms(row[1]).month for row in rows}:
                    these = [row for row in rows if from_ms(row[1]).month == month]
                    client.execute(f"INSERT INTO mexc_data.btc_history ({columns}) VALUES", these)
            client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [row[:3] for row in ROWS])
            record(client, "mexc_data", "btc", token(stack), Beginning(COPIED, COPIED, 0, COPIED + 1))
        yield stack


def token(stack: Stack) -> str:
    ((comment,),) = stack.query("SELECT comment FROM system.tables WHERE database = 'mexc_data' AND name = 'btc'")
    return str(comment)


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return load_settings(stack.env, None)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with connect(settings) as opened:
        yield opened


@pytest.fixture
def history(settings: Settings) -> Iterator[History]:
    with open_history(settings) as opened:
        assert opened
        yield opened


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_SLICE", 150)
    monkeypatch.setattr(source, "_STEP", 64)


@pytest.fixture
def both(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give what loads from the table, then from the history."""
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)

    def loaded(*arguments: Any, **options: Any) -> list[pa.Table]:
        tables = []
        for has_history in "01":
            monkeypatch.setenv("HISTORY", has_history)
            tables.append(load("btc", *arguments, **options))
        return tables

    return loaded


RANGES = [
    (None, None),
    ("2026-10-01", "2026-10-02"),
    (None, "2026-10-01 11:00:30"),
    ("2026-10-01 11:00:30.250", "2026-10-01 23:59:59.999"),
    ("2026-10-05", None),
    ("1970-01-01", "9999-01-01"),
]


@pytest.mark.filterwarnings("ignore:1 deals of mexc_data.btc do not decode")
@pytest.mark.parametrize("exact", [False, True], ids=["float", "exact"])
@pytest.mark.parametrize("bounds", RANGES, ids=str)
@pytest.mark.parametrize("name", decode.TYPES)
def test_load_gives_the_same_rows_in_the_same_order(both: Any, name: str, bounds: Any, exact: bool) -> None:
    from_table, from_history = both(name, *bounds, exact=exact)
    assert from_history.drop_columns(ORIGIN).equals(from_table)
    assert len(from_table) > 0 or bounds[0] == "2026-10-05" or name == "dead-letters"


@pytest.mark.filterwarnings("ignore:1 deals of mexc_data.btc do not decode")
def test_what_only_a_history_knows_is_in_three_columns(both: Any) -> None:
    _, deals = both("deals")
    places = [place for place, row in enumerate(ROWS) if row.mt == "d" and "nothing" not in row.m]
    origins = [origin_of(place) for place in places]
    assert deals["event"].cast(pa.int64()).to_pylist() == [event for event, _, _ in origins]
    known = [None if place < COPIED else origin_of(place) for place in places]
    assert deals["received"].cast(pa.int64()).to_pylist() == [each and each[1] for each in known]
    assert deals["id"].to_pylist() == [each and each[2] for each in known]
    assert deals.schema.field("received").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize("idle", [30.0, -1.0], ids=["at once", "a query for each chunk"])
def test_a_replay_has_the_same_rows(settings: Settings, monkeypatch: pytest.MonkeyPatch, idle: float) -> None:
    monkeypatch.setattr(stored_rows_of, "_IDLE", idle)
    monkeypatch.setattr(stored_rows_of, "_ROWS_AT_ONCE", 700)
    places = [place for place, row in enumerate(ROWS) if row.mt != "dl"]
    from_table, from_history = (
        [stored.row for stored in stored_rows_of.stored_rows(replace(settings, history=each), [BTC_CONFIG], None, None)]
        for each in (0, 1)
    )
    assert from_table == [Row(*ROWS[place][:3]) for place in places]
    origins = [origin_of(place) for place in places]
    assert from_history == [
        Row(*ROWS[place][:3], number, event) for place, (event, _, number) in zip(places, origins, strict=True)
    ]


def test_what_does_not_decode_is_named_either_way(both: Any) -> None:
    with pytest.warns(UserWarning, match="do not decode") as said:
        both("deals")
    first, second = (str(each.message) for each in said)
    assert first == second
    assert "'84000.1|nothing|2' (contracts is 'nothing')" in first


def test_read_takes_the_history_of_the_settings(client: Client, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    batches = list(decode.read(client, "mexc_data", "btc", "dp", batch_rows=97))
    sizes = [len(batch.table) for batch in batches]
    books = sum(row.mt == "dp" for row in ROWS)
    assert sizes == [97] * (books // 97) + [books % 97] * (books % 97 > 0)
    assert batches[0].table.column_names[-3:] == ORIGIN
    first = next(iter(decode.read(client, "mexc_data", "btc", "d", batch_rows=10)))
    assert first.table["coins"].null_count == 0
    assert client.execute("SELECT 1") == [(1,)]


@pytest.mark.parametrize("bounds", [(None, None), (DAY, DAY + timedelta(hours=11, seconds=20))])
def test_the_quality_is_the_same(client: Client, history: History, bounds: Any) -> None:
    found = [
        quality.examine(client, "mexc_data", [BTC_CONFIG], start=bounds[0], end=bounds[1], history=each)
        for each in (None, history)
    ]
    assert found[0] == found[1]
    assert found[0][0].rows
    assert found[0][0].channels[1].out_of_order.count > 1


def test_the_newest_rows_are_found_where_the_table_has_none(
    client: Client, history: History, stack: Stack, settings: Settings
) -> None:
    from_table = quality.find_newest(client, "mexc_data", [BTC_CONFIG])
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.away")
    try:
        assert quality.find_newest(client, "mexc_data", [BTC_CONFIG], history) == from_table
        assert not quality.find_newest(client, "mexc_data", [BTC_CONFIG])[0].exists
    finally:
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.btc")


def test_the_minutes_of_an_audit_are_the_same(client: Client, history: History) -> None:
    bounds = (ms("2026-10-01T11:00:00"), ms("2026-10-01T23:59:50"))

    def minutes_of(source: Source) -> list[Any]:
        minutes: Minutes = audit._read(source, bounds)
        every = range(bounds[0] // 1000 - 60, bounds[1] // 1000 + 60, 60)
        found = [minutes.get(minute) for minute in every]
        figures = [minutes.rows, minutes.oldest_ms, minutes.newest_ms, minutes.undecoded]
        return [*figures, *((each.early.tolist(), str(list(each.rest))) for each in found)]

    from_table, from_history = (minutes_of(find_source(client, "mexc_data", "btc", each)) for each in (None, history))
    assert from_table == from_history
    assert from_table[3] == 1


def test_the_prices_of_the_page_are_the_same(client: Client, history: History) -> None:
    bounds = (DAY, DAY + timedelta(days=1))
    from_table, from_history = (
        read_prices(client, "mexc_data", "btc", *bounds, history=each) for each in (None, history)
    )
    assert len(from_table) > 1
    for one, other in zip(from_table, from_history, strict=True):
        assert list(vars(one).values()) == pytest.approx(list(vars(other).values()), rel=1e-12)


def test_a_plot_is_the_same(client: Client, history: History, settings: Settings) -> None:
    from_table, from_history = (
        read_chart(client, settings, BTC_CONFIG, DAY, DAY + timedelta(days=1), each) for each in (None, history)
    )
    for part in ("candles", "depth"):
        ours, theirs = (vars(getattr(each, part)) for each in (from_table, from_history))
        for name in ours:
            assert np.array_equal(ours[name], theirs[name], equal_nan=name == "amounts"), name
    assert from_table.gaps == from_history.gaps
    assert len(from_table.gaps) > 1


# Files


def files(settings: Settings, out: Path, job: Job, **options: Any) -> tuple[dict[str, Path], Result]:
    result = Result()
    export(settings, BTC_CONFIG, job, out, result, **options)
    return {str(path.relative_to(out)): path for path in sorted(out.glob("type=*/**/part-0.*"))}, result


JOBS = [Job(name, "parquet") for name in exporting.TYPES if name != "candles"]
JOBS += [Job("deals", "csv", exact=True), Job("candles", "parquet", interval="1m"), Job("depth", "arrow")]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.name}-{job.format}")
def test_files_are_the_same(settings: Settings, tmp_path: Path, job: Job) -> None:
    from_table, _ = files(replace(settings, history=0), tmp_path / "0", job)
    from_history, _ = files(settings, tmp_path / "1", job)
    assert from_table.keys() == from_history.keys()
    for name, path in from_table.items():
        if job.type not in decode.TYPES:
            assert path.read_bytes() == from_history[name].read_bytes()
        elif job.format == "parquet":
            found = pyarrow.parquet.read_table(from_history[name], partitioning=None)
            assert found.column_names[-3:] == ORIGIN
            assert found.drop_columns(ORIGIN).equals(pyarrow.parquet.read_table(path, partitioning=None))
    assert len(from_table) == (1 if job.type == "dead-letters" else 3)


def test_an_export_reads_the_days_that_are_new(
    settings: Settings, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = files(settings, tmp_path, Job("deals", "parquet"))
    assert (first.files, first.already_there) == (3, 0)
    read = []
    stream = decode.stream

    def noted(source: Source, mt: str, condition: str, **options: Any) -> Any:
        read.append(condition)
        return stream(source, mt, condition, **options)

    monkeypatch.setattr(decode, "stream", noted)
    _, again = files(settings, tmp_path, Job("deals", "parquet"))
    assert (again.files, again.already_there, read) == (0, 3, [])
    new = ms("2026-10-05T12:00:00")
    values = f"({RUN + 10_000}, {new}, {new}000, {new}, 'd', 0, '84000.1|7|2')".replace(f"{new}", f"'{new / 1000:.3f}'")
    values = values.replace("'000", "'")
    stack.query(f"INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) VALUES {values}")
    try:
        there, third = files(settings, tmp_path, Job("deals", "parquet"))
    finally:
        stack.query(f"ALTER TABLE mexc_data.btc_history DELETE WHERE n = {RUN + 10_000} SETTINGS mutations_sync = 2")
    assert (third.files, third.already_there, len(there)) == (1, 3, 4)
    assert read == [f"mt = 'd' AND ts >= {moment(ms('2026-10-05'))} AND ts < {moment(ms('2026-10-06'))}"]


def test_files_of_the_table_go_on_with_the_history(settings: Settings, stack: Stack, tmp_path: Path) -> None:
    """Turning the table over does not make it another one for who exported before."""
    job = Job("candles", "parquet", interval="1m")
    files(replace(settings, history=0), tmp_path, job)
    before = token(stack)
    stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{before}+{COPIED}'")
    try:
        _, second = files(settings, tmp_path, job)
    finally:
        stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{before}'")
    assert (second.files, second.already_there, second.kept) == (0, 3, 0)


# Which of the two


def test_a_history_that_lacks_rows_is_not_read(
    stack: Stack, client: Client, history: History, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_history() -> bool:
        return find_source(client, "mexc_data", "btc", history).history is not None

    assert is_history()
    stack.query("RENAME TABLE mexc_data.history_begins TO mexc_data.kept")
    stack.query("CREATE TABLE mexc_data.history_begins AS mexc_data.kept")
    before = token(stack)
    try:
        assert not is_history(), "it has not begun"
        found = survey_tiers(client, "mexc_data", ALL_CONFIGS, history)
        assert [each.trouble for each in found] == [
            "mexc_data.btc_history has not begun, so btc is read: let its collector run with HISTORY=1, then run"
            " ch_setup.py --history",
            "",
            "",
        ], "where both are empty, nothing lacks"
        record(client, "mexc_data", "btc", before, Beginning(0, COPIED, 0, COPIED + 1))
        assert not is_history(), "what was there before has not been copied"
        assert survey_tiers(client, "mexc_data", [BTC_CONFIG], history)[0].trouble.endswith("ch_setup.py --history")
        stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{before}+1'")
        with pytest.raises(HistoryError, match=r"which was turned over before: run ch_setup.py --history$"):
            is_history()
        for name, value in stack.env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(LoadError, match="lacks rows"):
            load("btc", "deals")
        with pytest.raises(ExportError, match="lacks rows"):
            export(settings, BTC_CONFIG, Job("deals", "csv"), stack.directory / "out", Result())
    finally:
        stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{before}'")
        stack.query("DROP TABLE mexc_data.history_begins SYNC")
        stack.query("RENAME TABLE mexc_data.kept TO mexc_data.history_begins")


def test_rows_that_the_history_has_not_got_for_long_are_said_by_who_reads(
    stack: Stack, client: Client, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = max(origin_of(place)[1] for place in range(COPIED, len(ROWS))) // 1000
    line = (
        f"mexc_data.btc_history is 3 rows behind mexc_data.btc, and has got no row since {iso(newest)}: what is read of"
        " it lacks those; its collector says why"
    )
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    assert history.behind(client, "mexc_data", "btc") == ""
    before = token(stack)
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.away")
    stack.query(f"CREATE TABLE mexc_data.btc AS mexc_data.away ENGINE = StripeLog COMMENT '{before}+{len(ROWS)}'")
    try:
        stack.query("INSERT INTO mexc_data.btc SELECT * FROM mexc_data.away LIMIT 3")
        assert history.behind(client, "mexc_data", "btc") == line
        with pytest.warns(UserWarning, match="is 3 rows behind"):
            load("btc", "depth", "2026-10-01", "2026-10-02")
        out = ("--out", stack.directory / "behind")
        for command in (["verif.py"], ["verif.py", "--quality"], ["export.py", "btc", "--type", "deals", *out]):
            process = stack.run(*command)
            assert process.wait() == 0
            assert [each.strip() for each in process.lines].count(line) == 1, process.output
        now = "now64(3), now64(6), now64(3), 'd', 0, '84000.1|7|2'"
        columns = "n, ts, received, event, mt, id, m"
        stack.query(f"INSERT INTO mexc_data.btc_history ({columns}) SELECT {RUN + 10_000}, {now}")
        assert history.behind(client, "mexc_data", "btc") == "", "it has just got one"
    finally:
        stack.query(f"ALTER TABLE mexc_data.btc_history DELETE WHERE n = {RUN + 10_000} SETTINGS mutations_sync = 2")
        stack.query("DROP TABLE mexc_data.btc SYNC")
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.btc")


def test_where_there_is_no_table_the_history_is_read(stack: Stack, client: Client, history: History) -> None:
    """As on a cluster that has the histories only."""
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.away")
    try:
        assert find_source(client, "mexc_data", "btc", history).history
    finally:
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.btc")


def test_where_there_is_no_history_the_table_is_read(client: Client, history: History, stack: Stack) -> None:
    stack.query("RENAME TABLE mexc_data.eth_history TO mexc_data.away")
    try:
        assert find_source(client, "mexc_data", "eth", history).history is None
        assert survey_tiers(client, "mexc_data", ALL_CONFIGS, history)[1].trouble.endswith("run ch_setup.py")
    finally:
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.eth_history")


def test_a_history_that_cannot_be_reached_is_one_line_that_names_its_server(stack: Stack, tmp_path: Path) -> None:
    port = free_port()
    gone = f"ClickHouse at 127.0.0.1:{port} cannot be reached: connection refused"
    commands: list[list[object]] = [
        ["verif.py"],
        ["verif.py", "--quality"],
        ["export.py", "btc", "--type", "deals", "--out", tmp_path],
    ]
    for command in commands:
        process = stack.run(*command, HISTORY_PORT=port)
        assert (process.wait(), process.lines[-1:]) == (1, [gone]), process.output


# What it costs


def test_a_range_costs_what_is_in_it(stack: Stack, client: Client, history: History, monkeypatch: Any) -> None:
    monkeypatch.setattr(source, "_SLICE", 65_536)
    monkeypatch.setattr(source, "_STEP", 65_536)
    rows, hour = 1_000_000, 3_600_000
    begin = ms("2026-10-01T00:00:00")
    ts = f"fromUnixTimestamp64Milli(toInt64({begin} + number * 86.4))"  # a day
    stack.query(
        "INSERT INTO mexc_data.sol_history (n, ts, received, event, mt, id, m)"
        f" SELECT {RUN} + number, {ts}, {ts}, {ts}, if(number % 4 = 0, 'dp', 'd'), number, '84000.1|7|2'"
        f" FROM numbers({rows}) SETTINGS max_insert_threads = 1, min_insert_block_size_rows = {rows}"
    )
    archive = Source(history.client, "mexc_data.sol_history", history)
    condition = f"mt = 'd' AND ts >= {moment(begin + 12 * hour)} AND ts < {moment(begin + 13 * hour)}"
    parts = list(archive.in_order(condition))
    found = sum(
        client.execute(f"SELECT count() FROM (SELECT m FROM mexc_data.sol_history {clauses})")[0][0]
        for clauses in parts
    )
    assert found == rows * 3 // 4 // 24
    for clauses in (f"WHERE {condition}", *parts):
        ((_, _, _, read, _),) = client.execute(f"EXPLAIN ESTIMATE SELECT m FROM mexc_data.sol_history {clauses}")
        assert read < found + 4 * 8192


# Reports


def test_verif_says_from_when_to_when_each_tier_has_rows(stack: Stack) -> None:
    verif = stack.run("verif.py")
    assert verif.wait() == 0
    oldest, newest = (f"{from_ms(pick(row.ts_ms for row in ROWS)):%Y-%m-%dT%H:%M:%S}" for pick in (min, max))
    heading = verif.lines.index("History, and what its table has beside it:")
    archived, live = verif.lines[heading + 1 : heading + 3]
    for line, name in ((archived, "btc_history"), (live, "btc")):
        assert line.startswith(f"  {name}: {len(ROWS)} records, ")
        assert f"from {oldest}." in line
        assert f" to {newest}." in line
    assert "  eth: no records" in verif.lines
    assert "History" not in stack.run("verif.py", HISTORY=0).output


@pytest.mark.parametrize("options", [("--quality",), ("--html", "page.html"), ("--json",), ("--max-age", "1e9")])
def test_verif_reports_on_what_was_turned_over(stack: Stack, tmp_path: Path, options: tuple[str, ...]) -> None:
    before = token(stack)
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.away")
    stack.query(f"CREATE TABLE mexc_data.btc AS mexc_data.away ENGINE = StripeLog COMMENT '{before}+{len(ROWS)}'")
    try:
        arguments = [tmp_path / each if each.endswith(".html") else each for each in options]
        verif = stack.run("verif.py", *arguments)
    finally:
        stack.query("DROP TABLE mexc_data.btc SYNC")
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.btc")
    assert verif.wait() == (3 if "--max-age" in options else 0), verif.output
    if "--html" in options:
        text = (tmp_path / "page.html").read_text()
        assert f"btc_history: {len(ROWS)} records" in text
    else:
        assert any(word in verif.output for word in ("BTC_USDT: ", f'"records": {len(ROWS)}'))


def test_the_live_view_shows_both(stack: Stack) -> None:
    verif = stack.start("verif.py", "--watch", "0.2")
    verif.wait_for(rf"btc_history: {len(ROWS)} records")
    assert verif.stop() == 0


@pytest.mark.filterwarnings("ignore:1 deals of mexc_data.btc do not decode")
def test_a_reader_without_its_history_is_told_of_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    ((comment,),) = stack.query("SELECT comment FROM system.tables WHERE name = 'btc'")
    stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{comment}+7'")
    monkeypatch.setenv("HISTORY", "0")
    told = "mexc_data.btc has its newest rows only, and mexc_data.btc_history the older ones: set HISTORY=1"
    with pytest.warns(UserWarning, match=told):
        load("btc", "deals")
    run = stack.run("export.py", "btc", "--type", "deals", "--out", tmp_path / "out", HISTORY=0)
    assert run.wait() == 0
    assert sum(told in line for line in run.lines) == 1
    stack.query(f"ALTER TABLE mexc_data.btc MODIFY COMMENT '{comment}'")


@pytest.mark.parametrize("kind", ["trades", "quotes", "derivative_ticker"])
def test_tardis_files_have_what_was_copied_too(settings: Settings, tmp_path: Path, kind: str) -> None:
    """No time of receipt is known of that."""
    result = Result()
    export(settings, BTC_CONFIG, Job(kind, "tardis"), tmp_path, result, quiet=True)
    mt = decode.TYPES[tardis.SOURCES[kind]]
    assert result.rows == sum(row.mt == mt for row in ROWS) - result.undecoded
    assert result.undecoded == (1 if kind == "trades" else 0)


def test_arrays_have_what_was_copied_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    events = hftbacktest("btc")
    assert events["local_ts"].min() >= min(row.ts_ms for row in ROWS) * 1_000_000
    assert np.count_nonzero(events["ev"] & 0xFF == 2) >= sum(row.mt == "d" for row in ROWS) - 1

"""What export.py writes is what ClickHouse has, whoever reads it, and whatever happens while it is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pytest

from config import BTC_CONFIG, PROJECT, load_settings
from export import main
from pipeline.human import human_size
from pipeline.read import decode
from pipeline.read import export as module
from pipeline.read.export import COMPRESSIONS, FORMATS, TYPES, ExportError, Job, Result, export
from pipeline.store.client import connect
from tests.disks import small_disks
from tests.stack import Process, Stack, free_port, open_stack

OURS = [format for format in FORMATS if format != "tardis"]
DAY = date(2026, 10, 1)
DAY_MS = 86_400_000
DEAL = (
    "concat(toString(60000 + number * 7919 % 1000 / 10), '|', toString(number % 50 + 1), '|', toString(number % 2 + 1))"
)
TICKER = "concat(toString(60000 + number % 1000 / 10), '|84063.8|84104|', toString(546882118 + number), '|-0.00007200')"
DEPTH = "concat('[', toString(60000 + number % 1000 / 10), ',12],[59000.5,3]|[', toString(60200 + number), ',7]')"
DEADLETTER = """concat(toString(number), ', "quoted", and\\non two lines')"""

# An export that stops and says so when it has read five batches of a thousand rows.
HELD = """
import signal, sys
import export
from pipeline import interrupts
from pipeline.read import decode, export as module

def read(*args, _read=decode.stream, **options):
    for number, batch in enumerate(_read(*args, **options)):
        if number == 5:
            print("held", flush=True)
            signal.pause()  # SIGUSR1 lets it go on
        yield batch

signal.signal(signal.SIGUSR1, lambda *_: None)
decode.stream = read
module._OTHER_BATCH_ROWS = 1000
sys.exit(interrupts.run(export.main))
"""

# An export that tells the most memory it has had, in kilobytes; it reads and writes a megabyte at a time.
MEASURED = """
import resource, sys
import export
from pipeline.read import export as module

module._OTHER_BATCH_ROWS = 1000
module._WRITE_BYTES = 1 << 20
module._DAYS_AT_ONCE = 4
code = export.main()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.fixture
def stack(empty: Stack) -> Stack:
    """The tables are empty."""
    return empty


def fill(
    stack: Stack, count: int, mt: str = "d", text: str = DEAL, *, first: date = DAY, days: int = 3, table: str = "btc"
) -> None:
    """Add rows that are spread evenly over some days, from `first` on."""
    start = datetime.combine(first, datetime.min.time(), UTC).timestamp() * 1000
    ts = f"fromUnixTimestamp64Milli(toInt64({start:.0f} + number * {days * DAY_MS / count}))"
    stack.query(f"INSERT INTO mexc_data.{table} SELECT {ts}, '{mt}', {text} FROM numbers({count}) ORDER BY number")


class Ran(NamedTuple):
    """The exit code of export.py, and what it printed."""

    code: int
    lines: list[str]
    errors: list[str]


Run = Callable[..., Ran]


@pytest.fixture
def run(stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run export.py in this process; for deals of btc into `out`, unless its arguments say otherwise."""

    def run(*arguments: object, **env: object) -> Ran:
        symbols = [] if arguments and not str(arguments[0]).startswith("-") else ["btc"]
        kind = [] if "--type" in arguments else ["--type", "deals"]
        command = ["export.py", *symbols, *arguments, *kind, "--out", out]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        for name, value in (stack.env | env).items():
            monkeypatch.setenv(name, str(value))
        try:
            code = main()
        except SystemExit as end:  # of argparse
            code = int(str(end.code))
        printed = capsys.readouterr()
        return Ran(code, printed.out.splitlines(), printed.err.splitlines())

    return run


def file_of(out: Path, day: date = DAY, type: str = "deals", format: str = "parquet") -> Path:
    return out / f"type={type}/symbol=BTC_USDT/date={day}/part-0.{FORMATS[format]}"


def files(out: Path) -> list[str]:
    """Return the files of the tree, but for the locks."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "lock")


def record_of(path: Path) -> Path:
    day, symbol, type = path.parents[:3]
    aside = type.parent / ".export" / type.name / symbol.name
    return aside / f"{day.name}.{path.name.removeprefix('part-0.')}.json"


def read(out: Path, type: str = "deals", format: str = "parquet") -> pa.Table:
    """Return all files of a type, with the columns that the directories' names stand for."""
    directory = out / f"type={type}"
    if format != "csv":
        return pyarrow.dataset.dataset(directory, format=format, partitioning="hive").to_table()
    return pa.concat_tables(pyarrow.csv.read_csv(path) for path in sorted(directory.rglob("part-*")))


def numbers(day: date, *figures: float) -> tuple[date, int, int, int, int]:
    """Return what the readers say of a day: its rows, contracts and buys are whole numbers, prices have a decimal."""
    count, prices, contracts, buys = figures
    return day, round(count), round(prices * 10), round(contracts), round(buys)


def counted_by_clickhouse(stack: Stack) -> list[tuple[date, int, int, int, int]]:
    """Return the figures of each day's deals, from what is stored."""
    found = stack.query(
        "WITH splitByChar('|', m) AS f"
        " SELECT toDate(ts, 'UTC') AS day, count(), sum(toDecimal64(f[1], 4)), sum(toInt64(f[2])), countIf(f[3] = '1')"
        " FROM mexc_data.btc WHERE mt = 'd' GROUP BY day ORDER BY day"
    )
    return [numbers(day, *map(float, figures)) for day, *figures in found]


FIGURES = "count(*), sum(price), sum(contracts), sum(CASE WHEN side = 'buy' THEN 1 ELSE 0 END)"


def by_pandas(stack: Stack, out: Path, format: str) -> Any:
    for path in sorted(out.rglob("part-*")):
        day = date.fromisoformat(path.parent.name.removeprefix("date="))
        if format == "parquet":
            frame = pd.read_parquet(path)
        elif format == "arrow":
            frame = pd.read_feather(path)
        else:
            frame = pd.read_csv(path, parse_dates=["ts"])
            frame["ts"] = frame["ts"].dt.tz_localize("UTC")  # fails, if pandas did not take it for a time
        assert str(frame["ts"].dt.tz) == "UTC"
        assert set(frame["ts"].dt.date) == {day}
        yield day, len(frame), frame["price"].sum(), frame["contracts"].sum(), (frame["side"] == "buy").sum()


def by_duckdb(stack: Stack, out: Path, format: str) -> Any:
    source = f"'{out}/**/*.{FORMATS[format]}'"
    if format == "arrow":
        arrow = read(out, format="arrow")
        source = "arrow"
        assert arrow.num_rows
    return duckdb.execute(
        f"SELECT CAST(date AS DATE) AS day, {FIGURES} FROM {source} GROUP BY day ORDER BY day"
    ).fetchall()


def by_clickhouse(stack: Stack, out: Path, format: str) -> Any:
    name = {"parquet": "Parquet", "csv": "CSVWithNames", "arrow": "Arrow"}[format]
    source = f"file('{out}/**/*.{FORMATS[format]}', '{name}')"
    return stack.query(f"SELECT toDate(ts, 'UTC') AS day, {FIGURES} FROM {source} GROUP BY day ORDER BY day")


@pytest.mark.parametrize("reader", [by_pandas, by_duckdb, by_clickhouse])
@pytest.mark.parametrize("format", OURS)
def test_every_reader_finds_what_clickhouse_has(stack: Stack, run: Run, out: Path, format: str, reader: Any) -> None:
    fill(stack, 9_000)
    exported = run("--format", format)
    assert exported.code == 0, exported
    expected = counted_by_clickhouse(stack)
    assert [count for _, count, *_ in expected] == [3000, 3000, 3000]
    assert [numbers(day, *map(float, figures)) for day, *figures in reader(stack, out, format)] == expected


def test_pandas_duckdb_and_polars_read_the_tree_as_one_table(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 3_000)
    fill(stack, 30, table="eth")
    assert run("all").code == 0
    frame = pd.read_parquet(out / "type=deals")
    assert frame.groupby(["symbol", "date"], observed=True).size().to_dict() == {
        (symbol, str(DAY + timedelta(day))): count
        for symbol, count in (("BTC_USDT", 1000), ("ETH_USDT", 10))
        for day in range(3)
    }
    sql = f"SELECT symbol, count(*) FROM '{out}/**/*.parquet' WHERE date > '{DAY}' GROUP BY symbol ORDER BY symbol"
    assert duckdb.execute(sql).fetchall() == [("BTC_USDT", 2000), ("ETH_USDT", 20)]
    rows = polars.scan_parquet(out / "type=deals").group_by("symbol").len().collect().rows()
    assert sorted(rows) == [("BTC_USDT", 3000), ("ETH_USDT", 30)]


def decoded(stack: Stack, mt: str, *, exact: bool = False) -> pa.Table:
    settings = load_settings(stack.env, dotenv=None)
    with connect(settings) as client:
        batches = list(decode.read(client, settings.clickhouse_database, "btc", mt, exact=exact))
    return pa.concat_tables(batch.table for batch in batches)


@pytest.mark.parametrize("exact", [False, True], ids=["floats", "decimals"])
@pytest.mark.parametrize("type", TYPES)
def test_each_type_is_what_is_decoded(stack: Stack, run: Run, out: Path, type: str, exact: bool) -> None:
    texts = {"t": TICKER, "d": DEAL, "dp": DEPTH, "dl": DEADLETTER}
    for mt, text in texts.items():
        fill(stack, 500, mt, text, days=2)
    exported = run("--type", type, *["--exact"] * exact)
    assert exported.code == 0, exported
    job = Job(type, "parquet", exact, "1m" if type == "candles" else None)
    expected = job.derive(decoded(stack, decode.TYPES[job.source], exact=exact))
    found = read(out, job.name)
    assert expected.num_rows > 0
    assert (
        found.drop_columns(["symbol", "date"])
        .sort_by(expected.column_names[0])
        .equals(expected.sort_by(expected.column_names[0]))
    )
    times = found[expected.column_names[0]]
    assert pc.all(pc.equal(pc.strftime(times, "%Y-%m-%d"), found["date"])).as_py()


def test_decimals_have_the_digits_that_are_stored(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 10, text="'0.1000000000000000055511151231257827|9007199254740993|2'")
    fill(stack, 10, text="'0.100000000000000005|9007199254740993|2'")
    assert run("--exact", "--format", "csv").code == 0
    types = {"price": pa.string(), "contracts": pa.string()}
    rows = pyarrow.csv.read_csv(
        file_of(out, format="csv"), convert_options=pyarrow.csv.ConvertOptions(column_types=types)
    ).to_pylist()
    assert {(row["price"], row["contracts"], row["side"]) for row in rows} == {
        ("0.100000000000000005", "9007199254740993.000000000000000000", "sell")
    }


def test_candles_of_another_length_are_another_type(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 30_000)
    assert run("--type", "candles").code == 0
    assert run("--type", "candles", "--interval", "6h").code == 0
    assert read(out, "candles-1m").num_rows == 3 * 1440
    candles = read(out, "candles-6h")
    assert candles.num_rows == 3 * 4
    assert pc.sum(candles["deals"]).as_py() == pc.sum(read(out, "candles-1m")["deals"]).as_py() == 30_000


def test_a_day_that_an_older_version_exported_gets_the_columns_of_today(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 100, days=1)
    assert run().code == 0
    columns = pyarrow.parquet.read_schema(file_of(out)).names
    assert columns == ["ts", "price", "contracts", "coins", "side"]
    record_file = record_of(file_of(out))
    record = json.loads(record_file.read_text())
    assert record.pop("columns") == columns
    record_file.write_text(json.dumps(record))  # which is how it was
    assert run().lines[-1].startswith("1 file written")
    assert run().lines[-1].startswith("0 files written")
    stack.query("TRUNCATE TABLE mexc_data.btc")
    fill(stack, 99, days=1)
    record_file.write_text(json.dumps(record))
    kept = run()
    assert "is kept: it was made of 100 rows, and ClickHouse has 99 now" in kept.errors[0]


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_csv_is_as_large_as_one_likes(stack: Stack, run: Run, out: Path, compress: str) -> None:
    fill(stack, 300, days=1)
    assert run("--format", "csv", "--compress", compress).code == 0
    (file,) = out.rglob("part-*")
    assert file.name == f"part-0.csv{COMPRESSIONS[compress]}"
    frame = pd.read_csv(pa.input_stream(file), parse_dates=["ts"])
    assert len(frame) == 300
    assert file.read_bytes()[:2] == {"none": b"ts", "gzip": b"\x1f\x8b", "zstd": b"\x28\xb5"}[compress]
    assert run("--format", "csv", "--compress", compress).lines[-1].endswith("; 1 day there already")


def test_a_tree_of_csv_has_no_row_twice(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 300, days=1)
    assert run("--format", "csv", "--compress", "zstd").code == 0
    plain = run("--format", "csv")
    assert plain.code == 1
    there = file_of(out, format="csv").with_suffix(".csv.zst")
    assert plain.errors == [
        f"{there} is there, and a tree with both would have its rows twice: give --compress zstd, or another --out"
    ]


def test_csv_of_an_older_version_gets_the_times_of_today(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 100, days=1)
    assert run("--format", "csv", "--compress", "zstd").code == 0
    record_file = record_of(file_of(out, format="csv").with_suffix(".csv.zst"))
    record = json.loads(record_file.read_text())
    del record["style"]  # which is how it was
    record_file.write_text(json.dumps(record))
    assert run("--format", "csv", "--compress", "zstd").lines[-1].startswith("1 file written")
    assert run("--format", "csv", "--compress", "zstd").lines[-1].startswith("0 files written")


def test_days_from_one_up_to_another_without_that(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 500, days=5)
    assert run("--from", "2026-10-02", "--to", "2026-10-04").code == 0
    assert [path for path in files(out) if path.endswith("parquet")] == [
        f"type=deals/symbol=BTC_USDT/date=2026-10-0{day}/part-0.parquet" for day in (2, 3)
    ]


def test_what_is_there_is_not_done_again(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 300)
    first = run()
    assert first.code == 0
    sizes = [file_of(out, DAY + timedelta(day)).stat().st_size for day in range(3)]
    assert first.lines == [
        *(f"{file_of(out, DAY + timedelta(day))}: 100 rows, {human_size(size)}" for day, size in enumerate(sizes)),
        f"3 files written to {out}, 300 rows, {human_size(sum(sizes))}",
    ]
    before = {path: path.stat().st_ino for path in out.rglob("part-*")}
    second = run()
    assert second.code == 0
    assert second.lines == [f"0 files written to {out}, 0 rows, 0B; 3 days there already"]
    assert {path: path.stat().st_ino for path in out.rglob("part-*")} == before


def test_days_that_have_grown_are_done_again_and_no_others(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 400, days=4)
    assert run().code == 0
    fill(stack, 1, days=1)  # filled in late
    stack.query(f"INSERT INTO mexc_data.btc VALUES ('{DAY + timedelta(3)} 23:59:59.999', 'd', '1|1|1')")
    stack.query(f"INSERT INTO mexc_data.btc VALUES ('{DAY + timedelta(1)} 23:59:59.999', 't', 'of no interest')")
    again = run()
    assert again.code == 0
    assert [line.split()[0] for line in again.lines[:-1]] == [
        f"{file_of(out, DAY + timedelta(day))}:" for day in (0, 3)
    ]
    assert again.lines[-1].endswith("; 2 days there already")
    assert read(out).num_rows == 402


def test_a_day_is_done_again_if_its_file_is_not_the_one_that_was_written(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 500, days=5)
    assert run().code == 0
    days = [DAY + timedelta(day) for day in range(5)]
    records = [record_of(file_of(out, day)) for day in days]
    file_of(out, days[0]).unlink()
    file_of(out, days[1]).write_bytes(b"PAR1")
    records[2].unlink()
    records[3].write_text("")
    again = run()
    assert again.code == 0
    assert [line.split()[0] for line in again.lines[:-1]] == [f"{file_of(out, day)}:" for day in days[:4]]
    assert read(out).num_rows == 500


def test_days_are_done_again_with_other_numbers(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 300)
    assert run().code == 0
    assert run("--exact").lines[-1].startswith("3 files written")
    assert pa.types.is_decimal(read(out).schema.field("price").type)
    assert run("--exact").lines[-1].startswith("0 files written")


def test_a_file_does_not_give_way_to_one_of_fewer_rows(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 300)
    assert run().code == 0
    stack.query("TRUNCATE TABLE mexc_data.btc")
    fill(stack, 200, days=1)
    stack.query(f"INSERT INTO mexc_data.btc VALUES ('{DAY + timedelta(1)} 00:00:00', 'd', '1|1|1')")
    again = run()
    assert again.code == 1
    kept = file_of(out, DAY + timedelta(1))
    line = f"{kept} is kept: it was made of 100 rows, and ClickHouse has 1 now; to export the day again, move it away"
    assert again.errors == [line]
    assert again.lines[-1].endswith("; 1 file kept, see above")
    assert read(out).num_rows == 200 + 100 + 100


def test_what_was_exported_before_a_reset_is_kept(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 300)
    assert run().code == 0
    stack.setup("--reset", "--yes")
    fill(stack, 900)
    again = run()
    assert again.code == 1
    assert again.errors == [
        f"{file_of(out, DAY + timedelta(day))} is kept: it was made of another table, or before a reset; for the rows"
        " of this one, give another --out"
        for day in range(3)
    ]
    assert again.lines == [f"0 files written to {out}, 0 rows, 0B; 3 files kept, see above"]
    assert read(out).num_rows == 300
    fill(stack, 100, first=DAY + timedelta(7), days=1)
    assert run().lines[-1].startswith("1 file written")


def test_rows_that_do_not_decode_are_reported_with_their_times(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 100, days=1)
    stack.query(
        "INSERT INTO mexc_data.btc SELECT toDateTime64('2026-10-01 12:00:00.007', 3, 'UTC') + number, 'd', '1|2'"
        " FROM numbers(5)"
    )
    exported = run()
    assert exported.code == 0
    (line,) = exported.errors
    assert line.startswith(
        "BTC_USDT: 5 of 105 deals on 2026-10-01 do not decode and were left out: 2026-10-01 12:00:00.007+00:00 '1|2' ("
    )
    assert line.count("'1|2'") == 3
    assert line.endswith("; ...")
    assert exported.lines[-1].endswith("; 5 rows left out, not decodable")
    record = json.loads(record_of(file_of(out)).read_text())
    assert (record["source_rows"], record["undecoded"], record["rows"], read(out).num_rows) == (105, 5, 100, 100)
    assert run().lines[-1].startswith("0 files written")


def test_a_day_of_which_nothing_decodes_is_an_empty_file(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 10, "dp", "'?'", days=1)
    for type in ("depth", "depth-levels", "top-of-book"):
        assert run("--type", type).code == 0
        assert pd.read_parquet(file_of(out, type=type)).empty


# What goes on meanwhile


def export_here(stack: Stack, out: Path, job: Job | None = None) -> Result:
    """Export btc in this process, its deals if nothing else is said."""
    result = Result()
    export(load_settings(stack.env, dotenv=None), BTC_CONFIG, job or Job("deals", "parquet"), out, result)
    return result


def after_counting(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    count = module._Exporter._count

    def count_then_do(self: Any, *days: int) -> dict[int, int]:
        found = count(self, *days)
        do(found)
        return found

    monkeypatch.setattr(module._Exporter, "_count", count_then_do)


def test_rows_that_come_meanwhile_are_not_lost(stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OTHER_BATCH_ROWS", 1000)
    fill(stack, 3_500, days=1)
    after_counting(monkeypatch, lambda _: fill(stack, 5_000, days=1))
    export_here(stack, out)
    stored = stack.query("SELECT m FROM mexc_data.btc SETTINGS max_threads = 1")
    prices = [float(m.split("|")[0]) for (m,) in stored]
    assert read(out)["price"].to_pylist() == prices[:4_000], "to the end of the batch with the last row counted"
    monkeypatch.undo()
    export_here(stack, out)
    assert read(out)["price"].to_pylist() == prices


@pytest.mark.parametrize("whole", [0, 2], ids=["the first", "the last"])
def test_a_day_that_is_not_as_it_was_counted_gets_no_file(
    stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    fill(stack, 30)
    day = (DAY - date(1970, 1, 1)).days

    def expect_more(counted: dict[int, int]) -> None:
        counted[day + 1] += 1

    after_counting(monkeypatch, expect_more)
    with pytest.raises(
        ExportError, match=r"^BTC_USDT: of 2026-10-02, ClickHouse counted 11 deals and gave 10; try again"
    ):
        export_here(stack, out)
    assert [path for path in files(out) if not path.endswith("json")] == [
        f"type=deals/symbol=BTC_USDT/date=2026-10-0{day}/part-0.parquet" for day in (1, 3)
    ]


@pytest.mark.parametrize("type", ["deals", "candles"])
def test_days_in_any_order_take_as_many_readings_as_there_is_room_for(
    stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch, type: str
) -> None:
    monkeypatch.setattr(module, "_OTHER_BATCH_ROWS", 10)
    monkeypatch.setattr(module, "_DAYS_AT_ONCE", 3 if type == "deals" else 100)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 350)  # of 100 a day
    fill(stack, 1_000, text="'60000|1|1'", days=10)
    stack.query("CREATE TABLE mexc_data.shuffled AS mexc_data.btc ENGINE = StripeLog")
    stack.query("INSERT INTO mexc_data.shuffled SELECT * FROM mexc_data.btc ORDER BY cityHash64(ts)")
    stack.query("TRUNCATE TABLE mexc_data.btc")
    stack.query("INSERT INTO mexc_data.btc SELECT * FROM mexc_data.shuffled")
    stack.query("DROP TABLE mexc_data.shuffled SYNC")
    readings = []
    read_once = decode.stream

    def count_readings(*args: Any, **options: Any) -> Any:
        readings.append(args)
        return read_once(*args, **options)

    monkeypatch.setattr(decode, "stream", count_readings)
    job = Job(type, "parquet", interval="1h" if type == "candles" else None)
    assert export_here(stack, out, job).files == 10
    assert len(readings) == 4
    found = read(out, job.name)
    assert (found.num_rows if type == "deals" else pc.sum(found["deals"]).as_py()) == 1_000


def held(stack: Stack, out: Path, *options: object) -> Process:
    """Start an export of 3,000 deals on one day and 7,000 on the next; it stops after 5,000 of them."""
    fill(stack, 3_000, days=1)
    fill(stack, 7_000, first=DAY + timedelta(1), days=1)
    process = stack.start("-c", HELD, "btc", "--type", "deals", "--out", out, *options)
    process.wait_for("^held$")
    return process


@pytest.mark.parametrize("format", OURS)
def test_after_a_kill_only_whole_files_have_names_and_the_next_does_the_rest(
    stack: Stack, run: Run, out: Path, format: str
) -> None:
    process = held(stack, out, "--format", format)
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert file_of(out, format=format).exists()
    leftovers = list(out.rglob("*.tmp"))
    assert [path.name for path in leftovers] == [f"date={DAY + timedelta(1)}.{FORMATS[format]}.tmp"]
    assert read(out, format=format).num_rows == 3_000
    again = run("--format", format)
    assert again.code == 0
    assert again.lines[-1].startswith("1 file written")
    assert again.lines[-1].endswith("; 1 day there already")
    assert not leftovers[0].exists()
    assert read(out, format=format).num_rows == 10_000


def test_a_leftover_of_a_day_that_is_not_asked_for_goes_too(stack: Stack, run: Run, out: Path) -> None:
    held(stack, out).stop(signal.SIGKILL)
    assert run("--to", DAY + timedelta(1)).code == 0
    assert [path for path in files(out) if path.endswith("tmp")] == []


def test_ctrl_c_leaves_what_is_whole_and_nothing_else(stack: Stack, out: Path) -> None:
    process = held(stack, out)
    assert process.stop(signal.SIGINT) == 130
    assert process.lines[-1] == "held"
    assert files(out) == [str(path.relative_to(out)) for path in (record_of(file_of(out)), file_of(out))]


def test_two_exports_do_not_write_the_same_files(stack: Stack, run: Run, out: Path) -> None:
    first = held(stack, out)
    second = run()
    assert second.code == 1
    assert second.errors == [f"{file_of(out).parent.parent} is in use: another export is writing into it"]
    assert run("--type", "candles").code == 0
    first.stop(signal.SIGKILL)
    assert run().code == 0


def test_a_server_that_dies_is_one_line_and_no_half_file(tmp_path: Path, out: Path) -> None:
    with open_stack(tmp_path) as stack:
        server = stack.clickhouse()
        stack.setup()
        fill(stack, 3_000, days=1)
        long = "concat('60000.', repeat('0', 1000), '|1|1')"  # so that not all of it is on its way
        fill(stack, 30_000, "d", long, first=DAY + timedelta(1), days=1)
        process = stack.start("-c", HELD, "btc", "--type", "deals", "--out", out)
        process.wait_for("^held$")
        server.stop(signal.SIGKILL)
        assert process.stop(signal.SIGUSR1) == 1
        assert len(process.lines) == 3
        assert re.search(
            r"^ClickHouse at 127.0.0.1:\d+ (broke off the connection|cannot be reached)", process.lines[-1]
        )
        assert [path for path in files(out) if not path.startswith(".export")] == [str(file_of(out).relative_to(out))]


# What a user may get wrong, or the machine


def test_symbols_without_rows(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 10, days=1, table="eth")
    exported = run("sol", "ETH_USDT", "BTC")
    assert exported.code == 0
    assert [line for line in exported.lines if ": no " in line] == [
        "BTC_USDT: no deals in the time asked for",
        "SOL_USDT: no deals in the time asked for",
    ]
    assert [path.name for path in (out / "type=deals").iterdir()] == ["symbol=ETH_USDT"]


def test_a_symbol_that_cannot_be_exported_does_not_keep_the_others_from_it(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 10, table="sol")
    stack.query("RENAME TABLE mexc_data.eth TO mexc_data.away")
    try:
        exported = run("eth", "sol")
    finally:
        stack.query("RENAME TABLE mexc_data.away TO mexc_data.eth")
    assert exported.code == 1
    assert exported.errors == ["Table mexc_data.eth does not exist: run ch_setup.py"]
    assert exported.lines[-1].startswith("3 files written")
    assert [path.name for path in (out / "type=deals").iterdir()] == ["symbol=SOL_USDT"]


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("file://archive/of/2026", "--out file://archive/of/2026 is a file of another machine: give such as file:///"),
        ("s3://KEY:SEC/RET@bucket/archive", "--out Cannot parse URI: 's3://***@bucket/archive'"),
        ("s4://KEY:SEC@bucket", "--out s4:// is no place to export to: give a folder, s3://"),
        ("hdfs://KEY:SEC@bucket/archive", "hdfs://***@bucket/archive cannot be used: "),
    ],
)
def test_a_place_that_cannot_be_used_is_a_short_line_without_its_keys(stack: Stack, address: str, line: str) -> None:
    process = stack.run("export.py", "btc", "--type", "deals", "--out", address)
    assert process.wait() == (1 if address.startswith("hdfs") else 2)
    assert process.lines[-1].removeprefix("export.py: error: ").startswith(line)
    assert len(process.lines[-1]) < 600
    assert "SEC" not in process.output


def test_coins_come_once_the_contract_is_known(stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(stack, 10, days=1)
    settings = load_settings(stack.env, dotenv=None)
    coins = []
    for contract in (None, BTC_CONFIG["contract"], None):
        export(settings, {**BTC_CONFIG, "contract": contract}, Job("deals", "parquet"), out, Result())
        coins.append(read(out).column("coins").null_count)
    assert coins == [10, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--type", "prices"], "argument --type: invalid choice: 'prices'"),
        (["--type", "trades"], "--type trades is not of --format parquet: see --help"),
        (["--format", "tardis"], "--type deals is not of --format tardis: see --help"),
        (["--tardis-exchange", "okex"], "--tardis-exchange is for --format tardis only"),
        (["--format", "tardis", "--type", "trades", "--exact"], "--exact is not for what other tools read"),
        (
            ["--format", "tardis", "--type", "trades", "--tardis-exchange", "../okex"],
            "../okex is no exchange's name: give one of Tardis', such as mexc-futures or binance-futures",
        ),
        (["--coins"], "--coins is for --format tardis and --layout only"),
        (["--compress", "gzip"], "--compress is for --format csv only"),
        (["--layout", "ohlcv"], "--layout is for candles only"),
        (["--type", "candles", "--fill"], "--fill is for candles with --layout only"),
        (
            ["--type", "candles", "--layout", "ohlcv", "--fill", "--fill-from-exchange"],
            "--fill and --fill-from-exchange do not go together: ",
        ),
        (["--type", "candles", "--layout", "freqtrade", "--format", "csv"], "--format is not for --layout freqtrade"),
        (["--format", "xlsx"], "argument --format: invalid choice: 'xlsx'"),
        (["--from", "tomorrow"], "argument --from: tomorrow is no date: give such as 2026-10-01, yesterday or -7d"),
        (["--from", "2026-10-01T13:30"], "argument --from: 2026-10-01T13:30 is no date: give such as 2026-10-01"),
        (["--from", "-1d", "--to", "-2d"], "--from 20"),
        (["--from", "2026-10-02", "--to", "2026-10-02"], "--from 2026-10-02 is not before --to 2026-10-02"),
        (["--interval", "1m"], "--interval is for candles only"),
        (["--type", "candles", "--interval", "soon"], "'soon' is no interval"),
        (["--type", "candles", "--interval", "7m"], "candles of 7m do not fill a day"),
        (["--type", "candles", "--interval", "2d"], "candles of 2d do not fill a day"),
        (["xrp"], "There is no symbol xrp in config.py or SYMBOLS: give some of btc (BTC_USDT), "),
    ],
)
def test_an_argument_that_cannot_be_used(run: Run, out: Path, arguments: list[str], line: str) -> None:
    exported = run(*arguments)
    assert exported.code == 2
    assert exported.errors[-1].removeprefix("export.py: error: ").startswith(line)
    assert not out.exists()


@pytest.mark.parametrize(
    ("env", "code", "line"),
    [
        (
            {"CLICKHOUSE_PASSWORD": "wrong"},
            1,
            " refuses user default: check CLICKHOUSE_USER (from",
        ),
        ({"CLICKHOUSE_DATABASE": "other"}, 1, "Table other.btc does not exist: run ch_setup.py"),
        ({"CLICKHOUSE_DATABASE": "a-b"}, 2, "CLICKHOUSE_DATABASE=a-b cannot be used: "),
    ],
)
def test_a_setting_that_does_not_fit(run: Run, out: Path, env: dict[str, str], code: int, line: str) -> None:
    exported = run(**env)
    assert exported.code == code
    (found,) = exported.errors
    assert line in found


def test_a_server_that_is_down(run: Run, out: Path) -> None:
    port = free_port()
    exported = run(CLICKHOUSE_PORT=port)
    assert exported.code == 1
    assert exported.errors == [f"ClickHouse at 127.0.0.1:{port} cannot be reached: connection refused"]


def test_a_table_that_is_being_compacted_is_waited_for(stack: Stack, out: Path) -> None:
    fill(stack, 300)
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_0123abcd")
    try:
        process = stack.start("export.py", "btc", "--type", "deals", "--out", out)
        process.wait_for("^mexc_data.btc is being compacted: waiting up to 10 minutes for it$")
    finally:
        stack.query("RENAME TABLE mexc_data.btc_compacting_0123abcd TO mexc_data.btc")
    assert process.wait() == 0
    assert read(out).num_rows == 300


def test_what_was_done_before_a_table_went_away_counts_once(
    stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(stack, 200, days=2)
    settings = load_settings(stack.env, dotenv=None)
    export(settings, BTC_CONFIG, Job("deals", "parquet"), out, Result(), end=DAY + timedelta(1))
    batches = module._Exporter._batches
    tries = []

    def once_away(self: Any, client: Any, low: int, high: int) -> Any:
        tries.append(low)
        if len(tries) == 1:
            stack.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00000000")
            monkeypatch.setattr(module, "_wait_for_table", bring_back)
        return batches(self, client, low, high)

    def bring_back(*_: object) -> None:
        stack.query("RENAME TABLE mexc_data.btc_compacting_00000000 TO mexc_data.btc")

    monkeypatch.setattr(module._Exporter, "_batches", once_away)
    result = Result()
    export(settings, BTC_CONFIG, Job("deals", "parquet"), out, result)
    assert len(tries) == 2
    assert (result.files, result.already_there, result.kept) == (1, 1, 0)


def test_a_reader_who_has_seen_enough_ends_it_in_one_line(stack: Stack, out: Path) -> None:
    fill(stack, 300)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "export.py", "btc", "--type", "deals", "--out", str(out)]
    export = subprocess.run(command, env=stack.env, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (export.returncode, export.stderr) == (1, b"Standard output cannot be written: broken pipe\n")


def test_a_file_in_the_way_is_named(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 100, days=1)
    assert run().code == 0
    file_of(out).unlink()
    file_of(out).parent.rmdir()
    file_of(out).parent.write_text("in the way")
    again = run()
    assert (again.code, again.errors) == (1, [f"{file_of(out)} cannot be written: not a directory"])


def test_a_table_that_stays_away_is_not_waited_for_without_end(
    stack: Stack, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPACTION", 0)
    stack.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_0123abcd")
    try:
        with pytest.raises(ExportError, match=r"^mexc_data.btc is still being compacted; if nobody does"):
            export_here(stack, out)
    finally:
        stack.query("RENAME TABLE mexc_data.btc_compacting_0123abcd TO mexc_data.btc")


def test_a_place_that_cannot_be_written_to(stack: Stack, run: Run, out: Path) -> None:
    fill(stack, 10)
    out.write_text("a file")
    exported = run()
    assert exported.code == 1
    assert exported.errors == [f"{file_of(out).parent.parent} cannot be written: not a directory"]


@pytest.mark.parametrize("format", OURS)
def test_a_full_disk_is_one_line_and_leaves_what_is_whole(
    stack: Stack, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    fill(stack, 10, "dl", days=1)
    fill(stack, 12_000, "dl", "randomPrintableASCII(1000)", first=DAY + timedelta(1), days=1)
    out = tmp_path / "disk"
    with small_disks("8m", out) as disks:
        monkeypatch.setattr(stack, "prefix", disks.prefix)
        exported = stack.run("export.py", "btc", "--type", "dead-letters", "--format", format, "--out", out)
        assert exported.wait() == 1
        second = file_of(out, DAY + timedelta(1), "dead-letters", format)
        assert exported.lines[1:] == [f"{second} cannot be written: no space left on device"]
        first = file_of(out, DAY, "dead-letters", format)
        assert files(disks.seen(out)) == [str(path.relative_to(out)) for path in (record_of(first), first)]


def test_memory_does_not_depend_on_how_many_rows_there_are_and_in_which_order(stack: Stack, out: Path) -> None:
    """100 MB of dead letters, of more days all at once than are written at the same time."""

    def peak(directory: Path) -> int:
        process = stack.run("-c", MEASURED, "btc", "--type", "dead-letters", "--out", directory)
        assert process.wait() == 0, process.output
        return int(process.wait_for(r"^peak (\d+)$")[1])

    text = "concat(toString(number), repeat('x', 1000))"
    fill(stack, 5_000, "dl", text, days=5)
    few = peak(out / "few")
    for _ in range(19):
        fill(stack, 5_000, "dl", text, days=5)
    many = peak(out / "many")
    assert read(out / "many", "dead-letters").num_rows == 100_000
    assert many - few < 50_000

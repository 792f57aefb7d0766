"""Other tools read what export.py writes and replay.py pushes, by code of their own, and find what ClickHouse has."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from config import PROJECT, load_settings
from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER, Row
from pipeline.read import decode
from pipeline.read.books import books
from pipeline.read.hft import EVENT, events
from pipeline.read.spool import in_order
from pipeline.read.tardis import SOURCES, Tardis
from pipeline.store.client import connect
from pipeline.times import parse_time, to_ms
from tests.days import market_rows, store
from tests.stack import PATIENCE, Process, Stack, free_port, open_stack

pytestmark = pytest.mark.tools

PYTHON = PROJECT / "venv-tools/bin/python"
DAY, HOUR, MINUTE = to_ms(parse_time("2026-10-01")), 3_600_000, 60_000
SPANS = [
    (DAY - MINUTE, DAY + 4 * MINUTE),  # from the day before
    (DAY + 12 * HOUR, DAY + 12 * HOUR + 4 * MINUTE),  # after a gap
    (DAY + 24 * HOUR - MINUTE, DAY + 24 * HOUR + MINUTE),
]


def odd_rows() -> list[Row]:
    """Return books, and what is none, that are not as usual; after the first gap, and before the second."""
    start = DAY + 6 * HOUR
    texts = [
        (DEPTH, "[84000.1,5],[84000,7]|[84000.2,3]"),  # few levels: what comes after has more
        (DEADLETTER, '{"channel":"rs.error","data":"?"}'),
        (DEPTH, "[84000.1,5],[84000,7]|"),  # nobody asks
        (DEPTH, "|[84000.2,9]"),  # nobody bids
        (DEPTH, "[84000.3,1]|[84000.2,9],[84000.4,1]"),  # crossed
        (DEPTH, "no book"),
        (DEPTH, "[84000.1,5],[84000,0]|[84000.2,9]"),  # a level that MEXC deleted
        (DEPTH, "[84000.1,5]|[84000.2,9]"),  # which is the same
    ]
    return [Row(start + 300 * place, mt, text) for place, (mt, text) in enumerate(texts)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three times of a market with two gaps of hours, and odd rows in the first of these."""
    rows = list(market_rows("BTC_USDT", SPANS))
    late = [row for row in rows if row.mt == DEAL and row.ts_ms < DAY + 2 * MINUTE][-50:]  # deals that were filled in
    with open_stack(tmp_path_factory.mktemp("tools")) as stack:
        stack.clickhouse()
        stack.setup()
        in_time = [row for row in rows if row not in late]
        place = next(at for at, row in enumerate(in_time) if row.ts_ms >= DAY + 3 * MINUTE)
        store(stack, [*in_time[:place], *late, *in_time[place:]])
        store(stack, odd_rows())
        yield stack


def rows_of(stack: Stack, mt: str, first: str = "2026-10-01", before: str = "2026-10-02") -> pa.Table:
    """Return the day's rows by the time of their frames, decoded; or those of several days."""
    with connect(load_settings(stack.env, dotenv=None)) as client:
        start, end = parse_time(first), parse_time(before)
        batches = [each.table for each in decode.read(client, "mexc_data", "btc", mt, start=start, end=end)]
    return in_order(pa.concat_tables(batches))


@pytest.fixture(scope="module")
def expected(archive: Stack) -> Path:
    """The books as they should be, in a file."""
    path = archive.directory / "books.npz"
    np.savez(path, **books(rows_of(archive, DEPTH))._asdict())
    return path


def export(stack: Stack, *arguments: object) -> Path:
    """Run export.py for the day; return where it wrote to."""
    out = stack.directory / "-".join(str(each).strip("-") for each in arguments)
    days = ("--from", "2026-10-01", "--to", "2026-10-02")
    process = stack.run("export.py", "btc", *arguments, *days, "--out", out)
    assert process.wait() == 0, process.output
    return out


def ask(name: str, *arguments: object) -> Any:
    """Return what tests/tools/readers.py answers."""
    assert PYTHON.exists(), "make test-tools makes venv-tools/"
    command = [PYTHON, PROJECT / "tests/tools/readers.py", name, *arguments]
    ran = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def converted(archive: Stack) -> Path:
    """The day as hftbacktest converts it from Tardis' files."""
    files = [
        next(export(archive, "--format", "tardis", "--type", kind).glob("*.csv.gz"))
        for kind in ("incremental_book_L2", "trades")
    ]
    # hftbacktest tells what is in a file by its whole path.
    moved = [file.rename(archive.directory / file.name) for file in files]
    path = archive.directory / "converted.npz"
    told = ask("convert", path, moved[1], moved[0])
    deals = rows_of(archive, DEAL)
    assert told["trades"] == pc.sum(deals["contracts"]).as_py()
    data = np.load(path)["data"]
    assert np.count_nonzero(data["ev"] & 0xFF == 2) == len(deals)
    return path


def test_hftbacktest_has_each_book_at_all_levels(archive: Stack, expected: Path, converted: Path) -> None:
    moments = len(pc.unique(rows_of(archive, DEPTH)["ts"]))
    assert ask("books", converted, expected) == {"wrong": 0, "compared": moments}


def test_arrays_are_those_of_hftbacktests_converter(archive: Stack, expected: Path, converted: Path) -> None:
    script = (
        "import sys, numpy\nfrom pipeline.read import hftbacktest\n"
        'numpy.savez(sys.argv[1], data=hftbacktest("btc", "2026-10-01", "2026-10-02"))'
    )
    path = archive.directory / "ours.npz"
    process = archive.run("-W", "ignore", "-c", script, path)
    assert process.wait() == 0, process.output
    ours, theirs = np.load(path)["data"], np.load(converted)["data"]
    assert ours.dtype == theirs.dtype == EVENT
    first = ours["exch_ts"] < (DAY + 6 * HOUR) * 1_000_000  # after that, theirs cuts snapshots: the first odd book is
    assert np.array_equal(ours[first], theirs[: first.sum()])  # a smaller one
    assert np.count_nonzero(first) > 3000
    assert ask("books", path, expected)["wrong"] == 0


def test_a_backtest_in_hftbacktest_runs_to_the_end_of_the_day(archive: Stack, converted: Path) -> None:
    told = ask("backtest", converted)
    newest = np.load(converted)["data"]["local_ts"].max()
    assert newest - told["end"] < 1_000_000_000
    assert told["trades"] > 10


@pytest.fixture(scope="module")
def for_nautilus(archive: Stack) -> Path:
    """All of Tardis' files of the day, of an exchange that nautilus_trader knows."""
    folder = archive.directory / "for nautilus"
    folder.mkdir()
    for kind in SOURCES:
        out = export(archive, "--format", "tardis", "--tardis-exchange", "binance-futures", "--type", kind)
        (file,) = out.glob("*.csv.gz")
        file.rename(folder / file.name)
    return folder


def test_nautilus_has_each_deal_book_and_ticker(archive: Stack, expected: Path, for_nautilus: Path) -> None:
    deals, depth = rows_of(archive, DEAL), rows_of(archive, DEPTH)
    told = ask("nautilus", expected, for_nautilus)
    paid = pc.sum(pc.multiply(deals["price"], deals["contracts"])).as_py()
    assert told.pop("paid") == pytest.approx(paid, rel=1e-12)
    levels = [depth[name].to_numpy() for name in depth.column_names[1:]]
    is_new = np.append(True, ~np.all([_equal(each[1:], each[:-1]) for each in levels], axis=0))
    moments = len(np.unique(depth["ts"].to_numpy()[is_new]))  # a book that is the one before it makes no row
    assert told == {
        "trades": len(deals),
        "contracts": pc.sum(deals["contracts"]).as_py(),
        "buys": pc.sum(pc.equal(deals["side"], "buy")).as_py(),
        "wrong": 0,
        "compared": moments,
        "depths": len(depth),
        "wrong_depths": 0,
        "quotes": len(depth),
        "funding_rates": len(rows_of(archive, TICKER)),
    }


def _equal(some: Any, others: Any) -> Any:
    return (some == others) | (np.isnan(some) & np.isnan(others))


def test_books_of_several_days_are_read_one_after_the_other(archive: Stack, tmp_path: Path) -> None:
    folder, expected = tmp_path / "days", tmp_path / "books.npz"
    for kind in ("trades", "incremental_book_L2"):
        form = ("--format", "tardis", "--tardis-exchange", "binance-futures", "--type", kind)
        assert archive.run("export.py", "btc", *form, "--out", folder).wait() == 0
    depth = rows_of(archive, DEPTH, "2026-09-30", "2026-10-03")
    np.savez(expected, **books(depth)._asdict())
    assert len(list(folder.glob("*.gz"))) == 2 * 3
    told = ask("days_in_nautilus", expected, folder)
    assert told["wrong"] == 0
    assert told["compared"] > 1000
    assert ask("days_in_hftbacktest", expected, folder) == {"wrong": 0, "compared": len(pc.unique(depth["ts"]))}


def test_freqtrade_loads_candles(archive: Stack) -> None:
    deals = rows_of(archive, DEAL)
    candles = decode.candles(deals, "1m")
    told = ask("freqtrade", export(archive, "--type", "candles", "--layout", "freqtrade"))
    assert told == {
        "there": [["BTC/USDT:USDT", "1m", "futures"]],
        "columns": ["date", "open", "high", "low", "close", "volume"],
        "types": ["datetime64[ms, UTC]"] + ["float64"] * 5,
        "rows": len(candles),
        "rows_filled": 1440,
        "volume": pc.sum(deals["contracts"]).as_py(),
        "dates": ["2026-10-01 00:00:00+00:00", "2026-10-01 23:59:00+00:00"],
    }
    filled = ask("freqtrade", export(archive, "--type", "candles", "--layout", "freqtrade", "--fill"))
    assert filled == told | {"rows": 1440}


def test_vectorbt_trades_on_candles(archive: Stack) -> None:
    told = ask("vectorbt", export(archive, "--type", "candles", "--layout", "ohlcv", "--fill"))
    assert told["bars"] == 1440
    assert told["volume"] == pc.sum(rows_of(archive, DEAL)["contracts"]).as_py()
    assert told["orders"] > 0


@pytest.fixture(scope="module")
def per_day(archive: Stack) -> list[list[Any]]:
    """The number of deals of each day that is stored, and the sum of their contracts."""
    found = archive.query(
        "SELECT 'BTC_USDT', toString(toDate(ts)) AS day, count(), sum(toFloat64(splitByChar('|', m)[2]))"
        " FROM mexc_data.btc WHERE mt = 'd' GROUP BY day ORDER BY day"
    )
    assert len(found) == 3
    return [list(row) for row in found]


def test_duckdb_reads_a_bucket(archive: Stack, per_day: list[list[Any]]) -> None:
    port = free_port()
    server = archive.start("-m", "moto.server", "-p", port)
    server.wait_for("Running on")
    at = f"127.0.0.1:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"http://{at}/bucket", method="PUT"), timeout=PATIENCE):
        pass
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    out = f"s3://bucket/archive?endpoint_override={at}&scheme=http&region=us-east-1"
    process = archive.run("export.py", "btc", "--type", "deals", "--out", out, **keys)
    assert process.wait() == 0, process.output
    told = ask("duckdb", at, "s3://bucket/archive/type=deals/**/*.parquet")
    server.stop()
    assert told["counts"] == per_day
    assert "Scanning Files: 1/3" in told["plan"]


def replayed(stack: Stack, end: str, speed: object) -> tuple[Process, str]:
    """Replay from the day's beginning to its `end`; return the process, and where."""
    days = ("--from", "2026-10-01", "--to", end)
    process = stack.start("replay.py", "btc", *days, "--speed", speed, "--port", 0)
    return process, process.wait_for(r"listening on (ws://\S+)")[1]


def test_pymexc_takes_what_is_replayed(archive: Stack) -> None:
    deals, tickers, depth = (rows_of(archive, mt) for mt in (DEAL, TICKER, DEPTH))
    replay, url = replayed(archive, "2026-10-02", "max")
    told = ask("pymexc", url, len(deals) + len(tickers) + len(depth))
    assert replay.wait() == 0
    assert sorted(told["deals"]) == sorted(_as_pushed(deals))
    assert told["tickers"] == _listed(tickers, "ts", "last_price", "funding_rate")
    assert sorted(told["books"], key=str) == sorted(_listed(depth, "ts", "bid_price_1", "ask_contracts_1"), key=str)


def test_ccxt_takes_what_is_replayed(archive: Stack) -> None:
    """Not as fast as can be: of more than a thousand deals at once, it drops some."""
    deals = rows_of(archive, DEAL)
    deals = deals.filter(pc.less(deals["ts"].cast(pa.int64()), DAY + 4 * MINUTE))
    replay, url = replayed(archive, "2026-10-01T00:04", 60)
    told = ask("ccxt", url)
    assert replay.wait() == 0
    sides = {1: "buy", 2: "sell"}
    assert sorted(told) == sorted([*deal, sides[side]] for *deal, side in _as_pushed(deals))


def _moments(table: pa.Table) -> list[int]:
    return list(table["ts"].cast(pa.int64()).to_pylist())


def _listed(table: pa.Table, *names: str) -> list[list[Any]]:
    columns = [_moments(table) if name == "ts" else table[name].to_pylist() for name in names]
    return [list(row) for row in zip(*columns, strict=True)]


def _as_pushed(deals: pa.Table) -> list[list[Any]]:
    sides = {"buy": 1, "sell": 2}
    return [[*row, sides[side]] for *row, side in _listed(deals, "ts", "price", "contracts", "side")]


def test_latency_is_as_the_converter_makes_it(tmp_path: Path) -> None:
    """With times of receipt, which history keeps, events happen and are received in different orders."""
    rows = list(market_rows("BTC_USDT", [(DAY, DAY + 2 * MINUTE)]))
    random = np.random.default_rng(1)
    tables = []
    for mt in (DEAL, DEPTH):
        of_type = [row for row in rows if row.mt == mt]
        table = decode.decode(mt, [row.ts_ms for row in of_type], [row.m for row in of_type]).table
        delay = random.integers(-3_000, 90_000, len(table))  # some clocks are fast
        received = pa.array(table["ts"].cast(pa.int64()).to_numpy() * 1000 + delay, pa.timestamp("us", tz="UTC"))
        tables.append(table.append_column("received", received))
    ours = events(*tables)
    for kind, table in zip(("trades", "incremental_book_L2"), tables, strict=True):
        made = pa.concat_tables(Tardis(kind, "BTC_USDT").tables([in_order(table)]))
        options = pyarrow.csv.WriteOptions(quoting_style="none", quoting_header="none")
        pyarrow.csv.write_csv(made, tmp_path / f"{kind}.csv", options)
    ask("convert", tmp_path / "converted.npz", tmp_path / "trades.csv", tmp_path / "incremental_book_L2.csv")
    theirs = np.load(tmp_path / "converted.npz")["data"]
    assert np.array_equal(ours, theirs)
    assert 0 < np.count_nonzero(ours["ev"] >> 30 & 3 != 3) < len(ours)

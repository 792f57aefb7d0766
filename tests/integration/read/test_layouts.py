"""Candles as other tools want them, and CSV as a spreadsheet takes it."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.messages import DEAL, DEPTH, Row
from pipeline.times import parse_time, to_ms
from tests.days import store
from tests.stack import Process, Stack

DAY, HOUR, MINUTE = to_ms(parse_time("2026-10-01")), 3_600_000, 60_000
FEATHER = "futures/BTC_USDT_USDT-1m-futures.feather"

Run = Callable[..., Process]


def deal(ts_ms: int, price: float, contracts: int = 1) -> Row:
    return Row(ts_ms, DEAL, f"{price}|{contracts}|1")


@pytest.fixture
def run(empty: Stack, out: Path) -> Run:
    """Run export.py for candles of btc, unless its arguments say otherwise."""

    def run(*arguments: object) -> Process:
        kind = [] if "--type" in arguments else ["--type", "candles"]
        return empty.run("export.py", "btc", *kind, *arguments, "--out", out)

    return run


def read(out: Path) -> pd.DataFrame:
    frames = [pd.read_parquet(path) for path in sorted(out.rglob("*.parquet"))]
    return pd.concat(frames, ignore_index=True)


def test_ohlcv_has_these_columns_and_no_others(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [deal(DAY, 10, 3), deal(DAY + 1, 12, 4), deal(DAY + 5 * MINUTE, 11)])
    assert run("--layout", "ohlcv").wait() == 0
    frame = read(out)
    assert list(frame.columns) == ["date", "open", "high", "low", "close", "volume"]
    assert frame.iloc[0].tolist() == [pd.Timestamp(DAY, unit="ms", tz="UTC"), 10, 12, 10, 12, 7]
    assert len(frame) == 2
    refused = run("--layout", "ohlcv", "--coins")
    assert refused.wait() == 1
    assert "is in contracts: leave --coins away, or give another --out" in refused.output
    shutil.rmtree(out)
    assert run("--layout", "ohlcv", "--coins").lines[-1].startswith("1 file written")
    assert read(out)["volume"].tolist() == [0.0007, 0.0001]


def test_filled_candles_go_on_across_days(empty: Stack, run: Run, out: Path) -> None:
    """The second day has no deal, the third begins with none."""
    later = [deal(DAY + 48 * HOUR + 3 * MINUTE, 20, 5)]
    store(empty, [deal(DAY + 23 * HOUR, 10), deal(DAY + 23 * HOUR, 11), *later])
    assert run("--layout", "ohlcv", "--fill").lines[-1].startswith("3 files written")
    frame = read(out)
    assert len(frame) == 60 + 1440 + 4
    assert frame["date"].diff().dropna().unique().tolist() == [pd.Timedelta(minutes=1)]
    assert frame.iloc[1:-1]["close"].unique().tolist() == [11]
    assert frame["volume"].sum() == 1 + 1 + 5
    assert frame.iloc[-1].tolist()[1:] == [20, 20, 20, 20, 5]
    assert run("--layout", "ohlcv", "--fill").lines[-1].endswith("; 3 days there already")


def test_days_without_deals_are_filled_where_the_time_asked_for_begins_or_ends_with_them(
    empty: Stack, run: Run, out: Path
) -> None:
    store(empty, [deal(DAY + day * 24 * HOUR, 10 + day) for day in (0, 2, 4)])
    fill = ("--layout", "ohlcv", "--fill")
    assert run(*fill, "--from", "2026-10-02", "--to", "2026-10-03").lines[-1].startswith("1 file written")
    assert read(out)["close"].tolist() == [10.0] * 1440
    assert run(*fill, "--from", "2026-10-02", "--to", "2026-10-05").lines[-1].startswith("2 files written")
    assert len(read(out)) == 3 * 1440
    assert run(*fill).lines[-1].startswith("2 files written")  # before the first deal, and after the last, is nothing
    assert len(read(out)) == 4 * 1440 + 1


def test_a_day_is_filled_to_its_end_once_there_is_a_later_one(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [deal(DAY, 10), deal(DAY + 2 * MINUTE, 11)])
    assert run("--layout", "ohlcv", "--fill").wait() == 0
    assert len(read(out)) == 3
    store(empty, [deal(DAY + 24 * HOUR, 12)])
    assert run("--layout", "ohlcv", "--fill").lines[-1].startswith("2 files written")
    assert len(read(out)) == 1441


def test_a_last_deal_that_changes_changes_the_day_after_it(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [deal(DAY, 10), deal(DAY + 24 * HOUR + MINUTE, 12)])
    assert run("--layout", "ohlcv", "--fill").wait() == 0
    store(empty, [deal(DAY + 23 * HOUR, 11)])  # filled in
    assert run("--layout", "ohlcv", "--fill").lines[-1].startswith("2 files written")
    assert read(out)["close"].tolist()[-2:] == [11, 12]


def test_a_filled_day_stays_where_the_deals_before_it_are_gone(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [deal(DAY, 10), deal(DAY + 27 * HOUR, 11)])
    assert run("--layout", "ohlcv", "--fill").wait() == 0
    before = read(out)
    empty.query("TRUNCATE TABLE mexc_data.btc")  # as --drop-before does: its token stays
    store(empty, [deal(DAY + 27 * HOUR, 11)])
    again = run("--layout", "ohlcv", "--fill")
    assert again.wait() == 1
    assert "is kept: it has 181 rows, and with the deals that there are now it would have 1" in again.output
    pd.testing.assert_frame_equal(read(out), before)


def test_freqtrades_file_has_all_days(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [deal(DAY, 10, 3), deal(DAY + 24 * HOUR, 12, 4)])
    first = run("--layout", "freqtrade", "--to", "2026-10-02")
    assert first.lines[0].startswith(f"{out / FEATHER}: 1 row, ")
    assert run("--layout", "freqtrade").lines[-1].startswith("1 file written")
    frame = pd.read_feather(out / FEATHER)
    assert frame["date"].tolist() == [datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 2, tzinfo=UTC)]
    assert frame["volume"].tolist() == [3, 4]
    assert pa.ipc.open_file(out / FEATHER).schema.field("date").type == pa.timestamp("ms", tz="UTC")
    assert run("--layout", "freqtrade").lines[-1] == f"0 files written to {out}, 0 rows, 0B; 2 days there already"
    assert run("--layout", "freqtrade", "--interval", "5m").lines[-1].startswith("1 file written")
    assert [path.name for path in (out / "futures").iterdir() if "5m" in path.name] == [
        "BTC_USDT_USDT-5m-futures.feather"
    ]


def test_freqtrades_file_is_made_again_where_it_is_not_the_one_that_was_written(
    empty: Stack, run: Run, out: Path
) -> None:
    store(empty, [deal(DAY, 10, 3)])
    assert run("--layout", "freqtrade").wait() == 0
    for damage in (b"", b"ARROW1"):
        (out / FEATHER).unlink()
        if damage:
            (out / FEATHER).write_bytes(damage)
        assert run("--layout", "freqtrade").lines[-1].startswith("1 file written")
        assert len(pd.read_feather(out / FEATHER)) == 1


def test_freqtrade_without_deals_has_no_file(empty: Stack, run: Run, out: Path) -> None:
    ran = run("--layout", "freqtrade", "--fill")
    assert ran.wait() == 0
    assert ran.lines == ["BTC_USDT: no deals in the time asked for", f"0 files written to {out}, 0 rows, 0B"]
    assert not (out / "futures").exists()


# A spreadsheet

OFFICE = "{urn:oasis:names:tc:opendocument:xmlns:office:1.0}"
TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"


def cells(file: Path, directory: Path) -> Iterator[list[tuple[str, str]]]:
    """Yield the rows of a file as LibreOffice opens it: what it takes each cell for, and its value."""
    soffice = shutil.which("soffice")
    assert soffice, "LibreOffice is not installed: apt-get install libreoffice-calc"
    profile = f"-env:UserInstallation=file://{directory}/profile"
    command = [soffice, profile, "--headless", "--convert-to", "fods", "--outdir", str(directory), str(file)]
    subprocess.run(command, capture_output=True, check=True, timeout=100)
    for row in ET.parse(directory / file.with_suffix(".fods").name).iter(f"{TABLE}table-row"):
        found = [
            (cell.get(f"{OFFICE}value-type", ""), cell.get(f"{OFFICE}date-value") or cell.get(f"{OFFICE}value") or "")
            for cell in row.iter(f"{TABLE}table-cell")
        ]
        if any(kind for kind, _ in found):
            yield found


@pytest.mark.libreoffice
def test_a_spreadsheet_takes_times_for_times_and_numbers_for_numbers(
    empty: Stack, run: Run, out: Path, tmp_path: Path
) -> None:
    store(empty, [deal(DAY + 59_125, 84000.1, 3), Row(DAY + 5 * MINUTE, DEAL, "0.00000125|1|1")])
    store(empty, [Row(DAY + 1, DEPTH, "[84000.1,5]|[84000.2,3]")])
    for type, first in (("deals", "2026-10-01T00:00:59.13"), ("candles", "2026-10-01"), ("depth", None)):
        assert run("--type", type, "--format", "csv").wait() == 0
        (file,) = out.glob(f"type={type}*/symbol=BTC_USDT/date=*/part-0.csv")
        header, *rows = cells(file, tmp_path)
        frame = pd.read_csv(file, parse_dates=[0])
        assert pd.api.types.is_datetime64_any_dtype(frame.iloc[:, 0])
        assert {kind for kind, _ in header} == {"string"}
        assert len(rows) == len(frame)
        assert {row[0][0] for row in rows} == {"date"}
        assert {kind for row in rows for kind, _ in row[1:]} <= {"float", "string" if type == "deals" else "", ""}
        if first:
            assert rows[0][0][1] == first  # LibreOffice rounds what it writes, not what it has
            numbers = [float(value) for kind, value in rows[1] if kind == "float"]
            assert numbers[0] == 0.00000125

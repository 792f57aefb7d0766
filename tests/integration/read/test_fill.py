"""export.py --fill-from-exchange: MEXC's bars where there are no deals, and all that an export promises besides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pytest

from tests.stack import Process, Stack, free_port
from tests.web import Answer, Web, serving

DAY = date(2026, 10, 1)
MIDNIGHT = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
NAMES = ("vol", "realOpen", "realClose", "realHigh", "realLow")


class Klines:
    """Bars of some days: minute n has n contracts, or none where 7 divides n, and prices about 100 + n / 8."""

    def __init__(self, days: int = 2) -> None:
        self.bars: dict[int, tuple[Any, ...]] = {}
        for number in range(days * 1440 + 1):
            price = 100 + number / 8
            bar = (float(number if number % 7 else 0), price, price + 0.25, price + 0.5, price - 0.5)
            self.bars[MIDNIGHT + number * 60] = bar

    def __call__(self, path: str) -> Answer:
        query = dict(parse_qsl(urlsplit(path).query))
        found = [minute for minute in sorted(self.bars) if int(query["start"]) <= minute <= int(query["end"])]
        columns = {name: [self.bars[minute][place] for minute in found] for place, name in enumerate(NAMES)}
        return 200, {}, json.dumps({"success": True, "code": 0, "data": {"time": found, **columns}}).encode()


@pytest.fixture
def web(empty: Stack, tmp_path: Path) -> Iterator[Web]:
    """The exchange, and deals in the minutes 10 to 19 of the first day."""
    with serving(Klines()) as web:
        empty.env |= {"MEXC_REST_URL": web.url, "MEXC_WS_URL": f"{web.url.replace('http', 'ws')}/edge"}
        empty.env["KLINES_DIR"] = str(tmp_path / "klines")
        deal(empty, *range(10, 20))
        yield web


def deal(stack: Stack, *minutes: int) -> None:
    rows = [((MIDNIGHT + minute * 60) * 1000 + 30_000, "d", "84000.10|5|1") for minute in minutes]
    values = ", ".join(f"(fromUnixTimestamp64Milli({ts}), '{mt}', '{m}')" for ts, mt, m in rows)
    stack.query(f"INSERT INTO mexc_data.btc VALUES {values}")


def run(stack: Stack, out: Path, *options: object) -> Process:
    return stack.run("export.py", "btc", "--type", "candles", "--fill-from-exchange", "--out", out, *options)


def candles(out: Path, interval: str = "1m") -> list[dict[str, Any]]:
    table = pyarrow.dataset.dataset(out / f"type=candles-{interval}-filled", partitioning="hive").to_table()
    rows: list[dict[str, Any]] = table.sort_by("start").to_pylist()
    return rows


def file_of(out: Path, day: date = DAY) -> Path:
    return out / f"type=candles-1m-filled/symbol=BTC_USDT/date={day}/part-0.parquet"


def minute_of(candle: dict[str, Any]) -> int:
    return (int(candle["start"].timestamp()) - MIDNIGHT) // 60


def test_minutes_without_deals_get_mexcs_bars(empty: Stack, web: Web, tmp_path: Path) -> None:
    process = run(empty, tmp_path / "out")
    assert process.wait() == 0, process.output
    found = candles(tmp_path / "out")
    ours = [candle for candle in found if candle["source"] == "deals"]
    assert [minute_of(candle) for candle in ours] == list(range(10, 20))
    assert {(candle["open"], candle["contracts"], candle["deals"]) for candle in ours} == {(84000.10, 5.0, 1)}
    theirs = {minute_of(candle): candle for candle in found if candle["source"] == "exchange"}
    # Nothing is invented for minutes in which nobody traded.
    assert sorted(theirs) == [number for number in range(1440) if number % 7 and number not in range(10, 20)]
    assert {name: value for name, value in theirs[1003].items() if name not in ("start", "symbol", "date")} == {
        "open": 100 + 1003 / 8,
        "high": 100 + 1003 / 8 + 0.5,
        "low": 100 + 1003 / 8 - 0.5,
        "close": 100 + 1003 / 8 + 0.25,
        "contracts": 1003.0,
        "coins": 0.1003,
        "buy_contracts": None,
        "deals": None,
        "vwap": None,
        "source": "exchange",
    }
    assert process.lines[0].startswith(
        f"{file_of(tmp_path / 'out')}: {len(found):,} rows, {len(theirs):,} of MEXC's own"
    )
    assert f"; {len(theirs):,} rows of MEXC's own bars" in process.lines[-1]


@pytest.mark.parametrize("format", ["csv", "arrow"])
def test_it_goes_into_each_format(empty: Stack, web: Web, tmp_path: Path, format: str) -> None:
    process = run(empty, tmp_path / "out", "--format", format, "--exact")
    assert process.wait() == 0, process.output
    (path,) = (tmp_path / "out/type=candles-1m-filled").rglob("part-0.*")
    if format == "arrow":
        table = pa.ipc.open_file(path).read_all()
        place = table["start"].to_pylist().index(datetime.fromtimestamp(MIDNIGHT + 1003 * 60, UTC))
        assert (table["open"][place].as_py(), table["coins"][place].as_py()) == (Decimal("225.375"), Decimal("0.1003"))
    else:
        table = pyarrow.csv.read_csv(path)
    assert table["source"].to_pylist().count("exchange") == len(table) - 10


def test_longer_candles_are_made_of_the_bars_in_them(empty: Stack, web: Web, tmp_path: Path) -> None:
    assert run(empty, tmp_path / "out", "--interval", "5m").wait() == 0
    found = {minute_of(candle): candle for candle in candles(tmp_path / "out", "5m")}
    assert [minute for minute, candle in found.items() if candle["source"] == "deals"] == [10, 15]
    of_three = found[1000]  # the bars 1000 to 1004, of which none is a multiple of 7 but 1001
    assert of_three["contracts"] == sum(number for number in range(1000, 1005) if number % 7)
    assert (of_three["open"], of_three["close"]) == (100 + 1000 / 8, 100 + 1004 / 8 + 0.25)
    assert (of_three["high"], of_three["low"]) == (100 + 1004 / 8 + 0.5, 100 + 1000 / 8 - 0.5)


def test_days_without_any_deal_are_filled_where_they_are_asked_for(empty: Stack, web: Web, tmp_path: Path) -> None:
    options = ("--from", DAY, "--to", DAY + timedelta(2))
    assert run(empty, tmp_path / "out", *options).wait() == 0
    second = [candle for candle in candles(tmp_path / "out") if minute_of(candle) >= 1440]
    assert len(second) == sum(number % 7 > 0 for number in range(1440, 2880))
    assert {candle["source"] for candle in second} == {"exchange"}
    asked = len(web.asked)
    again = run(empty, tmp_path / "out", *options)
    assert again.lines[-1].endswith("; 2 days there already")
    assert len(web.asked) == asked


def test_what_is_there_is_done_again_only_if_it_has_grown(empty: Stack, web: Web, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(empty, out).wait() == 0
    before = len(candles(out))
    assert run(empty, out).lines == [f"0 files written to {out}, 0 rows, 0B; 1 day there already"]
    deal(empty, 21, 22)  # MEXC lists nothing of the first of these
    assert run(empty, out).lines[-1].startswith("1 file written")
    assert len(candles(out)) == before + 1


def test_bars_that_come_later_are_filled_in_later(empty: Stack, web: Web, tmp_path: Path) -> None:
    klines = Klines()
    klines.bars[MIDNIGHT + 500 * 60] = (-1.0, 1, 1, 1, 1)
    web.answer = klines
    out = tmp_path / "out"
    first = run(empty, out)
    assert first.wait() == 0
    assert (
        "BTC_USDT: not filled from 2026-10-01T08:20:00.000Z to 2026-10-01T08:21:00.000Z: MEXC's kline is"
        in first.output
    )
    found = [minute_of(candle) for candle in candles(out)]
    assert 500 not in found
    assert 501 in found
    web.answer = Klines()
    assert run(empty, out).lines[-1].startswith("1 file written")
    assert len(candles(out)) == len(found) + 1
    assert run(empty, out).lines[-1].startswith("0 files written")


def test_a_file_does_not_give_way_to_one_of_fewer_bars(empty: Stack, web: Web, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(empty, out).wait() == 0
    before = file_of(out).read_bytes()
    for path in (tmp_path / "klines").rglob("*.csv"):
        path.unlink()
    klines = Klines()
    klines.bars = {minute: bar for minute, bar in klines.bars.items() if minute > MIDNIGHT + 36_000}
    web.answer = klines
    deal(empty, 14)  # so that the day is done again
    again = run(empty, out)
    assert again.wait() == 1
    assert (
        f"{file_of(out)} is kept: it has 1,235 rows, and with the bars that MEXC lists now it would have"
        in again.output
    )
    assert file_of(out).read_bytes() == before
    assert [path.name for path in (out / ".export").rglob("*.tmp")] == []


def test_an_exchange_that_does_not_answer_is_one_line_and_no_file(empty: Stack, web: Web, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    empty.env |= {"MEXC_REST_URL": address, "MEXC_WS_URL": address.replace("http", "ws")}
    process = run(empty, tmp_path / "out")
    assert process.wait() == 1
    assert len(process.lines) == 1
    assert process.lines[0].startswith(
        f"BTC_USDT: 2026-10-01 cannot be filled: {address}/api/v1/contract/kline/BTC_USDT"
    )
    assert list((tmp_path / "out").rglob("part-0*")) == []
    assert [path.name for path in (tmp_path / "out/.export").rglob("*.tmp")] == []


def test_a_symbol_that_mexc_does_not_know_is_one_line(empty: Stack, web: Web, tmp_path: Path) -> None:
    web.answer = lambda path: (200, {}, b'{"success":false,"code":1001,"message":"Contract does not exist!"}')
    process = run(empty, tmp_path / "out")
    assert process.wait() == 1
    assert len(process.lines) == 1
    assert process.lines[0].endswith("MEXC says: Contract does not exist! (code 1001)")


def test_candles_that_are_not_filled_are_another_thing(empty: Stack, web: Web, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(empty, out).wait() == 0
    plain = empty.run("export.py", "btc", "--type", "candles", "--out", out)
    assert plain.wait() == 0
    assert sorted(path.name for path in out.iterdir()) == [".export", "type=candles-1m", "type=candles-1m-filled"]
    assert "source" not in pyarrow.dataset.dataset(out / "type=candles-1m").schema.names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--type", "candles", "--interval", "30s"),
            "candles of 30s are no whole minutes, as MEXC's are: give such as 1m",
        ),
        (("--type", "candles", "--interval", "90s"), "candles of 90s are no whole minutes"),
        (("--type", "deals"), "--fill-from-exchange is for candles only"),
    ],
)
def test_what_cannot_be_filled_is_one_line(served: Stack, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    process = served.run("export.py", "btc", "--fill-from-exchange", *options, "--out", tmp_path / "out")
    assert process.wait() == 2
    assert said in process.lines[-1]

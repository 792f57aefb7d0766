"""verif.py --audit: rows of the real engine against klines of a real server."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from pipeline.times import iso
from tests.integration.read.test_quality import in_blocks, store
from tests.stack import Stack, StoredRow, free_port, open_stack
from tests.web import Answer, Web, serving

T0 = 1_790_812_800  # 2026-10-01, seconds
MINUTES = 6

Deal = tuple[int, str, int]
"""When it was made, in milliseconds; price; contracts."""


def deals_of(minutes: int, seed: int = 1) -> list[Deal]:
    """Some deals a second, with prices that no float has exactly."""
    chance = random.Random(seed)
    return [
        (T0 * 1000 + second * 1000 + part, f"84000.{chance.randrange(1, 99):02}", chance.randrange(1, 1000))
        for second in range(minutes * 60)
        for part in sorted(chance.sample(range(1000), 2))
    ]


DEALS = deals_of(MINUTES)


def row(deal: Deal, late_ms: int = 3) -> StoredRow:
    return deal[0] + late_ms, "d", f"{deal[1]}|{deal[2]}|1"


def answer(columns: dict[str, list[Any]]) -> Answer:
    return 200, {}, json.dumps({"success": True, "code": 0, "data": columns}).encode()


class Klines:
    """MEXC's klines of some deals, and of one minute more that is under way."""

    def __init__(self, deals: list[Deal]) -> None:
        self.bars: dict[int, tuple[Any, ...]] = {}
        for minute in range(T0, T0 + (MINUTES + 1) * 60, 60):
            of_minute = [deal for deal in deals if deal[0] // 60_000 * 60 == minute]
            prices = [float(price) for _, price, _ in of_minute] or [84000.5]
            total = float(sum(contracts for _, _, contracts in of_minute))
            self.bars[minute] = (total, prices[0], prices[-1], max(prices), min(prices))

    def __call__(self, path: str) -> Answer:
        query = dict(parse_qsl(urlsplit(path).query))
        found = [minute for minute in sorted(self.bars) if int(query["start"]) <= minute <= int(query["end"])]
        names = ("vol", "realOpen", "realClose", "realHigh", "realLow")
        columns = {name: [self.bars[minute][place] for minute in found] for place, name in enumerate(names)}
        return answer({"time": found, **columns})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("audit")) as opened:
        opened.clickhouse()
        opened.setup()
        yield opened


@pytest.fixture
def web(empty: Stack, tmp_path: Path) -> Iterator[Web]:
    """The address that verif.py asks for klines, and the rows that fit to them; only BTC has any."""
    with serving(Klines(DEALS)) as web:
        empty.env |= {"MEXC_REST_URL": web.url, "MEXC_WS_URL": f"{web.url.replace('http', 'ws')}/edge"}
        empty.env["KLINES_DIR"] = str(tmp_path / "klines")
        store(empty, *in_blocks([row(deal) for deal in DEALS], seed=1))
        yield web


def audited(stack: Stack, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and what is said of BTC."""
    process = stack.run("verif.py", "--audit", "--json", *options)
    btc = json.loads("\n".join(line for line in process.lines if line[:1] in ' {}"'))["audit"][0]
    assert btc["symbol"] == "BTC_USDT"
    return process.wait(), btc


def replace_rows(stack: Stack, rows: list[StoredRow]) -> None:
    stack.query("TRUNCATE TABLE mexc_data.btc")
    store(stack, *in_blocks(rows, seed=2))


def whole() -> tuple[str, ...]:
    """Options for all minutes of the klines but the one under way."""
    return "--from", iso(T0 * 1000), "--to", iso((T0 + MINUTES * 60) * 1000)


def test_all_agrees_from_the_first_whole_minute_to_the_last(empty: Stack, web: Web) -> None:
    code, btc = audited(empty)
    # No deal was made in the very first millisecond, nor in the last of all: their minutes may not be whole.
    assert (btc["start"], btc["end"]) == (iso((T0 + 60) * 1000), iso((T0 + (MINUTES - 1) * 60) * 1000))
    assert (btc["minutes"], btc["exact"], btc["missing"], btc["too_many"]) == (MINUTES - 2, MINUTES - 2, 0, 0)
    inside = [deal for deal in DEALS if T0 + 60 <= deal[0] // 1000 < T0 + (MINUTES - 1) * 60]
    assert btc["contracts"] == sum(deal[2] for deal in inside)
    assert (btc["percent"], btc["differences"], btc["not_compared"]) == (100, [], [])
    assert code == 1  # of the other two symbols, nothing is stored


def test_a_time_that_was_asked_for_is_looked_at_from_end_to_end(empty: Stack, web: Web) -> None:
    code, btc = audited(empty, *whole())
    assert (btc["minutes"], btc["exact"]) == (MINUTES, MINUTES)
    assert code == 3  # for the other two symbols, MEXC has the same klines here


@pytest.mark.parametrize("late_ms", [0, 700, 1900])
def test_deals_that_were_pushed_in_the_next_minute_are_no_difference(empty: Stack, web: Web, late_ms: int) -> None:
    replace_rows(empty, [row(deal, late_ms) for deal in DEALS])
    _, btc = audited(empty, *whole())
    assert (btc["exact"], btc["missing"], btc["too_many"]) == (MINUTES, 0, 0)
    assert btc["earlier"] == sum(deal[0] % 60_000 >= 60_000 - late_ms for deal in DEALS)


def test_deals_that_were_filled_in_later_are_in_their_minutes(empty: Stack, web: Web) -> None:
    filled_in = [deal for deal in DEALS if 100_000 <= deal[0] - T0 * 1000 < 160_000]
    live = [deal for deal in DEALS if deal not in filled_in]
    replace_rows(empty, [row(deal) for deal in live] + [row(deal, 0) for deal in filled_in])
    _, btc = audited(empty, *whole())
    assert (btc["exact"], btc["missing"]) == (MINUTES, 0)


def test_what_was_kept_back_is_named_by_minute_and_number(empty: Stack, web: Web) -> None:
    empty.query("CREATE TABLE mexc_data.kept AS mexc_data.btc")
    lost = "mt = 'd' AND toSecond(ts) >= 20 AND toSecond(ts) < 40 AND toMinute(ts) IN (1, 4)"
    empty.query(f"INSERT INTO mexc_data.kept SELECT * FROM mexc_data.btc WHERE NOT ({lost}) SETTINGS max_threads = 1")
    empty.query("EXCHANGE TABLES mexc_data.kept AND mexc_data.btc")
    empty.query("DROP TABLE mexc_data.kept SYNC")
    code, btc = audited(empty, *whole())
    expected = {
        minute: sum(deal[2] for deal in DEALS if 20_000 <= deal[0] - (T0 + minute * 60) * 1000 + 3 < 40_000)
        for minute in (1, 4)
    }
    found = {(each["start"], each["missing"]) for each in btc["differences"]}
    assert found == {(iso((T0 + minute * 60) * 1000), contracts) for minute, contracts in expected.items()}
    assert (btc["exact"], btc["missing"], btc["too_many"]) == (MINUTES - 2, sum(expected.values()), 0)
    assert btc["percent"] == pytest.approx(100 - 100 * sum(expected.values()) / btc["contracts"])
    assert code == 3
    text = empty.run("verif.py", "--audit", *whole()).output
    for minute, contracts in expected.items():
        assert f"{iso((T0 + minute * 60) * 1000)}  {contracts:,} missing" in text
    assert f"4 of 6 minutes agree exactly, {sum(expected.values()):,} contracts missing" in text


def test_the_tolerance_decides_on_the_exit_code(empty: Stack, web: Web) -> None:
    for table in ("eth", "sol"):
        store(empty, [row(deal) for deal in DEALS], table=table)
    replace_rows(empty, [row(deal) for deal in DEALS if deal != DEALS[60]])
    share = 100 * DEALS[60][2] / sum(deal[2] for deal in DEALS)
    for tolerance, expected in ((share * 1.01, 0), (share * 0.99, 3), (0, 3), (100, 0)):
        process = empty.run("verif.py", "--audit", "--audit-tolerance", str(tolerance), *whole())
        assert process.wait() == expected, process.output
    assert empty.run("verif.py", "--audit", *whole()).wait() == (3 if share > 0.1 else 0)


def test_rows_that_do_not_decode_are_not_counted_and_said(empty: Stack, web: Web) -> None:
    bad = ["84000", "84000|x|1", "84000|1", "-84000|1|1", "84000|-1|1", "|1|1", "84000|1|1|1"]
    store(empty, [(DEALS[60][0], "d", text) for text in bad])
    _, btc = audited(empty, *whole())
    assert (btc["undecoded"], btc["exact"]) == (len(bad), MINUTES)


def test_klines_are_asked_for_once(empty: Stack, web: Web) -> None:
    audited(empty, "--from", iso(T0 * 1000), "--to", iso((T0 + 180) * 1000))
    asked = len([path for path in web.asked if "BTC" in path])
    assert asked == 1
    _, btc = audited(empty, "--from", iso((T0 + 60) * 1000), "--to", iso((T0 + 120) * 1000))
    assert btc["exact"] == 1
    assert len([path for path in web.asked if "BTC" in path]) == asked  # those of the neighbours are there, too
    audited(empty, *whole())
    *_, last = [path for path in web.asked if "BTC" in path]
    assert f"start={T0 + 240}" in last or f"start={T0 - 60}" in last  # what is not kept, and nothing before it


def test_kept_klines_that_were_damaged_are_asked_for_again(empty: Stack, web: Web, tmp_path: Path) -> None:
    audited(empty, *whole())
    (kept,) = (tmp_path / "klines").rglob("BTC_USDT/2026-10-01.csv")
    good = kept.read_text()
    for text in ("", "time\n", good[:200], good.replace("84000", "nan"), "\x00" * 500):
        kept.write_text(text)
        _, btc = audited(empty, *whole())
        assert btc["exact"] == MINUTES
        assert kept.read_text() == good
    assert [path.name for path in kept.parent.iterdir() if "09-30" not in path.name] == [kept.name]  # nothing half-done


def test_klines_that_cannot_be_kept_are_used_all_the_same(empty: Stack, web: Web, tmp_path: Path) -> None:
    (tmp_path / "klines").write_text("a file")
    process = empty.run("verif.py", "--audit", *whole())
    assert "6 of 6 minutes agree exactly" in process.output
    assert "2026-10-01.csv cannot be written: not a directory; its klines will be asked for again" in process.output


def test_a_bar_that_is_nonsense_and_minutes_without_one_are_named(empty: Stack, web: Web) -> None:
    klines = Klines(DEALS)
    klines.bars[T0 + 60] = (-5.0, *klines.bars[T0 + 60][1:])
    del klines.bars[T0 + 180]
    web.answer = klines
    _, btc = audited(empty, *whole())
    assert btc["not_compared"] == [
        {
            "start": iso((T0 + 60) * 1000),
            "end": iso((T0 + 120) * 1000),
            "why": "MEXC's kline is nonsense: a number that is -5.0",
        },
        {"start": iso((T0 + 180) * 1000), "end": iso((T0 + 240) * 1000), "why": "MEXC lists no kline"},
    ]
    assert (btc["minutes"], btc["exact"]) == (MINUTES - 2, MINUTES - 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((200, {}, b'{"success":false,"code":1001,"message":"Contract does not exist!"}'), "Contract does not exist!"),
        ((403, {}, b""), "HTTP 403 Forbidden"),
        ((200, {}, b"<html>"), "the answer is no JSON object: <html>"),
        (answer({"time": [T0, T0 + 60], "vol": [1]}), "MEXC's klines are nonsense: 2 times, and 1 of vol"),
        (answer({"time": ["x"]}), "MEXC's klines are nonsense: no column vol"),
        (answer({name: [] for name in ("time", "vol", "realOpen", "realHigh", "realLow", "realClose")}), "no kline"),
    ],
)
def test_what_cannot_be_compared_with_is_a_line(empty: Stack, web: Web, given: Answer, said: str) -> None:
    web.answer = lambda path: given
    process = empty.run("verif.py", "--audit", *whole())
    lines = [line for line in process.lines if line.startswith("BTC_USDT")]
    assert len(lines) == 1, process.output
    assert lines[0].startswith("BTC_USDT: not compared: ")
    assert said in lines[0]
    assert len(process.lines) == 3, process.output  # one line a symbol
    assert process.wait() == 1


def test_an_exchange_that_cannot_be_reached_is_a_line(empty: Stack, web: Web) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    process = empty.run(
        "verif.py", "--audit", *whole(), MEXC_REST_URL=address, MEXC_WS_URL=address.replace("http", "ws")
    )
    assert f"BTC_USDT: not compared: {address}/api/v1/contract/kline/BTC_USDT" in process.output
    assert "Connection refused" in process.output
    assert process.wait() == 1


def test_a_table_that_is_not_there_or_empty_is_a_line(empty: Stack, web: Web) -> None:
    empty.query("TRUNCATE TABLE mexc_data.btc")
    store(empty, [(T0 * 1000, "t", "1|1|1|1|0.00000000")], table="eth")
    empty.query("RENAME TABLE mexc_data.sol TO mexc_data.elsewhere")
    try:
        process = empty.run("verif.py", "--audit")
        assert process.lines == [
            "BTC_USDT: not compared: there are no rows",
            "ETH_USDT: not compared: no whole minute of market data is stored",
            "SOL_USDT: not compared: there is no such table, run ch_setup.py",
        ]
        assert process.wait() == 1
    finally:
        empty.query("RENAME TABLE mexc_data.elsewhere TO mexc_data.sol")


@pytest.mark.parametrize(
    "options",
    [("--audit-tolerance", "1"), ("--audit", "--audit-tolerance", "x"), ("--audit", "--audit-tolerance", "nan"),
     ("--audit", "--audit-tolerance", "101"), ("--audit", "--watch")],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(served: Stack, options: tuple[str, ...]) -> None:
    process = served.run("verif.py", *options)
    assert process.wait() == 2
    assert "error:" in process.output

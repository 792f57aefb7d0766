"""Files as Tardis names and fills them: what is in them, and that they are whole or not there."""

from __future__ import annotations

import csv
import gzip
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from config import symbol_config
from pipeline.messages import DEADLETTER, DEAL, DEPTH, TICKER, Row
from pipeline.read import decode
from pipeline.read.tardis import SOURCES, Tardis
from pipeline.times import parse_time, to_ms
from tests.days import store
from tests.disks import small_disks
from tests.stack import Process, Stack

DAY, HOUR = to_ms(parse_time("2026-10-01")), 3_600_000
FIRST = "exchange,symbol,timestamp,local_timestamp"
COLUMNS = {
    "trades": "id,side,price,amount",
    "incremental_book_L2": "is_snapshot,side,price,amount",
    "book_snapshot_25": ",".join(
        f"asks[{level}].price,asks[{level}].amount,bids[{level}].price,bids[{level}].amount" for level in range(25)
    ),
    "quotes": "ask_amount,ask_price,bid_price,bid_amount",
    "derivative_ticker": "funding_timestamp,funding_rate,predicted_funding_rate,open_interest,last_price,index_price,"
    "mark_price",
}

ROWS = [
    Row(DAY, TICKER, "84055|84063.8||546882118|-0.00007200"),
    Row(DAY + HOUR, DEPTH, "[84000.1,5],[84000,7]|[84000.2,3]"),
    Row(DAY + HOUR, DEADLETTER, "amid the others"),
    Row(DAY + 5, DEAL, "84000.1|3|1"),  # filled in: stored later than what is newer
    Row(DAY + HOUR, DEAL, "84000.2|13|2"),
    Row(DAY + HOUR, DEAL, "84000.1|2"),  # no deal
    Row(DAY + HOUR + 200, DEPTH, "[84000,7]|"),
    Row(DAY + 2 * HOUR, DEPTH, "[84000,8]|[84000.1,1]"),  # after a gap
    Row(DAY + HOUR, DEAL, "84000.3|1|1"),
]

Run = Callable[..., Process]


@pytest.fixture
def run(empty: Stack, out: Path) -> Run:
    """Run export.py for Tardis' files of btc; of trades, unless its arguments say otherwise."""

    def run(*arguments: object) -> Process:
        kind = [] if "--type" in arguments else ["--type", "trades"]
        return empty.run("export.py", "btc", "--format", "tardis", *kind, *arguments, "--out", out)

    return run


def file_of(out: Path, type: str = "trades", day: str = "2026-10-01", exchange: str = "mexc-futures") -> Path:
    return out / f"{exchange}_{type}_{day}_BTC_USDT.csv.gz"


def lines(path: Path) -> list[list[str]]:
    """Return the rows of a file, without its header."""
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.reader(file))[1:]


def text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize("type", SOURCES)
def test_columns_are_those_of_tardis(empty: Stack, run: Run, out: Path, type: str) -> None:
    store(empty, ROWS)
    ran = run("--type", type)
    assert ran.wait() == 0
    content = text(file_of(out, type))
    assert content.splitlines()[0] == f"{FIRST},{COLUMNS[type]}"
    assert '"' not in content
    assert "\r" not in content
    assert all(row[:2] == ["mexc-futures", "BTC_USDT"] for row in lines(file_of(out, type)))


def test_trades_are_in_the_order_of_time(empty: Stack, run: Run, out: Path) -> None:
    store(empty, ROWS)
    ran = run()
    assert ran.wait() == 0
    late, hour = str((DAY + 5) * 1000), str((DAY + HOUR) * 1000)
    assert [row[2:] for row in lines(file_of(out))] == [
        [late, late, "", "buy", "84000.1", "3"],
        [hour, hour, "", "sell", "84000.2", "13"],
        [hour, hour, "", "buy", "84000.3", "1"],
    ]
    assert "1 of 4 deals on 2026-10-01 do not decode and were left out: " in ran.output


def test_books_are_differences_but_after_gaps(empty: Stack, run: Run, out: Path) -> None:
    store(empty, ROWS)
    assert run("--type", "incremental_book_L2").wait() == 0
    first, second, third = (str(ts * 1000) for ts in (DAY + HOUR, DAY + HOUR + 200, DAY + 2 * HOUR))
    book = [["bid", "84000.1", "5"], ["bid", "84000", "7"], ["ask", "84000.2", "3"]]
    after = [["bid", "84000", "8"], ["ask", "84000.1", "1"]]
    assert [[row[2], *row[4:]] for row in lines(file_of(out, "incremental_book_L2"))] == [
        *([first, "true", *level] for level in book),
        *([first, "false", *level] for level in book),
        [second, "false", "bid", "84000.1", "0"],
        [second, "false", "ask", "84000.2", "0"],
        [third, "false", "bid", "84000", "0"],
        *([third, "true", *level] for level in after),
        *([third, "false", *level] for level in after),
    ]


def test_each_day_of_books_begins_with_what_is_left_of_the_one_before(empty: Stack, run: Run, out: Path) -> None:
    """So whoever reads several days into one book has no level that has gone."""
    midnight = DAY + 24 * HOUR
    store(
        empty,
        [
            Row(DAY + HOUR, DEPTH, "[1,1]|[2,1]"),
            Row(midnight - 200, DEPTH, "[84000.1,5],[84000,7]|[84000.2,3]"),
            Row(midnight, DEPTH, "[84000.3,4]|"),
            Row(midnight + 24 * HOUR, DEPTH, "|[9,2]"),
        ],
    )
    changes = ("--type", "incremental_book_L2")
    gone = [["false", "bid", "84000.1", "0"], ["false", "bid", "84000", "0"], ["false", "ask", "84000.2", "0"]]
    book = [["true", "bid", "84000.3", "4"], ["false", "bid", "84000.3", "4"]]

    def second() -> list[list[str]]:
        return [row[4:] for row in lines(file_of(out, "incremental_book_L2", "2026-10-02"))]

    assert run(*changes, "--from", "2026-10-02", "--to", "2026-10-03").wait() == 0
    assert second() == book  # nobody can have read the day before from here
    assert run(*changes).lines[-1].startswith("3 files written")
    assert second() == gone + book
    third = lines(file_of(out, "incremental_book_L2", "2026-10-03"))
    assert third[0][4:] == ["false", "bid", "84000.3", "0"]
    assert run(*changes).lines[-1].endswith("; 3 days there already")
    store(empty, [Row(midnight - 100, DEPTH, "[84000.1,5]|[84000.2,3]")])
    assert run(*changes).lines[-1].startswith("2 files written")
    assert second() == [gone[0], gone[2], *book]


def test_whole_books_quotes_and_tickers(empty: Stack, run: Run, out: Path) -> None:
    store(empty, ROWS)
    for type in ("book_snapshot_25", "quotes", "derivative_ticker"):
        assert run("--type", type).wait() == 0
    first, one_sided, _ = lines(file_of(out, "book_snapshot_25"))
    assert first[4:] == ["84000.2", "3", "84000.1", "5", "", "", "84000", "7", *[""] * 92]
    assert one_sided[4:] == ["", "", "84000", "7", *[""] * 96]
    assert [row[4:] for row in lines(file_of(out, "quotes"))] == [
        ["3", "84000.2", "84000.1", "5"],
        ["", "", "84000", "7"],
        ["1", "84000.1", "84000", "8"],
    ]
    assert [row[4:] for row in lines(file_of(out, "derivative_ticker"))] == [
        ["", "-0.000072", "", "546882118", "84055", "", "84063.8"]
    ]


def test_amounts_may_be_coins(empty: Stack, run: Run, out: Path) -> None:
    store(empty, ROWS)
    ran = run("--coins")
    assert ran.lines[-1].startswith("1 file written")
    assert [row[-1] for row in lines(file_of(out))] == ["0.0003", "0.0013", "0.0001"]
    assert run("--coins").lines[-1].endswith("; 1 day there already")
    assert run("--coins", "--type", "incremental_book_L2").wait() == 0
    assert lines(file_of(out, "incremental_book_L2"))[0][-1] == "0.0005"
    assert run("--coins", "--type", "derivative_ticker").wait() == 0
    assert float(lines(file_of(out, "derivative_ticker"))[0][7]) == 54688.2118


def test_contracts_and_coins_are_not_mixed(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [*ROWS, Row(DAY + 48 * HOUR, DEAL, "84000.1|3|1")])
    is_there = "BTC_USDT: what is there of tardis-mexc-futures-trades is in"
    for first, second, told in (
        ([], ["--coins"], "contracts: leave --coins away"),
        (["--coins"], [], "coins: give --coins as well"),
    ):
        assert run(*first, "--to", "2026-10-02").wait() == 0
        ran = run(*second, "--from", "2026-10-03")
        assert ran.wait() == 1
        assert ran.lines[0] == f"{is_there} {told}, or give another --out"
        assert len(list(out.glob("*.gz"))) == 1
        shutil.rmtree(out)


def test_another_name_of_the_exchange_is_another_file(empty: Stack, run: Run, out: Path) -> None:
    store(empty, ROWS)
    assert run().wait() == 0
    ran = run("--tardis-exchange", "binance-futures")
    assert ran.lines[-1].startswith("1 file written")
    assert lines(file_of(out, exchange="binance-futures"))[0][0] == "binance-futures"
    assert lines(file_of(out))[0][0] == "mexc-futures"


def test_coins_of_a_contract_that_is_not_known_are_refused(
    empty: Stack, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import config
    import export

    monkeypatch.setattr(config, "ALL_CONFIGS", [symbol_config("NEW_USDT", "btc")])
    monkeypatch.setattr(export, "ALL_CONFIGS", config.ALL_CONFIGS)
    for name, value in empty.env.items():
        monkeypatch.setenv(name, value)
    command = ["export.py", "all", "--format", "tardis", "--type", "trades", "--coins", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    assert export.main() == 1
    assert capsys.readouterr().err.splitlines() == [
        "NEW_USDT: how many coins a contract is, is not known: give its contract in config.py, or leave --coins away"
    ]
    assert not out.exists()


def test_days_without_rows_have_no_file(empty: Stack, run: Run, out: Path) -> None:
    nothing = "BTC_USDT: no deals in the time asked for"
    assert run().lines[0] == nothing
    store(empty, [*ROWS, Row(DAY + 48 * HOUR, DEAL, "84000.1|3|1"), Row(DAY + 24 * HOUR, DEPTH, "[1,1]|[2,1]")])
    assert run("--from", "2036-01-01").lines[0] == nothing
    assert run("--from", "2026-10-02", "--to", "2026-10-03").lines[0] == nothing
    assert not out.exists()
    assert run().lines[-1].startswith("2 files written")
    assert [path.name for path in sorted(out.glob("*.gz"))] == [
        file_of(out, day=day).name for day in ("2026-10-01", "2026-10-03")
    ]


def test_a_day_of_which_nothing_decodes_has_a_header(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [Row(DAY, DEAL, "?")])
    assert run().wait() == 0
    assert text(file_of(out)) == f"{FIRST},{COLUMNS['trades']}\n"


def test_what_is_there_is_not_done_again_and_what_has_grown_is(empty: Stack, run: Run, out: Path) -> None:
    store(empty, [*ROWS, Row(DAY + 24 * HOUR, DEAL, "84000.1|3|1")])
    assert run().lines[-1].startswith("2 files written")
    assert run().lines[-1] == f"0 files written to {out}, 0 rows, 0B; 2 days there already"
    store(empty, [Row(DAY + 1, DEAL, "84000.1|3|1")])
    assert run().lines[-1].startswith("1 file written")
    assert len(lines(file_of(out))) == 4


# An export that stops and says so when it has read three batches of a thousand books.
HELD = """
import signal, sys
import export
from pipeline import interrupts
from pipeline.read import decode, export as module

def stream(*args, _stream=decode.stream, **options):
    for number, batch in enumerate(_stream(*args, **options)):
        if number == 3:
            print("held", flush=True)
            signal.pause()
        yield batch

decode.stream = stream
module._BATCH_ROWS["depth"] = 1000
sys.exit(interrupts.run(export.main))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_whatever_ends_it_there_is_no_half_file(empty: Stack, run: Run, out: Path, number: int) -> None:
    books = [Row(DAY + 10 * place, DEPTH, f"[{place + 1},1]|[9000,1]") for place in range(5_000)]
    store(empty, books)
    command = ("btc", "--format", "tardis", "--type", "incremental_book_L2", "--out", out)
    process = empty.start("-c", HELD, *command)
    process.wait_for("^held$")
    process.stop(number)
    assert not file_of(out, "incremental_book_L2").exists()
    assert run("--type", "incremental_book_L2").lines[-1].startswith("1 file written")
    assert len(lines(file_of(out, "incremental_book_L2"))) == 4 + 2 * 4_999
    assert [name for name in files(out) if "tmp" in name] == []


def test_a_full_disk_is_one_line(empty: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    levels = random.integers(1, 10**9, (20_000, 20)).tolist()
    store(
        empty,
        [
            Row(DAY + 1000 * place, DEPTH, ",".join(f"[{level},{size}]" for level, size in enumerate(sizes, 1)) + "|")
            for place, sizes in enumerate(levels)
        ],
    )
    out = tmp_path / "disk"
    with small_disks("2m", out) as disks:
        monkeypatch.setattr(empty, "prefix", disks.prefix)
        ran = empty.run("export.py", "btc", "--format", "tardis", "--type", "incremental_book_L2", "--out", out)
        assert ran.wait() == 1
        assert ran.lines == [f"{file_of(out, 'incremental_book_L2')} cannot be written: no space left on device"]
        assert files(disks.seen(out)) == []


def test_times_of_receipt_and_numbers_are_taken_where_they_are_kept() -> None:
    """And where they are not, as of rows that were copied into a history, the time of the exchange."""
    deals = decode.decode(DEAL, [DAY, DAY + 1, DAY + 2], ["84000.1|3|1", "84000.2|2|2", "84000.3|1|2"]).table
    received = pa.array([DAY * 1000 + 7_001, DAY * 1000 + 8_002, None], pa.timestamp("us", tz="UTC"))
    deals = deals.append_column("received", received).append_column("id", pa.array([12345, 0, None], pa.uint64()))
    (made,) = Tardis("trades", "BTC_USDT").tables([deals])
    assert made.select(["timestamp", "local_timestamp", "id"]).to_pylist() == [
        {"timestamp": DAY * 1000, "local_timestamp": DAY * 1000 + 7_001, "id": "12345"},
        {"timestamp": DAY * 1000 + 1_000, "local_timestamp": DAY * 1000 + 8_002, "id": None},
        {"timestamp": DAY * 1000 + 2_000, "local_timestamp": DAY * 1000 + 2_000, "id": None},
    ]

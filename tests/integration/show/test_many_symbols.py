"""The tables of SYMBOLS: made by ch_setup.py, and known to whatever reports and reads."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, open_stack

NOW_MS = int(time.time() * 1000)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Tables with rows in btc and doge; XPR_USDT is none of the exchange's, and has no table."""
    with open_stack(tmp_path_factory.mktemp("many")) as opened:
        opened.clickhouse()
        opened.exchange()
        opened.env["SYMBOLS"] = "DOGE_USDT,XPR_USDT,1000BONK_USDT"
        setup = opened.run("ch_setup.py")
        assert setup.wait() == 2
        assert setup.lines[-1].startswith("SYMBOLS: MEXC has no contract XPR_USDT; the nearest: XRP_USDT")
        for table, rows in {"btc": 10, "doge": 20}.items():
            opened.query(
                f"INSERT INTO mexc_data.{table} SELECT fromUnixTimestamp64Milli({NOW_MS} - 1000 + number), 't',"
                f" '0.15|0.15|0.15|1|0.00010000' FROM numbers({rows})"
            )
        opened.query(f"INSERT INTO mexc_data.doge VALUES (fromUnixTimestamp64Milli({NOW_MS}), 'd', '0.15|3|1')")
        opened.query(f"INSERT INTO mexc_data.doge VALUES (fromUnixTimestamp64Milli({NOW_MS}), 'dl', 'nonsense')")
        yield opened


def test_setup_makes_what_is_a_contract_and_keeps_what_is_off_the_market(stack: Stack) -> None:
    found = {name for (name,) in stack.query("SELECT name FROM system.tables WHERE database = 'mexc_data'")}
    assert found >= {"btc", "eth", "sol", "doge", "_1000bonk"}
    assert "xpr" not in found
    unreached = {"MEXC_WS_URL": "ws://127.0.0.1:9", "MEXC_REST_URL": "http://127.0.0.1:9", "SYMBOLS": "OLD_USDT"}
    assert stack.run("ch_setup.py", **unreached).wait() == 0, "who cannot be asked refuses nothing"
    setup = stack.run("ch_setup.py", SYMBOLS="OLD_USDT")
    assert setup.wait() == 0
    assert "Keeping append-only old table, it exists" in setup.lines
    stack.query("DROP TABLE mexc_data.old SYNC")


def test_a_history_is_made_of_what_is_a_contract_only(stack: Stack) -> None:
    setup = stack.run("ch_setup.py", HISTORY=1)
    assert setup.wait() == 2
    query = "SELECT name FROM system.tables WHERE database = 'mexc_data' AND name IN ('doge_history', 'xpr_history')"
    assert stack.query(query) == [("doge_history",)]


def test_the_report_has_a_line_for_each_the_worst_first(stack: Stack) -> None:
    verif = stack.run("verif.py")
    assert verif.wait() == 0
    assert verif.lines[2:6] == [
        "Total records appended: 32 in 6 tables",
        "",
        "  xpr: No such table, run ch_setup.py",
        "",
    ]
    table = [line.split() for line in verif.lines[6:13]]
    assert table[0][:6] == ["table", "records", "tickers", "deals", "depth", "dead-letters"]
    assert [cells[0] for cells in table[1:]] == ["xpr", "eth", "sol", "_1000bonk", "doge", "btc"]
    assert table[5][:6] == ["doge", "22", "20", "1", "0", "1"]
    assert verif.lines[13:15] == ["", "STORAGE STATISTICS"]


def test_some_are_reported_in_full_on_request(stack: Stack) -> None:
    verif = stack.run("verif.py", "--only", "DOGE_USDT", "btc")
    assert verif.wait() == 0
    assert verif.lines[:5] == [
        "💾 Symbol-specific storage status:",
        "",
        "Total records appended: 32",
        "  btc/data.bin: 10 records",
        "  doge/data.bin: 22 records",
    ]
    quality = stack.run("verif.py", "--quality", "--only", "doge")
    assert "  1 nonsense" not in quality.lines
    assert len(quality.lines) > 8
    assert stack.run("verif.py", "--only", "ada").wait() == 2


def test_quality_and_age_have_a_line_for_each_the_worst_first(stack: Stack) -> None:
    quality = stack.run("verif.py", "--quality").lines
    assert len(quality) == 6
    assert [line.partition(":")[0] for line in quality[:4]] == ["ETH_USDT", "SOL_USDT", "XPR_USDT", "1000BONK_USDT"]
    assert "XPR_USDT: there is no such table, run ch_setup.py" in quality
    age = stack.run("verif.py", "--max-age", 100_000)
    assert age.wait() == 3
    assert len(age.lines) == 6


def test_json_leaves_nothing_out(stack: Stack) -> None:
    found = json.loads(stack.run("verif.py", "--json").output)
    assert [table["name"] for table in found["tables"]] == ["btc", "eth", "sol", "doge", "xpr", "_1000bonk"]


def test_they_can_be_exported_and_loaded(stack: Stack, tmp_path: Path) -> None:
    export = stack.run("export.py", "doge", "--type", "deals", "--out", tmp_path)
    assert export.wait() == 0, export.output
    assert [path.parts[-3] for path in tmp_path.rglob("*.parquet")] == ["symbol=DOGE_USDT"]
    load = stack.run("-c", "from pipeline.read import load; print(load('DOGE_USDT', 'deals').num_rows)")
    assert load.lines == ["1"]
    assert re.search(r"doge \(DOGE_USDT\)", stack.run("export.py", "ada", "--type", "deals", "--out", tmp_path).output)


def test_with_histories_rows_of_both_are_counted_and_each_has_a_line_the_worst_first(stack: Stack) -> None:
    history = {"HISTORY": 1, "SYMBOLS": "DOGE_USDT,1000BONK_USDT"}
    assert stack.run("ch_setup.py", **history).wait() == 0
    for table in ("eth", "doge"):
        stack.query(
            f"INSERT INTO mexc_data.{table}_history (n, ts, mt) SELECT number, fromUnixTimestamp64Milli({NOW_MS}),"
            " 't' FROM numbers(5)"
        )
    stack.query("DROP TABLE mexc_data.sol_history SYNC")
    try:
        verif = stack.run("verif.py", **history)
        assert verif.wait() == 0
        assert verif.lines[2] == "Total records appended: 42 in 5 tables"
        found = [line.split() for line in verif.lines[5:10]]
        assert [cells[:3] for cells in found[2:4]] == [["doge", "27", "25"], ["btc", "10", "10"]]
        assert found[4][0] == "eth", "it has rows, if only in its history"
        histories = verif.lines[verif.lines.index("History, and what its table has beside it:") + 2 :]
        assert "  Table mexc_data.sol_history does not exist: run ch_setup.py" in histories[:4]
        names = ("btc", "eth", "doge", "_1000bonk")
        assert [line.split()[0] for line in histories[6:]] == [f"{name}_history" for name in names]
        in_full = stack.run("verif.py", "--only", "eth", "doge", **history).lines
        assert in_full[2:5] == [
            "Total records appended: 32",
            "  eth/data.bin: 5 records, 5 of them only in eth_history",
            "  doge/data.bin: 27 records, 5 of them only in doge_history",
        ]
        assert "  DOGE: 27 total" in in_full
        answer = json.loads(stack.run("verif.py", "--json", **history).output)
        assert answer["records"] == 42
    finally:
        for name in ("btc", "eth", "doge", "_1000bonk"):
            for each in ("history", "deals", "tickers", "depth"):
                stack.query(f"DROP TABLE IF EXISTS mexc_data.{name}_{each} SYNC")


def test_the_doctor_looks_at_them(stack: Stack) -> None:
    found = stack.run("verif.py", "--doctor").output
    assert "Table doge: 22 rows" in found
    assert "Table xpr does not exist" in found


def test_reset_and_compaction_know_them(stack: Stack) -> None:
    compact = stack.run("ch_setup.py", "--compact", "doge")
    assert compact.wait() == 0, compact.output
    reset = stack.run("ch_setup.py", "--reset")
    assert reset.lines[0] == "This deletes ALL DATA in the tables btc, eth, sol, doge, xpr, _1000bonk of mexc_data."

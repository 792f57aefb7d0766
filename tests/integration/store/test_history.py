"""The history's tables and views, as ch_setup.py makes and checks them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from config import load_settings
from pipeline.store import history
from pipeline.store.client import connect
from pipeline.store.history import Beginning, beginnings, record
from pipeline.store.schema import parse_comment
from tests.pieces import pieces
from tests.stack import Stack, open_stack

LAYOUT = "SELECT name, comment FROM system.tables WHERE database = 'mexc_data' AND name LIKE '%history%' ORDER BY name"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse with HISTORY=1, for all tests of this module."""
    with open_stack(tmp_path_factory.mktemp("history")) as opened:
        opened.env["HISTORY"] = "1"
        opened.clickhouse()
        yield opened


@pytest.fixture
def fresh(stack: Stack) -> Stack:
    stack.setup("--reset", "--yes")
    return stack


def add(stack: Stack, rows: str) -> None:
    stack.query(f"INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) VALUES {rows}")


def test_setup_makes_tables_and_views_and_says_so(fresh: Stack) -> None:
    again = fresh.run("ch_setup.py")
    assert again.wait() == 0
    assert "Keeping btc_history table, it exists" in again.lines
    assert again.lines[-1] == "  SOL history: sol_history table, views sol_deals, sol_tickers, sol_depth"
    names = {name for (name,) in fresh.query("SELECT name FROM system.tables WHERE database = 'mexc_data'")}
    assert {"history_begins", "eth_history", "eth_deals", "eth_tickers", "eth_depth"} <= names
    tokens = [comment for _, comment in fresh.query(LAYOUT) if comment]
    assert len(set(tokens)) == 3


def test_a_second_run_keeps_all(fresh: Stack) -> None:
    add(fresh, "(1, '1788335242.156', '1788335242.156000', '1788335242.156', 'd', 7, '77525.9|3|2')")
    before = fresh.query(LAYOUT)
    fresh.setup()
    assert fresh.query(LAYOUT) == before
    assert fresh.count("btc_history") == 1


def test_without_history_nothing_of_it_is_made(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        setup = stack.setup()
        assert "history" not in setup.output
        assert stack.query(LAYOUT) == []


def test_reset_names_and_deletes_it(fresh: Stack) -> None:
    add(fresh, "(1, '1788335242.156', '1788335242.156000', '1788335242.156', 'd', 7, '77525.9|3|2')")
    asked = fresh.run("ch_setup.py", "--reset")
    assert asked.wait() == 1
    assert asked.lines[0].startswith("This deletes ALL DATA in the tables btc, eth, sol, btc_history, eth_history,")
    before = fresh.query(LAYOUT)
    assert fresh.count("btc_history") == 1
    fresh.setup("--reset", "--yes")
    assert fresh.count("btc_history") == 0
    assert {token for _, token in fresh.query(LAYOUT) if token}.isdisjoint(token for _, token in before)


def test_no_part_has_a_file_called_data_bin(fresh: Stack) -> None:
    for name in ("btc", "eth", "sol"):
        fresh.query(f"INSERT INTO mexc_data.{name} SELECT fromUnixTimestamp64Milli(1788335242156), 'd', '77525.9|3|2'")
    add(fresh, "(1, '1788335242.156', '1788335242.156000', '1788335242.156', 'd', 7, '77525.9|3|2')")
    record(connect(load_settings(fresh.env, None)), "mexc_data", "btc", "token", Beginning(0, 0, 0, 1))
    files = list((fresh.data / "store").rglob("data.bin"))
    assert {file.parent.parent.name for file in files} == {"b7c", "e74", "507"}
    assert len(files) == 3
    assert list((fresh.data / "store").rglob("m.bin"))


def test_views_have_exact_numbers_and_null_where_there_is_none(fresh: Stack) -> None:
    add(
        fresh,
        """(1, '1788335242.156', '1788335242.156001', '1788335242.100', 'd', 7, '84055.123456789012345678|0.1|2'),
        (2, '1788335242.157', '1788335242.157000', '1788335242.157', 't', 0, '84055|84063.8||546882118|-0.00007200'),
        (3, '1788335242.158', '1788335242.158000', '1788335242.150', 'dp', 9, '[122125.8,103673],[1,0]|[122126,1.5]'),
        (4, '1788335242.159', '1788335242.159000', '1788335242.159', 'dp', 10, '|[122126,1]'),
        (5, '1788335242.160', '1788335242.160000', '1788335242.160', 'd', 8, '0.1234567890123456789|1|1'),
        (6, '1788335242.161', '1788335242.161000', '1788335242.161', 'dl', 0, '{}')""",
    )
    query = "SELECT n, id, price, contracts, price * contracts, side FROM mexc_data.btc_deals ORDER BY n"
    first, second = fresh.query(query)
    exact = Decimal("84055.123456789012345678")
    assert first == (1, 7, exact, Decimal("0.1"), exact * Decimal("0.1"), "sell")
    assert second[2] is None, "more digits than the column has: none is cut off"
    query = "SELECT last_price, fair_price, index_price, open_interest, funding_rate FROM mexc_data.btc_tickers"
    assert fresh.query(query) == [(84055, Decimal("84063.8"), None, 546882118, Decimal("-0.000072"))]
    query = "SELECT version, bids, bid, bid_contracts, ask, ask_contracts FROM mexc_data.btc_depth ORDER BY n"
    assert fresh.query(query) == [
        (9, [(Decimal("122125.8"), 103673)], Decimal("122125.8"), 103673, 122126, Decimal("1.5")),
        (10, [], None, None, 122126, 1),
    ]
    ((received,),) = fresh.query("SELECT toUnixTimestamp64Micro(received) FROM mexc_data.btc_deals WHERE n = 1")
    assert received == 1788335242156001


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("MODIFY COLUMN m LowCardinality(String)", r"its columns are .*m LowCardinality\(String\)"),
        ("DROP COLUMN id", "its columns are n UInt64"),
    ],
)
def test_another_layout_is_said_with_what_to_do(fresh: Stack, change: str, said: str) -> None:
    """And those after it are made all the same; compose starts no collector after another exit code than 0."""
    fresh.query(f"ALTER TABLE mexc_data.btc_history {change}")
    fresh.query("DROP TABLE mexc_data.sol_history SYNC")
    setup = fresh.run("ch_setup.py")
    assert setup.wait() == 0
    line = setup.wait_for(said).string
    assert line.startswith("Table mexc_data.btc_history is not laid out as this version needs it, ")
    assert line.endswith(": rename it, run ch_setup.py and then ch_setup.py --history")
    assert "Creating sol_history table..." in setup.lines
    assert setup.lines[-1] == (
        "WARNING: not ready: btc_history; collectors run all the same, and these rows wait in their journals:"
        " mend that, then run ch_setup.py again"
    )
    assert fresh.run("ch_setup.py", "--history").lines.count(line) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"HISTORY_PORT": "9"}, "ClickHouse at 127.0.0.1:9 cannot be reached: connection refused"),
        ({"HISTORY_PASSWORD": "wrong"}, " refuses user default: check "),
    ],
    ids=["away", "password"],
)
def test_a_history_that_cannot_be_reached_holds_up_no_table(fresh: Stack, change: dict[str, str], said: str) -> None:
    fresh.query("DROP TABLE mexc_data.sol SYNC")
    setup = fresh.run("ch_setup.py", **change)
    assert setup.wait() == 0
    assert "Creating append-only sol table (sol/data.bin equivalent)..." in setup.lines
    assert said in setup.output
    assert setup.lines[-1].startswith("WARNING: not ready: btc_history, eth_history, sol_history; collectors run ")
    copying = fresh.run("ch_setup.py", "--history", **change)
    assert copying.wait() in (1, 2)
    assert said in copying.output


def test_days_to_keep_are_changed_where_the_setting_changed(fresh: Stack) -> None:
    client = connect(load_settings(fresh.env, None))
    add(
        fresh,
        """(1, '2020-01-01 00:00:00', '2020-01-01 00:00:00', '2020-01-01 00:00:00', 'd', 7, '1|1|1'),
        (2, '2020-01-01 00:00:00', now64(6), '2020-01-01 00:00:00', 'd', 7, '1|1|1')""",
    )
    for days in (90, 30, 0):
        assert fresh.run("ch_setup.py", HISTORY_KEEP_DAYS=days).wait() == 0
        assert history.kept_days(client, "mexc_data", "btc") == days
        assert history.what_is_wrong(client, "mexc_data", "btc") is None


def test_months_are_dropped_once_all_their_rows_are_too_old(fresh: Stack) -> None:
    assert fresh.run("ch_setup.py", HISTORY_KEEP_DAYS=30).wait() == 0
    add(fresh, "(1, '2020-01-01 00:00:00', '2020-01-01 00:00:00', '2020-01-01 00:00:00', 'd', 7, '1|1|1')")
    add(fresh, "(2, '2020-02-01 00:00:00', now64(6), '2020-02-01 00:00:00', 'd', 7, '1|1|1')")
    fresh.query("OPTIMIZE TABLE mexc_data.btc_history FINAL")
    assert fresh.query("SELECT n FROM mexc_data.btc_history") == [(2,)]


def test_days_to_keep_where_the_table_keeps_all_is_refused(fresh: Stack) -> None:
    setup = fresh.run("ch_setup.py", HISTORY_KEEP_DAYS=30, COMPACT_BLOCKS=0)
    assert setup.wait() == 2
    assert len(setup.lines) == 1


def test_how_a_table_and_its_history_go_together(fresh: Stack) -> None:
    client = connect(load_settings(fresh.env, None))
    place = client, "mexc_data", "btc"

    def found(comment: str) -> list[tuple[str, int, int | None]]:
        return [("history" if each.in_history else "table", each.first, each.end) for each in pieces(*place, comment)]

    assert found("token") == [("history", 0, 1), ("table", 0, None)]
    record(*place, "token", Beginning(0, 100, 899, 1000))
    add(fresh, "(1001, '1788335242.156', '1788335242.156000', '1788335242.156', 'd', 7, '77525.9|3|2')")
    begin = ("history", 0, 900)
    assert found("token") == [begin, ("table", 0, 100), ("history", 1000, 1002), ("table", 101, None)]
    assert found("token+60") == [begin, ("table", 0, 40), ("history", 1000, 1002), ("table", 41, None)]
    assert found("other") == [("history", 0, 1002), ("table", 0, None)]
    record(*place, "token", Beginning(100, 100, 899, 1000))
    assert found("token") == [("history", 0, 1002), ("table", 101, None)]
    record(*place, "token", Beginning(101, 103, 1001, 2000))
    assert found("token") == [("history", 0, 1002), ("table", 101, 103), ("history", 2000, 2000), ("table", 103, None)]
    record(*place, "token", Beginning(0, 200, 2000, 3000))
    assert beginnings(*place, "token") == [Beginning(0, 200, 2000, 3000)]
    record(*place, "token", Beginning(200, 200, 2000, 3000))
    assert beginnings(*place, "token") == [Beginning(200, 200, 2000, 3000)], "what a later one took back is not back"


def test_a_comment_tells_the_token_and_the_rows_before() -> None:
    assert parse_comment("a1b2") == ("a1b2", 0)
    assert parse_comment("a1b2+1000") == ("a1b2", 1000)
    assert parse_comment("a1b2+1000!") == ("a1b2", 1000)
    assert parse_comment("written by hand + more") == ("written by hand + more", 0)

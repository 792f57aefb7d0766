"""How a run of `python3 -m local` ends, by what ClickHouse holds."""

from __future__ import annotations

from config import load_settings
from local.summary import closing
from tests.stack import Stack

STARTED = 1_790_000_000.0


def store(stack: Stack, table: str, ts: float, mt: str, m: str) -> None:
    stack.query(f"INSERT INTO mexc_data.{table} SELECT fromUnixTimestamp64Milli({ts * 1000:.0f}), '{mt}', '{m}'")


def said(stack: Stack) -> list[str]:
    return closing(load_settings(stack.env, None), STARTED).split("\n")


def test_where_each_symbol_was_stored_all_is_well_with_the_newest_prices(stack: Stack) -> None:
    stack.clickhouse()
    stack.setup()
    for table, price in [("btc", "84055.10"), ("eth", "2384.60"), ("sol", "151.2")]:
        store(stack, table, STARTED + 2, "t", f"{price}|1|1|1|0.00000000")
        store(stack, table, STARTED + 1, "t", "1|1|1|1|0.00000000")
        store(stack, table, STARTED - 1, "dl", "of an earlier run")
    stack.query("RENAME TABLE mexc_data.eth TO mexc_data.eth_compacting_0123abcd")  # when its collector was stopped
    assert said(stack) == [
        "All is well. Stored in this run: 6 records.",
        "Last prices: BTC_USDT 84055.10, ETH_USDT 2384.60, SOL_USDT 151.2",
    ]


def test_symbols_without_rows_and_with_dead_letters_are_named(stack: Stack) -> None:
    stack.clickhouse()
    stack.setup()
    store(stack, "btc", STARTED - 1, "t", "1|1|1|1|0.00000000")
    store(stack, "eth", STARTED + 1, "dl", "what")
    assert said(stack) == [
        "Look at this: BTC_USDT stored nothing; ETH_USDT has 1 dead letter; SOL_USDT stored nothing."
        " Stored in this run: 1 record."
    ]


def test_what_only_a_history_has_counts_and_a_table_that_was_turned_over_is_well(stack: Stack) -> None:
    stack.clickhouse()
    stack.env["HISTORY"] = "1"
    stack.setup()
    for table, price in [("btc", "84055.10"), ("eth", "2384.60"), ("sol", "151.2")]:
        stack.query(
            f"INSERT INTO mexc_data.{table}_history (n, ts, mt, m) SELECT number, fromUnixTimestamp64Milli(number),"
            f" 't', '{price}|1|1|1|0.00000000' FROM numbers({STARTED * 1000:.0f} - 2, 4)"
        )
    stack.query("INSERT INTO mexc_data.btc_history (n, ts, mt) SELECT 9, fromUnixTimestamp64Milli(9), 'dl'")
    store(stack, "sol", STARTED + 1, "t", "151.3|1|1|1|0.00000000")  # which its history has not got
    assert said(stack) == [
        "All is well. Stored in this run: 7 records.",
        "Last prices: BTC_USDT 84055.10, ETH_USDT 2384.60, SOL_USDT 151.3",
    ]


def test_without_clickhouse_that_is_what_is_said(stack: Stack) -> None:
    assert said(stack) == [f"ClickHouse at 127.0.0.1:{stack.port} cannot be reached: connection refused"]

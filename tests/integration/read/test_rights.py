"""What users of ClickHouse who may only read can look at, by profile and grants, in a real engine.

The engine shows what is in `system` to everybody; a server shows everybody `tables`, `columns` and `settings` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config import load_settings
from pipeline.read import load
from pipeline.store.client import connect, permitted
from pipeline.store.history import Beginning, record
from tests.limited_clickhouse import limited
from tests.stack import Stack, open_stack

READER = "GRANT SELECT ON mexc_data.*"
READ_ONLY = "<readonly>1</readonly>"
IN_ORDER = "<max_threads>1</max_threads>"
DEALS = 3_000


def filled(directory: Path, **env: str) -> Stack:
    """Return a running ClickHouse with deals, books and tickers of a quarter of an hour."""
    stack = Stack(directory)
    stack.env |= env
    stack.clickhouse()
    stack.setup()
    columns = (
        "number AS n, fromUnixTimestamp64Milli(toInt64(1790812800000 + 300 * number)) AS ts,"
        " ['d', 'dp', 't'][1 + number % 3] AS mt,"
        " ['84000.1|7|2', '[84000,3]|[84000.1,4]', '84055|84063.8||546882118|0.00007200'][1 + number % 3] AS m"
    )
    for part in range(3):
        numbers = f"numbers({part * DEALS}, {DEALS})"
        stack.query(f"INSERT INTO mexc_data.btc SELECT ts, mt, m FROM (SELECT {columns} FROM {numbers})")
        if "HISTORY" in env:
            rows = f"SELECT n + 1, ts, ts, ts, mt, 0, m FROM (SELECT {columns} FROM {numbers})"
            stack.query(f"INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) {rows}")
    if "HISTORY" in env:
        tables = "SELECT name, comment FROM system.tables WHERE database = 'mexc_data' AND engine = 'StripeLog'"
        for name, token in stack.query(tables):
            record(connect(load_settings(stack.env, None)), "mexc_data", name, token, Beginning(0, 0, 0, 1))
    return stack


def reports(stack: Stack) -> Iterator[tuple[str, int, str]]:
    """Yield what each of the commands that look says, with its exit code."""
    out = stack.directory / "out"
    for command in (
        ["verif.py"],
        ["verif.py", "--quality"],
        ["verif.py", "--max-age", "1e9"],
        ["verif.py", "--html", stack.directory / "page.html"],
        ["verif.py", "--audit", "--from", "2026-10-01T00:00", "--to", "2026-10-01T00:10"],
        ["plot.py", "btc", "--out", stack.directory / "btc.png"],
        ["export.py", "btc", "--type", "deals", "--out", out],
        ["export.py", "btc", "--type", "candles", "--out", out],
    ):
        process = stack.run(*command)
        yield " ".join(map(str, command[:2])), process.wait(), process.output


@pytest.mark.parametrize("history", [False, True], ids=["table", "history"])
def test_a_reader_can_look_at_all(tmp_path: Path, history: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/SETTINGS.md has this user: of a history, nothing needs max_threads."""
    stack = filled(tmp_path, **({"HISTORY": "1"} if history else {}))
    try:
        limited(stack, READ_ONLY + IN_ORDER * (not history), READER)
        expected = {"verif.py --max-age": 3, "verif.py --audit": 1}  # eth has no rows; nobody answers for MEXC
        for command, code, said in reports(stack):
            assert code == expected.get(command, 0), said
            assert "ClickHouse" not in said.replace("Total ClickHouse", "") or "user" not in said, said
        for name, value in stack.env.items():
            monkeypatch.setenv(name, value)
        assert len(load("btc", "deals")) == DEALS
    finally:
        stack.close()


def test_without_order_it_says_which_setting_that_needs(tmp_path: Path) -> None:
    stack = filled(tmp_path)
    try:
        limited(stack, READ_ONLY + "<max_threads>4</max_threads>", READER)
        refused = (
            f"ClickHouse at 127.0.0.1:{stack.port} does not let user default do that: Cannot modify 'max_threads'"
            " setting in readonly mode. (READONLY); rows come in the order they are stored in with max_threads = 1"
            " only: have that in the user's profile, or read from a history (HISTORY=1)"
        )
        unordered = ("verif.py", "verif.py --max-age")
        for command, code, said in reports(stack):
            if command in unordered:
                assert "READONLY" not in said
            else:
                assert (code, said.splitlines()[-1]) == (1, refused), said
    finally:
        stack.close()


def test_a_missing_right_is_one_line_that_grants_it(tmp_path: Path) -> None:
    stack = filled(tmp_path)
    try:
        limited(stack, "", "GRANT SELECT(ts, mt) ON mexc_data.btc")
        process = stack.run("verif.py", "--quality")
        assert process.wait() == 1
        (line,) = process.lines
        server = f"ClickHouse at 127.0.0.1:{stack.port}"
        assert line == f"{server} does not let user default do that: GRANT SELECT ON mexc_data.btc TO default"
    finally:
        stack.close()


def test_optional_settings_are_sent_where_they_may_be(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        wanted: dict[str, Any] = {"max_threads": 1, "max_execution_time": 0, "no_such_setting": 1}
        with connect(load_settings(stack.env, None)) as client:
            assert permitted(client, wanted) == wanted
        limited(stack, "<constraints><max_threads><const/></max_threads></constraints>", READER)
        with connect(load_settings(stack.env, None)) as client:
            assert permitted(client, wanted) == {"max_execution_time": 0, "no_such_setting": 1}

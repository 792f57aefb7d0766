"""ch_setup.py, as a user runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_driver import Client

import ch_setup
from config import ALL_CONFIGS, PROJECT, load_settings
from pipeline.store import compact, schema
from pipeline.store.client import connect
from tests.stack import Process, Stack, free_port, open_stack

SUMMARY = [
    "",
    "Setup Summary:",
    "  BTC data: btc table → btc/data.bin (continuous growth)",
    "  ETH data: eth table → eth/data.bin (continuous growth)",
    "  SOL data: sol table → sol/data.bin (continuous growth)",
]
FIRST_RUN = [
    "Dropping system log tables to prevent storage bloat...",
    "Creating append-only btc table (btc/data.bin equivalent)...",
    "Creating append-only eth table (eth/data.bin equivalent)...",
    "Creating append-only sol table (sol/data.bin equivalent)...",
    *SUMMARY,
]
LATER_RUN = [
    "Dropping system log tables to prevent storage bloat...",
    "Keeping append-only btc table, it exists",
    "Keeping append-only eth table, it exists",
    "Keeping append-only sol table, it exists",
    *SUMMARY,
]

Rows = list[tuple[object, ...]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse, fresh at first, for all tests of this module."""
    with open_stack(tmp_path_factory.mktemp("setup")) as opened:
        opened.clickhouse()
        yield opened


@pytest.fixture(scope="module")
def first_run(stack: Stack) -> Process:
    """ch_setup.py as it has run on the fresh ClickHouse."""
    return stack.run("ch_setup.py")


@pytest.fixture
def filled(stack: Stack, first_run: Process) -> Stack:
    """ClickHouse with the tables, and a row in each."""
    assert stack.run("ch_setup.py", "--reset", "--yes").wait() == 0
    for config in ALL_CONFIGS:
        name = config["table_name"]
        stack.query(f"INSERT INTO mexc_data.{name} SELECT fromUnixTimestamp64Milli(1788335242156), 'd', '77525.9|3|2'")
    return stack


def tables(stack: Stack) -> Rows:
    """Return all that must stay the same, of each table but that of the collectors' claims."""
    query = (
        "SELECT name, uuid, comment, engine, total_rows FROM system.tables"
        " WHERE database = 'mexc_data' AND name != 'collectors' ORDER BY 1"
    )
    found: Rows = stack.query(query)
    return found


def answer(stack: Stack, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ch_setup.py and type `text`."""
    command = [sys.executable, "ch_setup.py", *options]
    return subprocess.run(command, cwd=PROJECT, env=stack.env, input=text, capture_output=True, text=True, check=False)


def test_the_first_run_says_what_it_does(first_run: Process) -> None:
    assert first_run.wait() == 0
    assert first_run.lines == FIRST_RUN


def test_each_table_has_its_columns_its_uuid_and_a_token_of_its_own(filled: Stack) -> None:
    found = tables(filled)
    assert [(name, str(uuid), engine) for name, uuid, _, engine, _ in found] == [
        (config["table_name"], config["uuid"], "StripeLog") for config in ALL_CONFIGS
    ]
    tokens = {str(comment) for _, _, comment, _, _ in found}
    assert len(tokens) == 3
    assert all(len(token) == 16 for token in tokens)
    for config in ALL_CONFIGS:
        assert filled.query(f"SELECT name, type FROM system.columns WHERE table = '{config['table_name']}'") == [
            ("ts", "DateTime64(3)"),
            ("mt", "Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4)"),
            ("m", "String"),
        ]


def test_the_data_lies_where_the_uuid_says(filled: Stack) -> None:
    store = filled.data / "store"
    for config in ALL_CONFIGS:
        assert (store / config["uuid"][:3] / config["uuid"] / "data.bin").is_file()
    assert {path.parent.parent.name for path in store.rglob("data.bin")} == {"b7c", "e74", "507"}


def test_a_second_run_changes_nothing(filled: Stack) -> None:
    before = tables(filled)
    again = filled.run("ch_setup.py")
    assert again.wait() == 0
    assert again.lines == LATER_RUN
    assert tables(filled) == before
    assert filled.rows() == [(1788335242156, "d", "77525.9|3|2")]


def test_system_log_tables_are_dropped_and_named_others_stay(filled: Stack) -> None:
    for name in ("query_log", "metric_log_3", "our_catalog"):
        filled.query(f"CREATE TABLE system.{name} (a Int8) ENGINE = MergeTree ORDER BY a")
    filled.query("CREATE VIEW system.view_log AS SELECT 1")
    again = filled.run("ch_setup.py")
    assert again.lines[:3] == [
        LATER_RUN[0],
        "  Dropped system.metric_log_3",
        "  Dropped system.query_log",
    ]
    assert again.lines[3:] == LATER_RUN[1:]
    left = filled.query("SELECT name FROM system.tables WHERE database = 'system' AND engine IN ('MergeTree', 'View')")
    assert sorted(left) == [("our_catalog",), ("view_log",)]


def test_reset_gives_empty_tables_with_new_tokens_under_the_same_uuids(filled: Stack) -> None:
    before = tables(filled)
    reset = filled.run("ch_setup.py", "--reset", "--yes")
    assert reset.wait() == 0
    for name in ("btc", "eth", "sol"):
        deleted = reset.lines.index(f"Deleting {name} table...")
        assert reset.lines[deleted + 1] == f"Creating append-only {name} table ({name}/data.bin equivalent)..."
    after = tables(filled)
    assert [(name, uuid) for name, uuid, *_ in after] == [(name, uuid) for name, uuid, *_ in before]
    assert not {comment for _, _, comment, *_ in after} & {comment for _, _, comment, *_ in before}
    assert [filled.count(name) for name in ("btc", "eth", "sol")] == [0, 0, 0]


def test_reset_deletes_a_table_that_a_compaction_has_just_renamed(
    filled: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tables(filled)
    tables_of = compact.tables_of

    def list_and_rename(client: Client, database: str, name: str) -> dict[str, str]:
        found = tables_of(client, database, name)
        if name in found and found[name] in {token for _, _, token, *_ in before}:
            filled.query(f"RENAME TABLE mexc_data.{name} TO mexc_data.{name}_compacting_00c0ffee")
        return found

    monkeypatch.setattr(ch_setup, "tables_of", list_and_rename)
    settings = load_settings(filled.env, dotenv=None)
    assert ch_setup.set_up(connect(settings), settings, reset=True) == 0
    assert capsys.readouterr().out.count("Creating append-only") == 3
    after = tables(filled)
    assert [(name, uuid) for name, uuid, *_ in after] == [(name, uuid) for name, uuid, *_ in before]
    assert not {comment for _, _, comment, *_ in after} & {comment for _, _, comment, *_ in before}


def test_a_database_that_gives_no_uuids_is_told_what_to_do(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        settings = load_settings(stack.env, dotenv=None)
        client = connect(settings, query_settings={"allow_deprecated_database_ordinary": 1})
        client.execute("CREATE DATABASE mexc_data ENGINE = Ordinary")
        setup = stack.run("ch_setup.py")
    assert setup.wait() == 1
    assert re.fullmatch(
        r"ClickHouse at \S+ reports error 80: .* mexc_data is not Atomic.*:"
        r" make it anew with ENGINE = Atomic, or give another one in CLICKHOUSE_DATABASE",
        setup.lines[-1],
    )


def test_several_at_once_on_a_fresh_server(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        setups = [stack.start("ch_setup.py") for _ in range(4)]
        assert [setup.wait() for setup in setups] == [0] * 4, [setup.output for setup in setups]
        assert [name for name, *_ in tables(stack)] == ["btc", "eth", "sol"]


def test_a_compaction_that_begins_amid_it_is_left_alone(
    filled: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tables(filled)
    existing_tables = schema.existing_tables

    def rename_and_list(client: Client, database: str) -> dict[str, str]:
        monkeypatch.setattr(ch_setup, "existing_tables", existing_tables)
        filled.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00c0ffee")
        return existing_tables(client, database)

    monkeypatch.setattr(ch_setup, "existing_tables", rename_and_list)
    settings = load_settings(filled.env, dotenv=None)
    assert ch_setup.set_up(connect(settings), settings, reset=False) == 0
    assert "mexc_data.btc is back: " in capsys.readouterr().out
    assert tables(filled) == before


def test_reset_asks_first_and_yes_goes_on(filled: Stack) -> None:
    done = answer(filled, "yes\n", "--reset")
    assert done.returncode == 0
    question = "This deletes ALL DATA in the tables btc, eth, sol of mexc_data.\nType yes to go on: "
    assert done.stdout.startswith(question + FIRST_RUN[0])
    assert filled.count() == 0


@pytest.mark.parametrize("text", ["no\n", "y\n", "\n", ""])
def test_reset_deletes_nothing_unless_told_yes(filled: Stack, text: str) -> None:
    before = tables(filled)
    done = answer(filled, text, "--reset")
    assert done.returncode == 1
    assert done.stdout.endswith("Nothing was deleted.\n")
    assert tables(filled) == before


def test_a_table_of_another_engine_is_left_alone(filled: Stack) -> None:
    filled.query("DROP TABLE mexc_data.btc SYNC")
    filled.query("CREATE TABLE mexc_data.btc (a Int8) ENGINE = Memory")
    refused = filled.run("ch_setup.py")
    assert refused.wait() == 1
    assert refused.lines[-1] == "mexc_data.btc exists with engine Memory, not StripeLog: rename or drop it first"
    assert filled.query("SELECT engine FROM system.tables WHERE name = 'btc'") == [("Memory",)]


def test_a_second_database_is_refused_for_a_uuid_is_one_tables(filled: Stack) -> None:
    before = tables(filled)
    refused = filled.run("ch_setup.py", CLICKHOUSE_DATABASE="other")
    assert refused.wait() == 1
    assert refused.lines == [
        FIRST_RUN[0],
        "other.btc cannot be created, its UUID is that of mexc_data.btc: a server holds it once",
    ]
    assert tables(filled) == before


def test_a_wrong_password_is_one_line_at_once(stack: Stack) -> None:
    refused = stack.run("ch_setup.py", CLICKHOUSE_PASSWORD="wrong")
    assert refused.wait() == 2
    assert refused.lines == [
        f"ClickHouse at 127.0.0.1:{stack.port} refuses user default: check CLICKHOUSE_USER (from the environment) and"
        " CLICKHOUSE_PASSWORD (from the environment)"
    ]


def test_an_unusable_setting_is_one_line(stack: Stack) -> None:
    refused = stack.run("ch_setup.py", CLICKHOUSE_PORT="native")
    assert refused.wait() == 2
    assert refused.lines == ["CLICKHOUSE_PORT=native is not a whole number"]


def test_a_server_that_comes_up_late_is_waited_for(tmp_path: Path) -> None:
    with open_stack(tmp_path) as late:
        setup = late.start("ch_setup.py")
        setup.wait_for("cannot be reached")
        late.clickhouse()
        assert setup.wait() == 0
        line = f"ClickHouse at 127.0.0.1:{late.port} cannot be reached: connection refused"
        assert setup.lines == [f"{line}; waiting up to 60 s for it", *FIRST_RUN]


def test_a_server_that_does_not_come_up_is_one_line_after_the_wait(stack: Stack) -> None:
    port = free_port()
    setup = stack.run("ch_setup.py", "--wait", "1", CLICKHOUSE_PORT=port)
    assert setup.wait() == 1
    line = f"ClickHouse at 127.0.0.1:{port} cannot be reached: connection refused"
    assert setup.lines == [f"{line}; waiting up to 1 s for it", line]


def test_ctrl_c_ends_the_wait_without_a_traceback(stack: Stack) -> None:
    setup = stack.start("ch_setup.py", CLICKHOUSE_PORT=free_port())
    setup.wait_for("waiting up to 60 s")
    assert setup.stop(signal.SIGINT) == 130
    assert len(setup.lines) == 1

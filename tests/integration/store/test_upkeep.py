"""Compaction for collectors that may not: a process of its own, as docker-compose.yml runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config import load_settings
from pipeline.store import upkeep as upkeep_module
from pipeline.store.client import connect
from pipeline.store.compact import count_small_blocks, tables_of
from pipeline.store.upkeep import Upkeep
from tests.stack import Stack


def small_blocks(stack: Stack, name: str = "btc") -> int:
    return count_small_blocks(load_settings(stack.env, dotenv=None), name)


def insert(stack: Stack, count: int) -> None:
    for number in range(count):
        stack.query(f"INSERT INTO mexc_data.btc VALUES ({1788335242156 + number}, 'd', '77525.9|{number}|2')")


def test_a_table_of_many_blocks_is_compacted(running: Stack) -> None:
    insert(running, 30)
    before = running.rows()
    upkeep = running.start("-m", "pipeline.store.upkeep", COMPACT_BLOCKS=20)
    upkeep.wait_for("^Compacted mexc_data.btc: 30 rows; 30 blocks before, 1 now")
    assert upkeep.stop() == 0
    assert running.rows() == before
    assert "mexc_data.eth" not in upkeep.output


def test_one_that_has_fewer_rows_than_before_is_counted_from_there(
    running: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was turned over, or old rows were dropped."""
    settings = replace(load_settings(running.env, dotenv=None), compact_blocks=20)
    monkeypatch.setattr(upkeep_module, "_SHARE", 0)
    upkeep = Upkeep(settings, "btc")
    insert(running, 30)
    upkeep.look()
    running.query("TRUNCATE TABLE mexc_data.btc")  # stands for either
    upkeep.look()
    insert(running, 25)
    upkeep.look()
    assert small_blocks(running) == 1


def test_one_of_few_blocks_stays(running: Stack) -> None:
    insert(running, 10)
    upkeep = running.start("-c", ONE_ROUND, COMPACT_BLOCKS=20)
    assert upkeep.wait() == 0
    assert upkeep.lines == []
    assert small_blocks(running) == 10


def test_with_compaction_off_it_only_brings_back_what_was_cut_short(running: Stack) -> None:
    insert(running, 10)
    running.query("RENAME TABLE mexc_data.btc TO mexc_data.btc_compacting_00c0ffee")
    upkeep = running.start("-c", ONE_ROUND, COMPACT_BLOCKS=0)
    assert upkeep.wait() == 0
    assert upkeep.lines == [
        "Bringing mexc_data.btc back: its compaction was cut short",
        "mexc_data.btc is back: 10 rows",
    ]
    settings = load_settings(running.env, dotenv=None)
    assert list(tables_of(connect(settings), "mexc_data", "btc")) == ["btc"]


def test_it_waits_for_tables_and_for_the_server(stack: Stack) -> None:
    upkeep = stack.start("-c", ONE_ROUND)
    assert upkeep.wait() == 0
    assert len(upkeep.lines) == 3
    assert all("stays as it is for now: ClickHouse at" in line for line in upkeep.lines)
    stack.clickhouse()
    upkeep = stack.start("-c", ONE_ROUND)
    assert upkeep.wait() == 0
    assert upkeep.lines == []


def test_a_setting_that_cannot_be_used_is_exit_code_2(stack: Stack) -> None:
    upkeep = stack.start("-m", "pipeline.store.upkeep", COMPACT_BLOCKS="many")
    assert upkeep.wait() == 2
    assert upkeep.lines == ["COMPACT_BLOCKS=many is not a whole number"]


ONE_ROUND = """
import sys, time, types
from pipeline.store import upkeep

def interrupt(seconds):
    raise KeyboardInterrupt

upkeep.time = types.SimpleNamespace(monotonic=time.monotonic, sleep=interrupt)
sys.exit(upkeep.main())
"""

"""Fixtures that every kind of test may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config import ALL_CONFIGS
from tests.stack import Stack, open_stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Real processes below a directory of the test's own; nothing is started yet."""
    with open_stack(tmp_path) as opened:
        yield opened


@pytest.fixture
def running(stack: Stack) -> Stack:
    """ClickHouse with its tables set up."""
    stack.clickhouse()
    stack.setup()
    return stack


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where an export of the test goes; nothing is there yet."""
    return tmp_path / "out"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """ClickHouse with its tables, for all tests of a file that leave them there."""
    with open_stack(tmp_path_factory.mktemp("served")) as opened:
        opened.clickhouse()
        opened.setup()
        yield opened


@pytest.fixture
def empty(served: Stack) -> Stack:
    """The tables of `served` without rows."""
    for config in ALL_CONFIGS:
        served.query(f"TRUNCATE TABLE mexc_data.{config['table_name']}")
    return served

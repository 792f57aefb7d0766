"""Fixtures that every kind of test may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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

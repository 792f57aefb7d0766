"""The steps of docs/TOOLS.md, word for word, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from config import PROJECT
from pipeline.times import parse_time, to_ms
from tests.days import market_rows, store
from tests.stack import Stack

pytestmark = [pytest.mark.tools, pytest.mark.timeout(400)]

STEPS = re.findall(r"```bash\n(.*?)```", (PROJECT / "docs/TOOLS.md").read_text(), re.DOTALL)
OF_THE_PROJECT = ("export.py", "replay.py", "config.py", "pipeline", "venv-tools")


def test_each_step_works_as_it_stands(running: Stack, tmp_path: Path) -> None:
    start = to_ms(parse_time("2026-10-01"))
    rows = list(market_rows("BTC_USDT", [(start, start + 180_000)]))
    store(running, rows)
    others = list(market_rows("ETH_USDT", [(start, start + 20_000)]))
    store(running, others, "eth")
    folder = tmp_path / "project"
    folder.mkdir()
    for name in OF_THE_PROJECT:
        (folder / name).symlink_to(PROJECT / name)
    env = running.env | {"PATH": f"{PROJECT / 'venv/bin'}:{os.environ['PATH']}", "SPARK_LOCAL_IP": "127.0.0.1"}
    printed = ""
    for step in STEPS:
        command = ["bash", "-euo", "pipefail", "-c", step]
        ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, step + ran.stdout + ran.stderr
        printed += ran.stdout
    assert len(STEPS) == 10
    deals = sum(row.mt == "d" for row in rows)
    backtest, catalog = (int(count) for count in re.findall(r"^trades: (\d+)$", printed, re.MULTILINE))
    assert backtest > 0
    assert catalog == deals
    assert "84" in printed.split("volume")[1]  # freqtrade's candles
    assert re.search(r"^return: -?[0-9.e-]+$", printed, re.MULTILINE)
    of_both = deals + sum(row.mt == "d" for row in others)
    assert f"\ndeals: {deals} of {of_both}\n" in printed
    assert re.search(
        r"PartitionFilters: \[.*symbol#\d+ = BTC_USDT.*date#\d+ >= 2026-10-01.*PushedFilters: \[\]", printed
    )
    assert re.search(rf"^bot: {deals} deals, [1-9]\d* orders, [+-]\d+\.\d\d USDT a bitcoin$", printed, re.MULTILINE)
    assert re.search(r"^All pushed up to 2026-10-01T00:0\S+: [\d,]+ rows$", printed, re.MULTILINE)
    assert list((folder / "backtest/csv").rglob("part-0.csv"))

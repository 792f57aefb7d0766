"""The tables and views that ch_setup.py makes, on engines below and above the 24.3 that Docker has by default.

What was seen on which, and what was not tried there, is in docs/ENGINES.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pyarrow.dataset import dataset

from config import PROJECT, load_settings
from pipeline.store.client import connect
from pipeline.store.history import Beginning, record
from pipeline.store.schema import comment_of
from pipeline.times import parse_time, to_ms
from tests.days import market_rows, store
from tests.old_clickhouse import ENGINES, old_clickhouse
from tests.stack import Stack, open_stack

pytestmark = pytest.mark.engines

VERSIONS = {"1.4.1": "23.10", "2.0.4": "24.5"}
DAY = to_ms(parse_time("2026-10-01"))
BOOK = "[[100.5,3,1],[100.4,0,1]]|[[100.6,7,2]]"


CLAIMING = """
import sys, chdb
from pipeline.collect.lease import _CLAIM
from pipeline.store.schema import _CLAIMS

def claim(owner):
    values = {"name": "btc", "owner": owner, "lock": owner, "who": owner, "since": 0, "good": 10}
    return _CLAIM.format(claims="claims") % {name: repr(value) for name, value in values.items()}

calls = [_CLAIMS.format(name="claims"), claim("one"), claim("two"), claim("one")]
counted = "SELECT owner, count() FROM claims GROUP BY owner"
print(chdb.query(";".join([*calls, counted]), "CSV", path=sys.argv[1]))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_claim_keeps_others_away(tmp_path: Path, version: str) -> None:
    """All in one call: the claims are in memory, and these engines forget that with the call."""
    path = os.pathsep.join([str(ENGINES / version), str(PROJECT)])
    command = [sys.executable, "-c", CLAIMING, str(tmp_path)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ['"one",2'], result.stderr


@pytest.fixture(params=VERSIONS)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """ClickHouse of that version, with tables and histories."""
    assert (ENGINES / request.param).is_dir(), "make test-engines puts it there"
    with open_stack(tmp_path) as opened:
        opened.env["HISTORY"] = "1"
        server = old_clickhouse(opened, request.param)
        assert f"ClickHouse {VERSIONS[request.param]}." in server.output
        opened.setup()
        yield opened


def test_rows_go_in_and_come_out_in_order_and_views_have_the_numbers(stack: Stack) -> None:
    rows = [(1_788_335_242_000 + n, "d", f"{n}.5|2|1") for n in range(1, 6)]
    for row in rows:
        stack.client.execute(
            "INSERT INTO mexc_data.btc (ts, mt, m) SELECT fromUnixTimestamp64Milli(toInt64(%(ts)s)), %(mt)s, %(m)s",
            dict(zip(("ts", "mt", "m"), row, strict=True)),
        )
    assert stack.rows() == rows
    insert = "INSERT INTO mexc_data.btc_history (n, ts, received, event, mt, id, m) SELECT number, 1, 1, 1, "
    stack.query(f"{insert} 'd', number, concat(toString(number), '.5|2|1') FROM numbers(5)")
    stack.query(f"{insert} 'dp', 9, '{BOOK}' FROM numbers(1)")
    stack.setup()  # keeps all
    assert stack.rows() == rows
    deals = stack.query("SELECT id, price, contracts, side FROM mexc_data.btc_deals ORDER BY n")
    assert deals == [(n, Decimal(n) + Decimal("0.5"), 2, "buy") for n in range(5)]
    books = stack.query("SELECT bid, bid_contracts, ask, ask_contracts, bids FROM mexc_data.btc_depth")
    assert books == [(Decimal("100.5"), 3, Decimal("100.6"), 7, [(Decimal("100.5"), 3)])]


def test_what_reads_and_rewrites_tables_and_histories(stack: Stack) -> None:
    rows = list(market_rows("BTC_USDT", [(DAY, DAY + 60_000)]))
    for half in (rows[:300], rows[300:]):
        store(stack, half)
    stored = stack.rows()
    with connect(load_settings(stack.env, dotenv=None)) as client:
        token = comment_of(client, "mexc_data", "btc")
        record(client, "mexc_data", "btc", token, Beginning(0, len(rows), 0, len(rows) + 1))

    def run(*command: object, history: int) -> list[str]:
        process = stack.run(*command, HISTORY=history)
        assert process.wait() == 0, process.output
        return process.lines

    assert f"checked {len(rows)} rows" in "".join(run("ch_setup.py", "--history", history=1))
    seen = [run("verif.py", "--quality", history=history) for history in (0, 1)]
    assert seen[0] == seen[1]
    assert f"Total records appended: {len(rows)}" in run("verif.py", history=1)
    for history in (0, 1):
        run("export.py", "btc", "--type", "deals", "--out", stack.directory / str(history), history=history)
    tables = [dataset(stack.directory / str(history)).to_table() for history in (0, 1)]
    assert tables[0].num_rows == sum(row.mt == "d" for row in rows)
    assert tables[1].select(tables[0].column_names) == tables[0]
    if not stack.query("SELECT count() FROM system.tables WHERE database = 'system' AND name = 'disks'")[0][0]:
        return  # it asks how much room there is, which a server of this version tells, too
    for module, rewrite in (("compact", "compact"), ("turnover", "turn_over")):
        code = f"from pipeline.store.{module} import *; print(*{rewrite}(load_settings(), 'btc'))"
        run("-c", f"from config import load_settings; {code}", history=1)
        assert stack.rows() == stored[{"compact": 0, "turn_over": len(stored)}[rewrite] :]
    assert run("verif.py", "--quality", history=1) == seen[0]

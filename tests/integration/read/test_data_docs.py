"""The examples of docs/DATA.md are run as they stand, and their answers are those of plain Python.

So are those of the README that look at what is stored or use it, with no package but those that its set-up installs.
"""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config import PROJECT, load_settings
from local.market import frames
from pipeline.messages import Row, parse_frame
from pipeline.store.client import connect
from tests.stack import Stack, open_stack

TEXT = (PROJECT / "docs" / "DATA.md").read_text()
EXAMPLES = dict(re.findall(r"\n## ([^\n]+)\n[^`]*\n```python\n(.*?)```", TEXT, re.DOTALL))


README = (PROJECT / "README.md").read_text()
LOOK_AT_IT, USE_IT = (README.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Look at it", "Use it"))


COLUMNS = "'ts DateTime64(3), mt String, m String'"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


FIRST, LAST = ms("2026-10-01"), ms("2026-10-02")  # of the day that the examples are about
PIECES = ("2026-09-30T23:59:40", "2026-10-01T11:00:00", "2026-10-01T11:01:00", "2026-10-01T23:59:40")


def simulated() -> list[Row]:
    """Return the rows of 40 seconds at several times, across the day's ends and with gaps in between."""
    rows = []
    for seed, piece in enumerate(PIECES):
        elapsed = 0.0
        for delay, frame in frames("BTC_USDT", seed, ms(piece)):
            elapsed += delay
            if elapsed > 40:
                break
            rows += parse_frame(frame, "BTC_USDT", 0).rows
        rows.append(Row(rows[-1].ts_ms, "dp", "[84000,5]|"))  # and a book with one side
    return rows


ROWS = simulated()


def of_the_day(mt: str) -> list[Row]:
    return [row for row in ROWS if row.mt == mt and FIRST <= row.ts_ms < LAST]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("data")) as stack:
        stack.clickhouse()
        stack.setup()
        with connect(load_settings(stack.env, dotenv=None)) as client:
            client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [row[:3] for row in ROWS])
        yield stack


def required(file: str) -> set[str]:
    """Return the names of all packages that a file of requirements brings, those that they need included."""
    found: set[str] = set()
    wanted = [Requirement(line) for line in (PROJECT / file).read_text().splitlines() if line and line[0] != "#"]
    while wanted:
        each = wanted.pop()
        name = canonicalize_name(each.name)
        if name not in found and (each.marker is None or each.marker.evaluate({"extra": ""})):
            found.add(name)
            wanted += [Requirement(text) for text in metadata.requires(each.name) or []]
    return found


@pytest.fixture(scope="module")
def newcomer(archive: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PYTHONPATH that hides what the tests' environment has beyond that of setup.sh."""
    installed = required("requirements.txt")
    hidden = sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not installed & {canonicalize_name(package) for package in packages}
    )
    directory = tmp_path_factory.mktemp("newcomer")
    (directory / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n")
    return directory


def test_a_newcomer_has_what_setup_sh_installs_and_no_more(archive: Stack, newcomer: Path) -> None:
    needed = "pandas, pyarrow, clickhouse_driver, pipeline.store.repair"
    assert archive.run("-c", f"import {needed}", PYTHONPATH=newcomer).wait() == 0
    for module in ("duckdb", "polars", "chdb"):
        process = archive.run("-c", f"import {module}", PYTHONPATH=newcomer)
        assert process.wait() == 1
        assert "ModuleNotFoundError" in process.output


def answer(archive: Stack, title: str) -> list[str]:
    """Run an example; return the lines that it prints."""
    process = archive.run("-c", EXAMPLES[title])
    assert process.wait() == 0, process.output
    return process.lines


def printed_in_the_document(title: str) -> list[str]:
    found = re.search(rf"\n## {title}\n.*?```\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found[1].splitlines()


def test_there_are_three_examples_and_all_of_them_are_tested() -> None:
    assert list(EXAMPLES) == ["A day's candles", "The average spread by hour", "The depth around one large deal"]
    assert TEXT.count("```python") == 3


def test_a_days_candles(archive: Stack) -> None:
    hours = defaultdict(list)
    for row in of_the_day("d"):
        price, contracts, _ = row.m.split("|")
        hours[datetime.fromtimestamp(row.ts_ms // 3_600_000 * 3600, UTC)].append((float(price), int(contracts)))
    assert len(hours) == 3
    title = "A day's candles"
    heading, *lines = answer(archive, title)
    assert heading.split() == printed_in_the_document(title)[0].split()
    for line, (start, deals) in zip(lines, hours.items(), strict=True):
        prices = [price for price, _ in deals]
        expected = [prices[0], max(prices), min(prices), prices[-1], sum(size for _, size in deals), len(deals)]
        day, time, *numbers = line.split()
        assert f"{day} {time}" == str(start)
        assert [float(number) for number in numbers] == expected


def test_the_average_spread_by_hour(archive: Stack) -> None:
    standing: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for book, following in pairwise(of_the_day("dp")):
        bids, asks = book.m.split("|")
        if bids and asks:
            spread = float(asks[1:].split(",")[0]) - float(bids[1:].split(",")[0])
            seconds = min((following.ts_ms - book.ts_ms) / 1000, 10.0)
            totals = standing[book.ts_ms // 3_600_000 % 24]
            totals[0] += spread * seconds
            totals[1] += seconds
    assert len(standing) == 3
    title = "The average spread by hour"
    heading, *lines = answer(archive, title)
    assert heading == printed_in_the_document(title)[0]
    for line, (hour, (weighted, seconds)) in zip(lines, standing.items(), strict=True):
        assert [float(number) for number in line.split()] == [hour, pytest.approx(weighted / seconds, abs=1e-6)]


def test_the_depth_around_one_large_deal(archive: Stack) -> None:
    deal = max(of_the_day("d"), key=lambda row: int(row.m.split("|")[1]))
    price, contracts, direction = deal.m.split("|")
    ts_ms = deal.ts_ms
    books = [row for row in ROWS if row.mt == "dp" and ts_ms - 2_000 <= row.ts_ms < ts_ms + 2_000]
    assert len(books) > 2
    sums: dict[float, list[int]] = defaultdict(lambda: [0, 0])
    for row in books:
        for place, text in enumerate(row.m.split("|")):
            sums[(row.ts_ms - ts_ms) / 1000][place] += sum(map(int, re.findall(r",(\d+)\]", text)))
    title = "The depth around one large deal"
    summary, *table = answer(archive, title)
    shown = printed_in_the_document(title)
    side = {"1": "buy", "2": "sell"}[direction]
    at = datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")
    assert summary.startswith(f"{side} {contracts} contracts at {float(price)} at {at}")
    assert [line.split() for line in table[:2]] == [line.split() for line in shown[1:3]]
    expected = [[seconds, *both] for seconds, both in sorted(sums.items())]
    assert [[float(number) for number in line.split()] for line in table[2:]] == expected


def test_each_example_says_so_where_there_is_no_data(tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        for title, example in EXAMPLES.items():
            process = stack.run("-c", example)
            assert re.search(r"LoadError: There are no (deals|depth) of (BTC_USDT|btc) yet", process.lines[-1]), title


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2026-09-03T05:00:00", "2026-10-01T23:59:59.999", "2026-10-02T00:00:00"], "2026-10-01"),
        (["2026-10-02T00:00:00", "2026-09-03T05:00:00"], "2026-09-03"),  # with a gap of days
        (["2026-10-01T05:00:00", "2026-10-01T06:00:00"], "2026-10-01"),  # the only day
    ],
)
def test_the_newest_whole_day(tmp_path: Path, times: list[str], expected: str) -> None:
    with open_stack(tmp_path) as stack:
        stack.clickhouse()
        stack.setup()
        rows = [f"('{time}', 'd', '1|1|1')" for time in times] + ["('2026-10-05 05:00:00', 't', '1|1|1|1|0.1')"]
        stack.query(f"INSERT INTO mexc_data.btc (ts, mt, m) SELECT * FROM VALUES({', '.join([COLUMNS, *rows])})")
        script = "from pipeline.read import newest_day; print(*newest_day('BTC_USDT', 'deals'))"
        process = stack.run("-c", script)
        start = datetime.fromisoformat(f"{expected}T00:00:00+00:00")
        assert process.output == f"{start} {start + timedelta(days=1)}"


def test_the_reports_of_the_readme(archive: Stack, newcomer: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^python3 ((?:verif|plot)\.py.*?) +#", LOOK_AT_IT, re.MULTILINE)
    assert len(commands) == LOOK_AT_IT.count("python3 ") >= 5
    for command in commands:
        command = re.sub(r"\S+\.(?:html|png)\b", lambda found: str(tmp_path / found[0]), command)
        report = archive.start(*command.split(), PYTHONPATH=newcomer)
        if "--watch" in command:
            report.wait_for("^btc ")
            report.stop(signal.SIGINT)
        else:  # for --max-age, sol has no row at all
            assert report.wait() == (3 if "--max-age" in command else 0), report.output
    assert (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def files(archive: Stack, newcomer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `archive` is, made by the commands of the README."""
    directory = tmp_path_factory.mktemp("files")
    commands = re.findall(r"^python3 (export\.py .* --out) (\w+)$", USE_IT, re.MULTILINE)
    assert len(commands) == USE_IT.count("python3 ") == 3
    for command, out in commands:
        export = archive.run(*command.split(), directory / out, PYTHONPATH=newcomer)
        assert export.wait() == 0, export.output
    return directory


def test_the_files_of_the_readme(archive: Stack, newcomer: Path, files: Path) -> None:
    shown = re.findall(r"^archive/(.*\.parquet)$", USE_IT, re.MULTILINE)
    assert len(shown) == 2
    deals, candles = (pyarrow.parquet.read_table(files / "archive" / path, partitioning=None) for path in shown)
    assert len(deals) == len(of_the_day("d"))
    assert sum(candles["deals"].to_pylist()) == len(deals)
    example, _ = re.findall(r"```python\n(.*?)```", USE_IT, re.DOTALL)
    reading = archive.start("-c", example, cwd=files, PYTHONPATH=newcomer)
    assert reading.wait() == 0, reading.output
    days = [line.split()[-3:] for line in reading.lines if "2026-" in line]
    sizes = [float(row.m.split("|")[1]) for row in ROWS if row.mt == "d"]
    assert sum(int(count) for _, count, _ in days) == len(sizes)
    assert sum(float(contracts) for _, _, contracts in days) == sum(sizes)
    assert ["2026-10-01", str(len(deals))] in [day[:2] for day in days]


def test_the_python_of_the_readme(archive: Stack, newcomer: Path) -> None:
    _, example = re.findall(r"```python\n(.*?)```", USE_IT, re.DOTALL)
    process = archive.run("-c", example, PYTHONPATH=newcomer)
    assert process.wait() == 0, process.output
    headings = [line.split() for line in process.lines if "start" in line or "bid_price" in line]
    assert [heading[0] for heading in headings] == ["start", "ts"]


def test_each_tool_reads_the_files(archive: Stack, files: Path) -> None:
    table = TEXT.split("\n## Files, for other tools\n")[1].split("\n## ")[0]
    readers = re.findall(r"^\| (\w+)[^|]*\| `(.*)` \|$", table, re.MULTILINE)
    assert [tool for tool, _ in readers] == ["pandas", "Polars", "DuckDB", "ClickHouse"]
    expected = sum(row.mt == "d" for row in ROWS)
    for tool, reader in readers[:-1]:
        module = tool.lower()
        script = f"import {module}\nread = {reader}\nprint(len(read), {{'symbol', 'date'}} <= set(read.columns))"
        reading = archive.start("-c", script, cwd=files)
        assert reading.wait() == 0, reading.output
        assert reading.lines == [f"{expected} True"], tool
    (query,) = (reader.replace("/full/path/to", str(files)) for tool, reader in readers if tool == "ClickHouse")
    assert len(archive.query(query)) == expected

"""plot.py: what the figures show is what is stored."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from playwright.sync_api import Browser

import plot
from config import BTC_CONFIG, find_symbol, load_settings
from pipeline.messages import DEAL, Row
from pipeline.read.decode import candles, decode
from pipeline.show import interactive, picture
from pipeline.show.chart import COLORS, Chart, read_chart
from pipeline.store.client import connect
from pipeline.times import from_ms, iso
from tests.days import market_rows, store
from tests.integration.show.test_page import Opened, browser  # noqa: F401
from tests.stack import Stack

START = 1_790_851_500_000  # 2026-10-01T10:45:00Z
GAPS = [(60_000, 95_000), (180_000, 300_000)]  # after it
SPANS = [(START, START + 60_000), (START + 95_000, START + 180_000), (START + 300_000, START + 360_000)]
RANGE = (START, START + 360_000)
assert BTC_CONFIG["contract"]
SIZE = float(BTC_CONFIG["contract"].size)


def rows() -> list[Row]:
    """Return a market with two gaps; deals that were filled in late, odd books, and rows that do not decode."""
    made = list(market_rows("BTC_USDT", SPANS, seed=5))
    last = next(row for row in made if row.mt == "d" and row.ts_ms >= START + 300_000)
    late = [Row(START + 30_000, "d", "83000.1|7|1"), Row(last.ts_ms, "d", "85000.3|25.000000000000000000000|2")]
    odd = [Row(START + 31_000, "d", "none of|MEXC's|1"), Row(START + 31_000, "d", "1.5.3|1|1")]
    books = [Row(START + 59_000, "dp", text) for text in ("[1,1]|", "|[2,1]", "|", "[1]|[[")]
    return [*made, *late, *odd, *books]


ROWS = rows()


@pytest.fixture(scope="module")
def archive(served: Stack) -> Stack:
    store(served, ROWS)
    return served


def chart_of(stack: Stack, table: str, start: datetime | None = None, end: datetime | None = None) -> Chart:
    settings = load_settings(stack.env, dotenv=None)
    config = find_symbol(table)
    assert config
    with connect(settings) as client:
        return read_chart(client, settings, config, start, end)


@pytest.fixture(scope="module")
def chart(archive: Stack) -> Chart:
    return chart_of(archive, "btc", *map(from_ms, RANGE))


@pytest.fixture(scope="module")
def page(chart: Chart) -> go.Figure:
    return interactive.draw(chart)


@pytest.fixture(scope="module")
def drawn(chart: Chart) -> Figure:
    return picture.draw(chart)


@pytest.fixture(scope="module")
def expected() -> pa.Table:
    """The candles of the archive."""
    deals = [row for row in ROWS if row.mt == "d"]
    contract = BTC_CONFIG["contract"]
    assert contract
    table = decode(DEAL, [row.ts_ms for row in deals], [row.m for row in deals], contract_size=contract.size).table
    return candles(table, "5s")


def trace(page: go.Figure, name: str) -> dict[str, Any]:
    (found,) = (each for each in page.data if each.name == name)
    return {axis: np.array(found[axis]) for axis in ("x", "y", "z", "open", "high", "low", "close") if axis in found}


def test_candles_are_those_of_the_archive(chart: Chart, page: go.Figure, drawn: Figure, expected: pa.Table) -> None:
    assert chart.candles
    assert chart.candles.interval == "5s"
    assert chart.unit == "BTC"
    assert max(expected["high"].to_pylist()) == 85000.3
    shown = trace(page, "candles of 5s")
    assert shown["x"].tolist() == expected["start"].cast(pa.int64()).to_pylist()
    for name in ("open", "high", "low", "close"):
        assert shown[name].tolist() == expected[name].to_pylist()
    assert trace(page, "volume")["y"].tolist() == pytest.approx(expected["coins"].to_pylist(), rel=1e-12)
    price, volume = drawn.axes[:2]
    bodies = [(bar.get_y(), bar.get_height()) for bar in bars(price)]
    opened, closed = (expected[name].to_numpy() for name in ("open", "close"))
    assert bodies == list(zip(np.minimum(opened, closed), np.abs(opened - closed), strict=True))
    wicks = [tuple(np.array(line.vertices)[:, 1]) for line in price.collections[0].get_paths()]
    assert wicks == list(zip(expected["low"].to_pylist(), expected["high"].to_pylist(), strict=True))
    assert [bar.get_height() for bar in bars(volume)] == chart.candles.volume.tolist()


def bars(panel: object) -> list[Rectangle]:
    """Return the bars of candles and volume, which have their colors."""
    patches: list[Rectangle] = panel.patches  # type: ignore[attr-defined]
    return [bar for bar in patches if to_hex(bar.get_facecolor()) in (COLORS["up"], COLORS["down"])]


def books() -> list[tuple[int, list[list[tuple[float, float]]]]]:
    """Return the books with both sides, as they are in plain Python: a time, then price and amount of each level."""
    found = []
    for row in ROWS:
        sides = [re.findall(r"\[([\d.]+),([\d.]+)\]", side) for side in row.m.split("|")] if row.mt == "dp" else []
        if all(sides) and len(sides) == 2:
            found.append((row.ts_ms, [[(float(price), float(size)) for price, size in side] for side in sides]))
    return found


def test_mid_and_spread_are_those_of_the_books(page: go.Figure, drawn: Figure) -> None:
    by_second = defaultdict(list)
    for ts, ((bid, *_), (ask, *_)) in books():
        by_second[ts // 1000 * 1000 + 500].append((bid[0], ask[0]))
    mids = {second: np.mean([(bid + ask) / 2 for bid, ask in each]) for second, each in by_second.items()}
    spreads = {second: np.mean([ask - bid for bid, ask in each]) for second, each in by_second.items()}
    for name, averages in (("mid", mids), ("spread", spreads)):
        shown = trace(page, name)
        is_there = ~np.isnan(shown["y"])
        assert shown["x"][is_there].tolist() == list(averages)
        assert shown["y"][is_there].tolist() == pytest.approx(list(averages.values()), abs=0.005)
        assert (~is_there).sum() == len(GAPS)  # at which the line is broken
        panel = drawn.axes[0 if name == "mid" else 2]
        assert np.array_equal(panel.lines[0].get_ydata(), shown["y"], equal_nan=True)


def test_two_books_in_five_days_are_shown_when_they_were(archive: Stack) -> None:
    begin, step = START + 86_400_000, 433_000
    moments = [begin + hours * 3_600_000 for hours in (1, 7)]
    store(archive, [Row(ts, "dp", "[84000,1]|[84001,1]") for ts in moments])
    times = [ts // step * step + step / 2 for ts in moments]
    chart = chart_of(archive, "btc", from_ms(begin), from_ms(begin + 5 * 86_400_000))
    page, drawn = interactive.draw(chart), picture.draw(chart)
    for name, panel in (("mid", drawn.axes[0]), ("spread", drawn.axes[2])):
        shown = trace(page, name)
        assert shown["x"][[0, -1]].tolist() == times
        assert np.isnan(shown["y"]).tolist() == [False, True, False]  # no line leads from one to the other: dots
        (found,) = (each for each in page.data if each.name == name)
        assert (found.marker.size > 0).tolist() == [True, False, True]
        line = panel.lines[0]
        assert np.array(line.get_xdata())[[0, -1]] * 86_400_000 == pytest.approx(times, abs=1)
        assert line.get_markevery() == [0, 2]


def test_depth_is_what_the_standing_books_offer(chart: Chart, page: go.Figure, drawn: Figure) -> None:
    depth = chart.depth
    assert depth
    assert depth.width == 0.1
    assert len(depth.amounts) % 2 == 0
    step, apart = depth.step_ms, 100
    assert step == 1000
    known = books()
    for column in (0, 30, 62, 69, 80, 97, 200, 359):
        begin = depth.start_ms + column * step
        amounts: list[dict[int, float]] = []
        for moment in range(begin, min(begin + step, RANGE[1]), apart):
            before = [book for book in known if book[0] < moment + apart]
            if before and moment - before[-1][0] < 10_000:
                amounts.append(offered(before[-1][1]))
        shown = depth.amounts[:, column]
        if not amounts:
            assert np.isnan(shown).all()
            assert column in (80, 200)
            continue
        half = len(shown) // 2
        for place in range(-half, half):
            average = sum(each.get(place, 0) for each in amounts) / len(amounts)
            assert shown[half + place] == pytest.approx(average * SIZE), (column, place)
    heat = trace(page, "depth")
    assert np.array_equal(heat["z"], depth.amounts, equal_nan=True)
    assert heat["x"][[0, -1]].tolist() == [depth.start_ms, depth.start_ms + depth.amounts.shape[1] * step]
    assert heat["y"][[0, -1]].tolist() == pytest.approx([-half * 0.1, half * 0.1])
    (mesh,) = (each for each in drawn.axes[3].collections if each.get_array() is not None)
    assert np.array_equal(np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan), depth.amounts, equal_nan=True)


def offered(book: list[list[tuple[float, float]]]) -> dict[int, float]:
    """Return the contracts by their distance from the mid, in whole tenths of USDT; bids are below 0."""
    bids, asks = book
    found: dict[int, float] = defaultdict(float)
    middle = round(bids[0][0] * 10) + round(asks[0][0] * 10)  # twice the mid, in tenths
    for price, size in bids:
        found[-((middle - 2 * round(price * 10)) // 2) - 1] += size
    for price, size in asks:
        found[(2 * round(price * 10) - middle) // 2] += size
    return found


def silent(mt: str, limit_ms: int) -> list[tuple[int, int]]:
    times = sorted([RANGE[0], RANGE[1], *(row.ts_ms for row in ROWS if row.mt == mt)])
    return [(before, after) for before, after in pairwise(times) if after - before > limit_ms]


def test_gaps_are_shaded_and_named(chart: Chart, page: go.Figure, drawn: Figure) -> None:
    silences: list[tuple[int, int]] = []
    for start, end in sorted([*silent("dp", 10_000), *silent("t", 30_000)]):
        if silences and start <= silences[-1][1]:
            start, end = silences[-1][0], max(end, silences.pop()[1])
        silences.append((start, end))
    assert [(gap.start_ms, gap.end_ms) for gap in chart.quality.uncovered] == silences
    assert len(silences) == len(GAPS)
    assert [(shape.x0, shape.x1) for shape in page.layout.shapes] == silences
    assert all(shape.yref == "paper" for shape in page.layout.shapes)  # over all rows
    assert any(str(each.name).startswith("gap: no books for over 10 s") for each in page.data)
    for panel in drawn.axes[:4]:
        spans = [bar for bar in panel.patches if to_hex(bar.get_edgecolor()) == COLORS["gap"]]
        found = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in spans]  # type: ignore[attr-defined]
        assert [[round(day * 86_400_000) for day in span] for span in found] == [list(span) for span in silences]
    assert "gap: no books for over 10 s" in drawn.legends[0].get_texts()[-1].get_text()


def test_what_a_picture_says_of_itself(chart: Chart, drawn: Figure) -> None:
    assert chart.title.startswith("2026-10-01 10:45 to 2026-10-01 10:51 UTC · 5")
    assert "% covered, 2 gaps, longest 2 min 2 s" in chart.title
    assert [text.get_text() for text in drawn.texts] == ["BTC_USDT", chart.title]
    drawn.draw_without_rendering()
    labels = [label.get_text() for label in drawn.axes[3].get_xticklabels()]
    assert {"10:45", "10:50"} <= set(labels)
    assert drawn.axes[3].xaxis.get_offset_text().get_text() == "2026-10-01, UTC"


def test_no_label_is_cut_off(chart: Chart) -> None:
    assert chart.candles
    names = ("open", "high", "low", "close")
    near = {name: 84_001 + (getattr(chart.candles, name) - 84_001) / 10_000 for name in names}
    wide = picture.draw(replace(chart, candles=replace(chart.candles, **near), prices={}))
    ticks = [label.get_text() for label in wide.axes[0].get_yticklabels()]
    assert max(map(len, ticks)) > len("84,000"), ticks
    wide.draw_without_rendering()
    boxes = [panel.yaxis.get_tightbbox() for panel in wide.axes]
    assert all(box and box.x0 >= 0 for box in boxes)


BEGIN = "SELECT toDateTime64('2023-01-01 00:00:00', 3)"
FIVE_SECONDS_A_DAY = "intDiv(number, 2) * 86400 + number % 2 * 5"
LONG = f"""
    {BEGIN} + number * 3600, 'd', concat(toString(100 + number % 7), '|1|1') FROM numbers(24 * 365 * 3)
    UNION ALL {BEGIN} + {FIVE_SECONDS_A_DAY}, 'dp', '[99,1],[98,1]|[100,1]' FROM numbers(2 * 365 * 3)
    UNION ALL {BEGIN} + {FIVE_SECONDS_A_DAY}, 't', '100||||' FROM numbers(2 * 365 * 3)
"""


def test_three_years_are_as_small_as_a_day(archive: Stack) -> None:
    archive.query(f"INSERT INTO mexc_data.eth (ts, mt, m) {LONG}")
    chart = chart_of(archive, "eth")
    assert chart.candles
    assert chart.candles.interval == "28d"
    assert chart.candles.volume.sum() == pytest.approx(24 * 365 * 3 * 0.01)
    assert chart.depth
    assert chart.depth.amounts.shape[1] <= 400
    assert chart.prices
    assert len(chart.prices["times"]) <= 2000
    assert len(chart.quality.uncovered) > 1000
    assert len(chart.gaps) <= 400
    assert sum(count for *_, count, _ in chart.gaps) == len(chart.quality.uncovered)


# The command


@dataclass
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(
    archive: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Run plot.py with some arguments, in an empty folder."""
    for name, value in archive.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["plot.py", *arguments])
        try:
            code = plot.main()
        except SystemExit as error:
            code = int(error.code or 0)
        return Ended(code, *capsys.readouterr())

    yield run
    archive.query("TRUNCATE TABLE mexc_data.sol")


OF_RANGE = [f"--{name}={iso(moment)}" for name, moment in zip(("from", "to"), RANGE, strict=True)]


def test_a_picture_is_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "btc.PNG").write_text("of before")
    assert run("btc", *OF_RANGE, "--out", "btc.PNG") == Ended(0, f"Written: {tmp_path / 'btc.PNG'}\n", "")
    pixels = imread(io.BytesIO((tmp_path / "btc.PNG").read_bytes()), format="png")
    assert pixels.shape[:2] == (1209, 1440)
    assert [path.name for path in tmp_path.iterdir()] == ["btc.PNG"]


@pytest.mark.browser
def test_a_page_is_written_that_asks_for_nothing(run: Run, tmp_path: Path, browser: Browser) -> None:  # noqa: F811
    assert run("BTC_USDT", *OF_RANGE, "--out", "btc.html") == Ended(0, f"Written: {tmp_path / 'btc.html'}\n", "")
    opened = Opened(browser, tmp_path / "btc.html", viewport={"width": 600, "height": 900})
    opened.page.wait_for_selector(".heatmaplayer image")
    assert opened.page.title().startswith("BTC_USDT · 2026-10-01 10:45 to ")
    assert (opened.requests, opened.complaints) == ([opened.url], [])
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 600
    assert opened.page.locator(".shapelayer path").count() == len(GAPS)
    opened.context.close()


NOTHING = "there are no rows in this range: verif.py --quality says what there is"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("btc --from 2031-01-01 --out a.png", 1, f"BTC_USDT: {NOTHING}"),
        ("btc --from 2026-09-01 --to 2026-09-02 --out a.png", 1, f"BTC_USDT: {NOTHING}"),
        ("sol --out a.png", 1, "SOL_USDT: there are no rows"),
        ("doge --out a.png", 2, "There is no symbol doge in config.py or SYMBOLS: give some of "),
        ("btc --from 2026-10-02 --to 2026-10-01 --out a.png", 2, "plot.py: error: --from has to be before --to"),
        ("btc --from never --out a.png", 2, "plot.py: error: argument --from: never is no time: give a UTC date or "),
        ("btc --out a.jpg", 2, "plot.py: error: argument --out: a.jpg is neither: give a name that ends in .png or"),
        ("btc --out no/a.png", 2, "plot.py: error: argument --out: no/a.png cannot be written: give a file in a "),
        ("btc --out /proc/a.png", 1, "/proc/a.png cannot be written: "),
    ],
)
def test_what_cannot_be_plotted_is_a_line(run: Run, tmp_path: Path, arguments: str, code: int, line: str) -> None:
    ended = run(*arguments.split(), *(OF_RANGE if "/proc" in arguments else ()))
    assert (ended.code, ended.out) == (code, "")
    *usage, last = ended.err.splitlines()
    assert last.startswith(line)
    assert not usage or usage[0].startswith("usage: ")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("rows", "out", "code", "line"),
    [
        (["d|140.5|3|1"], "a.png", 0, "SOL_USDT: there are no order books with both sides in this range"),
        (
            ["d|140.5|3|1", "dp|[140,5]|", "dp||[141,5]"],
            "a.html",
            0,
            "SOL_USDT: there are no order books with both sides in ",
        ),
        (["dp|[140,5]|[141,5]"], "a.html", 0, "SOL_USDT: there are no deals in this range"),
        (["dp|[140,5]|[140,5]"], "a.png", 0, "SOL_USDT: there are no deals in this range"),  # crossed
        (
            ["d|0|0|1", "dp|[140,0]|[141,5]"],
            "a.png",
            0,
            "SOL_USDT: there are no order books with both sides in this range",
        ),
        (["t|140|||1|"], "a.png", 1, "SOL_USDT: there are no deals and no order books with both sides in this range"),
    ],
)
def test_what_there_is_is_plotted(
    run: Run, archive: Stack, tmp_path: Path, rows: list[str], out: str, code: int, line: str
) -> None:
    for number, row in enumerate(rows):
        mt, _, text = row.partition("|")
        store(archive, [Row(START + number, mt, text)], "sol")
    ended = run("sol", "--out", out)
    assert (ended.code, ended.err.startswith(line), ended.err.count("\n")) == (code, True, 1)
    assert (tmp_path / out).exists() == (code == 0)


@pytest.mark.parametrize(("out", "package"), [("a.png", "matplotlib"), ("a.html", "plotly")])
def test_without_its_package_it_says_which(archive: Stack, tmp_path: Path, out: str, package: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    process = archive.run("plot.py", "btc", "--out", tmp_path / out, PYTHONPATH=tmp_path)
    assert process.wait() == 2
    assert process.output.startswith(f"Python has no package {package} here: ")
    assert len(process.lines) == 1

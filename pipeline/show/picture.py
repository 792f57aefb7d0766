"""A chart as a picture, by Matplotlib.

In: a pipeline.show.chart.Chart. Out: a Figure, of which `savefig` makes a PNG. Times are UTC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from pipeline.human import length
from pipeline.show.chart import COLORS, GAP, HEAT, Candles, Chart, Depth, alone

_DAY = 86_400.0  # seconds: Matplotlib's unit of time
_TIMES = ["%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M", "%H:%M:%S"]
_FIRST_TIMES = ["", "%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M"]
_OFFSETS = ["UTC", "UTC", "%Y, UTC", "%Y-%m-%d, UTC", "%Y-%m-%d, UTC", "%Y-%m-%d, UTC"]
_LEFT = 0.1  # of the width, left of the plot, where the labels need no more
_EDGE = 0.006  # of the width, left of the labels
_LABEL = 0.009  # of the width of the plot, that a letter of a gap's label takes


def draw(chart: Chart) -> Figure:
    """Return the picture of a chart."""
    figure = Figure(figsize=(10, 8.4), dpi=144, facecolor="white")
    grid = figure.add_gridspec(4, 2, width_ratios=(1, 0.012), height_ratios=(5, 1.3, 1.3, 3), hspace=0.1, wspace=0.02)
    figure.subplots_adjust(left=_LEFT, right=0.925, top=0.868, bottom=0.06)
    price = figure.add_subplot(grid[0, 0])
    volume, spread, depth = (figure.add_subplot(grid[row, 0], sharex=price) for row in (1, 2, 3))
    if chart.candles:
        _candles(price, volume, chart.candles)
    else:
        _say(volume, "no deals")
    if chart.prices:
        _prices(price, spread, chart.prices)
    else:
        _say(spread, "no order books with both sides")
    if chart.depth:
        _depth(figure, depth, figure.add_subplot(grid[3, 1]), chart.depth, chart.unit)
    else:
        _say(depth, "no order books with both sides")
    names = "USDT", f"volume\n{chart.unit}", "spread\nUSDT", "depth\nUSDT from the mid"
    for panel, name in zip((price, volume, spread, depth), names, strict=True):
        _frame(panel, name)
        _gaps(panel, chart, 1.5 if panel is depth else 0.5)
    for panel, is_from_zero in ((price, False), (volume, True), (spread, True)):
        _scale(panel, is_from_zero)
    _label_gaps(price, chart)
    _times(chart, price, volume, spread, depth)
    figure.align_ylabels()
    left = _LEFT + max(0.0, _cut_off(figure, price, volume, spread, depth))
    figure.subplots_adjust(left=left)
    _head(figure, chart, left)
    return figure


def _cut_off(figure: Figure, *panels: Axes) -> float:
    """Return what of the width is missing at the left: prices a tenth apart have longer labels than whole ones."""
    boxes = (panel.yaxis.get_tightbbox() for panel in panels)
    return _EDGE - float(min(box.x0 for box in boxes if box)) / figure.bbox.width


def _head(figure: Figure, chart: Chart, left: float) -> None:
    figure.text(left, 0.966, chart.symbol, size=19, weight="bold", color=COLORS["ink"], va="center")
    figure.text(left, 0.93, chart.title, size=10.5, color=COLORS["faint"], va="center")
    shown: list[Patch | Line2D] = []
    if chart.candles:
        shown += [
            Patch(color=COLORS["up"], label=f"candles of {chart.candles.interval}, rising"),
            Patch(color=COLORS["down"], label="falling"),
        ]
    if chart.prices:
        shown.append(Line2D([], [], color=COLORS["mid"], linewidth=1.6, label="mid"))
    if chart.gaps:
        shown.append(Patch(facecolor=_faded(COLORS["gap"]), edgecolor=COLORS["gap"], hatch="////", label=GAP))
    figure.legend(
        handles=shown, loc="center left", bbox_to_anchor=(left - 0.006, 0.897), ncols=len(shown), frameon=False,
        fontsize=10, labelcolor=COLORS["faint"], handlelength=1.3, handletextpad=0.5, columnspacing=1.6, borderpad=0,
    )  # fmt: skip


def _candles(price: Axes, volume: Axes, candles: Candles) -> None:
    step = candles.interval_ms / 1000 / _DAY
    middle = candles.start_ms / 1000 / _DAY + step / 2
    colors = np.where(candles.close >= candles.open, COLORS["up"], COLORS["down"]).tolist()
    price.vlines(middle, candles.low, candles.high, colors=colors, linewidth=1)
    price.bar(
        middle, np.abs(candles.close - candles.open), 0.72 * step, np.minimum(candles.open, candles.close),
        color=colors, edgecolor=colors, linewidth=0.8,
    )  # fmt: skip
    volume.bar(middle, candles.volume, 0.72 * step, color=colors, alpha=0.75)


def _prices(price: Axes, spread: Axes, prices: dict[str, list[float | None]]) -> None:
    columns = {name: np.array(prices[name], np.float64) for name in ("times", "mid", "spread", "widest")}
    times = (columns["times"] + float(prices["step"]) / 2) / _DAY  # type: ignore[arg-type]
    dots: dict[str, Any] = {"marker": ".", "markersize": 3, "markevery": np.flatnonzero(alone(columns["mid"])).tolist()}
    price.plot(times, columns["mid"], color=COLORS["mid"], linewidth=0.9, **dots)
    spread.fill_between(times, columns["spread"], columns["widest"], color=COLORS["mid"], alpha=0.25, linewidth=0)
    spread.plot(times, columns["spread"], color=COLORS["mid"], linewidth=1.1, **dots)


def _depth(figure: Figure, panel: Axes, bar: Axes, depth: Depth, unit: str) -> None:
    colors = LinearSegmentedColormap.from_list("depth", HEAT)
    norm = PowerNorm(0.7, 0, depth.much, clip=True)
    mesh = panel.pcolormesh(
        depth.edges_ms / 1000 / _DAY, depth.edges, depth.amounts, cmap=colors, norm=norm, rasterized=True
    )
    panel.axhline(0, color=COLORS["mid"], linewidth=0.9, zorder=1.2)
    panel.set_ylim(depth.edges[0], depth.edges[-1])
    for height, side, where in ((0.97, "asks", "top"), (0.03, "bids", "bottom")):
        panel.text(
            0.006, height, side, transform=panel.transAxes, va=where, size=10.5, color=COLORS["ink"],
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    figure.colorbar(mesh, cax=bar, extend="max")
    bar.set_title(unit, size=9.5, color=COLORS["faint"], loc="left", pad=6)
    bar.tick_params(length=0, labelsize=9.5, labelcolor=COLORS["faint"])
    ticks = np.asarray(MaxNLocator(4).tick_values(0, depth.much))
    bar.yaxis.set_major_locator(FixedLocator(ticks[ticks <= depth.much].tolist()))
    bar.yaxis.set_major_formatter(_numbers(bar))


def _frame(panel: Axes, name: str) -> None:
    panel.set_ylabel(name, size=10.5, color=COLORS["faint"])
    panel.grid(color=COLORS["line"], linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, labelsize=10.5, labelcolor=COLORS["ink"])
    panel.spines[:].set_color(COLORS["line"])
    panel.yaxis.set_major_locator(MaxNLocator(7 if name == "USDT" else 5 if name.startswith("depth") else 3))
    panel.yaxis.set_major_formatter(_numbers(panel))


def _numbers(panel: Axes) -> FuncFormatter:
    return FuncFormatter(lambda value, _: _number(value, panel.yaxis.get_majorticklocs().tolist()))


def _number(value: float, ticks: Sequence[float]) -> str:
    """Return a number with the digits that tell a tick from the next one."""
    apart = min(np.diff(ticks)) if len(ticks) > 1 else abs(value) or 1.0
    digits = max(0, -math.floor(math.log10(apart) + 1e-9))
    while digits < 12 and any(abs(round(tick, digits) - tick) > apart / 1000 for tick in ticks):
        digits += 1
    return f"{value:,.{digits}f}"


def _scale(panel: Axes, is_from_zero: bool) -> None:
    """Leave some room above, and below what is not from zero on."""
    low, high = panel.dataLim.intervaly
    if low <= high:  # else there is nothing in it
        low = min(low, 0.0) if is_from_zero else low
        room = (high - low or abs(high) * 1e-3 or 1.0) * 0.06
        panel.set_ylim(low if is_from_zero and low == 0 else low - room, high + room)


def _gaps(panel: Axes, chart: Chart, zorder: float) -> None:
    for start, end, *_ in chart.gaps:
        panel.axvspan(
            start / _DAY, end / _DAY, facecolor=_faded(COLORS["gap"]), edgecolor=COLORS["gap"], linewidth=0.9,
            hatch="////", zorder=zorder,
        )  # fmt: skip


def _label_gaps(panel: Axes, chart: Chart) -> None:
    """Write how long a gap is where there is room for it."""
    width = (chart.end_ms - chart.start_ms) / 1000
    for start, end, count, seconds in chart.gaps:
        text = length(seconds) if count == 1 else f"{count} gaps"
        if end - start > _LABEL * width * len(text):
            panel.text(
                (start + end) / 2 / _DAY, 0.97, text, transform=panel.get_xaxis_transform(), ha="center", va="top",
                size=10, color=COLORS["ink"], bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2},
            )  # fmt: skip


def _times(chart: Chart, *panels: Axes) -> None:
    *upper, lowest = panels
    for panel in upper:
        panel.tick_params(labelbottom=False)
    lowest.set_xlim(chart.start_ms / 1000 / _DAY, chart.end_ms / 1000 / _DAY)
    locator = dates.AutoDateLocator(minticks=4, maxticks=10)  # type: ignore[no-untyped-call]
    lowest.xaxis.set_major_locator(locator)
    formats = None, _TIMES, _OFFSETS, _FIRST_TIMES
    lowest.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, *formats))  # type: ignore[no-untyped-call]
    lowest.tick_params(axis="x", pad=8)  # clear of the lowest price beside it
    lowest.xaxis.get_offset_text().set_color(COLORS["faint"])


def _say(panel: Axes, text: str) -> None:
    panel.text(
        0.5, 0.5, f"{text} in this range", transform=panel.transAxes, ha="center", va="center", size=11,
        color=COLORS["faint"],
    )  # fmt: skip


def _faded(color: str) -> tuple[str, float]:
    return color, 0.22

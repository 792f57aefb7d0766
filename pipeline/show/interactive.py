"""A chart as a page to zoom and to point at, by Plotly.

In: a pipeline.show.chart.Chart. Out: a Figure, and the text of one HTML page that needs nothing else: it loads nothing,
and says so in its Content-Security-Policy. Times are UTC.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipeline.show.chart import COLORS, GAP, HEAT, Candles, Chart, Depth, alone

_HEIGHTS = (0.5, 0.12, 0.12, 0.26)  # of price, volume, spread, depth
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{symbol} · {title}</title>
<style>
  html, body {{ margin: 0; height: 100%; background: #ffffff; color: {ink}; font: 1rem/1.4 {font}; }}
  body {{ display: flex; flex-direction: column; min-height: 44rem; }}
  header {{ padding: 0.8rem 1rem 0; }}
  h1 {{ margin: 0; font-size: 1.4rem; }}
  p {{ margin: 0.1rem 0 0; color: {faint}; font-size: 0.9rem; }}
  main {{ flex: 1; min-height: 0; }}
</style>
</head>
<body>
<header><h1>{symbol}</h1><p>{title}</p></header>
<main>{plot}</main>
</body>
</html>
"""


def page(chart: Chart) -> str:
    """Return the page of a chart."""
    buttons = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]
    config = {"responsive": True, "displaylogo": False, "scrollZoom": True, "modeBarButtons": [buttons]}
    plot = draw(chart).to_html(full_html=False, include_plotlyjs=True, config=config, default_height="100%")
    words = {"symbol": escape(chart.symbol), "title": escape(chart.title)}
    return _PAGE.format(policy=_POLICY, font=_FONT, ink=COLORS["ink"], faint=COLORS["faint"], plot=plot, **words)


def draw(chart: Chart) -> go.Figure:
    """Return the figure of a chart: rows of price, volume, spread and depth. Times are milliseconds since the epoch."""
    figure = make_subplots(rows=4, cols=1, shared_xaxes=True, row_heights=_HEIGHTS, vertical_spacing=0.025)
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "color": COLORS["ink"], "size": 12},
        margin={"l": 16, "r": 16, "t": 8, "b": 12},
        legend={"orientation": "h", "x": 0, "y": 1.005, "yanchor": "bottom", "font": {"color": COLORS["faint"]}},
        hovermode="x unified",
        hoversubplots="axis",
        bargap=0.28,
        dragmode="zoom",
    )
    if chart.candles:
        _add_candles(figure, chart.candles, chart.unit)
    if chart.prices:
        _add_prices(figure, chart.prices)
    if chart.depth:
        _add_depth(figure, chart.depth, chart.unit)
    _add_gaps(figure, chart)
    names = "USDT", f"volume<br>{chart.unit}", "spread<br>USDT", "depth<br>USDT from the mid"
    for row, name in enumerate(names, 1):
        figure.update_yaxes(
            title={"text": name, "font": {"color": COLORS["faint"], "size": 12}}, tickformat=",", automargin=True,
            gridcolor=COLORS["line"], zeroline=False, fixedrange=row > 1, row=row, col=1,
        )  # fmt: skip
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(
        type="date", range=[chart.start_ms, chart.end_ms], gridcolor=COLORS["line"], rangeslider={"visible": False},
        hoverformat="%Y-%m-%d %H:%M:%S",
    )  # fmt: skip
    figure.update_xaxes(
        title={"text": "UTC", "standoff": 2, "font": {"color": COLORS["faint"], "size": 12}}, row=4, col=1
    )
    return figure


def _add_candles(figure: go.Figure, candles: Candles, unit: str) -> None:
    # In the middle of their interval, and called by its beginning
    period = {"xperiod": candles.interval_ms, "xperiod0": 0, "xperiodalignment": "middle"}
    rising = candles.close >= candles.open
    figure.add_trace(
        go.Candlestick(
            x=candles.start_ms, open=candles.open, high=candles.high, low=candles.low, close=candles.close,
            name=f"candles of {candles.interval}", line={"width": 1}, **period,
            increasing={"line": {"color": COLORS["up"]}, "fillcolor": COLORS["up"]},
            decreasing={"line": {"color": COLORS["down"]}, "fillcolor": COLORS["down"]},
        ),
        row=1, col=1,
    )  # fmt: skip
    figure.add_trace(
        go.Bar(
            x=candles.start_ms, y=candles.volume, name="volume", showlegend=False, opacity=0.75,
            marker={"color": np.where(rising, COLORS["up"], COLORS["down"]), "line": {"width": 0}},
            hovertemplate=f"%{{y:,.6~g}} {unit}", **period,
        ),
        row=2, col=1,
    )  # fmt: skip


def _add_prices(figure: go.Figure, prices: dict[str, Any]) -> None:
    times = (np.array(prices["times"]) + prices["step"] / 2) * 1000
    columns = {name: np.array(prices[name], np.float64) for name in ("mid", "spread", "widest")}
    number = f"%{{y:,.{prices['digits']}f}} USDT"
    dots = {"size": np.where(alone(columns["mid"]), 4, 0), "line": {"width": 0}}
    for row, column, opacity in ((1, "mid", 1), (3, "widest", 0.35), (3, "spread", 1)):
        figure.add_trace(
            go.Scatter(
                x=times, y=columns[column], name=column, mode="lines+markers", showlegend=row == 1,
                hovertemplate=number, marker=dots, line={"color": COLORS["mid"], "width": 1.2}, opacity=opacity,
                connectgaps=False,
            ),
            row=row, col=1,
        )  # fmt: skip


def _add_depth(figure: go.Figure, depth: Depth, unit: str) -> None:
    colors = [[(place / (len(HEAT) - 1)) ** (1 / 0.7), color] for place, color in enumerate(HEAT)]
    figure.add_trace(
        go.Heatmap(
            x=depth.edges_ms, y=depth.edges, z=depth.amounts, zmin=0, zmax=depth.much, colorscale=colors, name="depth",
            hovertemplate=f"%{{y:+,.6~g}} from the mid: %{{z:,.4~g}} {unit}<extra></extra>", hoverongaps=False,
            colorbar={
                "title": {"text": unit, "font": {"color": COLORS["faint"]}}, "thickness": 10, "outlinewidth": 0,
                "len": _HEIGHTS[-1], "y": 0, "yanchor": "bottom", "x": 1.01, "tickfont": {"color": COLORS["faint"]},
                "tickformat": ",", "nticks": 5,
            },
        ),
        row=4, col=1,
    )  # fmt: skip


def _add_gaps(figure: go.Figure, chart: Chart) -> None:
    """Shade gaps over all rows, and let them say how long they are."""
    if not chart.gaps:
        return
    color, faded = COLORS["gap"], "rgba(227, 162, 26, 0.28)"
    figure.update_layout(
        shapes=[
            {
                "type": "rect", "xref": "x", "yref": "paper", "x0": start * 1000, "x1": end * 1000, "y0": 0, "y1": 1,
                "fillcolor": faded, "line": {"color": color, "width": 1}, "layer": "above",
            }
            for start, end, *_ in chart.gaps
        ]
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[None], y=[None], mode="markers", name=GAP,
            marker={"symbol": "square", "color": faded, "size": 11, "line": {"color": color, "width": 1}},
        ),
        row=1, col=1,
    )  # fmt: skip

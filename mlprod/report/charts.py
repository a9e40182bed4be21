"""Charts as pictures (SVG) that stand in a page: the only door to matplotlib.

Promise: the same bytes for the same numbers; colours are the page's, so that a chart is light or dark as the page is; no text of
the user's is in a chart. A curve has at most `POINTS` points, however long the run was.
Price: a second for the import, a tenth a chart.

matplotlib's static SVG needs no script: a page stays some hundred kilobytes, and opens anywhere in twenty years. Plotly's script
alone is 4.7 MB a page. Series differ in colour (Okabe and Ito's, which colour-blind people can tell apart) and in dashes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

POINTS = 300
SIZE = (3.75, 2.3)  # inches of 96 pixels: drawn as large as a card on a phone, so that its letters are as large as the text's
WIDE_RANGE = 30.0  # of largest to smallest value, from which an axis is logarithmic

# What stands for the page's own colours until the picture is done.
INK, GRID = "#000001", "#000002"
SERIES = tuple(f"#00001{i}" for i in range(8))
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "mlprod", "text.parse_math": False, "font.size": 8.25, "font.family": "sans-serif",
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.5, "axes.linewidth": 0.7, "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve; values that are not finite leave a gap."""

    x: Sequence[float]
    y: Sequence[float]
    number: int = 0  # of its colour and dashes
    points: bool = False  # marks each point: for few
    band: bool = False  # shows how far values lie apart where several became one point


def curves(
    x: str, y: str, series: Sequence[Series], marks: Sequence[float] = (), *, unit: str = "", zero: bool = False
) -> Markup:
    """Returns a chart of curves; "" where there is nothing to be drawn.

    Args:
        x: label of the axis.
        y: label of the axis, with its unit.
        marks: places on x that get an upright line.
        unit: of y, where its ticks are to be short: 1.2 MB.
        zero: y begins at 0.
    """
    series = [s for s in series if any(map(math.isfinite, s.y))]
    if not series:
        return Markup("")
    figure, axes = _axes(x, y)
    low, high = math.inf, -math.inf
    for s in series:
        at, middle, least, most = thinned(s.x, s.y)
        style: dict[str, Any] = {"color": SERIES[s.number % 8], "linestyle": DASHES[s.number % 4]}
        dots: dict[str, Any] = {"marker": "o", "markersize": 3} if s.points or len(at) == 1 else {}
        axes.plot(at, middle, **style, **dots)
        if s.band and len(at) < len(s.x):
            axes.fill_between(at, least, most, color=style["color"], alpha=0.18, linewidth=0)
        low, high = min(low, float(np.nanmin(least))), max(high, float(np.nanmax(most)))
    for mark in marks:
        axes.axvline(mark, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=x == "step"))
    if x == "step":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if zero:
        axes.set_ylim(bottom=0, top=1.08 * high or 1)
    elif low > 0 and high / low > WIDE_RANGE:
        axes.set_yscale("log")
    if unit:
        axes.yaxis.set_major_formatter(EngFormatter(unit))
    return _svg(figure, f"{y} by {x}")


def shares(x: str, y: str, points: Sequence[Sequence[float]], *, line: bool, diagonal: bool) -> Markup:
    """Returns a chart of two shares, both axes from 0 to 1; `points`: (x, y, ...), with marks unless `line`."""
    figure, axes = _axes(x, y)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    dots: dict[str, Any] = {} if line else {"marker": "o", "markersize": 3.5}
    axes.plot(*_columns(points), color=SERIES[0], **dots)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _svg(figure, f"{y} by {x}")


def against(x: str, y: str, points: Sequence[Sequence[float]]) -> Markup:
    """Returns a chart of points (x, y, ...) in one unit, with the line on which both are equal."""
    figure, axes = _axes(x, y)
    at, values = _columns(points)
    ends = [min(at.min(), values.min()), max(at.max(), values.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.plot(at, values, color=SERIES[0], marker="o", markersize=3.5, linestyle="none")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return _svg(figure, f"{y} by {x}")


def histogram(x: str, y: str, edges: Sequence[float], counts: Sequence[Sequence[float]]) -> Markup:
    """Returns a chart of counts by bins: the first filled, those after it as outlines."""
    figure, axes = _axes(x, y)
    for number, heights in enumerate(counts):
        style: dict[str, Any] = (
            {"alpha": 0.45} if not number else {"fill": False, "linewidth": 1.5, "linestyle": DASHES[number % 4]}
        )
        axes.stairs(
            np.asarray(heights, np.float64), np.asarray(edges, np.float64), **{"fill": True, "color": SERIES[number], **style}
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return _svg(figure, f"{y} by {x}")


def _columns(points: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns float64[2, K]: the points' x and y; raises ValueError where one is text, which would stand in the chart."""
    return np.asarray([point[:2] for point in points], np.float64).T


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (x, mean y, least y, largest y), float64[K] each, of at most `POINTS` runs of neighbours."""
    at, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = np.isfinite(values)
    at, values = at[good], values[good]
    first = np.unique(np.arange(min(POINTS, len(at))) * len(at) // min(POINTS, len(at)))
    sizes = np.diff(np.append(first, len(at)))
    return (
        np.append(at, at[-1])[first + sizes - 1], np.add.reduceat(values, first) / sizes,
        np.minimum.reduceat(values, first), np.maximum.reduceat(values, first),
    )  # fmt: skip


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    """Returns a figure as an SVG element with the page's colours, and without what would stand twice in a page."""
    out = StringIO()
    with mpl.rc_context(STYLE):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<\?.*?\?>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;]*;", "", text)
    text = re.sub(r'"[^"<>]*"', lambda value: re.sub(r"(\d\.\d\d)\d+", r"\1", value[0]), text)  # attributes, not the ticks' text
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, name in {INK: "ink", GRID: "grid", **{c: f"s{i}" for i, c in enumerate(SERIES)}}.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{title}">', text)
    return Markup(re.sub(r"\s*\n\s*", "\n", text))

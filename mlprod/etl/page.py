"""The data report as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere.

Promise: the same bytes for the same report; text of the data is escaped by the template's engine and stands in no picture.
Price: a quarter of a second for imports, so this module is imported when a page is written.

Pictures are made by svg.py: a histogram without text is a few shapes, for which matplotlib would be imported for 0.7 s, draw for
20 ms each, and bring eight packages and a cache of fonts in the user's home.
svg.py escapes no text, so numbers alone are given to it.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import svg
from markupsafe import Markup

from mlprod.etl import report

WIDTH, HEIGHT = 320, 90


def render(body: Mapping[str, Any]) -> str:
    """Returns the page of a data report, see `report.body`."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    engine.filters |= {"visible": report.visible, "number": report.number}
    shown: dict[str, Any] = {"ends": ends, "picture": histogram}
    shown |= {"becomes": report.becomes, "filled": report.filled, "middle": report.middle, "share": report.share}
    template = engine.get_template("page.html")
    return template.render(body, dropped=report.DROPPED, count="{:,}".format, **shown)


def histogram(figures: Mapping[str, Any]) -> Markup:
    """Returns the picture of a histogram: the shares of train as bars, those of eval as a line."""
    shares = {split: _shares(figures[split]) for split in ("train", "eval") if sum(figures.get(split, ()))}
    top, width = max(max(part) for part in shares.values()), WIDTH / (len(figures["edges"]) - 1)
    heights = {split: [round(part / top * (HEIGHT - 4), 1) for part in parts] for split, parts in shares.items()}
    drawn: list[svg.Element] = [
        svg.Rect(class_=["train"], x=round(i * width + 0.5, 1), y=round(HEIGHT - h, 1), width=round(width - 1, 1), height=h)
        for i, h in enumerate(heights.get("train", ()))
    ]
    if "eval" in heights:
        drawn.append(svg.Path(class_=["eval"], d=_steps(heights["eval"], width)))
    return Markup(svg.SVG(viewBox=svg.ViewBoxSpec(0, 0, WIDTH, HEIGHT), extra={"aria-hidden": "true"}, elements=drawn).as_str())


def ends(c: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the ends of a column's histogram as text; bins of integers begin and end between two of them."""
    low, high = c["histogram"]["edges"][0], c["histogram"]["edges"][-1]
    return (
        (report.number(low + 0.5), report.number(high - 0.5))
        if c["type"] == "int64"
        else (report.number(low), report.number(high))
    )


def _shares(counts: list[int]) -> list[float]:
    return [n / sum(counts) for n in counts]


def _steps(heights: list[float], width: float) -> list[svg.PathData]:
    """Returns a line along the tops of the bars."""
    tops = [round(HEIGHT - h, 1) for h in heights]
    path: list[svg.PathData] = [svg.M(0, tops[0]), svg.H(round(width, 1))]
    for i, (_, y) in enumerate(pairwise(tops), 2):
        path += [svg.V(y), svg.H(round(i * width, 1))]
    return path

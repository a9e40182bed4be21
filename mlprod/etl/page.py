"""The data report as one page of HTML that needs nothing else: no script, no font, no picture from elsewhere.

Promise: the same bytes for the same report; text of the data is escaped by the template's engine and stands in no picture.
Price: a twentieth of a second for imports.

A histogram is a few shapes that the template draws: for them matplotlib would be imported for 0.7 s, draw for 20 ms each, and
bring eight packages and a cache of fonts in the user's home.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from mlprod.etl import report
from mlprod.etl.alone import MEASURES

WIDTH, HEIGHT = 320, 90


def render(body: Mapping[str, Any]) -> str:
    """Returns the page of a data report, see `report.body`."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    engine.filters |= {"visible": report.visible, "number": report.number}
    shown: dict[str, Any] = {"ends": ends, "picture": picture}
    shown |= {"becomes": report.becomes, "filled": report.filled, "middle": report.middle, "share": report.share}
    shown |= {"of_text": [name for name in report.OF_TEXT if name in body["splits"]["train"]]}
    shown |= {"told_of_text": partial(report.told_of_text, body)}
    shown |= {"means": report.MEANS, "measures": MEASURES, "mean_label": partial(report.mean_label, body)}
    template = engine.get_template("page.html")
    return template.render(body, dropped=report.DROPPED, count="{:,}".format, **shown)


def picture(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes of a histogram: a bar (x, y, width, height) a bin for train, and a path along the tops for eval."""
    shares = {split: _shares(figures[split]) for split in ("train", "eval") if sum(figures.get(split, ()))}
    top, width = max(max(part) for part in shares.values()), WIDTH / (len(figures["edges"]) - 1)
    heights = {split: [round(part / top * (HEIGHT - 4), 1) for part in parts] for split, parts in shares.items()}
    bars = [
        (round(i * width + 0.5, 1), round(HEIGHT - h, 1), round(width - 1, 1), h) for i, h in enumerate(heights.get("train", ()))
    ]
    return {"size": (WIDTH, HEIGHT), "bars": bars, "path": _steps(heights["eval"], width) if "eval" in heights else ""}


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


def _steps(heights: list[float], width: float) -> str:
    """Returns a line along the tops of the bars, as an SVG path."""
    tops = [round(HEIGHT - h, 1) for h in heights]
    steps = (f"V{y} H{round(i * width, 1)}" for i, (_, y) in enumerate(pairwise(tops), 2))
    return " ".join([f"M0 {tops[0]} H{round(width, 1)}", *steps])

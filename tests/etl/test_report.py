"""The data report of whole builds: as JSON, in the terminal, and as a page."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mlprod.config import ByColumn, ByHash, Column, Config, categorical, numeric
from mlprod.etl import page, report
from mlprod.etl.run import build, main
from mlprod.etl.stored import Stored
from mlprod.manifest import SPLITS
from tests.plain import small_config, table_text
from tests.rows import number

PART = Column(name="part", type="string", role="input")
SPLIT = ByColumn(column="part", eval=("eval",), test=("test",))


def built(cfg: Config) -> tuple[dict, str]:
    """Builds; returns the report and its page."""
    published, _ = build(cfg)
    path = Path(cfg.dataset) / published.report
    return json.loads(path.read_text()), path.with_suffix(".html").read_text()


# ---- what is told ------------------------------------------------------------------------------------------------------


def test_what_is_told_of_the_smoke_rows(dataset, published):
    """Rows, splits and columns agree with the manifest; the page is that of the report, byte for byte."""
    text = (dataset / published.report).read_text()
    body = json.loads(text)
    assert {name: (s["rows"], s["files"]) for name, s in body["splits"].items()} == {
        name: (sum(sum(shard.groups) for shard in shards), len(shards)) for name, shards in published.splits.items()
    }
    assert body["sample"] == {name: s["rows"] for name, s in body["splits"].items()}
    assert body["rows"]["kept"] == sum(body["sample"].values())
    assert sum(c["nulls"] for c in body["columns"] if c["name"] == "x") == sum(
        n for c in body["columns"] if c["name"] == "x" for n in c["missing_seen"].values()
    )
    assert body["warnings"] == []
    assert (dataset / published.report).with_suffix(".html").read_text() == page.render(body)


def test_neither_chunks_nor_workers_count(tmp_path):
    """The same report and page, but for the seconds."""
    text = table_text("id,x,word,y", *((i, f"{number(i):.3f}" if i % 5 else None, "ab"[i % 2], i % 3 // 2) for i in range(40)))
    columns = (numeric("id", type="int64"), numeric("x"), categorical("word"))
    found = []
    for chunk_rows, workers, key in ((1, 2, ()), (7, 1, ()), (1000, 3, ())):
        cfg = small_config(tmp_path, text, columns, chunk_rows=chunk_rows, workers=workers, key=key)
        body, _ = built(cfg)
        assert body.pop("seconds") > 0
        found.append((json.dumps(body), page.render(body | {"seconds": 0.0})))
        shutil.rmtree(cfg.dataset)
    assert found[0] == found[1] == found[2]


def test_only_the_first_rows_are_looked_at(tmp_path, monkeypatch):
    """A bounded sample; rows, missing values, ends and medians of features are of all rows all the same."""
    monkeypatch.setattr("mlprod.etl.stored.SAMPLE_ROWS", 16)
    text = table_text("x,y", *((i * 0.5, i % 2) for i in range(400)))
    body, html = built(small_config(tmp_path, text, (numeric("x"),)))
    assert body["sample"] == dict.fromkeys(SPLITS, 16)
    (x,) = body["columns"]
    assert (x["low"], x["high"], x["nulls"]) == (0.0, 199.5, 0)
    assert sum(x["missing_seen"].values()) == 0
    assert x["distinct"] == 16
    assert x["fill"] != x["median"]
    assert '<td class="n">16</td></tr>' in html


def test_the_first_rows_may_lie_in_several_pieces(tmp_path):
    """So many in all, not of each piece, and nothing is read of a piece without one."""
    counts = {"000.arrow": [3, 1, 0], "001.arrow": [0, 9, 0], "002.arrow": [4, 0, 0], "003.arrow": [5, 0, 0]}
    found = Stored(tmp_path, {}, {}, counts).first(0, ["x"], 5)
    assert [read.args[2:] for read in found] == [("000.arrow", 0, 3), ("002.arrow", 0, 2)]


# ---- warnings ----------------------------------------------------------------------------------------------------------

PARTS = {"train": 700, "eval": 300, "test": 200}
PLAIN = {  # columns that no warning is about
    "fine": lambda i, y, part: number(i, 1),
    "word": lambda i, y, part: "abcdefg"[int(number(i, 2) * 7)],
    "few": lambda i, y, part: int(number(i, 3) * 300),
    "some": lambda i, y, part: number(i, 4) if number(i, 5) < 0.45 else None,
    "hint": lambda i, y, part: y + 2 * number(i, 6),
}
ODD = {  # column -> (value, what is said of it)
    "tells": (lambda i, y, part: y + 0.5 * number(i, 7), "alone predicts the label: AUC 1.0000"),
    "against": (lambda i, y, part: 0.5 * number(i, 8) - y, "alone predicts the label: AUC 0.0000"),
    "word_tells": (lambda i, y, part: "pqrs"[int(number(i, 9) * 2) + 2 * y], "alone predicts the label: AUC 1.0000"),
    "key": (lambda i, y, part: int(number(i, 14) * 1e12), "looks like a key: 700 different values in 700 training rows"),
    "word_key": (lambda i, y, part: f"k{i}", "looks like a key: 700 different values in 700 training rows"),
    "constant": (lambda i, y, part: 3.5, "has one value in all training rows"),
    "word_constant": (lambda i, y, part: "only", "has one value in all training rows"),
    "torn": (
        lambda i, y, part: number(i, 10) if (number(i, 11) < 0.3) == (part == "test") else None,
        "is missing in 69% of the test rows and in 28% of the train rows",
    ),
    "shifted": (lambda i, y, part: number(i, 12) + 0.5 * (part == "eval"), "differs between train and eval: PSI"),
    "word_shifted": (
        lambda i, y, part: "uvw"[min(int(number(i, 13) * (2 + (part == "eval"))), 2)], "differs between train and eval: PSI",
    ),
}  # fmt: skip


def odd_text(label) -> str:
    """Returns a CSV with all columns above; `label(i, part)`."""
    at, lines = 0, []
    for part, rows in PARTS.items():
        for i in range(at, at + rows):
            y = label(i, part)
            makers = [*PLAIN.values(), *(make for make, _ in ODD.values())]
            lines.append((*(make(i, y, part) for make in makers), part, y))
        at += rows
    return table_text(",".join([*PLAIN, *ODD, "part", "y"]), *lines)


def odd_columns() -> tuple[Column, ...]:
    kinds = {"few": "int64", "key": "int64"}
    return tuple(
        categorical(name) if name.startswith("word") else numeric(name, type=kinds.get(name, "float64"))
        for name in [*PLAIN, *ODD]
    ) + (PART,)


def test_every_warning_and_no_other(tmp_path, capsys):
    """One line each with the way out, in JSON, on the page and in the terminal; nothing of the columns that are fine."""
    cfg = small_config(tmp_path, odd_text(lambda i, part: int(number(i, 0) < 0.4)), odd_columns(), split=SPLIT)
    body, html = built(cfg)
    expected = {name: said for name, (_, said) in ODD.items()}
    told = {line.split("'")[1]: line for line in body["warnings"]}
    assert len(told) == len(body["warnings"]), body["warnings"]
    assert told.keys() == expected.keys()
    for name, said in expected.items():
        assert said in told[name]
        assert "leave it out" in told[name]
        assert "\n" not in told[name]
    main(cfg)
    shown = capsys.readouterr().out
    assert [line.removeprefix("warning: ") for line in shown.splitlines() if line.startswith("warning: ")] == body["warnings"]
    assert shown.splitlines()[-1] == f"the whole report: {cfg.dataset}/reports/000001.html"
    assert html.count("<li>") == len(ODD)


@pytest.mark.parametrize("seen, said", [
    (lambda part, y: 1 if part == "eval" else y, ["all 40 rows of the eval split have label 1"]),
    (lambda part, y: y * (part == "train"), ["all 40 rows of the eval split", "all 40 rows of the test split have label 0"]),
    (lambda part, y: y, []),
])  # fmt: skip
def test_a_split_with_one_class(seen, said, tmp_path):
    parts = ["train"] * 80 + ["eval"] * 40 + ["test"] * 40
    text = table_text("x,part,y", *((number(i), part, seen(part, i % 2)) for i, part in enumerate(parts)))
    body, _ = built(small_config(tmp_path, text, (numeric("x"), PART), split=SPLIT))
    assert [line[: len(start)] for line, start in zip(body["warnings"], said, strict=True)] == said


def test_a_split_without_rows(tmp_path):
    """There is nothing to compare train with; the page and the terminal say so by their gaps."""
    text = table_text("x,word,y", *((number(i), "ab"[i % 3 // 2], i % 2) for i in range(60)))
    body, html = built(small_config(tmp_path, text, (numeric("x"), categorical("word")), split=ByHash(eval=0.0, test=0.0)))
    assert [line[:14] for line in body["warnings"]] == ["the eval split", "the test split"]
    assert [(c["psi"], c["ks"], c["alone"]) for c in body["columns"]] == [(None, None, None)] * 2
    assert "in eval" not in html
    report.show(body)


# ---- what must not be seen ---------------------------------------------------------------------------------------------


def test_sensitive_columns_are_counted_and_nothing_else(tmp_path, capsys):
    """Their values stand in no file but the rows themselves and, of a categorical, its fitted vocabulary; nor in the terminal."""
    rows = ((i, 8675309 + i % 3, f"canary{i % 4}", 86753.09 + i, f"canary-{i % 5}" if i % 2 else None, i % 2) for i in range(120))
    hidden = {"sensitive": True}
    columns = (
        numeric("id", type="int64"), Column(name="number", type="int64", role="group", **hidden),
        categorical("word", **hidden), numeric("amount", **hidden), Column(name="text", type="string", role="input", **hidden),
    )  # fmt: skip
    cfg = small_config(tmp_path, table_text("id,number,word,amount,text,y", *rows), columns)
    main(cfg)
    found = [capsys.readouterr().out.encode()]
    found += [
        path.read_bytes()
        for path in Path(cfg.dataset).rglob("*")
        if path.is_file() and path.suffix != ".parquet" and path.parent.name != "features"
    ]
    assert len(found) >= 4  # the terminal, the report, its page, the manifest
    assert not [text for text in found if b"canary" in text or b"86753" in text]
    body = json.loads(Path(cfg.dataset, "reports/000001.json").read_text())
    for c in body["columns"][1:]:
        shown = {name: c[name] for name in ("low", "high", "fill", "median", "histogram", "frequent", "psi", "ks", "alone")}
        assert set(shown.values()) == {None}
    assert [(c["nulls"], c["distinct"]) for c in body["columns"][1:3]] == [(0, 3), (0, 4)]


class Tags(HTMLParser):
    """What a browser makes of a page: its tags, their attributes, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


HOSTILE = "<script>alert('x')</script>\x1b]0;owned\x07 & \"q\" {{ 7 * 7 }} [red]"
LONG = "långt_namn_" * 30


def test_hostile_names_and_values_are_text(tmp_path, capsys):
    """HTML, control characters, template and markup syntax, very long ones: in a column's name, a value, the dataset's path."""
    value = f"<img src=x onerror=alert(1)>{HOSTILE}".replace('"', "'")
    lines = (f'{i % 7},"{value if i % 2 else "plain"}",{number(i)},{i % 3 // 2}' for i in range(90))
    quoted = HOSTILE.replace('"', '""')
    text = "\n".join([f'"{quoted}",word,{LONG},y', *lines]) + "\n"
    cfg = small_config(tmp_path / "a<b>&'c", text, (numeric(HOSTILE, type="int64"), categorical("word"), numeric(LONG)))
    harmless_text = table_text("n,word,x,y", *((i % 7, "ab"[i % 2], number(i), i % 3 // 2) for i in range(90)))
    plain = small_config(tmp_path / "plain", harmless_text, (numeric("n", type="int64"), categorical("word"), numeric("x")))
    body, html = built(cfg)
    seen, harmless = Tags(html), Tags(built(plain)[1])
    assert seen.tags == harmless.tags
    assert seen.attributes == harmless.attributes
    assert report.visible(HOSTILE) in seen.text
    assert report.visible(value) in seen.text
    assert LONG in seen.text
    assert "\x1b" not in html
    assert "\x07" not in html
    report.show(body)
    shown = capsys.readouterr().out
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert max(map(len, shown.splitlines()[3:])) < 400


def test_the_page_needs_nothing_from_elsewhere(dataset, published):
    """No script, style sheet, font or picture that a browser would fetch, and it may fetch none."""
    seen = Tags((dataset / published.report).with_suffix(".html").read_text())
    assert not seen.tags & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not seen.attributes & {"src", "href", "xlink:href", "data", "action"}


# ---- in the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_tables_fit_the_terminal(width, dataset, published, monkeypatch, capsys):
    """The ends of columns give way first, then names wrap; no figure is cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    body = json.loads((dataset / published.report).read_text())
    report.show(body)
    lines = capsys.readouterr().out.splitlines()
    assert "median" in "".join(lines)
    assert ("max" in "".join(lines)) == (width >= 100)
    if width >= 60:
        assert max(len(line) for line in lines[2:]) <= width
        assert "…" not in "".join(lines)


def test_no_figure_is_cut(dataset, published, monkeypatch, capsys):
    """Not even the exponent of a long one."""
    monkeypatch.setenv("COLUMNS", "120")
    body = json.loads((dataset / published.report).read_text())
    body["columns"][0] |= {"low": -1.234e-100, "high": "2024-01-02 03:04:05"}
    report.show(body)
    shown = capsys.readouterr().out
    assert " -1.234e-100 " in shown
    assert " 2024-01-02 " in shown


def test_the_report_of_an_older_version_is_shown(dataset, published, capsys):
    """It has neither warnings nor figures of columns."""
    body = json.loads((dataset / published.report).read_text())
    del body["warnings"], body["sample"]
    report.show(body)
    assert "psi" not in capsys.readouterr().out.lower()


@pytest.mark.parametrize("value, text", [
    (None, ""), (0, "0"), (-0.0, "0"), (1554.0, "1554"), (0.1 + 0.2, "0.3"), (1e300, "1e+300"), (10**18, "1e+18"),
    (1e-9, "1e-09"),
])  # fmt: skip
def test_numbers(value, text):
    assert report.number(value) == text


@pytest.mark.parametrize("part, text", [(0, "0.0%"), (1, "100.0%"), (0.00001, "0.1%"), (0.99999, "99.9%"), (0.125, "12.5%")])
def test_shares(part, text):
    """A share that is neither nothing nor all does not look it."""
    assert report.share(part) == text


def test_a_console_without_colours_has_none(dataset, published, capsys):
    assert Console().is_terminal is False
    report.show(json.loads((dataset / published.report).read_text()))
    assert "\x1b" not in capsys.readouterr().out

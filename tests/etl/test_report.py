"""The data report: its figures by plain programs, each warning seen and not seen, and what may not be in it."""

import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mlprod.config import ByColumn, ByHash, Column, Config, categorical, numeric
from mlprod.etl import page, profile, report
from mlprod.etl.run import build
from mlprod.etl.settle import LABEL
from mlprod.features import Feature, FeatureSpec
from mlprod.manifest import SPLITS
from tests.plain import ID, small_config, table_text

CANARY = "canary-7f3a"


def report_of(cfg: Config) -> dict:
    """The report of a build, as it lies beside it."""
    published, _ = build(cfg)
    return json.loads((Path(cfg.dataset) / published.report).read_text())


def column(body: dict, name: str) -> dict:
    return next(c for c in body["columns"] if c["name"] == name)


# ---- figures -----------------------------------------------------------------------------------------------------------

ROWS = 400
WHERE = Column(name="where", type="string", role="input")
SPLIT = ByColumn(column="where", eval=("eval",), test=("test",))


def rows_of(seed: int) -> list[dict]:
    """Rows of every type with missing values; which split they are in is one of their values."""
    chance = np.random.default_rng(seed)
    rows = []
    for i in range(ROWS):
        where = "train" if i < 250 else "eval" if i < 350 else "test"
        rows.append({
            "id": i, "where": where, "x": None if i % 9 == 0 else round(float(chance.normal()), 3),
            "n": None if i % 11 == 0 else int(chance.integers(0, 1000)), "c": None if i % 7 == 0 else f"c{chance.integers(0, 5)}",
            "flag": bool(chance.integers(0, 2)), "t": f"2024-01-{i % 28 + 1:02d} 10:00:00", "y": int(chance.integers(0, 2)),
        })  # fmt: skip
    return rows


COLUMNS = (
    ID, WHERE, numeric("x"), numeric("n", type="int64"), categorical("c"), categorical("flag", type="bool"),
    Column(name="t", type="timestamp", role="time"),
)  # fmt: skip


def config_of(folder: Path, rows: list[dict], columns: tuple[Column, ...] = COLUMNS, **etl) -> Config:
    text = table_text(",".join(rows[0]), *(tuple(row.values()) for row in rows))
    return small_config(folder, text, columns, **{"split": SPLIT, **etl})


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> dict:
    return report_of(config_of(tmp_path_factory.mktemp("report"), rows_of(0)))


def test_figures_are_those_of_a_plain_program(body):
    """Counts, ends, medians, distinct and frequent values, split by split."""
    rows = rows_of(0)
    of = {split: [row for row in rows if row["where"] == split] for split in SPLITS}
    assert (
        {split: s["rows"] for split, s in body["splits"].items()} == {split: len(of[split]) for split in SPLITS} == body["sample"]
    )
    for name in ("id", "x", "n", "c", "flag", "t"):
        found, values = column(body, name), {s: [r[name] for r in of[s] if r[name] is not None] for s in SPLITS}
        assert found["nulls"] == sum(row[name] is None for row in rows)
        assert found["missing_seen"] == {s: len(of[s]) - len(values[s]) for s in SPLITS}
        assert found["distinct"] == len(set(values["train"]))
        if name in ("c", "flag"):
            counts = {s: Counter(str(v).lower() if name == "flag" else v for v in values[s]) for s in SPLITS}
            most = sorted(counts["train"], key=lambda v: (-counts["train"][v], v))
            assert found["frequent"] == [{"value": v, **{s: counts[s][v] for s in SPLITS}} for v in most]
            continue
        ordered = sorted(values["train"])
        everything = sorted(v for s in SPLITS for v in values[s])
        assert (found["low"], found["median"], found["high"]) == (everything[0], ordered[(len(ordered) - 1) // 2], everything[-1])
        if name != "t":
            edges = found["histogram"]["edges"]
            for s in SPLITS:
                assert found["histogram"][s] == np.histogram(values[s], edges)[0].tolist()


def test_a_report_does_not_depend_on_how_rows_are_read(body, tmp_path):
    """But for its seconds; neither does the page."""
    wanted = {**body, "seconds": 0, "dataset": "d", "dataset_id": ""}
    for i, (chunk_rows, workers) in enumerate(((7, 1), (10_000, 4))):
        cfg = config_of(tmp_path / str(i), rows_of(0), chunk_rows=chunk_rows, workers=workers)
        found = {**report_of(cfg), "seconds": 0, "dataset": "d", "dataset_id": ""}
        assert found == wanted
        assert page.render(found) == page.render(wanted)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_auc_is_that_of_scikit_learn(pairs):
    scores, positive = np.array([s for s, _ in pairs], np.float64), np.array([p for _, p in pairs])
    found = profile.auc(scores, positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_ks_is_the_largest_distance_of_the_distribution_functions(a, b):
    wanted = max(abs(sum(v <= x for v in a) / len(a) - sum(v <= x for v in b) / len(b)) for x in {*a, *b})
    assert profile.ks(np.sort(np.array(a, float)), np.sort(np.array(b, float))) == pytest.approx(wanted, abs=1e-12)


def test_psi_is_its_formula_and_grows_with_the_distance():
    train, held_out = np.array([10, 20, 70]), np.array([20, 20, 10])
    e, a = [(n + 0.5) / 101.5 for n in train], [(n + 0.5) / 51.5 for n in held_out]
    assert profile.psi(train, held_out) == pytest.approx(sum((p - q) * math.log(p / q) for p, q in zip(a, e, strict=True)))
    assert profile.psi(train, train) == 0.0
    assert profile.psi(train, held_out) > profile.psi(train, np.array([12, 20, 68]))


@settings(deadline=None, max_examples=100)
@given(st.data(), st.booleans())
def test_a_histogram_has_ascending_edges_and_holds_most(data, whole):
    kinds = (
        st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-9, 9) if whole else st.floats(-1e300, 1e300) | st.integers(-9, 9)
    )
    ordered = np.sort(np.array(data.draw(st.lists(kinds, min_size=1, max_size=50)), np.float64))
    edges = profile.bin_edges(ordered, whole=whole)
    assert len(edges) <= profile.BINS + 1
    assert (np.diff(edges) > 0).all()
    if len(edges):
        inside = np.histogram(ordered, edges)[0].sum()
        assert inside >= len(ordered) * (1 - 2 * profile.TAIL) - 2
    else:
        assert ordered[0] == ordered[-1]


# ---- warnings ----------------------------------------------------------------------------------------------------------


def warned(rows: list[dict], folder: Path, columns: tuple[Column, ...]) -> list[str]:
    return report_of(config_of(folder, rows, columns))["warnings"]


def with_values(**made) -> list[dict]:
    """Rows with columns whose values are functions of (row number, row, a generator)."""
    chance = np.random.default_rng(1)
    return [{**row, **{name: of(i, row, chance) for name, of in made.items()}} for i, row in enumerate(rows_of(3))]


@pytest.mark.parametrize(
    "make, kept, told",
    [
        (numeric("z"), lambda i, r, c: r["y"] * 2 + 1, "alone predicts the label: AUC 1.0000 on 100 eval rows"),
        (numeric("z"), lambda i, r, c: -r["y"], "alone predicts the label: AUC 0.0000"),
        (categorical("z"), lambda i, r, c: "yes" if r["y"] else "no", "alone predicts the label"),
        (numeric("z", type="int64"), lambda i, r, c: i * 7919, "looks like a key: 250 different values in 250 training rows"),
        (categorical("z"), lambda i, r, c: f"user{i}", "looks like a key"),
        (numeric("z"), lambda i, r, c: 5, "has one value in all training rows"),
        (categorical("z"), lambda i, r, c: "same", "has one value in all training rows"),
        (numeric("z"), lambda i, r, c: float(c.normal()) + 3 * (r["where"] == "eval"), "differs between train and eval: PSI"),
        (numeric("z"), lambda i, r, c: None if r["where"] == "eval" else i % 9, "is missing in 100% of the eval rows and in 0%"),
    ],
)  # fmt: skip
def test_what_is_to_be_mistrusted_is_told(make, kept, told, tmp_path):
    """With the column, the figure and the way out; nothing is said of the good column beside it."""
    found = warned(with_values(z=kept), tmp_path, (ID, WHERE, numeric("x"), make))
    assert any(line.startswith("column 'z'") and told in line for line in found), found
    assert not any("'x'" in line for line in found), found


def test_good_columns_are_not_warned_about(body):
    """Of any type, with missing values, and in splits of unequal size: chance is no warning."""
    assert body["warnings"] == []


def test_splits_that_cannot_be_measured_are_told(tmp_path):
    rows = [{**row, "y": 1 if row["where"] == "eval" else row["y"]} for row in rows_of(0) if row["where"] != "test"]
    found = warned(rows, tmp_path, COLUMNS)
    assert any(line.startswith("all 100 rows of the eval split have label 1") for line in found), found
    assert any(line.startswith("the test split has no rows") for line in found), found


def test_a_share_of_missing_values_that_few_rows_give_by_chance_is_no_warning():
    """Nothing is told of ten rows; the same shares of a thousand are."""
    spec = FeatureSpec(features=(Feature(name="z", kind="numeric", fill=0.5),))
    for rows, warns in ((10, False), (1000, True)):
        tables = {
            split: pa.table({"z": [None if i < share * rows else 0.5 + i for i in range(rows)], LABEL: [0.0, 1.0] * (rows // 2)})
            for split, share in (("train", 0.6), ("eval", 0.4))
        }
        seen = profile.profiles(tables, (numeric("z"),), spec)
        splits = {s: {"rows": rows, "positive_share": 0.5} for s in SPLITS}
        assert any("is missing in 60%" in line for line in report.warnings_of((numeric("z"),), spec, seen, splits)) == warns


# ---- what it shows -----------------------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.attributes = Counter[str](), "", list[tuple[str, str | None]]()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_values_of_sensitive_columns_are_nowhere(tmp_path, capsys):
    """Neither in the JSON, nor on the page, nor in the terminal: of a text, a number and a time. Their counts are."""
    rows = with_values(
        s=lambda i, r, c: f"{CANARY}{i % 3}", v=lambda i, r, c: 7777123 + i, w=lambda i, r, c: f"1987-06-0{i % 9 + 1}"
    )
    hidden = (
        categorical("s", sensitive=True), numeric("v", type="int64", sensitive=True),
        Column(name="w", type="timestamp", role="time", sensitive=True),
    )  # fmt: skip
    cfg = config_of(tmp_path, rows, (ID, WHERE, numeric("x"), *hidden))
    body = report_of(cfg)
    report.show(body)
    folder = Path(cfg.dataset) / "reports"
    told = {path.name: path.read_text() for path in folder.iterdir()} | {"terminal": capsys.readouterr().out}
    assert len(told) == 3
    for name, text in told.items():
        for value in (CANARY, "77771", "77772", "77775", "1987"):
            assert value not in text, name
    assert [column(body, name)["distinct"] for name in ("s", "v", "w")] == [3, 250, 9]
    assert "sensitive: counts alone" in told["000001.html"]


HOSTILE = '<script>alert("x")</script>'


def test_hostile_names_and_values_are_text(tmp_path, capsys):
    """HTML, control characters, the terminal's own markup and very long ones: seen as what they are."""
    name, value = HOSTILE.replace("/", "|"), f"[bold red]{HOSTILE}\x1b[2J'; " + "ab" * 5000
    rows = [{"id": i, "x": i, name: value if i % 3 else "plain", "long" * 60: i % 5, "y": i % 2} for i in range(200)]
    path = tmp_path / "rows.csv"
    quoted = [[f'"{str(v).replace(chr(34), chr(34) * 2)}"' for v in row] for row in (rows[0].keys(), *(r.values() for r in rows))]
    path.write_text("\n".join(",".join(line) for line in quoted) + "\n")
    columns = (ID, numeric("x"), categorical(name), numeric("long" * 60))
    cfg = small_config(tmp_path, None, columns, split=ByHash(eval=0.3, test=0.1))
    body = report_of(cfg)
    html = page.render(body)
    seen = Texts(html)
    assert seen.tags["script"] == 0
    assert name in seen.text
    assert "\x1b" not in html
    assert not any(key.startswith("on") or (value or "").startswith("javascript") for key, value in seen.attributes)
    assert not any(key in ("src", "href") for key, _ in seen.attributes)  # nothing from elsewhere
    report.show(body)
    told = capsys.readouterr().out
    assert "\x1b[2J" not in told
    assert max(map(len, column(body, name)["frequent"][0]["value"].splitlines())) <= profile.LONGEST


def test_the_page_shows_each_column_once_with_its_picture(body):
    seen = Texts(page.render(body))
    assert seen.tags["section"] == len(body["columns"]) == len(COLUMNS)
    assert seen.tags["svg"] == sum(c["histogram"] is not None for c in body["columns"]) == 4
    assert "No warnings" in seen.text
    assert f"{ROWS} rows read" in seen.text


def test_the_terminal_tells_columns_warnings_and_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    cfg = config_of(tmp_path, with_values(z=lambda i, r, c: 5), (ID, WHERE, numeric("x"), numeric("z")))
    from mlprod.etl import run

    run.main(cfg)
    told = capsys.readouterr().out
    assert "400 rows read" in told
    assert "warning: column 'z' has one value" in told
    assert f"the whole report: {cfg.dataset}/reports/000001.html" in told
    assert all(len(line) <= 100 for line in told.splitlines() if not line.startswith(("warning", "the whole", str(cfg.dataset))))


def test_a_report_of_before_is_still_shown(body, capsys):
    """One that an older version wrote, without what has come since."""
    old = {k: v for k, v in body.items() if k not in ("warnings", "sample", "label")}
    report.show(old)
    assert "rows read" in capsys.readouterr().out


def test_two_rows_and_no_eval_split_have_a_report(tmp_path):
    """Nothing is divided by nothing."""
    body = report_of(small_config(tmp_path, table_text("id,x,y", (0, 1, 0), (1, None, 1)), split=ByHash(eval=0.0, test=0.0)))
    assert body["sample"] == {"train": 2}
    assert Texts(page.render(body)).tags["section"] == 2

"""Rows that are not what the config says end the build, are left out, or are written down."""

import dataclasses
import json
from pathlib import Path

import pytest

from mlprod.config import Column, CsvSource, JsonLinesSource, numeric
from mlprod.errors import DataError
from mlprod.etl import report as reports
from mlprod.etl.run import build
from mlprod.manifest import open_for
from mlprod.store import open_store
from tests.plain import ID, small_config

COLUMNS = (ID, numeric("x"), Column(name="secret", type="int64", role="input", sensitive=True))
BAD = {  # number of the line -> what stands there, and why that is bad
    5: ("3,2.0,7", "has 3 fields, the header 4"),
    9: ("7,seven,7,1", "column 'x': 'seven' is not float64"),
    10: ("8,1.0,canary,1", "column 'secret': a value (hidden: the column is sensitive) is not int64"),
    31: ("29,inf,1,1", "column 'x': 'inf' is not float64"),
}


def text(bad: bool = True) -> str:
    """A CSV file of 40 rows, its bad ones left out or not."""
    lines = ["id,x,secret,y", *(f"{i},{i * 0.5},7,{i % 2}" for i in range(40))]
    for number, (line, _) in BAD.items():
        lines[number - 1] = line if bad else ""
    return "\n".join(lines) + "\n"


def built(folder: Path, **etl):
    cfg = small_config(folder, text(), COLUMNS, **etl)
    published, _ = build(cfg)
    dataset = folder / "dataset"
    return published, json.loads((dataset / published.report).read_text()), dataset


@pytest.fixture(scope="module")
def good_id(tmp_path_factory) -> str:
    return build(small_config(tmp_path_factory.mktemp("good"), text(bad=False), COLUMNS))[0].dataset_id


def test_the_first_one_ends_the_build(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv line 5: has 3 fields, the header 4; mend the line"):
        built(tmp_path)


@pytest.mark.parametrize("chunk_rows, workers", [(1, 3), (7, 1), (1000, 2)])
@pytest.mark.parametrize("policy", ["drop", "quarantine"])
def test_they_are_left_out_and_counted(policy, chunk_rows, workers, tmp_path, good_id):
    """The dataset is that of the good rows; the quarantine has each bad one once, in order, no sensitive value in it."""
    published, report, dataset = built(tmp_path, bad_rows=policy, chunk_rows=chunk_rows, workers=workers)
    assert published.dataset_id == good_id
    assert (report["rows"]["read"], report["rows"]["bad"], report["rows"]["kept"]) == (40, 4, 36)
    if policy == "drop":
        assert not (dataset / "quarantine").exists()
        return
    found = [json.loads(line) for line in (dataset / report["quarantine"]).read_text().splitlines()]
    csv = tmp_path / "rows.csv"
    assert [(row["where"], row["why"]) for row in found] == [(f"{csv} line {n}", why) for n, (_, why) in BAD.items()]
    assert found[0]["values"] == {}
    assert {**found[1]["values"], "secret": ""} == {"id": "7", "x": "seven", "secret": "", "y": "1"}
    assert found[1]["values"]["secret"] == found[1]["values"]["secret"] != found[2]["values"]["secret"]
    assert not [path for path in dataset.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_the_quarantine_is_shown(tmp_path, capsys):

    _, report, dataset = built(tmp_path, bad_rows="quarantine")
    reports.show(report)
    told = "".join(capsys.readouterr().out.split())
    assert f"4leftout:notwhattheconfigsays:{dataset}/quarantine/000001.jsonl" in told


def test_json_lines_and_packed_files_too(tmp_path, good_id):
    """A line that is no JSON, and one with a value of another type."""
    rows = [{"id": i, "x": i * 0.5, "secret": 7, "y": i % 2} for i in range(40)]
    lines = ["{" if n in BAD else json.dumps(row) for n, row in enumerate(rows, 2)]
    lines.append(json.dumps({**rows[0], "x": [1]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = JsonLinesSource(path=str(tmp_path / "rows.jsonl"))
    published, report, dataset = built(tmp_path, source=source, bad_rows="quarantine", chunk_rows=5)
    assert published.dataset_id == good_id
    found = [json.loads(line)["where"] for line in (dataset / report["quarantine"]).read_text().splitlines()]
    assert found == [f"{tmp_path}/rows.jsonl line {n}" for n in (*(n - 1 for n in BAD), 41)]


def test_nothing_good_is_an_error(tmp_path):
    (tmp_path / "rows.csv").write_text("id,x,secret,y\na,1,1,1\nb,1,1,1\n")
    cfg = small_config(tmp_path, None, COLUMNS, bad_rows="drop", source=CsvSource(path=str(tmp_path / "rows.csv")))
    with pytest.raises(DataError, match="none of the 2 rows is what"):
        build(cfg)


def test_the_policy_is_a_part_of_what_was_built(tmp_path):
    """Another policy is another dataset, and one built before there were policies is that of the default."""
    published, _, dataset = built(tmp_path, bad_rows="drop")
    path = dataset / "manifests" / "000001.json"
    body = json.loads(path.read_text())
    assert body["config"].pop("bad_rows") == "drop"
    path.write_text(json.dumps(body))

    cfg = small_config(tmp_path, None, COLUMNS)
    assert open_for(cfg, open_store(cfg.dataset)).dataset_id == published.dataset_id
    with pytest.raises(DataError, match=r"etl\.bad_rows was 'refuse', now 'drop'"):
        open_for(dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, bad_rows="drop")), open_store(cfg.dataset))

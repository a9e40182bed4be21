"""The verb `init`, as a story: look at some rows, say what each column is, what is learned and how long, and write it down.

Promise: nothing is overwritten, nothing is trained; what is written passes `mlprod check` once its dataset is built.
Price: seconds, whatever the size of the data.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlprod.config import AnyLabel, ByHash, ByTime
from mlprod.cores import num_cores
from mlprod.errors import DataError, UserError, WorkdirError, nearest
from mlprod.etl import sources
from mlprod.etl.label import described
from mlprod.etl.sample import Sample, sample_of
from mlprod.init.choose import Choice, choices, named
from mlprod.init.literal import literal
from mlprod.init.sizes import Sizes, sizes_for
from mlprod.init.source import source_of
from mlprod.init.target import label_of
from mlprod.init.text import call_of, column_lines, hook, is_name

EVAL_AT, TEST_AT = 0.8, 0.9  # shares of the rows, by time, before which eval and test begin
SMALL = 5000  # rows, of which a larger share is held out


def main(options: argparse.Namespace) -> None:
    """Writes `configs/NAME.py`, and says what to do next.

    Raises:
        UserError: the data, the target or another column is not there, or the target cannot be learned.
    """
    name = options.name or _name(options.data)
    if not is_name(name):
        raise UserError(f"--name={name} must be a Python name, such as {_name(name) or 'mine'}")
    path = Path(options.folder) / f"{name}.py"
    if path.exists():
        raise WorkdirError(f"{path} is there already, and is never overwritten; give another --name, or remove it")
    source = source_of(options.data, options.table)
    names = sources.column_names(source)
    key = tuple(options.key)
    for option, column in (("target", options.target), ("time", options.time), *(("key", k) for k in key)):
        if column and column not in names:
            raise DataError(f"--{option}={column}: {options.data} has no such column{nearest(column, names)}")
    if options.target in (options.time, *key):
        raise DataError(f"--target={options.target} is also the time or a key; a row cannot be told by what is to be learned")
    sample = sample_of(source, names, words=options.target)
    label = label_of(sample, options.target, options.task)
    chosen = choices(sample, label, key, options.time)
    if not any(c.role == "feature" for choice in chosen for c in choice.columns):
        why = "; ".join(f"{choice.name} {choice.why}" for choice in chosen[:3])
        raise DataError(f"{options.data} has no column to learn {options.target} from: {why or 'it has no other'}")
    text = _text(name, source, sample, label, chosen, key, _split(sample, options.time), _sizes(sample, label))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    _tell(path, sample, label, chosen)


def _name(data: str) -> str:
    """Returns a name for a config from the name of its data."""
    stem = Path(data.rstrip("/").split("://")[-1]).name.split(".")[0]
    clean = re.sub(r"\W+", "_", stem).strip("_").lower()
    return f"table_{clean}" if clean and not is_name(clean) else clean


def _split(sample: Sample, time: str) -> Any:
    """Returns how rows are split: by time where there is one, the newest last."""
    if not time:
        share = 0.15 if sample.num_rows < SMALL else 0.1
        return ByHash(eval=share, test=share)
    values = sample.rows[time]
    if values.null_count or sample.types[time] not in ("timestamp", "int64", "float64"):
        raise DataError(
            f"--time={time} is {sample.types[time]} with {values.null_count:,} missing value(s); it must be a time or a "
            f"number that every row has"
        )
    ordered = values.combine_chunks().sort()
    at = [ordered[int(share * len(ordered))].as_py() for share in (EVAL_AT, TEST_AT)]
    if len({ordered[0].as_py(), *at}) < 3:
        raise DataError(f"--time={time} has too few different values to hold out the newest rows; leave it out")
    return ByTime(column=named(time), eval=str(at[0]), test=str(at[1]))


def _sizes(sample: Sample, label: AnyLabel) -> Sizes:
    held_out = 0.3 if sample.num_rows < SMALL else 0.2
    there = 1 - sample.rows[label.column].null_count / sample.rows.num_rows
    return sizes_for(int(sample.num_rows * there * (1 - held_out)), num_cores())


def _tell(path: Path, sample: Sample, label: AnyLabel, chosen: Sequence[Choice]) -> None:
    features = sum(c.role == "feature" for choice in chosen for c in choice.columns)
    left_out = [choice for choice in chosen if not choice.columns]
    seen = "all" if sample.whole else f"{sample.rows.num_rows:,} of about"
    print(f"{path}: {label.task} of {described(label)} by {features} features, from {seen} {sample.num_rows:,} rows")
    for choice in left_out:
        print(f"left out: {choice.name!r} {choice.why}")
    print(f"next: mlprod train --config {path}")


# ---- the text ----------------------------------------------------------------------------------------------------------


def _text(
    name: str,
    source: Any,
    sample: Sample,
    label: AnyLabel,
    chosen: Sequence[Choice],
    key: tuple[str, ...],
    split: Any,
    sizes: Sizes,
) -> str:
    """Returns the config file."""
    made = hook(chosen)
    columns = [c for choice in chosen for c in choice.columns]
    used = {"Config", "EtlConfig", type(source).__name__, type(label).__name__, type(split).__name__, *sizes.classes()}
    used |= {"Column"} if any(c.role != "feature" for c in columns) else set()
    used |= {call_of(c) for c in columns if c.role == "feature"}
    imports = "".join(f"    {word},\n" for word in sorted(used, key=lambda word: (word.islower(), word)))
    lines = "\n".join(f"                {line}" for line in column_lines(chosen))
    seen = "all of them" if sample.whole else f"{sample.rows.num_rows:,} of them were looked at"
    config_key = (
        f"            key={literal(tuple(map(named, key)))},  # stays together in one split; predictions carry it\n"
        if key
        else ""
    )
    transform = "            transform=transform,\n" if made else ""
    pandas = "import pandas as pd\n\n" if made else ""
    return f'''"""{_sentence(label)} About {sample.num_rows:,} rows; {seen} when this was written.

    mlprod train --config {{this file}}                                  # builds the dataset first, with a report of it
    mlprod evaluate --config {{this file}} --split test
    mlprod predict --config {{this file}} --output predictions.parquet

What to look at first: is every feature known when the model will be asked? what was left out, and why? do rows that belong
together stand in one split? Then the sizes below.
"""

{pandas}from mlprod.config import (
{imports})  # fmt: skip
{sizes.imports()}
{made}

def get_config() -> Config:
    """Returns the config: rows, split, model and how long it trains."""
    return Config(
        name={literal(name)},
        workdir={literal(f"runs/{name}")},
        dataset={literal(f"datasets/{name}")},
        etl=EtlConfig(
            source={literal(source)},
            label={literal(label)},
            columns=(
{lines}
            ),
{config_key}{transform}            split={literal(split)},{_said_of_split(split)}
            bad_rows="quarantine",  # rows of another type are left out and written down; "refuse" ends the build at the first
        ),
{sizes.lines()}
    )
'''.replace("{this file}", f"configs/{name}.py")


def _sentence(label: AnyLabel) -> str:
    words = described(label).replace('"""', "'''").replace("\\", "/")
    return {"binary": f"Whether {words}?", "regression": f"How much is {words}?", "classes": f"{words.capitalize()}?"}[label.task]


def _said_of_split(split: Any) -> str:
    return "  # the newest rows are held out" if isinstance(split, ByTime) else "  # ByTime() where rows of the future are asked"

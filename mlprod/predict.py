"""The verb `predict`: raw rows in, exactly one output row per input row, in order, with its key: a score, or null and a reason.

Promise: the arrays that enter the model are made by the code that made the training data, and rows are scored in batches of
the evaluation's shape, so a row's score has the bits that `evaluate` gives it.
Price: one chunk of rows in memory; all of them where columns are made of other rows (`config.etl.gathered`).
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod import __version__
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import trained_on
from mlprod.config import Config, CsvSource, EtlConfig, JsonLinesSource, ParquetSource, SqlSource, TextSource
from mlprod.errors import ConfigError, DataError, WorkdirError
from mlprod.etl import rules, sources
from mlprod.etl.derive import derive
from mlprod.etl.extract import renamed, source_columns
from mlprod.etl.gather import gathered_rows
from mlprod.etl.infer import with_types
from mlprod.etl.lookups import LookupTable, read_lookup
from mlprod.etl.schema import ARROW, Loose, beyond_float32, cast_chunk, raw_column
from mlprod.evaluate import check_output, restore_for
from mlprod.features import Target, apply
from mlprod.hashing import PAD_ID
from mlprod.parallel.place import fetch, to_devices
from mlprod.plan import Plan, make_plan, score_of
from mlprod.scores import open_table_file, score_columns, score_fields
from mlprod.state import TrainState
from mlprod.step import Score
from mlprod.validation import refuse_password

Source = SqlSource | CsvSource | ParquetSource | JsonLinesSource | TextSource


def input_source(etl: EtlConfig, given: str) -> Source:
    """Returns where the rows come from: the config's own source (''), a database URL, or a file in place of the source.

    A file is read as its name says (.csv, .parquet, .jsonl), else as the config's source is.

    Raises:
        ConfigError: a URL where the config's source is not a database.
    """
    if not given:
        return etl.source
    refuse_password("--input", given)
    if "://" not in given:
        if not Path(given).is_file():
            raise ConfigError(f"--input={given}: there is no such file; give a CSV, Parquet or JSON lines file")
        usual: Source = CsvSource(path=given) if isinstance(etl.source, SqlSource) else replace(etl.source, path=given)
        kind = {".parquet": ParquetSource, ".jsonl": JsonLinesSource, ".csv": CsvSource}.get(Path(given).suffix.lower())
        return usual if kind is None or isinstance(usual, kind) else kind(path=given)
    if not isinstance(etl.source, SqlSource):
        raise ConfigError(
            f"--input={given!r} is a database URL, but config.etl.source is {type(etl.source).__name__}; give a file"
        )
    return replace(etl.source, url=given)


def typed_etl(plan: Plan) -> EtlConfig:
    """Returns the config of the rows, with the types that the dataset's build found for columns whose type it leaves open."""
    return with_types(plan.cfg.etl, plan.manifest.source.get("types", {}))


Reasons = list[str | None]  # why each row cannot be scored; None: it can


def typed_rows(etl: EtlConfig, chunk: Loose, lookups: list[LookupTable]) -> tuple[pa.Table, Reasons]:
    """Returns (rows with lookups, why each cannot be scored), one of each per input row."""
    rows, reasons = cast_chunk(chunk, source_columns(etl))
    rows = renamed(etl, rows)
    for lookup in lookups:
        rows = lookup.join(rows)
    return rows, [reasons.get(i) for i in range(rows.num_rows)]


def whole_rows(etl: EtlConfig, chunks: Iterable[tuple[pa.Table, Reasons]]) -> Iterator[tuple[pa.Table, Reasons]]:
    """Yields the rows with the columns that are made of other rows: chunk by chunk, where there are none, else all at once."""
    if not etl.gathered:
        yield from chunks
        return
    tables, reasons = list[pa.Table](), list[str | None]()
    for rows, told in chunks:
        tables.append(rows)
        reasons += told
    if tables:
        rows, at = gathered_rows(etl, pa.concat_tables(tables), np.array([reason is None for reason in reasons]))
        for start in range(0, rows.num_rows, etl.chunk_rows):
            yield rows.slice(start, etl.chunk_rows), [reasons[i] for i in at[start : start + etl.chunk_rows].tolist()]


def ready_rows(etl: EtlConfig, rows: pa.Table, told: Reasons) -> tuple[pa.Table, Reasons]:
    """Returns rows with derived columns, and why each cannot be scored."""
    rows, told = derive(etl, rows), list(told)
    for column in etl.columns:
        if column.missing in ("refuse", "drop"):
            for i in np.flatnonzero(np.asarray(pc.is_null(rows[column.name]))):
                told[i] = told[i] or f"column {column.name!r} is missing"
        if column.role == "feature" and column.kind == "numeric":
            for i in np.flatnonzero(beyond_float32(rows[column.name])):
                told[i] = told[i] or f"column {column.name!r} is beyond float32"
    for broken, (_, why) in rules.applied(etl, rows, rules.told_by_values(etl, label=False)).items():
        told[broken] = told[broken] or why
    return rows, told


def model_arrays(plan: Plan, rows: pa.Table) -> dict[str, np.ndarray]:
    """Returns the inputs of raw rows as the loader makes them: "numeric" [B, F], "ids" [B, M]; ETL would have stored the same."""
    spec = plan.features
    arrays = apply(spec, {f.name: raw_column(rows[f.name]) for f in spec.fitted})
    ids = [arrays[f.name].reshape(rows.num_rows, -1) for f in (*spec.categorical, *spec.lists)]
    return {"numeric": arrays["numeric"], "ids": np.concatenate([np.zeros((rows.num_rows, 0), np.int32), *ids], axis=1)}


def score_rows(plan: Plan, score: Score, state: TrainState, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns float32[B], or [B, C] of classes: scores, computed in batches of the evaluation's shape."""
    size, ranges = plan.eval_order.global_batch, plan.eval_ranges
    sharding, num_rows = plan.placement.batch(size), len(arrays["numeric"])
    scores = []
    for start in range(0, num_rows, size):
        part = {name: values[start : start + size] for name, values in arrays.items()}
        short = size - len(part["numeric"])
        batch = {name: np.concatenate([v, np.zeros((short, *v.shape[1:]), v.dtype)]) for name, v in part.items()}
        batch |= {"label": np.zeros(size, np.float32), "weight": np.ones(size, np.float32)}
        batch["row_id"] = np.full((size, 2), PAD_ID & 0xFFFFFFFF, np.uint32)
        scores.append(fetch(score(state, to_devices(batch, sharding, ranges, size)))["score"][: size - short])
    return np.concatenate(scores)


def predictions(plan: Plan, score: Score, state: TrainState, source: Any, limit: int) -> Iterator[pa.Table]:
    """Yields output rows chunk by chunk: the key columns, the scores and `reason`. `limit`: 0 for all rows."""
    etl, done = typed_etl(plan), 0
    lookups = [read_lookup(lookup, etl.columns) for lookup in etl.lookups]
    names = [c.name for c in source_columns(etl)]
    chunk_rows = min(limit, etl.chunk_rows) if limit and not etl.gathered else etl.chunk_rows
    chunks = (typed_rows(etl, chunk, lookups) for chunk in sources.chunks(source, names, chunk_rows))
    for rows, reasons in whole_rows(etl, chunks):
        rows, reasons = ready_rows(etl, rows, reasons)
        if limit:
            rows, reasons = rows.slice(0, limit - done), reasons[: limit - done]
        good = np.array([reason is None for reason in reasons], bool)
        if not rows.num_rows:
            continue
        scores = score_rows(plan, score, state, model_arrays(plan, rows))
        columns = {name: rows[name] for name in etl.key} | score_columns(plan.features.target, scores, good)
        columns["reason"] = pa.array(reasons, pa.string())
        yield pa.table(columns)
        done += rows.num_rows
        if limit and done >= limit:
            return


def output_schema(etl: EtlConfig, target: Target, metadata: dict[str, str]) -> pa.Schema:
    """Returns the schema of a prediction file, provenance in its metadata."""
    types = {c.name: ARROW[c.type] for c in etl.columns}
    keys = [pa.field(name, types[name]) for name in etl.key]
    return pa.schema([*keys, *score_fields(target), pa.field("reason", pa.string())], metadata=metadata)


def provenance(plan: Plan, run: RunState) -> dict[str, str]:
    """Returns what made a prediction: program, run, step, dataset and fitted transform."""
    return {
        "mlprod.version": __version__, "mlprod.run": run.run_id, "mlprod.step": str(run.step),
        "mlprod.dataset_id": run.dataset_id, "mlprod.features_sha256": plan.manifest.features_sha256,
    }  # fmt: skip


def main(cfg: Config, options: argparse.Namespace) -> None:
    """The verb `predict`: writes a file of scores, Parquet or CSV by its name, and prints how many rows were scored."""
    if cfg.etl.label.task == "tokens":
        raise ConfigError(
            "config.etl.label=NextToken() gives no row a score, so there is nothing to predict; `mlprod evaluate` tells log loss "
            "and perplexity of a split"
        )
    output = check_output("--output", options.output)
    source = input_source(cfg.etl, options.input)
    if not isinstance(source, SqlSource) and output.resolve() == Path(source.path).resolve():
        raise ConfigError(f"--output={options.output} is what --input reads; rows are never overwritten")
    plan = make_plan(cfg, jax.devices(), trained_on(cfg.workdir))
    state, run = restore_for(plan, options.step)
    temporary = output.with_name(f".{output.name}.tmp")
    rows = scored = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        schema = output_schema(typed_etl(plan), plan.features.target, provenance(plan, run))
        with open_table_file(temporary, output.name, schema) as writer:
            for table in predictions(plan, score_of(plan), state, source, options.limit):
                writer.write_table(table.cast(schema))
                rows, scored = rows + table.num_rows, scored + table.num_rows - table["score"].null_count
        if not rows:
            raise DataError(f"--input={options.input or 'config.etl.source'} has no rows")
        temporary.replace(output)
    except OSError as error:
        raise WorkdirError(f"--output={options.output} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{output}: {rows:,} rows, {scored:,} scored, {rows - scored:,} with a reason instead (step {run.step} of {cfg.workdir})"
    )

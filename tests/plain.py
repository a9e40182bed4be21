"""Small configs of a test's own, and plain readings of what is on disk: none of the package's own reading code."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod.config import ByHash, Column, Config, CsvSource, EtlConfig, Label, numeric
from mlprod.data.reader import GroupReader
from mlprod.manifest import Manifest
from mlprod.models.mlp import MLPConfig

ID = Column(name="id", type="int64", role="group")  # stored as it is, so that a test can tell the rows apart


def small_config(folder: Path, text: str | None = None, columns: tuple[Column, ...] = (ID, numeric("x")), **etl: Any) -> Config:
    """Returns a config whose CSV is `text` (or `folder`/rows.csv as it is) and whose dataset is `folder`/dataset; label `y`."""
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (folder / "rows.csv").write_text(text, encoding="utf-8")
    usual = {"source": CsvSource(path=str(folder / "rows.csv")), "label": Label(column="y"), "split": ByHash(eval=0.1, test=0.1)}
    return Config(
        name="small", workdir=str(folder / "run"), dataset=str(folder / "dataset"), steps=1,
        etl=EtlConfig(**{"columns": columns, "group_rows": 16, **usual, **etl}), model=MLPConfig(hidden=(4,)),
    )  # fmt: skip


def table_text(header: str, *rows: tuple[Any, ...]) -> str:
    """Returns CSV text; None becomes an empty field."""
    return "\n".join([header, *(",".join("" if v is None else str(v) for v in row) for row in rows)]) + "\n"


def numbered(n: int) -> str:
    """Returns a CSV of n different rows `id,x,y` of both labels."""
    return table_text("id,x,y", *((i, i * 0.5, i % 2) for i in range(n)))


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Returns the records of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stored_table(dataset: Path, manifest: Manifest, split: str) -> pa.Table:
    """Returns a split's files one after the other, as they are."""
    return pa.concat_tables(pq.read_table(dataset / shard.path) for shard in manifest.splits[split])


def stored(dataset: Path, manifest: Manifest, split: str) -> dict[str, np.ndarray]:
    """Returns a split in stored order: {"numeric": [N, F], "ids": [N, M], and every plain column}, from packed files."""
    table = stored_table(dataset, manifest, split)
    out = {}
    for name in table.column_names:
        if name.startswith("packed_"):
            dtype = np.dtype(name.removeprefix("packed_"))
            values = np.frombuffer(b"".join(table[name].to_pylist()), dtype).reshape(table.num_rows, -1)
            out["numeric" if dtype == np.float32 else "ids"] = values
        else:
            out[name] = table[name].to_numpy()
    return out


def group_arrays(reader: GroupReader, group: int) -> dict[str, np.ndarray]:
    """Returns a row group's rows of bytes as the numbers they are, for keeps."""
    rows = reader.read(group)
    assert rows.keys() == reader.shapes().keys()
    return {name: rows[name].copy().view(dtype).reshape(-1, *shape) for name, (shape, dtype) in reader.shapes().items()}

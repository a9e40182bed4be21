"""Scores as columns of a file, Parquet or CSV: of a label or number one, of classes the likeliest and each one's probability."""

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mlprod.features import Target

FORMULA = r"^(\s*[=+\-@\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]|[\t\r\n])"  # how a text begins that is taken for one
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def score_fields(target: Target) -> list[pa.Field]:
    """Returns the columns of scores: "score" float32; of classes "prediction", its probability "score", and each one's."""
    fields = [pa.field("score", pa.float32())]
    if target.task != "classes":
        return fields
    return [pa.field("prediction", pa.string()), *fields, *(pa.field(f"probability_{c}", pa.float32()) for c in target.classes)]


def class_names(target: Target, numbers: np.ndarray) -> pa.Array:
    """Returns string[B]: the classes of these numbers, of any dtype."""
    return pa.array(target.classes, pa.string()).take(pa.array(numbers.astype(np.int64)))


def score_columns(target: Target, scores: np.ndarray, there: np.ndarray | None = None) -> dict[str, pa.Array]:
    """Returns the columns of `score_fields` from scores float32[B], of classes [B, C]; null where bool[B] `there` is False."""
    missing = None if there is None else ~there
    if target.task != "classes":
        return {"score": pa.array(scores, pa.float32(), mask=missing)}
    names = class_names(target, scores.argmax(axis=1))
    columns = {"prediction": names if missing is None else pa.array(names.to_pylist(), pa.string(), mask=missing)}
    columns["score"] = pa.array(scores.max(axis=1), pa.float32(), mask=missing)
    for i, name in enumerate(target.classes):
        columns[f"probability_{name}"] = pa.array(scores[:, i], pa.float32(), mask=missing)
    return columns


class TableFile(Protocol):
    """A file that tables of one schema are written to, one after the other; closed at the end of its `with`."""

    def __enter__(self) -> "TableFile": ...

    def __exit__(self, *_: object) -> None: ...

    def write_table(self, table: pa.Table) -> None:
        """Adds rows."""
        ...

    def close(self) -> None:
        """Ends the file."""
        ...


def open_table_file(path: Path, name: str, schema: pa.Schema) -> TableFile:
    """Opens a file to be written: CSV where `name` ends with .csv, which has no place for the schema's metadata, else Parquet.

    Raises:
        OSError: it cannot be opened.
    """
    return CsvFile(path, schema) if name.lower().endswith(".csv") else pq.ParquetWriter(path, schema)


class CsvFile:
    """A CSV file of which no text is taken for a formula by a program that opens it, see `plain_text`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Opens the file and writes its header line."""
        self._schema = pa.schema([field.with_name(_plain(field.name)) for field in schema])
        self._writer = pacsv.CSVWriter(path, self._schema)

    def __enter__(self) -> "CsvFile":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the file."""
        self.close()

    def write_table(self, table: pa.Table) -> None:
        """Adds rows."""
        columns = [plain_text(column) if pa.types.is_string(column.type) else column for column in table.columns]
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def plain_text(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns texts with a ' before each that a spreadsheet would take for a formula; a number keeps its sign.

    Source: OWASP, "CSV Injection"; also the wide forms of the signs, which some programs take for them.
    """
    risky = pc.and_not(pc.match_substring_regex(texts, FORMULA), pc.match_substring_regex(texts, NUMBER))
    return pc.if_else(risky, pc.binary_join_element_wise("'", texts, ""), texts)


def _plain(name: str) -> str:
    text: str = plain_text(pa.chunked_array([[name]], pa.string()))[0].as_py()
    return text

"""Small tables that rows are joined with.

Promise: a key stands in a lookup once; a row finds its values or nulls, and rows keep their number and order.
Price: a lookup is held in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, Lookup
from mlprod.errors import DataError
from mlprod.etl.csv_files import csv_chunks
from mlprod.etl.files import file_identity
from mlprod.etl.schema import Loose, cast_strictly, require, shown


def lookup_identity(lookup: Lookup) -> dict[str, Any]:
    """Returns what identifies a lookup's file."""
    return file_identity(lookup.path)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A lookup in memory: its unique keys and the columns it adds."""

    key: str
    keys: pa.Array
    values: pa.Table

    def join(self, rows: pa.Table) -> pa.Table:
        """Returns `rows` with the lookup's columns; null where the key is not found. Rows keep their number and order."""
        at = pc.index_in(rows[self.key], value_set=self.keys, skip_nulls=True)  # a missing key finds nothing
        for name in self.values.column_names:
            rows = rows.append_column(name, self.values[name].take(at))
        return rows


def read_lookup(lookup: Lookup, columns: Sequence[Column]) -> LookupTable:
    """Reads a lookup's file in the types that `columns` declares for its columns and its key.

    Raises:
        DataError: the file or a column is missing, a value is not of its type, or a key stands there twice.
    """
    declared = {column.name: column for column in columns}
    wanted = {lookup.key: lookup.key, **lookup.columns}
    for name in wanted:
        require(name, list(declared), "config.etl.columns, for lookup " + repr(lookup.path) + ",")
    tables = []
    for chunk in csv_chunks(lookup.path, ",", list(wanted.values()), 1 << 16):
        named = Loose({name: chunk.columns[theirs] for name, theirs in wanted.items()}, chunk.num_rows, chunk.where, chunk.broken)
        tables.append(cast_strictly(named, [declared[name] for name in wanted]))
    if not tables:
        raise DataError(f"{lookup.path} has no rows")
    table = pa.concat_tables(tables).combine_chunks()
    keys = table[lookup.key].combine_chunks()
    if len(keys.unique()) != len(keys):
        double = next(v["values"] for v in pc.value_counts(keys).to_pylist() if v["counts"] > 1)
        raise DataError(
            f"{lookup.path} has several rows with {lookup.key} = {shown(declared[lookup.key], double)}; a lookup needs one"
        )
    return LookupTable(lookup.key, keys, table.drop_columns([lookup.key]))

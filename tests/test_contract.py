"""What ETL writes opens in the loader; a dataset that is not what its manifest says is refused, by the name of the file."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest

from mlprod import manifest
from mlprod.data.reader import GroupReader
from mlprod.errors import DataError, TrainingError
from mlprod.manifest import SPLITS
from mlprod.store import open_store
from mlprod.train import train
from tests.conftest import MakeConfig
from tests.plain import group_arrays


def test_etl_output_opens_in_the_loader(dataset: Path) -> None:
    """Every row group of every split has the rows that the manifest says, and every array its dtype."""
    published = manifest.read(open_store(str(dataset)))
    for split in SPLITS:
        reader = GroupReader(open_store(str(dataset)), published, split)
        for group, rows in enumerate(published.group_sizes(split)):
            arrays = group_arrays(reader, group)
            assert {name: (a.shape[1:], a.dtype) for name, a in arrays.items()} == reader.shapes()
            assert {len(a) for a in arrays.values()} == {rows}


def drop_a_column(path: Path) -> None:
    """Writes the file again without its labels."""
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)


def tear(path: Path) -> None:
    """Cuts the file's last tenth off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])


def flip(path: Path) -> None:
    """Flips one bit of the first row group; the size stays."""
    whole = bytearray(path.read_bytes())
    whole[100] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    "harm, error, told",
    [
        (drop_a_column, DataError, "bytes; the manifest says"),
        (tear, DataError, "bytes; the manifest says"),
        (Path.unlink, DataError, "is missing"),
        (flip, TrainingError, "row group 0: checksum .* it is not what was written"),
    ],
)
def test_a_harmed_file_is_named(
    harm: Callable[[Path], None], error: type[Exception], told: str, dataset: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """A dropped column, a torn or missing file and a wrong checksum each end the run with the file's name."""
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    path = copy / manifest.read(open_store(str(copy))).splits["train"][1].path
    harm(path)
    with pytest.raises(error, match=f"{path.name}.*{told}"):
        train(dataclasses.replace(make_config(), dataset=str(copy)), jax.devices()[:1])

"""The arrays of a state by our paths: what a table says of each, and how they are read from a saved step.

Promise: shape, dtype and digest of every array stand in a table of ours, for the layers below convert dtypes, and give zeros for
data that is gone, in silence. An array is read in the pieces that the devices hold, one array after the other: the host never
has more than one of them twice.
Price: a digest is one pass over the array on the devices; tensorstore decodes a chunk (`CHUNK_BYTES`) whole.

On disk: an OCDBT store of zarr arrays, named by our paths, as orbax writes it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from mlprod.checkpoint.run_state import Damaged
from mlprod.digest import as_hex, digest, refused
from mlprod.errors import CheckpointError, ConfigError
from mlprod.parallel.place import fetch
from mlprod.state import flatten

SHOWN = 20  # arrays named in a message
CHUNK_BYTES = 16 << 20  # of an array on disk, at most: what reading a part of it costs

Table = Mapping[str, Mapping[str, Any]]  # path -> {"shape", "dtype"} and, of a saved one, "digest"


def leaf_table(state: Any) -> dict[str, dict[str, Any]]:
    """Returns {path: {"shape", "dtype"}} of a state or an abstract one.

    Raises:
        CheckpointError: a leaf that cannot be saved exactly (a random key, complex, 64-bit, empty, or '.' in its path).
    """
    table = {}
    for path, leaf in flatten(state).items():
        why = refused(leaf.dtype) or ("empty" if 0 in leaf.shape else "") or ("named with a '.'" if "." in path else "")
        if why:
            raise CheckpointError(
                f"state {path!r} ({leaf.dtype}{list(leaf.shape)}) is {why}, which a checkpoint cannot hold exactly"
            )
        table[path] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return table


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: digest(leaf) for path, leaf in leaves.items()}


def digests(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """Returns {path: 16 hex digits} of arrays, computed on the devices under any layout."""
    words: dict[str, np.ndarray] = fetch(_digests(dict(leaves)))
    return {path: as_hex(word) for path, word in words.items()}


def check_fits(saved: Table, wanted: Table, told: str) -> None:
    """Raises ConfigError, which begins with `told`, when saved arrays are not those that are wanted, by path."""
    wrong = []
    for path in sorted(saved.keys() | wanted.keys(), key=lambda path: (path.startswith("optim/"), path)):  # parameters first
        a, b = saved.get(path), wanted.get(path)
        if a is None or b is None:
            wrong.append(f"{path} {'is not in the checkpoint' if a is None else 'is not in the config'}")
        elif (a["shape"], a["dtype"]) != (b["shape"], b["dtype"]):
            wrong.append(f"{path} is {a['dtype']}{a['shape']}, the config says {b['dtype']}{b['shape']}")
    if wrong:
        raise ConfigError(f"{told}: {some_of(wrong, '; ', 2)}; use the config it was saved with, or another workdir")


def some_of(names: Iterable[str], between: str = ", ", most: int = SHOWN) -> str:
    """Returns the first `most` of some names as text, and how many more there are."""
    names = list(names)
    return between.join(names[:most]) + (f"{between}and {len(names) - most} more" if len(names) > most else "")


def open_leaf(folder: str, path: str, described: Mapping[str, Any]) -> Any:
    """Opens one array of a saved step for reading; `folder`: address of the step's arrays; `described`: its row of the table.

    Raises:
        Damaged: it is not there, or has another shape or dtype.
    """
    store = {"driver": "ocdbt", "base": f"{folder}/", "path": f"{path}/"}
    try:
        array = ts.open({"driver": "zarr", "kvstore": store}, read=True, open=True).result()
    except Exception as error:  # ValueError and others, for whatever is wrong below
        raise Damaged(f"{path} cannot be read: {_told(error)}") from error
    if (list(array.shape), array.dtype.name) != (described["shape"], described["dtype"]):
        raise Damaged(f"{path} is {array.dtype.name}{list(array.shape)}, not {described['dtype']}{described['shape']}")
    chunk = array.chunk_layout.read_chunk.shape or array.shape
    if any(
        piece is None or piece > max(size, 1) for piece, size in zip(chunk, array.shape, strict=True)
    ):  # each is decoded whole
        raise Damaged(f"{path} lies in pieces of {list(chunk)}, larger than it is")
    return array


def read_slice(array: Any, path: str, index: tuple[slice, ...]) -> np.ndarray:
    """Returns a part of an opened array, of any shape; raises Damaged when it cannot be read."""
    try:
        part: np.ndarray = array[index].read().result() if array.rank else array.read().result()
    except Exception as error:
        raise Damaged(f"{path} cannot be read: {_told(error)}") from error
    return part


def read_leaves(folder: str, table: Table, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns arrays of a saved step with the shardings of `target`, the table's digests found again.

    Raises:
        Damaged: one of them is not what was saved.
    """
    leaves = {path: _read_leaf(folder, path, table[path], like) for path, like in target.items()}
    wrong = [path for path, words in digests(leaves).items() if words != table[path]["digest"]]
    if wrong:
        raise Damaged(f"{len(wrong)} array(s) differ from what was saved: {some_of(wrong)}")
    return leaves


def _read_leaf(folder: str, path: str, described: Mapping[str, Any], like: jax.ShapeDtypeStruct) -> jax.Array:
    array = open_leaf(folder, path, described)
    parts = dict[str, np.ndarray]()  # of a slice's text: devices that hold the same part share its reading

    def part(index: Any) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = read_slice(array, path, index)
        return parts[str(index)]

    leaf = jax.make_array_from_callback(like.shape, like.sharding, part, dtype=like.dtype)
    if not leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim):
        raise AssertionError(f"{path} came back as {leaf.sharding}, not {like.sharding}")
    return leaf


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

"""Whether a saved step is what was saved: its arrays read again from where it lies, on the host.

Promise: the digests of the run JSON are found again from the files alone, without a device and without a collective: a step that
passes restores to the bits that were saved. Each process reads its share of every array, and their sums meet in small files.
Price: reading the step once, in a thread beside the training, a chunk of memory, and a core for about 5 s a GB.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlprod.checkpoint.leaves import Table, open_leaf, read_slice, some_of
from mlprod.checkpoint.run_state import Damaged
from mlprod.digest import as_hex, digest_numpy
from mlprod.manifest import write_atomically

PATIENCE_S = 600.0  # for the other processes' shares
Words = Mapping[str, Any]  # path -> [word, word]


def verify(folder: str, table: Table, index: int = 0, count: int = 1, meeting: Path | None = None) -> None:
    """Reads share `index` of `count` of a step's arrays; process 0 then compares the sum of all shares with the table.

    Args:
        folder: address of the step's arrays.
        meeting: a folder of this step alone, where shares are left for process 0; None: there is one process.

    Raises:
        Damaged: an array is not what was saved, or a share did not come.
    """
    if meeting is None:
        words: Words = share(folder, table)
    else:
        _leave(folder, table, index, count, meeting)
        if index:
            return
        words = _summed(table, [_waited_for(meeting / f"{other}-of-{count}.json") for other in range(count)])
        shutil.rmtree(meeting, ignore_errors=True)
    wrong = [path for path, described in table.items() if as_hex(words[path]) != described["digest"]]
    if wrong:
        raise Damaged(f"{len(wrong)} array(s) differ from what was saved: {some_of(wrong)}")


def share(folder: str, table: Table, index: int = 0, count: int = 1) -> dict[str, list[int]]:
    """Returns {path: the two digest words of this share of the array}; shares add up mod 2^32."""
    words, turn = {path: [0, 0] for path in table}, 0
    for path, described in table.items():
        array = open_leaf(folder, path, described)
        for part in _chunks(array):
            if turn % count == index:
                found = digest_numpy(read_slice(array, path, part), [piece.start for piece in part])
                words[path] = _plus(words[path], found)
            turn += 1
    return words


def _chunks(array: Any) -> Iterator[tuple[slice, ...]]:
    """Yields the parts of an opened array that lie on disk as one each."""
    shape, chunk = array.shape, array.chunk_layout.read_chunk.shape or array.shape
    grid = [range(-(-size // step)) for size, step in zip(shape, chunk, strict=True)]
    for at in np.ndindex(*map(len, grid)):
        yield tuple(slice(i * step, min((i + 1) * step, size)) for i, step, size in zip(at, chunk, shape, strict=True))


def _plus(a: Any, b: Any) -> list[int]:
    return [(int(x) + int(y)) & 0xFFFFFFFF for x, y in zip(a, b, strict=True)]


def _summed(table: Table, shares: list[Words]) -> dict[str, list[int]]:
    total = {path: [0, 0] for path in table}
    for words in shares:
        total = {path: _plus(both, words[path]) for path, both in total.items()}
    return total


def _leave(folder: str, table: Table, index: int, count: int, meeting: Path) -> None:
    """Leaves this process's share for process 0, or why there is none: nobody should wait for it."""
    left: dict[str, Any] = {"damaged": "", "words": {}}
    try:
        left["words"] = share(folder, table, index, count)
    except Exception as error:
        left["damaged"] = str(error) or type(error).__name__
        raise
    finally:
        write_atomically(meeting / f"{index}-of-{count}.json", json.dumps(left))


def _waited_for(path: Path) -> Words:
    """Returns another process's share when it is there; raises Damaged when it found the step to be so, or does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise Damaged(f"another process did not read its share within {PATIENCE_S:.0f} s ({path})")
        time.sleep(0.05)
    left = json.loads(path.read_text())
    if left["damaged"]:
        raise Damaged(left["damaged"])
    words: Words = left["words"]
    return words

"""Documents in stored order become rows of `length` + 1 tokens: what decoder language models learn from.

tokenize (each document's tokens and its end, piece by piece) -> pack (the tokens of a split, one after the other, cut into rows)
-> shuffle (rows in ascending order of a hash, so that those of one document do not lie side by side).

Promise: a row begins with the token that the one before it in the stream ends with, so every token but a document's first is
predicted exactly once. Rows, their ids and their order follow from the documents alone: not from pieces, blocks or workers.
Price: tokens are written to disk three times, 4 bytes each and once 8, before they are written as Parquet.

On disk a token is a word of 32 bits: its id and, in the highest bit, whether a document begins with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod import features, manifest
from mlprod.config import EtlConfig, NextToken, TokenizerFile
from mlprod.errors import DataError
from mlprod.etl import report, spill
from mlprod.etl.schema import combined
from mlprod.etl.settle import LABEL, ORDER, ROW_ID, SPLIT, TIE
from mlprod.etl.stored import Stored, keep, nothing
from mlprod.etl.tasks import Tasks
from mlprod.etl.tokenize import Tokenizer, content_of, sha256_of, tokenizer_of
from mlprod.etl.whole import whole
from mlprod.etl.write import Written, unpacked
from mlprod.features import FeatureSpec, Target
from mlprod.hashing import PAD_ID, Hash128, mix_array, mix_hash
from mlprod.manifest import SPLITS, Manifest

BEGINS, PAD = np.uint32(1 << 31), np.uint32((1 << 32) - 1)  # of a word: the bit, and the one behind the last token
TEXT_BYTES = 4 << 20  # that are tokenised together, about
WORDS = "_words"  # the column of a row's words
DOCUMENT = np.dtype([("id", "<u8"), ("start", "<i8")])  # of each in a piece: its row id, and its first token


# ---- tokens ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """The tokens of the documents of a split in stored order: pieces on disk, read in part."""

    folder: Path
    split: int
    counts: Mapping[str, int]  # piece -> tokens

    @property
    def total(self) -> int:
        """Tokens in all pieces."""
        return sum(self.counts.values())

    def words(self, start: int, stop: int) -> np.ndarray:
        """Returns uint32[stop - start]: the words of these tokens of the stream."""
        parts = [np.zeros(0, np.uint32)]
        for piece, at, count in self._within(start, stop):
            a, b = max(start - at, 0), min(stop - at, count)
            parts.append(np.fromfile(self._file(piece, "words"), np.uint32, b - a, offset=4 * a))
        return np.concatenate(parts)

    def documents(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """Returns (`DOCUMENT`[K] of the pieces that hold these tokens, each with its first token's place in the stream; where the
        last of them ends)."""
        parts, end = [np.zeros(0, DOCUMENT)], 0
        for piece, at, count in self._within(start, stop):
            found = np.fromfile(self._file(piece, "documents"), DOCUMENT)
            found["start"] += at
            parts.append(found)
            end = at + count
        return np.concatenate(parts), end

    def _file(self, piece: str, kind: str) -> Path:
        return place(self.folder, piece, self.split, kind)

    def _within(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Yields (piece, its first token's place in the stream, its tokens) of those that hold some of [start, stop)."""
        at = 0
        for piece, count in self.counts.items():
            if count and at < stop and start < at + count:
                yield piece, at, count
            at += count


def place(folder: Path, piece: str, split: int, kind: str) -> Path:
    """Returns where a split's words or documents of a piece are."""
    return folder / f"{piece}-{SPLITS[split]}.{kind}"


def in_words(tokenizer: Tokenizer, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint32[N], the words of string[B], each with its end; int64[B], where each begins)."""
    ids, lengths = tokenizer.encode(texts)
    ends = np.cumsum(lengths + 1) - 1
    words = np.full(len(ids) + len(lengths), tokenizer.end, np.uint32)
    words[np.arange(len(ids)) + np.repeat(np.arange(len(lengths)), lengths)] = ids
    starts = ends - lengths
    words[starts] |= BEGINS
    return words, starts


def tokenize_piece(label: NextToken, stored: Stored, piece: str) -> dict[str, list[int]]:
    """Tokenises the documents of a piece: returns, of each split, how many there are, their tokens, and those of the longest."""
    folder, name = stored.work / "tokenize", spill.task_of(piece)
    told = [_tokenize(label, stored, folder, name, piece, code) for code in range(len(SPLITS))]
    return {kind: [counts[kind] for counts in told] for kind in ("documents", "tokens", "longest")}


def _tokenize(label: NextToken, stored: Stored, folder: Path, name: str, piece: str, code: int) -> dict[str, int]:
    """Writes the words of a split's documents, and where each begins."""
    counts = {"documents": stored.counts[piece][code], "tokens": 0, "longest": 0}
    if not counts["documents"]:
        return counts
    rows, tokenizer = stored.rows([LABEL], code, piece), tokenizer_of(label.tokenizer)
    found = np.empty(rows.num_rows, DOCUMENT)
    found["id"] = rows[ROW_ID].to_numpy()
    with whole(place(folder, name, code, "words")) as half, half.open("wb") as file:
        for start, stop in _together(combined(rows[LABEL])):
            words, starts = in_words(tokenizer, combined(rows[LABEL].slice(start, stop - start)))
            found["start"][start:stop] = starts + counts["tokens"]
            counts["tokens"] += len(words)
            counts["longest"] = max(counts["longest"], int(np.diff(np.append(starts, len(words))).max()))
            words.tofile(file)
    with whole(place(folder, name, code, "documents")) as half:
        found.tofile(half)
    return counts


def _together(texts: pa.Array) -> Iterator[tuple[int, int]]:
    """Yields ranges of string[B] that have about `TEXT_BYTES` each."""
    sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1])
    ends = np.flatnonzero(np.diff(np.cumsum(sizes, dtype=np.int64) // TEXT_BYTES)) + 1
    yield from pairwise([0, *ends.tolist(), len(texts)])


# ---- rows --------------------------------------------------------------------------------------------------------------


def num_rows(tokens: int, length: int) -> int:
    """Returns how many rows a stream of tokens has: the last one has two tokens at least."""
    return max(-(-(tokens - 1) // length), 0)


def cut(words: np.ndarray, length: int) -> np.ndarray:
    """Returns uint32[R, length + 1]: rows of words, padded, of a stream of uint32[N]; N > 1."""
    padded = np.full(num_rows(len(words), length) * length + 1, PAD)
    padded[: len(words)] = words
    return np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length]


def expanded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, segments), int32[R, length + 1] each, of rows of words: 0 where there is no token."""
    there, begins = rows != PAD, rows >= BEGINS
    begins[:, 0] = True  # its document's part of the row
    tokens = np.where(there, rows & ~BEGINS, 0)
    return tokens.astype(np.int32), np.where(there, np.cumsum(begins, axis=1, dtype=np.int32), 0).astype(np.int32)


def order_hashes(documents: np.ndarray, starts: np.ndarray) -> Hash128:
    """Returns the hashes of rows that begin at the tokens `starts` (int64[R]) of the stream; `documents`: see `Tokens`."""
    at = np.searchsorted(documents["start"], starts, side="right") - 1
    ids, offsets = documents["id"][at], starts - documents["start"][at]
    return mix_hash(Hash128(ids, mix_array(ids)), offsets.astype(np.uint64))


def pack_block(label: NextToken, work: Path, tokens: Tokens, start: int, stop: int, bits: int, name: str) -> dict[str, Any]:
    """Cuts rows [start, stop) of a split, spills them by their hash, and returns what they hold."""
    length, last = label.length, min(stop * label.length + 1, tokens.total)
    rows = cut(tokens.words(start * length, last), length)
    documents, end = tokens.documents(start * length, last)
    starts = np.arange(start, stop) * length
    order, predicted = order_hashes(documents, starts), (rows[:, 1:] < BEGINS).sum(axis=1)
    kept = predicted > 0
    table = pa.table({
        ORDER[0]: order.hi[kept], ORDER[1]: order.lo[kept], TIE: starts[kept],
        ROW_ID: np.where(order.hi == np.uint64(PAD_ID), np.uint64(0), order.hi)[kept],
        SPLIT: np.full(int(kept.sum()), tokens.split, np.int8),
        LABEL: predicted[kept].astype(np.float32), WORDS: _as_column(rows[kept]),
    })  # fmt: skip
    with spill.Spill(spill.own_name(work / "pack", name)) as out:
        if table.num_rows:
            out.add(table, spill.bucket_of(order.hi[kept], bits))
    return {
        **out.told(), "rows": table.num_rows, "predicted": int(predicted.sum()),
        "tokens": int((rows[kept] != PAD).sum()), "cut": _num_cut(documents, end, starts, length),
    }  # fmt: skip


def _num_cut(documents: np.ndarray, end: int, starts: np.ndarray, length: int) -> int:
    """Returns how many of the documents that begin in these rows go on in another; `end`: of the last document."""
    begin, after = documents["start"], np.append(documents["start"][1:], end)
    here = (begin >= starts[0]) & (begin < starts[-1] + length)
    return int((here & (after - 1 > begin // length * length + length)).sum())


def _as_column(rows: np.ndarray) -> pa.Array:
    """Returns a matrix of 4-byte numbers as one FixedSizeBinary column."""
    rows = np.ascontiguousarray(rows)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])


def shuffle_bucket(work: Path, packed: spill.Index, name: str) -> dict[str, Any]:
    """Sorts a bucket of rows by their hash; where two are equal, as in the stream."""
    rows = spill.read_bucket(work / "pack", packed, int(name))
    if rows is None:
        return nothing(name)
    rows = rows.take(np.lexsort((rows[TIE].to_numpy(), rows[ORDER[1]].to_numpy(), rows[ORDER[0]].to_numpy())))
    tokens, segments = expanded(unpacked(combined(rows[WORDS]), np.dtype(np.uint32)))
    table = pa.table({"tokens": _as_column(tokens), "segments": _as_column(segments), LABEL: rows[LABEL], ROW_ID: rows[ROW_ID]})
    return keep(spill.own_name(work / "packed", name), table, rows[SPLIT].to_numpy())


# ---- the whole ---------------------------------------------------------------------------------------------------------


def planned(total: int, memory_bytes: int, workers: int) -> dict[str, int]:
    """Returns how a build packs: the first bits of the hash that buckets are cut by, and the tokens of a block."""
    each = memory_bytes // workers
    return {"bits": spill.num_bits(16 * total, each), "block": min(max(each // 16, 1 << 12), 1 << 22)}


@dataclass(frozen=True)
class Packed:
    """The texts of a build as they are written: see `publish.Content`."""

    etl: EtlConfig  # none of the documents' columns is stored
    spec: FeatureSpec
    rows: Stored
    told: Mapping[str, Mapping[str, int]]  # split -> what is to be known of its texts
    vocabulary: bytes  # the tokenizer's file

    def fitted(self, written: Mapping[str, Written]) -> FeatureSpec:
        """Returns the transform with the mean number of tokens that a row predicts."""
        train = written["train"]
        return replace(self.spec, target=train.label.of_target(self.spec.target, train.num_rows))

    def keep(self, dataset: Path, version: int) -> None:
        """Writes a copy of the tokenizer."""
        if self.vocabulary:
            manifest.write_atomically(dataset / manifest.vocabulary_path(version), self.vocabulary.decode())

    def report(
        self, dataset: str, published: Manifest, written: Mapping[str, Written], counts: report.Counts, spec: FeatureSpec
    ) -> dict[str, Any]:
        """Returns the data report, but for the seconds."""
        return report.of_texts(dataset, self.etl, published, written, counts, spec, self.told)


def packed(label: NextToken, etl: EtlConfig, tasks: Tasks, stored: Stored) -> Packed:
    """Tokenises and packs the documents of every split.

    Raises:
        DataError: a document cannot be tokenised, or no training token follows another in its document.
    """
    content = content_of(label.tokenizer)
    label = _with_copy(label, content, tasks.work)
    tokenizer = tokenizer_of(label.tokenizer)
    tokens, told = _tokens(label, tasks, stored)
    rows = _rows(label, etl, tasks, tokens, told)
    if not rows.num_rows(SPLITS.index("train")):
        raise DataError("no training document has two tokens, so nothing can be learned; check config.etl.label and .split")
    width, vocabulary = label.length + 1, sha256_of(content)
    spec = FeatureSpec(
        features=(
            features.Sequence(name="tokens", length=width, num_ids=tokenizer.num_ids, vocabulary=vocabulary),
            features.Sequence(name="segments", length=width, num_ids=width + 1),
        ),
        target=Target(task=label.task, column=label.column),
    )
    return Packed(replace(etl, columns=(), key=()), spec, rows, told, content)


def _with_copy(label: NextToken, content: bytes, work: Path) -> NextToken:
    """Returns the label with a tokenizer's file of the build's own: the tasks of all attempts read the same."""
    if not isinstance(label.tokenizer, TokenizerFile):
        return label
    path = work / "tokenizer.json"
    manifest.write_atomically(path, content.decode())
    return replace(label, tokenizer=TokenizerFile(path=str(path), end=label.tokenizer.end))


Told = dict[str, dict[str, int]]


def _tokens(label: NextToken, tasks: Tasks, stored: Stored) -> tuple[list[Tokens], Told]:
    """Returns the tokens of each split, and what is to be known of its documents."""
    pieces = {spill.task_of(piece): piece for piece in stored.counts}
    done = tasks.run(
        "tokenize",
        {name: partial(tokenize_piece, label, stored.only(piece), piece) for name, piece in pieces.items()},
        rows=lambda left: sum(left["documents"]),
    )
    for spilled in ("extract", "stored"):
        _remove(tasks.work / spilled, "arrow")
    folder = tasks.work / "tokenize"
    tokens = [Tokens(folder, code, {name: left["tokens"][code] for name, left in done.items()}) for code in range(len(SPLITS))]
    told = {
        split: {
            "documents": sum(left["documents"][code] for left in done.values()), "tokens": tokens[code].total,
            "longest": max((left["longest"][code] for left in done.values()), default=0),
        }
        for code, split in enumerate(SPLITS)
    }  # fmt: skip
    return tokens, told


def _rows(label: NextToken, etl: EtlConfig, tasks: Tasks, tokens: Sequence[Tokens], told: Told) -> Stored:
    """Returns the rows of every split in the order of their hash; tells of them."""
    total = sum(each.total for each in tokens)
    plan = tasks.run("packing", {"plan": partial(planned, total, etl.memory_bytes, tasks.workers)})["plan"]
    blocks = [block for each in tokens for block in _blocks(each, label.length, plan["block"])]
    done = tasks.run(
        "pack",
        {name: partial(pack_block, label, tasks.work, *block, plan["bits"], name) for name, block in blocks},
        rows=lambda left: left["rows"],
    )
    for split, found in told.items():
        lefts = [left for name, left in done.items() if name.startswith(f"{split}-")]
        found |= {kind: sum(left[kind] for left in lefts) for kind in ("rows", "predicted", "cut")}
        found["padding"] = found["rows"] * (label.length + 1) - sum(left["tokens"] for left in lefts)
    _remove(tasks.work / "tokenize", "words", "documents")
    return _shuffled(tasks, spill.by_bucket(spill.index_of(done.values())), plan["bits"])


def _blocks(tokens: Tokens, length: int, block_tokens: int) -> Iterator[tuple[str, tuple[Tokens, int, int]]]:
    """Yields (name, (tokens, first row, the row behind the last)) of what is packed together."""
    rows, step = num_rows(tokens.total, length), max(block_tokens // length, 1)
    for i, start in enumerate(range(0, rows, step)):
        yield f"{SPLITS[tokens.split]}-{i:06d}", (tokens, start, min(start + step, rows))


def _shuffled(tasks: Tasks, packed: spill.Buckets, bits: int) -> Stored:
    """Returns packed rows in the order of their hash."""
    (tasks.work / "packed").mkdir(exist_ok=True)
    done = tasks.run(
        "shuffle",
        {f"{i:03d}": partial(shuffle_bucket, tasks.work, packed.get(i, {}), f"{i:03d}") for i in range(1 << bits)},
        rows=lambda left: sum(left["rows"]),
    )
    _remove(tasks.work / "pack", "arrow")
    counts = {left["file"]: left["rows"] for left in done.values()}
    return Stored(tasks.work, {}, spill.index_of(done.values()), counts, folder="packed")


def _remove(folder: Path, *suffixes: str) -> None:
    for path in folder.iterdir():
        if path.suffix.removeprefix(".") in suffixes:
            path.unlink(missing_ok=True)

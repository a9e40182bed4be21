"""Texts: documents out of files, their tokens, and rows packed of them: every token once, however they are read and cut."""

import bz2
import contextlib
import dataclasses
import gzip
import json
import sqlite3
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mlprod import cli, features, manifest
from mlprod.config import (
    ByColumn,
    ByGroup,
    ByHash,
    Bytes,
    ByTime,
    Column,
    Config,
    CsvSource,
    JsonLinesSource,
    NextToken,
    ParquetSource,
    SqlSource,
    TextSource,
    TokenizerFile,
)
from mlprod.data.reader import GroupReader
from mlprod.errors import ConfigError, DataError, MachineError
from mlprod.etl import pack, spill, text_files
from mlprod.etl import stored as stored_rows
from mlprod.etl.run import build
from mlprod.etl.tokenize import ByteTokenizer, of_dataset
from mlprod.hashing import Hash128, key
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import open_store
from mlprod.validation import validate
from tests.etl.test_run import Killed, kill
from tests.plain import group_arrays, small_config, stored
from tests.refused import refused

LENGTH, END = 16, 256
WORDS = ("alpha", "beta", "gamma", "überall", "δέλτα", "💡", "x")


def document(i: int) -> str:
    """Returns a text of 1 to 12 words, with line ends among them."""
    words = [WORDS[key(i, j) % len(WORDS)] for j in range(1 + key(i) % 12)]
    return "".join(word + (" " if key(i, j, 7) % 5 else "\n") for j, word in enumerate(words)) + str(i)


DOCUMENTS = [document(i) for i in range(150)]


def text_config(folder: Path, documents: list[str] | None = None, **etl: Any) -> Config:
    """Returns a config of documents that lie in one file, behind a line with % alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if documents is not None:
        (folder / "texts.txt").write_text("\n%\n".join(documents), encoding="utf-8")
    source = TextSource(path=str(folder / "texts.txt"), separator="\n%\n")
    return small_config(folder, **{"source": source, "columns": (), "label": NextToken(length=LENGTH), **etl})


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Manifest]:
    """`DOCUMENTS`, built. Shared: do not change it."""
    cfg = text_config(tmp_path_factory.mktemp("texts"), DOCUMENTS)
    return cfg, build(cfg)[0]


def rows_of(cfg: Config, published: Manifest, split: str) -> dict[str, np.ndarray]:
    """Returns {"tokens", "segments": [N, length + 1], "label", "row_id": [N]} of a split, in stored order."""
    if not published.splits[split]:
        return {}
    arrays = stored(Path(cfg.dataset), published, split)
    tokens, segments = np.split(arrays.pop("ids"), 2, axis=1)
    return {"tokens": tokens, "segments": segments, **arrays}


def in_stream_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has rows stored as they follow each other in the stream of their split, with their first token's place there as row id."""
    monkeypatch.setattr(pack, "order_hashes", lambda documents, starts: Hash128(*[starts.astype(np.uint64)] * 2))


def stream(rows: dict[str, np.ndarray]) -> list[int]:
    """Returns the tokens of rows that are stored as `in_stream_order` has them: each at its place, the same in two rows."""
    found: dict[int, int] = {}
    for start, tokens, segments in zip(rows["row_id"].tolist(), rows["tokens"].tolist(), rows["segments"].tolist(), strict=True):
        for at, token in enumerate((token for token, segment in zip(tokens, segments, strict=True) if segment), start):
            assert found.setdefault(at, token) == token
    assert sorted(found) == list(range(len(found)))
    return [found[at] for at in range(len(found))]


def told(cfg: Config, published: Manifest) -> dict[str, Any]:
    return dict(json.loads((Path(cfg.dataset) / published.report).read_text()))


# ---- documents ---------------------------------------------------------------------------------------------------------


def plainly_cut(text: bytes, max_bytes: int) -> list[bytes]:
    """The rule, one piece after the other on the whole document."""
    found = []
    while len(text) > max_bytes:
        end = text.rfind(b"\n", 0, max_bytes) + 1 or max_bytes
        while text[end] & 0xC0 == 0x80:
            end -= 1
        found.append(text[:end])
        text = text[end:]
    return [*found, text] if text else found


CROWDED = st.lists(st.sampled_from(["\n", "\n\n", "%a", "a%a", "a", "é", "💡"]), max_size=60).map("".join)  # of separators


@settings(deadline=None, max_examples=400)
@given(
    CROWDED, st.sampled_from(["", "\n", "\n\n", "%", "a%a", "💡\n"]), st.integers(5, 12), st.integers(1, 12), st.integers(1, 40)
)  # fmt: skip
def test_documents_do_not_depend_on_how_a_file_is_read(tmp_path_factory, text, separator, max_bytes, block, part_bytes):
    """Cut by a plain program on the whole text: the same pieces for any block and part; none empty, too long or no text."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    source = TextSource(path=str(path), separator=separator, max_bytes=max_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", block)
        patch.setattr(text_files, "PART_BYTES", part_bytes)
        files = text_files.Named(source, {str(path): "a.txt"})
        columns = [Column(name=name, type="string") for name in text_files.NAMES]
        tables = [t for part in text_files.parts(files, 3) for t in text_files.read(files, part, columns, 3)]
    found = [row["text"] for table in tables for row in table.to_pylist()]
    documents = text.encode().split(separator.encode()) if separator else [text.encode()]
    assert found == [piece.decode() for each in documents for piece in plainly_cut(each, max_bytes)]
    assert {row["file"] for table in tables for row in table.to_pylist()} <= {"a.txt"}


def test_a_mark_at_the_start_is_no_text_and_other_bytes_are(tmp_path):
    """Line ends of Windows and NUL characters stay."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\0\r\n")
    head = text_files.head(TextSource(path=str(tmp_path / "a.txt"), separator="\n"), ["text", "file"], 10)
    assert head is not None
    assert head.columns == {"text": ["one\r", "two\0\r"], "file": ["a.txt"] * 2}


def test_a_document_longer_than_memory_is_read_in_pieces(tmp_path, monkeypatch):
    """A file that is one line: pieces come while it is read."""
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode() * 50_000)
    monkeypatch.setattr(text_files, "BLOCK", 1000)
    with path.open("rb") as file:
        found = text_files.pieces(file, 0, 100_000, b"", 65)
        first = [piece for _ in range(3) for piece in next(found)]
        assert file.tell() < 20_000
        pieces = [*first, *(piece for some in found for piece in some)]
    assert b"".join(piece for _, piece in pieces) == path.read_bytes()
    assert {len(piece) for _, piece in pieces[:-1]} == {64}


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda body: pa.compress(body, "zstd", asbytes=True)}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_give_the_same_dataset(suffix, texts, tmp_path):
    (tmp_path / "texts.txt").write_text("\n%\n".join(DOCUMENTS), encoding="utf-8")
    (tmp_path / f"t.txt.{suffix}").write_bytes(PACKERS[suffix]((tmp_path / "texts.txt").read_bytes()))
    source = TextSource(path=str(tmp_path / f"t.txt.{suffix}"), separator="\n%\n")
    assert build(text_config(tmp_path, source=source))[0].dataset_id == texts[1].dataset_id


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_what_is_not_utf8_is_told_with_its_place(name, tmp_path):
    body = "grün\n".encode() * 100 + "grün".encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(body) if name.endswith("gz") else body)
    for separator in ("", "\n"):
        cfg = text_config(tmp_path, source=TextSource(path=str(tmp_path / name), separator=separator), chunk_rows=7)
        with pytest.raises(DataError, match=rf"{name}: byte 602 \(0xfc\) is not UTF-8; write the file as UTF-8") as ended:
            build(cfg)
        assert "\n" not in str(ended.value)


def test_files_without_text_are_no_rows(tmp_path):
    (tmp_path / "texts.txt").write_text("\n%\n" * 9)
    with pytest.raises(DataError, match="the source has no rows"):
        build(text_config(tmp_path))


def test_names_of_files_are_below_the_folder(tmp_path):
    """Wherever it lies; and the name is part of what is read where a column has it."""
    ids = []
    for place in ("here", "there/again"):
        folder = tmp_path / place / "books"
        (folder / "old").mkdir(parents=True)
        for name in ("a.txt", "old/b.txt"):
            (folder / name).write_text(f"the text of {name}, which is long enough")
        for path in (folder, folder / "**" / "*.txt"):
            split = ByColumn(column="file", eval=("old/b.txt",))
            columns = (Column(name="file", type="auto", role="input"),)
            etl = {"columns": columns, "split": split, "label": NextToken(length=64)}
            cfg = text_config(tmp_path / place / path.name[:1], source=TextSource(path=str(path)), **etl)
            published, _ = build(cfg)
            ids.append(published.dataset_id)
            assert ByteTokenizer().decode(rows_of(cfg, published, "eval")["tokens"][0]).startswith("the text of old/b.txt")
    assert len(set(ids)) == 1
    (folder / "old" / "b.txt").rename(folder / "c.txt")
    assert build(cfg)[1]


# ---- rows --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(st.lists(st.text(alphabet="ab é💡\n", min_size=1, max_size=60), min_size=1, max_size=12, unique=True), st.integers(1, 20))
def test_every_token_is_stored_and_predicted_once(tmp_path_factory, documents, length):
    """In stream order rows are the documents, each with its end; labels and segments are what a plain count gives."""
    folder = tmp_path_factory.mktemp("packed")
    pq.write_table(pa.table({"text": documents}), folder / "texts.parquet")
    cfg = text_config(folder, source=ParquetSource(path=str(folder / "texts.parquet")), label=NextToken(length=length))
    cfg.etl.split = ByHash(eval=0.3, test=0.0)
    with pytest.MonkeyPatch.context() as patch:
        in_stream_order(patch)
        with contextlib.suppress(DataError):
            published, _ = build(cfg)
        if not manifest.versions(open_store(cfg.dataset)):
            with pytest.raises(DataError, match="no training rows"):
                build(cfg)
            return
    seen, predicted = Counter[str](), 0
    for split in SPLITS:
        rows = rows_of(cfg, published, split)
        if not rows:
            continue
        assert rows["tokens"].shape == rows["segments"].shape == (published.num_rows(split), length + 1)
        ids = stream(rows)
        assert ids[-1] == END
        seen.update(text.decode() for text in bytes_between_ends(ids))
        for tokens, segments, label in zip(rows["tokens"], rows["segments"], rows["label"], strict=True):
            there = segments > 0
            begins = np.concatenate([[True], tokens[:-1] == END])[: there.sum()]
            assert segments[there].tolist() == np.cumsum(begins).tolist()
            assert not tokens[~there].any()
            assert sorted(there.tolist(), reverse=True) == there.tolist()
            assert label == (segments[1:][there[1:]] == segments[:-1][there[1:]]).sum() > 0
        predicted += int(rows["label"].sum())
    assert seen == Counter(documents)
    assert predicted == sum(len(text.encode()) for text in documents)  # all but the first, and the end


def bytes_between_ends(ids: list[int]) -> list[bytes]:
    parts, begin = [], 0
    for i, token in enumerate(ids):
        if token == END:
            parts.append(bytes(ids[begin:i]))
            begin = i + 1
    return parts


def test_rows_lie_in_the_order_of_their_ids_which_say_where_they_begin(texts, tmp_path, monkeypatch):
    """The rows are those of the stream, in another order; ids are unique."""
    cfg, published = texts
    in_stream_order(monkeypatch)
    other = text_config(tmp_path, DOCUMENTS)
    plain, _ = build(other)
    everywhere = []
    for split in SPLITS:
        rows, unshuffled = rows_of(cfg, published, split), rows_of(other, plain, split)
        assert rows["row_id"].tolist() == sorted(rows["row_id"].tolist())
        assert unshuffled["row_id"].tolist() == [i * LENGTH for i in range(len(unshuffled["row_id"]))]
        a, b = (np.concatenate([found["tokens"], found["segments"]], axis=1).tolist() for found in (rows, unshuffled))
        assert a != b
        assert sorted(a) == sorted(b)
        everywhere += rows["row_id"].tolist()
    assert len(set(everywhere)) == len(everywhere) == sum(published.num_rows(split) for split in SPLITS)


@pytest.mark.parametrize(
    "bits, etl",
    [
        (0, {"workers": 1, "chunk_rows": 7}), (3, {"workers": 3, "chunk_rows": 1}),
        (7, {"workers": 2, "memory_bytes": 1 << 20}), (2, {"workers": 2, "executor": "processes"}),
    ],
)  # fmt: skip
def test_neither_parts_nor_pieces_nor_workers_count(bits, etl, texts, tmp_path, monkeypatch):
    """The same manifest: files, sums and checksums."""
    monkeypatch.setattr(spill, "num_bits", lambda *_: bits)
    monkeypatch.setattr(pack, "TEXT_BYTES", 1 << bits)
    plan = pack.planned
    monkeypatch.setattr(pack, "planned", lambda *given: {**plan(*given), "block": 64 << bits})
    if etl.get("executor") == "processes":
        monkeypatch.undo()
    assert build(text_config(tmp_path, DOCUMENTS, **etl))[0] == texts[1]


def test_with_a_key_or_kept_copies_nothing_counts_either(tmp_path, monkeypatch):
    """Where rows are written once more before they are tokenised."""
    rows = [{"id": i % 120, "text": DOCUMENTS[i % 140]} for i in range(150)]
    pq.write_table(pa.table({"text": [r["text"] for r in rows], "id": [r["id"] for r in rows]}), tmp_path / "t.parquet")
    etl = {"source": ParquetSource(path=str(tmp_path / "t.parquet")), "columns": (Column(name="id", type="int64", role="input"),)}
    for changed, kept in (({"key": ("id",), "dedup": "key", "keep": "id"}, 120), ({"dedup": "none"}, 150), ({}, 150)):
        made = []
        for bits in (0, 4):
            monkeypatch.setattr(spill, "num_bits", lambda *_, bits=bits: bits)
            cfg = text_config(tmp_path / f"{len(changed)}-{kept}-{bits}", **etl, **changed)
            made.append(build(cfg)[0])
            assert told(cfg, made[-1])["rows"]["kept"] == kept
        assert made[0] == made[1]


def test_equal_rows_of_any_source_are_one_dataset(texts, tmp_path):
    lines = [{"text": text} for text in DOCUMENTS]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "t.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in DOCUMENTS), encoding="utf-8")
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as db, db:
        db.execute("CREATE TABLE t (text TEXT)")
        db.executemany("INSERT INTO t VALUES (?)", [(text,) for text in DOCUMENTS])
    for i, source in enumerate((
        ParquetSource(path=str(tmp_path / "t.parquet")), JsonLinesSource(path=str(tmp_path / "t.jsonl")),
        CsvSource(path=str(tmp_path / "t.csv")), SqlSource(url=f"sqlite:///{tmp_path}/t.db", table="t"),
    )):  # fmt: skip
        assert build(text_config(tmp_path / str(i), source=source))[0].dataset_id == texts[1].dataset_id


def test_documents_are_split_and_told_apart_as_rows_are(tmp_path):
    """Copies are dropped; groups and times hold; texts without any are left out."""
    rows = [(f"{i} {DOCUMENTS[i]}", i % 7, f"2024-01-{1 + i % 28:02d}") for i in range(100)]
    again = [rows[0], (None, 0, "2024-01-01")]
    names = {"text": 0, "g": 1, "t": 2}
    table = pa.table({name: [row[at] for row in (*rows, *again)] for name, at in names.items()})
    pq.write_table(table, tmp_path / "t.parquet")
    columns = (Column(name="g", type="int64", role="group"), Column(name="t", type="timestamp", role="time"))
    splits = (ByGroup(columns=("g",), eval=0.3, test=0.2), ByTime(column="t", eval="2024-01-15", test="2024-01-22"))
    for by, split in zip((1, 2), splits, strict=True):
        cfg = text_config(
            tmp_path / str(by), source=ParquetSource(path=str(tmp_path / "t.parquet")), columns=columns, split=split
        )
        with pytest.MonkeyPatch.context() as patch:
            in_stream_order(patch)
            published, _ = build(cfg)
        counts = told(cfg, published)["rows"]
        assert (counts["read"], counts["without_label"], counts["duplicates"], counts["kept"]) == (102, 1, 1, 100)
        found = {s: {int(t.split()[0]) for t in bytes_between_ends(stream(rows_of(cfg, published, s)))} for s in SPLITS}
        assert sorted(i for ids in found.values() for i in ids) == list(range(100))
        sides = [{rows[i][by] for i in ids} for ids in found.values()]
        assert sum(map(len, sides)) == len(set().union(*sides))
        assert by == 1 or max(sides[0]) < "2024-01-15" <= min(sides[1])


def test_documents_of_one_token_predict_nothing(tmp_path):
    """Rows of such alone are left out; a row that ends in one has it."""
    pq.write_table(pa.table({"text": ["", "a", "bc"]}), tmp_path / "t.parquet")
    etl = {"source": ParquetSource(path=str(tmp_path / "t.parquet")), "dedup": "none", "split": ByHash(eval=0.0, test=0.0)}
    cfg = text_config(tmp_path, label=NextToken(length=2), **etl)
    published, _ = build(cfg)
    assert rows_of(cfg, published, "train")["label"].sum() == 3
    pq.write_table(pa.table({"text": ["", ""]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no training document has two tokens"):
        build(cfg)


def test_a_loader_reads_what_is_stored_in_either_storage(texts, tmp_path):
    cfg, published = texts
    other = text_config(tmp_path, DOCUMENTS, storage="columns")
    for each, version in ((cfg, published), (other, build(other)[0])):
        reader = GroupReader(open_store(each.dataset), version, "train")
        assert reader.shapes()["ids"] == ((2 * (LENGTH + 1),), np.dtype(np.int32))
        ids = np.concatenate([group_arrays(reader, group)["ids"] for group in range(len(version.group_sizes("train")))])
        assert ids.tolist() == stored(Path(cfg.dataset), published, "train")["ids"].tolist()


def test_what_is_fitted_and_told(texts):
    """Sequences with their widths and ids, the mean of what a row predicts, and counts that a plain program gives."""
    cfg, published = texts
    spec = features.loads((Path(cfg.dataset) / published.features).read_text())
    assert spec.features == (
        features.Sequence(name="tokens", length=LENGTH + 1, num_ids=257),
        features.Sequence(name="segments", length=LENGTH + 1, num_ids=LENGTH + 2),
    )
    train = rows_of(cfg, published, "train")
    assert (spec.target.task, spec.target.column) == ("tokens", "text")
    np.testing.assert_allclose((spec.target.mean, spec.target.std), (train["label"].mean(), train["label"].std()), rtol=1e-6)
    assert [(c.name, c.kind, c.shape, c.stored_in) for c in published.columns[:2]] == [
        ("tokens", "sequence", (LENGTH + 1,), "packed_int32"), ("segments", "sequence", (LENGTH + 1,), "packed_int32"),
    ]  # fmt: skip
    splits = told(cfg, published)["splits"]
    assert sum(split["documents"] for split in splits.values()) == len(DOCUMENTS)
    assert sum(split["tokens"] for split in splits.values()) == sum(len(text.encode()) + 1 for text in DOCUMENTS)
    assert max(split["longest"] for split in splits.values()) == max(len(text.encode()) + 1 for text in DOCUMENTS)
    for name, split in splits.items():
        rows = rows_of(cfg, published, name)
        assert split["padding"] == (rows["segments"] == 0).sum()
        assert split["predicted"] == rows["label"].sum() == split["tokens"] - split["documents"]


def test_documents_that_are_cut_are_counted(tmp_path, monkeypatch):
    """Against the stream: those with tokens in more than one row, but for the one token that two rows share."""
    in_stream_order(monkeypatch)
    cfg = text_config(tmp_path, DOCUMENTS, split=ByHash(eval=0.0, test=0.0))
    published, _ = build(cfg)
    begin, cut = 0, 0
    for text in bytes_between_ends(stream(rows_of(cfg, published, "train"))):
        end = begin + len(text)  # the place of its end token
        cut += not any(r * LENGTH <= begin and end <= r * LENGTH + LENGTH for r in range(begin // LENGTH + 1))
        begin = end + 1
    assert 0 < told(cfg, published)["splits"]["train"]["cut"] == cut < len(DOCUMENTS)


# ---- killed and started again ------------------------------------------------------------------------------------------

TASKS = {"order_bucket": stored_rows, "tokenize_piece": pack, "pack_block": pack, "shuffle_bucket": pack}
KILLS = [("tokenize_piece", 2), ("tokenize_piece", 4), ("pack_block", 9), ("shuffle_bucket", 1), ("shuffle_bucket", 4)]


@pytest.mark.parametrize("name, after", KILLS)
def test_a_build_of_texts_goes_on_where_it_was_killed(name, after, texts, tmp_path, monkeypatch):
    """No task that was done is done again; the end is the same, and leaves no work."""
    cfg = text_config(tmp_path, DOCUMENTS, workers=1)
    monkeypatch.setattr(spill, "num_bits", lambda *_: 2)
    monkeypatch.setattr(pack, "planned", lambda *_: {"bits": 2, "block": 20 * LENGTH})
    monkeypatch.setattr(text_files, "PART_BYTES", 1000)
    done = {task: kill(monkeypatch, module, task, after if task == name else 0) for task, module in TASKS.items()}
    with pytest.raises(Killed):
        build(cfg)
    assert manifest.versions(open_store(cfg.dataset)) == []
    if name != "tokenize_piece":  # the first attempt's plan holds
        monkeypatch.setattr(pack, "planned", lambda *_: {"bits": 5, "block": 64})
    again, fresh = build(dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, workers=3, memory_bytes=1 << 20)))
    assert fresh
    assert again == texts[1]
    tokens = [split["tokens"] for split in told(cfg, again)["splits"].values()]
    wanted = {"order_bucket": 4, "tokenize_piece": 4, "shuffle_bucket": 4}
    wanted["pack_block"] = sum(-(-(n - 1) // (20 * LENGTH)) for n in tokens)
    assert {task: len(done[task]) - (task == name) for task in wanted} == wanted
    assert [p.name for p in (tmp_path / "dataset" / "work").iterdir()] == ["lock"]


# ---- tokenizers --------------------------------------------------------------------------------------------------------


def train_tokenizer(path: Path, texts: list[str], vocabulary: int = 320, end: str = "<|endoftext|>") -> str:
    """Trains byte pairs on texts; returns the file's path."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of byte pairs. Shared: do not change it."""
    path = tmp_path_factory.mktemp("pairs") / "tokenizer.json"
    train_tokenizer(path, DOCUMENTS)
    return path


HOSTILE = "ends here <|endoftext|> and goes on"


def test_a_tokenizer_of_a_file(pairs, tmp_path, monkeypatch):
    """Every document comes back, also one that spells its end; the file counts wherever it lies, and a copy is kept."""
    in_stream_order(monkeypatch)
    documents = [*DOCUMENTS, HOSTILE]
    cfg = text_config(tmp_path, documents, label=NextToken(length=LENGTH, tokenizer=TokenizerFile(path=str(pairs))))
    published, _ = build(cfg)
    spec = features.loads((tmp_path / "dataset" / published.features).read_text())
    library = Tokenizer.from_file(str(pairs))
    assert spec.sequences[0].num_ids == library.get_vocab_size() == 320
    kept = tmp_path / "dataset" / "vocab" / "000001.json"
    assert kept.read_bytes() == pairs.read_bytes()
    assert spec.sequences[0].vocabulary == manifest.sha256_file(kept)
    tokenizer, end = of_dataset(open_store(cfg.dataset), published), library.token_to_id("<|endoftext|>")
    found = []
    for split in SPLITS:
        ids = np.array(stream(rows_of(cfg, published, split)))
        found += [tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == end) + 1)][:-1]
    assert Counter(found) == Counter(documents)
    moved = tmp_path / "moved.json"
    moved.write_bytes(pairs.read_bytes())
    cfg.etl.label.tokenizer.path = str(moved)
    assert build(cfg) == (published, False)
    train_tokenizer(moved, DOCUMENTS, vocabulary=300)
    again, fresh = build(cfg)
    assert (fresh, again.version) == (True, 2)
    assert again.dataset_id != published.dataset_id


def test_what_cuts_or_changes_tokens_by_chance_is_left_out(pairs, tmp_path):
    """Truncation, padding and dropout that a file has: the tokens are those of the file without."""
    made = Tokenizer.from_file(str(pairs))
    made.enable_truncation(3)
    made.enable_padding(length=50)
    body = json.loads(made.to_str())
    body["model"]["dropout"] = 0.5
    (tmp_path / "other.json").write_text(json.dumps(body))
    ids = []
    for i, path in enumerate((pairs, tmp_path / "other.json")):
        cfg = text_config(tmp_path / str(i), DOCUMENTS, label=NextToken(length=LENGTH, tokenizer=TokenizerFile(path=str(path))))
        ids.append(rows_of(cfg, build(cfg)[0], "train")["tokens"].tolist())
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    "content, end, message",
    [
        (None, "<|endoftext|>", r"tokenizer\.path='.*t\.json' cannot be read: No such file or directory; give a tokenizer\.json"),
        ("{}", "<|endoftext|>", r"t\.json' is no tokenizer \('model'\); give a tokenizer\.json that `tokenizers` saved"),
        ("no json", "<|endoftext|>", r"t\.json' is no tokenizer"),
        ("", "<|endoftext|>", r"t\.json' is no tokenizer"),
        ("ours", "<|end|>", r"tokenizer\.end='<\|end\|>' is no token of .*t\.json; did you mean '<\|endoftext\|>'\?"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_none_is_told_before_anything_is_read(content, end, message, pairs, tmp_path):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(pairs.read_text() if content == "ours" else content)
    cfg = text_config(tmp_path, label=NextToken(tokenizer=TokenizerFile(path=str(path), end=end)))  # texts.txt is not there
    with pytest.raises(ConfigError, match=message) as ended:
        build(cfg)
    assert "\n" not in str(ended.value)


def test_a_tokenizer_needs_its_library(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    copy = tmp_path / "new.json"  # not one that was loaded before
    copy.write_text(pairs.read_text())
    cfg = text_config(tmp_path, DOCUMENTS, label=NextToken(tokenizer=TokenizerFile(path=str(copy))))
    with pytest.raises(MachineError, match=r"needs the package tokenizers; install mlprod\[text\], or use Bytes\(\)"):
        build(cfg)
    cfg.etl.label.tokenizer = Bytes()
    assert build(cfg)[1]


# ---- mistakes ----------------------------------------------------------------------------------------------------------

TABLE = CsvSource(path="rows.csv")


def beside(name: str, role: str = "input", type: str = "string", kind: str = "categorical") -> tuple[Column, ...]:
    """Returns a column beside the texts."""
    return (Column(name=name, type=type, role=role, kind=kind),)


def by_file(**fields: str) -> NextToken:
    return NextToken(tokenizer=TokenizerFile(**{"path": "t.json", **fields}))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a feature": ({"columns": beside("file", "feature")}, "'file' has the role 'feature', but config.etl.label=NextToken()"),
    "a weight": ({"columns": beside("w", "weight", "int64"), "source": TABLE}, "'w' has the role 'weight'"),
    "another column": ({"label": NextToken(column="body")}, "config.etl.label.column='body' must be 'text'"),
    "no column": ({"label": NextToken(column=""), "source": TABLE}, "config.etl.label.column='' must name"),
    "no such column": ({"columns": beside("day")}, "'day' is no column of text files; they have text and file"),
    "a number of a name": ({"columns": beside("file", type="int64")}, "'file' is int64; the name of a text file is 'string'"),
    "the text beside": ({"columns": beside("text")}, "config.etl.label.column='text' is also in config.etl.columns"),
    "length": ({"label": NextToken(length=0)}, "config.etl.label.length=0 must be from 1 to 1048576"),
    "max_bytes": ({"source": TextSource(path="x", max_bytes=3)}, "config.etl.source.max_bytes=3 must be"),
    "no path": ({"source": TextSource(path="")}, "config.etl.source.path='' must name a file"),
    "no text": ({"source": TextSource(path="x", separator="\udc80")}, "config.etl.source.separator='\\udc80' is no text"),
    "no tokenizer": ({"label": by_file(path="")}, "config.etl.label.tokenizer.path='' must name a tokenizer.json"),
    "no end": ({"label": by_file(end="")}, "config.etl.label.tokenizer.end='' must name the token"),
    "a split by nothing": ({"split": ByColumn(column="file", eval=("a",))}, "'file' is not in config.etl.columns"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, tmp_path):
    changed, message = MISTAKES[name]
    with pytest.raises(ConfigError) as ended:
        validate(text_config(tmp_path, **changed))
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


def test_labels_and_losses_of_rows_are_refused(tmp_path):
    cfg = text_config(tmp_path)
    validate(cfg)
    cfg.loss.class_weight = "balanced"
    with pytest.raises(ConfigError, match=r"config\.loss\.class_weight='balanced' is for labels of classes"):
        validate(cfg)
    with pytest.raises(ConfigError, match="label=Label is for rows with features; text files are learned by NextToken"):
        validate(text_config(tmp_path, label=small_config(tmp_path).etl.label))


# ---- the command line --------------------------------------------------------------------------------------------------

RECIPE = """
from mlprod.config import *
from mlprod.models.mlp import MLPConfig
def get_config():
    etl = EtlConfig(source=TextSource(path={source!r}, separator="\\n%\\n"), columns=(), label={label}, group_rows=16)
    return Config(name="t", workdir={workdir!r}, dataset={dataset!r}, etl=etl, model=MLPConfig(), steps=1)
"""


def write_recipe(folder: Path, label: str = "NextToken(length=16)") -> str:
    (folder / "texts.txt").write_text("\n%\n".join(DOCUMENTS), encoding="utf-8")
    path = folder / "recipe.py"
    paths = {name: str(folder / place) for name, place in (("source", "texts.txt"), ("dataset", "dataset"), ("workdir", "run"))}
    path.write_text(RECIPE.format(label=label, **paths))
    return str(path)


def test_a_dataset_of_texts_is_looked_at(pairs, tmp_path, capsys):
    """ls, show with decoded text, verify, diff; a tokenizer that was changed is told."""
    recipe = write_recipe(tmp_path, f"NextToken(length=16, tokenizer=TokenizerFile(path={str(pairs)!r}))")
    assert cli.run(["etl", "--config", recipe, "--dry-run"]) == 0
    assert "the next token of text" in capsys.readouterr().out
    diff = ["data", "diff", "--with", str(tmp_path / "dataset")]
    for words in (["etl"], ["data", "ls"], ["data", "show", "--rows", "50"], ["data", "verify"], diff):
        assert cli.run([*words, "--config", recipe]) == 0
    out = capsys.readouterr().out
    assert "documents" in out
    assert "text of row 15" in out
    assert any(word in out for word in ("gamma", "alpha"))
    assert "OK, " in out
    page = (tmp_path / "dataset" / "reports" / "000001.html").read_text()
    assert "documents" in page
    assert "Column by column" not in page
    (tmp_path / "dataset" / "vocab" / "000001.json").write_text("{}")
    assert cli.run(["data", "verify", "--config", recipe]) == 1
    assert "vocab/000001.json: its SHA-256 is not" in capsys.readouterr().out
    refused(capsys, ["data", "show", "--config", recipe], "vocab/000001.json is gone or was changed; restore it")


def test_what_needs_a_score_a_row_is_refused(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    words = ["predict", "--config", recipe, "--output", str(tmp_path / "x")]
    refused(capsys, words, "NextToken() gives no row a score", "`mlprod evaluate`")
    for option in (["--by", "file"], ["--scores", str(tmp_path / "x")]):
        refused(capsys, ["evaluate", "--config", recipe, *option], f"--{option[0][2:]}={option[1]} needs a score a row")

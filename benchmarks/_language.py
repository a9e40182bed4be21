"""Plans of language models over packed text that is nowhere stored: for programs that are compiled and not run."""

from collections.abc import Sequence
from tempfile import mkdtemp

import jax

from mlprod.config import Config, EtlConfig, LoaderConfig, MeshConfig, NextToken, OptimConfig, PrecisionConfig, TextSource
from mlprod.config import EvalConfig as Eval
from mlprod.features import FeatureSpec, Target
from mlprod.features import Sequence as Ids
from mlprod.manifest import FORMAT, Manifest, Shard, StoredColumn
from mlprod.models.transformer import TransformerConfig
from mlprod.plan import Plan, plan_of
from mlprod.store import open_store

STEPS = 1000


def language_plan(
    model: TransformerConfig,
    mesh: MeshConfig,
    devices: Sequence[jax.Device],
    *,
    rows: int,
    length: int,
    num_ids: int,
    precision: PrecisionConfig | None = None,
    optim: OptimConfig | None = None,
) -> Plan:
    """Returns the plan of a run over `rows` rows of `length` tokens a step, of a vocabulary of `num_ids`."""
    folder = mkdtemp(prefix="mlprod-language-")
    cfg = Config(
        name="language", workdir=folder, dataset=folder, model=model, mesh=mesh, steps=STEPS,
        etl=EtlConfig(source=TextSource(path="text"), columns=(), label=NextToken(length=length), group_rows=64),
        precision=precision or PrecisionConfig(compute="bfloat16"), optim=optim or OptimConfig(),
        loader=LoaderConfig(global_batch=rows), eval=Eval(batch=rows),
    )  # fmt: skip
    widths = {"tokens": (length + 1, num_ids), "segments": (length + 1, length + 2)}
    features = tuple(Ids(name=name, length=each, num_ids=ids) for name, (each, ids) in widths.items())
    columns = tuple(_column(name, each) for name, (each, _) in widths.items())
    groups = STEPS * rows // 64 + 1
    shard = Shard(path="", groups=(64,) * groups, sums=(), spans=(), checksums=(), offsets={}, bytes=0, sha256="")
    published = Manifest(
        format=FORMAT, version=1, parent=0, build_key="", dataset_id="", config={}, group_rows=64, hash_version=1, hash_seed=0,
        storage="packed", hash_order=True, columns=columns, splits={"train": (shard,), "eval": (), "test": ()}, features="",
        features_sha256="", report="", source={},
    )  # fmt: skip
    spec = FeatureSpec(features=features, target=Target(task="tokens", column="text"))
    return plan_of(cfg, devices, open_store(folder), published, spec)


def _column(name: str, length: int) -> StoredColumn:
    return StoredColumn(
        name=name, type="string", dtype="int32", shape=(length,), role="feature", kind="sequence", stored_in="packed_int32",
        vocabulary_size=0, missing="refuse", sensitive=False,
    )  # fmt: skip

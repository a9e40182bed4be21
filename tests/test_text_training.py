"""Packed texts reach a model of the user's own: batches, losses a token, evaluation, report and comparison."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mlprod.config import (
    EvalConfig,
    LoaderConfig,
    MeshConfig,
    NextToken,
    OptimConfig,
    PrecisionConfig,
    TextSource,
    TrackingConfig,
)
from mlprod.errors import LayoutError
from mlprod.etl.run import build
from mlprod.evaluate import evaluate, restore_for
from mlprod.features import FeatureSpec
from mlprod.memory import need, savings
from mlprod.models.transformer import TransformerConfig
from mlprod.plan import make_plan, score_of
from mlprod.report import cards, compare
from mlprod.report.past import read
from mlprod.train import train
from tests.chaos.harness import read_log
from tests.plain import small_config, stored

TEXTS = [f"the {'quick brown ' * (i % 4)}fox {i} jumps over {'the lazy ' * (i % 3)}dog {i * i}" for i in range(200)]


class Bigram(nnx.Module):
    """The next token by the one before alone."""

    DIMS = {r"table/kernel": ("in", "out")}
    TABLES: dict[str, tuple[str, ...]] = {}

    def __init__(self, spec: FeatureSpec, rngs: nnx.Rngs) -> None:
        self.ids = spec.sequences[0].num_ids
        self.table = nnx.Linear(self.ids, self.ids, use_bias=False, rngs=rngs)

    def __call__(self, batch: Any, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.table(jax.nn.one_hot(batch["tokens"][:, :-1], self.ids))

    def loss(self, outputs: jax.Array, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        before, after = batch["segments"][:, :-1], batch["segments"][:, 1:]
        weight = ((before == after) & (after > 0)).astype(jnp.float32) * batch["weight"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["tokens"][:, 1:])
        return {"loss": ((losses * weight).sum(), weight.sum())}


@dataclass
class BigramConfig:
    """No sizes."""

    members: int = 1

    def build(self, spec: FeatureSpec, rngs: nnx.Rngs) -> Bigram:
        return Bigram(spec, rngs)


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    source = TextSource(path=str(tmp_path / "t.txt"), separator="\n")
    usual = small_config(tmp_path, source=source, columns=(), label=NextToken(length=32))
    return replace(
        usual, model=BigramConfig(), steps=6, loader=LoaderConfig(global_batch=16), eval=EvalConfig(batch=16, every=3),
        tracking=TrackingConfig(wandb="off"), optim=OptimConfig(peak_lr=0.1, warmup_steps=1),
    )  # fmt: skip


def test_a_run_on_texts(cfg: Any) -> None:
    """It learns; what an evaluation tells is what a plain program sums, and its report and a comparison can be written."""
    published, _ = build(cfg)
    train(cfg, jax.devices()[:2])
    past = read(Path(cfg.workdir))
    plan = make_plan(cfg, jax.devices()[:1])
    state, _ = restore_for(plan, -1)
    found = evaluate(plan, score_of(plan), state, "eval")
    assert found["log_loss"] < np.log(257)
    assert past.newest()["eval"]["metrics"]["log_loss"] == pytest.approx(found["log_loss"], rel=1e-5)
    rows = stored(Path(cfg.dataset), published, "eval")
    losses = plain_losses(np.asarray(state.params["table"]["kernel"], np.float64), *np.split(rows["ids"], 2, axis=1))
    assert found["tokens"] == len(losses) == rows["label"].sum()
    assert found["rows"] == published.num_rows("eval")
    assert found["log_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert "Eval: perplexity" in [card.title for card in cards.training(past)]
    assert "Eval: perplexity" in [card.title for card in compare.curves([past, past])]


def told(workdir: str, kind: str, name: str) -> list[Any]:
    """What a run's log tells of its steps, in their order."""
    return [line["values"][name][0] if name != "ids" else line["ids"] for line in read_log(Path(workdir)) if line["kind"] == kind]


def test_a_transformer_moves_between_layouts(cfg: Any, tmp_path: Path) -> None:
    """Five steps on one device, five more on eight that share rows: examples, losses and counts are those of one device alone."""
    small = TransformerConfig(layers=2, width=32, heads=4, kv_heads=2, head_width=8, hidden=48)
    constant = OptimConfig(peak_lr=3e-3, end_lr=3e-3, warmup_steps=1)  # whatever the number of steps
    straight = replace(cfg, model=small, optim=constant, steps=10, workdir=str(tmp_path / "straight"))
    build(straight)
    train(straight, jax.devices()[:1])
    moved = replace(straight, workdir=str(tmp_path / "moved"))
    train(replace(moved, steps=5), jax.devices()[:1])
    shared = MeshConfig(data=1, fsdp=(4,), tensor=2, layout="fsdp_tensor")
    train(replace(moved, mesh=shared), jax.devices())
    runs = [straight.workdir, moved.workdir]
    ids, losses = ([told(run, "train", name) for run in runs] for name in ("ids", "loss"))
    assert ids[0] == ids[1]
    assert len(ids[0]) == 10
    assert losses[1][:5] == losses[0][:5]
    assert losses[1][5:] == pytest.approx(losses[0][5:], rel=1e-5)
    counts, found = ([told(run, "eval", name)[-1] for run in runs] for name in ("tokens", "log_loss"))
    assert counts[0] == counts[1]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_what_a_transformer_would_save(cfg: Any) -> None:
    """Half the precision and blocks computed again, each as its own plan counts it; weights are whole while they are used."""
    build(cfg)
    sizes = {"layers": 4, "width": 64, "heads": 4, "kv_heads": 2, "head_width": 16, "hidden": 96}
    cfg = replace(cfg, model=TransformerConfig(**sizes, remat="none"), mesh=MeshConfig(data=1, fsdp=(8,)))
    plan = make_plan(cfg, jax.devices())
    now, saved = need(plan), {each.change.split(":")[0]: each.bytes for each in savings(plan, need(plan))}
    half = need(make_plan(replace(cfg, precision=PrecisionConfig(compute="bfloat16")), jax.devices()))
    again = need(make_plan(replace(cfg, model=replace(cfg.model, remat="full")), jax.devices()))
    assert saved["config.precision.compute=bfloat16"] == now.total - half.total > 0
    assert saved["config.model.remat=full"] == now.total - again.total > now.activations / 2
    whole = 2 * plan.abstract.params["embed"]["embedding"].size + sum(
        kernel["kernel"].size // 4 for kernel in plan.abstract.params["blocks"].values() if "kernel" in kernel
    )
    assert now.gathered == 2 * 4 * whole
    assert half.gathered == now.gathered // 2


@pytest.mark.parametrize(
    ("mesh", "wrong"),
    [
        (
            MeshConfig(data=1, fsdp=(2,), tensor=4, layout="fsdp_tensor"),
            "config.mesh.tensor=4 does not divide config.model.kv_heads=2",
        ),
        (
            MeshConfig(data=1, fsdp=(1,), tensor=8, layout="fsdp_tensor"),
            "config.mesh.tensor=8 does not divide config.model.heads=4",
        ),
    ],
)
def test_rows_that_devices_cannot_share(cfg: Any, mesh: MeshConfig, wrong: str) -> None:
    """Are refused by the field's name, before a device computes."""
    build(cfg)
    small = TransformerConfig(layers=1, width=32, heads=4, kv_heads=2, head_width=8, hidden=48)
    with pytest.raises(LayoutError, match=re.escape(wrong)):
        make_plan(replace(cfg, model=small, mesh=mesh), jax.devices())


def plain_losses(logits: np.ndarray, tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Returns -log softmax of each token that follows another of its segment; `logits`: by the token before."""
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -log_p[tokens[:, :-1], tokens[:, 1:]][same]

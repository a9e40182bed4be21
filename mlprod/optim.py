"""The optimizer: AdamW with warm-up and cosine, as an `optax.named_chain` so that its state has names of ours."""

from typing import Any

import jax
import optax

from mlprod.config import OptimConfig


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the rate by step: linear to `peak_lr` over `warmup_steps`, then a cosine to `end_lr` at `steps`."""
    warmup = min(cfg.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else cfg.peak_lr,
        peak_value=cfg.peak_lr,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
        end_value=cfg.end_lr,
    )


NOT_DECAYED = ("bias", "scale", "slope", "member_scale")  # names of arrays that stay as they are, of however many dims


def _decayed(trained: dict[str, Any]) -> dict[str, Any]:
    """Returns a tree of bools like `trained`: True for matrices among the parameters, False for biases, scales and tables."""

    def decayed(path: tuple[Any, ...], x: Any) -> bool:
        names = [str(getattr(key, "key", key)) for key in path]
        return names[0] == "params" and x.ndim >= 2 and names[-1] not in NOT_DECAYED

    tree: dict[str, Any] = jax.tree_util.tree_map_with_path(decayed, trained)
    return tree


def build_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer over {"params": ..., "tables": ...}; `steps`: of the whole run, for the schedule."""
    return optax.named_chain(
        ("clip", optax.clip_by_global_norm(cfg.clip_norm)),
        ("adam", optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2)),
        ("decay", optax.add_decayed_weights(cfg.weight_decay, mask=_decayed)),
        ("rate", optax.scale_by_learning_rate(learning_rate(cfg, steps))),
    )

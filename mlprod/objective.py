"""What a model's outputs mean, by the task: how many there are, the loss, and the score that people see.

Promise: losses are per row and in float32; means are taken once, at the end. A number's outputs are in deviations of the training
labels, so that a model learns it at the same rate in any unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from mlprod.features import Target


class Objective(Protocol):
    """One task. Outputs are float32[B], of classes [B, C]; labels float32[B] as they are stored."""

    @property
    def num_outputs(self) -> int:
        """The width of a model's head."""
        ...

    def outputs(self, head: jax.Array) -> jax.Array:
        """Returns outputs of what a head gives, float32[..., num_outputs]."""
        ...

    def losses(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns float32[B]; of outputs of K members, [B, K] or [B, K, C], each member's: [B, K]."""
        ...

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Returns the probability of label 1, float32[B]; the number, float32[B]; or the probability of each class, [B, C]."""
        ...

    def told(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns what an evaluation needs of each row besides the loss: of rows with a score "score" (see `scores`), "label" and
        "weight_of", float32[B] each."""
        ...

    def averaged(self, outputs: jax.Array) -> jax.Array:
        """Returns outputs whose scores are the mean of members' scores; `outputs`: [B, K] or [B, K, C]."""
        ...

    def class_weights(self, labels: jax.Array) -> jax.Array:
        """Returns float32[B]: weights by which every class counts as much as any other; 1 where there are no classes."""
        ...


@dataclass(frozen=True)
class BinaryObjective:
    """Cross-entropy of a logit. `positive`: share of the training rows with label 1."""

    positive: float
    num_outputs: int = 1

    def outputs(self, head: jax.Array) -> jax.Array:
        """Returns logits [...]."""
        return head[..., 0]

    def losses(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns -log likelihood; stable for large logits: max(x, 0) - x y + log(1 + exp(-|x|))."""
        losses: jax.Array = optax.sigmoid_binary_cross_entropy(outputs.astype(jnp.float32), _beside(labels, outputs.ndim))
        return losses

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Returns probabilities."""
        return jax.nn.sigmoid(outputs.astype(jnp.float32))

    def told(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns scores, labels and weights."""
        return _scored(self.scores(outputs), batch)

    def averaged(self, outputs: jax.Array) -> jax.Array:
        """Returns the logit of the mean probability: log mean p - log mean (1 - p)."""
        x = outputs.astype(jnp.float32)
        log_p, log_q = (jax.nn.logsumexp(jax.nn.log_sigmoid(signed), axis=1) for signed in (x, -x))
        return log_p - log_q

    def class_weights(self, labels: jax.Array) -> jax.Array:
        """Returns N / (2 N_c) of each row's class c."""
        return jnp.where(labels > 0.5, 0.5 / self.positive, 0.5 / (1 - self.positive))


@dataclass(frozen=True)
class RegressionObjective:
    """Squared error in deviations of the training labels, whose `mean` and `std` are in the column's unit."""

    mean: float
    std: float
    num_outputs: int = 1

    def outputs(self, head: jax.Array) -> jax.Array:
        """Returns numbers in deviations [...]."""
        return head[..., 0]

    def losses(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns squared errors."""
        return (outputs.astype(jnp.float32) - _beside((labels - self.mean) / self.std, outputs.ndim)) ** 2

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Returns numbers in the column's unit."""
        return outputs.astype(jnp.float32) * self.std + self.mean

    def told(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns scores, labels and weights."""
        return _scored(self.scores(outputs), batch)

    def averaged(self, outputs: jax.Array) -> jax.Array:
        """Returns means."""
        return outputs.astype(jnp.float32).mean(axis=1)

    def class_weights(self, labels: jax.Array) -> jax.Array:
        """Returns ones."""
        return jnp.ones_like(labels)


@dataclass(frozen=True)
class ClassesObjective:
    """Cross-entropy of a softmax. `counts`: training rows of each class."""

    counts: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        """One a class."""
        return len(self.counts)

    def outputs(self, head: jax.Array) -> jax.Array:
        """Returns logits [..., C]."""
        return head

    def losses(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns -log likelihood."""
        logits = outputs.astype(jnp.float32)
        numbers = jnp.broadcast_to(_beside(labels.astype(jnp.int32), logits.ndim - 1), logits.shape[:-1])
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, numbers)
        return losses

    def scores(self, outputs: jax.Array) -> jax.Array:
        """Returns probabilities [B, C]."""
        return jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)

    def told(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns scores, labels and weights."""
        return _scored(self.scores(outputs), batch)

    def averaged(self, outputs: jax.Array) -> jax.Array:
        """Returns logs of the mean probabilities, up to a constant."""
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs.astype(jnp.float32), axis=-1), axis=1)

    def class_weights(self, labels: jax.Array) -> jax.Array:
        """Returns N / (C N_c) of each row's class c."""
        rows, there = sum(self.counts), sum(count > 0 for count in self.counts)
        weights = jnp.array([rows / (there * count) if count else 1.0 for count in self.counts], jnp.float32)
        return weights[labels.astype(jnp.int32)]


@dataclass(frozen=True)
class TokensObjective:
    """Cross-entropy of each next token: a model of tokens sums it itself, {"loss": (over tokens, their number)}, each token with
    its row's weight. There is no score of a row."""

    def told(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns weights: which rows are there."""
        return {"weight_of": batch["weight"]}

    def class_weights(self, labels: jax.Array) -> jax.Array:
        """Returns ones."""
        return jnp.ones_like(labels)


def _scored(scores: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns what leaves the device of rows that have scores, float32[B] or [B, C]."""
    return {"score": scores, "label": batch["label"], "weight_of": batch["weight"]}


def _beside(labels: jax.Array, ndim: int) -> jax.Array:
    """Returns labels [B] as [B, 1, ...] of so many dims."""
    return labels.reshape(labels.shape + (1,) * (ndim - 1))


def objective_of(target: Target) -> Any:
    """Returns the objective of what a dataset is to teach."""
    if target.task == "tokens":
        return TokensObjective()
    if target.task == "regression":
        return RegressionObjective(target.mean, target.std)
    return ClassesObjective(target.counts) if target.task == "classes" else BinaryObjective(target.mean)


def weighted(losses: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (weighted sum, sum of weights), float32 scalars, of float32[B] each; of [B, K], K members' losses, the mean's."""
    per_row = losses if losses.ndim == 1 else losses.mean(axis=1)
    return (per_row * weight).sum(), weight.sum()

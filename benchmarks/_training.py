"""What the loader takes from a training step, measured once: a process that trains on one batch again and again, then on many.

    python benchmarks/_training.py JOB      # JOB: a `Job` of `_contenders.py` as JSON; prints one line of JSON

Promise: both trainings run the same compiled program with the same number of steps, and fetch a step's loss after dispatching
the next, as `mlprod train` does. Batches come as there: read ahead, and put on the device ahead on a thread of their own. The
device's own training is measured before and after, and the mean of the two is compared.
Price: `STEPS` steps thrice. On CPU the loader's threads and the step's share the cores, so the share counts what they lose to
each other; on an accelerator it would be the waiting alone.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _contenders import Job, loader_config, training_stream
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlprod.parallel.place import placed_ahead

HIDDEN = (256, 256)
WARM_STEPS = 20  # before each training is timed: compiling, and the batches that were ready before

Params = list[tuple[jax.Array, jax.Array]]
State = tuple[Params, Any]
Batch = Mapping[str, jax.Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Seconds a step."""

    held_s: float  # on one batch that stays on the device
    loaded_s: float  # on batches of the loader
    waited_s: float  # of these, until the next batch was there


def layers(width: int) -> Params:
    """Returns an MLP's weights [in, out] and biases [out]."""
    rng, sizes = np.random.default_rng(0), (width, *HIDDEN, 1)
    return [(jnp.asarray(rng.normal(0, a**-0.5, (a, b)), jnp.float32), jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]


def mean_loss(params: Params, batch: Batch) -> jax.Array:
    """Returns the mean binary cross-entropy, a scalar."""
    x = batch["numeric"]
    for weights, bias in params[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    weights, bias = params[-1]
    return optax.sigmoid_binary_cross_entropy((x @ weights + bias)[:, 0], batch["label"]).mean()


class Training:
    """A jitted step with Adam, and the state that it goes on from."""

    def __init__(self, width: int) -> None:
        """`width`: numbers of a row."""
        self._optimizer = optax.adam(1e-3)
        params = layers(width)
        self._state: State = (params, self._optimizer.init(params))
        self._update = jax.jit(self._stepped, donate_argnums=0)

    def _stepped(self, state: State, batch: Batch) -> tuple[State, jax.Array]:
        params, optim = state
        loss, gradient = jax.value_and_grad(mean_loss)(params, batch)
        change, optim = self._optimizer.update(gradient, optim, params)
        return (optax.apply_updates(params, change), optim), loss

    def run(self, batches: Iterator[Batch], steps: int) -> tuple[float, float]:
        """Trains; returns seconds a step, and of these the seconds that the next batch was waited for."""
        waited, before = 0.0, None
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self._state, loss = self._update(self._state, batch)
            if before is not None:
                float(before)
            before = loss
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / steps, waited / steps

    def timed(self, batches: Iterator[Batch], steps: int) -> tuple[float, float]:
        """The same after some steps that are not timed."""
        self.run(batches, WARM_STEPS)
        return self.run(batches, steps)


def loaded(job: Job, one: NamedSharding, steps: int) -> Any:
    """Returns (host rows, batch on the device) pairs as training draws them. A context manager."""
    depth = loader_config(job.batch).loader.on_device
    stream = training_stream(job.folder, job.batch, steps=steps)()
    return placed_ahead(stream, one, ((0, job.batch),), job.batch, depth, lambda seconds: None)


def measured(job: Job) -> Step:
    """Trains for `job.num_rows` rows on one batch, on the loader's, and on the one again."""
    one = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
    steps = job.num_rows // job.batch
    with loaded(job, one, 1) as batches:
        held = jax.tree.map(jnp.copy, next(batches)[1])
    training = Training(held["numeric"].shape[1])
    first, _ = training.timed(itertools.repeat(held), steps)
    with loaded(job, one, WARM_STEPS + steps) as batches:
        loaded_s, waited_s = training.timed((batch for _, batch in batches), steps)
    again, _ = training.timed(itertools.repeat(held), steps)
    return Step(held_s=(first + again) / 2, loaded_s=loaded_s, waited_s=waited_s)


if __name__ == "__main__":
    print(json.dumps(asdict(measured(Job(**json.loads(sys.argv[1]))))))

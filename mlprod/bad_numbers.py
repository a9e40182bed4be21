"""What becomes of a step whose loss or gradient is NaN or infinite.

Promise: all processes see the same sums, so they do the same. What is left out follows from the position of the bad batch alone,
never from which steps happen to be saved: a run that rolls back ends with the bits of a run that was told to skip those examples.
Price: one look at every gradient for the first bad one, on the devices.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mlprod.config import BadNumbersConfig
from mlprod.errors import TrainingError

SHOWN = 5  # row ids in a message
MEND = "lower config.optim.peak_lr, mend the data, or set config.bad_numbers.policy to skip or rollback"

Range = tuple[int, int]  # examples [a, b)


class RollBack(Exception):
    """The run must go on from before a bad batch, without it."""

    def __init__(self, position: int, told: str) -> None:
        """`position`: of the batch's first example; `told`: what was bad, for people."""
        super().__init__(told)
        self.position = position


class Watch:
    """Looks at the numbers of each step, in order, and does as the config says."""

    def __init__(self, cfg: BadNumbersConfig, paths: Sequence[str], global_batch: int) -> None:
        """`paths`: of the gradients, in the order of the step's sum "bad"."""
        self._cfg, self._paths, self._global_batch = cfg, paths, global_batch
        self._skipped = 0

    def is_bad(self, step: int, after: int, sums: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> bool:
        """Returns whether the update of `step` was left out: then its numbers are none.

        Args:
            after: position behind its batch.
            rows: the rows of it that this process holds, [local rows, ...] each.

        Raises:
            TrainingError: the policy is to stop, or too many were skipped.
            RollBack: the policy is to go back.
        """
        bad = int(sums["bad"])
        if bad < 0:
            return False
        position = after - self._global_batch
        told = f"step {step}, examples {position} to {after - 1}: {self._what(bad, sums)}; {blamed(rows)}"
        if self._cfg.policy == "rollback":
            raise RollBack(position, told)
        self._skipped += 1
        if self._cfg.policy == "stop":
            raise TrainingError(f"{told}; {MEND}")
        if self._skipped > self._cfg.limit:
            raise TrainingError(f"{told}; {self._cfg.limit} updates were left out before it (config.bad_numbers.limit)")
        return True

    def _what(self, bad: int, sums: Mapping[str, np.ndarray]) -> str:
        loss = float(sums["loss"]) / float(sums["weight"])
        if bad < len(self._paths):
            return f"the loss is {loss}, the gradient of {self._paths[bad]} is the first that is not finite"
        return f"the loss is {loss}"


def blamed(rows: Mapping[str, np.ndarray]) -> str:
    """Returns which rows of a batch are not finite themselves, or that all are, with their row ids; [B, ...] each."""
    ids = np.ascontiguousarray(rows["row_id"]).view("<u8")[:, 0]
    bad = np.zeros(len(ids), bool)
    for values in rows.values():
        if values.dtype.kind == "f":
            bad |= ~np.isfinite(values).reshape(len(ids), -1).all(axis=1)
    shown = ", ".join(f"{i:016x}" for i in ids[bad if bad.any() else slice(None)][:SHOWN])
    if bad.any():
        return f"{int(bad.sum())} of its rows hold NaN or infinity: row_id {shown}"
    return f"its rows are finite, the first are row_id {shown}"


def around(position: int, window: int, global_batch: int) -> Range:
    """Returns the examples that a rollback leaves out: [position - window, position + window) in whole batches."""
    return max(0, position - window * global_batch), position + window * global_batch


def joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Returns sorted, disjoint ranges of the same examples."""
    out: list[Range] = []
    for a, b in sorted(ranges):
        if out and a <= out[-1][1]:
            out[-1] = out[-1][0], max(b, out[-1][1])
        else:
            out.append((a, b))
    return tuple(out)


def within(part: Range, ranges: Sequence[Range]) -> bool:
    """Whether one of the ranges holds all of `part`."""
    return any(a <= part[0] and part[1] <= b for a, b in ranges)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that are numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}

"""Floating point operations of a traced program.

Promise: matrix products and convolutions, two operations a multiply-add, a loop's body as often as it runs; of several branches
the largest. All devices together.
Price: what is computed element by element is left out (on a TPU another unit does it, and memory is what it waits for); the
body of a loop whose length is not in the program counts once.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(traced: Any) -> float:
    """Returns the operations of one run of a program; `traced`: a `ClosedJaxpr`, as `jax.jit(f).trace(...).jaxpr`."""
    return _total(traced.jaxpr)


def _total(jaxpr: Any) -> float:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        left, right, out = (each.aval.shape for each in (*equation.invars[:2], equation.outvars[0]))
        if name == "dot_general":
            return float(2 * math.prod(out) * math.prod(left[d] for d in params["dimension_numbers"][0][0]))
        num_out = right[params["dimension_numbers"].rhs_spec[0]]
        return float(2 * math.prod(out) * math.prod(right) / num_out)
    inner = [_total(each) for each in _inside(equation)]
    if name == "cond":
        return max(inner)
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = math.prod(dict(params["mesh"].shape)[axis] for axis in params["newly_manual_axes"])
    return float(times * sum(inner))


def _inside(equation: Any) -> Iterator[Any]:
    """Yields the programs that an equation runs."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each

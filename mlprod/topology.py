"""`check --topology`: the run's own steps compiled for a TPU slice, on a machine without one. Runs in a process of its own.

Promise: no device is touched, and no lock of another process that has libtpu loaded; what libtpu says is not shown.
Price: the libtpu wheel; a process, since its library is chosen before JAX is imported and ends the process when it fails.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from mlprod import check, compiled, recipe, runtime
from mlprod.checkpoint.saved import trained_on
from mlprod.config import Config, RuntimeConfig
from mlprod.errors import LayoutError, MlprodError
from mlprod.parallel.chips import Slices, parse_slices
from mlprod.plan import make_plan

TOLD = "mlprod: "  # how a line of ours begins, among those of the compiler


def devices_of(slices: Slices) -> list[jax.Device]:
    """Returns the devices of TPU slices, which only a compiler can use.

    Raises:
        LayoutError: the compiler knows no such slice.
    """
    options: dict[str, Any] = dict(slices.chip.options)
    if math.prod(slices.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # else a host is taken to have four
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=slices.name, num_slices=slices.number, **options)
    except JaxRuntimeError as error:
        raise LayoutError(f"--topology={slices.name}: the compiler has no such slice: {error}") from error
    return found.devices


def check_on(cfg: Config, slices: Slices, num_processes: int) -> None:
    """Plans the run for TPU slices, prints the plan, compiles its steps and prints what they need.

    Args:
        num_processes: that the run will have; 0: one a host of the slices.

    Raises:
        UserError: as `check`; and the steps do not fit a chip's memory.
    """
    devices = devices_of(slices)
    plan = make_plan(cfg, devices, trained_on(cfg.workdir))
    check.show(plan, num_processes or len({device.process_index for device in devices}))
    try:
        compiled.show(plan, slices.chip, slices.number)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = " ".join(str(error).split())[:200]
        ways = "take more chips, a smaller config.loader.global_batch, or split more by config.mesh"
        raise LayoutError(f"a step does not fit a chip of {slices.name}: {told}; {ways}") from error
    print("check: all right")


def main(argv: Sequence[str]) -> int:
    """Runs the check of a command line and returns its exit code; an error of the user's is one line on stderr."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--topology")
    parser.add_argument("--num-slices", type=int)
    parser.add_argument("--processes", type=int)
    options, overrides = parser.parse_known_args(argv)
    try:
        cfg = recipe.load(options.config, overrides)
        runtime.start(RuntimeConfig(platform="cpu"))
        check_on(cfg, parse_slices(options.topology, options.num_slices), options.processes)
    except MlprodError as error:
        print(f"{TOLD}{' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

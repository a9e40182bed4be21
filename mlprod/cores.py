"""How many cores this process may use."""

import os


def num_cores() -> int:
    """Returns the number of cores that the process may run on: a container may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

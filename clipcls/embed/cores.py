"""Count the cores, and the threads to compute with."""

import os


def available_cores() -> int:
    """Return the number of cores that this process may use, which containers and job schedulers limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computing_threads() -> int:
    """Return the number of threads to compute with: OMP_NUM_THREADS, which torch honours too, else one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() and int(given) > 0 else available_cores()

"""Time and memory of the runners of `peers.py`, each in a process of its own.

Linux counts the memory that a parent has when it starts a child among the child's peak, so the first process has to
stay small: whatever imports torch, or makes pictures, runs in others. It is also fairer: workers of a DataLoader are
forked, which takes the longer the more models their process holds.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_all_start_methods, get_context, set_start_method
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from records import Key, Peak, Setup, Timing

Result = TypeVar("Result")

# What is this much slower in the first round than its runner's best won't be the best, and needn't run again.
HOPELESS = 0.8


def new_process() -> ProcessPoolExecutor:
    """A fresh process."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_fork_workers)


def in_new_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process that ends with it."""
    with new_process() as process:
        return process.submit(function, *arguments).result()


class Race:
    """All runners, each in its process, with its models loaded from the first run on."""

    def __init__(self, setup: Setup, keys: list[Key]) -> None:
        self.setup = setup
        self.keys = keys
        self._stack = ExitStack()
        names = dict.fromkeys(key.runner for key in keys)
        self._processes = {name: self._stack.enter_context(new_process()) for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, raised, traceback)

    def warm_up(self, paths: list[Path]) -> None:
        """Load what isn't loaded yet, and do some pictures."""
        for key in self.keys:
            self._seconds(key, paths, "warm-up")

    def run(self, paths: list[Path], rounds: int) -> list[Timing]:
        """One after the other in each round, so that whatever else the machine does meets all of them."""
        seconds: dict[Key, list[float]] = {key: [] for key in self.keys}
        running = self.keys
        for number in range(rounds):
            for key in running:
                seconds[key].append(self._seconds(key, paths, f"round {number + 1}"))
            if number == 0:
                running = _hopeful({key: values[0] for key, values in seconds.items()})
        return [Timing(key, len(paths), tuple(values)) for key, values in seconds.items()]

    def _seconds(self, key: Key, paths: list[Path], what: str) -> float:
        seconds = self._processes[key.runner].submit(_timed_run, self.setup, key, paths).result()
        print(f"{what}: {key}: {len(paths) / seconds:.1f} images/s", file=sys.stderr, flush=True)
        return seconds


def measure_peak(setup: Setup, key: Key, paths: list[Path]) -> Peak:
    """The memory that one runner takes, from the start of its process to the end of a run."""
    return in_new_process(_peak, setup, key, paths)


def _fork_workers() -> None:
    # A process that was spawned would spawn its own, and DataLoaders would import torch in each worker.
    if "fork" in get_all_start_methods():
        set_start_method("fork", force=True)


def _hopeful(first_round: dict[Key, float]) -> list[Key]:
    best: dict[str, float] = {}
    for key, seconds in first_round.items():
        best[key.runner] = min(seconds, best.get(key.runner, seconds))
    return [key for key, seconds in first_round.items() if best[key.runner] >= HOPELESS * seconds]


def _timed_run(setup: Setup, key: Key, paths: list[Path]) -> float:
    from runners import prepared

    run = prepared(setup, key)
    start = time.perf_counter()
    run(paths)
    return time.perf_counter() - start


def _peak(setup: Setup, key: Key, paths: list[Path]) -> Peak:
    import resource

    import torch
    from runners import prepared

    prepared(setup, key)(paths)
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    process, worker = (resource.getrusage(user).ru_maxrss / 1024 for user in users)
    on_gpu = torch.cuda.max_memory_allocated() / 2**20 if setup.device == "cuda" else None
    return Peak(process, worker if key.workers else None, key.workers, on_gpu)

"""What the processes of `peers.py` hand to one another; imports nothing heavy, so that the first one stays small."""

import statistics
from dataclasses import dataclass
from pathlib import Path

CLIPCLS, CLIPCLS_FP32, CLIPCLS_INT8 = "clipcls, precision auto", "clipcls, fp32", "clipcls, int8"
BY_TORCH = ", --runtime torch"
TRANSFORMERS, OPEN_CLIP = "transformers pipeline as it comes", "open_clip loop as it comes"
TUNED, PYBIOCLIP = "open_clip loop tuned by hand", "pybioclip, custom labels"
FORWARD, FORWARD_FP32 = "roof: forward alone, precision auto", "roof: forward alone, fp32"
DECODE = "roof: decode alone"
ROOFS = (FORWARD, FORWARD_FP32, DECODE)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runners share.

    Attributes:
        weights: a model folder that open_clip and clipcls both read.
        device: `cpu` or `cuda`.
        gpu: its name; None for a CPU.
        precision: what `auto` is on that device.
        runtimes: those of clipcls that can run there, the one that `auto` takes first.
        workers: numbers of DataLoader workers to try.
        batches: batch sizes that the tuned loop tries.
        forward_batches: batch sizes that the forward roof tries.
    """

    weights: Path
    device: str
    gpu: str | None
    precision: str
    runtimes: tuple[str, ...]
    workers: tuple[int, ...]
    batches: tuple[int, ...]
    forward_batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One way to run a runner; the best one of each runner counts.

    Attributes:
        runner: its name in the table.
        detail: what this way does differently from the runner's others.
        workers: processes that it starts.
    """

    runner: str
    detail: str = ""
    workers: int = 0

    def __str__(self) -> str:
        return f"{self.runner} ({self.detail})" if self.detail else self.runner


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a run over all pictures of a corpus took, in each round."""

    key: Key
    images: int
    seconds: tuple[float, ...]

    @property
    def speed(self) -> float:
        """Images per second, the median of the rounds."""
        return statistics.median(self.images / seconds for seconds in self.seconds)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory a run needed, in MiB.

    Attributes:
        process: of the process that runs the model.
        worker: of the largest worker process; None without workers. Pages that it shares count in both.
        workers: how many there are.
        gpu: that torch allocated on the GPU; None without one.
    """

    process: float
    worker: float | None = None
    workers: int = 0
    gpu: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.process:,.0f}"]
        if self.worker is not None:
            parts.append(f" + {self.workers} × {self.worker:,.0f}")
        if self.gpu is not None:
            parts.append(f"; GPU {self.gpu:,.0f}")
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured.

    Attributes:
        machine: lines that say what it was measured on.
        timings: for each corpus, of all ways of all runners.
        peaks: for each corpus, of each runner's best way.
    """

    machine: list[str]
    timings: dict[str, list[Timing]]
    peaks: dict[str, dict[Key, Peak]]

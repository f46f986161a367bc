"""Runs of the command line, in processes of their own, whose rows are timed as they come."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from gpu_plan import LABELS, Figure, Plan, Result

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from killing import check_equal, rows_in  # noqa: E402


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run went.

    Attributes:
        code: what it exited with; negative for a signal.
        seconds: from its start to its end.
        rows: what it wrote to standard output.
        marks: when how many lines had been read, in seconds since the start.
        started: on the clock of `time.monotonic`.
        processor: seconds that all cores worked.
        peak: of its memory, in MiB.
        messages: what it wrote to standard error.
    """

    code: int
    seconds: float
    rows: bytes
    marks: tuple[tuple[float, int], ...]
    started: float
    processor: float
    peak: float
    messages: str

    def window(self, skipped: int) -> tuple[float, float, int]:
        """Return when the first line after some came, when the last one came, and how many came in between."""
        begin, before = next((mark for mark in self.marks if mark[1] >= skipped), self.marks[-1])
        end, after = self.marks[-1]
        return begin, end, after - before

    def require_success(self) -> Self:
        """Raise a `RuntimeError` with its last words if it failed."""
        if self.code:
            raise RuntimeError(f"exit code {self.code}: {self.messages[-1500:]}")
        return self


@dataclass(slots=True)
class Job:
    """A run of `clipcls`, from its start on.

    Where there is a GPU it is a process as users start it. Else, for a test's sake, it is a fork of this one, which
    has imported torch already.
    """

    plan: Plan
    arguments: list[str]
    name: str
    pid: int = 0
    _process: "subprocess.Popen[bytes] | None" = None
    _started: float = 0.0
    _output: int = -1
    _marks: list[tuple[float, int]] = field(default_factory=list)
    _rows: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._output, writing = os.pipe()
        self._started = time.monotonic()
        with self._messages.open("wb") as messages:
            if self.plan.is_tiny:
                self.pid = _fork(self.arguments, writing, messages.fileno(), self.plan.folder)
            else:
                command = [sys.executable, "-m", "clipcls", *self.arguments]
                self._process = subprocess.Popen(command, stdout=writing, stderr=messages, cwd=self.plan.folder)
                self.pid = self._process.pid
        os.close(writing)

    @property
    def _messages(self) -> Path:
        return self.plan.folder / f"{self.name}.stderr"

    def finish(self) -> Ran:
        """Read all that the run writes, and wait for its end."""
        lines = 0
        with open(self._output, "rb", buffering=0) as output:  # noqa: PTH123, a pipe
            while data := output.read(2**16):
                lines += data.count(b"\n")
                self._rows += data
                self._marks.append((time.monotonic() - self._started, lines))
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self._started
        code = os.waitstatus_to_exitcode(status)
        if self._process is not None:
            self._process.returncode = code
        return Ran(
            code=code,
            seconds=seconds,
            rows=bytes(self._rows),
            marks=tuple(self._marks),
            started=self._started,
            processor=usage.ru_utime + usage.ru_stime,
            peak=usage.ru_maxrss / 1024,
            messages=self._messages.read_text(encoding="utf-8", errors="replace"),
        )


def predict(plan: Plan, name: str, model: str, inputs: list[str], *options: str, device: str | None = None) -> Job:
    """Start `clipcls predict` with its defaults, but without a cache."""
    job = ["predict", *inputs, "--labels", LABELS, "--model", str(plan.model(model)), "--no-cache"]
    return Job(plan, [*job, "--device", device or plan.device, *options], name)


def finish_all(jobs: list[Job]) -> list[Ran]:
    """Wait for runs that go on at the same time, reading from each as it writes."""
    found: dict[int, Ran] = {}
    threads = [threading.Thread(target=lambda job=job: found.setdefault(job.pid, job.finish())) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[job.pid] for job in jobs]


def compare_rows(plan: Plan, name: str, found: Ran, expected: Ran, tolerance: float, margin: float) -> Result:
    """Check that two runs that wrote JSONL have the same pictures in the same order, and as good as the same answers.

    Args:
        tolerance: of similarities.
        margin: where the best two similarities are nearer than this, either label will do.
    """
    paths = [plan.folder / f"rows-{number}.jsonl" for number in range(2)]
    for path, run in zip(paths, (found, expected), strict=True):
        path.write_bytes(run.rows)
    rows, others = (rows_in(path) for path in paths)
    figures: dict[str, Figure] = {"rows": len(rows)}
    try:
        check_equal(rows, others, tolerance, margin)
    except AssertionError as exc:
        return Result(name, figures | {"different": str(exc)[:500]}, ok=False)
    pairs = ((row.similarity, other.similarity) for row, other in zip(rows, others, strict=True))
    figures["similarities"] = max((abs(one - other) for one, other in pairs if one and other), default=None)
    return Result(name, figures, ok=len(rows) > 0 and all(row.error is None for row in rows))


def _fork(arguments: list[str], output: int, messages: int, folder: Path) -> int:
    """Run the command line in a copy of this process, in which torch mustn't have computed anything yet."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(messages, 2)
        os.chdir(folder)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["clipcls", *arguments]
        from clipcls.cli import main

        main()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass(slots=True)
class Card:
    """What the driver says of a GPU, looked at twenty times a second.

    Attributes:
        samples: time, share of the time that it computed, bytes in use by all processes.
        before: bytes that were in use beforehand.
        missing: why there are none.
    """

    samples: list[tuple[float, float, int]] = field(default_factory=list)
    before: int = 0
    missing: str = ""

    def busy(self, begin: float, end: float) -> float | None:
        """Return the mean share of the time in which the GPU computed anything; None where nobody knows."""
        shares = [share for moment, share, _ in self.samples if begin <= moment <= end]
        return sum(shares) / len(shares) if shares else None

    def peak(self) -> float | None:
        """Return the most MiB that were in use, less those beforehand; None where nobody knows."""
        return (max(used for *_, used in self.samples) - self.before) / 2**20 if self.samples else None


class Driver:
    """The driver's own figures of the GPU; torch's functions for them would start CUDA in this process.

    Raises:
        ImportError: nvidia-ml-py isn't installed.
        RuntimeError: the driver can't be asked.
    """

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found, unused-ignore]

        self._nvml: Any = pynvml
        with self._errors():
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(0))

    def state(self) -> tuple[float, int]:
        """Return the share of the last moments in which the GPU computed, and the bytes in use by all processes."""
        with self._errors():
            share = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
            return share, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._nvml.NVMLError as exc:
            raise RuntimeError(str(exc)) from exc


@contextmanager
def watched_card(plan: Plan) -> Iterator[Card]:
    """Watch the GPU, without taking part of it."""
    card, ended = Card(), threading.Event()
    if plan.is_tiny:
        yield card
        return
    try:
        driver = Driver()
        _, card.before = driver.state()
    except (ImportError, RuntimeError) as exc:
        card.missing = f"{type(exc).__name__}: {exc}"
        yield card
        return

    def look() -> None:
        while not ended.wait(0.05):
            card.samples.append((time.monotonic(), *driver.state()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield card
    finally:
        ended.set()
        thread.join()

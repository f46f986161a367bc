"""The metrics of a run: as a file of lines, as a picture, and for TensorBoard."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from clipcls.errors import UsageError
from clipcls.outputs.atomic import write_atomically
from clipcls.train.curves import draw_curves
from clipcls.train.trainer import StepFigures
from clipcls.train.validation import Validated

METRICS_NAME = "metrics.jsonl"
CURVES_NAME = "curves.png"
BOARD_NAME = "tensorboard"


class History:
    """The metrics of a run.

    Attributes:
        best: the first of the best validations so far; None before any.
        validated: the step of the last validation; 0 before the first.
        last: the last step that is noted; None before the first.
    """

    def __init__(self, folder: Path, file: TextIO, lines: Sequence[bytes], board: "Board | None") -> None:
        self.best: Validated | None = None
        self.validated = 0
        self.last: StepFigures | None = None
        for record in map(json.loads, lines):
            if "validation" in record:
                self._remember(Validated(record["step"], record["validation"]))
            else:
                self.last = StepFigures(**record)
        self._folder, self._file, self._board = folder, file, board

    def add_step(self, figures: StepFigures) -> None:
        """Note a step."""
        self.last = figures
        values = asdict(figures)
        self._file.write(json.dumps(values) + "\n")
        if self._board is not None:
            names = ("loss", "learning_rate", "scale", "images_per_second")
            self._board.write(figures.step, {f"train/{name}": values[name] for name in names})

    def is_best(self, validated: Validated) -> bool:
        """Return whether no validation before was as good."""
        return self.best is None or validated.headline > self.best.headline

    def add_validation(self, validated: Validated) -> None:
        """Note a validation."""
        self._file.write(json.dumps({"step": validated.step, "validation": validated.figures}) + "\n")
        if self._board is not None:
            tags = {f"validation/{name}": value for name, value in validated.figures.items()}
            self._board.write(validated.step, tags)
        self._remember(validated)

    def _remember(self, validated: Validated) -> None:
        self.best = validated if self.is_best(validated) else self.best
        self.validated = validated.step

    def draw(self) -> None:
        """Draw the curves of what is noted so far."""
        draw_curves(self._folder / METRICS_NAME, self._folder / CURVES_NAME)


@contextmanager
def open_history(folder: Path, done: int, tensorboard: bool) -> Iterator[History]:
    """Open the history of a run; what it holds of steps after the first `done` is cut off.

    Raises:
        OSError: it can't be read or written.
        UsageError: TensorBoard is wanted and missing.
    """
    lines = _kept_lines(folder / METRICS_NAME, done)
    board = Board(folder / BOARD_NAME, done) if tensorboard else None
    try:
        with (folder / METRICS_NAME).open("a", buffering=1, encoding="utf-8") as file:
            yield History(folder, file, lines, board)
    finally:
        if board is not None:
            board.close()


def _kept_lines(path: Path, done: int) -> list[bytes]:
    """Leave only the first `done` steps in the metrics; returns their lines."""
    lines = path.read_bytes().splitlines(keepends=True) if done else []
    kept = [line for line in lines if _step(line) <= done]
    write_atomically(path, lambda file: file.writelines(kept))
    return kept


def _step(line: bytes) -> float:
    """Return the step of a line of metrics; infinity for one that was only half written."""
    try:
        record: Any = json.loads(line)
        return int(record["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class Board:
    """A folder of TensorBoard's event files; several runs, or parts of one, may share it.

    Args:
        folder: created when needed.
        done: steps that are behind a run that was resumed; what a killed run wrote of later ones is hidden.

    Raises:
        UsageError: the package `tensorboard` isn't installed.
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise UsageError("tensorboard isn't installed: pip install 'clipcls[tensorboard]'") from exc
        self._writer = SummaryWriter(folder, purge_step=done + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one value to each of some curves.

        Args:
            step: counted from 1.
            figures: by tag; what stands before a tag's slash groups the curves, as in `train/loss`.
        """
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write what is still in memory; it is written every two minutes anyway."""
        self._writer.close()

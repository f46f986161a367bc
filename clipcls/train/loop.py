"""A training run: its output folder, its steps, its result."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from clipcls.errors import StoppedError, UsageError
from clipcls.train.checkpoint import cut_metrics, restore_checkpoint, save_checkpoint
from clipcls.train.classes import read_data
from clipcls.train.data import Table
from clipcls.train.settings import SETTINGS_NAME, Settings, write_settings
from clipcls.train.start import start_model
from clipcls.train.trainer import Progress, Trainer


@dataclass(frozen=True, slots=True)
class Result:
    """What a run leaves behind.

    Attributes:
        model: the model folder.
        progress: of the last step.
        problems: one message for each row and picture that couldn't be used.
        seconds: of the training itself.
    """

    model: Path
    progress: Progress
    problems: tuple[str, ...]
    seconds: float


def train(
    settings: Settings, report: Callable[[Progress], None] = lambda progress: None, resume: bool = False
) -> Result:
    """Train a new model, or a trained one further.

    Args:
        settings: of the run.
        report: called after every step.
        resume: go on with the run in the settings' `output`, from its checkpoint; its losses are then what they
            would have been without the interruption.

    Returns:
        The run's result; its folder holds `model/`, `metrics.jsonl`, `settings.yaml` and `checkpoint.pt`.

    Raises:
        UsageError: the settings, the table or the architecture can't be used, or no picture can; or the run can't
            be resumed.
        ModelError: the model to start from can't be had.
        StoppedError: the loss isn't finite any more, the output can't be written, or with `strict_data` a picture
            can't be read.
    """
    output = Path(settings.output) if resume else _claim(Path(settings.output))
    table = _read(settings)
    torch.manual_seed(settings.seed)
    trainer = Trainer(settings, start_model(settings), table)
    if resume:
        restore_checkpoint(output, trainer)
    began = time.monotonic()
    try:
        progress = _run(trainer, output, report)
    except OSError as exc:  # pictures that can't be read are reported instead: this is the output
        raise StoppedError(f"{output}: can't be written: {exc}") from exc
    problems = (*table.problems, *trainer.feed.pictures.problems)
    if progress is None:
        raise UsageError(f"{settings.data}: no picture can be used; the first problem: {problems[0]}")
    return Result(output / "model", progress, problems, time.monotonic() - began)


def _run(trainer: Trainer, output: Path, report: Callable[[Progress], None]) -> Progress | None:
    """Train and save, every few minutes and at the end; returns the last step, None if there is none."""
    if not trainer.done:
        write_settings(trainer.settings, output / SETTINGS_NAME)
    interval = trainer.settings.save_minutes * 60
    saved, progress = time.monotonic(), None
    with cut_metrics(output, trainer.done).open("a", buffering=1, encoding="utf-8") as metrics:
        for progress in trainer.steps():
            metrics.write(json.dumps(asdict(progress)) + "\n")
            if interval and time.monotonic() - saved > interval:
                _save(trainer, output)
                saved = time.monotonic()
            report(progress)
    if progress is not None:
        _save(trainer, output)
    return progress


def _save(trainer: Trainer, output: Path) -> None:
    """Write the model, then the checkpoint, so that a finished checkpoint means a finished model."""
    trainer.save(output / "model")
    save_checkpoint(output, trainer)


def _read(settings: Settings) -> Table:
    """The rows to train on; with `strict_data` all must be usable."""
    table = read_data(Path(settings.data))
    if settings.strict_data and table.problems:
        count = len(table.problems)
        raise UsageError(f"strict_data: {count} of the data can't be used; the first problem: {table.problems[0]}")
    return table


def _claim(output: Path) -> Path:
    """Create the run's folder, or refuse one that holds something."""
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"{output}: the output exists already; name another, or remove it first")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{output}: the output folder can't be made: {exc}") from exc
    return output

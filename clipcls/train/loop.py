"""A training run: its output folder, its steps, its result."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipcls.encoder.encoder import choose_device
from clipcls.errors import StoppedError, UsageError
from clipcls.train import history
from clipcls.train.checkpoint import restore_checkpoint, save_checkpoint
from clipcls.train.data import read_data
from clipcls.train.folder import copy_model
from clipcls.train.history import History
from clipcls.train.processes import joined, own_device
from clipcls.train.rows import Corpus
from clipcls.train.settings import SETTINGS_NAME, Settings, write_settings
from clipcls.train.start import start_model
from clipcls.train.trainer import Progress, Trainer
from clipcls.train.validation import Validation


@dataclass(frozen=True, slots=True)
class Result:
    """What a run leaves behind.

    Attributes:
        model: the model folder.
        best: the folder of the model that was best in the validations, None without any.
        progress: of the last step.
        problems: one message for each row and picture that couldn't be used.
        seconds: of the training itself.
        finished: False where the run was asked to stop; it can go on from its checkpoint.
    """

    model: Path
    best: Path | None
    progress: Progress
    problems: tuple[str, ...]
    seconds: float
    finished: bool


def train(
    settings: Settings,
    report: Callable[[Progress], None] = lambda progress: None,
    resume: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train a new model, or a trained one further; one process of several where torchrun started it.

    Args:
        settings: of the run.
        report: called after every step, in the first process.
        resume: go on with the run in the settings' `output`, from its checkpoint; its losses are then what they
            would have been without the interruption.
        asked_to_stop: whether to save and end after the current step.

    Returns:
        The run's result; its folder holds `model/`, with a validation `best/`, `metrics.jsonl`, `curves.png`,
        `settings.yaml` and `checkpoint.pt`.

    Raises:
        UsageError: the settings, the data or the architecture can't be used, or no picture can; or the run can't
            be resumed.
        ModelError: the model to start from can't be had.
        StoppedError: the loss isn't finite any more, the output can't be written, or with `strict_data` a picture
            can't be read.
    """
    output = Path(settings.output)
    with joined(choose_device(own_device(settings.device))) as processes:
        if not resume:
            processes.on_first(lambda: _claim(output))
        torch.manual_seed(settings.seed)
        corpus, validation, start = processes.together(
            lambda: (_read(settings), Validation(settings), start_model(settings))
        )
        trainer = Trainer(settings, start, corpus, processes)
        if resume:
            processes.together(lambda: restore_checkpoint(output, trainer))
            processes.on_first(lambda: _remove_drafts(output))
        began = time.monotonic()
        run = _Run(trainer, validation, output, report, asked_to_stop)
        try:
            progress = run.go()
        except OSError as exc:  # pictures that can't be read are reported instead: this is the output
            raise StoppedError(f"{output}: can't be written: {exc}") from exc
        problems = [*corpus.problems, *trainer.feed.pictures.problems, *validation.problems]
        problems = [problem for part in processes.gather_objects(problems) for problem in part]
        problems = list(dict.fromkeys(problems))  # each process has read the same table
        if progress is None:
            first = f"; the first problem: {problems[0]}" if problems else ""
            raise UsageError(f"{settings.data}: no picture can be used{first}")
        best = output / "best" if settings.validates else None
        finished = trainer.done >= trainer.feed.steps
        return Result(output / "model", best, progress, tuple(problems), time.monotonic() - began, finished)


class _Run:
    """The steps of a run, and what is saved, validated and told in between."""

    def __init__(
        self,
        trainer: Trainer,
        validation: Validation,
        output: Path,
        report: Callable[[Progress], None],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.trainer, self.validation, self.output = trainer, validation, output
        self.settings, self.processes = trainer.settings, trainer.processes
        self.report, self.asked_to_stop = report, asked_to_stop

    def go(self) -> Progress | None:
        """Train; returns the last step, None if there is none."""
        if not self.processes.is_first:
            return self._steps(None)
        if not self.trainer.done:
            write_settings(self.settings, self.output / SETTINGS_NAME)
        with history.opened(self.output, self.trainer.done, self.settings.tensorboard) as told:
            return self._steps(told)

    def _steps(self, told: History | None) -> Progress | None:
        progress, saved, saved_at = None, 0, time.monotonic()
        interval = self.settings.save_minutes * 60 or float("inf")
        for progress in self.trainer.steps():
            if told is not None:
                told.add_step(progress)
                self.report(progress)
            wishes = self.processes.gather_objects((self.asked_to_stop(), time.monotonic() - saved_at > interval))
            stop, due = any(asked for asked, _ in wishes), wishes[0][1]
            validate = self._validation_due(progress)
            if stop or due or validate:
                self._save(told, validate)
                saved, saved_at = progress.step, time.monotonic()
            if stop:
                return progress
        if progress is not None and saved < progress.step:
            self._save(told, self.settings.validates)
        return progress

    def _validation_due(self, progress: Progress) -> bool:
        every = max(1, round(self.trainer.feed.steps_an_epoch * self.settings.validate_epochs))
        return self.settings.validates and (progress.step % every == 0 or progress.step == progress.steps)

    def _save(self, told: History | None, validate: bool) -> None:
        """Write the model, then the checkpoint, so that with one there is the other; a validation may fail after it."""
        state = self.trainer.state()
        if told is None:
            self.processes.on_first(lambda: None)
        else:
            self.processes.on_first(lambda: self._write(told, state, validate))

    def _write(self, told: History, state: dict[str, Any], validate: bool) -> None:
        model = self.output / "model"
        self.trainer.save(model)
        save_checkpoint(self.output, self.settings, self.trainer.corpus.digest(), state)
        if validate and told.add_validation(self.trainer.done, self.validation.measure(model)):
            copy_model(model, self.output / "best")
        told.draw()


def _read(settings: Settings) -> Corpus:
    """The rows to train on; with `strict_data` all must be usable."""
    corpus = read_data(settings.data, settings.samples)
    if settings.strict_data and corpus.problems:
        count = len(corpus.problems)
        raise UsageError(f"strict_data: {count} of the data can't be used; the first problem: {corpus.problems[0]}")
    return corpus


def _claim(output: Path) -> None:
    """Create the run's folder, or refuse one that holds something."""
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"{output}: the output exists already; name another, or remove it first")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{output}: the output folder can't be made: {exc}") from exc


def _remove_drafts(output: Path) -> None:
    """Remove what a run that was killed while it wrote a model left behind."""
    for draft in [*output.glob(".model-*"), *output.glob(".best-*")]:
        shutil.rmtree(draft, ignore_errors=True)

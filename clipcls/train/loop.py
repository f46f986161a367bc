"""A training run: its output folder, its steps, its result."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipcls.errors import StoppedError, UsageError
from clipcls.inputs.discover import exists
from clipcls.models.device import choose_device
from clipcls.train import history
from clipcls.train.checkpoint import restore_checkpoint, save_checkpoint
from clipcls.train.data.corpus import Corpus
from clipcls.train.data.read import read_data
from clipcls.train.data.table import Table
from clipcls.train.history import History
from clipcls.train.hooks import Hooks
from clipcls.train.model_folder import copy_model, remove_drafts
from clipcls.train.processes import join_processes, own_device
from clipcls.train.settings import SETTINGS_NAME, TrainSettings, write_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import StepFigures, Trainer
from clipcls.train.validation import Validated, Validation

logger = logging.getLogger(__name__)

# in the run's folder
MODEL, BEST = "model", "best"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        model: the model folder.
        best: the folder of the model that was best in the validations, None without any.
        best_validation: what that model was measured at; None without any, and in all processes but the first.
        last_step: its figures.
        problems: one message for each row and picture that couldn't be used.
        seconds: of the training itself.
        finished: False where the run was asked to stop; it can go on from its checkpoint.
    """

    model: Path
    best: Path | None
    best_validation: Validated | None
    last_step: StepFigures
    problems: tuple[str, ...]
    seconds: float
    finished: bool


@dataclass(frozen=True, slots=True)
class TrainWatch:
    """What a run calls to show how it goes on, in the first process.

    Attributes:
        step: called after every step.
        validation: called after every validation, with whether it is the best so far.
    """

    step: Callable[[StepFigures], None] = lambda figures: None
    validation: Callable[[Validated, bool], None] = lambda validated, is_best: None


def train(
    settings: TrainSettings,
    watch: TrainWatch | None = None,
    resume: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
    hooks: Hooks | None = None,
) -> TrainResult:
    """Train a new model, or a trained one further; one process of several where torchrun started it.

    Args:
        settings: of the run.
        watch: None to show nothing.
        resume: go on with the run in the settings' `output`, from its checkpoint; its losses are then what they
            would have been without the interruption.
        asked_to_stop: whether to save and end after the current step.
        hooks: what a recipe adds to the run.

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
    with join_processes(choose_device(own_device(settings.device))) as processes:
        if not resume:
            processes.on_first(lambda: _create_output(output))
        torch.manual_seed(settings.seed)
        corpus, validation, start = processes.together(
            lambda: (_read(settings), Validation(settings) if processes.is_first else None, start_model(settings))
        )
        trainer = Trainer(settings, start, corpus, processes, hooks)
        run = _Run(trainer, validation, watch or TrainWatch(), asked_to_stop)
        if resume:
            run.resume()
        began = time.monotonic()
        with _translate_errors(output, trainer):
            last_step = run.train()
        problems = [problem for part in processes.gather_objects(run.problems) for problem in part]
        problems = list(dict.fromkeys(problems))  # each process has read the same table
        last_step = processes.gather_objects(last_step)[0]
        if last_step is None:
            if corpus.count == 1:
                raise UsageError(f"{settings.data}: one picture only, and a step compares two or more")
            first = f"; the first problem: {problems[0]}" if problems else ""
            raise UsageError(f"{settings.data}: no picture can be used{first}")
        best = output / BEST if settings.validates else None
        finished = trainer.done >= trainer.feed.steps
        seconds = time.monotonic() - began
        return TrainResult(output / MODEL, best, run.best, last_step, tuple(problems), seconds, finished)


class _Run:
    """The steps of a run, and what is saved, validated and reported in between.

    Args:
        validation: None in all processes but the first, which alone measures and writes.
    """

    def __init__(
        self,
        trainer: Trainer,
        validation: Validation | None,
        watch: TrainWatch,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.trainer, self.validation = trainer, validation
        self.settings, self.processes, self.output = trainer.settings, trainer.processes, Path(trainer.settings.output)
        self.watch, self.asked_to_stop = watch, asked_to_stop
        self.best: Validated | None = None
        self._problems_reported = 0

    @property
    def problems(self) -> list[str]:
        """A message for each row and picture that this process couldn't use so far."""
        held_out = [] if self.validation is None else self.validation.problems
        return [*self.trainer.corpus.problems, *self.trainer.feed.pictures.problems, *held_out]

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the data, by the name of their setting; the first process's."""
        held_out = {} if self.validation is None else self.validation.digests
        return {"data": self.trainer.corpus.digest(), **held_out}

    def resume(self) -> None:
        """Go to where the last checkpoint was written."""
        self.processes.together(lambda: restore_checkpoint(self.output, self.trainer, self.digests))
        self.processes.on_first(self._remove_drafts)

    def _remove_drafts(self) -> None:
        for name in (MODEL, BEST):
            remove_drafts(self.output / name)

    def train(self) -> StepFigures | None:
        """Make the steps; returns the last one's figures, None if there is none."""
        if not self.processes.is_first:
            self._steps(None)
            return None
        if not self.trainer.done:
            write_settings(self.settings, self.output / SETTINGS_NAME)
        with history.open_history(self.output, self.trainer.done, self.settings.tensorboard) as metrics:
            self._steps(metrics)
            self.best = metrics.best
            return metrics.last

    def _steps(self, metrics: History | None) -> None:
        self._report_problems()
        self._catch_up(metrics)
        figures, saved, saved_at = None, self.trainer.done, time.monotonic()
        interval = self.settings.save_minutes * 60 or float("inf")
        for figures in self.trainer.steps():
            if metrics is not None:
                metrics.add_step(figures)
                self.watch.step(figures)
            wishes = self.processes.gather_objects((self.asked_to_stop(), time.monotonic() - saved_at > interval))
            stop, due = any(asked for asked, _ in wishes), wishes[0][1]
            if figures.step == self.trainer.feed.steps_an_epoch:
                self._report_problems()
            if stop or due or self._validation_due():
                self._save(metrics)
                saved, saved_at = figures.step, time.monotonic()
            if stop:
                return
        if saved < self.trainer.done and (figures is not None or saved):
            self._save(metrics)

    def _catch_up(self, metrics: History | None) -> None:
        """Make up for the validation that a resumed run was stopped in; without one, a finished run has an end."""
        missed = self._validation_due() and metrics is not None and metrics.validated < self.trainer.done
        if any(self.processes.gather_objects(missed)):
            self._save(metrics)
        elif self.trainer.done >= self.trainer.feed.steps:
            self.processes.on_first(self._refuse_finished)

    def _refuse_finished(self) -> None:
        raise UsageError(f"{self.output}: the run is finished; its model is {self.output / MODEL}")

    def _validation_due(self) -> bool:
        """Return whether the step that was done last is one to validate after."""
        done = self.trainer.done
        every = max(1, round(self.trainer.feed.steps_an_epoch * self.settings.validate_epochs))
        return self.settings.validates and done > 0 and (done % every == 0 or done >= self.trainer.feed.steps)

    def _save(self, metrics: History | None) -> None:
        """Write the model, then the checkpoint, so that with one there is the other; a validation may fail after it."""
        state = self.trainer.state()
        if metrics is None:
            self.processes.on_first(lambda: None)
        else:
            self.processes.on_first(lambda: self._write(metrics, state))
        self._report_problems()

    def _write(self, metrics: History, state: dict[str, Any]) -> None:
        model = self.output / MODEL
        self.trainer.save(model)
        save_checkpoint(self.output, self.settings, self.digests, state)
        if self.validation is not None and self._validation_due():
            validated = Validated(self.trainer.done, self.validation.measure(model))
            is_best = metrics.is_best(validated)
            if is_best:
                copy_model(model, self.output / BEST)
            metrics.add_validation(validated)  # last, so that whatever is interrupted is done again
            self.watch.validation(validated, is_best)
        metrics.draw()

    def _report_problems(self) -> None:
        """Say how much is left out while there is time to stop and correct it."""
        problems = self.problems
        if len(problems) > self._problems_reported:
            logger.warning("%d rows or pictures left out so far; the first: %s", len(problems), problems[0])
        self._problems_reported = len(problems)


def _read(settings: TrainSettings) -> Corpus:
    """Read the rows to train on; with `strict_data` all must be usable."""
    corpus = read_data(settings.data, settings.samples)
    if settings.strict_data and corpus.problems:
        count = len(corpus.problems)
        raise UsageError(f"strict_data: {count} of the data can't be used; the first problem: {corpus.problems[0]}")
    # else it is found out when the model has been downloaded
    if isinstance(corpus, Table) and not any(exists(row.image) for row in corpus.rows):
        raise UsageError(
            f"{settings.data}: no picture can be used; the first: {corpus.rows[0].image.path}: no such file"
        )
    return corpus


def _create_output(output: Path) -> None:
    """Create the run's folder, or refuse one that holds something, but for what a run leaves that had no checkpoint."""
    try:
        held = [path.name for path in output.iterdir()] if output.is_dir() else []
        if (output.exists() and not output.is_dir()) or not {*held} <= {SETTINGS_NAME, history.METRICS_NAME}:
            raise UsageError(f"{output}: the output exists already; name another, or remove it first")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{output}: the output folder can't be made: {exc}") from exc


@contextmanager
def _translate_errors(output: Path, trainer: Trainer) -> Iterator[None]:
    """Say what a run meets in other libraries in clipcls's words."""
    try:
        yield
    except OSError as exc:  # pictures that can't be read are reported instead: this is the output
        raise StoppedError(f"{output}: can't be written: {exc}") from exc
    except RuntimeError as exc:
        if not isinstance(exc, torch.OutOfMemoryError) and "can't allocate memory" not in str(exc):
            raise
        raise StoppedError(
            f"out of memory after step {trainer.done}: take a smaller --batch-size, or --accumulate with a number of "
            "parts, or --grad-checkpointing"
        ) from exc

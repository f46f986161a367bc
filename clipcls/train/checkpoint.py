"""What a run that was interrupted goes on from: a file in its folder, written whole or not at all."""

import pickle
from pathlib import Path
from typing import Any

import torch

from clipcls.errors import StoppedError, UsageError, first_line
from clipcls.outputs.atomic import write_atomically
from clipcls.train.settings import SETTINGS_NAME, TrainSettings, load_settings, read_config_file, setting_values
from clipcls.train.trainer import Trainer

CHECKPOINT_NAME = "checkpoint.pt"
CHECKPOINT_VERSION = 3
# settings that decide nothing that is computed; the data are compared by what they hold
FREE = (
    *("data", "output", "validation", "zero_shot", "tensorboard", "save_minutes"),
    *("device", "workers", "cache_mb", "compile", "grad_checkpointing"),
)


def resumed_settings(run: Path, config: Path | None, given: dict[str, Any]) -> TrainSettings:
    """Return the settings of a run that is to go on; `restore_checkpoint` refuses those that were changed.

    Args:
        run: its folder.
        config: a file of settings, if one is given again.
        given: by field name; None for what wasn't given.

    Raises:
        UsageError: the folder isn't a run's, or a setting can't be used.
    """
    if not (run / SETTINGS_NAME).is_file():
        raise UsageError(f"{run}: no {SETTINGS_NAME} in it, so it isn't the folder of a training run")
    values = {} if config is None else read_config_file(config)
    values |= {name: value for name, value in given.items() if value is not None}
    if "output" in values and Path(values["output"]).resolve() != run.resolve():
        raise UsageError(f"output: {values['output']} isn't the run that is resumed, {run}; leave it out")
    return load_settings(run / SETTINGS_NAME, values | {"output": str(run)})


def save_checkpoint(folder: Path, settings: TrainSettings, digests: dict[str, str], state: dict[str, Any]) -> None:
    """Write a trainer's state into the run's folder; until it is whole, the one before it stays.

    Args:
        folder: of the run.
        settings: of the run.
        digests: of the data, by the name of their setting; other ones stop a run that is to go on.
        state: the trainer's.

    Raises:
        StoppedError: it can't be written.
    """
    content = {
        "version": CHECKPOINT_VERSION,
        "settings": setting_values(settings),
        "digests": digests,
        "trainer": state,
    }
    try:
        write_atomically(folder / CHECKPOINT_NAME, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as exc:  # torch makes a RuntimeError of a full disk
        cause = exc.__context__ if isinstance(exc.__context__, OSError) else exc
        raise StoppedError(f"{folder / CHECKPOINT_NAME}: the checkpoint can't be written: {first_line(cause)}") from exc


def restore_checkpoint(folder: Path, trainer: Trainer, digests: dict[str, str]) -> None:
    """Bring a new trainer to where the checkpoint was written.

    Args:
        folder: of the run.
        trainer: of the same settings and data.
        digests: see `save_checkpoint`.

    Raises:
        UsageError: there is no checkpoint, it can't be read, or its settings, its model or its data were changed.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        raise UsageError(f"{folder}: no {CHECKPOINT_NAME} in it yet, so there is nothing to go on from; start it anew")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as exc:
        raise UsageError(f"{path}: not a checkpoint that can be read: {exc}") from exc
    if not isinstance(content, dict) or content.get("version") != CHECKPOINT_VERSION:
        raise UsageError(
            f"{path}: not a checkpoint of this version of clipcls; start the run anew, or go on from its model "
            f"with --model {folder / 'model'}"
        )
    _check_settings(content["settings"], setting_values(trainer.settings))
    for name, digest in digests.items():
        if digest != content["digests"][name]:
            data = getattr(trainer.settings, name) or "nothing"
            raise UsageError(f"{name}: {data} doesn't hold the rows any more that the run began with")
    try:
        trainer.restore(content["trainer"])
    except (RuntimeError, ValueError, KeyError) as exc:
        raise UsageError(f"{path}: doesn't fit the model any more that arch or model names: {exc}") from exc


def _check_settings(before: dict[str, Any], now: dict[str, Any]) -> None:
    names = [name for name in now if name in before and name not in FREE and now[name] != before[name]]
    if names:
        changes = "; ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in names)
        raise UsageError(f"a resumed run keeps its settings: {changes}")

"""Reads the preprocessing from a model's configuration, a preset or a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from open_clip import constants

from clipcls.errors import ModelError, UsageError
from clipcls.records import Preprocessing
from clipcls.text_files import read_text

_PRESETS: dict[str, dict[str, Any]] = {
    "openai": {
        "mean": constants.OPENAI_DATASET_MEAN,
        "std": constants.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
    "imagenet": {
        "mean": constants.IMAGENET_MEAN,
        "std": constants.IMAGENET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
    "siglip": {
        "mean": constants.INCEPTION_MEAN,
        "std": constants.INCEPTION_STD,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}

# open_clip treats `random`, a setting for training, as bicubic
_INTERPOLATIONS: dict[str, Literal["bicubic", "bilinear"]] = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",
}
_RESIZE_MODES: dict[str, Literal["shortest", "longest", "squash"]] = {
    "shortest": "shortest",
    "longest": "longest",
    "squash": "squash",
}


def preprocess_settings(preset_or_file: str) -> dict[str, Any]:
    """Return the settings that --preprocess names, in open_clip's terms.

    Raises:
        UsageError: it is neither a preset nor a .json file.
        ModelError: the file can't be read.
    """
    if preset_or_file in _PRESETS:
        return _PRESETS[preset_or_file]
    path = Path(preset_or_file)
    if path.suffix != ".json":
        names = ", ".join(_PRESETS)
        raise UsageError(f"--preprocess {preset_or_file}: use one of {names}, or a .json file.")
    settings = read_json(path)
    return dict(settings.get("preprocess_cfg", settings))


def parse_preprocessing(settings: dict[str, Any], model: dict[str, Any], where: str) -> Preprocessing:
    """Return the preprocessing of a model.

    Args:
        settings: open_clip's `preprocess_cfg`, with mean and std.
        model: open_clip's `model_cfg`, which decides the size, as it does for open_clip.
        where: the source of the settings, for messages.

    Raises:
        ModelError: a setting is missing or unknown.
    """
    size = model["vision_cfg"].get("image_size", 224)
    try:
        height, width = (size, size) if isinstance(size, int) else (int(side) for side in size)
        mean, std = (_three(settings[key]) for key in ("mean", "std"))
        interpolation = _INTERPOLATIONS[settings.get("interpolation") or "bicubic"]
        resize_mode = _RESIZE_MODES[settings.get("resize_mode") or "shortest"]
        if min(std) <= 0:
            raise ValueError(f"std {std}")
        fill_color = int(settings.get("fill_color") or 0)
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"{where}: preprocessing needs mean, std, interpolation and resize_mode: {exc}") from exc
    return Preprocessing((height, width), mean, std, interpolation, resize_mode, fill_color)


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return float(values), float(values), float(values)
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: the file can't be read, or holds no object.
    """
    try:
        data = json.loads(read_text(path))
    except UsageError as exc:
        raise ModelError(str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: isn't JSON: {exc}.") from exc
    if not isinstance(data, dict):
        raise ModelError(f"{path}: expected a JSON object.")
    return data

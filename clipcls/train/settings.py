"""Everything that decides a training run, in one frozen record that is written beside the model."""

import dataclasses
import datetime
import math
import os
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from clipcls.embed.cores import available_cores
from clipcls.errors import UsageError, first_line
from clipcls.labels.prompts import load_prompt_set
from clipcls.outputs.atomic import write_atomically
from clipcls.train.data.shards import are_shards, is_elsewhere

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SETTINGS_NAME = "settings.yaml"
PATHS = ("data", "arch", "output", "model", "validation", "zero_shot")
# what a trained model has already, so that only a new one is given it
OF_NEW_MODELS = (
    "initial_scale",
    "interpolation",
    "resize_mode",
    "fill_color",
    "mean",
    "std",
    "spread_init",
    "zero_unused_tokens",
)
UNLOCKED = {"lock_image": "lock_image_unlocked_groups", "lock_text": "lock_text_unlocked_layers"}
# Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, section 3.2
SIGMOID_SCALE = 10.0
FINE_TUNING = {"learning_rate": 1e-5}
ABOVE_ZERO = ("epochs", "batch_size", "learning_rate", "initial_scale", "max_scale", "std", "validate_epochs")
NOT_NEGATIVE = (
    "samples",
    "workers",
    "weight_decay",
    "grad_clip",
    "proxy_weight",
    "cache_mb",
    "save_minutes",
    "seed",
    *UNLOCKED.values(),
)
SHARES = ("warmup", "curriculum")
BELOW_ONE = ("ema", "betas")
# beyond these the number of steps, or a seed made of it, would be more than 64 bits hold
LARGEST = {"epochs": 1e6, "validate_epochs": 1e6, "samples": 10**12}
LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run; a field's name is its key in the config file.

    Attributes:
        data: the table of pictures and captions (.csv, .tsv, .jsonl, .parquet), a folder that holds a folder of
            pictures for each class, whose name is the caption, or WebDataset shards (.tar).
        arch: for a new model: a JSON file in open_clip's model format, or the name of an open_clip architecture.
        output: the run's folder; it may not hold anything yet.
        model: instead of `arch`, a model to start from: whatever `predict` takes, except for a bare weights file.
            Its weights, preprocessing, scale, bias and tokenizer are kept.
        lock_image: leave the image tower as the `model` has it, BatchNorm statistics included; see `train.towers`.
        lock_image_unlocked_groups: its last groups of layers that are trained nevertheless, where open_clip's tower
            can do that: its own ViT, and timm's that name their groups.
        lock_text: leave the text tower as the `model` has it.
        lock_text_unlocked_layers: its last layers that are trained nevertheless; in either tower the projection is one.
        samples: rows in an epoch, for shards that can't be counted beforehand.
        epochs: passes over the data; a fraction is allowed.
        batch_size: pictures a step, in all processes together, which are also each other's negatives. A table smaller
            than that is one batch; the rows of an incomplete last batch wait for the next epoch's shuffle.
        accumulate: parts that a batch is put through the towers in, one after the other, to save memory; the loss and
            its gradients remain those of the whole batch, for a third more computing. BatchNorm towers differ by
            nature, since each part is normalised by itself.
        learning_rate: the peak, reached after the warm-up; unless it is given, 1e-5 with `model`.
        grad_checkpointing: compute the towers' activations again in the backward pass instead of keeping them, to save
            memory; a fifth to a third slower.
        compile: translate the towers by `torch.compile` first, which takes a minute or so.
        ema: decay of a moving average of the weights, as 0.999; the model that is saved and validated is the average.
            0 for none.
        betas: AdamW's.
        weight_decay: AdamW's; gains, biases and the scale have none.
        warmup: share of the steps over which the learning rate rises from zero.
        grad_clip: the largest norm of the gradients; 0 for no limit.
        precision: of the forward pass; `auto` is bf16 where the processor has it.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        workers: threads that decode pictures; 0 for one a core, at most 8.
        cache_mb: decoded pictures kept in memory, in MiB; more of it pays for small pictures and many epochs.
        seed: of weights, order, captions and augmentation; 0 to 2147483647.
        augment: `none`, `light` or `heavy`.
        flip: mirror half of the pictures; off, since text and direction matter.
        curriculum: share of the steps over which the augmentation's strength rises from nothing to its full
            extent; 0 for full strength from the start.
        templates: phrasings; one is put around a caption each time that it is drawn. One with Chinese or
            Japanese signs is used for captions that have some, one without for the others, `{}` for both. Unless
            they are given, class folders have those of the prompt set `default`.
        loss: `contrastive` (CLIP's), `sigmoid` (SigLIP's, with a bias), or `auto`: sigmoid for a model with a bias.
        positives: what isn't a negative of a picture in its batch: its `own` caption alone, captions `equal` to its
            own (whatever the template), or all those that are `listed` in its row.
        strict_data: stop at a row or a picture that can't be used, instead of leaving it out.
        proxy_weight: weight of the helper loss against one learnable vector per concept; a row's first caption
            names its concept.
        spread_init: set the last layers from a sample of the data before the first step; see `train.spread`.
        initial_scale: what the cosines are multiplied with at first; a `model` keeps its own. Unless it is given, 10
            with `loss: sigmoid`.
        initial_bias: what is added to that at first with `loss: sigmoid`, for a model that has no bias.
        max_scale: and at most; `.inf` for no limit.
        interpolation: of a new model's preprocessing, as are the next four; a `model` keeps its own.
        resize_mode: `shortest` (then the centre is cropped), `longest` (then padded) or `squash`.
        fill_color: the grey of the padding, 0 to 255.
        mean: per channel, of values in 0 to 1.
        std: per channel, of values in 0 to 1.
        validation: held-out pairs, a table or class folders: how well pictures find their captions and captions
            their pictures.
        zero_shot: a folder of labelled pictures, one folder for each class: how many get their label.
        validate_epochs: how often both are measured, in passes over the data, besides at the end; the model that was
            best so far, by zero-shot accuracy or else by the mean recall at 1, is kept in `best`.
        tensorboard: write the metrics for TensorBoard, too.
        save_minutes: how often the model, and the checkpoint to resume from, are written during the run; 0 for only at
            its end.
        weights: `fp32` or `fp16` in the model's file.
        zero_unused_tokens: set the embeddings of tokens that no caption uses to zero, so that the file
            compresses.
    """

    data: str
    arch: str
    output: str
    model: str = ""
    lock_image: bool = False
    lock_image_unlocked_groups: int = 0
    lock_text: bool = False
    lock_text_unlocked_layers: int = 0
    samples: int = 0
    epochs: float = 10
    batch_size: int = 128
    accumulate: int = 1
    grad_checkpointing: bool = False
    compile: bool = False
    ema: float = 0.0
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warmup: float = 0.05
    grad_clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    workers: int = 0
    cache_mb: int = 256
    seed: int = 0
    augment: Literal["none", "light", "heavy"] = "light"
    flip: bool = False
    curriculum: float = 0.0
    templates: tuple[str, ...] = ("{}",)
    loss: Literal["auto", "contrastive", "sigmoid"] = "auto"
    positives: Literal["own", "equal", "listed"] = "equal"
    strict_data: bool = False
    proxy_weight: float = 0.0
    spread_init: bool = False
    initial_scale: float = 1 / 0.07
    initial_bias: float = -10.0
    max_scale: float = 100.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    validation: str = ""
    zero_shot: str = ""
    validate_epochs: float = 1.0
    tensorboard: bool = False
    save_minutes: float = 10.0
    weights: Literal["fp32", "fp16"] = "fp32"
    zero_unused_tokens: bool = False

    @property
    def threads(self) -> int:
        """Threads that decode pictures."""
        return self.workers or min(available_cores(), 8)

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate with."""
        return bool(self.validation or self.zero_shot)


def load_settings(config: Path | None, given: dict[str, Any]) -> Settings:
    """Settings from a YAML file, overridden by what was given on the command line.

    Args:
        config: the file; its relative `data`, `arch`, `model` and `output` are taken from the file's own folder.
        given: by field name; None for what wasn't given.

    Raises:
        UsageError: a key is unknown, a value has the wrong type or range, or a required one is missing.
    """
    values: dict[str, Any] = {} if config is None else read_config_file(config)
    values |= {name: _typed(name, value) for name, value in given.items() if value is not None}
    _check_given(values)
    if values.get("model"):
        values = FINE_TUNING | {"arch": ""} | values
    elif values.get("loss") == "sigmoid":
        values = {"initial_scale": SIGMOID_SCALE} | values
    if not are_shards(values["data"]) and os.path.isdir(values["data"]):  # noqa: PTH112, Path fails for a long name
        values = {"templates": load_prompt_set("default").templates} | values
    settings = Settings(**values)
    _check_ranges(settings)
    _check_locks(settings)
    return settings


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Settings given as `NAME=VALUE`, the value as it would stand in a YAML file.

    Raises:
        UsageError: there is no such setting, no `=`, or a value is missing or has the wrong type.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected NAME=VALUE, as in --set warmup=0.1")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a ValueError for a date that doesn't exist
            raise UsageError(f"--set {assignment}: the value can't be read: {first_line(exc)}") from exc
    return _checked(values, "--set")


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values as their fields' types, or an error for a name that is no setting."""
    known = [field.name for field in dataclasses.fields(Settings)]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise UsageError(f"{where}: unknown setting {', '.join(unknown)}; there are: {', '.join(known)}")
    return {name: _typed(name, value) for name, value in values.items()}


def setting_values(settings: Settings) -> dict[str, Any]:
    """Settings as plain values, by name; paths are absolute, and what only new models have is left out for others."""
    values: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }
    for name in PATHS:
        if values[name] and _is_path(name, values[name], Path(values[name])):
            values[name] = str(Path(values[name]).resolve())
    for name in OF_NEW_MODELS if settings.model else ():
        del values[name]
    return values


def write_settings(settings: Settings, path: Path) -> None:
    """Write settings so that `--config` reads them back."""
    text = yaml.safe_dump(setting_values(settings), sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def _check_given(values: dict[str, Any]) -> None:
    """Refuse what is missing, and what excludes one another."""
    missing = [name for name in ("data", "output") if not values.get(name)]
    if not values.get("arch") and not values.get("model"):
        missing.insert(1, "arch or model")
    if missing:
        raise UsageError(f"no {' and no '.join(missing)} given: name it on the command line or in --config")
    if not values.get("model"):
        return
    if values.get("arch"):
        raise UsageError("arch and model exclude each other: a new model has an arch, one to start from is a model")
    given = [name for name in OF_NEW_MODELS if name in values]
    if given:
        raise UsageError(f"{', '.join(given)}: only for a new model (arch); the one that model names keeps its own")


def read_config_file(path: Path) -> dict[str, Any]:
    """The values of a config file, by field name; paths are taken from its folder.

    Raises:
        UsageError: the file can't be read, a key is unknown, or a value is missing or has the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{path}: the config can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a ValueError for a date that doesn't exist
        raise UsageError(f"{path}: the config can't be read: {exc}") from exc
    if not isinstance(values, dict):
        raise UsageError(f"{path}: the config must be a mapping of setting to value")
    values = _checked(values, str(path))
    for name in PATHS:
        if values.get(name):
            values[name] = _beside(path, name, values[name])
    return values


def _beside(config: Path, name: str, value: str) -> str:
    """A path of the config file, taken from its folder; an architecture or a model may be a name instead."""
    path = config.parent / value
    return str(path) if _is_path(name, value, path) else value


def _is_path(name: str, value: str, path: Path) -> bool:
    """Whether a value stands for a path; an architecture and a model may be a name, data a stream or in a store."""
    if name in ("data", "validation", "zero_shot"):
        return not is_elsewhere(value)
    if name == "arch":
        return os.path.isfile(path)  # noqa: PTH113, Path fails for a long name
    return name != "model" or os.path.isfile(path / "open_clip_config.json")  # noqa: PTH113


def _typed(name: str, value: Any) -> Any:
    """A value as its field's type, or an error that says what it should be."""
    kind = typing.get_type_hints(Settings)[name]
    if value is None:
        raise UsageError(f"{name}: no value; give it one, or leave the setting out")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise UsageError(f"{name}: {value!r} isn't one of {', '.join(typing.get_args(kind))}")
        return value
    if typing.get_origin(kind) is tuple:
        return _typed_tuple(name, value, typing.get_args(kind))
    return _typed_scalar(name, value, kind)


def _typed_tuple(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    count = None if kinds[-1] is Ellipsis else len(kinds)
    if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
        raise UsageError(f"{name}: {value!r} isn't a list" + (f" of {count}" if count else ""))
    return tuple(_typed_scalar(name, item, kinds[0]) for item in value)


def _typed_scalar(name: str, value: object, kind: type) -> object:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        return _number(name, value)  # YAML reads 1e-3 as text
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        # YAML reads an unquoted 3, no or 2024-01-01 as something else than text
        quoted = kind is str and isinstance(value, int | float | datetime.date)
        raise UsageError(f"{name}: {value!r} isn't a {kind.__name__}" + ("; put it in quotes" if quoted else ""))
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{name}: {value!r} holds a NUL character")
    return kind(value)  # a plain one, which YAML can write


def _number(name: str, value: str | int) -> float:
    try:
        return float(value)
    except ValueError as exc:
        raise UsageError(f"{name}: {value!r} isn't a number") from exc
    except OverflowError as exc:
        raise UsageError(f"{name}: the number is too large") from exc


def _check_ranges(settings: Settings) -> None:
    for name, value in _numbers(settings):
        _check_number(name, value)
    if not 0 <= settings.fill_color <= 255:
        raise UsageError(f"fill_color: {settings.fill_color} must be between 0 and 255")
    if settings.flip and settings.augment == "none":
        raise UsageError("flip: only with augment light or heavy")
    if settings.batch_size < 2:
        raise UsageError("batch_size: a contrastive loss needs at least 2 pictures a batch")
    if not 1 <= settings.accumulate <= settings.batch_size:
        raise UsageError(f"accumulate: {settings.accumulate} must be between 1 and batch_size, {settings.batch_size}")
    _check_templates(settings.templates)


def _numbers(settings: Settings) -> Iterator[tuple[str, int | float]]:
    """(name, number) of each setting that is a number or holds some."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield field.name, item


def _check_number(name: str, value: int | float) -> None:
    if isinstance(value, float) and not math.isfinite(value) and name != "max_scale":
        raise UsageError(f"{name}: {value} isn't a finite number")
    largest = LARGEST.get(name, LARGEST_COUNT if isinstance(value, int) else math.inf)
    if value > largest:
        raise UsageError(f"{name}: {value} must be at most {largest:.0f}")
    if name in ABOVE_ZERO and not value > 0:
        raise UsageError(f"{name}: {value} must be above 0")
    if name in NOT_NEGATIVE and not value >= 0:
        raise UsageError(f"{name}: {value} must not be negative")
    if name in SHARES and not 0 <= value <= 1:
        raise UsageError(f"{name}: {value} must be between 0 and 1")
    if name in BELOW_ONE and not 0 <= value < 1:
        raise UsageError(f"{name}: {value} must be at least 0 and below 1")


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise UsageError("templates: the list is empty")
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"templates: {template!r} must hold one {{}}")


def _check_locks(settings: Settings) -> None:
    for lock, unlocked in UNLOCKED.items():
        if getattr(settings, lock) and not settings.model:
            raise UsageError(f"{lock}: only with a model, whose tower is trained already; a new tower has to learn")
        if getattr(settings, unlocked) and not getattr(settings, lock):
            raise UsageError(f"{unlocked}: only with {lock}")
    if all(getattr(settings, lock) and not getattr(settings, unlocked) for lock, unlocked in UNLOCKED.items()):
        raise UsageError("lock_image and lock_text: with both towers locked there is nothing to train")

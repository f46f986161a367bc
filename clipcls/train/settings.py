"""Everything that decides a training run, in one frozen record that is written beside the model."""

import datetime
import os
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AllowInfNan, BeforeValidator, Field, Strict, StringConstraints, TypeAdapter, ValidationError

from clipcls.embed.cores import available_cores
from clipcls.errors import UsageError, first_line
from clipcls.labels.prompts import load_prompt_set, template_of_caption
from clipcls.outputs.atomic import write_atomically
from clipcls.text_files import read_text
from clipcls.train.data.shards import are_shards, is_elsewhere

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
SETTINGS_NAME = "settings.yaml"
PATHS = ("data", "arch", "output", "model", "validation", "zero_shot")
# what a trained model has already, so that only a new one is given it
OF_NEW_MODELS = ("initial_scale", "interpolation", "resize_mode", "fill_color", "mean", "std")
UNLOCKED = {"lock_image": "lock_image_unlocked_groups", "lock_text": "lock_text_unlocked_layers"}
# Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, section 3.2
SIGMOID_SCALE = 10.0
FINE_TUNING = {"learning_rate": 1e-5}
# settings of earlier versions, with the values that meant that they weren't used
MOVED = {"curriculum": 0, "proxy_weight": 0, "spread_init": False, "zero_unused_tokens": False}

# a path can't hold a NUL
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
Flag = Annotated[bool, Strict()]
# beyond the limits the number of steps, or a seed made of it, would be more than 64 bits hold
Count = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
# YAML reads 1e-3 as text, which pydantic turns into a number, as it would true
Number = Annotated[float, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)]
Finite = Annotated[Number, AllowInfNan(False)]
NotNegative = Annotated[Finite, Field(ge=0)]
AboveZero = Annotated[Finite, Field(gt=0)]
Epochs = Annotated[AboveZero, Field(le=1e6)]
Portion = Annotated[Finite, Field(ge=0, le=1)]
Decay = Annotated[Finite, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class TrainSettings:
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
        templates: phrasings; one is put around a caption each time that it is drawn. One with Chinese or
            Japanese signs is used for captions that have some, one without for the others, `{}` for both. Unless
            they are given, class folders have those of the prompt set `default`.
        loss: `contrastive` (CLIP's), `sigmoid` (SigLIP's, with a bias), or `auto`: sigmoid for a model with a bias.
        positives: what isn't a negative of a picture in its batch: its `own` caption alone, captions `equal` to its
            own (whatever the template), or all those that are `listed` in its row.
        strict_data: stop at a row or a picture that can't be used, instead of leaving it out.
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
    """

    data: Text
    arch: Text
    output: Text
    model: Text = ""
    lock_image: Flag = False
    lock_image_unlocked_groups: Count = 0
    lock_text: Flag = False
    lock_text_unlocked_layers: Count = 0
    samples: Annotated[int, Strict(), Field(ge=0, le=10**12)] = 0
    epochs: Epochs = 10
    batch_size: Annotated[Count, Field(ge=2)] = 128
    accumulate: Annotated[Count, Field(ge=1)] = 1
    grad_checkpointing: Flag = False
    compile: Flag = False
    ema: Decay = 0.0
    learning_rate: AboveZero = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: NotNegative = 0.05
    warmup: Portion = 0.05
    grad_clip: NotNegative = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Text = "auto"
    workers: Count = 0
    cache_mb: Count = 256
    seed: Count = 0
    augment: Literal["none", "light", "heavy"] = "light"
    flip: Flag = False
    templates: tuple[Text, ...] = ("{}",)
    loss: Literal["auto", "contrastive", "sigmoid"] = "auto"
    positives: Literal["own", "equal", "listed"] = "equal"
    strict_data: Flag = False
    initial_scale: AboveZero = 1 / 0.07
    initial_bias: Finite = -10.0
    max_scale: Annotated[Number, Field(gt=0)] = 100.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: Annotated[Count, Field(le=255)] = 0
    mean: tuple[Finite, Finite, Finite] = OPENAI_MEAN
    std: tuple[AboveZero, AboveZero, AboveZero] = OPENAI_STD
    validation: Text = ""
    zero_shot: Text = ""
    validate_epochs: Epochs = 1.0
    tensorboard: Flag = False
    save_minutes: NotNegative = 10.0
    weights: Literal["fp32", "fp16"] = "fp32"

    @property
    def threads(self) -> int:
        """Threads that decode pictures."""
        return self.workers or min(available_cores(), 8)

    @property
    def label_templates(self) -> tuple[str, ...]:
        """Templates of the captions for `predict`; none where captions are whole sentences of a table's own."""
        if self.templates == ("{}",) and not _are_class_folders(self.data):
            return ()
        return tuple(map(template_of_caption, self.templates))

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate with."""
        return bool(self.validation or self.zero_shot)


def load_settings(config: Path | None, given: dict[str, Any]) -> TrainSettings:
    """Read settings from a YAML file, and override them with those given on the command line.

    Args:
        config: the file; its relative paths are taken from the file's own folder.
        given: by field name; None for what wasn't given.

    Raises:
        UsageError: a name is unknown, a value has the wrong type or range, or a required one is missing.
    """
    values: dict[str, Any] = {} if config is None else read_config_file(config)
    values |= _checked({name: value for name, value in given.items() if value is not None})
    _check_given(values)
    if values.get("model"):
        values = FINE_TUNING | {"arch": ""} | values
    elif values.get("loss") == "sigmoid":
        values = {"initial_scale": SIGMOID_SCALE} | values
    if _are_class_folders(values["data"]):
        values = {"templates": load_prompt_set("default").templates} | values
    settings = TrainSettings(**values)
    _check_together(settings)
    return settings


def _are_class_folders(data: str) -> bool:
    return not are_shards(data) and os.path.isdir(data)  # noqa: PTH112, Path fails for a long name


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Read settings given as `NAME=VALUE`, the value as it would stand in a YAML file.

    Raises:
        UsageError: there is no such setting, no `=`, or a value is missing or has the wrong type or range.
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
    return _checked(values, "--set: ")


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file, by name; relative paths are taken from its folder.

    Raises:
        UsageError: the file can't be read, a name is unknown, or a value is missing or has the wrong type or range.
    """
    text = read_text(path)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a ValueError for a date that doesn't exist
        raise UsageError(f"{path}: the config can't be read: {exc}") from exc
    if not isinstance(values, dict):
        raise UsageError(f"{path}: the config must be a mapping of setting to value")
    values = _checked(values, f"{path}: ")
    for name in PATHS:
        if values.get(name) and _is_path(name, values[name], path.parent / values[name]):
            values[name] = str(path.parent / values[name])
    return values


def setting_values(settings: TrainSettings) -> dict[str, Any]:
    """Return settings as plain values, with absolute paths, and with `model` without what only new models have."""
    values: dict[str, Any] = asdict(settings)
    values |= {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    for name in PATHS:
        if values[name] and _is_path(name, values[name], Path(values[name])):
            values[name] = str(Path(values[name]).resolve())
    for name in OF_NEW_MODELS if settings.model else ():
        del values[name]
    return values


def write_settings(settings: TrainSettings, path: Path) -> None:
    """Write settings so that `--config` reads them back."""
    text = yaml.safe_dump(setting_values(settings), sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def _is_path(name: str, value: str, path: Path) -> bool:
    """Tell whether a value is a path; an architecture and a model may be a name, data a stream or in a store."""
    if name in ("data", "validation", "zero_shot"):
        return not is_elsewhere(value)
    if name == "arch":
        return os.path.isfile(path)  # noqa: PTH113, Path fails for a long name
    return name != "model" or os.path.isfile(path / "open_clip_config.json")  # noqa: PTH113


@cache
def _field_types() -> dict[str, TypeAdapter[Any]]:
    hints = typing.get_type_hints(TrainSettings, include_extras=True)
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


def _checked(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return values in their fields' types; `where` they stand begins the message about one that can't be used."""
    fields = _field_types()
    for name in [name for name in values if name in MOVED]:
        if values.pop(name) != MOVED[name]:
            raise UsageError(
                f"{where}{name} isn't a setting of `clipcls train` any more, but belongs to the recipe in "
                "examples/pictogram; leave it out, or train with that folder's recipe.py"
            )
    unknown = [str(name) for name in values if name not in fields]
    if unknown:
        raise UsageError(f"{where}unknown setting {', '.join(unknown)}; there are: {', '.join(fields)}")
    checked = {}
    for name, value in values.items():
        if value is None:
            raise UsageError(f"{where}{name}: no value; give it one, or leave the setting out")
        try:
            checked[name] = fields[name].validate_python(value)
        except ValidationError as exc:
            raise UsageError(f"{where}{name}: {_complaint(exc)}") from exc
    return checked


def _complaint(exc: ValidationError) -> str:
    error = exc.errors(include_url=False)[0]
    value = error["input"]
    expected = "more values are needed" if error["type"] == "missing" else error["msg"].replace("tuple", "list")
    # YAML reads an unquoted 3, no or 2024-01-01 as something else than text
    quoted = error["type"] == "string_type" and isinstance(value, int | float | datetime.date)
    return f"{value!r:.100}: {expected[0].lower()}{expected[1:]}" + ("; put it in quotes" if quoted else "")


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


def _check_together(settings: TrainSettings) -> None:
    """Refuse settings that don't go with one another."""
    if settings.flip and settings.augment == "none":
        raise UsageError("flip: only with augment light or heavy")
    if settings.accumulate > settings.batch_size:
        raise UsageError(f"accumulate: {settings.accumulate} must be at most batch_size, {settings.batch_size}")
    if not settings.templates:
        raise UsageError("templates: the list is empty")
    for template in settings.templates:
        if template.count("{}") != 1:
            raise UsageError(f"templates: {template!r} must hold one {{}}")
    for lock, unlocked in UNLOCKED.items():
        if getattr(settings, lock) and not settings.model:
            raise UsageError(f"{lock}: only with a model, whose tower is trained already; a new tower has to learn")
        if getattr(settings, unlocked) and not getattr(settings, lock):
            raise UsageError(f"{unlocked}: only with {lock}")
    if all(getattr(settings, lock) and not getattr(settings, unlocked) for lock, unlocked in UNLOCKED.items()):
        raise UsageError("lock_image and lock_text: with both towers locked there is nothing to train")

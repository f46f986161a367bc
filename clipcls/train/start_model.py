"""The model that a run starts from: a new one of some architecture, or one that `predict` takes."""

import copy
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import nn

from clipcls.errors import ModelError, UsageError, first_line
from clipcls.labels.prompts import read_model_prompts
from clipcls.models.attention import keep_batch_first
from clipcls.models.catalog import model_folder
from clipcls.models.checkpoint import Checkpoint, Tower, build_tower
from clipcls.models.locate import WEIGHT_SUFFIXES, ModelFiles, fetch_tokenizer, locate, read_architecture
from clipcls.records import ModelSpec
from clipcls.train.model_folder import Config, DualEncoder
from clipcls.train.settings import TrainSettings

logger = logging.getLogger(__name__)

# what open_clip, timm and transformers raise where they take a configuration as it is
BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def start_model(settings: TrainSettings) -> DualEncoder:
    """Return the model that the settings' `arch` or `model` names, before the first step.

    Raises:
        UsageError: the architecture is unknown or can't be built, or the model is of a kind that can't be trained.
        ModelError: the model can't be had.
    """
    return base_model(settings) if settings.model else new_model(settings)


# ---- a new model


def new_model(settings: TrainSettings) -> DualEncoder:
    """Return a model with random weights.

    Raises:
        UsageError: the architecture is unknown, or open_clip can't build or run it.
    """
    config = read_config(settings)
    _add_bias(config.model, settings)
    model, tokenizer = _build(config)
    _try_out(model, tokenizer, config, settings.arch)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(settings.initial_scale))
    return DualEncoder(model, tokenizer, config)


def read_config(settings: TrainSettings) -> Config:
    """Return the architecture and the preprocessing that the settings name.

    Raises:
        UsageError: the architecture is unknown, or its file isn't one of open_clip's format.
    """
    model = _read_arch(settings.arch)
    _refuse_caption_decoder(model, settings.arch)
    if not _is_count(model["embed_dim"]):
        raise UsageError(f"{settings.arch}: embed_dim {model['embed_dim']!r} isn't a number of features, as in 512")
    preprocess = {
        "size": _read_side(settings.arch, model["vision_cfg"]),
        "mode": "RGB",
        "mean": list(settings.mean),
        "std": list(settings.std),
        "interpolation": settings.interpolation,
        "resize_mode": settings.resize_mode,
        "fill_color": settings.fill_color,
    }
    return Config(model, preprocess)


def _read_side(arch: str, vision: dict[str, Any]) -> int:
    """Return height and width of the pictures."""
    if "image_size" not in vision:
        raise UsageError(f"{arch}: the architecture lacks 'image_size' in its vision_cfg")
    size = vision["image_size"]
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(map(_is_count, sides)):
        raise UsageError(f"{arch}: image_size {size!r} isn't a number of pixels, as in 224")
    if len(set(sides)) > 1:
        raise UsageError(f"{arch}: image_size {size} isn't square")
    return int(sides[0])


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _try_out(model: Any, tokenizer: Any, config: Config, arch: str) -> None:
    """Refuse what open_clip builds but can't run: patches larger than the picture, fewer tokens than the tokenizer's.

    Raises:
        UsageError: a tower fails with a picture of the model's size, or with a text.
    """
    training = model.training
    model.eval()  # leaves BatchNorm's statistics and the random state as they are
    tower = "vision_cfg"
    try:
        with torch.no_grad():
            model.encode_image(torch.zeros(1, 3, config.side, config.side))
            tower = "text_cfg"
            model.encode_text(tokenizer(["a"]))
    except BUILD_ERRORS as exc:
        taken = "a picture of image_size" if tower == "vision_cfg" else "its tokenizer's tokens; see vocab_size"
        raise UsageError(f"{arch}: the tower of {tower} can't take {taken} ({first_line(exc)})") from exc
    model.train(training)


def _refuse_caption_decoder(model_config: dict[str, Any], where: str) -> None:
    if "multimodal_cfg" in model_config:
        raise UsageError(f"{where}: a CoCa model, whose caption decoder can't be trained here; take another.")


def _read_arch(arch: str) -> dict[str, Any]:
    if arch.endswith(".json"):
        return read_architecture(arch)
    known = open_clip.get_model_config(arch)
    if known is None:
        raise UsageError(f"{arch}: neither a .json file nor an architecture of open_clip")
    return copy.deepcopy(known)


# ---- a model to go on from


def base_model(settings: TrainSettings) -> DualEncoder:
    """Return a trained model with its weights, its preprocessing, its scale and bias, and its tokenizer.

    Raises:
        UsageError: it is a bare weights file, has a caption decoder, or takes pictures that aren't square.
        ModelError: it can't be found or loaded.
    """
    files = _locate(settings.model)
    checkpoint = Checkpoint(files.weights)
    scale, bias = checkpoint.scalar("logit_scale"), checkpoint.scalar("logit_bias")
    if scale is None or (bias is None and files.config.get("init_logit_bias") is not None):
        missing = "logit_scale" if scale is None else "logit_bias"
        raise ModelError(f"{files.weights}: no {missing}, so the training would go on from a made-up one.")
    model_config = copy.deepcopy(files.config)
    if bias is not None:
        model_config.setdefault("init_logit_bias", bias)
    _add_bias(model_config, settings)
    preprocess = _preprocess_config(files)
    tokenizer_files = tuple(files.tokenizer_files())
    model, tokenizer = _build(Config(model_config, preprocess), tokenizer_files)
    _load_weights(model, files, checkpoint)
    highest = math.log(settings.max_scale)
    if scale > highest:
        logger.warning("the model's scale of %.1f is lowered to max_scale, %.1f", math.exp(scale), settings.max_scale)
    with torch.no_grad():
        model.logit_scale.fill_(min(scale, highest))
        if bias is not None:
            model.logit_bias.fill_(bias)
    _with_hub_name(model_config["text_cfg"])
    own = read_model_prompts(model_folder(settings.model))
    return DualEncoder(
        model,
        tokenizer,
        Config(model_config, preprocess),
        tokenizer_files,
        files.words,
        () if own is None else own.templates,
    )


def _locate(name: str) -> ModelFiles:
    if Path(name).is_file() or (Path(name).suffix in WEIGHT_SUFFIXES and ":" not in name):
        raise UsageError(
            f"--model {name}: training doesn't start from a bare weights file. Put it into a folder with an "
            "open_clip_config.json that states its model_cfg and preprocess_cfg, and name the folder."
        )
    files = locate(ModelSpec(name))
    _refuse_caption_decoder(files.config, f"--model {name}")
    if files.preprocess.size[0] != files.preprocess.size[1]:
        height, width = files.preprocess.size
        raise UsageError(f"--model {name}: takes {width}×{height} pictures; only square ones can be trained on.")
    return files


def _preprocess_config(files: ModelFiles) -> dict[str, Any]:
    stated = files.preprocess
    return {
        "size": stated.size[0],
        "mode": "RGB",
        "mean": list(stated.mean),
        "std": list(stated.std),
        "interpolation": stated.interpolation,
        "resize_mode": stated.resize_mode,
        "fill_color": stated.fill_color,
    }


def _add_bias(model_config: dict[str, Any], settings: TrainSettings) -> None:
    """Give a model without a bias the one that the sigmoid loss needs."""
    if settings.loss == "sigmoid" and model_config.get("init_logit_bias") is None:
        model_config["init_logit_bias"] = settings.initial_bias


def _load_weights(model: nn.Module, files: ModelFiles, checkpoint: Checkpoint) -> None:
    """Copy both towers' weights, in float32, into a model that was built from the same configuration."""
    state: dict[str, torch.Tensor] = {}
    for tower in get_args(Tower):
        # open_clip's CLIP class holds the parts of its text tower itself, the others have a `text`
        prefix = f"{tower}." if hasattr(model, tower) else ""
        tensors = build_tower(files, checkpoint, tower).state_dict()
        state |= {prefix + name: tensor for name, tensor in tensors.items()}
    found = model.load_state_dict(state, strict=False)
    odd = [*found.unexpected_keys, *(key for key in found.missing_keys if key not in ("logit_scale", "logit_bias"))]
    if odd:
        raise ModelError(f"{files.weights}: the weights don't fit the architecture of {files.name!r}: {odd[0]}")


def _with_hub_name(text_config: dict[str, Any]) -> None:
    """Name a transformers text tower by its repository again, so that the folder can go to another machine."""
    path = str(text_config.get("hf_model_name") or "")
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]", path)
    if cached:
        text_config["hf_model_name"] = f"{cached[1]}/{cached[2]}"


def _build(config: Config, tokenizer_files: Sequence[Path] = ()) -> tuple[Any, Any]:
    """Build a model with random weights, and its tokenizer.

    Raises:
        UsageError: open_clip can't build the architecture.
        ModelError: the tokenizer can't be had from the hub.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.write(folder)
        for path in tokenizer_files:
            shutil.copyfile(path, folder / path.name)
        source = f"local-dir:{folder}"
        logging.disable(logging.WARNING)  # open_clip warns that the weights are random, which is meant here
        try:
            tokenizer_name = config.model["text_cfg"].get("hf_tokenizer_name")
            if tokenizer_name and not tokenizer_files:
                # open_clip looks for it in the folder alone
                local = tokenizer_name if Path(tokenizer_name).is_dir() else fetch_tokenizer(config.model["text_cfg"])
                HFTokenizer(str(local)).tokenizer.save_pretrained(folder)
            model = open_clip.create_model(source, load_weights=False, pretrained_image=False, pretrained_text=False)
            tokenizer = open_clip.get_tokenizer(source)
        except BUILD_ERRORS as exc:
            raise UsageError(f"open_clip can't build this architecture: {first_line(exc)}") from exc
        finally:
            logging.disable(logging.NOTSET)
    return keep_batch_first(model), tokenizer

"""The model folder: open_clip's `local-dir:` format, beside which stand the words of the captions."""

import copy
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import safetensors.torch
import torch
from torch import nn

from clipcls import vocabulary
from clipcls.errors import StoppedError, UsageError
from clipcls.train.settings import Settings

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


@dataclass(frozen=True, slots=True)
class Config:
    """What `open_clip_config.json` holds.

    Attributes:
        model: open_clip's `model_cfg`.
        preprocess: open_clip's `preprocess_cfg`.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]

    @property
    def side(self) -> int:
        """Height and width of the model's input, in pixels."""
        size = self.preprocess["size"]
        return int(size[0] if isinstance(size, list | tuple) else size)

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        text = json.dumps({"model_cfg": self.model, "preprocess_cfg": self.preprocess}, indent=2)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def read_config(settings: Settings) -> Config:
    """The architecture and the preprocessing that the settings name.

    Raises:
        UsageError: the architecture is unknown, or its file isn't one of open_clip's format.
    """
    model = _read_arch(settings.arch)
    try:
        size = model["vision_cfg"]["image_size"]
        _ = model["embed_dim"], model["text_cfg"]
    except (KeyError, TypeError) as exc:
        raise UsageError(f"{settings.arch}: the architecture lacks {exc}") from exc
    side = size[0] if isinstance(size, list) else size
    if isinstance(size, list) and size[0] != size[-1]:
        raise UsageError(f"{settings.arch}: image_size {size} isn't square")
    preprocess = {
        "size": side,
        "mode": "RGB",
        "mean": list(settings.mean),
        "std": list(settings.std),
        "interpolation": settings.interpolation,
        "resize_mode": settings.resize_mode,
        "fill_color": settings.fill_color,
    }
    return Config(model, preprocess)


def _read_arch(arch: str) -> dict[str, Any]:
    path = Path(arch)
    if path.suffix != ".json":
        known = open_clip.get_model_config(arch)
        if known is None:
            raise UsageError(f"{arch}: neither a .json file nor an architecture of open_clip")
        return copy.deepcopy(known)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(f"{arch}: the architecture can't be read: {exc}") from exc
    model = content.get("model_cfg", content) if isinstance(content, dict) else content
    if not isinstance(model, dict):
        raise UsageError(f"{arch}: the architecture must be a JSON object")
    return model


def create_model(config: Config) -> tuple[nn.Module, Any]:
    """A new model with random weights, and its tokenizer.

    Raises:
        UsageError: open_clip can't build the architecture.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config.write(folder)
        source = f"local-dir:{folder}"
        logging.disable(logging.WARNING)  # open_clip warns that the weights are random, which is meant here
        try:
            model = open_clip.create_model(source, load_weights=False, pretrained_image=False)
            tokenizer = open_clip.get_tokenizer(source)
        except (ValueError, TypeError, RuntimeError, AssertionError, KeyError, OSError) as exc:
            raise UsageError(f"open_clip can't build this architecture: {exc}") from exc
        finally:
            logging.disable(logging.NOTSET)
    return model, tokenizer


def write_model(folder: Path, model: nn.Module, config: Config, captions: Iterable[str], half: bool) -> None:
    """Write a model folder in one step: it is there whole, or not at all.

    Args:
        folder: to be created; an older one in its place is replaced.
        model: whose weights are saved.
        config: of the model.
        captions: all that it was trained on, without templates.
        half: save the weights as float16.

    Raises:
        StoppedError: the folder can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as exc:
        raise StoppedError(f"{folder}: the model can't be written: {exc}") from exc
    try:
        config.write(draft)
        safetensors.torch.save_file(_weights(model, half), draft / WEIGHTS_NAME, metadata={"format": "pt"})
        vocabulary.write_words(draft, captions)
        draft.chmod(0o755)
        (draft / WEIGHTS_NAME).chmod(0o644)
        _move(draft, folder)
    except (OSError, safetensors.SafetensorError) as exc:
        raise StoppedError(f"{folder}: the model can't be written: {exc}") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _weights(model: nn.Module, half: bool) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def _move(draft: Path, folder: Path) -> None:
    """Put the draft where the folder is to be; a folder can't be renamed over one that holds files."""
    if folder.exists():
        old = draft.with_name(draft.name + "-old")
        folder.replace(old)
        draft.replace(folder)
        shutil.rmtree(old)
    else:
        draft.replace(folder)

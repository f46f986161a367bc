"""The model folder: open_clip's `local-dir:` format, beside which stand the words of the captions."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from open_clip.tokenizer import HFTokenizer
from torch import nn

from clipcls.errors import StoppedError
from clipcls.labels import vocabulary
from clipcls.labels.prompts import write_model_prompts
from clipcls.models.locate import CONFIG_NAME

WEIGHTS_NAME = "open_clip_model.safetensors"
# what a folder is called for the moment between two renames
OLD = "-old"


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


@dataclass(frozen=True, slots=True)
class DualEncoder:
    """A model in memory, with all that its folder holds.

    Attributes:
        model: one of open_clip's classes.
        tokenizer: texts to `(n, context_length) int64`.
        config: architecture and preprocessing.
        tokenizer_files: of a Hugging Face tokenizer; none where the model uses CLIP's own.
        words: those of all captions it was trained on; empty for a new model, None for one that was trained on the
            open world, whose folder lists no words.
        templates: what makes prompts of labels as captions were phrased; empty where they aren't known.
    """

    model: Any
    tokenizer: Any
    config: Config
    tokenizer_files: tuple[Path, ...] = ()
    words: frozenset[str] | None = frozenset()
    templates: tuple[str, ...] = ()


def write_model(folder: Path, encoder: DualEncoder, half: bool) -> None:
    """Write a model folder in one step: it is there whole, or not at all.

    Args:
        folder: to be created; an older one in its place is replaced.
        encoder: what is saved.
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
        encoder.config.write(draft)
        weights = _weights(encoder.model, half)
        safetensors.torch.save_file(weights, draft / WEIGHTS_NAME, metadata={"format": "pt"})
        _write_tokenizer(draft, encoder)
        if encoder.words is not None:
            vocabulary.write_words(draft, encoder.words)
        if encoder.templates:
            write_model_prompts(draft, encoder.templates)
        draft.chmod(0o755)
        (draft / WEIGHTS_NAME).chmod(0o644)
        _move(draft, folder)
    except (OSError, safetensors.SafetensorError) as exc:
        raise StoppedError(f"{folder}: the model can't be written: {exc}") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def copy_model(folder: Path, target: Path) -> None:
    """Copy a model folder in one step, in the place of an older one.

    Raises:
        StoppedError: it can't be written.
    """
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            shutil.copytree(folder, draft, dirs_exist_ok=True)
            _move(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as exc:
        raise StoppedError(f"{target}: the model can't be written: {exc}") from exc


def _write_tokenizer(folder: Path, encoder: DualEncoder) -> None:
    """Write the files of a Hugging Face tokenizer, so that the folder needs no hub; CLIP's own has none."""
    for path in encoder.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    if not encoder.tokenizer_files and isinstance(encoder.tokenizer, HFTokenizer):
        encoder.tokenizer.tokenizer.save_pretrained(folder)


def _weights(model: nn.Module, half: bool) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }


def remove_drafts(folder: Path) -> None:
    """Remove what a process that was killed while it wrote this folder has left; a folder moved aside comes back."""
    drafts = list(folder.parent.glob(f".{folder.name}-*"))
    for draft in drafts:
        if draft.name.endswith(OLD) and not folder.exists():
            draft.replace(folder)
        else:
            shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, folder: Path) -> None:
    """Put the draft where the folder is to be; a folder can't be renamed over one that holds files."""
    for path in draft.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if not folder.exists():
        draft.replace(folder)
        return
    old = draft.with_name(draft.name + OLD)
    folder.replace(old)
    try:
        draft.replace(folder)
    except BaseException:
        old.replace(folder)
        raise
    shutil.rmtree(old)

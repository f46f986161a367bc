"""Builds towers without random initialisation, and reads weights straight into them.

open_clip's `create_model` initialises every weight at random and then copies the checkpoint over it, which takes
seconds. Here a tower's parameters are left unset, the checkpoint is memory-mapped, and its tensors become the
parameters; strict loading guarantees that none stays unset. Only the requested tower is built and read.
"""

import logging
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from open_clip import convert as open_clip_convert
from open_clip import model as open_clip_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipcls.errors import ModelError, first_line
from clipcls.models import hub
from clipcls.models.locate import ModelFiles

logger = logging.getLogger(__name__)

Tower = Literal["visual", "text"]
# what open_clip and timm raise for settings of any type and value
_CONFIGURATION_ERRORS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
# prefixes of a text tower's tensors in CLIP's first layout; `open_clip.convert_to_custom_text_state_dict` moves them
_FLAT_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
# not part of an encoder: CoCa's caption decoder, and entries of TorchScript archives
_IGNORED = ("text_decoder.", "input_resolution", "context_length", "vocab_size", "attn_mask")


class Checkpoint:
    """The tensors of one weights file, each read when it is requested.

    Raises:
        ModelError: the file isn't a readable checkpoint of plain tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: dict[str, Tensor] = {}
        self._safetensors: Any = None
        try:
            if path.suffix == ".safetensors":
                self._safetensors = safe_open(path, framework="pt")
            else:
                self._loaded = _load_pickle(path)
            self.keys = tuple(self._loaded if self._safetensors is None else self._safetensors.keys())
        except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as exc:
            mend = " `clipcls models pull NAME` mends a download." if hub.is_download(path) else ""
            raise ModelError(f"{path}: not a readable weights file: {first_line(exc)}.{mend}") from exc
        unknown = [key for key in self.keys if _tower_of(key) is None]
        if unknown and not self.is_mobile_clip:
            raise ModelError(f"{path}: not the weights of a dual encoder; it holds, for example, {unknown[0]!r}.")

    @property
    def is_mobile_clip(self) -> bool:
        """Whether the file has Apple's MobileCLIP layout, which open_clip converts."""
        return any(key.startswith("image_encoder.model.patch_emb") for key in self.keys)

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors."""
        if self._safetensors is None:
            return {key: self._loaded[key] for key in keys}
        return {key: self._safetensors.get_tensor(key) for key in keys}

    def scalar(self, key: str) -> float | None:
        """Return a scalar such as `logit_scale`, or None where the file has none.

        Raises:
            ModelError: the tensor is empty.
        """
        if key not in self.keys:
            return None
        tensor = self.read([key])[key]
        if not tensor.numel():
            raise ModelError(f"{self.path}: {key} holds no number.")
        return float(tensor.float().reshape(-1)[0])

    def tower(self, tower: Tower) -> dict[str, Tensor]:
        """Return a tower's tensors, all under the prefix `visual.` or `text.`."""
        if self.is_mobile_clip:
            return self.read(self.keys)
        state = self.read(key for key in self.keys if _tower_of(key) == tower)
        converted: dict[str, Tensor] = open_clip_model.convert_to_custom_text_state_dict(state)
        return converted


def build_tower(files: ModelFiles, checkpoint: Checkpoint, tower: Tower) -> nn.Module:
    """Build one tower with its weights.

    Returns:
        The tower in evaluation mode, in the precision of the file, on the CPU.

    Raises:
        ModelError: the weights don't fit the architecture, or a package that the architecture needs is missing.
    """
    config = files.config
    build: Callable[..., nn.Module] = (
        open_clip_model._build_vision_tower if tower == "visual" else open_clip_model._build_text_tower
    )
    tower_config = {
        key: value
        for key, value in config["vision_cfg" if tower == "visual" else "text_cfg"].items()
        # a tower's own pretrained weights would be downloaded only to be replaced
        if key not in ("timm_model_pretrained", "hf_model_pretrained")
    }
    tower_config["timm_model_pretrained" if tower == "visual" else "hf_model_pretrained"] = False
    try:
        with _Uninitialised():
            module = build(config["embed_dim"], tower_config, quick_gelu=config.get("quick_gelu", False))
    except (*_CONFIGURATION_ERRORS, RuntimeError, AssertionError, ImportError, OSError) as exc:
        raise ModelError(f"{files.name}: its {tower} tower can't be built: {first_line(exc)}") from exc
    try:
        state = _fitted(checkpoint, tower, module)
        module.load_state_dict(state, strict=True, assign=True)
    # open_clip's resizing of positions asserts that widths agree, and doesn't look at dimensions
    except (RuntimeError, AssertionError, IndexError) as exc:
        details = " ".join(str(exc).split())
        raise ModelError(
            f"{checkpoint.path}: the weights don't fit the architecture of {files.name!r}. {details[:300]}"
        ) from exc
    logger.info("built the %s tower of %s", "image" if tower == "visual" else "text", files.name)
    return module.eval().requires_grad_(False)


def _fitted(checkpoint: Checkpoint, tower: Tower, module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `tower` under the names of `module`, converted as open_clip's `load_checkpoint` does."""
    state = checkpoint.tower(tower)
    holder = SimpleNamespace(visual=module, text=module)
    if checkpoint.is_mobile_clip:
        state = open_clip_convert.convert_state_dict(holder, state)
    if tower == "visual":
        open_clip_model.resize_pos_embed(state, holder)
    else:
        state.pop("text.transformer.embeddings.position_ids", None)
        if hasattr(module, "positional_embedding"):
            open_clip_model.resize_text_pos_embed(state, holder)
    prefix = f"{tower}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _tower_of(key: str) -> str | None:
    """Return `visual`, `text`, or `other` if both or neither use the tensor; None if no dual encoder has such a key."""
    if key.startswith("visual."):
        return "visual"
    if key in ("logit_scale", "logit_bias") or key.startswith(_IGNORED):
        return "other"
    if key.startswith(("text.", *_FLAT_TEXT)):
        return "text"
    return None


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = _unpickle(path)
    except pickle.UnpicklingError as exc:
        if not _begins_as_checkpoint(path):
            raise ModelError(
                f"{path}: not a weights file, whatever its name. It may be a web page or a Git LFS pointer: download "
                "the weights anew."
            ) from exc
        raise ModelError(
            f"{path}: this file holds more than tensors and could run code when loaded, so it is refused. "
            "Convert it to safetensors on a machine where you trust it."
        ) from exc
    except RuntimeError as exc:
        if "TorchScript" not in str(exc):
            raise
        raise ModelError(
            f"{path}: a TorchScript archive, as OpenAI's own files are; it is code, so it is refused. Use the model's "
            "name (`clipcls models --all`), or save its state_dict as safetensors on a machine where you trust it."
        ) from exc
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ModelError(f"{path}: expected a dictionary of tensors, or one under `state_dict`.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _begins_as_checkpoint(path: Path) -> bool:
    """Return whether a file begins as torch's do: as a zip archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as exc:
        if "mmap" not in str(exc):
            raise
        # the format before PyTorch 1.6 can't be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True)


class _Uninitialised(TorchFunctionMode):
    """Allocates parameters without filling them while active; buffers are filled, since a file may lack them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, nn.Parameter):
                return target
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)

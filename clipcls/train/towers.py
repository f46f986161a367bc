"""The two towers of a model: which of their weights are trained, and how a batch goes through them."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from clipcls.errors import UsageError
from clipcls.models.padding import cut_to_length
from clipcls.train.processes import random_states, restore_random_states
from clipcls.train.settings import TrainSettings

# ---- which weights are trained


def lock_towers(model: Any, settings: TrainSettings) -> None:
    """Take a tower's weights out of training, all or all but its last groups, in a model in training mode.

    A tower that is locked as a whole runs as it does in `predict`: its BatchNorm uses and keeps its statistics, its
    dropout is off.

    Source: Zhai et al. 2022, LiT: Zero-Shot Transfer with Locked-image text Tuning.

    Args:
        model: of one of open_clip's classes.
        settings: for `lock_image` and `lock_text`, and how much of each stays in training.

    Raises:
        UsageError: the tower can't be locked in part.
    """
    if settings.lock_image:
        groups = settings.lock_image_unlocked_groups
        if groups:
            _lock_partly("lock_image_unlocked_groups", model.lock_image_tower, unlocked_groups=groups)
        _freeze([model.visual], whole=not groups)
    if settings.lock_text:
        layers = settings.lock_text_unlocked_layers
        if layers:
            _lock_partly("lock_text_unlocked_layers", model.lock_text_tower, unlocked_layers=layers)
        else:
            for parameter in _text_parameters(model):
                parameter.requires_grad_(False)
        # open_clip's CLIP class holds the parts of its text tower itself
        _freeze([child for name, child in model.named_children() if name != "visual"], whole=not layers)


def _text_parameters(model: Any) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
    ]


def _freeze(modules: list[nn.Module], whole: bool) -> None:
    """Keep what is locked as it is: the whole modules, or the BatchNorm layers whose gains are locked."""
    for module in modules:
        if whole:
            module.requires_grad_(False).eval()
            continue
        for layer in module.modules():
            if isinstance(layer, _BatchNorm) and not any(weight.requires_grad for weight in layer.parameters()):
                layer.eval()


def _lock_partly(setting: str, lock: Callable[..., None], **unlocked: int) -> None:
    try:
        # one of open_clip's towers prints what it unlocks, another imports timm's functions by an old name
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            lock(**unlocked)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, NotImplementedError) as exc:
        raise UsageError(f"{setting}: this tower can only be locked as a whole; leave it out ({exc})") from exc


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that look at their batch: those in training mode."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


@contextlib.contextmanager
def keep_statistics(model: nn.Module) -> Iterator[None]:
    """Set the running statistics of BatchNorm layers back, at the end, to what they were at the beginning."""
    buffers = [buffer for layer in batch_norms(model) for buffer in layer.buffers()]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


# ---- a batch on its way through them


class TextTower(nn.Module):
    """A model's text tower by itself, for texts that may be shorter than its context.

    Args:
        model: of one of open_clip's classes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def owner(self) -> Any:
        """What holds the tower's parts: `text`, or with open_clip's CLIP class the model itself."""
        return getattr(self.model, "text", self.model)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return text features, `(n, embed_dim)`, as the model gives them."""
        features: torch.Tensor = self.model.encode_text(tokens)
        return features

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the same of tokens without their padding."""
        prefix = "model." if self.owner is self.model else "model.text."
        cut = {prefix + name: tensor for name, tensor in cut_to_length(self.owner, tokens).items()}
        features: torch.Tensor = functional_call(self, cut, (tokens,)) if cut else self(tokens)
        return features


class Towers(nn.Module):
    """Both towers in one forward pass, in the precision of the run.

    Args:
        model: of one of open_clip's classes, its towers locked or not.
        precision: of the towers; the features are float32.
    """

    def __init__(self, model: Any, precision: torch.dtype) -> None:
        super().__init__()
        self.model, self.text, self.precision = model, TextTower(model), precision
        self._image_learns = any(weight.requires_grad for weight in model.visual.parameters())
        self._text_learns = any(weight.requires_grad for weight in _text_parameters(model))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and text features, `(n, embed_dim) float32`; without gradients of a locked tower."""
        low = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=low):
            with torch.set_grad_enabled(self._image_learns and torch.is_grad_enabled()):
                image_features = self.model.encode_image(images)
            with torch.set_grad_enabled(self._text_learns and torch.is_grad_enabled()):
                text_features = self.text.encode(tokens)
        return image_features.float(), text_features.float()


class Encoding:
    """The features of a batch, and the way of their gradients back into the towers.

    Args:
        towers: a `Towers`, or one that several processes share.
        images: `(n, 3, side, side) float32`.
        tokens: `(n, context_length) int64`.

    Attributes:
        image_features: `(n, embed_dim) float32`.
        text_features: `(n, embed_dim) float32`.
    """

    def __init__(self, towers: nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> None:
        self._towers = towers
        self.image_features, self.text_features = towers(images, tokens)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss of these features to those of the weights."""
        with keep_statistics(self._towers):  # grad_checkpointing computes BatchNorm layers a second time
            torch.autograd.backward(loss)


class EncodingInParts(Encoding):
    """The same of a batch whose activations don't fit into memory at once.

    All features are computed first, without gradients. The loss on them gives the gradient of each feature; then part
    after part is computed again and passes its features' gradients on to the weights.

    Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.

    Args:
        count: of the parts.
    """

    def __init__(self, towers: nn.Module, images: torch.Tensor, tokens: torch.Tensor, count: int) -> None:
        self._towers, self._count, self._device = towers, count, images.device
        self._parts = list(zip(images.chunk(count), tokens.chunk(count), strict=True))
        self._states, found = [], []
        with torch.no_grad(), keep_statistics(towers):
            for part in self._parts:
                self._states.append(random_states(self._device))
                found.append(towers(*part))
        self.image_features, self.text_features = (
            torch.cat(parts).requires_grad_() for parts in zip(*found, strict=True)
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss of these features to those of the weights."""
        torch.autograd.backward(loss)
        gradients = [_gradient(features).chunk(self._count) for features in (self.image_features, self.text_features)]
        for number, (part, state) in enumerate(zip(self._parts, self._states, strict=True)):
            restore_random_states(self._device, state)  # so that the same activations are dropped
            last = number == len(self._parts) - 1
            with contextlib.nullcontext() if last else self._without_exchange():
                features = zip(self._towers(*part), (parts[number] for parts in gradients), strict=True)
                learning = [pair for pair in features if pair[0].requires_grad]  # not those of a locked tower
                with keep_statistics(self._towers):
                    torch.autograd.backward([pair[0] for pair in learning], [pair[1] for pair in learning])

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Keep the gradients of a part in this process; they go to the others along with those of the last part."""
        return self._towers.no_sync() if isinstance(self._towers, DistributedDataParallel) else contextlib.nullcontext()


def _gradient(features: torch.Tensor) -> torch.Tensor:
    assert features.grad is not None
    return features.grad

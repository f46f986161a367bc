"""The two towers of a model: which of their weights are trained."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipcls.errors import UsageError
from clipcls.train.settings import Settings


def lock_towers(model: Any, settings: Settings) -> None:
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
        _freeze(image_modules(model), whole=not groups)
    if settings.lock_text:
        layers = settings.lock_text_unlocked_layers
        if layers:
            _lock_partly("lock_text_unlocked_layers", model.lock_text_tower, unlocked_layers=layers)
        else:
            for parameter in text_parameters(model):
                parameter.requires_grad_(False)
        _freeze(text_modules(model), whole=not layers)


def image_modules(model: Any) -> list[nn.Module]:
    """The image tower."""
    return [model.visual]


def text_modules(model: Any) -> list[nn.Module]:
    """The text tower, or its parts where open_clip's class holds them itself."""
    return [child for name, child in model.named_children() if name != "visual"]


def text_parameters(model: Any) -> list[nn.Parameter]:
    """The text tower's parameters."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
    ]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that look at their batch: those in training mode."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]


@contextlib.contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Afterwards, the running statistics of BatchNorm layers are what they were before."""
    buffers = [buffer for layer in batch_norms(model) for buffer in layer.buffers()]
    before = [buffer.clone() for buffer in buffers]
    yield
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


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

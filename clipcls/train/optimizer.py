"""AdamW and its learning rate over a run."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from clipcls.train.settings import Settings


def build_optimizer(modules: Iterable[nn.Module], settings: Settings) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; gains, biases and scalars aren't decayed.

    Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to zero.

    Source: Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts.

    Args:
        step: counted from 0.
        steps: of the whole run.
        settings: for the peak and the warm-up.
    """
    warm = max(1, round(steps * settings.warmup))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return settings.learning_rate * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

"""AdamW, its learning rate over a run, and the moving average of the weights."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from clipcls.train.settings import TrainSettings


def build_optimizer(modules: Iterable[nn.Module], settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters; gains, biases and scalars aren't decayed.

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


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to zero.

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


WARM_UP = 10  # the first steps' weights are forgotten quickly


def moving_average(model: Any, decay: float) -> AveragedModel:
    """Return a copy of a model that follows it by `update_parameters`; buffers are copied.

    Source: Tarvainen and Valpola 2017, Mean teachers are better role models, equation 1; the decay rises over the
    first steps as in TensorFlow's ExponentialMovingAverage, (1 + n) / (10 + n).

    Args:
        model: as it is before the first step.
        decay: the share of the average that stays at each step.
    """

    @torch.no_grad()
    def follow(averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], count: torch.Tensor | int) -> None:
        share = 1 - min(decay, (1 + float(count)) / (WARM_UP + float(count)))
        torch._foreach_lerp_(list(averages), list(weights), share)

    average = AveragedModel(model, multi_avg_fn=follow)
    average.requires_grad_(False)
    return average

"""A moving average of the weights, which generalises better than the last of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

WARM_UP = 10  # the first steps' weights are forgotten quickly


def moving_average(model: Any, decay: float) -> AveragedModel:
    """A copy of a model that follows it by `update_parameters`; buffers are copied.

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

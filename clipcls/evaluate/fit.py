"""Fit what makes scores agree with the truth: a scale, a bias, and a threshold for each label. NumPy only."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import UsageError
from clipcls.evaluate.metrics import Values
from clipcls.predict.ranking import Array, Flags, Indices

_CELLS = 2**21  # similarities in float64 at once: 16 MB
_STEPS = 200
_DONE = 1e-12
_NEAR = 1e-8  # after a step this small, the next one is too small to matter
_ROUNDING = 1e-6  # what the rounding of float32 similarities makes of no slope at all
_STEEPEST = 500.0  # larger logits change nothing, but their exponentials may overflow
_AGAINST = (
    "The similarities don't tell these labels apart: the best fit is one that ignores them, or turns them round. "
    "Look at labels, prompts and model with `clipcls eval` first."
)


def fit_scale(cosines: Array, truth: Indices, start: float) -> float | None:
    """Return the logit_scale at which the softmax over the labels has the least negative log-likelihood.

    Args:
        cosines: (n, n_labels) float32.
        truth: (n,) int64, the index of the right label.
        start: a logit_scale to begin with.

    Returns:
        The scale in log space; None where each image's own label is the nearest, so that larger is always better.

    Raises:
        UsageError: a scale of 0 is the best.

    Source: temperature scaling, Guo et al. 2017, https://arxiv.org/abs/1706.04599.
    """
    if (_given(cosines, truth) == cosines.max(axis=1)).all():
        return None
    if _slope(cosines, truth, 0.0)[0] >= -_ROUNDING:
        raise UsageError(_AGAINST)
    # the loss is convex in the scale: Newton's steps, kept inside a bracket
    low, high = 0.0, math.exp(start)
    while _slope(cosines, truth, high)[0] < 0:
        low, high = high, 2 * high
    scale = (low + high) / 2
    for _ in range(_STEPS):
        slope, curvature = _slope(cosines, truth, scale)
        low, high = (low, scale) if slope > 0 else (scale, high)
        following = scale - slope / curvature if curvature > 0 else low
        following = following if low < following < high else (low + high) / 2
        moved, scale = abs(following - scale), following
        if moved <= _DONE * scale:
            break
    return math.log(scale)


def fit_scale_and_bias(values: NDArray[np.floating], truth: Flags) -> tuple[float, float]:
    """Return the logit_scale and logit_bias with which the sigmoids of the values have the least log loss.

    Args:
        values: similarities, of any shape.
        truth: whether the label is right, of the same shape.

    Returns:
        The scale in log space, and the bias.

    Raises:
        UsageError: all labels are right, or all wrong; or the best scale isn't above 0.

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, with its targets, which keep the scale
    finite where the values separate right from wrong; the steps are those of Lin, Lin and Weng 2007,
    https://doi.org/10.1007/s10994-007-5018-6.
    """
    flat, right = values.ravel().astype(np.float64), truth.ravel()
    positive = int(right.sum())
    negative = right.size - positive
    if not positive or not negative:
        raise UsageError(
            f"The images have {'every' if positive else 'none'} of the labels, so there is nothing to fit."
        )
    centre, spread = float(flat.mean()), float(flat.std())
    if spread == 0:
        raise UsageError(_AGAINST)
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    slope, offset = _newton((flat - centre) / spread, targets, math.log((positive + 1) / (negative + 1)))
    if slope <= _ROUNDING:
        raise UsageError(_AGAINST)
    return math.log(slope / spread), offset - slope * centre / spread


def log_loss(logits: Values, truth: Indices) -> Values:
    """Return the negative log-likelihood of each image's label under the softmax.

    Args:
        logits: (n, n_labels) float64.
        truth: (n,) int64.

    Returns:
        (n,) float64.
    """
    centred = logits - logits.max(axis=1, keepdims=True)
    losses: Values = np.log(np.exp(centred).sum(axis=1)) - centred[np.arange(len(truth)), truth]
    return losses


def label_log_loss(logits: Values, truth: Flags) -> Values:
    """Return the mean log loss of each image's labels under the sigmoid.

    Args:
        logits: (n, n_labels) float64.
        truth: (n, n_labels) bool.

    Returns:
        (n,) float64.
    """
    losses: Values = (np.logaddexp(0, logits) - np.where(truth, logits, 0.0)).mean(axis=1)
    return losses


def threshold_of_precision(scores: Array, right: Flags, target: float, least: int) -> float | None:
    """Return the lowest threshold at which the precision of a label's answers reaches a target.

    Args:
        scores: (n,) float32, of the images that the label is an answer to.
        right: (n,) bool, whether the answer is right.
        least: the number of answers that must reach the threshold.

    Returns:
        One of the scores; None where no score will do.
    """
    values, answers, hits = _curve(scores, right)
    passing = np.flatnonzero((answers >= least) & (hits >= target * answers - 1e-9))
    return float(values[passing[-1]]) if passing.size else None


def threshold_of_f1(scores: Array, right: Flags, support: int) -> float | None:
    """Return the lowest threshold at which a label has its best F1.

    Args:
        scores: (n,) float32, of the images that the label is an answer to.
        right: (n,) bool, whether the answer is right.
        support: the number of images that have the label.

    Returns:
        One of the scores; None where no answer is right.
    """
    values, answers, hits = _curve(scores, right)
    if not right.any():
        return None
    f1 = 2 * hits / (answers + support)
    return float(values[np.flatnonzero(f1 == f1.max())[-1]])


def _curve(scores: Array, right: Flags) -> tuple[Array, Indices, Indices]:
    """Return the distinct scores, highest first, how many scores reach each, and how many of those are right."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.diff(ranked, append=np.float32(np.nan)) != 0)
    return ranked[ends], ends + 1, np.cumsum(right[order], dtype=np.int64)[ends]


def _given(cosines: Array, truth: Indices) -> Array:
    given: Array = cosines[np.arange(len(truth)), truth]
    return given


def _slope(cosines: Array, truth: Indices, scale: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean negative log-likelihood by the scale."""
    slope = curvature = 0.0
    for part, right in _parts(cosines, truth):
        centred = part - part.max(axis=1, keepdims=True)
        exponentials = np.exp(scale * centred)
        shares = exponentials / exponentials.sum(axis=1, keepdims=True)
        expected = (shares * centred).sum(axis=1)
        slope += float((expected - centred[np.arange(len(right)), right]).sum())
        curvature += float(((shares * centred**2).sum(axis=1) - expected**2).sum())
    return slope / len(truth), curvature / len(truth)


def _parts(cosines: Array, truth: Indices) -> Iterator[tuple[Values, Indices]]:
    rows = max(1, _CELLS // cosines.shape[1])
    for start in range(0, len(truth), rows):
        yield cosines[start : start + rows].astype(np.float64), truth[start : start + rows]


def _newton(values: Values, targets: Values, offset: float) -> tuple[float, float]:
    """Return slope and offset of a logistic regression on one variable, fitted from a first offset."""
    weights = np.array([0.0, offset])
    design = np.stack([values, np.ones_like(values)])

    def loss(at: Values) -> float:
        logits = at @ design
        # log(1 + e^x), several times as fast as by logaddexp
        return float((np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - targets * logits).mean())

    current = loss(weights)
    for _ in range(_STEPS):
        shares = 1 / (1 + np.exp(-np.clip(weights @ design, -_STEEPEST, _STEEPEST)))
        gradient = design @ (shares - targets) / len(values)
        hessian = (design * (shares * (1 - shares))) @ design.T / len(values) + _DONE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        following = loss(weights - step)
        while following > current and np.abs(step).max() > _DONE:
            step /= 2
            following = loss(weights - step)
        weights, current = weights - step, following
        if np.abs(step).max() <= _NEAR:
            break
    return float(weights[0]), float(weights[1])

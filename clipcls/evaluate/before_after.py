"""Fit corrections to the scores of labelled pictures, and measure the scores before and after. NumPy only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from clipcls.errors import UsageError
from clipcls.evaluate import fit as fitting
from clipcls.evaluate import metrics
from clipcls.evaluate.metrics import Estimate, Statistic, Values
from clipcls.evaluate.results import ACCURACY_AT_1, CALIBRATION_ERROR, LOG_LOSS, MICRO_F1
from clipcls.predict.calibration import LabelThreshold, Rule
from clipcls.predict.ranking import (
    Array,
    Flags,
    Indices,
    LabelFeatures,
    Scoring,
    best_labels,
    contrasts,
    reaches,
    similarities,
)
from clipcls.predict.scores import ScoreKind

ANSWERED = "share answered"
PRECISION = "right of the answered"
#: A label with fewer images gets no threshold fitted to its best F1.
LEAST_OF_LABEL = 10
# significant digits of the numbers written to a calibration file; float32 has fewer
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Scored:
    """Labelled pictures and how similar they are to the labels.

    Attributes:
        truth: (n, n_labels) bool, whether a label is right for a picture.
        outside: (n,) bool, whether none of the labels is right; all False where an image may have several labels.
        cosines: (n, n_labels) float32.
        contrasts: (n, n_labels) float32, which scores are computed from, see `clipcls.predict.ranking.contrasts`.
        scoring: how scores are computed; its threshold is None.
    """

    truth: Flags
    outside: Flags
    cosines: Array
    contrasts: Array
    scoring: Scoring

    @classmethod
    def make(cls, features: Array, truth: Flags, side: LabelFeatures, scoring: Scoring) -> "Scored":
        """Compare the pictures' features with the labels."""
        cosines = similarities(features, side.features)
        outside: Flags = ~np.any(truth, axis=1) & (not scoring.multi_label)
        values = contrasts(cosines, features, side, scoring.score_kind)
        return cls(truth, outside, cosines, values, replace(scoring, threshold=None))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.scoring.multi_label

    @property
    def kind(self) -> ScoreKind:
        """The kind of the scores."""
        return self.scoring.score_kind

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.truth)

    @property
    def right(self) -> Indices:
        """(n,) int64, the index of each image's label; meaningless where the image is outside."""
        right: Indices = self.truth.argmax(axis=1).astype(np.int64)
        return right

    def select(self, chosen: Flags) -> "Scored":
        """Return the pictures that flags of (n,) bool choose."""
        return replace(
            self,
            truth=self.truth[chosen],
            outside=self.outside[chosen],
            cosines=self.cosines[chosen],
            contrasts=self.contrasts[chosen],
        )

    def scores(self, side: LabelFeatures) -> Array:
        """Return the score of every picture and label, (n, n_labels) float32."""
        return self.kind.scores(self.contrasts, side.logit_scale, side.logit_bias)

    def answers(self, label_scores: Array) -> Flags:
        """Return which labels would be answered if there were no threshold, (n, n_labels) bool."""
        if self.multi_label:
            return np.ones(label_scores.shape, dtype=bool)
        answered: Flags = np.arange(label_scores.shape[1]) == best_labels(self.cosines, label_scores)[:, None]
        return answered


@dataclass(frozen=True, slots=True)
class Correction:
    """The scale and bias that were fitted to scores; see `Calibration`.

    Attributes:
        is_fitted: False for cosines, and where no answer was wrong: then no scale is best, and the model's is kept.
    """

    temperature: float | None
    logit_scale: float | None
    logit_bias: float | None
    is_fitted: bool


@dataclass(frozen=True, slots=True)
class Measures:
    """How good scores are on some images, before and after a calibration.

    Attributes:
        images: the number of images.
        before: the figures of the model's own scores, by name.
        after: the figures of the calibrated scores, by name.
        labels: the counts of each label at its threshold; empty without thresholds.
    """

    images: int
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    labels: tuple[LabelThreshold, ...] = ()


def rule_for_precision(target: float, least: int | None = None) -> Rule:
    """Return the rule of thresholds that reach a precision.

    Args:
        least: the number of answers that a threshold must rest on; None for the fewest that may hold one wrong answer
            at the target, since fewer can't tell the target from perfection.

    Raises:
        UsageError: the target doesn't lie between 0 and 1.
    """
    if not 0 < target < 1:
        raise UsageError("--target-precision must lie between 0 and 1, such as 0.95; no number of images shows 1.")
    return Rule(target, least or math.ceil(round(1 / (1 - target), 6)))


def rule_for_f1(least: int | None = None) -> Rule:
    """Return the rule of thresholds with the best F1.

    Args:
        least: the number of images that a label must have for its threshold to be fitted; None for 10.
    """
    return Rule(None, least or LEAST_OF_LABEL)


# ---------------------------------------------------------------------------------------------------------
# The fit


def hold_out(data: Scored, share: float, seed: int) -> Flags:
    """Choose a share of the images of each class at random, (n,) bool."""
    order = np.random.default_rng(seed).permutation(data.count)
    groups = np.zeros(data.count, dtype=np.int64) if data.multi_label else np.where(data.outside, -1, data.right)
    chosen = np.zeros(data.count, dtype=bool)
    by_group = order[np.argsort(groups[order], kind="stable")]
    for members in np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1):
        chosen[members[: round(share * len(members))]] = True
    return chosen


def fit_scores(data: Scored, side: LabelFeatures) -> Correction:
    """Fit the scale, and for sigmoid scores the bias, to the truth.

    Raises:
        UsageError: the similarities don't tell right labels from wrong ones.
    """
    if not data.kind.fits_scale:
        return Correction(None, None, None, False)
    if data.kind.fits_bias:
        scale, bias = fitting.fit_scale_and_bias(data.contrasts, data.truth)
        return Correction(_rounded(math.exp(side.logit_scale - scale)), _rounded(scale), _rounded(bias), True)
    inside = ~data.outside
    found = fitting.fit_scale(data.contrasts[inside], data.right[inside], side.logit_scale)
    scale = side.logit_scale if found is None else found
    return Correction(_rounded(math.exp(side.logit_scale - scale)), _rounded(scale), None, found is not None)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def fit_thresholds(data: Scored, side: LabelFeatures, rule: Rule) -> tuple[LabelThreshold, ...]:
    """Fit a threshold for each label.

    Args:
        side: the labels with the corrected scale and bias.
    """
    label_scores = data.scores(side)
    answers = data.answers(label_scores)
    return tuple(
        _threshold(label_scores[answers[:, label], label], data.truth[:, label], answers[:, label], rule, data)
        for label in range(len(side.names))
    )


def _threshold(found: Array, truth: Flags, answers: Flags, rule: Rule, data: Scored) -> LabelThreshold:
    """Fit the threshold of one label.

    Args:
        found: (n_answers,) float32, the label's scores for the images that it is an answer to.
        truth: (n,) bool, whether an image has the label.
        answers: (n,) bool, whether the label is an answer to an image.
    """
    images, right = int(truth.sum()), truth[answers]
    value, note = None, None
    if rule.target_precision is not None:
        value = fitting.threshold_of_precision(found, right, rule.target_precision, rule.least)
        if value is None:
            note = _why_never(len(found), images, rule)
    elif images < rule.least:
        value = data.kind.threshold if data.multi_label else data.kind.lowest
        note = f"not fitted: {images} images of it, of {rule.least} that it takes"
    else:
        value = fitting.threshold_of_f1(found, right, images)
        note = "never answered: no answer was right" if value is None else None
    passing = reaches(found, math.inf if value is None else value)
    shown = None if value is None else _shortest(value)
    return LabelThreshold(shown, images, int(passing.sum()), int(right[passing].sum()), note)


def _why_never(answers: int, images: int, rule: Rule) -> str:
    if not images:
        return "never answered: no image of it"
    if answers < rule.least:
        return f"never answered: {answers} answers, of {rule.least} that it takes"
    return f"never answered: no threshold with {rule.least} answers reaches {rule.target_precision:g}"


def _shortest(value: float) -> float:
    """Return the number with the fewest digits that is equal in float32."""
    return float(str(np.float32(value)))


# ---------------------------------------------------------------------------------------------------------
# Before and after


def measure(data: Scored, before: LabelFeatures, after: LabelFeatures) -> Measures:
    """Measure the scores of labels before and after a calibration was applied to them."""
    return Measures(
        data.count,
        metrics.bootstrap(_statistics(data, before, after.thresholds is not None), data.count),
        metrics.bootstrap(_statistics(data, after, after.thresholds is not None), data.count),
        _counts(data, after) if after.thresholds is not None else (),
    )


def _statistics(data: Scored, side: LabelFeatures, of_thresholds: bool) -> dict[str, Statistic]:
    """Return the statistics of the scores, by name.

    Args:
        of_thresholds: whether to include the statistics that mean something only with thresholds.
    """
    label_scores = data.scores(side)
    answers = data.answers(label_scores)
    answered = answers & data.scoring.reached(label_scores, side.thresholds)
    hits, given = (answered & data.truth).sum(axis=1), answered.sum(axis=1)
    found: dict[str, Statistic] = {}
    if data.multi_label:
        found[MICRO_F1] = metrics.micro_f1(answered, data.truth)
        found[CALIBRATION_ERROR] = metrics.calibration_error(label_scores, data.truth)
    else:
        right: Flags = np.any(answers & data.truth, axis=1)
        found[ACCURACY_AT_1] = metrics.mean(right)
        if data.kind.is_probability:
            found[CALIBRATION_ERROR] = metrics.calibration_error(label_scores.max(axis=1), right)
    if data.kind.fits_scale:
        found[LOG_LOSS] = metrics.mean(_losses(data, side)) if data.kind.fits_bias else _softmax_loss(data, side)
    if of_thresholds:
        found |= {ANSWERED: metrics.mean(given > 0), PRECISION: metrics.ratio(hits, given)}
    return found


def _losses(data: Scored, side: LabelFeatures) -> Values:
    logits = math.exp(side.logit_scale) * data.contrasts.astype(np.float64) + (side.logit_bias or 0.0)
    return fitting.label_log_loss(logits, data.truth)


def _softmax_loss(data: Scored, side: LabelFeatures) -> Statistic:
    """Return the mean softmax loss over the images whose class is among the labels."""
    inside = ~data.outside
    losses = np.zeros(data.count)
    logits = math.exp(side.logit_scale) * data.contrasts[inside].astype(np.float64)
    losses[inside] = fitting.log_loss(logits, data.right[inside])
    return metrics.ratio(losses, inside)


def _counts(data: Scored, side: LabelFeatures) -> tuple[LabelThreshold, ...]:
    assert side.thresholds is not None
    label_scores = data.scores(side)
    answered = data.answers(label_scores) & data.scoring.reached(label_scores, side.thresholds)
    counts = [flags.sum(axis=0).tolist() for flags in (data.truth, answered, answered & data.truth)]
    return tuple(
        LabelThreshold(None if math.isinf(value) else value, images, given, hits)
        for value, images, given, hits in zip(side.thresholds.tolist(), *counts, strict=True)
    )

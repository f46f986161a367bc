"""Measure how well answers agree with the truth, with bootstrap intervals. NumPy only.

Each figure is a function of weights of the images. Weights of one give the figure itself, which equals scikit-learn's
or torchmetrics'; how often a resample drew each image gives the resample's figure. So a thousand resamples are a few
products of matrices, and scikit-learn, whose import takes longer than a run over cached features, isn't needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcls.predict.ranking import Array, Flags, Indices, reaches

RESAMPLES = 1000
CONFIDENCE = 0.95
#: The number of bins of the calibration error, of equal width.
BINS = 15
#: The thresholds at which coverage and accuracy are reported.
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
#: The value of `Answers.predicted` where there is no answer.
UNKNOWN = -1

_SEED = 0
_CELLS = 2**21  # weights in memory at once: 16 MB, and as much again for what is computed from them

Values = NDArray[np.float64]

#: Computes a figure for each row of weights of the images: (r, n) float64 -> (r,) float64.
Statistic = Callable[[Values], Values]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        low: the interval's lower end, a percentile of the resamples; `high` is its upper end.
        resampled: (RESAMPLES,) float64, the figure in each resample; equally many images have the same resamples.
    """

    value: float
    low: float
    high: float
    resampled: Values = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer to each image, as arrays with an entry an image.

    Attributes:
        truth: (n,) int64, the right class; classes from n_labels on aren't among the labels.
        predicted: (n,) int64, the label that was answered, or UNKNOWN.
        place: (n,) int64, how many labels were ranked before the right one; a huge number where it wasn't ranked.
        score: (n,) float32, the score of the answer.
        brier: (n,) float64, the squared distance of the scores from the truth; None where not all scores are known.
    """

    truth: Indices
    predicted: Indices
    place: Indices
    score: Array
    brier: Values | None = None

    @property
    def right(self) -> Flags:
        """Whether each answer is right, (n,) bool."""
        right: Flags = self.truth == self.predicted
        return right

    def select(self, chosen: Flags) -> "Answers":
        """Return the answers to the chosen images, by flags of (n,) bool."""
        brier = None if self.brier is None else self.brier[chosen]
        return Answers(self.truth[chosen], self.predicted[chosen], self.place[chosen], self.score[chosen], brier)


@dataclass(frozen=True, slots=True)
class LabelAnswers:
    """Any number of answers to each image, as arrays with a row an image and a column a label.

    Attributes:
        truth: (n, n_labels) bool, whether an image has a label.
        answered: (n, n_labels) bool, whether a label was an answer.
        scores: (n, n_labels) float32; None where not all are known.
    """

    truth: Flags
    answered: Flags
    scores: Array | None = None


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The figures of one class; NaN where a figure has no meaning, such as the recall of a class without images.

    Attributes:
        support: the number of images of the class.
        average_precision: NaN with one label an image.
    """

    support: int
    precision: float
    recall: float
    f1: float
    average_precision: float = float("nan")


@dataclass(frozen=True, slots=True)
class ThresholdFigures:
    """Coverage and accuracy at a threshold.

    Attributes:
        answered: the number of images whose score reaches the threshold.
        coverage: the share of images whose score reaches it.
        accuracy: the share of right answers among these; NaN where there are none.
    """

    threshold: float
    answered: int
    coverage: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class LabelThresholdFigures:
    """The figures at a threshold over all pairs of an image and a label."""

    threshold: float
    precision: float
    recall: float
    f1: float


# ---------------------------------------------------------------------------------------------------------
# The bootstrap


def bootstrap(statistics: Mapping[str, Statistic], count: int) -> dict[str, Estimate]:
    """Compute figures with 95 % percentile intervals over 1,000 resamples, which are the same ones each time.

    Args:
        count: the number of images, at least one.

    Returns:
        The estimates by the statistics' names.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    whole = np.ones((1, count))
    drawn: dict[str, list[Values]] = {name: [] for name in statistics}
    for weights in _resamples(count):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    return {
        name: _estimate(float(statistic(whole)[0]), np.concatenate(drawn[name]))
        for name, statistic in statistics.items()
    }


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return how far one figure is above another of the same images, with the interval of paired resamples."""
    return _estimate(one.value - other.value, one.resampled - other.resampled)


def _estimate(value: float, resampled: Values) -> Estimate:
    tail = 50 * (1 - CONFIDENCE)
    defined = resampled[~np.isnan(resampled)]
    low, high = np.percentile(defined, [tail, 100 - tail]) if defined.size else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), resampled)


def _resamples(count: int) -> Iterator[Values]:
    """Yield how often resamples draw each image, (some resamples, count), RESAMPLES rows in all."""
    random = np.random.default_rng(_SEED)
    rows = max(1, _CELLS // count)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = random.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


# ---------------------------------------------------------------------------------------------------------
# One answer an image


def mean(values: NDArray[Any]) -> Statistic:
    """Return the mean of one value an image, such as whether its answer is right.

    Args:
        values: (n,).
    """
    column = values.astype(np.float64)
    return lambda weights: weights @ column / weights.sum(axis=1)


def ratio(parts: NDArray[Any], wholes: NDArray[Any]) -> Statistic:
    """Return the sum of one value an image divided by the sum of another; NaN where that is 0.

    Args:
        parts: (n,).
        wholes: (n,).
    """
    upper, lower = parts.astype(np.float64), wholes.astype(np.float64)
    return lambda weights: _ratio(weights @ upper, weights @ lower)


def median(values: NDArray[Any], images: Indices) -> Statistic:
    """Return the lower median of values of which an image may have several: the least that half of them don't exceed.

    Args:
        values: (n_values,).
        images: (n_values,) int64, the index of each value's image.
    """
    order = np.argsort(values, kind="stable")
    ordered, owners = values[order].astype(np.float64), images[order]

    def of_one(weights: Values) -> float:
        summed = np.cumsum(weights[owners])
        return float(ordered[np.searchsorted(summed, summed[-1] / 2)])

    return lambda weights: np.array([of_one(row) for row in weights])


def mean_recall(truth: Indices, right: Flags) -> Statistic:
    """Return the mean of the classes' recalls; classes without images don't count.

    Args:
        truth: (n,) int64, the class of each image.
        right: (n,) bool, whether its answer is right.
    """
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.diff(truth[order], prepend=-1))
    hits = right[order].astype(np.float64)

    def statistic(weights: Values) -> Values:
        by_class = np.take(weights, order, axis=1)
        support = np.add.reduceat(by_class, starts, axis=1)
        recall = np.add.reduceat(by_class * hits, starts, axis=1) / np.maximum(support, 1)
        return _sums(recall) / _sums(support > 0)

    return statistic


def calibration_error(scores: Array, right: Flags) -> Statistic:
    """Return the expected calibration error: the mean distance of accuracy from the mean score over bins of scores.

    Args:
        scores: (n,) or, for all pairs of an image and a label, (n, n_labels) float32, from 0 to 1.
        right: bool, of the same shape.

    Source: Naeini et al. 2015, https://ojs.aaai.org/index.php/AAAI/article/view/9602, with bins as in torchmetrics.
    """
    count, each = len(scores), scores.size // len(scores)
    cells = calibration_bins(scores).reshape(count, each) + (BINS + 1) * np.arange(count)[:, None]
    sums = np.bincount(cells.ravel(), (scores - right.astype(np.float64)).ravel(), count * (BINS + 1))
    gaps = sums.reshape(count, BINS + 1)
    return lambda weights: _sums(np.abs(weights @ gaps)) / (each * weights.sum(axis=1))


def calibration_bins(scores: Array) -> Indices:
    """Return the bin of each score, from 0 to BINS, where the last is that of 1 itself; of the scores' shape."""
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    bins: Indices = np.searchsorted(edges, scores, side="right") - 1
    return bins


def brier(scores: Array, truth: Indices) -> Values:
    """Return the squared distance of each image's scores from the truth; where the true class has no score, add 1.

    Args:
        scores: (n, n_labels) float32, which add up to 1.
        truth: (n,) int64.

    Returns:
        (n,) float64, from 0 to 2.

    Source: Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    wide = scores.astype(np.float64)
    known = truth < wide.shape[1]
    given = np.zeros(len(truth))
    given[known] = wide[known, truth[known]]
    squares: Values = np.einsum("ij,ij->i", wide, wide) - 2 * given + 1
    return squares


def levels(score: Array, right: Flags, thresholds: Sequence[float] = THRESHOLDS) -> tuple[ThresholdFigures, ...]:
    """Return coverage and accuracy at each threshold."""
    found = []
    for threshold in thresholds:
        answered = reaches(score, threshold)
        count = int(answered.sum())
        accuracy = float(right[answered].mean()) if count else float("nan")
        found.append(ThresholdFigures(threshold, count, count / len(score), accuracy))
    return tuple(found)


def confusion_matrix(truth: Indices, predicted: Indices, classes: int) -> Indices:
    """Count how many images of each class got each answer.

    Returns:
        (classes, classes + 1) int64; the last column counts images without an answer.
    """
    answers = np.where(predicted == UNKNOWN, classes, predicted)
    cells = truth * (classes + 1) + answers
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1).astype(np.int64)


def class_figures(confusion: Indices) -> tuple[ClassFigures, ...]:
    """Return precision, recall and F1 of each class.

    Args:
        confusion: the result of `confusion_matrix`.
    """
    hits = np.diagonal(confusion).astype(np.float64)
    support, answered = confusion.sum(axis=1), confusion.sum(axis=0)[:-1]
    return _figures(hits, support, answered, [float("nan")] * len(hits))


def mcnemar(one: Flags, other: Flags) -> float:
    """Return the exact two-sided p of McNemar's test, which compares how many images only one of two got right.

    Args:
        one: (n,) bool, whether the first is right.
        other: (n,) bool, whether the second is right.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996
    """
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    trials = first + second
    ways = tail = 1
    for successes in range(1, min(first, second) + 1):
        ways = ways * (trials - successes + 1) // successes
        tail += ways
    p: float = 2 * tail / 2**trials
    return min(1.0, p)


# ---------------------------------------------------------------------------------------------------------
# Several labels an image


def average_precision(scores: Array, truth: Flags) -> Statistic:
    """Return the average precision of one label; images with equal scores are ranked at once.

    Args:
        scores: (n,) float32.
        truth: (n,) bool.

    Returns:
        A statistic that is NaN where no image has the label.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.float32(np.nan)) != 0)
    positive = np.flatnonzero(truth[order])
    # precision counts only at images of the label; the images between are summed up
    counted = np.unique(ends[np.searchsorted(ends, positive)])
    starts = np.concatenate([[0], counted[:-1] + 1]).astype(np.int64)
    own = np.searchsorted(positive, starts)

    def statistic(weights: Values) -> Values:
        if not len(counted):
            return np.full(len(weights), np.nan)
        ranked = np.take(weights, order[: counted[-1] + 1], axis=1)
        hits = np.add.reduceat(np.take(ranked, positive, axis=1), own, axis=1)
        total = np.cumsum(np.add.reduceat(ranked, starts, axis=1), axis=1)
        found = np.cumsum(hits, axis=1)
        return _ratio(_sums(hits * found / np.maximum(total, 1)), found[:, -1])

    return statistic


def mean_average_precision(scores: Array, truth: Flags) -> Statistic:
    """Return the mean of the labels' average precisions; labels without images don't count.

    Args:
        scores: (n, n_labels) float32.
        truth: (n, n_labels) bool.
    """
    found = [average_precision(scores[:, label], truth[:, label]) for label in np.flatnonzero(truth.any(axis=0))]

    def statistic(weights: Values) -> Values:
        total, count = np.zeros(len(weights)), np.zeros(len(weights))
        for label in found:
            precision = label(weights)
            count += ~np.isnan(precision)
            total += np.nan_to_num(precision)
        return _ratio(total, count)

    return statistic


def micro_f1(answered: Flags, truth: Flags) -> Statistic:
    """Return the F1 of all pairs of an image and a label together.

    Args:
        answered: (n, n_labels) bool.
        truth: (n, n_labels) bool.
    """
    return ratio(2 * (answered & truth).sum(axis=1), answered.sum(axis=1) + truth.sum(axis=1))


def label_levels(
    scores: Array, truth: Flags, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[LabelThresholdFigures, ...]:
    """Return precision, recall and F1 over all pairs of an image and a label, at each threshold."""
    found = []
    for threshold in thresholds:
        answered = reaches(scores, threshold)
        hits, support, given = float((answered & truth).sum()), float(truth.sum()), float(answered.sum())
        found.append(
            LabelThresholdFigures(
                threshold, _share(hits, given), _share(hits, support), _share(2 * hits, support + given)
            )
        )
    return tuple(found)


def label_figures(answers: LabelAnswers) -> tuple[ClassFigures, ...]:
    """Return precision, recall and F1 of each label, and its average precision where all scores are known."""
    truth, answered, known = answers.truth, answers.answered, answers.scores
    whole = np.ones((1, len(truth)))
    precisions = [float("nan")] * truth.shape[1]
    if known is not None:
        precisions = [
            float(average_precision(known[:, label], truth[:, label])(whole)[0]) for label in range(truth.shape[1])
        ]
    hits = (answered & truth).sum(axis=0).astype(np.float64)
    return _figures(hits, truth.sum(axis=0), answered.sum(axis=0), precisions)


def _figures(
    hits: Values, support: Indices, answered: Indices, precisions: Sequence[float]
) -> tuple[ClassFigures, ...]:
    return tuple(
        ClassFigures(int(n), _share(hit, given), _share(hit, n), _share(2 * hit, n + given), precision)
        for hit, n, given, precision in zip(hits, support, answered, precisions, strict=True)
    )


def _ratio(parts: Values, wholes: Values) -> Values:
    """Divide; NaN where the whole is 0."""
    ratios: Values = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
    return ratios


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _sums(values: NDArray[Any]) -> Values:
    rows: Values = values.sum(axis=1, dtype=np.float64)
    return rows

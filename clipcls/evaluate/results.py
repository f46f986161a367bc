"""Turn answers and truth into the figures of an evaluation, and compare results."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from clipcls.errors import UsageError, listed
from clipcls.evaluate import metrics
from clipcls.evaluate.confusion import Confusion, most_confused
from clipcls.evaluate.groups import Grouping, GroupReport, group_report_record, group_reports
from clipcls.evaluate.match_labels import label_indices, repeated_paths
from clipcls.evaluate.metrics import (
    Answers,
    ClassFigures,
    Estimate,
    LabelAnswers,
    LabelThresholdFigures,
    Statistic,
    ThresholdFigures,
)
from clipcls.inputs.labelled.examples import Truth
from clipcls.outputs.rows import row_fields
from clipcls.predict.ranking import Flags, Indices
from clipcls.records import Label, Prediction

ACCURACY_AT_1 = "accuracy@1"
MEAN_RECALL = "mean per-class recall"
CALIBRATION_ERROR = "calibration error"
BRIER_SCORE = "Brier score"
LOG_LOSS = "log loss"
MEAN_AVERAGE_PRECISION = "mean average precision"
MICRO_F1 = "micro F1"
#: Figures of which less is better.
LESS_IS_BETTER = frozenset((CALIBRATION_ERROR, BRIER_SCORE, LOG_LOSS))

_MOST_PLACES = 5


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of the data in terms of the labels.

    Attributes:
        names: the labels, then the data's classes that aren't among the labels.
        n_labels: the number of labels.
        indices: the index in `names` of each class, by its name in the data.
    """

    names: tuple[str, ...]
    n_labels: int
    indices: Mapping[str, int]

    @property
    def places(self) -> int:
        """The k of the reported accuracy@k."""
        return min(_MOST_PLACES, self.n_labels)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The figures of one model with one prompt set.

    Attributes:
        model: its name; None for predictions that were read.
        prompts: the name of the set; None for predictions that were read.
        figures: the headline figures, by name; results are compared by the first.
        omitted: why a figure is missing, by its name.
        classes: the figures of each class, in the order of `Classes.names`.
        levels: the figures at each threshold; empty where the scores aren't known.
        confusion: None with several labels an image.
        within: the accuracy among the images whose class is one of the labels.
        right: (n,) bool, whether each image's answer is right; None with several labels an image.
        predicted: (n,) int64, the label of each image's answer; None with several labels an image.
        groups: the figures of groups, by each column that was asked for.
    """

    model: str | None
    prompts: str | None
    figures: Mapping[str, Estimate]
    omitted: Mapping[str, str]
    classes: tuple[ClassFigures, ...]
    levels: tuple[ThresholdFigures, ...] | tuple[LabelThresholdFigures, ...] = ()
    confusion: Confusion | None = None
    within: float = float("nan")
    right: Flags | None = field(default=None, compare=False, repr=False)
    predicted: Indices | None = field(default=None, compare=False, repr=False)
    groups: tuple[GroupReport, ...] = ()

    @property
    def headline(self) -> tuple[str, Estimate]:
        """The name and value of the figure that results are compared by."""
        return next(iter(self.figures.items()))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a result compares with the best.

    Attributes:
        difference: this result's headline figure minus the best's.
        p: of McNemar's exact test; None with several labels an image.
        agreement: the share of images with the best's answer; None with several labels an image.
    """

    difference: Estimate
    p: float | None
    agreement: float | None


@dataclass(frozen=True, slots=True)
class Caveats:
    """What the figures leave out, and what distorts them.

    Attributes:
        failed: path and error of each image that couldn't be read.
        missing: paths of the images that the predictions don't hold.
        unasked: paths in the predictions that the data don't hold.
        unknown: the number of images without an answer, which count as wrong.
        outside: the number of images of each class that isn't among the labels, by class. With one label an image
            they count as wrong; with several such a class is ignored.
        unseen: labels that no image has.
        repeated: a message for each path that the data hold more than once; each copy counts.
        problems: messages about the data, see `Truth`.
    """

    failed: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    unknown: int = 0
    outside: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalOutcome:
    """An evaluation.

    Attributes:
        images: the number of images in the data.
        measured: the number of images in the figures.
        multi_label: whether an image may have several labels.
        results: one for each model with each prompt set.
        best: the index of the result with the highest headline figure; of equal ones the first.
        comparisons: of each result with the best.
    """

    images: int
    measured: int
    classes: Classes
    multi_label: bool
    caveats: Caveats
    results: tuple[EvalResult, ...]
    best: int
    comparisons: tuple[Comparison, ...]


def match_classes(truth: Truth, labels: Sequence[Label]) -> Classes:
    """Find the classes of the data among the labels.

    Raises:
        UsageError: none of the classes is among the labels.
    """
    indices = label_indices(truth.classnames, labels)
    used = dict.fromkeys(name for example in truth.examples for name in example.labels)
    if used and not any(name in indices for name in used):
        raise UsageError(
            f"None of the data's classes is among the labels. The data: {listed(used)}. "
            f"The labels: {listed(label.name for label in labels)}."
        )
    outside = [name for name in used if name not in indices]
    places = {name: len(labels) + number for number, name in enumerate(outside)}
    return Classes((*(label.name for label in labels), *outside), len(labels), indices | places)


def judge(
    answers: Answers,
    classes: Classes,
    paths: Sequence[str],
    omitted: Mapping[str, str],
    confused: int,
    groups: Sequence[Grouping] = (),
) -> EvalResult:
    """Compute the figures of one answer an image.

    Args:
        paths: of the images.
        omitted: why a figure must be left out, by its name.
        confused: the number of most confused pairs to report.
        groups: of the images.
    """
    right, within = answers.right, answers.truth < classes.n_labels
    statistics = {ACCURACY_AT_1: metrics.mean(right)}
    if classes.places > 1:
        statistics[f"accuracy@{classes.places}"] = metrics.mean(answers.place < classes.places)
    statistics[MEAN_RECALL] = metrics.mean_recall(answers.truth, right)
    if CALIBRATION_ERROR not in omitted:
        statistics[CALIBRATION_ERROR] = metrics.calibration_error(answers.score, right)
    if answers.brier is not None:
        statistics[BRIER_SCORE] = metrics.mean(answers.brier)
    counts = metrics.confusion_matrix(answers.truth, answers.predicted, len(classes.names))
    pairs = most_confused(answers, counts, classes.names, paths, confused)
    return EvalResult(
        None,
        None,
        _estimated(statistics, omitted, len(right)),
        omitted,
        metrics.class_figures(counts),
        metrics.levels(answers.score, right) if CALIBRATION_ERROR not in omitted else (),
        Confusion(classes.names, counts, pairs),
        float(right[within].mean()) if within.any() else float("nan"),
        right,
        answers.predicted,
        group_reports(answers, groups, len(classes.names), classes.n_labels, CALIBRATION_ERROR not in omitted),
    )


def judge_labels(answers: LabelAnswers, omitted: Mapping[str, str]) -> EvalResult:
    """Compute the figures of any number of answers an image."""
    statistics: dict[str, Statistic] = {}
    levels: tuple[LabelThresholdFigures, ...] = ()
    if answers.scores is not None:
        statistics[MEAN_AVERAGE_PRECISION] = metrics.mean_average_precision(answers.scores, answers.truth)
        levels = metrics.label_levels(answers.scores, answers.truth)
    statistics[MICRO_F1] = metrics.micro_f1(answers.answered, answers.truth)
    figures = _estimated(statistics, omitted, len(answers.truth))
    return EvalResult(None, None, figures, omitted, metrics.label_figures(answers), levels)


def compare(results: Sequence[EvalResult]) -> tuple[int, tuple[Comparison, ...]]:
    """Return the index of the best of some results on the same images, and each result's comparison with it."""
    values = [result.headline[1].value for result in results]
    index = int(np.argmax(np.nan_to_num(values, nan=-1.0)))
    best = results[index]
    comparisons = []
    for result in results:
        gap = metrics.difference(result.headline[1], best.headline[1])
        if result.right is None or best.right is None or result.predicted is None:
            comparisons.append(Comparison(gap, None, None))
        else:
            agreement = float((result.predicted == best.predicted).mean())
            comparisons.append(Comparison(gap, metrics.mcnemar(result.right, best.right), agreement))
    return index, tuple(comparisons)


def outcome(
    truth: Truth, classes: Classes, measured: Flags, results: Sequence[EvalResult], caveats: Caveats
) -> EvalOutcome:
    """Assemble an evaluation.

    Args:
        measured: (n,) bool, whether an image is in the figures.
        caveats: those that don't follow from the other arguments, which are added here.
    """
    counted: dict[str, int] = {}
    for image in np.flatnonzero(measured):
        for name in truth.examples[image].labels:
            counted[name] = counted.get(name, 0) + 1
    seen = {classes.indices[name] for name in counted}
    labels, outside = classes.names[: classes.n_labels], classes.names[classes.n_labels :]
    best, comparisons = compare(results)
    told = replace(
        caveats,
        outside={name: counted[name] for name in outside if name in counted},
        unseen=tuple(name for label, name in enumerate(labels) if label not in seen),
        repeated=tuple(repeated_paths(truth.examples)),
        problems=truth.problems,
    )
    count = int(measured.sum())
    return EvalOutcome(len(truth.examples), count, classes, truth.multi_label, told, tuple(results), best, comparisons)


def outcome_record(outcome: EvalOutcome) -> dict[str, Any]:
    """Return an evaluation in JSON's types; NaN, such as the recall of a class without images, becomes None."""
    told = outcome.caveats
    return {
        "images": outcome.images,
        "measured": outcome.measured,
        "multi_label": outcome.multi_label,
        "labels": list(outcome.classes.names[: outcome.classes.n_labels]),
        "failed": [failure_record(path, error) for path, error in told.failed],
        "missing": [as_unicode(path) for path in told.missing],
        "unasked": [as_unicode(path) for path in told.unasked],
        "unknown": told.unknown,
        "outside": dict(told.outside),
        "unseen": list(told.unseen),
        "repeated": [as_unicode(message) for message in told.repeated],
        "problems": [as_unicode(message) for message in told.problems],
        "results": [
            _result_record(result, outcome.classes) | _comparison_record(comparison)
            for result, comparison in zip(outcome.results, outcome.comparisons, strict=True)
        ],
        "best": outcome.best,
    }


def _result_record(result: EvalResult, classes: Classes) -> dict[str, Any]:
    groups = [group_report_record(report, classes.names) for report in result.groups]
    return {
        "model": result.model,
        "prompts": result.prompts,
        "figures": {name: estimate_record(estimate) for name, estimate in result.figures.items()},
        "omitted": dict(result.omitted),
        "accuracy_within_labels": _number(result.within),
        "classes": [
            {"class": name} | _fields(figures) for name, figures in zip(classes.names, result.classes, strict=False)
        ],
        "levels": [_fields(level) for level in result.levels],
        "confusion": None if result.confusion is None else _confusion_record(result.confusion),
        **({"groups": groups} if groups else {}),
    }


def _confusion_record(confusion: Confusion) -> dict[str, Any]:
    return {
        "classes": list(confusion.names),
        "answers": [*confusion.names, None],
        "counts": confusion.counts.tolist(),
        "pairs": [_fields(pair) | {"paths": [as_unicode(path) for path in pair.paths]} for pair in confusion.pairs],
    }


def _comparison_record(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference_to_best": estimate_record(comparison.difference),
        "mcnemar_p": comparison.p,
        "agreement_with_best": comparison.agreement,
    }


def estimate_record(estimate: Estimate) -> dict[str, float | None]:
    """Return a figure and its interval in JSON's types."""
    return {"value": _number(estimate.value), "low": _number(estimate.low), "high": _number(estimate.high)}


def _fields(figures: Any) -> dict[str, Any]:
    named = {entry.name: getattr(figures, entry.name) for entry in fields(figures)}
    return {name: _number(value) if isinstance(value, float) else value for name, value in named.items()}


def failure_record(path: str, error: str) -> dict[str, Any]:
    """Return an image that couldn't be read in JSON's types, its path as `predict` writes it."""
    row = row_fields(Prediction(path, None, None, None, error=error))
    return {name: row[name] for name in ("path", "error", "path_b64") if name in row}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def as_unicode(text: str) -> str:
    """Return a text that may hold a path, with replacement characters for what isn't UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def _estimated(statistics: Mapping[str, Statistic], omitted: Mapping[str, str], count: int) -> dict[str, Estimate]:
    return metrics.bootstrap({name: made for name, made in statistics.items() if name not in omitted}, count)

"""Measure how an evaluation's figures differ between groups of pictures, which a column of a table names. NumPy only.

Gaps between groups are there by chance, too, and the larger the smaller the groups are. So each stands beside the gap
of shuffled groups, and what rests on fewer than FEWEST pictures is in no gap and no test.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from clipcls.evaluate import metrics
from clipcls.evaluate.metrics import Answers, Estimate, Values
from clipcls.inputs.labelled.tables import NO_GROUP
from clipcls.predict.calibration import share_interval
from clipcls.predict.ranking import Array, Flags, Indices

#: The number of pictures that a gap or a test has to rest on in each group.
FEWEST = 30
#: The figures that gaps are about, the last two for each label.
ACCURACY, CALIBRATION, RECALL, ANSWERS = "accuracy", "calibration error", "recall", "share of answers"

_DRAWS = 1000  # of shuffled groups; a hundredth of them where each shuffle takes all pictures
_SEED = 0


@dataclass(frozen=True, slots=True)
class GroupShare:
    """A share of pictures."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        """The share; NaN of no pictures."""
        return self.part / self.whole if self.whole else float("nan")

    @property
    def low(self) -> float:
        """The lower end of its 95 % interval, see `share_interval`."""
        return share_interval(self.part, self.whole)[0]

    @property
    def high(self) -> float:
        """The upper end of its 95 % interval."""
        return share_interval(self.part, self.whole)[1]


@dataclass(frozen=True, slots=True)
class ShareDifference:
    """How far one share is above another, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Grouping:
    """How pictures fall into groups.

    Attributes:
        columns: one, or two that are taken together.
        names: the cells of each group, in the order of `columns`.
        indices: (n,) int64, each picture's group.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    indices: Indices

    @property
    def sizes(self) -> Indices:
        """How many pictures each group has, (n_groups,) int64."""
        return np.bincount(self.indices, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The figures of one group.

    Attributes:
        name: its cells.
        accuracy: of all its pictures.
        recalls: of each class, in the order of `Classes.names`.
        answers: how often each label is the answer to its pictures.
        calibration_error: None for scores that are no probabilities.
        to_the_rest: its accuracy beside that of all other pictures; None where either are too few.
        p: of Fisher's exact test of that difference; None where there is none.
        p_corrected: after Holm's correction for all tests of the result.
    """

    name: tuple[str, ...]
    accuracy: GroupShare
    recalls: tuple[GroupShare, ...]
    answers: tuple[GroupShare, ...]
    calibration_error: Estimate | None
    to_the_rest: ShareDifference | None = None
    p: float | None = None
    p_corrected: float | None = None

    @property
    def is_small(self) -> bool:
        """Whether it has too few pictures for a verdict."""
        return self.accuracy.whole < FEWEST


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart a figure's lowest and highest value are among groups with enough pictures.

    Attributes:
        figure: ACCURACY, CALIBRATION, RECALL or ANSWERS.
        label: the index of the class or label; None for a figure of all of them.
        lowest: the index of the group with the lowest value; `highest` is that with the highest.
        difference: the highest value minus the lowest.
        ratio: the lowest divided by the highest; NaN where both are 0.
        by_chance: the mean difference where the same pictures fall into groups of the same sizes at random.
    """

    figure: str
    label: int | None
    lowest: int
    highest: int
    difference: float
    ratio: float
    by_chance: float


@dataclass(frozen=True, slots=True)
class GroupReport:
    """The figures of all groups by one column, or two.

    Attributes:
        gaps: without those for which fewer than two groups have enough pictures.
    """

    columns: tuple[str, ...]
    groups: tuple[GroupFigures, ...]
    gaps: tuple[Gap, ...]


def groupings(columns: Sequence[str], cells: Sequence[tuple[str, ...]]) -> tuple[Grouping, ...]:
    """Return the groups by each column, and by all of them together where there are several.

    Args:
        cells: of each picture, one a column.
    """
    places = [[number] for number in range(len(columns))]
    chosen = places if len(places) < 2 else [*places, list(range(len(columns)))]
    return tuple(
        _grouping(tuple(columns[place] for place in own), [tuple(row[place] for place in own) for row in cells])
        for own in chosen
    )


def _grouping(columns: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> Grouping:
    names = sorted(set(cells), key=lambda name: [(cell == NO_GROUP, cell) for cell in name])
    indices = {name: index for index, name in enumerate(names)}
    return Grouping(columns, tuple(names), np.array([indices[name] for name in cells], dtype=np.int64))


def group_reports(
    answers: Answers, groups: Sequence[Grouping], classes: int, labels: int, calibrated: bool
) -> tuple[GroupReport, ...]:
    """Compute the figures of groups, and how far they are apart.

    Args:
        groups: of the pictures that were answered.
        classes: the number of classes; `labels` is that of labels, which are the first of them.
        calibrated: whether scores are probabilities, which a calibration error can be told of.
    """
    reports = [_report(answers, grouping, classes, labels, calibrated) for grouping in groups]
    return _corrected(reports)


def _report(answers: Answers, grouping: Grouping, classes: int, labels: int, calibrated: bool) -> GroupReport:
    count = len(grouping.names)
    right, predicted = answers.right, answers.predicted
    known = predicted != metrics.UNKNOWN
    sizes = grouping.sizes
    rights = np.bincount(grouping.indices[right], minlength=count)
    support = _table(grouping.indices, answers.truth, count, classes)
    found = _table(grouping.indices[right], answers.truth[right], count, classes)
    answered = _table(grouping.indices[known], predicted[known], count, labels)
    figures = []
    for index, name in enumerate(grouping.names):
        own = grouping.indices == index
        rest = (int(right.sum() - rights[index]), int(len(right) - sizes[index]))
        accuracy = GroupShare(int(rights[index]), int(sizes[index]))
        is_tested = accuracy.whole >= FEWEST and rest[1] >= FEWEST
        figures.append(
            GroupFigures(
                name,
                accuracy,
                tuple(
                    GroupShare(int(part), int(whole)) for part, whole in zip(found[index], support[index], strict=True)
                ),
                tuple(GroupShare(int(part), accuracy.whole) for part in answered[index]),
                _calibration_error(answers.score[own], right[own]) if calibrated else None,
                difference(accuracy, GroupShare(*rest)) if is_tested else None,
                fisher(accuracy, GroupShare(*rest)) if is_tested else None,
            )
        )
    gaps = [_gap(ACCURACY, None, [of_group.accuracy for of_group in figures])]
    if calibrated:
        gaps.append(_calibration_gap(answers, grouping))
    gaps += [_gap(RECALL, label, [of_group.recalls[label] for of_group in figures]) for label in range(classes)]
    gaps += [_gap(ANSWERS, label, [of_group.answers[label] for of_group in figures]) for label in range(labels)]
    return GroupReport(grouping.columns, tuple(figures), tuple(gap for gap in gaps if gap is not None))


def _table(groups: Indices, labels: Indices, n_groups: int, n_labels: int) -> Indices:
    """Count pictures by group and label, (n_groups, n_labels) int64."""
    counts = np.bincount(groups * n_labels + labels, minlength=n_groups * n_labels)
    return counts.reshape(n_groups, n_labels).astype(np.int64)


def _calibration_error(scores: Array, right: Flags) -> Estimate:
    return metrics.bootstrap({CALIBRATION: metrics.calibration_error(scores, right)}, len(scores))[CALIBRATION]


# ---------------------------------------------------------------------------------------------------------
# Tests


def difference(one: GroupShare, other: GroupShare) -> ShareDifference:
    """Return how far one share is above another of different pictures.

    Source: Newcombe 1998, method 10, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I
    """
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return ShareDifference(value, value - down, value + up)


def fisher(one: GroupShare, other: GroupShare) -> float:
    """Return the two-sided p of Fisher's exact test that two shares of different pictures are the same.

    Source: Fisher 1935, https://doi.org/10.2307/2342435
    """
    parts = one.part + other.part
    possible = np.arange(max(0, parts - other.whole), min(parts, one.whole) + 1)
    logs = _log_binomials(one.whole, possible) + _log_binomials(other.whole, parts - possible)
    chances = np.exp(logs - logs.max())
    # tables as likely as this one but for rounding count as well
    as_far = chances <= chances[one.part - possible[0]] * (1 + 1e-7)
    return min(1.0, float(chances[as_far].sum() / chances.sum()))


def _log_binomials(whole: int, parts: Indices) -> Values:
    logs = _log_factorials(whole)
    found: Values = logs[whole] - logs[parts] - logs[whole - parts]
    return found


@lru_cache(maxsize=64)
def _log_factorials(largest: int) -> Values:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p of several tests, so that it is rare that any of them is small by chance.

    Source: Holm 1979, https://www.jstor.org/stable/4615733
    """
    found = np.array(p_values, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    raised = np.minimum(1, found[order] * np.arange(len(found), 0, -1))
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(raised)
    return [float(value) for value in corrected]


def _corrected(reports: Sequence[GroupReport]) -> tuple[GroupReport, ...]:
    """Add the corrected p; two groups that are all there are have one test, as each is the other's rest."""
    tests: dict[tuple[int, int], float] = {}
    for place, report in enumerate(reports):
        pair = len(report.groups) == 2
        tests |= {(place, 0 if pair else row): one.p for row, one in enumerate(report.groups) if one.p is not None}
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    return tuple(
        replace(
            report,
            groups=tuple(
                replace(one, p_corrected=corrected.get((place, 0 if len(report.groups) == 2 else row)))
                for row, one in enumerate(report.groups)
            ),
        )
        for place, report in enumerate(reports)
    )


# ---------------------------------------------------------------------------------------------------------
# Gaps


def _gap(figure: str, label: int | None, shares: Sequence[GroupShare]) -> Gap | None:
    """Return the gap of a share; None where fewer than two groups have enough pictures."""
    enough = [index for index, share in enumerate(shares) if share.whole >= FEWEST]
    if len(enough) < 2:
        return None
    sizes = np.array([shares[index].whole for index in enough], dtype=np.int64)
    parts = sum(shares[index].part for index in enough)
    drawn = np.random.default_rng(_SEED).multivariate_hypergeometric(sizes, parts, _DRAWS) / sizes
    by_chance = float(np.ptp(drawn, axis=1).mean())
    return _gap_of(figure, label, {index: shares[index].value for index in enough}, by_chance)


def _calibration_gap(answers: Answers, grouping: Grouping) -> Gap | None:
    """Return the gap of the calibration error, which is the larger the fewer pictures there are."""
    sizes = grouping.sizes
    enough = np.flatnonzero(sizes >= FEWEST)
    if len(enough) < 2:
        return None
    chosen = np.isin(grouping.indices, enough)
    groups = np.searchsorted(enough, grouping.indices[chosen])
    bins = metrics.calibration_bins(answers.score[chosen])
    apart = answers.score[chosen] - answers.right[chosen].astype(np.float64)

    def errors(members: Indices) -> Values:
        cells = members * (metrics.BINS + 1) + bins
        sums = np.bincount(cells, apart, len(enough) * (metrics.BINS + 1)).reshape(len(enough), -1)
        found: Values = np.abs(sums).sum(axis=1) / sizes[enough]
        return found

    random = np.random.default_rng(_SEED)
    by_chance = np.mean([np.ptp(errors(random.permutation(groups))) for _ in range(_DRAWS // 10)])
    values = dict(zip(enough.tolist(), errors(groups).tolist(), strict=True))
    return _gap_of(CALIBRATION, None, values, float(by_chance))


def _gap_of(figure: str, label: int | None, values: Mapping[int, float], by_chance: float) -> Gap:
    """Return the gap between the values of groups, by the groups' indices."""
    lowest, highest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    low, high = values[lowest], values[highest]
    return Gap(figure, label, lowest, highest, high - low, low / high if high else float("nan"), by_chance)


# ---------------------------------------------------------------------------------------------------------
# JSON


def group_report_record(report: GroupReport, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of groups in JSON's types; NaN becomes None.

    Args:
        names: of the classes, those that are labels first.
    """
    return {
        "columns": list(report.columns),
        "groups": [_group_record(group, names) for group in report.groups],
        "gaps": [
            {
                "figure": gap.figure,
                "class": None if gap.label is None else names[gap.label],
                "lowest": list(report.groups[gap.lowest].name),
                "highest": list(report.groups[gap.highest].name),
                "difference": gap.difference,
                "ratio": None if math.isnan(gap.ratio) else gap.ratio,
                "difference_by_chance": gap.by_chance,
            }
            for gap in report.gaps
        ],
    }


def _group_record(group: GroupFigures, names: Sequence[str]) -> dict[str, Any]:
    error, apart = group.calibration_error, group.to_the_rest
    return {
        "group": list(group.name),
        "images": group.accuracy.whole,
        "few": group.is_small,
        "accuracy": _share_record(group.accuracy),
        "calibration_error": None if error is None else _ends(error),
        "accuracy_minus_the_rest": None if apart is None else _ends(apart),
        "fisher_p": group.p,
        "holm_p": group.p_corrected,
        "recalls": dict(_named(group.recalls, names)),
        "answers": dict(_named(group.answers, names)),
    }


def _named(shares: Sequence[GroupShare], names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, _share_record(share)) for name, share in zip(names, shares, strict=False))


def _share_record(share: GroupShare) -> dict[str, Any]:
    ends: dict[str, float | None] = {"value": None, "low": None, "high": None} if not share.whole else _ends(share)
    return {**ends, "part": share.part, "whole": share.whole}


def _ends(figure: GroupShare | ShareDifference | Estimate) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}

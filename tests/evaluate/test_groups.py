"""Figures of groups against loops, scipy's and published ones; what is too few; groups among what a search finds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.evaluate import metrics, ranked_groups
from clipcls.evaluate.groups import (
    ACCURACY,
    ANSWERS,
    CALIBRATION,
    FEWEST,
    RECALL,
    Gap,
    GroupReport,
    GroupShare,
    difference,
    fisher,
    group_report_record,
    group_reports,
    groupings,
    holm,
)
from clipcls.evaluate.metrics import UNKNOWN, Answers

CLASSES, LABELS = 4, 3
COLUMNS = ("style", "side")


def answered(count: int = 600, seed: int = 0) -> tuple[Answers, list[tuple[str, str]]]:
    """Answers that are right more often in one style than in others, with a class that isn't among the labels."""
    random = np.random.default_rng(seed)
    styles, sides = (
        random.choice(["flat", "ink", ""], count, p=[0.5, 0.3, 0.2]),
        random.choice(["left", "right"], count),
    )
    truth = random.integers(0, CLASSES, count)
    guessed = np.where(random.random(count) < np.where(styles == "ink", 0.4, 0.8), truth, random.integers(0, 3, count))
    predicted = np.where(guessed >= LABELS, UNKNOWN, guessed)
    score = random.random(count).astype(np.float32)
    cells = [(style or "(none)", side) for style, side in zip(styles.tolist(), sides.tolist(), strict=True)]
    return Answers(truth, predicted, np.zeros_like(truth), score), cells


def reported(answers: Answers, cells: list[tuple[str, ...]], columns: tuple[str, ...] = COLUMNS) -> list[GroupReport]:
    return list(group_reports(answers, groupings(columns, cells), CLASSES, LABELS, calibrated=True))


def gap_of(report: GroupReport, figure: str, label: int | None = None) -> Gap:
    (found,) = (gap for gap in report.gaps if (gap.figure, gap.label) == (figure, label))
    return found


def spread(values: list[float]) -> tuple[float, float]:
    return max(values) - min(values), min(values) / max(values)


# ------------------------------------------------------------------------------------------- figures of groups


def test_groups_are_those_of_each_column_and_of_both_together() -> None:
    _, cells = answered()
    first, second, both = groupings(COLUMNS, cells)
    assert first.names == (("flat",), ("ink",), ("(none)",))
    assert second.names == (("left",), ("right",))
    assert (both.columns, len(both.names)) == (COLUMNS, 6)
    assert [both.names[index] for index in both.indices] == cells
    assert both.sizes.sum() == len(cells)
    (alone,) = groupings(("side",), [cell[1:] for cell in cells])
    assert alone.names == second.names
    assert groupings((), [() for _ in cells]) == ()


def test_figures_of_groups_are_those_of_their_pictures() -> None:
    answers, cells = answered()
    for place, report in enumerate(reported(answers, cells)):
        for group in report.groups:
            own = np.array([group.name in ((cell[0],), (cell[1],), cell) for cell in cells])
            rest = answers.select(~own)
            of_group = answers.select(own)
            assert group.accuracy == GroupShare(int(of_group.right.sum()), int(own.sum()))
            for label, share in enumerate(group.recalls):
                of_class = of_group.truth == label
                assert share == GroupShare(int(of_group.right[of_class].sum()), int(of_class.sum()))
            assert [share.part for share in group.answers] == [
                int((of_group.predicted == label).sum()) for label in range(LABELS)
            ]
            error = metrics.calibration_error(of_group.score, of_group.right)
            assert group.calibration_error is not None
            assert group.calibration_error.value == float(error(np.ones((1, len(of_group.truth))))[0])
            assert group.to_the_rest is not None
            assert group.to_the_rest.value == pytest.approx(of_group.right.mean() - rest.right.mean(), abs=1e-12)
        assert len(report.columns) == (2 if place == 2 else 1)


def test_gaps_are_between_the_lowest_and_the_highest_group() -> None:
    answers, cells = answered()
    for report in reported(answers, cells):
        groups = report.groups
        expected = {(ACCURACY, None): [group.accuracy.value for group in groups]}
        expected[CALIBRATION, None] = [group.calibration_error.value for group in groups if group.calibration_error]
        expected |= {(ANSWERS, label): [group.answers[label].value for group in groups] for label in range(LABELS)}
        # a class of which some groups have fewer than 30 pictures is told of the others
        expected |= {
            (RECALL, label): [group.recalls[label].value for group in groups if group.recalls[label].whole >= FEWEST]
            for label in range(CLASSES)
        }
        for (figure, label), values in expected.items():
            if len(values) > 1 and max(values) > 0:
                gap = gap_of(report, figure, label)
                assert (gap.difference, gap.ratio) == pytest.approx(spread(values), abs=1e-12)
                if figure == ACCURACY:
                    assert groups[gap.lowest].accuracy.value == min(values)
                    assert groups[gap.highest].accuracy.value == max(values)


def test_a_gap_stands_beside_that_of_shuffled_groups() -> None:
    answers, cells = answered()
    report = reported(answers, cells)[0]
    (grouping,) = groupings(COLUMNS[:1], [cell[:1] for cell in cells])
    random = np.random.default_rng(5)
    shuffled: dict[str, list[float]] = {ACCURACY: [], CALIBRATION: []}
    for _ in range(300):
        groups = random.permutation(grouping.indices)
        parts = [answers.select(groups == group) for group in range(3)]
        errors = [metrics.calibration_error(part.score, part.right)(np.ones((1, len(part.truth))))[0] for part in parts]
        shuffled[CALIBRATION].append(np.ptp(errors))
        shuffled[ACCURACY].append(np.ptp([part.right.mean() for part in parts]))
    for figure, gaps in shuffled.items():
        assert gap_of(report, figure).by_chance == pytest.approx(np.mean(gaps), rel=0.15)
    assert gap_of(report, ACCURACY).difference > 2 * gap_of(report, ACCURACY).by_chance


def test_small_groups_have_figures_but_no_verdict() -> None:
    answers, _ = answered(3 * FEWEST)
    sizes = (FEWEST + 1, FEWEST, FEWEST - 1)
    names = np.repeat(["a", "b", "c"], sizes).tolist()
    (report,) = reported(answers, [(name,) for name in names], ("group",))
    assert [group.is_small for group in report.groups] == [False, False, True]
    assert [group.to_the_rest is None for group in report.groups] == [False, False, True]
    assert [group.p is None for group in report.groups] == [False, False, True]
    assert report.groups[2].accuracy.whole == FEWEST - 1
    assert not any(2 in (gap.lowest, gap.highest) for gap in report.gaps)
    (alone,) = reported(answers, [("a",) for _ in names], ("group",))
    assert (alone.gaps, alone.groups[0].p) == ((), None)


def test_groups_of_a_result_are_corrected_together_and_a_pair_has_one_test() -> None:
    answers, cells = answered()
    styles, sides, both = reported(answers, cells)
    tests = [group.p for report in (styles, both) for group in report.groups]
    assert None not in tests
    corrected = holm([tests[0] or 0, *(p or 0 for p in tests[1:]), sides.groups[0].p or 0])
    found = [group.p_corrected for report in (styles, both) for group in report.groups]
    assert [*found, sides.groups[0].p_corrected] == corrected
    assert sides.groups[0].p_corrected == sides.groups[1].p_corrected
    (pair,) = reported(answers, [cell[1:] for cell in cells], ("side",))
    assert pair.groups[0].p_corrected == pair.groups[0].p == pytest.approx(pair.groups[1].p)


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    answers, cells = answered()
    cosines = replace(answers, score=answers.score - 2)
    (report,) = group_reports(cosines, groupings(("style",), cells), CLASSES, LABELS, calibrated=False)
    assert all(group.calibration_error is None for group in report.groups)
    assert CALIBRATION not in {gap.figure for gap in report.gaps}


def test_a_record_has_no_nan() -> None:
    answers, cells = answered()
    chosen = answers.truth < 2
    of_two = [cells[image] for image in np.flatnonzero(chosen)]
    for report in reported(answers.select(chosen), of_two):
        text = repr(group_report_record(report, ["a", "b", "c", "d"]))
        assert "nan" not in text and "'recalls': {'a': {'value': 0." in text and "'d': {'value': None" in text


# ------------------------------------------------------------------------------------------- tests and intervals


def test_fishers_p_is_scipys() -> None:
    from scipy.stats import fisher_exact

    random = np.random.default_rng(0)
    for _ in range(40):
        wholes = random.integers(1, 300, 2)
        parts = [int(random.integers(0, whole + 1)) for whole in wholes]
        one, other = GroupShare(parts[0], int(wholes[0])), GroupShare(parts[1], int(wholes[1]))
        table = [[share.part, share.whole - share.part] for share in (one, other)]
        assert fisher(one, other) == pytest.approx(fisher_exact(table).pvalue, rel=1e-6)


def test_holms_p_are_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_intervals_of_differences_are_newcombes(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """The examples of his paper."""
    found = difference(GroupShare(*one), GroupShare(*other))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_intervals_hold_the_true_share_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    runs = 4000
    accuracy, gap = random.uniform(0.5, 0.95, runs), random.uniform(-0.2, 0.04, runs)
    sizes, rests = random.integers(FEWEST, 300, runs), random.integers(FEWEST, 1000, runs)
    covered = 0, 0
    for p, q, n, m in zip(accuracy, accuracy + gap, sizes, rests, strict=True):
        one, other = GroupShare(random.binomial(n, p), int(n)), GroupShare(random.binomial(m, q), int(m))
        apart = difference(one, other)
        covered = covered[0] + (one.low <= p <= one.high), covered[1] + (apart.low <= p - q <= apart.high)
    assert all(0.93 <= count / runs <= 0.97 for count in covered), covered


def test_equal_groups_are_seldom_told_apart() -> None:
    """At most 1 in 20 data sets without any difference has a corrected p below 0.05."""
    random = np.random.default_rng(0)
    runs, false = 2000, 0
    for _ in range(runs):
        parts, size = random.binomial(60, 0.8, 5), 60
        shares = [(GroupShare(part, size), GroupShare(int(parts.sum()) - part, 4 * size)) for part in parts.tolist()]
        false += min(holm([fisher(*pair) for pair in shares])) < 0.05
    assert false / runs <= 0.055


# ------------------------------------------------------------------------------------------- searches


def by_the_formula(groups: list[int], shares: list[float], k: int) -> tuple[float, float]:
    """MaxSkew@k and NDKL of one ranking, written as in the papers."""
    wanted = range(len(shares))
    among = [groups[:k].count(group) / k for group in wanted]
    skew = max(math.log(share / shares[group]) for group, share in enumerate(among) if share)
    total = scale = 0.0
    for length in range(1, len(groups) + 1):
        found = [groups[:length].count(group) / length for group in wanted]
        divergence = sum(share * math.log(share / shares[group]) for group, share in enumerate(found) if share)
        total, scale = total + divergence / math.log2(length + 1), scale + 1 / math.log2(length + 1)
    return skew, total / scale


def ranked(random: np.random.Generator, queries: int = 5, images: int = 40) -> NDArray[np.int64]:
    return np.stack([random.permutation(images) for _ in range(queries)])


def test_skew_and_divergence_follow_the_papers() -> None:
    random = np.random.default_rng(0)
    (grouping,) = groupings(("g",), [(name,) for name in random.choice(["a", "b", "c"], 40, p=[0.6, 0.3, 0.1])])
    found = ranked_groups.group_figures(ranked(random), grouping)
    assert list(found) == ["MaxSkew@10 by g", "NDKL by g"]
    random = np.random.default_rng(0)
    random.choice(["a", "b", "c"], 40, p=[0.6, 0.3, 0.1])
    shares = (grouping.sizes / 40).tolist()
    expected = [by_the_formula(grouping.indices[row].tolist(), shares, 10) for row in ranked(random)]
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), expected, atol=1e-12)


def test_chance_is_what_rankings_at_random_give() -> None:
    random = np.random.default_rng(1)
    (grouping,) = groupings(("g",), [(name,) for name in random.choice(["a", "b"], 40)])
    chance = ranked_groups.by_chance(grouping)
    drawn = ranked_groups.group_figures(ranked(random, 500), grouping)
    assert chance.keys() == drawn.keys()
    assert all(chance[name] == pytest.approx(values.mean(), rel=0.15) for name, values in drawn.items())
    one = groupings(("g",), [("a",)] * 40)[0]
    assert set(ranked_groups.by_chance(one).values()) == {0.0}

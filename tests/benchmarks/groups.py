"""Compares figures of groups with fairlearn's and statsmodels' on the same answers, and counts what intervals hold.

    pip install fairlearn statsmodels
    python tests/benchmarks/groups.py

Prints the largest differences, how often intervals hold the truth of simulated answers, and what 50,000 pictures cost.
"""

import time

import numpy as np

from clipcls.evaluate.groups import (
    ACCURACY,
    ANSWERS,
    FEWEST,
    RECALL,
    GroupReport,
    GroupShare,
    difference,
    fisher,
    group_reports,
    groupings,
    holm,
)
from clipcls.evaluate.metrics import Answers

CLASSES = 8
RUNS = 20_000


def answers(count: int, seed: int) -> tuple[Answers, list[tuple[str, ...]]]:
    random = np.random.default_rng(seed)
    cells = [(a, b) for a, b in zip(random.choice(list("abcd"), count), random.choice(["x", "y"], count), strict=True)]
    strength = np.array([{"a": 0.9, "b": 0.8, "c": 0.75, "d": 0.6}[a] - 0.1 * (b == "y") for a, b in cells])
    truth = random.integers(0, CLASSES, count)
    predicted = np.where(random.random(count) < strength, truth, random.integers(0, CLASSES, count))
    return Answers(truth, predicted, np.zeros_like(truth), random.random(count).astype(np.float32)), cells


def compare_with_fairlearn(count: int, seed: int) -> tuple[int, float]:
    """Return how many figures were compared, and the largest difference."""
    from fairlearn import metrics
    from sklearn.metrics import accuracy_score, recall_score

    found, cells = answers(count, seed)
    pairs: list[tuple[float, float]] = []
    for report in group_reports(found, groupings(("one", "two"), cells), CLASSES, CLASSES, calibrated=False):
        names = [" ".join(cell[("one", "two").index(column)] for column in report.columns) for cell in cells]
        frame = metrics.MetricFrame(
            metrics=accuracy_score, y_true=found.truth, y_pred=found.predicted, sensitive_features=names
        )
        pairs += [(group.accuracy.value, frame.by_group[" ".join(group.name)]) for group in report.groups]
        pairs += gap_pairs(report, ACCURACY, None, frame.difference(), frame.ratio())
        for label in range(CLASSES):
            true, predicted = found.truth == label, found.predicted == label
            given = {"sensitive_features": names}
            recalls = metrics.MetricFrame(metrics=recall_score, y_true=true, y_pred=predicted, **given).by_group
            pairs += [(group.recalls[label].value, recalls[" ".join(group.name)]) for group in report.groups]
            for figure, name in ((RECALL, "equal_opportunity"), (ANSWERS, "demographic_parity")):
                kinds = (getattr(metrics, f"{name}_{kind}") for kind in ("difference", "ratio"))
                pairs += gap_pairs(report, figure, label, *(kind(true, predicted, **given) for kind in kinds))
    return len(pairs), max(abs(ours - theirs) for ours, theirs in pairs)


def gap_pairs(report: GroupReport, figure: str, label: int | None, *theirs: float) -> list[tuple[float, float]]:
    (gap,) = (gap for gap in report.gaps if (gap.figure, gap.label) == (figure, label))
    return list(zip((gap.difference, gap.ratio), theirs, strict=True))


def compare_with_statsmodels(seed: int) -> tuple[float, float, float, float]:
    """Return the largest differences of Wilson's and Newcombe's intervals, of Fisher's p (scipy's) and of Holm's."""
    from scipy.stats import fisher_exact
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

    random = np.random.default_rng(seed)
    apart = np.zeros(3)
    for _ in range(500):
        wholes = [int(whole) for whole in random.integers(1, 2000, 2)]
        parts = [int(random.integers(0, whole + 1)) for whole in wholes]
        one, other = (GroupShare(part, whole) for part, whole in zip(parts, wholes, strict=True))
        wilson = proportion_confint(one.part, one.whole, method="wilson")
        newcombe = confint_proportions_2indep(
            parts[0], wholes[0], parts[1], wholes[1], method="newcomb", compare="diff"
        )
        ours = difference(one, other)
        exact = fisher_exact([[share.part, share.whole - share.part] for share in (one, other)]).pvalue
        of_this = (
            np.abs(np.subtract((one.low, one.high), wilson)).max(),
            np.abs(np.subtract((ours.low, ours.high), newcombe)).max(),
            abs(fisher(one, other) - exact),
        )
        apart = np.maximum(apart, of_this)
    p_values = random.random(200) ** 3
    corrected = np.abs(holm(p_values.tolist()) - multipletests(p_values, method="holm")[1]).max()
    return float(apart[0]), float(apart[1]), float(apart[2]), float(corrected)


def coverage(size: int, accuracy: float, gap: float, seed: int = 0) -> tuple[float, float]:
    """Return how often intervals hold the true accuracy of a group, and its true distance from the rest."""
    random = np.random.default_rng(seed)
    one, rest = random.binomial(size, accuracy, RUNS), random.binomial(4 * size, accuracy - gap, RUNS)
    covered = np.zeros(2)
    for part, other in zip(one.tolist(), rest.tolist(), strict=True):
        share, others = GroupShare(part, size), GroupShare(other, 4 * size)
        apart = difference(share, others)
        covered += (share.low <= accuracy <= share.high, apart.low <= gap <= apart.high)
    return float(covered[0] / RUNS), float(covered[1] / RUNS)


def main() -> None:
    for seed in range(3):
        count, apart = compare_with_fairlearn(6000, seed)
        print(f"fairlearn: {count:,} figures, largest difference {apart:.1e}")
    print(
        "statsmodels: Wilson {:.1e}, Newcombe {:.1e}, Fisher {:.1e}, Holm {:.1e}".format(*compare_with_statsmodels(0))
    )
    print("pictures  accuracy  gap  Wilson's  Newcombe's intervals hold the truth")
    for size in (FEWEST, 60, 200, 1000):
        for accuracy, gap in ((0.6, 0.0), (0.8, 0.1), (0.9, 0.05), (0.95, 0.1)):
            print(
                f"{size:8,} {accuracy:9.2f} {gap:4.2f} {'  '.join(f'{c:8.2%}' for c in coverage(size, accuracy, gap))}"
            )
    found, cells = answers(50_000, 0)
    start = time.perf_counter()
    group_reports(found, groupings(("one", "two"), cells), CLASSES, CLASSES, calibrated=True)
    print(f"50,000 pictures, two columns: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()

"""Figures against scikit-learn's, torchmetrics' and scipy's, and the bootstrap against a loop."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.evaluate import metrics
from clipcls.evaluate.metrics import UNKNOWN, Answers, Estimate, LabelAnswers, Statistic
from clipcls.predict.ranking import label_places
from tolerances import sum_tolerance

Seeded = Callable[[int], np.random.Generator]


def probabilities(random: np.random.Generator, count: int, labels: int) -> NDArray[np.float32]:
    logits = random.normal(size=(count, labels)) * 2
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


def value(statistic: Statistic, count: int) -> float:
    return float(statistic(np.ones((1, count)))[0])


def answers(count: int = 300, labels: int = 7, seed: int = 0) -> tuple[Answers, NDArray[np.float32]]:
    """Answers that are right more often than by chance, and the scores that they are made of."""
    random = np.random.default_rng(seed)
    scores = probabilities(random, count, labels)
    guessed = scores.argmax(axis=1)
    truth = np.where(random.random(count) < 0.5, guessed, random.integers(0, labels, count))
    places = label_places(scores, scores, truth)
    return Answers(truth, guessed, places, scores.max(axis=1), metrics.brier(scores, truth)), scores


# ------------------------------------------------------------------------------------------- one answer an image


@pytest.mark.parametrize("k", [1, 3, 5])
def test_places_give_scikit_learns_top_k_accuracy(k: int) -> None:
    from sklearn.metrics import top_k_accuracy_score

    found, scores = answers()
    expected = top_k_accuracy_score(found.truth, scores, k=k, labels=range(7))
    assert value(metrics.mean(found.place < k), 300) == pytest.approx(expected, abs=1e-12)


def test_mean_recall_equals_scikit_learns_balanced_accuracy() -> None:
    from sklearn.metrics import balanced_accuracy_score

    found, _ = answers()
    assert value(metrics.mean_recall(found.truth, found.right), 300) == pytest.approx(
        balanced_accuracy_score(found.truth, found.predicted), abs=1e-12
    )


def test_mean_recall_leaves_out_classes_without_images() -> None:
    truth, right = np.array([5, 5, 2]), np.array([True, False, False])
    assert value(metrics.mean_recall(truth, right), 3) == pytest.approx((0.5 + 0.0) / 2)


def test_mean_recall_leaves_out_classes_that_a_resample_lacks() -> None:
    statistic = metrics.mean_recall(np.array([0, 1, 1]), np.array([True, True, False]))
    assert statistic(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])).tolist() == pytest.approx([2 / 3, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_torchmetrics(seed: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    found, scores = answers(seed=seed)
    expected = functional.multiclass_calibration_error(
        torch.from_numpy(scores), torch.from_numpy(found.truth), num_classes=7, n_bins=15, norm="l1"
    )
    error = value(metrics.calibration_error(found.score, found.right), 300)
    assert error == pytest.approx(float(expected), abs=sum_tolerance(300, 1.0))


def test_calibration_error_of_scores_at_the_edges_of_bins_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    monkeypatch.setattr(metrics, "BINS", 16)  # sixteenths have no rounding, with which torch's edges of 15 bins differ
    edges = torch.arange(17) / 16
    sure = torch.cat([edges[9:], edges[9:]])
    scores = torch.stack([sure, 1 - sure], dim=1)
    truth = torch.arange(len(sure)) % 3 % 2
    expected = functional.multiclass_calibration_error(scores, truth, num_classes=2, n_bins=16, norm="l1")
    right = truth.numpy() == 0
    error = value(metrics.calibration_error(sure.numpy(), right), len(sure))
    assert error == pytest.approx(float(expected), abs=sum_tolerance(len(sure), 1.0))


def test_calibration_error_of_certain_and_right_answers_is_zero() -> None:
    assert value(metrics.calibration_error(np.ones(4, np.float32), np.ones(4, bool)), 4) == 0.0


def test_brier_equals_scikit_learns_of_many_classes() -> None:
    from sklearn.metrics import brier_score_loss

    found, scores = answers()
    assert found.brier is not None
    expected = brier_score_loss(found.truth, scores / scores.sum(axis=1, keepdims=True), labels=range(7))
    assert found.brier.mean() == pytest.approx(expected, abs=sum_tolerance(300, 1.0))


def test_brier_counts_a_class_without_a_label_as_one_without_a_score() -> None:
    scores = np.array([[0.75, 0.25]], np.float32)
    assert metrics.brier(scores, np.array([2])).tolist() == [0.75**2 + 0.25**2 + 1]


def test_class_figures_equal_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    found, _ = answers()
    counts = metrics.confusion_matrix(found.truth, found.predicted, 7)
    assert (counts[:, :-1] == confusion_matrix(found.truth, found.predicted)).all()
    assert not counts[:, -1].any()
    expected = precision_recall_fscore_support(found.truth, found.predicted)
    figures = metrics.class_figures(counts)
    np.testing.assert_allclose([row.precision for row in figures], expected[0])
    np.testing.assert_allclose([row.recall for row in figures], expected[1])
    np.testing.assert_allclose([row.f1 for row in figures], expected[2])
    assert [row.support for row in figures] == expected[3].tolist()


def test_class_figures_without_a_meaning_are_nan() -> None:
    never_answered, never_there = metrics.class_figures(np.array([[0, 2, 0], [0, 0, 0]]))
    assert np.isnan(never_answered.precision) and never_answered.recall == 0.0
    assert never_answered.f1 == 0.0
    assert np.isnan(never_there.recall) and never_there.precision == 0.0


def test_confusion_matrix_counts_unknown_in_the_last_column() -> None:
    counts = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, UNKNOWN, 0]), 2)
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0]]


def test_levels_reach_a_threshold_as_predict_does() -> None:
    score = np.array([0.9, 0.7, 0.7, 0.1], np.float32)  # 0.9 in float32 is below 0.9
    right = np.array([True, False, True, False])
    none, some, high, most = metrics.levels(score, right, (0.0, 0.7, 0.9, 0.95))
    assert (none.answered, none.coverage, none.accuracy) == (4, 1.0, 0.5)
    assert (some.answered, some.coverage, some.accuracy) == (3, 0.75, pytest.approx(2 / 3))
    assert (high.answered, high.accuracy) == (1, 1.0)
    assert (most.answered, most.coverage) == (0, 0.0) and np.isnan(most.accuracy)


# ------------------------------------------------------------------------------------------- several labels an image


@pytest.mark.parametrize("digits", [7, 1])
def test_average_precision_equals_scikit_learns_with_and_without_ties(digits: int) -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(3)
    scores = random.random((200, 6)).round(digits).astype(np.float32)
    truth = random.random((200, 6)) < 0.3
    expected = average_precision_score(truth, scores, average=None)
    found = [value(metrics.average_precision(scores[:, label], truth[:, label]), 200) for label in range(6)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert value(metrics.mean_average_precision(scores, truth), 200) == pytest.approx(expected.mean(), abs=1e-12)


def test_mean_average_precision_equals_clip_benchmarks() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    import torch

    random = np.random.default_rng(6)
    scores, truth = random.random((120, 5)).astype(np.float32), random.random((120, 5)) < 0.3
    expected = theirs.average_precision_per_class(torch.from_numpy(scores), torch.from_numpy(truth)).mean()
    found = value(metrics.mean_average_precision(scores, truth), 120)
    assert found == pytest.approx(float(expected), abs=sum_tolerance(120, 1.0))


def test_average_precision_of_a_resample_equals_scikit_learns_with_weights() -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(4)
    scores, truth = random.random(100).round(1).astype(np.float32), random.random(100) < 0.4
    weights = random.integers(0, 4, (3, 100))
    found = metrics.average_precision(scores, truth)(weights.astype(np.float64))
    expected = [average_precision_score(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_mean_average_precision_leaves_out_labels_without_images() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    truth = np.array([[True, False], [False, False]])
    assert value(metrics.mean_average_precision(scores, truth), 2) == 1.0
    assert np.isnan(value(metrics.mean_average_precision(scores, np.zeros((2, 2), bool)), 2))


def test_label_figures_equal_scikit_learns() -> None:
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    random = np.random.default_rng(5)
    scores, truth = random.random((150, 4)).astype(np.float32), random.random((150, 4)) < 0.4
    answered = scores >= np.float32(0.5)
    expected = precision_recall_fscore_support(truth, answered, average=None)
    figures = metrics.label_figures(LabelAnswers(truth, answered, scores))
    np.testing.assert_allclose([(row.precision, row.recall, row.f1) for row in figures], np.array(expected[:3]).T)
    assert [row.support for row in figures] == expected[3].tolist()
    micro = f1_score(truth, answered, average="micro")
    assert value(metrics.micro_f1(answered, truth), 150) == pytest.approx(micro)
    (level,) = metrics.label_levels(scores, truth, (0.5,))
    assert level.f1 == pytest.approx(micro)
    assert np.isnan(metrics.label_figures(LabelAnswers(truth, answered))[0].average_precision)


# ------------------------------------------------------------------------------------------- the bootstrap


def both(found: Answers) -> dict[str, Estimate]:
    statistics = {
        "accuracy": metrics.mean(found.right),
        "recall": metrics.mean_recall(found.truth, found.right),
        "error": metrics.calibration_error(found.score, found.right),
    }
    return metrics.bootstrap(statistics, len(found.truth))


def test_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    from scipy.stats import bootstrap

    found, _ = answers()
    estimate = both(found)["accuracy"]
    scipys = bootstrap(
        (found.right,), np.mean, n_resamples=4000, method="percentile", random_state=1
    ).confidence_interval
    assert estimate.low == pytest.approx(scipys.low, abs=0.01)
    assert estimate.high == pytest.approx(scipys.high, abs=0.01)
    assert estimate.low < estimate.value < estimate.high


def test_bootstrap_equals_a_loop_over_images_that_are_drawn() -> None:
    found, _ = answers(count=50)
    estimates = both(found)
    random = np.random.default_rng(0)
    drawn = random.integers(0, 50, (metrics.RESAMPLES, 50))
    np.testing.assert_allclose(estimates["accuracy"].resampled, found.right[drawn].mean(axis=1))
    resample = drawn[7]
    recall = metrics.mean_recall(found.truth[resample], found.right[resample])
    error = metrics.calibration_error(found.score[resample], found.right[resample])
    assert estimates["recall"].resampled[7] == pytest.approx(value(recall, 50))
    assert estimates["error"].resampled[7] == pytest.approx(value(error, 50))


def test_bootstrap_in_parts_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = answers(count=40)
    whole = both(found)
    monkeypatch.setattr(metrics, "_CELLS", 40 * 33)
    for name, estimate in both(found).items():
        np.testing.assert_allclose(estimate.resampled, whole[name].resampled)


def test_bootstrap_of_one_image_and_of_nothing_defined() -> None:
    estimates = metrics.bootstrap(
        {
            "one": metrics.mean(np.array([True])),
            "none": metrics.micro_f1(np.zeros((1, 2), bool), np.zeros((1, 2), bool)),
        },
        1,
    )
    assert (estimates["one"].low, estimates["one"].high) == (1.0, 1.0)
    assert np.isnan([estimates["none"].value, estimates["none"].low]).all()


def test_difference_is_of_the_same_resamples() -> None:
    found, _ = answers()
    estimate = both(found)["accuracy"]
    same = metrics.difference(estimate, estimate)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = found.right & (np.arange(300) % 10 > 0)
    gap = metrics.difference(metrics.bootstrap({"a": metrics.mean(worse)}, 300)["a"], estimate)
    assert gap.value == pytest.approx(worse.mean() - found.right.mean())
    # unpaired, the interval would be several times as wide
    assert gap.high < 0.0 and gap.high - gap.low < (estimate.high - estimate.low)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 9), (40, 40), (120, 80), (0, 60), (900, 1100)])
def test_mcnemar_equals_scipys_binomial_test(first: int, second: int) -> None:
    from scipy.stats import binomtest

    one = np.repeat([True, False, True, False], [first, second, 5, 7])
    other = np.repeat([False, True, True, False], [first, second, 5, 7])
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
        assert metrics.mcnemar(other, one) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_median_is_that_of_the_values_as_often_as_their_images_are_drawn(count: int) -> None:
    random = np.random.default_rng(count)
    values, images = random.integers(0, 9, 3 * count), np.repeat(np.arange(count), 3)
    weights = random.integers(0, 3, (20, count)) + (np.arange(count) == 0)
    expected = [np.sort(np.repeat(values, row[images])) for row in weights]
    found = metrics.median(values, images)(weights.astype(np.float64))
    assert found.tolist() == [ordered[(len(ordered) - 1) // 2] for ordered in expected]

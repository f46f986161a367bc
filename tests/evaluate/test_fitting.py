"""Fits against scipy's minima of scikit-learn's losses, thresholds against scikit-learn's curves."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.errors import UsageError
from clipcls.evaluate import fit as fitting
from clipcls.predict.calibration import share_interval


def cosines(seed: int, count: int = 600, labels: int = 5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Similarities as a CLIP model's: in a narrow range, the right label's rather higher."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, labels, count)
    found = random.normal(0.2, 0.02, (count, labels))
    found[np.arange(count), truth] += 0.03
    return found.astype(np.float32), truth


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", [0.0, 4.6052])
def test_fit_scale_is_scipys_minimum_of_scikit_learns_log_loss(seed: int, start: float) -> None:
    from scipy.optimize import minimize_scalar
    from sklearn.metrics import log_loss

    values, truth = cosines(seed)
    wide = values.astype(np.float64)
    expected = minimize_scalar(
        lambda scale: log_loss(truth, softmax(math.exp(scale) * wide), labels=range(5)),
        bounds=(0, 8),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    assert fitting.fit_scale(values, truth, start) == pytest.approx(expected, abs=1e-4)


def test_fit_scale_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values, truth = cosines(0)
    whole = fitting.fit_scale(values, truth, 0.0)
    monkeypatch.setattr(fitting, "_CELLS", 37)
    assert fitting.fit_scale(values, truth, 0.0) == pytest.approx(whole, abs=1e-9)


def test_fit_scale_has_none_where_no_answer_is_wrong() -> None:
    values = np.eye(3, dtype=np.float32)
    assert fitting.fit_scale(values, np.arange(3), 0.0) is None


def test_fit_scale_is_finite_where_one_answer_is_wrong() -> None:
    values = np.vstack([np.eye(3)] * 40).astype(np.float32)
    truth = np.tile(np.arange(3), 40)
    truth[0] = 1
    found = fitting.fit_scale(values, truth, 4.6)
    # 119 of 120 right: e^s / (e^s + 2) for the right ones, 1 / (e^s + 2) for the other
    assert found == pytest.approx(math.log(math.log(2 * 119)), abs=1e-9)


def test_fit_scale_refuses_similarities_that_tell_nothing() -> None:
    values, truth = cosines(0)
    with pytest.raises(UsageError, match="don't tell these labels apart"):
        fitting.fit_scale(-values, truth, 0.0)


def test_fit_scale_refuses_similarities_that_are_the_same_for_every_class() -> None:
    """Rounding gives the loss a slope of nearly nothing, and with it a temperature of 1e17; CLIP_benchmark#21."""
    cosines = np.random.default_rng(0).normal(0.3, 0.05, (5, 5)).astype(np.float32)
    with pytest.raises(UsageError, match="don't tell these labels apart"):
        fitting.fit_scale(np.tile(cosines, (5, 1)), np.repeat(np.arange(5), 5), math.log(100))


@pytest.mark.parametrize("seed", range(3))
def test_fit_scale_and_bias_is_scipys_minimum_of_platts_loss(seed: int) -> None:
    from scipy.optimize import minimize

    values, truth = cosines(seed)
    right = truth[:, None] == np.arange(5)
    positive, negative = right.sum(), (~right).sum()
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(weights: NDArray[np.float64]) -> float:
        logits = weights[0] * values.astype(np.float64) + weights[1]
        return float((np.logaddexp(0, logits) - targets * logits).mean())

    expected = minimize(loss, [10.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-14}).x
    scale, bias = fitting.fit_scale_and_bias(values, right)
    assert scale == pytest.approx(math.log(expected[0]), abs=1e-4)
    assert bias == pytest.approx(expected[1], abs=1e-3)


def test_fit_scale_and_bias_stays_finite_where_values_separate() -> None:
    values = np.array([[0.3, 0.1], [0.1, 0.3]] * 20)
    scale, bias = fitting.fit_scale_and_bias(values, values > 0.2)
    assert 1 / (1 + math.exp(-(math.exp(scale) * 0.3 + bias))) == pytest.approx(41 / 42, abs=1e-6)


@pytest.mark.parametrize(("right", "message"), [(True, "every"), (False, "none")])
def test_fit_scale_and_bias_needs_right_and_wrong_labels(right: bool, message: str) -> None:
    values, _ = cosines(0)
    with pytest.raises(UsageError, match=f"have {message} of the labels"):
        fitting.fit_scale_and_bias(values, np.full(values.shape, right))


def test_fit_scale_and_bias_refuses_similarities_that_tell_nothing() -> None:
    values, truth = cosines(0)
    for empty in (-values, np.ones_like(values)):
        with pytest.raises(UsageError, match="don't tell these labels apart"):
            fitting.fit_scale_and_bias(empty, truth[:, None] == np.arange(5))


def test_log_loss_is_scikit_learns() -> None:
    from sklearn.metrics import log_loss

    values, truth = cosines(1)
    logits = 40 * values.astype(np.float64)
    assert fitting.log_loss(logits, truth).mean() == pytest.approx(log_loss(truth, softmax(logits)), abs=1e-9)
    right = truth[:, None] == np.arange(5)
    shares = 1 / (1 + np.exp(8 - logits))
    expected = log_loss(right.ravel(), shares.ravel())
    assert fitting.label_log_loss(logits - 8, right).mean() == pytest.approx(expected, abs=1e-9)


def curve_data(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    scores = (random.random(300).round(2)).astype(np.float32)  # with ties
    return scores, random.random(300) < scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("least", [1, 20])
def test_threshold_of_precision_is_that_of_scikit_learns_curve(seed: int, target: float, least: int) -> None:
    from sklearn.metrics import precision_recall_curve

    scores, right = curve_data(seed)
    precision, _, thresholds = precision_recall_curve(right, scores)
    enough = [threshold for threshold in thresholds if (scores >= threshold).sum() >= least]
    passing = [threshold for threshold, share in zip(thresholds, precision, strict=False) if share >= target]
    expected = next((threshold for threshold in passing if threshold in enough), None)
    found = fitting.threshold_of_precision(scores, right, target, least)
    assert found == (None if expected is None else float(expected))


@pytest.mark.parametrize("seed", range(4))
def test_threshold_of_f1_is_that_of_scikit_learns_curve(seed: int) -> None:
    from sklearn.metrics import precision_recall_curve

    scores, right = curve_data(seed)
    precision, recall, thresholds = precision_recall_curve(right, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    expected = thresholds[f1[:-1].argmax()]
    assert fitting.threshold_of_f1(scores, right, int(right.sum())) == float(expected)


def test_threshold_counts_at_least_so_many_answers() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    right = np.array([True, True, True, False])
    assert fitting.threshold_of_precision(scores, right, 0.9, 3) == pytest.approx(0.7)
    assert fitting.threshold_of_precision(scores, right, 0.9, 4) is None
    assert fitting.threshold_of_precision(scores[:0], right[:0], 0.9, 1) is None


def test_threshold_of_precision_reaches_a_share_that_rounding_hides() -> None:
    # 0.95 · 20 and 0.7 · 10 aren't 19 and 7 in floats
    for hits, count, target in ((19, 20, 0.95), (7, 10, 0.7), (57, 60, 0.95)):
        right = np.arange(count) < hits
        assert fitting.threshold_of_precision(np.ones(count, np.float32), right, target, count) == 1.0


def test_threshold_of_f1_without_a_right_answer_is_none() -> None:
    scores = np.array([0.9, 0.8], np.float32)
    assert fitting.threshold_of_f1(scores, np.zeros(2, bool), 5) is None
    assert fitting.threshold_of_f1(scores[:0], np.zeros(0, bool), 5) is None


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (7, 7), (19, 20), (950, 1000), (1, 3)])
def test_share_interval_is_scipys(part: int, whole: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(part, whole).proportion_ci(0.95, method="wilson")
    assert share_interval(part, whole) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_share_interval_of_nothing_is_all() -> None:
    assert share_interval(0, 0) == (0.0, 1.0)

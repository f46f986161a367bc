"""Scores against the formulas in float64, and the answers drawn from them."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.errors import UsageError
from clipcls.predict.ranking import (
    LabelFeatures,
    Scoring,
    best_labels,
    label_order,
    label_places,
    rank,
    scores,
    similarities,
)
from clipcls.predict.scores import SCORE_KINDS
from clipcls.records import Prediction

CLIP_SCALE = float(np.log(100.0))
SIGLIP_SCALE, SIGLIP_BIAS = float(np.log(112.0)), -16.5
NAMES = ("ant", "bee", "cat", "dog")


def unit_vectors(count: int, dimensions: int = 16, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def directions(cosines: list[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One image, and a text for each wanted cosine."""
    wanted = np.array(cosines)
    texts = np.stack([wanted, np.sqrt(1 - wanted**2)], axis=1)
    return np.array([[1.0, 0.0]], np.float32), texts.astype(np.float32)


def label_features(texts: NDArray[np.float32], scale: float = CLIP_SCALE, bias: float | None = None) -> LabelFeatures:
    names = tuple(f"label {i}" for i in range(len(texts)))
    return LabelFeatures(names, texts, scale, bias)


def answer(values: list[float], scoring: Scoring, cosines: list[float] | None = None) -> Prediction:
    label_scores = np.array(values, np.float32)
    return rank(
        "x.png",
        np.array(values if cosines is None else cosines, np.float32),
        label_scores,
        NAMES[: len(values)],
        scoring,
    )


# ------------------------------------------------------------------------------------------- scores


def test_similarities_are_cosines_in_float32() -> None:
    images, texts = unit_vectors(5), unit_vectors(3, seed=1)
    cosines = similarities(images, texts)
    assert cosines.shape == (5, 3) and cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, images.astype(float) @ texts.astype(float).T, atol=1e-6)


@pytest.mark.parametrize("bias", [None, SIGLIP_BIAS])
@pytest.mark.parametrize("scale", [0.0, float(np.log(10.0)), CLIP_SCALE])
def test_scores_softmax_equals_the_formula(scale: float, bias: float | None) -> None:
    images, texts = unit_vectors(50), unit_vectors(7, seed=1)
    cosines, probabilities = scores(images, label_features(texts, scale, bias), SCORE_KINDS["softmax"])
    logits = np.exp(scale) * (images.astype(float) @ texts.astype(float).T) + (bias or 0.0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(cosines, similarities(images, texts))


def test_scores_sigmoid_with_bias_equals_the_formula() -> None:
    images, texts = unit_vectors(50), unit_vectors(7, seed=1)
    _, probabilities = scores(images, label_features(texts, float(np.log(20.0)), -10.0), SCORE_KINDS["sigmoid"])
    logits = 20.0 * (images.astype(float) @ texts.astype(float).T) - 10.0
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_scores_sigmoid_without_bias_compares_with_the_background() -> None:
    images, texts, background = unit_vectors(50), unit_vectors(7, seed=1), unit_vectors(1, seed=2)[0]
    labels = LabelFeatures(tuple("abcdefg"), texts, float(np.log(10.0)), None, background)
    _, probabilities = scores(images, labels, SCORE_KINDS["sigmoid"])
    wide = images.astype(float)
    logits = 10.0 * (wide @ texts.astype(float).T - (wide @ background.astype(float))[:, None])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_scores_sigmoid_of_the_background_itself_is_a_half() -> None:
    images, texts = unit_vectors(3), unit_vectors(2, seed=1)
    labels = LabelFeatures(("a", "b"), texts, CLIP_SCALE, None, texts[1])
    np.testing.assert_allclose(scores(images, labels, SCORE_KINDS["sigmoid"])[1][:, 1], 0.5, atol=1e-4)


@pytest.mark.parametrize("cosine", [-0.2, -0.1, -0.03, 0.0, 0.03])
def test_scores_sigmoid_keeps_small_scores(cosine: float) -> None:
    images, texts = directions([cosine])
    _, probabilities = scores(images, label_features(texts, SIGLIP_SCALE, SIGLIP_BIAS), SCORE_KINDS["sigmoid"])
    expected = 1 / (1 + np.exp(-(112.0 * cosine + SIGLIP_BIAS)))
    np.testing.assert_allclose(probabilities[0, 0], expected, rtol=1e-4)


def test_scores_sigmoid_without_bias_and_background_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="background"):
        scores(unit_vectors(1), label_features(unit_vectors(2)), SCORE_KINDS["sigmoid"])


def test_scores_cosine_is_the_similarity() -> None:
    cosines, values = scores(unit_vectors(3), label_features(unit_vectors(2, seed=1)), SCORE_KINDS["cosine"])
    np.testing.assert_array_equal(cosines, values)


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("scale", [0.0, 4.7, 10.0, 40.0])
@pytest.mark.parametrize("bias", [-1000.0, 0.0, 1000.0])
def test_scores_never_overflow(kind: str, scale: float, bias: float) -> None:
    images, texts = directions([1.0, 0.5, 0.0, -1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, values = scores(images, label_features(texts, scale, bias), SCORE_KINDS[kind])
    assert np.isfinite(values).all()
    assert (values >= -1.0).all() and (values <= 1.0).all()


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_scores_of_no_image_are_empty(kind: str) -> None:
    cosines, values = scores(
        np.empty((0, 16), np.float32), label_features(unit_vectors(3), bias=0.0), SCORE_KINDS[kind]
    )
    assert cosines.shape == values.shape == (0, 3)


# ------------------------------------------------------------------------------------------- ranking


def test_rank_answers_the_best_label() -> None:
    prediction = answer([0.1, 0.2, 0.6, 0.1], Scoring(), cosines=[0.01, 0.02, 0.3, 0.0])
    assert (prediction.path, prediction.label, prediction.error) == ("x.png", "cat", None)
    assert prediction.score == pytest.approx(0.6) and prediction.similarity == pytest.approx(0.3)
    assert [entry.label for entry in prediction.top] == ["cat"]
    assert isinstance(prediction.score, float) and isinstance(prediction.similarity, float)


@pytest.mark.parametrize(("top_k", "labels"), [(1, "b"), (2, "b d"), (3, "b d a"), (4, "b d a c"), (9, "b d a c")])
def test_rank_lists_top_k_best_first(top_k: int, labels: str) -> None:
    prediction = answer([0.2, 0.4, 0.1, 0.3], Scoring(top_k=top_k))
    assert " ".join(entry.label[0] for entry in prediction.top) == labels
    assert prediction.label == "bee"


def test_rank_ties_keep_the_order_of_the_labels() -> None:
    prediction = answer([0.2, 0.3, 0.3, 0.2], Scoring(top_k=4))
    assert [entry.label for entry in prediction.top] == ["bee", "cat", "ant", "dog"]


@pytest.mark.parametrize("seed", range(5))
def test_best_labels_and_places_are_those_of_the_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    label_scores = random.integers(0, 3, (40, 6)).astype(np.float32) / 2
    cosines = random.integers(0, 2, (40, 6)).astype(np.float32) / 2
    labels = random.integers(0, 6, 40)
    orders = [label_order(*row).tolist() for row in zip(cosines, label_scores, strict=True)]
    assert best_labels(cosines, label_scores).tolist() == [order[0] for order in orders]
    places = [order.index(label) for order, label in zip(orders, labels, strict=True)]
    assert label_places(cosines, label_scores, labels).tolist() == places


def test_label_places_of_a_class_without_a_label_is_behind_all() -> None:
    label_scores = np.array([[0.5, 0.5]], np.float32)
    assert label_places(label_scores, label_scores, np.array([2])).tolist() == [2]


@pytest.mark.parametrize(
    ("kind", "cosines"),
    [("sigmoid", [-0.1, -0.03, -0.05, -0.04]), ("softmax", [-0.9, 0.95, -0.4, -0.3])],
)
def test_rank_tells_tiny_scores_apart(kind: str, cosines: list[float]) -> None:
    images, texts = directions(cosines)
    similar, values = scores(images, label_features(texts, SIGLIP_SCALE, SIGLIP_BIAS), SCORE_KINDS[kind])
    prediction = rank("x", similar[0], values[0], NAMES, Scoring(kind, top_k=4))
    assert [entry.label for entry in prediction.top] == [NAMES[i] for i in np.argsort(-np.array(cosines))]


def test_rank_tells_saturated_scores_apart() -> None:
    images, texts = directions([0.8, 0.9, 0.7])
    similar, values = scores(images, label_features(texts, CLIP_SCALE, 0.0), SCORE_KINDS["sigmoid"])
    assert rank("x", similar[0], values[0], NAMES[:3], Scoring("sigmoid")).label == "bee"


@pytest.mark.parametrize(("threshold", "label"), [(0.0, "bee"), (0.5, "bee"), (0.51, None), (1.0, None)])
def test_rank_below_the_threshold_is_unknown(threshold: float, label: str | None) -> None:
    prediction = answer([0.25, 0.5, 0.25], Scoring(threshold=threshold))
    assert prediction.label == label
    assert prediction.score == 0.5 and prediction.top[0].label == "bee"


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("value", [0.7, 0.8, 0.9, 0.3])
def test_rank_at_the_threshold_is_known(value: float, multi_label: bool) -> None:
    prediction = answer([0.1, value], Scoring("sigmoid", multi_label=multi_label, threshold=value))
    assert prediction.label == "bee"


@pytest.mark.parametrize(("margin", "label"), [(0.0, "bee"), (0.25, "bee"), (0.26, None)])
def test_rank_below_the_margin_is_unknown(margin: float, label: str | None) -> None:
    assert answer([0.25, 0.5, 0.25], Scoring(min_margin=margin)).label == label


def test_rank_margin_is_of_the_two_best_whatever_is_listed() -> None:
    scoring = Scoring(min_margin=0.1, top_k=1)
    assert answer([0.1, 0.3, 0.25, 0.35], scoring).label is None
    assert answer([1.0], scoring).label == "ant"


def test_rank_margin_and_threshold_both_count() -> None:
    scoring = Scoring(min_margin=0.1, threshold=0.5)
    assert answer([0.6, 0.3], scoring).label == "ant"
    assert answer([0.55, 0.5], scoring).label is None
    assert answer([0.45, 0.1], scoring).label is None


def test_rank_multi_label_lists_all_that_reach_the_threshold() -> None:
    prediction = answer([0.6, 0.4, 0.9, 0.5], Scoring("sigmoid", multi_label=True))
    assert [entry.label for entry in prediction.top] == ["cat", "ant", "dog"]
    assert prediction.label == "cat"


def test_rank_multi_label_respects_threshold_and_top_k() -> None:
    low = answer([0.6, 0.4, 0.9, 0.5], Scoring("sigmoid", multi_label=True, threshold=0.1, top_k=3))
    assert [entry.label for entry in low.top] == ["cat", "ant", "dog"]
    cosine = answer([-0.5, 0.4], Scoring("cosine", multi_label=True, threshold=-0.5))
    assert [entry.label for entry in cosine.top] == ["bee", "ant"]


def test_rank_multi_label_unknown_still_shows_the_best() -> None:
    prediction = answer([0.1, 0.4, 0.2], Scoring("sigmoid", multi_label=True, top_k=2))
    assert prediction.label is None
    assert [entry.label for entry in prediction.top] == ["bee"] and prediction.score == pytest.approx(0.4)


# ------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "settings",
    [
        {"multi_label": True, "kind": "softmax"},
        {"multi_label": True, "kind": "cosine"},
        {"multi_label": True, "kind": "sigmoid", "min_margin": 0.1},
        {"top_k": 0},
        {"top_k": -1},
        {"threshold": -0.1},
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"kind": "sigmoid", "threshold": -0.1},
        {"kind": "cosine", "threshold": -1.1},
        {"min_margin": -0.1},
        {"min_margin": 2.1},
        {"min_margin": float("nan")},
        {"kind": "probability"},
    ],
)
def test_scoring_refuses_contradictions(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Scoring(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "cosine", "threshold": -1.0},
        {"kind": "cosine", "multi_label": True, "threshold": 0.2},
        {"threshold": 1.0, "min_margin": 0.0, "top_k": 1},
    ],
)
def test_scoring_accepts(settings: dict[str, object]) -> None:
    Scoring(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("multi_label", "kind"), [(False, "softmax"), (True, "sigmoid")])
def test_scoring_chooses_a_kind(multi_label: bool, kind: str) -> None:
    assert Scoring(multi_label=multi_label).kind == kind

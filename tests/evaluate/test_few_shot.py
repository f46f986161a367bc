"""Few-shot functions against refitting without each example, and against scikit-learn's discriminant analysis."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.evaluate import few_shot
from clipcls.evaluate.few_shot import FewShot, fit_few_shot, log_losses
from clipcls.predict.ranking import LabelFeatures, LinearHead

DIM, LABELS = 24, 5


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), dtype=np.float32)


class World:
    """Labels whose pictures lie about directions of their own, and whose texts lie `apart` from these."""

    def __init__(self, seed: int, apart: float = 0.0, noise: float = 0.6) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.directions = self.random.normal(size=(LABELS, DIM))
        self.spread = self.random.uniform(0.2, 2.0, DIM)  # so that a covariance is worth knowing
        texts = unit(self.directions + apart * self.random.normal(size=(LABELS, DIM)))
        self.labels = LabelFeatures(tuple("abcde"), texts, math.log(20.0))

    def pictures(self, each: int, shown: int = LABELS) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        truth = np.repeat(np.arange(shown), each)
        noise = self.random.normal(size=(len(truth), DIM)) * self.spread * self.noise * 2
        return unit(3.0 + self.directions[truth] + noise), truth  # pictures have a mean, which texts haven't


def accuracy(values: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    return float((values.argmax(axis=1) == truth).mean())


@pytest.mark.parametrize("each", [1, 2, 7])
def test_leave_one_out_equals_leaving_each_example_out(each: int) -> None:
    world = World(each)
    features, truth = world.pictures(each, shown=4)
    features, truth = np.concatenate([features, features[:1] * -1]), np.append(truth, 0)  # one label has one more
    made = few_shot._Gaussians.fit(features.astype(np.float64), truth, world.labels.features.astype(np.float64))
    found = np.concatenate([values for _, values in made._leave_one_out()])
    dof = len(truth) - 4
    for left in range(len(truth)):
        rest = np.arange(len(truth)) != left
        of_labels = [made.features[rest & (truth == label)] for label in range(LABELS)]
        own = np.stack([pictures.sum(axis=0) / max(len(pictures), 1) for pictures in of_labels])
        counts = np.bincount(truth[rest], minlength=LABELS)[:, None]
        means = (made.prior * made.by_words + counts * own) / (made.prior + counts)
        deviations = made.features[rest] - own[truth[rest]]
        whole = made.features - made.own_means[truth]
        round_part = made.shrinkage * np.trace(whole.T @ whole / dof) / DIM * np.eye(DIM)
        precision = np.linalg.inv((1 - made.shrinkage) * deviations.T @ deviations / dof + round_part)
        expected = made.features[left] @ precision @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, precision, means)
        np.testing.assert_allclose(found[left], expected, rtol=1e-6, atol=1e-6)


def test_without_words_it_is_linear_discriminant_analysis() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    world = World(1)
    features, truth = world.pictures(12)
    made = few_shot._Gaussians.fit(features.astype(np.float64), truth, world.labels.features.astype(np.float64))
    made = replace(made, prior=1e-9)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=made.shrinkage).fit(features, truth)
    others, _ = world.pictures(200)
    values = others @ made.weights.T + made.bias
    # scikit-learn divides by n, this by the degrees of freedom
    expected = reference.decision_function(others) * (len(truth) - LABELS) / len(truth)
    np.testing.assert_allclose(
        values - values.mean(axis=1, keepdims=True),
        expected - expected.mean(axis=1, keepdims=True),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("apart", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("each", [1, 4, 16])
def test_what_is_taught_is_better_or_as_good(apart: float, each: int) -> None:
    gains = []
    for seed in range(10):
        world = World(seed, apart)
        learned = fit_few_shot(*world.pictures(each), world.labels)
        others, truth = world.pictures(100)
        gains.append(accuracy(learned.head(others), truth) - accuracy(others @ world.labels.features.T, truth))
    assert np.mean(gains) > (0.25 if apart == 30.0 else -0.005)


def scores_of(learned: FewShot, features: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    logits = math.exp(scale) * learned.head(features).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def test_scores_stay_probabilities() -> None:
    surprise = []
    for seed in range(10):
        world = World(seed, 1.0, noise=1.2)
        learned = fit_few_shot(*world.pictures(8), world.labels)
        others, truth = world.pictures(200)
        scores = scores_of(learned, others, world.labels.logit_scale)
        surprise.append(scores.max(axis=1).mean() - accuracy(scores.astype(np.float32), truth))
        # what leave-one-out says is what other pictures show
        kept = fit_few_shot(*world.pictures(40), world.labels)
        assert log_losses(kept.scores, np.repeat(np.arange(LABELS), 40)).mean() == pytest.approx(
            log_losses(scores_of(kept, others, world.labels.logit_scale).astype(np.float32), truth).mean(), abs=0.15
        )
    assert abs(np.mean(surprise)) < 0.05


def test_zero_shot_is_kept_where_examples_teach_nothing_better() -> None:
    """The labels are drawn from the zero-shot scores, so that nothing can be better."""
    kept, losses = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        texts, examples, others = (unit(random.normal(size=(count, DIM))) for count in (LABELS, 40, 1000))
        labels = LabelFeatures(tuple("abcde"), texts, math.log(20.0))
        zero_shot = FewShot(LinearHead(texts, np.zeros(LABELS, np.float32)), True, texts, examples, examples)
        drawn = [
            (
                scores_of(zero_shot, pictures, labels.logit_scale).cumsum(axis=1) > random.random((len(pictures), 1))
            ).argmax(axis=1)
            for pictures in (examples, others)
        ]
        learned = fit_few_shot(examples, drawn[0], labels)
        kept.append(learned.is_zero_shot)
        before, after = (
            log_losses(scores_of(one, others, labels.logit_scale).astype(np.float32), drawn[1]).mean()
            for one in (zero_shot, learned)
        )
        losses.append(after - before)
    assert np.mean(kept) >= 0.5 and np.mean(losses) < 0.05, (kept, losses)


@pytest.mark.parametrize("each", [1, 4, 16])
def test_labels_without_examples_keep_their_places(each: int) -> None:
    before, after = [], []
    for seed in range(10):
        world = World(seed, 0.5)
        learned = fit_few_shot(*world.pictures(each, shown=3), world.labels)
        others, truth = world.pictures(100)
        hidden = truth >= 3
        before.append(accuracy(others @ world.labels.features.T, truth))
        after.append(accuracy(learned.head(others)[hidden], truth[hidden]))
    assert np.mean(after) > np.mean(before) - 0.05


def test_labels_with_the_same_words_are_told_apart() -> None:
    world = World(3)
    same = replace(world.labels, features=np.repeat(world.labels.features[:1], LABELS, axis=0))
    learned = fit_few_shot(*world.pictures(16), same)
    others, truth = world.pictures(100)
    assert accuracy(learned.head(others), truth) > 0.9 > 0.3 > accuracy(others @ same.features.T, truth)


def test_features_of_one_point_a_label_are_no_trouble() -> None:
    world = World(4)
    points, truth = unit(world.directions), np.arange(LABELS)
    learned = fit_few_shot(np.repeat(points, 3, axis=0), np.repeat(truth, 3), world.labels)
    assert np.isfinite(learned.head.weights).all() and accuracy(learned.head(points), truth) == 1.0

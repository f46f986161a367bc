"""Learn from a few examples what the words of labels miss: in closed form, with leave-one-out answers. NumPy only.

Each label is a Gaussian in the space of image features, all with one covariance, so that the log-likelihood ratios are
linear in the features (linear discriminant analysis, which Wang et al. 2024, https://arxiv.org/abs/2402.04087, found
hard to beat for CLIP). A label's mean is that of its examples, drawn towards where its words lie: words are a prior
that counts as much as some examples. The logits are a sum of the zero-shot ones and these, with factors that minimise
the log loss of leave-one-out answers. Zero-shot alone is kept where that does better, or answers all examples right.

Tried on the same features and left out, since it wasn't better: class means without a covariance, ridge regression
around the zero-shot function, a covariance of unlabelled pictures where each label has one example.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcls.predict.ranking import Array, Flags, Indices, LabelFeatures, LinearHead, similarities

Exact = NDArray[np.float64]

# the factors of the zero-shot and the taught logits before examples are looked at, the latter scaled to the spread of
# the former; and how much examples must say to move them; chosen on photographs and drawings, see examples/teaching
_FACTORS = (1.0, 0.5)
_FIRMNESS = 3.0
# as many examples as words may count for, and do where each label has one example, which tells no spread
_LEAST_PRIOR, _MOST_PRIOR, _LONE_PRIOR = 0.5, 64.0, 16.0
# the factors rest on so many examples at most, and so many logits are in memory at once
_MOST_EXAMPLES = 4096
_CELLS = 2**22


@dataclass(frozen=True, slots=True)
class FewShot:
    """What examples taught, and how well it did on each of them with the others alone.

    Attributes:
        head: the function that replaces cosines.
        is_zero_shot: whether the zero-shot function was kept, with another temperature.
        prototypes: (n_labels, embed_dim) float32, L2-normalised: where the labels' pictures are among texts.
        scores: (n, n_labels) float32, the softmax of each example's logits, as taught by the others.
        zero_shot: (n, n_labels) float32, the cosines.
    """

    head: LinearHead
    is_zero_shot: bool
    prototypes: Array
    scores: Array
    zero_shot: Array


def fit_few_shot(image_features: Array, truth: Indices, labels: LabelFeatures) -> FewShot:
    """Learn from examples of two labels or more; labels without examples keep their places by their words.

    Args:
        image_features: (n, embed_dim) float32, L2-normalised, not all equal.
        truth: (n,) int64, the index of each example's label.
        labels: embedded.
    """
    scale = float(np.exp(labels.logit_scale))
    cosines = similarities(image_features, labels.features)
    gaussians = _Gaussians.fit(image_features.astype(np.float64), truth, labels.features.astype(np.float64))
    taught = gaussians.leave_one_out()
    # where words tell labels apart little, the taught logits aren't to be as narrow
    spread = max(_spread(cosines) * scale, 1.0) / (_spread(taught) or 1.0)

    chosen = np.random.default_rng(0).permutation(len(truth))[:_MOST_EXAMPLES]
    parts = [scale * cosines[chosen].astype(np.float64), spread * taught[chosen].astype(np.float64)]
    both = _factors(parts, truth[chosen], _FACTORS)
    alone = (*_factors(parts[:1], truth[chosen], _FACTORS[:1]), 0.0)
    candidates = [_softmax(np.float32(a * scale) * cosines + np.float32(b * spread) * taught) for a, b in (alone, both)]
    # examples that show no mistake only make answers surer
    is_zero_shot = bool((cosines.argmax(axis=1) == truth).all())
    is_zero_shot |= bool(log_losses(candidates[0], truth).mean() <= log_losses(candidates[1], truth).mean())

    (of_words, of_examples), scores = (alone, candidates[0]) if is_zero_shot else (both, candidates[1])
    of_examples *= spread / scale
    weights = of_words * labels.features + of_examples * gaussians.weights
    bias = of_examples * gaussians.bias
    # the softmax is the same whatever all labels have in common
    head = LinearHead((weights - weights.mean(axis=0)).astype(np.float32), (bias - bias.mean()).astype(np.float32))
    return FewShot(head, is_zero_shot, gaussians.among_texts(labels.features), scores, cosines)


def log_losses(scores: Array, truth: Indices) -> Exact:
    """Return the log loss of each example, (n,)."""
    given = scores[np.arange(len(truth)), truth].astype(np.float64)
    losses: Exact = -np.log(np.maximum(given, np.finfo(np.float32).tiny))
    return losses


# ---------------------------------------------------------------------------------------------------------
# The Gaussians


@dataclass(frozen=True, slots=True)
class _Gaussians:
    """Labels as Gaussians of one covariance; features and means are without the mean of the labels' means.

    Attributes:
        features: (n, embed_dim), of the examples.
        truth: (n,) int64.
        counts: (n_labels,), of examples.
        own_means: (n_labels, embed_dim), of the examples alone; zeros for a label without any.
        by_words: (n_labels, embed_dim), where words alone would have the means.
        prior: how many examples the words count for.
        precision: (embed_dim, embed_dim), the inverse of the covariance.
        shrinkage: the share of the covariance that is the same in all directions.
        centre: (embed_dim,), what was taken off.
    """

    features: Exact
    truth: Indices
    counts: Exact
    own_means: Exact
    by_words: Exact
    prior: float
    precision: Exact
    shrinkage: float
    centre: Exact

    @classmethod
    def fit(cls, features: Exact, truth: Indices, texts: Exact) -> "_Gaussians":
        """Estimate them from examples and the features of the labels' texts, (n_labels, embed_dim)."""
        n_labels, embed_dim = texts.shape
        counts = np.bincount(truth, minlength=n_labels).astype(np.float64)
        has = counts > 0
        sums = np.zeros((n_labels, embed_dim))
        np.add.at(sums, truth, features)
        centre = (sums[has] / counts[has, None]).mean(axis=0)
        features = features - centre
        own_means = np.where(has[:, None], sums / np.maximum(counts, 1)[:, None] - centre, 0.0)

        # pictures lie elsewhere than texts, and spread less: what fits the labels that have both
        texts = texts - texts[has].mean(axis=0)
        by_words = max((own_means * texts)[has].sum() / max((texts[has] ** 2).sum(), 1e-12), 0.0) * texts

        deviations = features - own_means[truth]
        freedom = len(truth) - int(has.sum())
        prior = _LONE_PRIOR
        if freedom and deviations.any():
            # empirical Bayes: the words count for less, the further they lie from the means of the examples
            variance = (deviations**2).sum() / freedom
            distance = ((own_means - by_words)[has] ** 2).sum(axis=1) - variance / counts[has]
            prior = float(np.clip(variance / max(distance.mean(), 1e-12), _LEAST_PRIOR, _MOST_PRIOR))
            covariance = deviations.T @ deviations / freedom
            # Kubokawa and Srivastava 2008, as in Wang et al. 2024
            shrinkage = embed_dim / (freedom + embed_dim)
        else:
            covariance, shrinkage = np.diag(np.full(embed_dim, (features**2).mean())), 1.0
        round_part = np.trace(covariance) / embed_dim * np.eye(embed_dim)
        precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * round_part)
        return cls(features, truth, counts, own_means, by_words, prior, precision, shrinkage, centre)

    @property
    def means(self) -> Exact:
        """(n_labels, embed_dim): words and examples together."""
        total = (self.prior + self.counts)[:, None]
        means: Exact = (self.prior * self.by_words + self.counts[:, None] * self.own_means) / total
        return means

    def among_texts(self, texts: Array) -> Array:
        """Return the labels' texts, drawn towards their examples, (n_labels, embed_dim) float32, L2-normalised.

        The means of the examples are moved to the texts' mean, and spread as the texts are.
        """
        has, mean = self.counts > 0, texts.mean(axis=0)
        lengths = [np.linalg.norm(vectors, axis=1).mean() for vectors in (texts - mean, self.own_means[has])]
        pictures = mean + self.own_means * (lengths[0] / max(lengths[1], 1e-12))
        found = (self.prior * texts + self.counts[:, None] * pictures) / (self.prior + self.counts)[:, None]
        among: Array = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        return among

    @property
    def weights(self) -> Exact:
        """(n_labels, embed_dim), of the features as they are."""
        return self.means @ self.precision

    @property
    def bias(self) -> Exact:
        """(n_labels,), of the features as they are."""
        bias: Exact = self._constants() - self.weights @ self.centre
        return bias + self.advantage

    def _constants(self) -> Exact:
        means = self.means
        constants: Exact = -0.5 * ((means @ self.precision) * means).sum(axis=1)
        return constants

    @property
    def advantage(self) -> Exact:
        """(n_labels,): what labels without examples are given, since means that are drawn to words lie too near.

        It is what examples lose, on average, where their label's words alone stand for it.
        """
        if self.counts.all():
            return np.zeros(len(self.counts))
        directions = self.by_words @ self.precision
        constants = -0.5 * (directions * self.by_words).sum(axis=1)
        by_words = (self.features * directions[self.truth]).sum(axis=1) + constants[self.truth]
        own = np.concatenate([values[np.arange(len(rows)), self.truth[rows]] for rows, values in self._leave_one_out()])
        return np.where(self.counts == 0, (own - by_words).mean(), 0.0)

    def leave_one_out(self) -> Array:
        """Return the log-likelihood of each example but for a constant, as the others taught it, (n, n_labels) float32.

        Each example is taken out of its label's mean and out of the covariance (Sherman-Morrison); how far words are
        trusted is kept.
        """
        found = np.concatenate([values.astype(np.float32) for _, values in self._leave_one_out()])
        return found + self.advantage.astype(np.float32)

    def _leave_one_out(self) -> Iterator[tuple[Indices, Exact]]:
        means, constants = self.means, self._constants()
        weights = means @ self.precision
        freedom = max(len(self.truth) - int((self.counts > 0).sum()), 1)
        step = max(1, _CELLS // len(means))
        for rows in np.split(np.arange(len(self.truth)), range(step, len(self.truth), step)):
            features, label = self.features[rows], self.truth[rows]
            count = self.counts[label]
            deviations = features - self.own_means[label]
            turned = deviations @ self.precision
            share = np.where(count > 1, count / np.maximum(count - 1, 1) * (1 - self.shrinkage) / freedom, 0.0)
            gain = share / np.maximum(1 - share * (turned * deviations).sum(axis=1), 1e-6)
            along = gain * (features * turned).sum(axis=1)
            of_means = turned @ means.T  # (n, n_labels)
            values = features @ weights.T + constants + along[:, None] * of_means - 0.5 * gain[:, None] * of_means**2
            # its own label, without it
            total = (self.prior + count)[:, None]
            without = (total * means[label] - features) / (total - 1 + 1e-12)
            of_without = (turned * without).sum(axis=1)
            own = ((features - 0.5 * without) @ self.precision * without).sum(axis=1)
            values[np.arange(len(rows)), label] = own + along * of_without - 0.5 * gain * of_without**2
            yield rows, values


# ---------------------------------------------------------------------------------------------------------
# The blend


def _spread(values: Array) -> float:
    return float((values - values.mean(axis=1, keepdims=True)).std())


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def _factors(parts: Sequence[Exact], truth: Indices, expected: Sequence[float]) -> tuple[float, ...]:
    """Return the factors, none below 0, of which the sum of logits has the least log loss: Newton's method.

    Args:
        parts: of the logits, (n, n_labels) each.
        expected: what the factors are drawn to.
    """
    stacked = np.stack(parts)
    at, start = np.arange(len(truth)), np.array(expected)

    def loss(factors: Exact) -> float:
        logits = np.tensordot(factors, stacked, 1)
        highest = logits.max(axis=1)
        sums = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
        return float((sums - logits[at, truth]).sum() + _FIRMNESS * ((factors / start - 1) ** 2).sum())

    factors, least = start, loss(start)
    for _ in range(50):
        shares = _softmax(np.tensordot(factors, stacked, 1))
        expectations = (shares * stacked).sum(axis=2)  # (n_parts, n)
        slope = (expectations - stacked[:, at, truth]).sum(axis=1) + 2 * _FIRMNESS * (factors / start - 1) / start
        curvature = np.einsum("anl,bnl,nl->ab", stacked, stacked, shares) - expectations @ expectations.T
        curvature += np.diag(2 * _FIRMNESS / start**2)
        free: Flags = (factors > 0) | (slope < 0)
        step = np.zeros_like(factors)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        tried = [np.maximum(factors - step / 2**halvings, 0.0) for halvings in range(20)]
        better = next(((candidate, value) for candidate in tried if (value := loss(candidate)) < least - 1e-9), None)
        if better is None:
            break
        factors, least = better
    return tuple(factors.tolist())

"""Choose the pictures that are most worth labelling by hand."""

from collections.abc import Sequence

import numpy as np

from clipcls.errors import UsageError
from clipcls.predict.classifier import Classifier
from clipcls.predict.pool import PicturePool
from clipcls.predict.ranking import Array, Indices, Scoring, rank, scores
from clipcls.predict.taught import absolute_path
from clipcls.records import Label, Prediction

# of more pictures a random sample of so many is looked at, unless more are wanted
_MOST_CANDIDATES = 10_000
_ROUNDS = 10
_BLOCK = 4096


def suggest(classifier: Classifier, pool: PicturePool, count: int) -> list[Prediction]:
    """Return the pictures that a label would teach the most, the most worth first, with their present answers.

    Pictures are grouped into as many clusters as are wanted, in which those weigh more whose best two labels are near
    to one another, and the one nearest to each cluster's mean is returned (as Prabhu et al. 2021,
    https://arxiv.org/abs/2010.08666, do with the entropy). So they are unsure, differ, and are typical of others. Those
    of the least margin, spread by k-centre or not, taught less than random ones where zero-shot answers were poor.

    Args:
        classifier: with two labels or more; the examples that taught it aren't returned.
        count: how many pictures, at most.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: the labels can't be used.
    """
    require_choice(classifier.labels)
    candidates = _candidates(classifier, pool, count)
    if not candidates.size:
        return []
    labels, kind = classifier.label_features, classifier.scoring.score_kind
    features = pool.rows(candidates).astype(np.float32)
    blocks = [features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK)]
    best_two = np.concatenate([np.partition(scores(block, labels, kind)[1], -2)[:, -2:] for block in blocks])
    doubts = 1 - (best_two[:, 1] - best_two[:, 0])
    if classifier.taught is None:
        # words may say little of the pictures, and so may their margins
        doubts += doubts.mean()
    chosen = _typical(features, np.maximum(doubts, 1e-6), min(count, len(features)))
    cosines, found = scores(features[chosen], labels, kind)
    scoring = Scoring(kind.name, top_k=len(labels.names))
    return [
        rank(pool.paths[candidates[place]], cosines[row], found[row], labels.names, scoring)
        for row, place in enumerate(chosen)
    ]


def require_choice(labels: Sequence[Label]) -> None:
    """Check that there are two labels or more, between which a classifier can be unsure.

    Raises:
        UsageError: there is one.
    """
    if len(labels) < 2:
        raise UsageError("Suggestions are the pictures that might be one label or another: give two labels or more.")


def _candidates(classifier: Classifier, pool: PicturePool, count: int) -> Indices:
    """Return the indices of the pictures to choose among."""
    examples = set() if classifier.taught is None else set(classifier.taught.origin.paths)
    rest = [i for i, path in enumerate(pool.paths) if not examples or absolute_path(path) not in examples]
    random = np.random.default_rng(0)
    return np.sort(random.permutation(np.array(rest, dtype=np.int64))[: max(count, _MOST_CANDIDATES)])


def _typical(features: Array, weights: Array, count: int) -> Indices:
    """Return the indices of the pictures nearest to the means of weighted clusters, those of the heaviest first.

    Args:
        features: (n, embed_dim), L2-normalised.
        weights: (n,), above 0.
        count: at most n.
    """
    centres: Array = features[_far_apart(features, weights, count)]
    weighted = features * weights[:, None]
    for _ in range(_ROUNDS):
        own = _nearest(features, centres)
        order = np.argsort(own, kind="stable")
        starts = np.flatnonzero(np.diff(own[order], prepend=-1))  # of the clusters that aren't empty
        totals = np.add.reduceat(weights[order], starts)
        centres = (np.add.reduceat(weighted[order], starts) / totals[:, None]).astype(np.float32)
    own = _nearest(features, centres)
    distances = ((features - centres[own]) ** 2).sum(axis=1)
    order = np.lexsort((distances, own))
    starts = np.flatnonzero(np.diff(own[order], prepend=-1))
    heaviest = np.argsort(-np.add.reduceat(weights[order], starts), kind="stable")
    chosen = order[starts][heaviest]
    # equal pictures make fewer clusters
    others = np.setdiff1d(np.argsort(-weights, kind="stable"), chosen, assume_unique=True)
    return np.concatenate([chosen, others])[:count]


def _far_apart(features: Array, weights: Array, count: int) -> Indices:
    """Return the indices of pictures drawn by weight and by distance from those before.

    Source: k-means++, Arthur and Vassilvitskii 2007, https://dl.acm.org/doi/10.5555/1283383.1283494
    """
    random = np.random.default_rng(0)
    chances, nearest = weights.astype(np.float64), np.full(len(features), np.inf, dtype=np.float32)
    chosen: list[int] = []
    while len(chosen) < count and chances.any():
        chosen.append(int(random.choice(len(features), p=chances / chances.sum())))
        nearest = np.minimum(nearest, np.maximum(2 - 2 * (features @ features[chosen[-1]]), 0))
        nearest[chosen[-1]] = 0
        chances = weights * nearest
    return np.array(chosen, dtype=np.int64)


def _nearest(features: Array, centres: Array) -> Indices:
    """Return the index of the centre nearest to each picture, (n,)."""
    offsets = (centres**2).sum(axis=1)
    blocks = [features[start : start + _BLOCK] for start in range(0, len(features), _BLOCK)]
    return np.concatenate([(offsets - 2 * (block @ centres.T)).argmin(axis=1) for block in blocks])

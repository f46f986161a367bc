"""Choose the pictures that are most worth labelling by hand."""

from collections.abc import Sequence

import numpy as np

from clipcls.errors import UsageError
from clipcls.predict.classifier import Classifier
from clipcls.predict.pool import PicturePool
from clipcls.predict.ranking import Array, Indices, Scoring, rank, scores
from clipcls.records import Label, Prediction

# so many times as many pictures as are wanted are candidates, those with the least margins
_CANDIDATES = 10
_BLOCK = 4096


def suggest(classifier: Classifier, pool: PicturePool, count: int) -> list[Prediction]:
    """Return the pictures that a label would teach the most, the most worth first, with their present answers.

    Candidates are the pictures whose best two labels are the nearest to one another. Among them, each further one is
    the farthest from those before it (k-centre, greedily: Sener and Savarese 2018, https://arxiv.org/abs/1708.00489),
    since near ones would teach the same.

    Args:
        classifier: with two labels or more.
        count: how many pictures, at most.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: the labels can't be used.
    """
    require_choice(classifier.labels)
    labels, kind = classifier.label_features, classifier.scoring.score_kind
    margins = np.empty(len(pool), dtype=np.float32)
    for start in range(0, len(pool), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(pool)))
        _, found = scores(pool.rows(rows).astype(np.float32), labels, kind)
        best_two = np.partition(found, -2, axis=1)[:, -2:]
        margins[rows] = best_two[:, 1] - best_two[:, 0]
    candidates = np.argsort(margins, kind="stable")[: _CANDIDATES * count]
    features = pool.rows(candidates).astype(np.float32)
    chosen = _spread_out(features, min(count, len(candidates)))
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


def _spread_out(features: Array, count: int) -> Indices:
    """Return the indices of pictures far from one another, beginning with the first."""
    chosen = [0]
    nearest = features @ features[0]
    while len(chosen) < count:
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, features @ features[chosen[-1]])
    return np.array(chosen, dtype=np.int64)

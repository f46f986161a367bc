"""Measure how far the groups of what a search finds are from those of all that it searches. NumPy only.

Source: MaxSkew@k and NDKL of Geyik et al. 2019, https://arxiv.org/abs/1905.01989, as Berg et al. 2022,
https://arxiv.org/abs/2203.11933, use them for pictures found by texts; the share that a group should have is here its
share of all pictures.
"""

import numpy as np

from clipcls.evaluate.groups import Grouping
from clipcls.evaluate.metrics import Values
from clipcls.predict.ranking import Indices

#: The k of MaxSkew@k.
SKEWS = (10, 100)

_RANKINGS = 200  # at random, which the figures are compared with
_SEED = 0


def max_skew(ranked: Indices, shares: Values, k: int) -> Values:
    """Return the largest log of a group's share of the k best pictures by its share of all pictures.

    Args:
        ranked: (n_queries, n_images) int64, the group of each picture, the nearest first.
        shares: (n_groups,) float64, each group's share of all pictures.

    Returns:
        (n_queries,) float64; 0 where each group has its share.
    """
    counts = np.stack([(ranked[:, :k] == group).sum(axis=1) for group in range(len(shares))], axis=1)
    with np.errstate(divide="ignore"):  # a group without a picture has minus infinity, and is never the largest
        skews: Values = np.log(counts / k / shares).max(axis=1)
    return skews


def ndkl(ranked: Indices, shares: Values) -> Values:
    """Return the divergence of the groups' shares among the first pictures, averaged over all lengths of a list.

    The first places count most, as in a discounted cumulative gain.

    Args:
        ranked: see `max_skew`.
        shares: see `max_skew`.

    Returns:
        (n_queries,) float64, from 0.
    """
    lengths = np.arange(1, ranked.shape[1] + 1)
    divergence = np.zeros(ranked.shape)
    for group, share in enumerate(shares):
        found = np.cumsum(ranked == group, axis=1) / lengths
        divergence += found * np.log(np.where(found > 0, found, 1) / share, where=found > 0, out=np.zeros(found.shape))
    weights = 1 / np.log2(lengths + 1)
    averaged: Values = divergence @ weights / weights.sum()
    return averaged


def group_figures(ranked: Indices, grouping: Grouping) -> dict[str, Values]:
    """Return the figures of each query, by name.

    Args:
        ranked: (n_queries, n_images) int64, the pictures, the nearest first.
    """
    groups, shares = grouping.indices[ranked], grouping.sizes / len(grouping.indices)
    by = f"by {' & '.join(grouping.columns)}"
    # among the best k of k pictures each group has its share
    figures = {f"MaxSkew@{k} {by}": max_skew(groups, shares, k) for k in SKEWS if k < ranked.shape[1]}
    return figures | {f"NDKL {by}": ndkl(groups, shares)}


def by_chance(grouping: Grouping) -> dict[str, float]:
    """Return the mean figures of searches that rank at random, by name; they aren't 0 either."""
    random = np.random.default_rng(_SEED)
    count = len(grouping.indices)
    drawn = [group_figures(random.permutation(count)[None], grouping) for _ in range(_RANKINGS)]
    return {name: float(np.mean([figures[name] for figures in drawn])) for name in drawn[0]}

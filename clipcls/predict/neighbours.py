"""Find each picture's nearest pictures by their features, exactly and in bounded memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# rows of features that are multiplied with as many others at a time
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of pictures, each once, the nearest first.

    Attributes:
        first: (n_pairs,) indices, each smaller than the second.
        second: (n_pairs,) indices.
        cosines: (n_pairs,) float32.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def at_least(self, cosine: float) -> "NearPairs":
        """Return the pairs that are at least as near."""
        near = self.cosines >= cosine
        return NearPairs(self.first[near], self.second[near], self.cosines[near])


def near_pairs(features: NDArray[np.float32], least: float, most: int) -> NearPairs:
    """Return each picture with its nearest others.

    Args:
        features: (n_pictures, embed_dim), L2-normalised.
        least: the lowest cosine of a pair.
        most: how many others of each picture; where several are equally near, those that come first.
    """
    nearest = _Nearest(len(features), most)
    starts = range(0, len(features), _BLOCK)
    for row in starts:
        for column in range(row, len(features), _BLOCK):
            cosines = features[row : row + _BLOCK] @ features[column : column + _BLOCK].T
            if row == column:
                np.fill_diagonal(cosines, -2.0)
            ones, others = np.nonzero(cosines >= least)
            near = cosines[ones, others]
            nearest.add(ones + row, others + column, near)
            if row != column:
                nearest.add(others + column, ones + row, near)
    return nearest.pairs()


class _Nearest:
    """The nearest others of each picture that have been seen so far."""

    def __init__(self, count: int, most: int) -> None:
        # nearest first; -1 and -2 where there are fewer
        self._others = np.full((count, most), -1, dtype=np.int64)
        self._cosines = np.full((count, most), -2.0, dtype=np.float32)

    def add(self, owners: NDArray[np.int64], others: NDArray[np.int64], cosines: NDArray[np.float32]) -> None:
        """Look at pairs: the others may be among the nearest of their owners."""
        nearer = cosines >= self._cosines[owners, -1]
        owners, others, cosines = owners[nearer], others[nearer], cosines[nearer]
        if not len(owners):
            return
        touched = np.unique(owners)
        known = self._others.shape[1]
        owners = np.concatenate([np.repeat(touched, known), owners])
        others = np.concatenate([self._others[touched].ravel(), others])
        cosines = np.concatenate([self._cosines[touched].ravel(), cosines])
        order = np.lexsort((others, -cosines, owners))
        # each owner has at least as many as were known
        best = order[np.searchsorted(owners[order], touched)[:, None] + np.arange(known)]
        self._others[touched] = others[best]
        self._cosines[touched] = cosines[best]

    def pairs(self) -> NearPairs:
        """Return each pair once, also where only one of the two has the other among its nearest."""
        count, most = self._others.shape
        owners = np.repeat(np.arange(count), most)
        others, cosines = self._others.ravel(), self._cosines.ravel()
        real = others >= 0
        low, high = np.minimum(owners, others)[real], np.maximum(owners, others)[real]
        _, places = np.unique(low * count + high, return_index=True)
        first, second, near = low[places], high[places], cosines[real][places]
        order = np.lexsort((second, first, -near))
        return NearPairs(first[order], second[order], near[order])

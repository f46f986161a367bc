"""Find labels that a model can hardly tell apart, and words that may mean the same as others."""

from dataclasses import dataclass

import numpy as np

from clipcls.predict.ranking import Array, Flags

# labels whose features have at least this cosine are called nearly the same; chosen, not measured, since how near
# labels come differs from model to model
NEARLY_SAME = 0.97
# words and texts whose features without the words' mean have at least this cosine may mean the same; chosen on
# photographs, see examples/labels and examples/search
MAY_MEAN_THE_SAME = 0.5
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Pair:
    """Two labels, by their indices, and the cosine of their features."""

    first: int
    second: int
    cosine: float


def means_nearly(words: Array, texts: Array) -> Flags:
    """Tell of each word whether it may mean what one of some texts means: both are alike without the words' mean.

    Args:
        words: (n_words, embed_dim) float32, L2-normalised.
        texts: (n_texts, embed_dim) float32, L2-normalised.

    Returns:
        (n_words,).
    """
    if not len(words):
        return np.zeros(0, np.bool_)
    mean = words.mean(axis=0)
    directions = _unit(texts - mean).T
    blocks = [_unit(words[start : start + _BLOCK] - mean) @ directions for start in range(0, len(words), _BLOCK)]
    return np.concatenate([(block >= MAY_MEAN_THE_SAME).any(axis=1) for block in blocks])


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1.0, lengths)).astype(np.float32, copy=False)


def nearest_pairs(features: Array, most: int) -> tuple[list[Pair], int]:
    """Return up to `most` nearest pairs of labels, nearest first, and the number of pairs at NEARLY_SAME or above."""
    found: list[Pair] = []
    nearly_same = 0
    for start in range(0, len(features), _BLOCK):
        cosines = features[start : start + _BLOCK] @ features.T  # (block, n_labels)
        # each pair once, no label with itself
        cosines[np.tri(len(cosines), len(features), start, dtype=np.bool_)] = -2.0
        nearly_same += int((cosines >= NEARLY_SAME).sum())
        flat = cosines.ravel()
        best = np.argpartition(-flat, min(most, flat.size - 1))[:most]
        rows, columns = np.unravel_index(best, cosines.shape)
        found += [
            Pair(start + int(row), int(column), float(cosines[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if cosines[row, column] > -2.0
        ]
    return sorted(found, key=lambda pair: -pair.cosine)[:most], nearly_same

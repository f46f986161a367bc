"""Finds the length that a batch of texts is cut to. Imports no torch."""

import numpy as np
from numpy.typing import NDArray

# so that kernels see few different lengths
_STEP = 8


def cut_length(tokens: NDArray[np.int64], end_token: int | None) -> int:
    """Return the length that holds the longest text, or a little more.

    Args:
        tokens: `(n_texts, context_length) int64`.
        end_token: the token that a text ends with; None where it is the text's greatest one.
    """
    if not len(tokens):
        return int(tokens.shape[1])
    ends = tokens.argmax(axis=1) if end_token is None else (tokens == end_token).argmax(axis=1)
    return -(-(int(ends.max()) + 1) // _STEP) * _STEP

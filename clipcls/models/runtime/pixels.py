"""Normalises pixels with NumPy, to the very numbers that torch gets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipcls.records import Preprocessing


def normalised_pixels(
    pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], preprocess: Preprocessing
) -> NDArray[np.float32]:
    """Return (n, height, width, 3) float32 of as many pictures of (height, width, 3) uint8."""
    height, width = preprocess.size
    # for a whole row, since short arrays are slow to broadcast
    mean, std = (np.tile(np.array(values, dtype=np.float32), width) for values in (preprocess.mean, preprocess.std))
    batch = np.empty((len(pixels), height, width * 3), dtype=np.float32)
    for picture, target in zip(pixels, batch, strict=True):
        # open_clip's own order of operations, so that the numbers are equal bit for bit
        np.divide(picture.reshape(height, width * 3), np.float32(255), out=target)
        np.subtract(target, mean, out=target)
        np.divide(target, std, out=target)
    return batch.reshape(len(pixels), height, width, 3)

"""Batches that fit into the device's memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import OutOfMemoryError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Batches(Generic[_T]):
    """Encodes items in batches, in smaller ones once the device's memory has run out.

    Attributes:
        size: the number of items in a batch.
    """

    def __init__(self, encode: Callable[[Sequence[_T]], NDArray[np.float32]], size: int) -> None:
        self._encode = encode
        self.size = size
        self._asked = size

    def encode(self, items: Sequence[_T]) -> NDArray[np.float32]:
        """Return the features of all items, in their order, (n_items, embed_dim) float32.

        Raises:
            OutOfMemoryError: not even one item fits.
        """
        parts: list[NDArray[np.float32]] = []
        done = 0
        while done < len(items):
            part = items[done : done + self.size]
            try:
                parts.append(self._encode(part))
            except OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.size = len(part) // 2
                continue
            done += len(part)
            if self.size < self._asked:
                logger.warning("out of memory at %d in a batch: it goes on with %d", self._asked, self.size)
                self._asked = self.size
        return np.concatenate(parts)

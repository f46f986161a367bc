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
    """Puts items through a model, so many at a time; fewer from where the device's memory ran out.

    Attributes:
        size: how many at a time.
    """

    def __init__(self, encode: Callable[[Sequence[_T]], NDArray[np.float32]], size: int) -> None:
        self._encode = encode
        self.size = size
        self._asked = size

    def encode(self, items: Sequence[_T]) -> NDArray[np.float32]:
        """Features of all items, in their order: (n_items, embed_dim) float32.

        Raises:
            OutOfMemoryError: even one at a time doesn't fit.
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

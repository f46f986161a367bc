"""Embed all pictures of a data set, and note which of them can't be read."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.inputs.discover import exists
from clipcls.records import ImageRef


class Pictures:
    """The pictures of a data set; one that a model can't read is left out for all models.

    Attributes:
        failed: why a picture can't be read, by its index in `images`.

    Raises:
        UsageError: none of them is there, which is said before a model is downloaded.
    """

    def __init__(self, images: Sequence[ImageRef], watch: Watch | None = None) -> None:
        self.failed: dict[int, str] = {}
        self._images = images
        self._watch = watch or Watch()
        self._done = 0
        if not any(map(exists, images)):
            raise _none_readable((images[0].path, images[0].error or "no such file or directory") if images else None)

    @property
    def count(self) -> int:
        """How many there are, those that can't be read included."""
        return len(self._images)

    def embed(self, session: Session) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Embed the pictures batch by batch.

        Yields:
            The indices of the pictures that could be read, (n_good,) int64, and their features, (n_good, embed_dim)
            float32, L2-normalised.
        """
        first = 0
        for batch in embed_images(self._images, session):
            errors = {first + row: error for row, error in enumerate(batch.errors) if error is not None}
            for place in errors.keys() - self.failed.keys():
                self._watch.failed(self._images[place].path, errors[place])
            self.failed |= errors
            last = first + len(batch.images)
            yield np.array([place for place in range(first, last) if place not in errors], np.int64), batch.features
            first, self._done = last, self._done + len(batch.images)
            self._watch.images(self._done, len(self.failed))

    def good(self) -> NDArray[np.bool_]:
        """Return which pictures every model could read, (n,) bool.

        Raises:
            UsageError: no picture can be read.
        """
        good = np.ones(len(self._images), dtype=bool)
        good[list(self.failed)] = False
        if not good.any():
            raise _none_readable(self.failures()[0])
        return good

    def failures(self) -> tuple[tuple[str, str], ...]:
        """Return path and error of each picture that can't be read, in input order."""
        return tuple((self._images[place].path, error) for place, error in sorted(self.failed.items()))


def _none_readable(first: tuple[str, str] | None) -> UsageError:
    return UsageError(f"No picture can be read. The first: {': '.join(first) if first else 'there is none'}")

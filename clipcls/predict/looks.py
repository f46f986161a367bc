"""Read pictures again, to see how they look."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from clipcls.embed.execution import Execution
from clipcls.errors import ImageError
from clipcls.images.comparison import Outline, Thumbnail, compare, outline, read_thumbnail
from clipcls.images.sharpness import sharpness
from clipcls.inputs.contents import located, open_content
from clipcls.inputs.open_file import reading
from clipcls.records import ImageRef

logger = logging.getLogger(__name__)

# kept in memory, of 192 KiB each
_THUMBNAILS = 512


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture looks at a glance.

    Attributes:
        size: width and height in pixels.
    """

    size: tuple[int, int]
    outline: Outline


class Reader:
    """Reads pictures, which it is told by their places in a list; threads may share one.

    Args:
        execution: the limits on pictures, and what fetches them.
    """

    def __init__(self, images: Sequence[ImageRef], execution: Execution) -> None:
        self._images = images
        self._execution = execution
        self._thumbnail = lru_cache(_THUMBNAILS)(self._read_thumbnail)

    def digest(self, image: ImageRef) -> bytes | ImageError:
        """Return the SHA-256 of a file's bytes, or why it can't be read; the file needn't be in the list."""
        if image.error is not None:
            return ImageError(image.error)
        try:
            with self._open(image) as file, reading():
                return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
        except ImageError as exc:
            return exc

    def look(self, place: int) -> Look | None:
        """Return how a picture looks; None where it can't be read any more."""
        thumbnail = self._thumbnail(place)
        return None if thumbnail is None else Look(thumbnail.size, outline(thumbnail))

    def unlikeness(self, one: int, other: int) -> float | None:
        """Return how much the pixels of two pictures differ where one is a copy of the other, else None."""
        first, second = self._thumbnail(one), self._thumbnail(other)
        difference = None if first is None or second is None else compare(first, second)
        return None if difference is None or not difference.is_copy else difference.detail

    def sharpness(self, place: int) -> float:
        """Return how sharp a picture is; 0 where it can't be read any more."""
        try:
            with self._open(self._images[place]) as file:
                return sharpness(file, self._execution.max_pixels)
        except ImageError as exc:
            self._warn(place, exc)
            return 0.0

    def _read_thumbnail(self, place: int) -> Thumbnail | None:
        try:
            with self._open(self._images[place]) as file:
                return read_thumbnail(file, self._execution.max_pixels)
        except ImageError as exc:
            self._warn(place, exc)
            return None

    @contextmanager
    def _open(self, image: ImageRef) -> Iterator[BinaryIO]:
        execution = self._execution
        with open_content(located(image), execution.max_bytes, execution.web) as opened:
            yield opened.file

    def _warn(self, place: int, exc: ImageError) -> None:
        logger.warning("%s: can't be read again: %s", self._images[place].path, exc)

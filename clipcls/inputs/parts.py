"""Divide the inputs of a job into parts, each of which is a run of its own on any machine that sees them."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from clipcls.records import Container, ImageRef, InputPart, Listing


class Listed:
    """Receives all that the inputs of a job name, also what belongs to other parts.

    Attributes:
        first: the first of it; None if there is nothing.
        has_existing: whether any of it is there, as far as names tell.
    """

    def __init__(self) -> None:
        self.first: ImageRef | None = None
        self.has_existing = False
        self._count = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, image: ImageRef, exists: Callable[[ImageRef], bool]) -> None:
        """Take note of a picture or a container."""
        self.first = self.first or image
        self._count += 1
        self._digest.update(os.fsencode(image.path) + b"\0")
        self.has_existing = self.has_existing or exists(image)

    @property
    def listing(self) -> Listing:
        """What was listed so far."""
        return Listing(self._count, self._digest.hexdigest())


def numbered_share(images: Iterable[ImageRef], part: InputPart) -> Iterator[tuple[ImageRef, bool]]:
    """Yield all pictures and containers with their index, and whether each belongs to a part.

    A picture belongs to the part that a hash of its path gives, 64 bits of BLAKE2b, and so stays there when others
    come. Containers, which are few and large, are dealt out in turn; all that one holds belongs to one part.
    """
    containers = 0
    for index, image in enumerate(images):
        if isinstance(image.content, Container):
            number = containers
            containers += 1
        else:
            number = int.from_bytes(hashlib.blake2b(os.fsencode(image.path), digest_size=8).digest())
        yield replace(image, index=index), number % part.count == part.number - 1

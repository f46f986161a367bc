"""Read one picture: its features where the cache has its content, else the pixels that the model takes."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.execution import Execution
from clipcls.embed.frames import AnnouncedFrame, pixels_digest
from clipcls.embed.session import Session
from clipcls.images.decoding import DECODER_VERSION, decode_picture
from clipcls.images.fit import fit, load_pixels
from clipcls.images.frames import read_frame
from clipcls.images.geometry import Picture
from clipcls.images.pillow_errors import pillow_errors
from clipcls.inputs.contents import known_path, known_stamp, located, open_content
from clipcls.records import Decode, FileStamp, Frame, ImageRef, ModelFacts

# a file up to this size is read once, hashed and decoded in memory
_WHOLE_BYTES = 2**28

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReadImage:
    """The result of reading a picture: its pixels, or its features if the cache has its content.

    Attributes:
        pixels: (height, width, 3) uint8, as the model takes them.
        features: (embed_dim,) float32, L2-normalised.
        content: SHA-256 of the file's bytes; empty without a cache.
        seen: when the stamp was taken, in Unix seconds.
    """

    pixels: NDArray[np.uint8] | None = None
    features: Features | None = None
    content: bytes = b""
    stamp: FileStamp | None = None
    seen: float | None = None

    def entry(self, image: ImageRef, features: Features | None) -> CachedImage:
        """Return what the cache is to keep: of a picture whose content it has, only the path is new."""
        new = None if self.pixels is None else features
        return CachedImage(known_path(image), self.stamp, self.content, new, self.seen)


class ImageReader:
    """Reads pictures for a session's model; its methods are safe to call from many threads."""

    def __init__(self, session: Session) -> None:
        self._facts = session.facts
        self._cache = session.cache
        self._execution = session.execution
        self._space = image_space(session.facts, session.execution.decode)

    def find(self, images: Sequence[ImageRef]) -> list[Features | None]:
        """Return the features of images that the cache knows without opening them, None for the others."""
        if not self._cache.is_on:
            return [None] * len(images)
        paths, stamps = [known_path(image) for image in images], [known_stamp(image) for image in images]
        found = self._cache.find_images(paths, stamps, self._space)
        return [features if features is not None and self._fits(features) else None for features in found]

    def read(self, image: ImageRef) -> ReadImage:
        """Read an image that isn't a frame of a video.

        Raises:
            ImageError: it can't be read.
        """
        found = located(image)
        if found is not image:
            (features,) = self.find([found])
            if features is not None:
                return ReadImage(None, features)
        with open_content(found, self._execution.max_bytes, self._execution.web) as opened:
            if not self._cache.is_on:
                return ReadImage(self._pixels(opened.file))
            with pillow_errors("file"):
                source, content = _hashed(opened.file)
            features = self._cache.get_image(content, self._space)
            if features is not None and self._fits(features):
                return ReadImage(None, features, content, opened.stamp, opened.seen)
            return ReadImage(self._pixels(source), None, content, opened.stamp, opened.seen)

    def read_frame(self, announced: AnnouncedFrame) -> ReadImage:
        """Do what `read` does for a frame of a video, whose content is what was decoded."""
        seen = time.time()
        pixels = announced.read()
        if not self._cache.is_on:
            return ReadImage(_fitted(pixels, self._facts, self._execution))
        content = pixels_digest(pixels)
        features = self._cache.get_image(content, self._space)
        if features is not None and self._fits(features):
            return ReadImage(None, features, content, announced.frame.stamp, seen)
        fitted = _fitted(pixels, self._facts, self._execution)
        return ReadImage(fitted, None, content, announced.frame.stamp, seen)

    def keep(self, entries: Sequence[CachedImage]) -> None:
        """Put what is new into the cache."""
        if self._cache.is_on:
            self._cache.put_images([entry for entry in entries if entry.content], self._space)

    def _fits(self, features: Features) -> bool:
        return features.shape == (self._facts.embed_dim,)

    def _pixels(self, source: bytes | BinaryIO) -> NDArray[np.uint8]:
        execution = self._execution
        return load_pixels(source, self._facts.preprocess, execution.decode, execution.max_pixels)


def image_space(facts: ModelFacts, decode: Decode) -> bytes:
    """Return the SHA-256 of all that a picture's features depend on, besides its file."""
    parts = (facts.numbers, facts.device.split(":")[0], decode, str(DECODER_VERSION))
    return hashlib.sha256(facts.fingerprint + " ".join(parts).encode()).digest()


def read_pixels(image: ImageRef, facts: ModelFacts, execution: Execution) -> NDArray[np.uint8]:
    """Return a picture's pixels as the model takes them, (height, width, 3).

    Raises:
        ImageError: it can't be read.
    """
    return fit(read_picture(image, facts, execution), facts.preprocess, execution.decode)


def read_picture(image: ImageRef, facts: ModelFacts, execution: Execution) -> Picture:
    """Return a picture as it is decoded for a model, before it is fitted to its input.

    Raises:
        ImageError: it can't be read.
    """
    if isinstance(image.content, Frame):
        return _whole(read_frame(image.content, execution.max_pixels, execution.decode))
    with open_content(located(image), execution.max_bytes, execution.web) as opened:
        return decode_picture(opened.file, facts.preprocess, execution.decode, execution.max_pixels)


def _fitted(pixels: NDArray[np.uint8], facts: ModelFacts, execution: Execution) -> NDArray[np.uint8]:
    return fit(_whole(pixels), facts.preprocess, execution.decode)


def _whole(pixels: NDArray[np.uint8]) -> Picture:
    size = pixels.shape[1], pixels.shape[0]
    return Picture(pixels, size, size)


def _hashed(file: BinaryIO) -> tuple[bytes | BinaryIO, bytes]:
    """Return what to decode from, the file or its bytes if it isn't large, and the SHA-256 of its content."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > _WHOLE_BYTES:
        return file, hashlib.file_digest(cast("BufferedReader", file), "sha256").digest()
    data = file.read()
    return data, hashlib.sha256(data).digest()

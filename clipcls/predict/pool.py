"""The features of the pictures that are searched, and exact products with all of them in bounded memory."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import NOTICE, UsageError
from clipcls.inputs.discover import are_countable, discover
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.outputs.vectors.vector_format import StoredVectors, Vectors
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.ranking import Array
from clipcls.predict.run import RunReport, Tally, count, look_for_one, none_exists

logger = logging.getLogger(__name__)

Exact = NDArray[np.float64]
Indices = NDArray[np.int64]

# rows that are multiplied at once: about a MB, which stays in a processor's cache while it is converted
_PIECE_ROWS = 512
# of features that are kept in memory
_IN_MEMORY_BYTES = 2**28
# the square of a distance below which a picture counts as the mean itself
_NO_DISTANCE = 1e-4


@dataclass(frozen=True)
class PicturePool:
    """The pictures that are searched.

    Attributes:
        paths: of the pictures.
        blocks: arrays of (n, embed_dim) float32 or float16, L2-normalised, one after the other in the paths' order;
            they may be mapped from the disk.
    """

    paths: Sequence[str]
    blocks: tuple[Vectors, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def rows(self, indices: Indices) -> Exact:
        """Return the features of some pictures, (n, embed_dim)."""
        found = np.empty((len(indices), self.blocks[0].shape[1]), dtype=np.float64)
        start = 0
        for block in self.blocks:
            inside = (indices >= start) & (indices < start + len(block))
            found[inside] = block[indices[inside] - start]
            start += len(block)
        return found

    def products(self, vectors: Exact) -> Array:
        """Return the products of some vectors with all pictures.

        Args:
            vectors: (n_vectors, embed_dim).

        Returns:
            (n_vectors, n_pictures) float32.

        Raises:
            UsageError: features of a picture are no numbers.
        """
        narrow = vectors.astype(np.float32)
        products = np.empty((len(vectors), len(self)), dtype=np.float32)
        for start, piece in self._pieces():
            np.matmul(narrow, piece.T, out=products[:, start : start + len(piece)])
        if not np.isfinite(products).all():
            row = int(np.flatnonzero(~np.isfinite(products).all(axis=0))[0])
            raise UsageError(f"The features of {self.paths[row]} are no numbers; write them again.")
        return products

    @cached_property
    def mean(self) -> Exact:
        """The mean of all features, (embed_dim,)."""
        total = np.zeros(self.blocks[0].shape[1], dtype=np.float64)
        for _, piece in self._pieces():
            total += np.ones(len(piece), dtype=np.float32) @ piece
        return total / len(self)

    @cached_property
    def distances(self) -> Array:
        """The distance of each picture from the mean, (n_pictures,); infinite for those that are no further than
        rounding.
        """
        (products,) = self.products(self.mean[None])
        return _root(1.0 - 2.0 * products + np.float32(self.mean @ self.mean))

    def centred(self, indices: Indices) -> Exact:
        """Return the features of some pictures without the mean, at unit length, (n, embed_dim); zeros for those that
        are the mean.
        """
        rows = self.rows(indices) - self.mean
        lengths = _root((rows * rows).sum(axis=1))
        return rows / lengths[:, None]

    def _pieces(self) -> Iterator[tuple[int, Array]]:
        """Yield the features in pieces with the indices of their first pictures, (n, embed_dim) float32."""
        start = 0
        for block in self.blocks:
            for first in range(0, len(block), _PIECE_ROWS):
                piece = _as_float32(block[first : first + _PIECE_ROWS])
                yield start, piece
                start += len(piece)


def embed_pool(
    session: Session,
    sources: Sources,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> tuple[PicturePool, RunReport]:
    """Return the pictures of some sources, without those that can't be read.

    Beyond some hundred thousand pictures, features lie in a temporary file, and are mapped from there, so that memory
    doesn't grow with them.

    Args:
        limit: how many pictures may fail; any number by default.
        stop: called after every batch; once it returns True, the pool ends with the pictures that the model has begun.
        watch: told how far the run is.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: too many pictures failed.
        UsageError: there are no pictures, or none exists.
    """
    watch = watch or Watch()
    left_out = LeftOut(takes_videos=True)
    images, exist = look_for_one(discover(sources, left_out=left_out), sources, left_out)
    if not exist:
        raise none_exists(next(images))
    watch.begin((lambda: count(sources)) if are_countable(sources) else None, 0)
    tally = Tally(limit or ErrorLimit(), watch, (0, 0), can_resume=False)
    paths: list[str] = []
    blocks: list[Vectors] = []
    with tempfile.TemporaryFile() as file:
        for batch in embed_images(images, session, stop):
            failed = [(i.path, e) for i, e in zip(batch.images, batch.errors, strict=True) if e is not None]
            tally.add(len(batch.images), failed)
            if tally.exceeded:
                break
            if len(paths) * session.facts.embed_dim * 4 < _IN_MEMORY_BYTES:
                blocks.append(batch.features)
            else:
                batch.features.tofile(file)
            paths += [image.path for image, error in zip(batch.images, batch.errors, strict=True) if error is None]
        file.flush()
        if written := os.fstat(file.fileno()).st_size:
            rows = written // (4 * session.facts.embed_dim)
            blocks.append(np.memmap(file, dtype=np.float32, mode="r", shape=(rows, session.facts.embed_dim)))
    left_out.report(sources.names)
    return PicturePool(paths, tuple(blocks)), tally.report(sources, stop())


def stored_pool(stored: StoredVectors, name: str, session: Session) -> PicturePool:
    """Return the pictures whose features a file holds, once it is sure that the session's model made them.

    Args:
        name: the file's name, for messages.

    Raises:
        UsageError: another model made them, or they are features of texts.
    """
    origin, facts = stored.origin, session.facts
    widths = {block.shape[1] for block in stored.blocks}
    if origin is None:
        logger.log(NOTICE, "%s doesn't say what made it; it is taken to be model %s", name, session.name)
    elif origin.of != "images":
        raise UsageError(f"{name}: features of texts, where those of pictures were expected.")
    elif origin.fingerprint != session.fingerprint.hex():
        raise UsageError(
            f"{name} was made by model {origin.model} ({origin.fingerprint[:12]}), which {session.name} "
            f"({session.fingerprint.hex()[:12]}) isn't. Leave --model out, or write the features again."
        )
    if widths - {facts.embed_dim}:
        raise UsageError(f"{name}: features of {max(widths)} numbers; those of {session.name} have {facts.embed_dim}.")
    blocks = tuple(_normalised(block) for block in stored.blocks) if origin is None else stored.blocks
    return PicturePool(stored.keys, blocks)


def _as_float32(piece: Vectors) -> Array:
    """Return features in float32; looked up by their bits, float16 takes a third of NumPy's conversion."""
    if piece.dtype == np.float16:
        return _float32_by_bits().take(piece.view(np.uint16))
    return np.asarray(piece, dtype=np.float32)


@cache
def _float32_by_bits() -> Array:
    """Return all float16 numbers in the order of their bits, (65536,) float32."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _normalised(block: Vectors) -> Vectors:
    lengths = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float32))
    if np.allclose(lengths, 1.0, atol=1e-3):
        return block
    scaled: Vectors = block / np.maximum(lengths, np.float32(1e-12))[:, None]
    return scaled


def _root(squares: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.where(squares < _NO_DISTANCE, np.inf, np.sqrt(np.maximum(squares, 0)))

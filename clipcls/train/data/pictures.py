"""The decoded pictures of a batch."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from clipcls.errors import ImageError
from clipcls.images.decoding import load_layers
from clipcls.images.pillow_errors import pillow_errors
from clipcls.images.sources import Source
from clipcls.inputs.contents import open_content
from clipcls.inputs.labelled.examples import Example
from clipcls.records import Preprocessing

LOOK_AHEAD = 2  # batches that are decoded while one is trained on


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures as `(n, 4, side, side) uint8` in RGBA, with their rows."""

    pictures: torch.Tensor
    rows: tuple[Example, ...]


def decode_picture(source: Source, canvas: Preprocessing) -> torch.Tensor:
    """Decode a picture to a square, with the corrections that `predict` makes; it keeps its transparency.

    Args:
        source: a path, or a file's bytes.
        canvas: the square's size and how a picture is fitted to it, as in the model's preprocessing.

    Returns:
        `(4, side, side) uint8` in RGBA.

    Raises:
        ImageError: the file can't be read as a picture.
    """
    picture = load_layers(source, canvas)
    size, method = canvas.size, Image.Resampling[canvas.interpolation.upper()]
    with pillow_errors("image"):
        if canvas.resize_mode == "shortest":
            fitted = ImageOps.fit(picture, size, method).convert("RGBA")
        elif canvas.resize_mode == "longest":
            padding = (canvas.fill_color,) * 3 + (255,)
            fitted = ImageOps.pad(picture.convert("RGBA"), size, method, color=padding)
        else:
            fitted = picture.resize(size, method).convert("RGBA")
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()  # HWC -> CHW


class Pictures:
    """Decodes pictures on threads, and keeps as many as fit in memory.

    Attributes:
        canvas: what they are decoded to.
    """

    def __init__(self, canvas: Preprocessing, cache_mb: int) -> None:
        self.canvas = canvas
        self._problems: dict[str, str] = {}  # two threads may meet the same picture
        self._room = cache_mb * 2**20 // (4 * canvas.size[0] * canvas.size[1])
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def problems(self) -> list[str]:
        """One message for each picture that couldn't be decoded."""
        return list(self._problems.values())

    def picture(self, row: Example) -> torch.Tensor | None:
        """The picture of a row, or None where it can't be decoded."""
        path = row.image.path
        if path in self._kept:
            return self._kept[path]
        if path in self._problems:
            return None
        try:
            with open_content(row.image) as opened:
                picture = decode_picture(opened.file, self.canvas)
        except ImageError as exc:
            self._problems[path] = f"{path}: {exc}"
            return None
        if len(self._kept) < self._room:
            self._kept[path] = picture
        return picture

    def batches(self, batches: Iterable[Sequence[Example]], workers: int) -> Iterator[Batch]:
        """Decode batch after batch, a little ahead; pictures that can't be decoded are left out.

        Args:
            batches: the rows of each.
            workers: threads.
        """
        waiting: deque[tuple[Sequence[Example], Iterator[torch.Tensor | None]]] = deque()
        with pool_of(workers, "decode") as pool:
            for rows in batches:
                waiting.append((rows, pool.map(self.picture, rows)))
                if len(waiting) > LOOK_AHEAD:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())

    def _batch(self, rows: Sequence[Example], pictures: Iterable[torch.Tensor | None]) -> Batch:
        found = [(row, picture) for row, picture in zip(rows, pictures, strict=True) if picture is not None]
        if not found:
            return Batch(torch.empty(0, 4, *self.canvas.size, dtype=torch.uint8), ())
        return Batch(torch.stack([picture for _, picture in found]), tuple(row for row, _ in found))


@contextmanager
def pool_of(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool that isn't waited for when it is left by an exception: a thread may hang on a source that stalls."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

"""Turn pictures into features; threads decode them ahead of the model."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.batches import Batches
from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.frames import FrameQueue
from clipcls.embed.image_reader import Features, ImageReader, ReadImage
from clipcls.embed.read_ahead import Ahead
from clipcls.embed.session import Session
from clipcls.errors import ImageError
from clipcls.inputs.tables import read_embedded
from clipcls.records import Frame, ImageRef

logger = logging.getLogger(__name__)

# the most images that wait behind one that isn't ready
_MOST_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Consecutive images, in input order.

    Attributes:
        features: (n_good, embed_dim) float32, L2-normalised, of the images without an error, in order.
        errors: for each image, why it has no features; None if it has.
    """

    images: tuple[ImageRef, ...]
    features: Features
    errors: tuple[str | None, ...]


@dataclass(slots=True)
class _Item:
    """An image in the pipeline, with its features or error, or with the future of its reading."""

    image: ImageRef
    features: Features | None = None
    error: str | None = None
    future: "Future[ReadImage] | None" = None

    @property
    def is_open(self) -> bool:
        return self.features is None and self.error is None


def embed_images(
    images: Iterable[ImageRef], session: Session, stop: Callable[[], bool] = lambda: False
) -> Iterator[ImageBatch]:
    """Yield the features of images in input order, from the cache or from the model.

    Only a few batches of preprocessed pictures are in memory: those in the model, and as many decoded ahead, at least
    two. An image that can't be read becomes an error in its batch. The model is opened for the first picture that isn't
    cached.

    Args:
        images: iterated over on a thread of its own.
        stop: called after every batch, and while the input stalls. Once it returns True, the batches that the model
            has begun are finished, and no more are begun.
    """
    pipeline = _Pipeline(session)
    try:
        with Ahead(read_embedded(images), _held_bytes) as chunks:
            for chunk in chunks:
                cached = pipeline.add(chunk)
                batches = pipeline.batches(flush=chunks.stalled, ended=chunks.ended)
                for batch in batches if cached is None else [cached]:
                    yield batch
                    if stop():
                        break
                if stop():
                    yield from pipeline.running()
                    return
    finally:
        pipeline.close()


class _Pipeline:
    """Carries images from the input to their features, in order."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._facts = facts = session.facts
        self._execution = execution = session.execution
        self._reader = ImageReader(session)
        self._batch_size = execution.batch_size_on(facts.device)
        self._items: deque[_Item] = deque()
        self._frames = FrameQueue(execution)
        self._unread: deque[_Item] = deque()  # those of `_items` that no thread has begun to read
        self._reading = 0
        self._running: deque[tuple[list[_Item], Future[list[CachedImage]]]] = deque()
        self._hits = self._total = 0
        self._readers: ThreadPoolExecutor | None = None
        self._encoders: ThreadPoolExecutor | None = None
        self._streams = 1
        self._batches: Batches[NDArray[np.uint8]] | None = None

    def add(self, images: Sequence[ImageRef]) -> ImageBatch | None:
        """Add images to the pipeline, and look their features up in the cache.

        Returns:
            The images, which then aren't added, if the cache has all of them, and no others wait.
        """
        sought = [image for image in images if image.error is None]
        features_found = self._reader.find(sought)
        known = [features for features in features_found if features is not None]
        if len(known) == len(images) > 0 and not self._items and not self._running:
            self._total += len(images)
            self._hits += len(images)
            return ImageBatch(tuple(images), np.concatenate(known).reshape(len(images), -1), (None,) * len(images))
        found = iter(features_found)
        for image in images:
            features = next(found) if image.error is None else None
            item = _Item(image, features, image.error)
            self._items.append(item)
            self._total += 1
            if item.is_open:
                self._unread.append(item)
            elif features is not None:
                self._hits += 1
        return None

    def batches(self, flush: bool, ended: bool) -> Iterator[ImageBatch]:
        """Yield finished batches: with `flush` until no image is left, else while enough images are read ahead.

        Args:
            ended: whether no image follows.
        """
        while self._items or self._running:
            self._read_ahead()
            if self._items and len(self._running) < self._streams and (flush or self._may_go_on()):
                self._run(self._take(flush), ended)
            elif self._running and (flush or len(self._running) == self._streams or self._running[0][1].done()):
                yield self._answer(*self._running.popleft())
            else:
                return

    def running(self) -> Iterator[ImageBatch]:
        """Yield the batches that the model has begun."""
        while self._running:
            yield self._answer(*self._running.popleft())

    def close(self) -> None:
        """Log the cache's hits, and end the threads."""
        if self._total:
            logger.info("images: %d of %d from the cache", self._hits, self._total)
        self._frames.close()
        for pool in (self._readers, self._encoders):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _may_go_on(self) -> bool:
        """Tell whether the next images are ready, or enough images follow to keep the threads busy."""
        enough = len(self._unread) + self._reading > 2 * self._batch_size or len(self._items) >= _MOST_ITEMS
        return enough or not self._items[0].is_open

    def _read_ahead(self) -> None:
        """Keep two batches, or as many as the model runs at once, in the threads that read."""
        while self._unread and self._reading < max(2, self._streams) * self._batch_size:
            if self._readers is None:
                self._readers = ThreadPoolExecutor(self._execution.threads(), thread_name_prefix="decode")
            item = self._unread.popleft()
            if isinstance(item.image.content, Frame):
                announced = self._frames.announce(item.image.content)
                item.future = self._readers.submit(self._reader.read_frame, announced)
            else:
                item.future = self._readers.submit(self._reader.read, item.image)
            self._reading += 1

    def _take(self, flush: bool) -> list[_Item]:
        """Remove and return the next images: those that are ready, or up to a batch to read and any ready between."""
        taken: list[_Item] = []
        new = 0
        wants_new = self._items[0].is_open
        left = len(self._unread) + self._reading
        # the last images are shared among the streams
        most = min(self._batch_size, -(-left // self._streams)) if flush and wants_new else self._batch_size
        while self._items and new < most and len(taken) < _MOST_ITEMS:
            if self._items[0].is_open and not wants_new:
                break
            item = self._items.popleft()
            new += item.is_open
            taken.append(item)
        self._reading -= new
        self._read_ahead()  # the threads go on while the model runs
        return taken

    def _run(self, items: list[_Item], ended: bool) -> None:
        """Start to encode images, on a thread once there is something to compute."""
        if self._encoders is None and any(_has_pixels(item.future) for item in items):
            self._encoders = self._open_model(are_all=ended and not self._items)
        if self._encoders is not None and any(item.future is not None for item in items):
            self._running.append((items, self._encoders.submit(self._encode, items)))
        else:
            done: Future[list[CachedImage]] = Future()
            done.set_result(self._encode(items))
            self._running.append((items, done))

    def _open_model(self, are_all: bool) -> ThreadPoolExecutor:
        """Open the model for the images at hand, and for others that follow unless they are all."""
        encoder = self._session.encoder
        encoder.build_image_tower(at_once=are_all)
        self._streams = encoder.streams
        self._batches = Batches(encoder.encode_image, self._batch_size)
        encoders = ThreadPoolExecutor(encoder.streams, "encode", initializer=encoder.enter_stream)
        if self._readers is not None and self._facts.device == "cpu" and encoder.streams == self._execution.threads():
            # the same threads read and encode, so that there aren't more of them than cores: a tenth faster on two
            self._readers.shutdown(wait=False)
            self._readers = encoders
        return encoders

    def _encode(self, items: Sequence[_Item]) -> list[CachedImage]:
        """Give images their features or errors, on a thread; return what is new to the cache."""
        reads: list[tuple[_Item, ReadImage]] = []
        for item in items:
            # a future that is kept would keep its error's traceback, and with that all of this frame
            future, item.future = item.future, None
            if future is None:
                continue
            try:
                reads.append((item, future.result()))
            except ImageError as exc:
                item.error = str(exc)
            del future
        pixels = [read.pixels for _, read in reads if read.pixels is not None]
        new = iter(self._batches.encode(pixels) if self._batches and pixels else ())
        entries = []
        for item, read in reads:
            item.features = read.features if read.pixels is None else next(new)
            entries.append(read.entry(item.image, item.features))
        return entries

    def _answer(self, items: Sequence[_Item], running: "Future[list[CachedImage]]") -> ImageBatch:
        entries = running.result()
        self._hits += sum(entry.features is None for entry in entries)
        self._reader.keep(entries)
        good = [item.features for item in items if item.features is not None]
        features = np.stack(good) if good else np.empty((0, self._facts.embed_dim), dtype=np.float32)
        return ImageBatch(tuple(item.image for item in items), features, tuple(item.error for item in items))


def _has_pixels(future: "Future[ReadImage] | None") -> bool:
    """Wait for an image to be read, and tell whether it has pixels to encode."""
    return future is not None and future.exception() is None and future.result().pixels is not None


def _held_bytes(image: ImageRef) -> int:
    return len(image.content) if isinstance(image.content, bytes) else 0

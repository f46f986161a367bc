"""Embed the pictures of many requests in batches that they share."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.batches import Batches
from clipcls.embed.image_reader import Features, ImageReader, ReadImage
from clipcls.embed.session import Session
from clipcls.records import ImageRef

#: How long a picture waits for others that are being read, to share a batch with them.
WAIT_SECONDS = 0.008


class QueueFullError(Exception):
    """So many pictures wait that no more are taken."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A picture that is read, and waits for the model."""

    image: ImageRef
    read: ReadImage
    answer: "Future[Features]"


class Batcher:
    """Embeds pictures, which threads read while the model computes; each batch takes what is there.

    Args:
        session: whose model is open from now on.
        most_waiting: the number of pictures that may be read, wait and be computed at once.
        observe: called with the size of each batch, on a thread.

    Attributes:
        waiting: the number of pictures that haven't been answered.
    """

    def __init__(self, session: Session, most_waiting: int, observe: Callable[[int], None] = lambda _: None) -> None:
        execution, facts = session.execution, session.facts
        encoder = session.encoder
        encoder.build_image_tower()
        self.waiting = 0
        self._most_waiting = most_waiting
        self._observe = observe
        self._reader = ImageReader(session)
        self._size = execution.batch_size_on(facts.device)
        self._batches: Batches[NDArray[np.uint8]] = Batches(encoder.encode_image, self._size)
        self._encoders = ThreadPoolExecutor(encoder.streams, "encode", initializer=encoder.enter_stream)
        # the same threads read and encode, so that there aren't more of them than cores
        self._is_shared = facts.device == "cpu" and encoder.streams == execution.threads()
        self._readers = self._encoders if self._is_shared else ThreadPoolExecutor(execution.threads(), "decode")
        self._changed = threading.Condition()
        self._ready: deque[_Waiting] = deque()
        self._reading = 0

    def submit(self, images: Sequence[ImageRef]) -> "list[Future[Features]]":
        """Have pictures embedded.

        Returns:
            The features of each, (embed_dim,) float32, or the exception that reading or computing it raised.

        Raises:
            QueueFullError: too many wait.
        """
        with self._changed:
            if self.waiting + len(images) > self._most_waiting:
                raise QueueFullError
            self.waiting += len(images)
            self._reading += len(images)
        answers: list[Future[Features]] = [Future() for _ in images]
        for image, answer in zip(images, answers, strict=True):
            answer.add_done_callback(self._count_answer)
            self._readers.submit(self._read, image, answer)
        return answers

    def close(self) -> None:
        """End the threads once they have done what they began."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _count_answer(self, _: "Future[Features]") -> None:
        with self._changed:
            self.waiting -= 1

    def _read(self, image: ImageRef, answer: "Future[Features]") -> None:
        read, error = ReadImage(), None
        try:
            read = self._reader.read(image)
        except BaseException as exc:  # noqa: BLE001 - whatever ends this picture mustn't end the server
            error = exc
        with self._changed:
            self._reading -= 1
            if read.pixels is not None:
                self._ready.append(_Waiting(image, read, answer))
            self._changed.notify()
        if error is not None:
            answer.set_exception(error)
        elif read.features is not None:
            answer.set_result(read.features)
        else:
            # by the time it runs, it may find several pictures, or none since an earlier one took them
            self._encoders.submit(self._encode)

    def _encode(self) -> None:
        taken = self._take()
        if not taken:
            return
        try:
            features = self._batches.encode(
                [waiting.read.pixels for waiting in taken if waiting.read.pixels is not None]
            )
        except BaseException as exc:  # noqa: BLE001 - the requests of this batch fail, the server goes on
            for waiting in taken:
                waiting.answer.set_exception(exc)
            return
        for waiting, row in zip(taken, features, strict=True):
            waiting.answer.set_result(row)
        self._observe(len(taken))
        self._reader.keep(
            [waiting.read.entry(waiting.image, row) for waiting, row in zip(taken, features, strict=True)]
        )

    def _take(self) -> list[_Waiting]:
        """Return the pictures of the next batch."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._changed:
            # threads that read as well would wait for themselves
            while not self._is_shared and 0 < len(self._ready) < self._size and self._reading:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            return [self._ready.popleft() for _ in range(min(self._size, len(self._ready)))]

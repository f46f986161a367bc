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
#: The same where threads that would compute read instead, so that fewer batches save time.
SHARED_WAIT_SECONDS = 0.1


class QueueFullError(Exception):
    """So many pictures wait that no more are taken."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A picture that is read, and waits for the model."""

    image: ImageRef
    read: ReadImage
    answer: "Future[Features]"
    since: float


class Batcher:
    """Embeds pictures, which threads read while the model computes; each batch takes what is there.

    Of requests with several pictures, one of each is read in turn, so that large ones don't keep others waiting.

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
        self._sharers = encoder.streams if facts.device == "cpu" else 1
        self._readers = self._encoders if self._is_shared else ThreadPoolExecutor(execution.threads(), "decode")
        # a picture that is alone is computed by all cores, on a thread that isn't a stream's
        has_shares = facts.device == "cpu" and facts.runtime == "torch" and encoder.streams > 1
        self._alone = ThreadPoolExecutor(1, "encode-alone") if has_shares else None
        self._changed = threading.Condition()
        self._unread: deque[deque[tuple[ImageRef, Future[Features]]]] = deque()  # a queue a request
        self._ready: deque[_Waiting] = deque()
        self._reading = 0

    def submit(self, images: Sequence[ImageRef]) -> "list[Future[Features]]":
        """Have pictures embedded.

        Returns:
            The features of each, (embed_dim,) float32, or the exception that reading or computing it raised.

        Raises:
            QueueFullError: too many wait.
        """
        answers: list[Future[Features]] = [Future() for _ in images]
        for answer in answers:
            answer.set_running_or_notify_cancel()  # so that it can't be cancelled, which would hurt others of its batch
            answer.add_done_callback(self._count_answer)
        with self._changed:
            if self.waiting + len(images) > self._most_waiting:
                raise QueueFullError
            self.waiting += len(images)
            self._reading += len(images)
            if images:
                self._unread.append(deque(zip(images, answers, strict=True)))
        for _ in images:
            self._readers.submit(self._read_or_encode if self._is_shared else self._read_next)
        return answers

    def close(self) -> None:
        """End the threads once they have done what they began."""
        for threads in (self._readers, self._encoders, self._alone):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)

    def _count_answer(self, _: "Future[Features]") -> None:
        with self._changed:
            self.waiting -= 1

    def _read_or_encode(self) -> None:
        """Do one of both; called as often as there are pictures to read and, once read, to compute."""
        with self._changed:
            taken = self._share() if self._is_due() else []
            unread = None if taken or not self._unread else self._pop_unread()
        if taken:
            self._encode(taken)
        elif unread is not None:
            self._read(*unread)

    def _is_due(self) -> bool:
        ready = self._ready
        return bool(ready) and (
            not self._unread
            or len(ready) >= self._size * self._sharers
            or time.monotonic() - ready[0].since > SHARED_WAIT_SECONDS
        )

    def _read_next(self) -> None:
        with self._changed:
            unread = self._pop_unread()
        self._read(*unread)

    def _pop_unread(self) -> "tuple[ImageRef, Future[Features]]":
        request = self._unread.popleft()
        found = request.popleft()
        if request:
            self._unread.append(request)
        return found

    def _read(self, image: ImageRef, answer: "Future[Features]") -> None:
        read, error = ReadImage(), None
        try:
            read = self._reader.read(image)
        except BaseException as exc:  # noqa: BLE001 - whatever ends this picture mustn't end the server
            error = exc
        with self._changed:
            self._reading -= 1
            if read.pixels is not None:
                self._ready.append(_Waiting(image, read, answer, time.monotonic()))
            self._changed.notify()
        if error is not None:
            answer.set_exception(error)
        elif read.features is not None:
            answer.set_result(read.features)
        else:
            # by the time it runs, it may find several pictures, or none since an earlier one took them
            self._encoders.submit(self._read_or_encode if self._is_shared else self._encode_next)

    def _encode_next(self) -> None:
        taken = self._take()
        if taken:
            self._encode(taken)

    def _encode(self, taken: list[_Waiting]) -> None:
        if self._alone is not None and self.waiting == 1:
            self._alone.submit(self._compute, taken)
        else:
            self._compute(taken)

    def _compute(self, taken: list[_Waiting]) -> None:
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
            while 0 < len(self._ready) < self._size and self._reading:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            return self._share()

    def _share(self) -> list[_Waiting]:
        # where each thread has a core of its own, one mustn't take what keeps all of them busy
        share = -(-len(self._ready) // self._sharers)
        return [self._ready.popleft() for _ in range(min(self._size, share))]

"""What an iterable gives, read ahead on a thread of its own, since reading a pipe blocks."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

#: items that are handed over at once
CHUNK = 512
# an input that stalls this long (a slow pipe) has what is there handed over
STALL_SECONDS = 0.1


class Ahead(Generic[T]):
    """Lists of items as they come: of up to CHUNK, or of what is there (perhaps none) once the input has stalled.

    A context manager, which ends its thread; one that is blocked in reading ends with the process.

    Attributes:
        stalled: whether the last list was cut short because no more was there, or was the last.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self.stalled = False

    def __enter__(self) -> "Ahead[T]":
        threading.Thread(target=self._read, name="input", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[list[T]]:
        """Raises:
        Whatever reading raised, after the items before it.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or len(self._ready) >= CHUNK, STALL_SECONDS)
                chunk = [self._ready.popleft() for _ in range(min(CHUNK, len(self._ready)))]
                last = self._ended and not self._ready
                self._changed.notify_all()
            self.stalled = last or len(chunk) < CHUNK
            yield chunk
            if last:
                if self._error is not None:
                    raise self._error
                return

    def _read(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._ready) < 2 * CHUNK)
                    if self._stopped:
                        return
                    self._ready.append(item)
                    if len(self._ready) >= CHUNK:
                        self._changed.notify_all()
        except BaseException as exc:  # noqa: BLE001 - raised again where the items are read
            self._error = exc
        with self._changed:
            self._ended = True
            self._changed.notify_all()

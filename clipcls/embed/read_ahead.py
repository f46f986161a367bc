"""Read an iterable ahead on a thread of its own, since reading a pipe blocks."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")

#: the most items of one list
CHUNK = 512
# bytes of memory that a list's items may take; the last one may exceed it
_CHUNK_BYTES = 2**25
# when the input stalls this long (a slow pipe), what is there is handed over
STALL_SECONDS = 0.1


class Ahead(Generic[_T]):
    """Yields lists of items as they come: of up to CHUNK, or of what is there (perhaps none) once the input stalls.

    The context manager ends the thread; a thread that is blocked in reading ends with the process.

    Args:
        weigh: returns the bytes that an item holds in memory; lists of heavy items are shorter.

    Attributes:
        stalled: whether the list yielded last was cut short by a stall, or is the end of the input.
        ended: whether it is the end of the input.
    """

    def __init__(self, items: Iterable[_T], weigh: Callable[[_T], int] = lambda _: 0) -> None:
        self._items = items
        self._weigh = weigh
        self._ready: deque[_T] = deque()
        self._bytes = 0  # what the items in `_ready` weigh
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._is_awaited = False
        self._error: BaseException | None = None
        self.stalled = self.ended = False

    def __enter__(self) -> "Ahead[_T]":
        threading.Thread(target=self._read, name="input", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[list[_T]]:
        """Yield the lists, then raise the error that reading raised, if any."""
        while True:
            with self._changed:
                self._is_awaited = True  # before the condition is looked at, so that no item is missed
                self._changed.wait_for(lambda: self._ended or self._has(1), STALL_SECONDS)
                self._is_awaited = False
                whole = self._has(1)
                chunk = self._take()
                last = self._ended and not self._ready
                self._changed.notify_all()
            self.stalled = last or not whole
            self.ended = last
            yield chunk
            if last:
                if self._error is not None:
                    raise self._error
                return

    def _has(self, chunks: int) -> bool:
        """Tell whether enough is ready to fill so many lists."""
        return len(self._ready) >= chunks * CHUNK or self._bytes >= chunks * _CHUNK_BYTES

    def _take(self) -> list[_T]:
        if not self._bytes:
            return [self._ready.popleft() for _ in range(min(CHUNK, len(self._ready)))]
        chunk: list[_T] = []
        weight = 0
        while self._ready and len(chunk) < CHUNK and weight < _CHUNK_BYTES:
            item = self._ready.popleft()
            chunk.append(item)
            weight += self._weigh(item)
        self._bytes -= weight
        return chunk

    def _read(self) -> None:
        try:
            for item in self._items:
                weight = self._weigh(item)
                # the lock for every item would take longer than listing a file
                if weight or self._stopped or self._has(2):
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped or not self._has(2))
                        if self._stopped:
                            return
                        self._bytes += weight
                self._ready.append(item)
                if self._is_awaited and self._has(1):
                    with self._changed:
                        self._changed.notify_all()
        except BaseException as exc:  # noqa: BLE001 - raised again where the items are read
            self._error = exc
        with self._changed:
            self._ended = True
            self._changed.notify_all()

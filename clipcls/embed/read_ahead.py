"""What an iterable gives, read ahead on a thread of its own, since reading a pipe blocks."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")

#: items that are handed over at once
CHUNK = 512
# what these may weigh together (the last one may exceed it), in bytes of memory
_CHUNK_BYTES = 2**25
# an input that stalls this long (a slow pipe) has what is there handed over
STALL_SECONDS = 0.1


class Ahead(Generic[_T]):
    """Lists of items as they come: of up to CHUNK, or of what is there (perhaps none) once the input has stalled.

    A context manager, which ends its thread; one that is blocked in reading ends with the process.

    Args:
        weigh: bytes that an item holds in memory; lists of heavy ones are shorter.

    Attributes:
        stalled: whether the last list was cut short because no more was there, or was the last.
    """

    def __init__(self, items: Iterable[_T], weigh: Callable[[_T], int] = lambda _: 0) -> None:
        self._items = items
        self._weigh = weigh
        self._ready: deque[_T] = deque()
        self._bytes = 0  # that these weigh
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self.stalled = False

    def __enter__(self) -> "Ahead[_T]":
        threading.Thread(target=self._read, name="input", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[list[_T]]:
        """Raises:
        Whatever reading raised, after the items before it.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._has(1), STALL_SECONDS)
                whole = self._has(1)
                chunk = self._take()
                last = self._ended and not self._ready
                self._changed.notify_all()
            self.stalled = last or not whole
            yield chunk
            if last:
                if self._error is not None:
                    raise self._error
                return

    def _has(self, chunks: int) -> bool:
        """Whether as much is ready as that many lists hold at most."""
        return len(self._ready) >= chunks * CHUNK or self._bytes >= chunks * _CHUNK_BYTES

    def _take(self) -> list[_T]:
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
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or not self._has(2))
                    if self._stopped:
                        return
                    self._ready.append(item)
                    self._bytes += self._weigh(item)
                    if self._has(1):
                        self._changed.notify_all()
        except BaseException as exc:  # noqa: BLE001 - raised again where the items are read
            self._error = exc
        with self._changed:
            self._ended = True
            self._changed.notify_all()

"""Keep the classifiers of the label sets that requests ask for, each of which is embedded once."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from clipcls.labels.other_words import load_wordnet
from clipcls.predict.classifier import Classifier

#: Labels of all classifiers that are kept, and words that they compare pictures with.
MOST_LABELS = 100_000


@dataclass(frozen=True, slots=True)
class ReadyClassifier:
    """A classifier whose labels are embedded.

    Attributes:
        warnings: what a user should know of the labels, such as words that the model doesn't know.
    """

    classifier: Classifier
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of labels, and of words that unknown pictures are told by; some more for what else there is."""
        words = len(load_wordnet().words) if self.classifier.scoring.unknown is not None else 0
        return len(self.classifier.labels) + words + 10


class ClassifierStore:
    """Classifiers by what asked for them, the least recently used of which are dropped; safe to call from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._kept: OrderedDict[Hashable, Future[ReadyClassifier]] = OrderedDict()

    def kept(self, key: Hashable) -> ReadyClassifier | None:
        """Return a classifier if it is ready."""
        with self._lock:
            found = self._kept.get(key)
            if found is None or not found.done() or found.exception() is not None:
                return None
            self._kept.move_to_end(key)
        return found.result()

    def get(self, key: Hashable, make: Callable[[], Classifier]) -> ReadyClassifier:
        """Return a classifier; if another thread is making it, wait for that.

        Raises:
            UsageError: what `make` raises, or embedding the labels.
        """
        with self._lock:
            found = self._kept.get(key)
            is_new = found is None
            if found is None:
                found = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if not is_new:
            return found.result()
        try:
            with collected_warnings() as warnings:
                classifier = make()
                classifier.embed_labels()
        except BaseException as exc:
            with self._lock:
                self._kept.pop(key, None)
            found.set_exception(exc)
            raise
        ready = ReadyClassifier(classifier, tuple(warnings))
        with self._lock:
            found.set_result(ready)
            self._total += ready.size
            self._drop_some()
        return ready

    def _drop_some(self) -> None:
        dropped = []
        for key, made in self._kept.items():
            if self._total <= MOST_LABELS:
                break
            if made.done():
                self._total -= made.result().size
                dropped.append(key)
        for key in dropped:
            del self._kept[key]


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect this thread's warnings, which then aren't printed where `divert_warnings` was called."""
    warnings: list[str] = []
    token = _collected.set(warnings)
    try:
        yield warnings
    finally:
        _collected.reset(token)


def divert_warnings() -> None:
    """Let `collected_warnings` have what clipcls logs, instead of the handlers there are."""
    for handler in logging.getLogger("clipcls").handlers:
        handler.addFilter(_is_for_all)


def _is_for_all(record: logging.LogRecord) -> bool:
    warnings = _collected.get()
    if warnings is not None and record.levelno >= logging.WARNING:
        warnings.append(" ".join(record.getMessage().splitlines()))
    return warnings is None

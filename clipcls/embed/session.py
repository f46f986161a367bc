"""A model and the cache, opened once and shared by all that a run does with them."""

import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from clipcls.embed.cache.database import default_folder
from clipcls.embed.cache.store import Cache
from clipcls.embed.execution import Execution
from clipcls.embed.lazy_encoder import LazyEncoder, find_model
from clipcls.models.catalog import DEFAULT_MODEL
from clipcls.records import ModelFacts, ModelSpec

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder


class Session:
    """Owns the model and the cache of a run, and closes the cache at its end.

    The cache is opened, and the model looked for, at the first question; the model is opened at the first picture or
    text whose features aren't cached.

    Args:
        model: a name as `--model` takes it, a folder, a `ModelSpec`, an encoder, a function that gives one, or what
            `find_model` found.
        execution: the default caches in the platform's cache directory.
        cache: one that is open, and closed by who opened it; None to open the execution's.

    Attributes:
        spec: what the model was asked for as; None where an encoder was given.
    """

    def __init__(
        self,
        model: "str | os.PathLike[str] | ModelSpec | LazyEncoder | Encoder | Callable[[], Encoder]" = DEFAULT_MODEL,
        execution: Execution | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._model: Final = ModelSpec(os.fspath(model)) if isinstance(model, str | os.PathLike) else model
        self.spec: Final = self._model if isinstance(self._model, ModelSpec) else None
        self.execution: Final = execution or Execution(cache_dir=default_folder())
        self._shared: Final = cache

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache, unless it is another session's; it is opened again when it is needed."""
        if self._shared is None and "_stored" in self.__dict__:
            self.__dict__.pop("_stored").close()

    def beside(self, model: "ModelSpec | Encoder | Callable[[], Encoder]") -> "Session":
        """Return a session of another model that shares this one's cache; this one has to be closed after it."""
        return Session(model, self.execution, self._stored)

    @property
    def name(self) -> str:
        """What the model is called: as it was asked for."""
        return self.facts.name if self.spec is None else self.spec.name

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model without opening it.

        Raises:
            ModelError: it can't be had.
            UsageError: the device isn't there.
        """
        return self._found.facts

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of all that features depend on, computed if it isn't known.

        Raises:
            ModelError: the model can't be had.
        """
        return self._found.fingerprint(self._stored)

    @property
    def encoder(self) -> "Encoder":
        """The model, opened at the first use.

        Raises:
            ModelError: it can't be had, or isn't any more what its facts say.
        """
        return self._found.open(self._stored)

    @property
    def cache(self) -> Cache:
        """The cache for features of this model; one that keeps nothing where models can't be told apart."""
        return self._found.usable(self._stored)

    @cached_property
    def _stored(self) -> Cache:
        return self.execution.open_cache() if self._shared is None else self._shared

    @cached_property
    def _found(self) -> LazyEncoder:
        return self._model if isinstance(self._model, LazyEncoder) else find_model(self._model, self._stored)

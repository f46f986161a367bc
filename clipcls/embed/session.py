"""A model and the cache, opened once and shared by all parts of a run."""

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
    from clipcls.models.runtime.compiled import CompiledEncoder


class Session:
    """Owns the model and the cache of a run, and closes the cache at its end.

    The cache is opened, and the model's facts are found, at first use; the model is opened for the first picture or
    text whose features aren't cached.

    Args:
        model: a name as `--model` takes it, a folder, a `ModelSpec`, an encoder, a function that returns one, or the
            result of `find_model`.
        execution: None for the default settings, with a cache in the platform's cache directory.
        cache: an open cache, which the session doesn't close; None to open the execution's.

    Attributes:
        spec: the model as it was asked for; None unless a name, a folder or a `ModelSpec` was given.
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
        """Close the cache, unless it was passed in; it is opened again when it is needed."""
        if self._shared is None and "_stored" in self.__dict__:
            self.__dict__.pop("_stored").close()

    def beside(self, model: "ModelSpec | Encoder | Callable[[], Encoder]") -> "Session":
        """Return a session of another model that shares this one's cache; close this one last."""
        return Session(model, self.execution, self._stored)

    @property
    def name(self) -> str:
        """The model's name, as the user asked for it."""
        return self.facts.name if self.spec is None else self.spec.name

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model without opening it.

        Raises:
            ModelError: it can't be loaded.
            UsageError: the device doesn't exist.
        """
        return self._found.facts

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of all that features depend on, computed if it isn't known.

        Raises:
            ModelError: the model can't be loaded.
        """
        return self._found.fingerprint(self._stored)

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the weights file in hexadecimal digits, computed if it isn't known.

        Raises:
            ModelError: the model can't be loaded.
        """
        return self._found.weights(self._stored)

    @property
    def encoder(self) -> "Encoder | CompiledEncoder":
        """The model, opened at the first use.

        Raises:
            ModelError: it can't be loaded, or no longer matches its facts.
        """
        return self._found.open(self._stored)

    @property
    def cache(self) -> Cache:
        """The cache for this model's features; one that keeps nothing if models can't be told apart."""
        return self._found.usable(self._stored)

    @cached_property
    def _stored(self) -> Cache:
        return self.execution.open_cache() if self._shared is None else self._shared

    @cached_property
    def _found(self) -> LazyEncoder:
        return self._model if isinstance(self._model, LazyEncoder) else find_model(self._model, self._stored)

"""A model that is opened only when something must be computed."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from clipcls.embed.cache.store import Cache
from clipcls.embed.model_facts import absolute, recall, remember
from clipcls.errors import ModelError
from clipcls.records import ModelFacts, ModelSpec

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder

logger = logging.getLogger(__name__)


class LazyEncoder:
    """A model that is known by its facts, and opened only when something must be computed.

    Attributes:
        facts: what is known of the model; the fingerprint is empty where there is no cache.
    """

    def __init__(self, facts: ModelFacts, load: "Callable[[Cache], Encoder]") -> None:
        self.facts = facts
        self._load = load
        self._encoder: Encoder | None = None

    def open(self, cache: Cache) -> "Encoder":
        """Return the encoder, loaded at the first call.

        Raises:
            ModelError: it can't be loaded, or no longer matches its facts.
        """
        if self._encoder is None:
            self._encoder = self._load(cache)
        return self._encoder

    def fingerprint(self, cache: Cache) -> bytes:
        """Return the SHA-256 of all that features depend on, computed if it isn't known.

        Raises:
            ModelError: the model can't be loaded.
        """
        return self.facts.fingerprint or self.open(cache).fingerprint(cache.file_sha256)

    def usable(self, cache: Cache) -> Cache:
        """Return the cache, or one that keeps nothing if no fingerprint tells this model from others."""
        return cache if self.facts.fingerprint else Cache(None)


def find_model(model: "ModelSpec | Encoder | Callable[[], Encoder]", cache: Cache) -> LazyEncoder:
    """Find a model's facts in the cache, else by opening it.

    Args:
        model: what the user asked for, or an encoder, or a function that returns one.

    Raises:
        ModelError: it can't be loaded.
        UsageError: the device doesn't exist.
    """
    if not isinstance(model, ModelSpec):
        encoder = model() if callable(model) else model
        return LazyEncoder(encoder.facts(cache.file_sha256 if cache.is_on else None), lambda _: encoder)
    spec = absolute(model)  # the working directory may have changed when the model is opened
    facts = recall(cache, spec)
    if facts is not None:
        logger.info("model %s: known, %s, %s", model.name, facts.device, facts.precision)
        return LazyEncoder(facts, partial(_load_known, spec, facts))
    encoder = _load(spec)
    facts = encoder.facts(cache.file_sha256 if cache.is_on else None)
    remember(cache, spec, facts, encoder.seen)
    return LazyEncoder(facts, lambda _: encoder)


def _load(spec: ModelSpec) -> "Encoder":
    # torch is imported only here, so that a run with only cached features doesn't import it
    from clipcls.models.encoder import load_encoder

    return load_encoder(spec)


def _load_known(spec: ModelSpec, facts: ModelFacts, cache: Cache) -> "Encoder":
    """Load the model of `facts`, and check them, since they may have been recalled hours ago."""
    encoder = _load(spec)
    found = replace(encoder.facts(None), fingerprint=encoder.fingerprint(cache.file_sha256))
    if found != facts:
        remember(cache, spec, found, encoder.seen)
        raise ModelError(f"{spec.name}: the model, or what `auto` stands for, has changed meanwhile. Run it again.")
    return encoder

"""A model that is opened when something has to be computed."""

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
    """What is known of a model, and the model itself once something has to be computed.

    Attributes:
        facts: without a fingerprint where there was no cache to keep anything in.
    """

    def __init__(self, facts: ModelFacts, load: "Callable[[Cache], Encoder]") -> None:
        self.facts = facts
        self._load = load
        self._encoder: Encoder | None = None

    def open(self, cache: Cache) -> "Encoder":
        """The encoder, the same one each time.

        Raises:
            ModelError: it can't be had, or isn't any more what its facts say.
        """
        if self._encoder is None:
            self._encoder = self._load(cache)
        return self._encoder

    def fingerprint(self, cache: Cache) -> bytes:
        """SHA-256 of all that features depend on, computed if it isn't known.

        Raises:
            ModelError: the model can't be had.
        """
        return self.facts.fingerprint or self.open(cache).fingerprint(cache.file_sha256)

    def usable(self, cache: Cache) -> Cache:
        """The cache, or none where there is no fingerprint to tell models by."""
        return cache if self.facts.fingerprint else Cache(None)


def find_model(model: "ModelSpec | Encoder | Callable[[], Encoder]", cache: Cache) -> LazyEncoder:
    """A model by what the cache knows of it, else by opening it.

    Args:
        model: what was asked for, or an encoder, or a function that gives one.

    Raises:
        ModelError: it can't be had.
        UsageError: the device isn't there.
    """
    if not isinstance(model, ModelSpec):
        encoder = model() if callable(model) else model
        return LazyEncoder(encoder.facts(cache.file_sha256 if cache.is_on else None), lambda _: encoder)
    spec = absolute(model)  # the working directory may be another one when it is opened
    facts = recall(cache, spec)
    if facts is not None:
        logger.info("model %s: known, %s, %s", model.name, facts.device, facts.precision)
        return LazyEncoder(facts, partial(_load_known, spec, facts))
    encoder = _load(spec)
    facts = encoder.facts(cache.file_sha256 if cache.is_on else None)
    remember(cache, spec, facts, encoder.seen)
    return LazyEncoder(facts, lambda _: encoder)


def _load(spec: ModelSpec) -> "Encoder":
    # torch is imported here, so that a run with only cached features does without
    from clipcls.models.encoder import load_encoder

    return load_encoder(spec)


def _load_known(spec: ModelSpec, facts: ModelFacts, cache: Cache) -> "Encoder":
    """The model of `facts`, which may have been recalled hours ago."""
    encoder = _load(spec)
    found = replace(encoder.facts(None), fingerprint=encoder.fingerprint(cache.file_sha256))
    if found != facts:
        remember(cache, spec, found, encoder.seen)
        raise ModelError(f"{spec.name}: the model, or what `auto` stands for, has changed meanwhile. Run it again.")
    return encoder

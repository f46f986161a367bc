"""A model that is opened when something has to be computed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as computed_once
from typing import TYPE_CHECKING

from clipcls.cache import Cache
from clipcls.recall import recall, remember
from clipcls.records import ModelFacts, ModelSpec

if TYPE_CHECKING:
    from clipcls.encoder import Encoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LazyEncoder:
    """What is known of a model, and how to open it.

    Attributes:
        open: gives the encoder, the same one each time.
    """

    facts: ModelFacts
    open: "Callable[[], Encoder]"

    def usable(self, cache: Cache) -> Cache:
        """The cache, or none where there was none as the facts were made: they lack a fingerprint to tell models by."""
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
        return LazyEncoder(encoder.facts(cache), lambda: encoder)
    facts = recall(cache, model)
    if facts is not None:
        logger.info("model %s: known, %s, %s", model.name, facts.device, facts.precision)
        # what `auto` was found to be belongs to the facts
        wanted = replace(model, device=facts.device, precision=facts.precision)
        return LazyEncoder(facts, computed_once(lambda: _load(wanted, cache)))
    encoder = _load(model, cache)
    facts = encoder.facts(cache)
    remember(cache, model, facts, encoder.files.all())
    return LazyEncoder(facts, lambda: encoder)


def _load(spec: ModelSpec, cache: Cache) -> "Encoder":
    # torch is imported here, so that a run with only cached features does without
    from clipcls.encoder import load_encoder

    return load_encoder(spec, cache.weights, cache.file_sha256)

"""A model that is opened only when something must be computed."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from clipcls.embed.cache.store import Cache
from clipcls.embed.cores import computing_threads
from clipcls.embed.model_facts import absolute, recall, remember
from clipcls.errors import ModelError, UsageError
from clipcls.models import catalog
from clipcls.models.runtime.choice import choose_runtime
from clipcls.models.runtime.conversions import Conversions
from clipcls.records import ModelFacts, ModelSpec

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder
    from clipcls.models.runtime.compiled import CompiledEncoder

logger = logging.getLogger(__name__)


class NotQuantisedError(UsageError):
    """A model in int8 is asked for, and wasn't quantised yet."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} isn't quantised yet: clipcls models prepare {name} --precision int8 --images FOLDER, with some "
            "300 pictures like those of the job."
        )


class LazyEncoder:
    """A model that is known by its facts, and opened only when something must be computed.

    Args:
        load: opens the encoder.

    Attributes:
        facts: what is known of the model; the fingerprint is empty where there is no cache.
    """

    def __init__(self, facts: ModelFacts, load: "Callable[[Cache], Encoder | CompiledEncoder]") -> None:
        self.facts = facts
        self._load = load
        self._encoder: Encoder | CompiledEncoder | None = None

    def open(self, cache: Cache) -> "Encoder | CompiledEncoder":
        """Return the encoder, opened at the first call.

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

    def weights(self, cache: Cache) -> str:
        """Return the SHA-256 of the weights file in hexadecimal digits, computed if it isn't known.

        Raises:
            ModelError: the model can't be loaded.
        """
        return self.facts.weights or self.open(cache).weights_sha256(cache.file_sha256)

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
        logger.info("model %s: known, %s, %s, %s", model.name, facts.device, facts.precision, facts.runtime)
        return LazyEncoder(_calibrated(facts, cache), partial(_open_known, spec, facts))
    encoder, of_runtime = _load(spec, cache)
    facts = replace(encoder.facts(cache.file_sha256 if cache.is_on else None), **of_runtime)
    if not facts.fingerprint and facts.runtime == "openvino":
        # files that change while they are read: nothing may be kept of them
        facts = replace(facts, runtime="torch", precision=encoder.precision)
    remember(cache, spec, facts, encoder.seen)
    facts = _calibrated(facts, cache)
    return LazyEncoder(facts, lambda cache: open_runtime(facts, cache, lambda: encoder))


def open_runtime(
    facts: ModelFacts, cache: Cache, load: "Callable[[], Encoder]", threads: int | None = None
) -> "Encoder | CompiledEncoder":
    """Open a model with the runtime that its facts name.

    Args:
        load: opens the torch encoder, which the compiled runtime needs only for what isn't converted yet.
        threads: threads that the compiled runtime computes with; None for `computing_threads`.
    """
    conversions = _conversions(facts, cache)
    if facts.runtime == "torch" or conversions is None:
        return load()
    from clipcls.models.runtime.compiled import CompiledEncoder

    return CompiledEncoder(facts, conversions, load, threads or computing_threads())


def _open_known(spec: ModelSpec, facts: ModelFacts, cache: Cache) -> "Encoder | CompiledEncoder":
    """Open the model of `facts`, and check them, since they may have been recalled hours ago."""
    load = partial(_load_known, spec, facts, cache)
    known = recall(cache, spec)
    if known is None or facts.runtime == "torch":
        encoder = load()  # the cache may have lost the facts since
        return open_runtime(_calibrated(facts, cache), cache, lambda: encoder)
    if known != facts:
        raise _changed(spec)
    return open_runtime(_calibrated(facts, cache), cache, load)


def _calibrated(facts: ModelFacts, cache: Cache) -> ModelFacts:
    """Return the facts with the calibration of a model in int8.

    Raises:
        UsageError: it hasn't been quantised.
    """
    if facts.precision != "int8":
        return facts
    conversions = _conversions(facts, cache)
    quantised = conversions and conversions.find("visual", "int8")
    if not quantised:
        raise NotQuantisedError(facts.name)
    return replace(facts, calibration=str(quantised.notes.get("calibration")))


def _conversions(facts: ModelFacts, cache: Cache) -> Conversions | None:
    return cache.conversions and Conversions(*cache.conversions, facts.fingerprint, cache.file_sha256)


def _load(spec: ModelSpec, cache: Cache) -> "tuple[Encoder, dict[str, Any]]":
    """Open a model's torch encoder, and return what the runtime changes in its facts."""
    entry = catalog.find(spec.name)
    if entry is not None and entry.repo and entry.extra is None:
        # importing torch takes seconds, and this error should not
        from clipcls.models.hub import require_within_reach

        require_within_reach(entry.repo, catalog.WEIGHT_NAMES)
    # torch is imported only here, so that a run with only cached features doesn't import it
    from clipcls.models.device import choose_device
    from clipcls.models.encoder import load_encoder

    runtime = choose_runtime(spec, choose_device(spec.device).type, cache.is_on)
    if spec.precision != "int8":
        return load_encoder(spec), {"runtime": runtime}
    return load_encoder(replace(spec, precision="fp32")), {"runtime": runtime, "precision": "int8"}


def _load_known(spec: ModelSpec, facts: ModelFacts, cache: Cache) -> "Encoder":
    encoder, of_runtime = _load(spec, cache)
    known: dict[str, Any] = {"fingerprint": encoder.fingerprint(cache.file_sha256), "weights": facts.weights}
    found = replace(encoder.facts(None), **known, **of_runtime)
    if found != facts:
        remember(cache, spec, found, encoder.seen)
        raise _changed(spec)
    return encoder


def _changed(spec: ModelSpec) -> ModelError:
    return ModelError(f"{spec.name}: the model, or what `auto` stands for, has changed meanwhile. Run it again.")

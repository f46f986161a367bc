"""Check that a model is what it says: files, activation, preprocessing, tokenizer, weights, features.

All faults are reported, not only the first; nothing is claimed that can't be known.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from clipcls.check.config import Located, check_activation, check_preprocessing, suggest
from clipcls.check.findings import Finding, error, note, ok, warning
from clipcls.check.weights import (
    architecture_names,
    config_sizes,
    fitting_architectures,
    known_origins,
    token_ids,
    tower_values,
    weights_sizes,
)
from clipcls.embed.cache.store import Cache
from clipcls.errors import ClipclsError, ModelError, UsageError, quoted
from clipcls.models.checkpoint import Checkpoint, Tower, build_tower
from clipcls.models.device import choose_device, choose_precision
from clipcls.models.encoder import Encoder
from clipcls.models.locate import ModelFiles, bare_weights, locate_despite
from clipcls.models.runtime.choice import choose_runtime
from clipcls.models.tokenizer import context_length_of, load_tokenizer
from clipcls.records import ModelSpec, Preprocessing

# range of exp(logit_scale): trainings begin at 10 or 14, CLIP's stop at 100, SigLIP's have no limit
_USUAL_SCALES = (2.0, 200.0)
# logit_scale where trainings of CLIP and of SigLIP begin
_FIRST_SCALES = (math.log(1 / 0.07), math.log(10.0))
# share of untrained biases and norms to warn above; pictogram has none, random weights have 75 %
_UNTRAINED = 0.5
_BUILT_IN_TEXTS = ("a photo of a cat", "a red truck on a road", "the sea at night")


@dataclass(frozen=True, slots=True)
class SoundModel:
    """The parts of a model that the checks found usable.

    Attributes:
        tokenizer: one of open_clip's; None if it can't be loaded.
        encoder: None if it can't compute features.
    """

    files: ModelFiles
    tokenizer: Any
    encoder: Encoder | None


def check_model(spec: ModelSpec, cache: Cache) -> Generator[Finding, None, SoundModel | None]:
    """Check a model.

    Args:
        cache: remembers the checksum of the weights.

    Yields:
        Findings, as they are made.

    Returns:
        The parts of the model that are usable; None if not even its configuration is.
    """
    files, errors = locate_despite(spec)
    yield from (error("model", exc) for exc in errors)
    device_findings, encoder_options = _device(spec, cache)
    yield from device_findings
    if files is None:
        if (weights := bare_weights(spec)) is not None and weights.is_file():
            yield from suggest(spec, weights, cache)
        return None
    located = yield from _open(files, cache)
    if not (yield from _check_architecture(files)):
        return None
    yield from check_activation(files, located)
    yield from check_preprocessing(files, located)
    tokenizer = yield from _check_tokenizer(files)
    encoder = None
    if located is not None and (yield from _check_weights(located)) and encoder_options is not None:
        encoder = yield from _check_features(Encoder(files, *encoder_options), tokenizer)
    return SoundModel(files, tokenizer, encoder)


def _device(spec: ModelSpec, cache: Cache) -> tuple[list[Finding], tuple[Any, Any] | None]:
    try:
        device = choose_device(spec.device)
        # what is checked of a model in int8 is what it was quantised from
        precision = choose_precision("fp32" if spec.precision == "int8" else spec.precision, device)
        runtime = choose_runtime(spec, device.type, cache.is_on)
    except UsageError as exc:
        return [error("device", exc)], None
    shown = "int8" if spec.precision == "int8" else precision
    return [ok("device", f"{device}, in {shown}, computed by {runtime}")], (device, precision)


def _open(files: ModelFiles, cache: Cache) -> Generator[Finding, None, Located | None]:
    if not files.weights.is_file():
        return None
    try:
        checkpoint = Checkpoint(files.weights)
        digest = cache.file_sha256(files.weights)
    except ModelError as exc:
        yield error("weights", exc)
        return None
    origins = tuple(known_origins(files.weights, files.name, digest))
    known = f"; these are {origins[0]}, since {origins[0].evidence}" if origins else ""
    megabytes = files.weights.stat().st_size / 2**20
    yield ok("model", f"{files.weights}, {megabytes:,.1f} MB, SHA-256 {digest.hex()[:12]}…{known}")
    return Located(files, checkpoint, origins)


def _check_architecture(files: ModelFiles) -> Generator[Finding, None, bool]:
    try:
        sizes = config_sizes(files.config)
    except ModelError as exc:
        yield error("architecture", exc)
        return False
    names = architecture_names(files.config)
    named = f"that of {quoted(names)}: " if names else ""
    timm = files.config["vision_cfg"].get("timm_model_name")
    yield ok("architecture", f"{named}{sizes}{f', {timm}' if timm else ''}")
    return True


def _check_tokenizer(files: ModelFiles) -> Generator[Finding, None, Any]:
    text_config = files.config["text_cfg"]
    try:
        tokenizer = load_tokenizer(files)
        count = token_ids(tokenizer)
    except ModelError as exc:
        yield error("tokenizer", exc)
        return None
    kind = "CLIP's own" if files.tokenizer is None else f"Hugging Face's, from {files.tokenizer}"
    room = None if text_config.get("hf_model_name") else text_config.get("vocab_size", 49408)
    if room is not None and count > room:
        yield error(
            "tokenizer",
            ModelError(f"{kind}: {count:,} tokens, but the model has a vocabulary of {room:,} only"),
            "Use the tokenizer that the model was trained with.",
        )
        return None
    yield ok("tokenizer", f"{kind}, {count:,} tokens; a prompt may have {context_length_of(files)}")
    return tokenizer


def _check_weights(located: Located) -> Generator[Finding, None, bool]:
    """Check both towers and the scale; returns whether the model can be used with them."""
    sizes, wanted = weights_sizes(located.checkpoint), config_sizes(located.files.config)
    differences = sizes.differences(wanted)
    resized = [str(difference) for difference in differences if difference.is_resized]
    if resized:
        yield warning(
            "weights",
            f"trained with {' and '.join(resized)}: positions are interpolated, and features are others",
            "Use the architecture, or the configuration, that the weights were trained with.",
        )
    fits = True
    for tower in get_args(Tower):
        fits &= yield from _check_tower(located, tower)
    if not fits:
        others = [str(difference) for difference in differences if not difference.is_resized]
        yield from _explain_misfit(located, others)
    scale_findings = list(_check_scale(located))
    yield from scale_findings
    return fits and not any(finding.level == "error" for finding in scale_findings)


def _check_tower(located: Located, tower: Tower) -> Generator[Finding, None, bool]:
    """Check a tower's tensors; returns whether they fit it."""
    name = "image tower" if tower == "visual" else "text tower"
    try:
        values = tower_values(build_tower(located.files, located.checkpoint, tower))
    except ModelError as exc:
        yield error(name, exc)
        return False
    path = located.checkpoint.path
    for wrong, what in ((values.not_finite, "values that aren't numbers"), (values.constant, "one value throughout")):
        if wrong:
            yield error(
                name,
                ModelError(f"{path}: tensors with {what}: {quoted(wrong)}"),
                "The file is damaged, or was saved before its weights were loaded. Get it again.",
            )
    if values.untrained_vectors > _UNTRAINED:
        yield warning(
            name,
            f"{values.untrained_vectors:.0%} of its biases and norms are as they are before any training",
            "If that isn't meant, look for the weights after the training.",
        )
    if not values.not_finite and not values.constant:
        yield ok(name, f"every tensor is there, {values.parameters:,} parameters, all numbers")
    return True


def _explain_misfit(located: Located, differences: Sequence[str]) -> Iterator[Finding]:
    if differences:
        yield note("weights", f"by their shapes they have {'; '.join(differences)}")
    fitting = fitting_architectures(located.checkpoint)
    if fitting:
        yield note("weights", f"open_clip's architectures that they fit: {', '.join(fitting)}")


def _check_scale(located: Located) -> Iterator[Finding]:
    path = located.checkpoint.path
    try:
        scale, bias = (located.checkpoint.scalar(name) for name in ("logit_scale", "logit_bias"))
    except ModelError as exc:
        yield error("temperature", exc)
        return
    if scale is None:
        yield error(
            "temperature", ModelError(f"{path}: no logit_scale, so scores would rest on a made-up temperature.")
        )
    elif not math.isfinite(scale) or scale > 80:  # exp(89) is no float32 any more
        yield error("temperature", ModelError(f"{path}: logit_scale {scale:g} can't be; it is stored as a logarithm."))
    else:
        yield _judged_scale(scale)
    if bias is None and located.files.config.get("init_logit_bias") is not None:
        yield error("bias", ModelError(f"{path}: its configuration has a logit_bias, the weights have none."))
    elif bias is not None and not math.isfinite(bias):
        yield error("bias", ModelError(f"{path}: logit_bias is {bias}."))
    elif bias is not None:
        yield ok("bias", f"{bias:.3f}, as of a model trained with the sigmoid loss")
    else:
        yield ok("bias", "none, so that --multi-label compares each label with a background")


def _judged_scale(scale: float) -> Finding:
    factor = math.exp(scale)
    low, high = _USUAL_SCALES
    if any(abs(scale - first) < 1e-4 for first in _FIRST_SCALES):
        return warning(
            "temperature",
            f"exp(logit_scale) is {factor:.2f}, where trainings begin: these may be weights before any training",
            "Look for the weights after the training.",
        )
    if not low <= factor <= high:
        return warning(
            "temperature",
            f"exp(logit_scale) is {factor:.4g}; trainings begin at 10 or 14, and CLIP's stop at 100",
            "Softmax scores will be all alike, or all 0 and 1. Look whether the file has the logarithm of the scale.",
        )
    return ok("temperature", f"{1 / factor:.4g}: cosines are multiplied by {factor:.2f}")


def _check_features(encoder: Encoder, tokenizer: Any) -> Generator[Finding, None, Encoder | None]:
    """Compute a few features; returns the encoder if they are sound and there is a tokenizer."""
    try:
        kinds = {"pictures": encoder.encode_image(_built_in_pictures(encoder.preprocess))}
        if tokenizer is not None:
            kinds["texts"] = encoder.encode_text(_BUILT_IN_TEXTS)
    except ClipclsError as exc:
        yield error("features", exc)
        return None
    usable = True
    for kind, features in kinds.items():
        if not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3):
            yield error("features", ModelError(f"those of {kind} have no length, so they have no direction either"))
            usable = False
        elif np.abs(features - features[0]).max() < 1e-6:
            yield error("features", ModelError(f"different {kind} have the same features"))
            usable = False
    if usable:
        yield ok("features", f"{encoder.embed_dim} numbers; {len(kinds['pictures'])} built-in pictures differ")
    return encoder if usable and tokenizer is not None else None


def _built_in_pictures(preprocess: Preprocessing) -> list[NDArray[np.uint8]]:
    height, width = preprocess.size
    ramp = np.broadcast_to(np.linspace(0, 255, width)[:, None], (height, width, 3))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return [picture.astype(np.uint8) for picture in (np.full((height, width, 3), 255), ramp, noise)]

"""Compare the activation and preprocessing that a model is configured with to those its weights are known to need.

Neither is in the tensors, so nothing is claimed where the weights' origin isn't known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcls.check.findings import Finding, error, note, ok, warning
from clipcls.check.weights import (
    Origin,
    architecture_names,
    fitting_architectures,
    is_openai_archive,
    is_same,
    known_origins,
    preset_name,
    stated_preprocessings,
    weights_sizes,
)
from clipcls.embed.cache.store import Cache
from clipcls.errors import ModelError, quoted
from clipcls.models.checkpoint import Checkpoint
from clipcls.models.locate import CONFIG_NAME, ModelFiles, bare_weights
from clipcls.records import ModelSpec, Preprocessing

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Located:
    """A model's files, and what their weights are known to be."""

    files: ModelFiles
    checkpoint: Checkpoint
    origins: tuple[Origin, ...]


def check_activation(files: ModelFiles, located: Located | None) -> Iterator[Finding]:
    """Compare the activation with the one that the weights were trained with, where that is known.

    Args:
        located: None where the weights can't be read.
    """
    quick = bool(files.config.get("quick_gelu"))
    name = _activation(quick)
    stated_by = _stated_by(files)
    if located is None:
        yield note("activation", f"{name}, says {stated_by}; the weights that it belongs to aren't there")
        return
    expected = {origin.quick_gelu for origin in located.origins}
    evidence = f"these are the weights of {located.origins[0]}: {located.origins[0].evidence}" if expected else ""
    if not expected and is_openai_archive(located.checkpoint):
        expected = {True}
        evidence = "the weights carry input_resolution, context_length and vocab_size, as OpenAI's own archives do"
    if expected == {not quick}:
        yield error(
            "activation",
            ModelError(
                f"{stated_by} says {name}, but {evidence}, and those were trained with {_activation(not quick)}"
            ),
            _activation_remedy(files, not quick),
        )
    elif expected == {quick}:
        yield ok("activation", f"{name}, says {stated_by}; {evidence}")
    elif not quick and _is_called_quickgelu(files.weights):
        yield warning(
            "activation",
            f"{name}, says {stated_by}, but the file is called {files.weights.name}",
            _activation_remedy(files, True),
        )
    else:
        yield _unproven_activation(files, name, stated_by)


def _is_called_quickgelu(weights: Path) -> bool:
    return "quickgelu" in weights.name.lower().replace("-", "").replace("_", "")


def _unproven_activation(files: ModelFiles, name: str, stated_by: str) -> Finding:
    message = f"{name}, says {stated_by}; tensors can't tell"
    if stated_by != "--arch":
        return ok("activation", message)
    return note(
        "activation",
        message,
        "Ask its model card, or whoever trained it. With labelled pictures, try both: the wrong one names fewer right.",
    )


def _activation(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _activation_remedy(files: ModelFiles, quick: bool) -> str:
    if _stated_by(files) == "--arch":
        names = [name for name in architecture_names(files.config) if name.endswith("-quickgelu") == quick]
        return f"Use --arch {names[0]}." if names else "Use an architecture with the other activation."
    return f'Write "quick_gelu": {str(quick).lower()} into model_cfg of the configuration.'


def _stated_by(files: ModelFiles) -> str:
    """Return what states the activation: a configuration file, `--arch` or open_clip's table."""
    config = next((path for path in files.settings if path.name == CONFIG_NAME), None)
    if config is not None:
        said = "" if "quick_gelu" in files.config else " by saying nothing of it"
        return f"{config}{said}"
    return "--arch" if bare_weights(ModelSpec(files.name)) is not None else "open_clip's entry of the tag"


def check_preprocessing(files: ModelFiles, located: Located | None) -> Iterator[Finding]:
    """Compare the preprocessing with what open_clip states for the weights, or else for any of their architecture.

    Args:
        located: None where the weights can't be read.
    """
    preprocess = files.preprocess
    described = _described(preprocess)
    origins = located.origins if located is not None else ()
    names = architecture_names(files.config)
    stated = [origin.preprocess for origin in origins] or [
        found for arch in names for found in stated_preprocessings(arch)
    ]
    whose = f"the weights of {origins[0]}" if origins else f"weights of {quoted(names)}"
    if stated and any(is_same(preprocess, other) for other in stated):
        yield ok("preprocessing", f"{described}; as open_clip states it for {whose}")
    elif stated:
        yield warning(
            "preprocessing",
            f"{described}; but open_clip states for {whose}: {'; or '.join(map(_described, dict.fromkeys(stated)))}",
            _preprocessing_remedy(files, stated[0]),
        )
    else:
        yield from _compare_with_bias(files, located, described)


def _compare_with_bias(files: ModelFiles, located: Located | None, described: str) -> Iterator[Finding]:
    """Check the preprocessing by whether the model has a logit_bias, as SigLIP has, where nothing is stated for it."""
    preprocess = files.preprocess
    has_bias = files.config.get("init_logit_bias") is not None
    has_bias |= located is not None and "logit_bias" in located.checkpoint.keys
    is_siglip = preprocess.mean == _HALF and preprocess.std == _HALF
    if has_bias and not is_siglip:
        yield warning(
            "preprocessing",
            f"{described}; but the model has a logit_bias, as SigLIP has, and SigLIP's mean and std are 0.5",
            "Weights of SigLIP need SigLIP's preprocessing (--preprocess siglip). Others may be well as they are.",
        )
    elif is_siglip and preprocess.resize_mode == "squash" and not has_bias:
        yield warning(
            "preprocessing",
            f"{described}; that is SigLIP's, but the model has no logit_bias, as SigLIP has",
            "Weights of OpenAI's CLIP need OpenAI's (--preprocess openai). Others may be well as they are.",
        )
    else:
        yield ok("preprocessing", described)


def _described(preprocess: Preprocessing) -> str:
    height, width = preprocess.size
    name = preset_name(preprocess)
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (preprocess.mean, preprocess.std))
    called = f" (--preprocess {name})" if name else ""
    return f"{width}×{height}, {preprocess.resize_mode}, {preprocess.interpolation}, mean {mean}, std {std}{called}"


def _preprocessing_remedy(files: ModelFiles, preprocess: Preprocessing) -> str:
    if files.settings and files.settings[0].name == CONFIG_NAME:
        return f"Write these values into preprocess_cfg of {files.settings[0]}, if the weights are open_clip's."
    preset = preset_name(preprocess) or "FILE.json with these values"
    return f"Use --preprocess {preset}, if the weights are open_clip's."


def suggest(spec: ModelSpec, weights: Path, cache: Cache) -> Iterator[Finding]:
    """Say what a bare weights file is, as far as its tensors tell, and how to use it."""
    origins = known_origins(weights, spec.name, cache.file_sha256(weights))
    for origin in origins[:1]:
        yield note("weights", f"these are the weights of {origin}: {origin.evidence}", f"Use --model {origin}.")
    try:
        checkpoint = Checkpoint(weights)
    except ModelError as exc:
        # such as one of OpenAI's own archives: TorchScript, which is code
        yield error("weights", exc)
        return
    yield note("weights", f"{weights}: {weights_sizes(checkpoint)}, by the shapes of its tensors")
    if (config := weights.with_name(CONFIG_NAME)).is_file():
        yield note("weights", f"beside them is {config}", f"Use --model {weights.parent}, if they belong together.")
    fitting = fitting_architectures(checkpoint)
    if not fitting:
        yield note("weights", "none of open_clip's architectures that can be tried without a connection fits them")
        return
    quick = {origin.quick_gelu for origin in origins} or ({True} if is_openai_archive(checkpoint) else set())
    if len(quick) == 1:
        fitting = [arch for arch in fitting if arch.endswith("-quickgelu") == (True in quick)] or fitting
    yield note("weights", f"open_clip's architectures that they fit: {', '.join(fitting)}")
    yield note("weights", *_command(weights, fitting, "logit_bias" in checkpoint.keys))


def _command(weights: Path, fitting: Sequence[str], has_bias: bool) -> tuple[str, str]:
    """Return what the user has to decide, and the command for it."""
    stated = {preset_name(preprocess) for arch in fitting for preprocess in stated_preprocessings(arch)}
    choices = sorted(name or "FILE.json" for name in stated) or [
        "siglip" if has_bias else "openai|imagenet",
        "FILE.json",
    ]
    is_open = any(f"{arch}-quickgelu" in fitting for arch in fitting)
    questions = ["activation"] if is_open else ["architecture"] if len(fitting) > 1 else []
    own = f"; open_clip's own weights of these architectures have {' or '.join(choices)}" if stated else ""
    return (
        f"tensors can't tell {' and '.join([*questions, 'preprocessing'])}; their model card does{own}",
        f"Use --model {weights} --arch {'|'.join(fitting)} --preprocess {'|'.join(choices)}",
    )

"""Finds the files and settings of a named model, and never guesses them."""

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained as open_clip_pretrained

from clipcls.errors import ClipclsError, ModelError, UsageError
from clipcls.labels import vocabulary
from clipcls.models import catalog, hub
from clipcls.models.preprocess import parse_preprocessing, preprocess_settings, read_json
from clipcls.records import ModelSpec, Preprocessing

CONFIG_NAME = "open_clip_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_VOCABULARY_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
#: Said where a model's tokenizer needs a package that isn't installed.
NO_TRANSFORMERS = "The model's tokenizer needs the extra clipcls[siglip]: pip install transformers sentencepiece"
# all files that `AutoTokenizer` reads; config.json names the tokenizer's class where no other file does
_TOKENIZER_FILES = (*_VOCABULARY_FILES, "added_tokens.json", "config.json", catalog.TOKENIZER_CONFIG)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files and all settings of a model that has been found.

    Attributes:
        name: the name that the user gave.
        config: open_clip's `model_cfg`, with the activation that belongs to the weights.
        weights: a safetensors file or a checkpoint of tensors.
        tokenizer: folder of a Hugging Face tokenizer; None for CLIP's own.
        words: the words of the model's training captions, if it states them.
        settings: the files that `config` and `preprocess` were read from.
    """

    name: str
    config: dict[str, Any]
    preprocess: Preprocessing
    weights: Path
    tokenizer: Path | None = None
    words: frozenset[str] | None = None
    settings: tuple[Path, ...] = ()

    def all(self) -> list[Path]:
        """Return every file that the model is read from."""
        return [self.weights, *self.settings, *self.tokenizer_files()]

    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer; none for CLIP's own."""
        if self.tokenizer is None:
            return []
        return [self.tokenizer / name for name in _TOKENIZER_FILES if (self.tokenizer / name).is_file()]


def pretrained_names() -> list[str]:
    """Return every NAME:TAG that open_clip has weights for."""
    return [f"{name}:{tag}" for name, tag in open_clip.list_pretrained()]


def locate(spec: ModelSpec, *, refresh: bool = False) -> ModelFiles:
    """Find a model's files; those on the hub are downloaded unless they are cached.

    Args:
        refresh: ask the hub for a newer copy.

    Raises:
        ModelError: the model can't be found or read, or its activation or preprocessing would be a guess.
        UsageError: --arch or --preprocess is given though the model states it, or missing though it doesn't.
    """
    if not spec.name:
        raise UsageError("--model is empty. `clipcls models` lists what there is.")
    if (weights := bare_weights(spec)) is not None:
        return _from_file(spec, weights)
    if spec.arch is not None:
        raise UsageError(f"--arch belongs to a bare weights file; {spec.name!r} says its architecture itself.")
    if (folder := catalog.model_folder(spec.name)) is not None:
        return _from_folder(spec, folder)
    name = catalog.full_name(spec.name)
    if name.startswith("hf-hub:"):
        return _from_hub(spec, name.removeprefix("hf-hub:"), refresh)
    return _from_tag(spec, name, refresh)


def locate_despite(spec: ModelSpec) -> tuple[ModelFiles | None, list[ClipclsError]]:
    """Find a model's files like `locate`, but collect all errors instead of raising the first.

    Returns:
        The files as if there were no errors (for a folder without weights, the name that they should have), or None
        where they can't be determined; and the errors.
    """
    errors: dict[str, ClipclsError] = {}
    for find in _attempts(spec):
        try:
            found = find()
        except ClipclsError as exc:
            errors.setdefault(str(exc), exc)
        else:
            # some attempts check a part of the model only
            if isinstance(found, ModelFiles):
                return found, list(errors.values())
    return None, list(errors.values())


def bare_weights(spec: ModelSpec) -> Path | None:
    """Return the file that `spec` names, if that is a bare weights file; it may not exist."""
    name = catalog.full_name(spec.name)
    path = Path(name.removeprefix("local-dir:"))
    return path if path.is_file() or (path.suffix in WEIGHT_SUFFIXES and ":" not in name) else None


def _attempts(spec: ModelSpec) -> Iterator[Callable[[], object]]:
    """Yield ways to find a model or a part of it, each with fewer settings that may be wrong."""
    yield partial(locate, spec)
    if bare_weights(spec) is not None:
        if spec.arch is not None:
            yield partial(architecture, spec.arch)
        if spec.preprocess is not None:
            yield partial(preprocess_settings, spec.preprocess)
        return
    options = [replace(spec, arch=None), replace(spec, arch=None, preprocess=None)]
    for fewer in dict.fromkeys(options):
        if fewer != spec:
            yield partial(locate, fewer)
    if (folder := catalog.model_folder(spec.name)) is not None and folder.is_dir():
        yield partial(_weights_in, folder)
        for fewer in dict.fromkeys(options):
            yield partial(_from_folder, fewer, folder, folder / catalog.WEIGHT_NAMES[0])


def _from_folder(spec: ModelSpec, folder: Path, weights: Path | None = None) -> ModelFiles:
    config_path = folder / CONFIG_NAME
    if not config_path.is_file():
        raise ModelError(f"{folder}: no {CONFIG_NAME} in this folder, so it isn't a model that can be loaded.")
    weights = weights or _weights_in(folder)
    return _from_config(spec, config_path, weights, tokenizer=folder, words=vocabulary.read_words(folder))


def _from_hub(spec: ModelSpec, repo: str, refresh: bool) -> ModelFiles:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UsageError(f"hf-hub:{repo}: expected hf-hub:ORG/REPO.")
    config_path = hub.fetch(repo, [CONFIG_NAME], refresh=refresh)
    files = _from_config(spec, config_path, Path(), tokenizer=None, words=None)
    # last, since they are large
    tokenizer = fetch_tokenizer(files.config["text_cfg"], refresh)
    return replace(files, tokenizer=tokenizer, weights=hub.fetch(repo, catalog.WEIGHT_NAMES, refresh=refresh))


def _has_towers(model: dict[str, Any]) -> bool:
    return all(isinstance(model.get(name), dict) for name in ("vision_cfg", "text_cfg"))


def _from_config(
    spec: ModelSpec, config_path: Path, weights: Path, *, tokenizer: Path | None, words: frozenset[str] | None
) -> ModelFiles:
    config = read_json(config_path)
    model = config.get("model_cfg")
    if not isinstance(model, dict) or "embed_dim" not in model or not _has_towers(model):
        raise ModelError(f"{config_path}: no model_cfg with embed_dim, vision_cfg and text_cfg.")
    stated = config.get("preprocess_cfg")
    if stated and not isinstance(stated, dict):
        raise ModelError(f"{config_path}: preprocess_cfg is {stated!r}, not an object.")
    if stated and spec.preprocess:
        raise UsageError(f"--preprocess: {config_path} states the preprocessing itself.")
    if not stated and not spec.preprocess:
        raise ModelError(
            f"{config_path}: no preprocess_cfg, and a guess could be silently wrong. "
            "Give --preprocess openai|imagenet|siglip|FILE.json."
        )
    settings: dict[str, Any] = preprocess_settings(spec.preprocess) if spec.preprocess else dict(stated or {})
    needs_tokenizer = bool(model["text_cfg"].get("hf_tokenizer_name"))
    model = _with_local_text_model(model)
    return ModelFiles(
        name=spec.name,
        config=model,
        preprocess=parse_preprocessing(settings, model, str(config_path)),
        weights=weights,
        tokenizer=tokenizer if needs_tokenizer else None,
        words=words,
        settings=(config_path, *_settings_files(spec, model)),
    )


def _from_file(spec: ModelSpec, path: Path) -> ModelFiles:
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file.")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(f"{path}: not a weights file ({', '.join(WEIGHT_SUFFIXES)}) and not a model folder.")
    if spec.arch is None or spec.preprocess is None:
        raise UsageError(
            f"{path}: a bare weights file says neither its activation nor its preprocessing, and either guess could "
            "be silently wrong. Give --arch NAME (such as ViT-B-32 or ViT-B-32-quickgelu) or FILE.json, and "
            "--preprocess openai|imagenet|siglip|FILE.json."
        )
    config = architecture(spec.arch)
    return ModelFiles(
        name=spec.name,
        config=config,
        preprocess=parse_preprocessing(preprocess_settings(spec.preprocess), config, "--preprocess"),
        weights=path,
        tokenizer=fetch_tokenizer(config["text_cfg"]),
        settings=_settings_files(spec, config),
    )


def _from_tag(spec: ModelSpec, name: str, refresh: bool) -> ModelFiles:
    arch, _, tag = name.partition(":")
    config = architecture(arch, asked=name)
    if spec.preprocess is not None:
        raise UsageError(f"--preprocess: open_clip states the preprocessing of {name!r}.")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    stated = open_clip_pretrained.get_pretrained_cfg(arch, tag) if tag else {}
    if not stated:
        problem = f"has no weights tagged {tag!r}" if tag else "needs a tag, as in NAME:TAG"
        raise UsageError(f"Model {arch!r} {problem}. Its tags: {', '.join(tags) or 'none'}.")
    repo, _, filename = stated.get("hf_hub", "").rpartition("/")
    if not repo:
        raise ModelError(f"open_clip has no hub address for {name!r}.")
    names = [f"{filename.rpartition('.')[0]}.safetensors", filename] if filename else catalog.WEIGHT_NAMES
    # the tag states the activation of its weights; open_clip itself only warns of a mismatch
    config["quick_gelu"] = bool(config.get("quick_gelu") or stated.get("quick_gelu"))
    tokenizer = fetch_tokenizer(config["text_cfg"], refresh)
    return ModelFiles(
        name=name,
        config=config,
        preprocess=parse_preprocessing(stated, config, name),
        weights=hub.fetch(repo, names, refresh=refresh),
        tokenizer=tokenizer,
        settings=_settings_files(spec, config),
    )


def _settings_files(spec: ModelSpec, config: dict[str, Any]) -> tuple[Path, ...]:
    """Return the files that --arch and --preprocess name, and the config.json of a transformers text tower."""
    stated = [Path(name) for name in (spec.arch, spec.preprocess) if name and name.endswith(".json")]
    text_model = config["text_cfg"].get("hf_model_name")
    return (*stated, *([Path(text_model) / "config.json"] if text_model else []))


def architecture(arch: str, asked: str | None = None) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of an architecture, with a text tower of transformers in a local folder.

    Args:
        arch: open_clip's name for it, or a JSON file in open_clip's format.
        asked: what the user asked for, if it is more than the architecture.

    Raises:
        UsageError: there is no such architecture, or the file doesn't hold one.
    """
    if arch.endswith(".json") and asked is None:
        return _with_local_text_model(read_architecture(arch))
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if config is None:
        known = [*(entry.alias for entry in catalog.CATALOG), *open_clip.list_models()]
        near = catalog.suggestions(arch, known)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"No model, folder or file {asked or arch!r}.{hint} See `clipcls models` and `clipcls models --all`."
        )
    return _with_local_text_model(config)


def read_architecture(path: str) -> dict[str, Any]:
    """Return the `model_cfg` that a JSON file in open_clip's format holds, by itself or under that name.

    Raises:
        UsageError: the file can't be read, or doesn't describe two towers.
    """
    try:
        content = read_json(Path(path))
    except ModelError as exc:
        raise UsageError(f"{exc} An architecture is a JSON file in open_clip's format.") from exc
    model = content.get("model_cfg", content)
    if not isinstance(model, dict):
        raise UsageError(f"{path}: model_cfg must be a JSON object, not {model!r:.100}")
    for name in ("embed_dim", "vision_cfg", "text_cfg"):
        if name not in model:
            raise UsageError(f"{path}: the architecture lacks {name!r}")
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(model[name], dict):
            raise UsageError(f"{path}: {name} must be a JSON object, not {model[name]!r:.100}")
    return model


def _with_local_text_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that names a transformers text tower, if there is one, by a local folder, not a hub name."""
    config = deepcopy(config)
    name = config["text_cfg"].get("hf_model_name")
    if name and not isinstance(name, str):
        raise ModelError(f"text_cfg: hf_model_name is {name!r}, not a name.")
    if name and not Path(name).is_dir():
        config["text_cfg"]["hf_model_name"] = str(hub.fetch(name, ["config.json"]).parent)
    return config


def fetch_tokenizer(text_config: dict[str, Any], refresh: bool = False) -> Path | None:
    """Return the folder of a Hugging Face tokenizer with its optional files; None if the model uses CLIP's own.

    Raises:
        ModelError: a file can't be had, or the package that reads them isn't installed.
    """
    repo = text_config.get("hf_tokenizer_name")
    if not repo:
        return None
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(NO_TRANSFORMERS)
    last = hub.cached(repo, _TOKENIZER_FILES[-1:])
    # a config.json may be there for a text tower of transformers, without any file of the tokenizer
    is_whole = last is not None and any((last.parent / name).is_file() for name in _VOCABULARY_FILES)
    if last is not None and is_whole and (not refresh or hub.is_offline()):
        return last.parent
    for name in _TOKENIZER_FILES[:-1]:
        with contextlib.suppress(hub.NoSuchFileError):  # no repository has all of these
            hub.fetch(repo, [name], refresh=refresh)
    # the one that each has comes last, so that where it is, nothing is missing
    return hub.fetch(repo, _TOKENIZER_FILES[-1:], refresh=refresh).parent


def _weights_in(folder: Path) -> Path:
    for name in catalog.WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(others) == 1:
        return folder / others[0]
    if others:
        raise ModelError(f"{folder}: which weights? Rename one of {', '.join(others)} to {catalog.WEIGHT_NAMES[0]}.")
    raise ModelError(f"{folder}: no weights here ({catalog.WEIGHT_NAMES[0]}); random ones are never used instead.")

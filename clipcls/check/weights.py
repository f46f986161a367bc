"""Read from a weights file, without trusting it, its model's sizes, origin, values and fitting architectures.

Names and shapes of tensors tell sizes, never the activation: QuickGELU and GELU have no weights. The activation is
known only where the file's origin is: by its hub repository, by a checksum that open_clip's table states, or by tensors
that only OpenAI's own archives carry.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained as open_clip_pretrained
from torch import nn

from clipcls.errors import ModelError
from clipcls.models.checkpoint import Checkpoint, build_tower
from clipcls.models.locate import ModelFiles
from clipcls.models.preprocess import parse_preprocessing, preprocess_settings
from clipcls.records import Preprocessing

# tensors in OpenAI's TorchScript archives, and in state dictionaries taken from one; these models use QuickGELU
_OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}
_CACHED_REPO = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_SIZES = ("image_size", "patch_size", "width", "layers", "heads", "vocab_size", "context_length")
_PRESETS = ("openai", "imagenet", "siglip")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a model by its tensors or its configuration; None for those that aren't known.

    Attributes:
        image_tower: `ViT`, `ResNet` or `timm`.
        image_layers: number of layers, or of those in each stage of a ResNet.
        image_size: side of the square pictures that it takes, in pixels.
        text_tower: `CLIP` or `transformers`.
    """

    embed_dim: int | None = None
    image_tower: str | None = None
    image_width: int | None = None
    image_layers: int | tuple[int, ...] | None = None
    patch_size: int | None = None
    image_size: int | None = None
    text_tower: str | None = None
    text_width: int | None = None
    text_layers: int | None = None
    vocab_size: int | None = None
    context_length: int | None = None

    def differences(self, other: "Sizes") -> list["Difference"]:
        """Return the sizes that are known on both sides and differ."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [Difference(*pair) for pair in pairs if None not in pair and pair[1] != pair[2]]

    def __str__(self) -> str:
        known = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Difference:
    """A size that the weights and a configuration disagree on."""

    name: str
    weights: object
    config: object

    @property
    def is_resized(self) -> bool:
        """Whether the weights load nevertheless, with positions that open_clip interpolates and so other features."""
        return self.name in ("image_size", "context_length")

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')} {self.weights}, not {self.config}"


@dataclass(frozen=True, slots=True)
class Origin:
    """The entry of open_clip's table that a weights file is known to belong to.

    Attributes:
        evidence: how that is known.
    """

    arch: str
    tag: str
    quick_gelu: bool
    preprocess: Preprocessing
    evidence: str

    def __str__(self) -> str:
        return f"{self.arch}:{self.tag}"


@dataclass(frozen=True, slots=True)
class TowerValues:
    """What the values of a tower's tensors show.

    Attributes:
        parameters: number of parameters.
        not_finite: names of tensors with NaN or infinite values.
        constant: names of matrices whose values are all the same.
        untrained_vectors: share of biases and norms whose values are all the same, as they are before any training.
    """

    parameters: int
    not_finite: tuple[str, ...]
    constant: tuple[str, ...]
    untrained_vectors: float


def weights_sizes(checkpoint: Checkpoint) -> Sizes:
    """Return the sizes that the names and shapes of a file's tensors tell."""
    tensors = _Tensors(checkpoint)
    if checkpoint.is_mobile_clip:
        # Apple's own layout, under other names
        return Sizes()
    return Sizes(**_image_sizes(tensors), **_text_sizes(tensors), embed_dim=_embed_dim(tensors))


def config_sizes(config: dict[str, Any]) -> Sizes:
    """Return the sizes that a `model_cfg` of open_clip's states, or leaves to open_clip's defaults.

    Raises:
        ModelError: a value isn't a positive integer.
    """
    _refuse_odd_sizes(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers = vision.get("layers", 12)
    if vision.get("timm_model_name"):
        image: dict[str, Any] = {"image_tower": "timm"}
    elif isinstance(layers, int):
        image = {"image_tower": "ViT", "image_layers": layers, "patch_size": _side(vision.get("patch_size", 16))}
    else:
        image = {"image_tower": "ResNet", "image_layers": tuple(layers)}
    if image["image_tower"] != "timm":
        image |= {"image_width": vision.get("width", 768), "image_size": _side(vision.get("image_size", 224))}
    if text.get("hf_model_name"):
        return Sizes(embed_dim=config["embed_dim"], text_tower="transformers", **image)
    return Sizes(
        embed_dim=config["embed_dim"],
        text_tower="CLIP",
        text_width=text.get("width", 512),
        text_layers=text.get("layers", 12),
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        **image,
    )


def _refuse_odd_sizes(config: dict[str, Any]) -> None:
    stated = {"embed_dim": config["embed_dim"]}
    for section in ("vision_cfg", "text_cfg"):
        stated |= {f"{section}.{name}": config[section][name] for name in _SIZES if name in config[section]}
    for name, value in stated.items():
        numbers = value if isinstance(value, list | tuple) and name.startswith("vision_cfg.") else [value]
        is_absent = value is None and name == "vision_cfg.patch_size"  # ResNets have none
        if not is_absent and not (numbers and all(type(number) is int and number > 0 for number in numbers)):
            raise ModelError(f"model_cfg: {name} is {value!r}, which is no size.")


def is_openai_archive(checkpoint: Checkpoint) -> bool:
    """Tell whether the tensors come from one of OpenAI's own archives, or one of the same form."""
    return set(checkpoint.keys) >= _OPENAI_KEYS


def known_origins(weights: Path, model: str, sha256: bytes) -> list[Origin]:
    """Return the entries of open_clip's table that a file belongs to, by its hub repository or its checksum.

    Args:
        weights: path of the file; in the hub's cache it names the repository.
        model: the model as it was asked for, such as `hf-hub:ORG/REPO`.
        sha256: digest of the file.
    """
    repo = model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else _cached_repo(weights)
    found = []
    for arch, tag in open_clip.list_pretrained():
        stated = open_clip_pretrained.get_pretrained_cfg(arch, tag)
        evidence = ""
        if repo and _repo_of(stated, weights) == repo:
            evidence = f"its repository is {repo}"
        elif _is_checksum(stated.get("url") or "", sha256.hex()):
            evidence = "its SHA-256 is the one that open_clip states"
        if evidence:
            found.append(_origin(arch, tag, evidence))
    return found


def architecture_names(config: dict[str, Any]) -> list[str]:
    """Return open_clip's names for a `model_cfg`, whatever its activation."""
    key = _without_activation(config)
    return [arch for arch in open_clip.list_models() if _without_activation(open_clip.get_model_config(arch)) == key]


def stated_preprocessings(arch: str) -> list[Preprocessing]:
    """Return the distinct preprocessings that open_clip states for the tags of an architecture."""
    found = [_origin(arch, tag, "").preprocess for tag in open_clip.list_pretrained_tags_by_model(arch)]
    return list(dict.fromkeys(found))


def preset_name(preprocess: Preprocessing) -> str | None:
    """Return the name that `--preprocess` has for a preprocessing; None if it has none."""
    config = {"vision_cfg": {"image_size": list(preprocess.size)}}
    for name in _PRESETS:
        if is_same(parse_preprocessing(preprocess_settings(name), config, name), preprocess):
            return name
    return None


def is_same(one: Preprocessing, other: Preprocessing) -> bool:
    """Tell whether two preprocessings give the same values, their sizes aside."""
    values = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    # configurations round the means to three digits
    near = all(abs(a - b) < 2e-3 for a, b in values)
    return near and (one.resize_mode, one.interpolation) == (other.resize_mode, other.interpolation)


def fitting_architectures(checkpoint: Checkpoint) -> list[str]:
    """Return open_clip's architectures that the weights load into with nothing left over and nothing resized.

    Architectures with a tower of the package transformers aren't tried: those are described on the hub.
    """
    sizes = weights_sizes(checkpoint)
    outcomes: dict[str, bool] = {}
    fitting = []
    for arch in open_clip.list_models():
        config = open_clip.get_model_config(arch)
        if config["text_cfg"].get("hf_model_name") or sizes.differences(config_sizes(config)):
            continue
        # architectures that differ in their activation alone load alike
        key = _without_activation(config)
        if key not in outcomes:
            outcomes[key] = _loads(checkpoint, arch, config)
        if outcomes[key]:
            fitting.append(arch)
    return fitting


def tower_values(tower: nn.Module) -> TowerValues:
    """Examine every value of a tower."""
    ranges = dict(_ranges(tower))
    parameters = dict(tower.named_parameters())
    flat = {name for name, (low, high) in ranges.items() if low == high and name in parameters}
    vectors = [name for name, parameter in parameters.items() if parameter.ndim == 1 and parameter.numel() > 1]
    return TowerValues(
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        not_finite=tuple(name for name, ends in ranges.items() if not all(map(math.isfinite, ends))),
        constant=tuple(name for name in ranges if name in flat and parameters[name].ndim > 1),
        untrained_vectors=sum(name in flat for name in vectors) / max(len(vectors), 1),
    )


def token_ids(tokenizer: Any) -> int:
    """Return the size of the vocabulary of one of open_clip's tokenizers."""
    return len(tokenizer.tokenizer) if hasattr(tokenizer, "tokenizer") else int(tokenizer.vocab_size)


def is_unreadable(tokenizer: Any, text: str) -> bool:
    """Tell whether a tokenizer turns a text into no tokens, or into nothing but its unknown token."""
    if not hasattr(tokenizer, "tokenizer"):
        return not tokenizer.encode(text)
    ids = tokenizer.tokenizer(tokenizer.clean_fn(text), add_special_tokens=False)["input_ids"]
    tokens = tokenizer.tokenizer.convert_ids_to_tokens(ids)
    # the mark of a word's beginning may be a token by itself
    return not any(token != tokenizer.tokenizer.unk_token and token.strip("▁Ġ ") for token in tokens)


class _Tensors:
    """The shapes of a file's tensors, by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.keys = frozenset(checkpoint.keys)
        self._checkpoint = checkpoint

    def shape(self, dimensions: int, *names: str) -> tuple[int, ...]:
        """Return the shape of the first of these tensors that has so many dimensions; empty if none has."""
        shapes = (tuple(self._checkpoint.read([name])[name].shape) for name in names if name in self.keys)
        return next((shape for shape in shapes if len(shape) == dimensions), ())

    def count(self, prefix: str) -> int:
        """Count the layers whose tensors' names have a prefix, which their number follows."""
        return len({key.removeprefix(prefix).split(".")[0] for key in self.keys if key.startswith(prefix)})


def _image_sizes(tensors: _Tensors) -> dict[str, Any]:
    if patches := tensors.shape(4, "visual.conv1.weight") if "visual.class_embedding" in tensors.keys else ():
        positions = tensors.shape(2, "visual.positional_embedding")
        return {
            "image_tower": "ViT",
            "image_width": patches[0],
            "image_layers": tensors.count("visual.transformer.resblocks."),
            "patch_size": patches[-1],
            "image_size": _picture_side(positions[0] - 1, patches[-1]) if positions else None,
        }
    if stem := tensors.shape(4, "visual.layer1.0.conv1.weight"):
        positions = tensors.shape(2, "visual.attnpool.positional_embedding")
        return {
            "image_tower": "ResNet",
            "image_width": stem[0],
            "image_layers": tuple(tensors.count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
            "image_size": _picture_side(positions[0] - 1, 32) if positions else None,
        }
    if any(key.startswith("visual.trunk.") for key in tensors.keys):
        return {"image_tower": "timm"} | _trunk_sizes(tensors)
    return {}


def _trunk_sizes(tensors: _Tensors) -> dict[str, Any]:
    """Return the sizes of a vision transformer of timm; other trunks name their tensors differently."""
    patches = tensors.shape(4, "visual.trunk.patch_embed.proj.weight")
    positions = tensors.shape(3, "visual.trunk.pos_embed")
    if not patches or not positions:
        return {}
    extra = 1 if "visual.trunk.cls_token" in tensors.keys else 0
    return {
        "image_width": patches[0],
        "image_layers": tensors.count("visual.trunk.blocks."),
        "patch_size": patches[-1],
        "image_size": _picture_side(positions[1] - extra, patches[-1]),
    }


def _text_sizes(tensors: _Tensors) -> dict[str, Any]:
    prefix = "text." if "text.token_embedding.weight" in tensors.keys else ""
    table = tensors.shape(2, f"{prefix}token_embedding.weight")
    if not table:
        is_transformers = any(key.startswith("text.transformer.") for key in tensors.keys)
        return {"text_tower": "transformers"} if is_transformers else {}
    positions = tensors.shape(2, f"{prefix}positional_embedding")
    # CoCa's class token has a position, too
    extra = 1 if f"{prefix}cls_emb" in tensors.keys else 0
    return {
        "text_tower": "CLIP",
        "text_width": table[1],
        "text_layers": tensors.count(f"{prefix}transformer.resblocks."),
        "vocab_size": table[0],
        "context_length": positions[0] - extra if positions else None,
    }


def _embed_dim(tensors: _Tensors) -> int | None:
    if across := tensors.shape(2, "visual.proj", "text_projection", "text.text_projection"):
        return across[1]
    down = tensors.shape(2, "visual.attnpool.c_proj.weight", "text.text_projection.weight", "text.proj.weight")
    return down[0] if down else None


def _picture_side(patches: int, patch_size: int) -> int | None:
    side = math.isqrt(max(patches, 0))
    return side * patch_size if side and side * side == patches else None


def _side(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    return size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else None


def _cached_repo(weights: Path) -> str | None:
    """Return the repository of a file in the hub's cache, `models--ORG--REPO/snapshots/REVISION/NAME`."""
    if "snapshots" not in weights.parts:
        return None
    found = next((match for part in weights.parts if (match := _CACHED_REPO.fullmatch(part))), None)
    return f"{found[1]}/{found[2]}" if found else None


def _repo_of(stated: dict[str, Any], weights: Path) -> str | None:
    """Return the hub repository of a table's entry; None where the entry names another file than `weights`."""
    repo, _, filename = (stated.get("hf_hub") or "").rpartition("/")
    return repo if not filename or Path(filename).stem == weights.stem else None


def _is_checksum(url: str, digest: str) -> bool:
    """Tell whether a download address carries this checksum, as open_clip reads it to check the file."""
    if "openaipublic" in url:
        return url.split("/")[-2] == digest
    short = Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""
    return len(short) >= 8 and digest.startswith(short)


def _origin(arch: str, tag: str, evidence: str) -> Origin:
    stated = open_clip_pretrained.get_pretrained_cfg(arch, tag)
    config = open_clip.get_model_config(arch)
    quick_gelu = bool(config.get("quick_gelu") or stated.get("quick_gelu"))
    return Origin(arch, tag, quick_gelu, parse_preprocessing(stated, config, f"{arch}:{tag}"), evidence)


def _without_activation(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "quick_gelu"}, sort_keys=True)


def _loads(checkpoint: Checkpoint, arch: str, config: dict[str, Any]) -> bool:
    preprocess = parse_preprocessing(preprocess_settings("openai"), config, arch)
    files = ModelFiles(arch, config, preprocess, checkpoint.path)
    try:
        build_tower(files, checkpoint, "text")
        build_tower(files, checkpoint, "visual")
    except ModelError:
        return False
    return True


def _ranges(tower: nn.Module) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the least and greatest value of each tensor with more than one; a NaN makes both NaN."""
    for name, tensor in tower.state_dict().items():
        if tensor.numel() > 1 and tensor.is_floating_point():
            low, high = torch.aminmax(tensor.float())
            yield name, (low.item(), high.item())

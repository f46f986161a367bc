"""Load built-in label sets by name: files of this package, and ImageNet's names from open_clip's."""

import ast
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from clipcls.errors import UsageError
from clipcls.labels.prompts import zero_shot_metadata_file

IMAGENET = "imagenet"
_FOLDER = Path(__file__).parent / "sets"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A built-in set of labels.

    Attributes:
        labels: their names, no two of which are equal labels.
        description: what they name, in a sentence.
        source: where the names are from.
    """

    name: str
    labels: tuple[str, ...]
    description: str
    source: str


def builtin_names() -> list[str]:
    """List the built-in label sets' names, sorted."""
    return sorted([IMAGENET, *(path.stem for path in _FOLDER.glob("*.yaml"))])


def load_label_set(name: str) -> LabelSet:
    """Load a built-in set.

    Raises:
        UsageError: there is no such set, or open_clip, which has the names of ImageNet's classes, isn't as expected.
    """
    if name == IMAGENET:
        return _imagenet()
    if name not in builtin_names():
        raise UsageError(unknown_name(name))
    data = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return LabelSet(name, tuple(data["labels"]), data["description"], data["source"])


def unknown_name(name: str) -> str:
    """Return the message for a name that is neither a set's nor a file's."""
    near = get_close_matches(name.lower(), builtin_names(), n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"No label set or file {name!r}.{meant} Built in: {', '.join(builtin_names())}. "
        "A file ends in .txt, .csv, .tsv, .json, .jsonl or .yaml."
    )


def _imagenet() -> LabelSet:
    # read, not run: importing open_clip would import torch
    file = zero_shot_metadata_file()
    try:
        classnames = _literal(file.read_text(encoding="utf-8"), "IMAGENET_CLASSNAMES")
    except (OSError, SyntaxError, ValueError) as exc:
        raise UsageError(
            f"{file}: the names of ImageNet's classes can't be read from this release of open_clip ({exc}). Give the "
            "names in a file."
        ) from exc
    labels = tuple(dict.fromkeys(classnames))
    shared = f"; {len(classnames) - len(labels)} names stand for two classes" if len(labels) < len(classnames) else ""
    return LabelSet(
        IMAGENET,
        labels,
        f"The {len(classnames):,} classes of ImageNet-1k{shared}.",
        "ImageNet, Russakovsky et al. 2015, as the installed open_clip has it",
    )


def _literal(source: str, name: str) -> tuple[str, ...]:
    """Return the texts that a module assigns to a name.

    Raises:
        SyntaxError: it isn't Python.
        ValueError: it assigns no list of texts to it.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            texts = ast.literal_eval(node.value)
            if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
                return tuple(texts)
    raise ValueError(f"it has no list {name}")

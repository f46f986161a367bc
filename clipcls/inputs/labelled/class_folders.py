"""Folders of pictures, one for each class."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.inputs.discover import EXTENSIONS, discover
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.records import ImageRef

#: What parts of a data set are called; as class folders they would be mistaken for classes.
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def read_class_folders(folder: Path) -> Truth:
    """Read a folder that holds a folder for each class, with pictures in it or below it.

    Hidden folders are no classes. A class without pictures is one all the same.

    Raises:
        UsageError: there are no class folders, none has a picture, or they are the parts of a data set.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        raise UsageError(f"{folder}: the folder can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    classes = {entry.name: list(discover([os.fspath(entry)])) for entry in entries if entry.is_dir()}
    _require_classes(folder, classes)
    beside = [entry for entry in entries if entry.suffix.lower() in EXTENSIONS and not entry.is_dir()]
    problems = [f"{path}: lies beside the class folders, so it has no label" for path in beside]
    problems += [f"{folder / name}: a class without pictures" for name, images in classes.items() if not images]
    examples = tuple(Example(image, (name,)) for name, images in classes.items() for image in images)
    return Truth(examples, tuple(classes), problems=tuple(problems))


def _require_classes(folder: Path, classes: Mapping[str, Sequence[ImageRef]]) -> None:
    if not any(classes.values()):
        raise UsageError(
            f"{folder}: no class folder with pictures in it. Expected a folder for each class, as in "
            f"{folder / 'cat' / '1.jpg'}, or a table with the columns path and label."
        )
    if {name.casefold() for name in classes} <= SPLITS:
        named = ", ".join(classes)
        raise UsageError(
            f"{folder}: {named}: these look like the parts of a data set, not like classes. "
            f"Name one of them, such as {folder / max(classes)}."
        )

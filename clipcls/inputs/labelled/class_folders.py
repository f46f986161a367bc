"""Read folders of pictures, one for each class."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.discover import EXTENSIONS, discover
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.left_out import SIDE_FOLDERS, LeftOut
from clipcls.inputs.shards import is_shard
from clipcls.inputs.stores import entries, in_store
from clipcls.inputs.tables import TABLES
from clipcls.labels.label_files import make_label
from clipcls.records import ImageRef

#: Names of a data set's parts, which would be mistaken for classes.
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def read_class_folders(folder: str) -> Truth:
    """Read a folder that holds a folder for each class, with pictures in it or below it.

    Hidden folders are no classes, folders without pictures are. No picture is opened.

    Args:
        folder: its path, or its address in a store.

    Raises:
        UsageError: there are no class folders, none has a picture, or they are the parts of a data set.
    """
    held = _held(folder)
    left_out = LeftOut()
    classes = {_name(path): list(discover([path], left_out=left_out)) for path, is_folder in held if is_folder}
    _require_classes(folder, classes)
    for name in classes:
        try:
            make_label(name)
        except UsageError as exc:
            raise UsageError(f"{_join(folder, name)}: {exc} Rename the folder, or move it away.") from exc
    beside = [path for path, is_folder in held if not is_folder and _holds_pictures(path)]
    problems = [f"{path}: lies beside the class folders, so it is in no class" for path in beside]
    problems += [f"{_join(folder, name)}: a class without pictures" for name, images in classes.items() if not images]
    left_out.report([folder])
    examples = tuple(Example(image, (name,)) for name, images in classes.items() for image in images)
    return Truth(examples, tuple(classes), problems=tuple(problems))


def has_class_folders(folder: str) -> bool:
    """Tell whether a folder holds a folder with a picture."""
    below = [path for path, is_folder in _held(folder) if is_folder]
    return any(image.error is None for image in discover(below))


def _held(folder: str) -> list[tuple[str, bool]]:
    """List the visible entries of a folder, sorted, each with whether it is a folder."""
    try:
        if in_store(folder):
            held = [(image.path, image.path.endswith("/")) for image in entries(folder)]
        else:
            held = [(os.fspath(path), path.is_dir()) for path in sorted(Path(folder).iterdir())]
    except (OSError, ImageError) as exc:
        reason = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"{folder}: the folder can't be read: {reason}") from exc
    return [
        (path, is_folder)
        for path, is_folder in held
        if not _name(path).startswith(".") and not (is_folder and _name(path) in SIDE_FOLDERS)
    ]


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))  # noqa: PTH119, it may be an address


def _join(folder: str, name: str) -> str:
    return posixpath.join(folder, name) if in_store(folder) else str(Path(folder) / name)


def _holds_pictures(name: str) -> bool:
    return is_shard(name) or os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def _require_classes(folder: str, classes: Mapping[str, Sequence[ImageRef]]) -> None:
    if not any(classes.values()):
        raise UsageError(
            f"{folder}: no class folder with pictures in it. Expected a folder for each class, as in "
            f"{_join(folder, 'cat/1.jpg')}, or a table ({', '.join(TABLES)}) of pictures and labels."
        )
    if {name.casefold() for name in classes} <= SPLITS:
        named = ", ".join(classes)
        raise UsageError(
            f"{folder}: {named}: these look like the parts of a data set, not like classes. "
            f"Name one of them, such as {_join(folder, max(classes))}."
        )

"""Folders of pictures, one for each class, as rows: the class's name is the caption."""

import os
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.inputs.discover import discover
from clipcls.labels.label_files import make_label
from clipcls.train.data.corpus import Row
from clipcls.train.data.table import Table


def read_class_folders(folder: Path) -> Table:
    """Read a folder that holds one folder for each class, with pictures in it or below it.

    Args:
        folder: whose folders name the classes; hidden ones don't count. `hot_dog` becomes the caption `hot dog`.

    Returns:
        A row for each picture, and what is wrong with the rest. Pictures aren't opened here.

    Raises:
        UsageError: fewer than two classes have pictures.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        raise UsageError(f"{folder}: the folder can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    rows: list[Row] = []
    problems: list[str] = []
    for entry in entries:
        if entry.is_dir():
            found = _read_class(entry, problems)
            if not found:
                problems.append(f"{entry}: no picture of this class")
            rows += found
        else:
            problems.append(f"{entry}: lies beside the class folders, so it is in no class")
    _check_classes(folder, rows)
    return Table(tuple(rows), tuple(problems), folder)


def _read_class(folder: Path, problems: list[str]) -> list[Row]:
    try:
        captions = make_label(folder.name).texts
    except UsageError as exc:
        problems.append(f"{folder}: {exc}")
        return []
    rows = []
    for image in discover([os.fspath(folder)]):
        if image.error is None:
            rows.append(Row(image.path, captions))
        else:
            problems.append(f"{image.path}: {image.error}")
    return rows


def _check_classes(folder: Path, rows: list[Row]) -> None:
    captions = {row.concept for row in rows}
    if not captions:
        raise UsageError(
            f"{folder}: no class folder with pictures in it. Expected a folder for each class, as in "
            f"{folder / 'cat' / '1.jpg'}, or a table (.csv, .tsv, .jsonl)."
        )
    if len(captions) == 1:
        raise UsageError(
            f"{folder}: only one class has pictures, {captions.pop()!r}, so there is nothing to tell it from. "
            "Add a folder for another."
        )

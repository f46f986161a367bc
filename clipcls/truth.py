"""What the right answers are: read from class folders or a table, and matched with the labels of a run."""

import csv
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcls.errors import UsageError
from clipcls.inputs import EXTENSIONS, discover
from clipcls.labels import make_label
from clipcls.records import ImageRef, Label

TABLES = (".csv", ".tsv", ".jsonl")

# what parts of a data set are called; as class folders they would be mistaken for classes
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
_LONGEST_FIELD = 2**24  # of a CSV file, in characters; csv's own limit is 131,072


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what is right for it.

    Attributes:
        labels: as the data calls them; exactly one, unless the data give several an image, or none.
    """

    image: ImageRef
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled pictures.

    Attributes:
        classnames: of all classes that the data name, those without pictures among them.
        multi_label: whether a picture may have several labels, or none.
        problems: a message for each thing in the data that is left out, or looks like a mistake.
        templates: prompts that come with the data.
        classnames_file: that holds the names, one a line; None where nothing does.
        templates_file: the same of the templates.
    """

    examples: tuple[Example, ...]
    classnames: tuple[str, ...]
    multi_label: bool = False
    problems: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    classnames_file: str | None = None
    templates_file: str | None = None


def read_truth(data: Sequence[str]) -> Truth:
    """Read labelled pictures: a folder of class folders, or a table.

    Raises:
        UsageError: it is neither, or can't be read.
    """
    if len(data) != 1:
        raise UsageError("Give one folder of class folders or one table.")
    path = Path(data[0])
    if path.is_dir():
        return read_class_folders(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder.")
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"{path}: neither a folder of class folders nor a table ({', '.join(TABLES)}).")
    return read_table(path)


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
    if {name.casefold() for name in classes} <= _SPLITS:
        named = ", ".join(classes)
        raise UsageError(
            f"{folder}: {named}: these look like the parts of a data set, not like classes. "
            f"Name one of them, such as {folder / max(classes)}."
        )


# ---------------------------------------------------------------------------------------------------------
# Tables


def read_table(table: Path) -> Truth:
    """Read a table with the columns `path`, and `label` or `labels`.

    `labels` holds any number: in JSON lines a list, in CSV and TSV JSON text or names separated by `;`. Relative paths
    are taken from the table's folder.

    Args:
        table: a .csv, .tsv or .jsonl file.

    Raises:
        UsageError: it can't be read, lacks a column, or holds no row that can be used.
    """
    try:
        rows = list(_rows(table))
    except OSError as exc:
        raise UsageError(f"{table}: can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    except (ValueError, csv.Error) as exc:
        raise UsageError(f"{table}: can't be read: {exc}") from exc
    multi_label = any("labels" in row for _, row in rows if isinstance(row, dict))
    examples, problems = [], []
    for line, row in rows:
        example = _example(row, table.parent, multi_label) if isinstance(row, dict) else row
        if isinstance(example, Example):
            examples.append(example)
        else:
            problems.append(f"{table}, line {line}: {example}")
    if not examples:
        first = f" The first problem: {problems[0]}." if problems else ""
        raise UsageError(f"{table}: no row with a path and a label.{first}")
    classnames = sorted({label for example in examples for label in example.labels})
    return Truth(tuple(examples), tuple(classnames), multi_label, tuple(problems))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row or what is wrong with it) of each."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if table.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line)
            return
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        columns = [name for name in reader.fieldnames or () if name]
        _require_columns(table, columns)
        for row in reader:
            yield reader.line_num, {name: row[name] for name in columns if row[name] is not None}


def _parsed(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        return f"not JSON: {exc}"
    return record if isinstance(record, dict) else "not a JSON object"


def _require_columns(table: Path, columns: Sequence[str]) -> None:
    if "path" not in columns or not {"label", "labels"} & set(columns):
        raise UsageError(
            f"{table}: needed are the columns path and label (or labels, for several); "
            f"there are: {', '.join(columns) or 'none'}."
        )


def _example(row: Mapping[str, Any], folder: Path, multi_label: bool) -> Example | str:
    """An example, or what is wrong with the row."""
    path = row.get("path")
    if not isinstance(path, str) or not path.strip():
        return "no path"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can hold what no name is made of
        return "no possible file name"
    labels = _labels(row.get("labels")) if multi_label else _label(row.get("label"))
    if isinstance(labels, str):
        return labels
    if path.lower().startswith(("http://", "https://")):
        return Example(ImageRef(path, "an address; pictures to evaluate on have to be files"), labels)
    return Example(ImageRef(os.path.join(folder, path.strip())), labels)  # noqa: PTH118, the name stays as given


def _label(value: object) -> tuple[str, ...] | str:
    """One label, or what is wrong with it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        return "no label"
    return (value.strip(),)


def _labels(value: object) -> tuple[str, ...] | str:
    """Any number of labels, or what is wrong with them."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "labels begin with [ but aren't JSON"
    if not isinstance(value, list):
        return "labels aren't a list"
    found = [_label(entry) for entry in value]
    if any(isinstance(entry, str) for entry in found):
        return "labels hold something that isn't text"
    return tuple(dict.fromkeys(label for entry in found for label in entry))


# ---------------------------------------------------------------------------------------------------------
# Matching


def label_indices(names: Iterable[str], labels: Sequence[Label]) -> dict[str, int]:
    """Which label each name of the data means: the one of that name, else the one that is prompted so.

    Case, underscores and spacing make no difference where no label is called exactly so; synonyms count.

    Returns:
        By name, those that mean a label.

    Raises:
        UsageError: a name isn't valid Unicode.
    """
    exact = {label.name: index for index, label in enumerate(labels)}
    alike = {_key(text): index for index, label in enumerate(labels) for text in label.texts}
    found: dict[str, int] = {}
    for name in names:
        index = exact.get(name, alike.get(_key(name)))
        if index is not None:
            found[name] = index
    return found


def _key(name: str) -> str:
    return make_label(unicodedata.normalize("NFKC", name)).texts[0].casefold()


def repeated_paths(examples: Sequence[Example]) -> list[str]:
    """A message for each path that the data hold more than once."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    for example in examples:
        seen.setdefault(os.path.abspath(example.image.path), []).append(example.labels)  # noqa: PTH100
    messages = []
    for path, labels in seen.items():
        if len(labels) > 1:
            differing = "" if len(set(labels)) == 1 else ", with different labels"
            messages.append(f"{path}: {len(labels)} times{differing}")
    return messages

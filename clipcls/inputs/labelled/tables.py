"""Read tables of pictures with labels or captions, for `eval`, `calibrate` and `train`, from these columns:

pictures    path, image, filepath, file_name, filename or url: the first of these names that the table has
labels      labels (any number), label or class; or else caption
captions    caption, caption2, … and the list captions; or else text, or else title
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clipcls.errors import ImageError, UsageError, printable
from clipcls.inputs.discover import image_on_web, is_web
from clipcls.inputs.labelled.captions import CAPTION, LIST, captioned, is_unicode, listed_captions
from clipcls.inputs.labelled.examples import Example, ProblemReport, Truth
from clipcls.inputs.stores import beside, in_store, local_path, require_readable
from clipcls.inputs.tables import (
    PICTURE_COLUMNS,
    Cell,
    class_names,
    find_picture_column,
    holds_pictures,
    is_parquet,
    named,
    read_column,
    table_columns,
)
from clipcls.records import Embedded, ImageRef, Stored

#: The group of a picture whose cell is empty.
NO_GROUP = "(none)"

#: What to read beside each picture; in a table without captions, labels serve as captions.
Wanted = Literal["labels", "captions"]

_SEVERAL = "labels"
_LABELS = (_SEVERAL, "label", "class")
_CAPTION = "caption"
_CAPTIONS = ("text", "title")
# the mean number of words from which captions are more than names of classes
_SENTENCE = 3

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


def read_table(
    table: str, wanted: Wanted = "labels", allow_urls: bool = False, group_columns: Sequence[str] = ()
) -> Truth:
    """Read a table of pictures with labels or captions.

    `labels` holds any number: in JSON lines and Parquet a list, in CSV and TSV JSON text or names separated by `;`.
    Relative paths start at the table's folder. Pictures embedded in a Parquet file are called `table.parquet/ROW`,
    counted from 0. No picture is opened.

    Args:
        table: a .csv, .tsv, .jsonl or .parquet file, or its address in a store.
        allow_urls: whether web addresses may be fetched; otherwise each is an error.
        group_columns: further columns, whose cells are the pictures' groups.

    Returns:
        The usable rows, and what is wrong with the others.

    Raises:
        UsageError: the table can't be read, lacks a column, or holds no usable row.
    """
    examples, problems = [], []
    try:
        columns = _find_columns(table, wanted, group_columns)
        for place, found in _examples(table, columns, allow_urls):
            if isinstance(found, Example):
                examples.append(found)
            else:
                problems.append(f"{place}: {found}")
    except ImageError as exc:
        raise UsageError(f"{table}: the table can't be read: {exc}") from exc
    if not examples:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise UsageError(f"{table}: no usable row{first}")
    classnames = tuple(sorted({label for example in examples for label in example.labels}))
    if columns.are_labels and columns.answers == (_CAPTION,) and _are_sentences(classnames, len(examples)):
        problems.append(
            f"{table}: its captions are taken for classes, though most pictures have one of their own; "
            "`clipcls eval --retrieval` measures captions"
        )
    return Truth(
        tuple(examples),
        classnames,
        columns.answers[:1] == (_SEVERAL,),
        tuple(problems),
        group_columns=columns.groups,
    )


def read_captioned_rows(table: str, report: ProblemReport, pictures: bool = True) -> Iterator[Example]:
    """Read the rows of a table that can be trained on, one after the other.

    Args:
        report: is told of unusable rows, and of damage, behind which nothing is read.
        pictures: whether embedded pictures are read.

    Raises:
        UsageError: the table lacks a column, or can't be read for want of pyarrow.
    """
    try:
        for place, found in _examples(table, _find_columns(table, "captions"), allow_urls=True, pictures=pictures):
            example = captioned(found) if isinstance(found, Example) else found
            if isinstance(example, Example):
                yield example
            else:
                report(place, example)
    except ImageError as exc:
        report(table, f"can't be read to its end: {exc}")


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a table that are read.

    Attributes:
        picture: the column of pictures; None in a table without any columns.
        answers: the columns of labels or captions.
        are_labels: whether `answers` hold labels.
        groups: the columns of groups.
    """

    picture: str | None
    answers: tuple[str, ...]
    are_labels: bool
    groups: tuple[str, ...] = ()


def _examples(
    table: str, columns: _Columns, allow_urls: bool, pictures: bool = False
) -> Iterator[tuple[str, Example | str]]:
    """Yield each row's place, and its example or what is wrong with it."""
    picture = columns.picture
    holds = picture is not None and holds_pictures(table, picture)
    names = class_names(table, columns.answers[0]) if columns.are_labels and columns.answers else []
    group_names = {column: class_names(table, column) for column in columns.groups}
    read = tuple(dict.fromkeys((*columns.answers, *columns.groups)))
    for cell in read_column(table, picture if pictures or not holds else None, beside=read):
        place = f"{table}, {cell.place}"
        groups = tuple(_group(cell.beside.get(column), known) for column, known in group_names.items())
        answer = (None if holds else cell.error) or _answer(cell, columns, names)
        if not all(map(is_unicode, groups)):
            answer = "a group isn't valid Unicode"
        if isinstance(answer, str):
            _require_utf8(table, cell)
            yield place, answer
            continue
        if holds and not pictures:
            image = ImageRef(f"{table}/{cell.row}", content=Embedded(table, str(picture), cell.row))
        elif holds:  # a missing one becomes an empty file, so that there are as many rows as when pictures aren't read
            image = ImageRef(f"{table}/{cell.row}", content=cell.value if isinstance(cell.value, bytes) else b"")
        elif isinstance(cell.value, bytes):  # in base64
            image = ImageRef(f"{table}/{cell.row}", content=Embedded(table, str(picture), cell.row))
        else:
            image = table_image(table, str(cell.value), allow_urls)
        labels, captions = (answer, ()) if columns.are_labels else ((), answer)
        yield place, Example(image, labels, captions, groups)


def _find_columns(table: str, wanted: Wanted, group_columns: Sequence[str] = ()) -> _Columns:
    columns = [name for name in table_columns(table) if name]
    picture = find_picture_column(table, columns)
    label = next((name for name in _LABELS if name in columns), None)
    # a caption that says no more than a class is a label
    wants_captions = wanted == "captions" or (label is None and _CAPTION in columns)
    captions = _find_captions(table, columns) if wants_captions else ()
    if wanted == "labels" and captions:
        captions, label = (), _CAPTION
    answers = captions or (() if label is None else (label,))
    missing = [] if picture else [f"of pictures ({', '.join(PICTURE_COLUMNS)})"]
    if not answers:
        listed = f"of labels ({', '.join(_LABELS)}, caption)"
        missing.append(f"of captions (caption, {', '.join(_CAPTIONS)}) or {listed}" if wanted == "captions" else listed)
    if columns and missing:
        is_split = len(columns) > 1 or not any(sign in name for name in columns for sign in ",;\t")
        hint = "" if is_split else " Columns end in a comma in .csv, in a tab in .tsv."
        if not answers and any(_is_caption(name) or name in _CAPTIONS for name in columns):
            hint = " Captions are measured by `clipcls eval --retrieval`."
        raise UsageError(f"{table}: no column {' and no '.join(missing)}; there are: {named(columns)}.{hint}")
    lacking = next((name for name in group_columns if name not in columns), None)
    if lacking is not None:
        raise UsageError(f"{table}: no column {printable(lacking)} of groups; there are: {named(columns)}.")
    if picture in group_columns:
        raise UsageError(f"{table}: {picture} holds the pictures, so that each would be a group of its own.")
    used = (picture, *answers, *group_columns)
    twice = next((name for name in used if name is not None and columns.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{table}: several columns {twice}; rename those that aren't meant.")
    return _Columns(picture, answers, not captions, tuple(group_columns))


def _find_captions(table: str, columns: Sequence[str]) -> tuple[str, ...]:
    found = tuple(filter(_is_caption, columns))
    if LIST in found and table.lower().endswith((".csv", ".tsv")):
        # ambiguous: it may be one caption, or several with any separator
        raise UsageError(
            f"{table}: a column captions, which only JSON lines and Parquet have, as a list; name it caption if each "
            "row has one, else make it the columns caption, caption2, …"
        )
    return found or tuple(name for name in _CAPTIONS if name in columns)[:1]


def _is_caption(column: str) -> bool:
    return CAPTION.fullmatch(column) is not None or column == LIST


def _are_sentences(captions: Sequence[str], pictures: int) -> bool:
    """Tell whether captions say more than what class a picture is of."""
    words = sum(len(caption.split()) for caption in captions)
    return 2 * len(captions) > pictures and words >= _SENTENCE * len(captions)


def _require_utf8(table: str, cell: Cell) -> None:
    """Refuse a text table that isn't UTF-8: every row with a special sign would be left out."""
    texts = [value for value in cell.beside.values() if isinstance(value, str)]
    if not is_parquet(table) and any(map(_ESCAPED_BYTE.search, texts)):
        raise UsageError(f"{table}, {cell.place}: not UTF-8; save the table as UTF-8.")


def table_image(table: str, name: str, allow_urls: bool) -> ImageRef:
    """Return the picture that a table names, without opening it.

    Args:
        name: as the table has it; relative ones start at the table's folder.
        allow_urls: whether web addresses may be fetched; otherwise each is an error.
    """
    name = local_path(name)
    if is_web(name):
        return image_on_web(name, allow_urls)
    if in_store(name):
        try:
            require_readable(name, trusted=False)
        except ImageError as exc:
            return ImageRef(name, str(exc))
        return ImageRef(name, content=Stored())
    if in_store(table) and not os.path.isabs(name):  # noqa: PTH117
        return ImageRef(beside(table, name), content=Stored())
    return ImageRef(os.path.join(os.path.dirname(table), name))  # noqa: PTH118, PTH120, the name stays as given


# ---------------------------------------------------------------------------------------------------------
# Labels and captions


def _answer(cell: Cell, columns: _Columns, names: Sequence[str]) -> tuple[str, ...] | str:
    """Return a row's labels or captions, or what is wrong with them."""
    if not columns.answers:
        return "neither label nor caption"
    column = columns.answers[0]
    if columns.are_labels:
        value = cell.beside.get(column)
        return _labels(value, names) if column == _SEVERAL else _label(value, names)
    own = {name: value for name, value in cell.beside.items() if name in columns.answers}
    record = {"caption": cell.beside.get(column)} if column in _CAPTIONS else own
    return listed_captions(record) or "no caption"


def _group(value: object, names: Sequence[str]) -> str:
    """Return the group that a cell stands for.

    Args:
        names: of groups by number, where the column has numbers for them.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return names[value]
    return ("" if value is None else str(value).strip()) or NO_GROUP


def _label(value: object, names: Sequence[str]) -> tuple[str, ...] | str:
    """Return one label, or what is wrong with it."""
    if isinstance(value, int) and not isinstance(value, bool):
        if names and not 0 <= value < len(names):
            return "no label"
        value = names[value] if names else str(value)
    if not isinstance(value, str) or not value.strip():
        return "no label"
    return (value.strip(),) if is_unicode(value) else "a label isn't valid Unicode"


def _labels(value: Any, names: Sequence[str]) -> tuple[str, ...] | str:
    """Return any number of labels, or what is wrong with them."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            value = [part for part in text.split(";") if part.strip()]
        else:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                return "labels begin with [ but aren't JSON"
    if not isinstance(value, list):
        return "labels aren't a list"
    found = [_label(entry, names) for entry in value]
    wrong = next((entry for entry in found if isinstance(entry, str)), None)
    if wrong is not None:
        return "labels hold something that isn't text" if wrong == "no label" else wrong
    return tuple(dict.fromkeys(label for entry in found for label in entry))

"""Read tables of multiple-choice questions about pictures: columns image, question, choices, answer and id."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipcls.errors import ImageError, UsageError, shortened
from clipcls.inputs.labelled.tables import table_image
from clipcls.inputs.tables import find_picture_column, holds_pictures, is_table, read_column, table_columns
from clipcls.records import Embedded, ImageRef

_COLUMNS = ("question", "choices", "answer")
_ID = "id"
# int() refuses thousands of digits
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A question about a picture, with choices of its own.

    Attributes:
        answer: the index of the right choice.
        name: the row's id, or its place in the table.
    """

    image: ImageRef
    question: str
    choices: tuple[str, ...]
    answer: int
    name: str


def has_choices(data: list[str]) -> bool:
    """Tell whether data are one table of multiple-choice questions."""
    if len(data) != 1 or not is_table(data[0]):
        return False
    try:
        return {"choices", "answer"} <= set(table_columns(data[0], tried=True))
    except (ImageError, UsageError):  # the reader of other tables says it
        return False


def read_choices(table: str, allow_urls: bool = False) -> tuple[tuple[ChoiceExample, ...], tuple[str, ...]]:
    """Read a .jsonl or .parquet table; relative paths start at its folder.

    `choices` is a list; `answer` is a choice, its number from 0, or its letter from A. No picture is opened.

    Returns:
        The usable rows, and a message for each other.

    Raises:
        UsageError: the table can't be read, lacks a column, or holds no usable row.
    """
    examples, problems = [], []
    try:
        columns = table_columns(table)
        picture = find_picture_column(table, columns)
        missing = next((name for name in _COLUMNS if name not in columns), None)
        if picture is None or missing is not None:
            raise UsageError(f"{table}: no column {missing or 'of pictures'}, which multiple choice needs.")
        beside = (*_COLUMNS, *([_ID] if _ID in columns else []))
        holds = holds_pictures(table, picture)
        for cell in read_column(table, None if holds else picture, beside=beside):
            found = (None if holds else cell.error) or _question(cell.beside)
            if isinstance(found, str):
                problems.append(f"{table}, {cell.place}: {found}")
                continue
            is_embedded = holds or isinstance(cell.value, bytes)
            image = (
                ImageRef(f"{table}/{cell.row}", content=Embedded(table, picture, cell.row))
                if is_embedded
                else table_image(table, str(cell.value), allow_urls)
            )
            name = cell.beside.get(_ID)
            examples.append(ChoiceExample(image, *found, cell.place if name is None else str(name)))
    except ImageError as exc:
        raise UsageError(f"{table}: the table can't be read: {exc}") from exc
    if not examples:
        raise UsageError(f"{table}: no usable row{f'; the first problem: {problems[0]}' if problems else ''}.")
    return tuple(examples), tuple(problems)


def _question(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...], int] | str:
    """Return question, choices and the index of the right one, or what is wrong with a row."""
    question, choices, answer = (row.get(name) for name in _COLUMNS)
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "choices aren't a list of texts, as .jsonl and .parquet have them"
    if len(choices) < 2 or len(set(choices)) < len(choices):
        return "two choices or more are needed, all different"
    if isinstance(answer, str) and answer in choices:
        return question, tuple(choices), choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in string.ascii_uppercase:
        answer = string.ascii_uppercase.index(answer.upper())
    if isinstance(answer, str) and answer.isdecimal() and len(answer) <= _MOST_DIGITS:
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"the answer {shortened(repr(answer), 60)} is none of the choices"
    return question, tuple(choices), answer

"""Answers to several questions as cells: a column `NAME.label` and one `NAME.score` for each question."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipcls.outputs.rows import RowShape, rounded
from clipcls.records import Prediction

_LABEL, _SCORE, _UNCORRECTED = ".label", ".score", ".uncorrected"
# what stands between several answers to a question; within an answer there is a backslash before it
_SEPARATOR = ";"
_ESCAPED = re.compile(r"[\\;]")
_SIGNS = re.compile(r"\\(.)|(.)", re.DOTALL)


def answer_columns(shape: RowShape) -> list[str]:
    """Return the names of the columns."""
    endings = (_LABEL, _SCORE, _UNCORRECTED) if shape.has_uncorrected else (_LABEL, _SCORE)
    return [name + ending for name in shape.questions for ending in endings]


def answer_cells(prediction: Prediction, shape: RowShape) -> list[str]:
    """Return the cells of a prediction; those of a question that wasn't asked are empty."""
    answers, cells = dict(prediction.answers), []
    for name in shape.questions:
        answer = answers.get(name)
        cells += ["", ""] if answer is None else [_joined(answer.labels), f"{rounded(answer.score)}"]
        if shape.has_uncorrected:
            cells.append("" if answer is None or answer.uncorrected is None else _joined([answer.uncorrected.label]))
    return cells


def has_answers(header: Sequence[str]) -> bool:
    """Tell whether a header is that of rows with answers to questions."""
    return list(header[:1]) == ["path"] and any(name.endswith(_LABEL) for name in header)


def answers_in(cells: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the answers, by the names of the questions; None for one that wasn't asked."""
    found: dict[str, Any] = {}
    for column in cells:
        if not column.endswith(_LABEL):
            continue
        name = column.removesuffix(_LABEL)
        score = cells[name + _SCORE]
        labels = _split(cells[column]) if cells[column] else []
        top = [{"label": label, "score": score, "similarity": math.nan} for label in labels]
        answer = {"label": labels[0] if labels else None, "score": score, "similarity": math.nan, "top": top}
        found[name] = answer if score else None
    return found


def _joined(labels: Iterable[str]) -> str:
    return _SEPARATOR.join(_ESCAPED.sub(r"\\\g<0>", label) for label in labels)


def _split(cell: str) -> list[str]:
    """Return the labels in a cell, the best first."""
    labels = [""]
    for escaped, sign in _SIGNS.findall(cell):
        if sign == _SEPARATOR:
            labels.append("")
        else:
            labels[-1] += escaped or sign
    return labels

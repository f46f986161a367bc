"""Answers to several questions as cells: a column `NAME.label` and one `NAME.score` for each question."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipcls.outputs.rows import RowShape, rounded
from clipcls.records import Prediction

_LABEL, _SCORE, _UNCORRECTED = ".label", ".score", ".uncorrected"
#: What stands between several answers to a question.
SEPARATOR = ";"


def answer_columns(shape: RowShape) -> list[str]:
    """Return the names of the columns."""
    endings = (_LABEL, _SCORE, _UNCORRECTED) if shape.has_uncorrected else (_LABEL, _SCORE)
    return [name + ending for name in shape.questions for ending in endings]


def answer_cells(prediction: Prediction, shape: RowShape) -> list[str]:
    """Return the cells of a prediction; those of a question that wasn't asked are empty."""
    answers, cells = dict(prediction.answers), []
    for name in shape.questions:
        answer = answers.get(name)
        cells += ["", ""] if answer is None else [SEPARATOR.join(answer.labels), f"{rounded(answer.score)}"]
        if shape.has_uncorrected:
            cells.append("" if answer is None or answer.uncorrected is None else answer.uncorrected.label)
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
        top = [{"label": label, "score": score, "similarity": math.nan} for label in cells[column].split(SEPARATOR)]
        answer = {"label": cells[column] or None, "score": score, "similarity": math.nan, "top": top}
        found[name] = answer if score else None
    return found

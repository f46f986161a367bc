"""Converts predictions to the fields of a row and back, for JSONL, CSV, Parquet and a run's journal."""

import base64
import os
from dataclasses import dataclass
from typing import Any

from clipcls.records import Answer, Explanation, Prediction, PromptSimilarity, ScoredLabel

#: The fields of a row besides those of questions.
OWN_FIELDS = frozenset(
    ["path", "label", "score", "similarity", "top", "error", "path_b64", "known", "explain", "index"]
)


@dataclass(frozen=True, slots=True)
class RowShape:
    """What the rows of a run hold besides the answer.

    Attributes:
        has_known: how far a picture is known.
        questions: an answer to each of these, instead of one.
        has_uncorrected: these answers also as they were before the choices' priors were taken off.
        has_index: the place in the inputs, since other outputs hold other rows of the job.
    """

    has_known: bool = False
    questions: tuple[str, ...] = ()
    has_uncorrected: bool = False
    has_index: bool = False


#: The shape of rows with one answer and nothing besides.
ONE_ANSWER = RowShape()


def row_fields(prediction: Prediction, questions: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a prediction in JSON types; a path that isn't UTF-8 gets replacement characters, and `path_b64`.

    Args:
        questions: those that were asked; empty for a row with one answer.
    """
    raw = os.fsencode(prediction.path)
    path = raw.decode("utf-8", "replace")
    error = prediction.error and os.fsencode(prediction.error).decode("utf-8", "replace")
    fields: dict[str, Any]
    if questions:
        answers = dict(prediction.answers)
        fields = {"path": path, **{name: _answer_fields(answers.get(name)) for name in questions}, "error": error}
    else:
        fields = {
            "path": path,
            "label": prediction.label,
            "score": rounded(prediction.score),
            "similarity": rounded(prediction.similarity),
            "top": [_scored(entry) for entry in prediction.top],
            "error": error,
        }
    if prediction.known is not None:
        fields["known"] = rounded(prediction.known)
    if prediction.explanation is not None:
        fields["explain"] = {
            "margin": rounded(prediction.explanation.margin),
            "prompts": [
                {"label": entry.label, "prompt": entry.prompt, "similarity": rounded(entry.similarity)}
                for entry in prediction.explanation.prompts
            ],
        }
    if prediction.index is not None:
        fields["index"] = prediction.index
    if path != prediction.path:
        fields["path_b64"] = base64.b64encode(raw).decode("ascii")
    return fields


def prediction_of(fields: dict[str, Any]) -> Prediction:
    """Return the prediction in the fields of a row.

    Raises:
        KeyError, TypeError, ValueError: they aren't the fields of a prediction.
    """
    raw = fields.get("path_b64")
    path = os.fsdecode(base64.b64decode(raw, validate=True)) if raw else fields["path"]
    error = fields["error"]
    if "label" not in fields:
        return _with_answers(path, error, fields)
    label = fields["label"]
    if not isinstance(path, str) or not all(value is None or isinstance(value, str) for value in (label, error)):
        raise TypeError("path, label and error are texts")
    top = tuple(map(_scored_label, fields["top"]))
    explanation = _explanation(fields["explain"]) if fields.get("explain") else None
    numbers = _number(fields["score"]), _number(fields["similarity"])
    known = _number(fields.get("known"))
    return Prediction(path, label, *numbers, top, error, explanation, fields.get("index"), known)


def _with_answers(path: Any, error: Any, fields: dict[str, Any]) -> Prediction:
    """Return the prediction in the fields of a row with answers to questions."""
    named = {name: value for name, value in fields.items() if name not in OWN_FIELDS}
    if not named or not isinstance(path, str) or not (error is None or isinstance(error, str)):
        raise TypeError("path and error are texts, and there is a question")
    answers = tuple((name, None if value is None else _answer(value)) for name, value in named.items())
    return Prediction(path, None, None, None, error=error, index=fields.get("index"), answers=answers)


def _answer(fields: dict[str, Any]) -> Answer:
    label, uncorrected = fields["label"], fields.get("uncorrected")
    if not (label is None or isinstance(label, str)):
        raise TypeError("a label is text")
    return Answer(
        label,
        float(fields["score"]),
        float(fields["similarity"]),
        tuple(map(_scored_label, fields["top"])),
        None if uncorrected is None else _scored_label(uncorrected),
    )


def _answer_fields(answer: Answer | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    fields = {
        "label": answer.label,
        "score": rounded(answer.score),
        "similarity": rounded(answer.similarity),
        "top": [_scored(entry) for entry in answer.top],
    }
    return fields if answer.uncorrected is None else fields | {"uncorrected": _scored(answer.uncorrected)}


def _scored(entry: ScoredLabel) -> dict[str, Any]:
    return {"label": entry.label, "score": rounded(entry.score), "similarity": rounded(entry.similarity)}


def _scored_label(fields: dict[str, Any]) -> ScoredLabel:
    return ScoredLabel(str(fields["label"]), float(fields["score"]), float(fields["similarity"]))


def _explanation(fields: dict[str, Any]) -> Explanation:
    prompts = tuple(
        PromptSimilarity(str(entry["label"]), str(entry["prompt"]), float(entry["similarity"]))
        for entry in fields["prompts"]
    )
    return Explanation(_number(fields["margin"]), prompts)


def rounded(value: float | None) -> float | None:
    """Return a number with the digits that rows keep."""
    # float32 holds seven digits; more would only look exact
    return None if value is None else float(f"{value:.7g}")


def _number(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)

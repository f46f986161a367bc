"""Converts predictions to the fields of a row and back, for JSONL, CSV, Parquet and a run's journal."""

import base64
import os
from typing import Any

from clipcls.records import Explanation, Prediction, PromptSimilarity, ScoredLabel


def row_fields(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction in JSON types; a path that isn't UTF-8 gets replacement characters, and `path_b64`."""
    raw = os.fsencode(prediction.path)
    path = raw.decode("utf-8", "replace")
    fields: dict[str, Any] = {
        "path": path,
        "label": prediction.label,
        "score": _rounded(prediction.score),
        "similarity": _rounded(prediction.similarity),
        "top": [
            {"label": entry.label, "score": _rounded(entry.score), "similarity": _rounded(entry.similarity)}
            for entry in prediction.top
        ],
        "error": prediction.error and os.fsencode(prediction.error).decode("utf-8", "replace"),
    }
    if prediction.known is not None:
        fields["known"] = _rounded(prediction.known)
    if prediction.explanation is not None:
        fields["explain"] = {
            "margin": _rounded(prediction.explanation.margin),
            "prompts": [
                {"label": entry.label, "prompt": entry.prompt, "similarity": _rounded(entry.similarity)}
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
    label, error = fields["label"], fields["error"]
    if not isinstance(path, str) or not all(value is None or isinstance(value, str) for value in (label, error)):
        raise TypeError("path, label and error are texts")
    top = tuple(
        ScoredLabel(str(entry["label"]), float(entry["score"]), float(entry["similarity"])) for entry in fields["top"]
    )
    explanation = _explanation(fields["explain"]) if fields.get("explain") else None
    numbers = _number(fields["score"]), _number(fields["similarity"])
    known = _number(fields.get("known"))
    return Prediction(path, label, *numbers, top, error, explanation, fields.get("index"), known)


def _explanation(fields: dict[str, Any]) -> Explanation:
    prompts = tuple(
        PromptSimilarity(str(entry["label"]), str(entry["prompt"]), float(entry["similarity"]))
        for entry in fields["prompts"]
    )
    return Explanation(_number(fields["margin"]), prompts)


def _rounded(value: float | None) -> float | None:
    # float32 holds seven digits; more would only look exact
    return None if value is None else float(f"{value:.7g}")


def _number(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)

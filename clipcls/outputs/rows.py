"""A prediction as a row: of JSONL, CSV, TSV and of a table for people; and a row's columns as a prediction again."""

import base64
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from rich.cells import cell_len, set_cell_size

from clipcls.records import Explanation, Prediction, PromptSimilarity, ScoredLabel

COLUMNS = ("path", "label", "score", "similarity", "top", "error", "path_b64")
_TSV_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_TSV_ESCAPED = re.compile(r"\\([tnr\\])")
_TSV_SIGNS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}

Row = Callable[[Prediction], str]


def record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON's types; a path that isn't UTF-8 gets replacement characters and `path_b64`."""
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
    if prediction.explanation is not None:
        fields["explain"] = _explain(prediction.explanation)
    if prediction.index is not None:
        fields["index"] = prediction.index
    if path != prediction.path:
        fields["path_b64"] = base64.b64encode(raw).decode("ascii")
    return fields


def prediction_of(record: dict[str, Any]) -> Prediction:
    """A prediction from the columns of a row.

    Raises:
        KeyError, TypeError, ValueError: it isn't such a row.
    """
    raw = record.get("path_b64")
    path = os.fsdecode(base64.b64decode(raw, validate=True)) if raw else record["path"]
    label, error = record["label"], record["error"]
    if not isinstance(path, str) or not all(value is None or isinstance(value, str) for value in (label, error)):
        raise TypeError("path, label and error are texts")
    top = tuple(
        ScoredLabel(str(entry["label"]), float(entry["score"]), float(entry["similarity"])) for entry in record["top"]
    )
    explanation = _explanation(record["explain"]) if record.get("explain") else None
    numbers = _number(record["score"]), _number(record["similarity"])
    return Prediction(path, label, *numbers, top, error, explanation, record.get("index"))


def jsonl_row(prediction: Prediction) -> str:
    """One JSON object on a line."""
    return json.dumps(record(prediction), ensure_ascii=False) + "\n"


def tsv_row(prediction: Prediction) -> str:
    """`path<TAB>label<TAB>score`, a line for each listed label; none for an image with an error."""
    if prediction.error is not None:
        return ""
    path = escaped(prediction.path)
    return "".join(f"{path}\t{escaped(label)}\t{score:.6f}\n" for label, score in _answers(prediction))


def escaped(text: str) -> str:
    """Text as a cell of TSV."""
    return text.translate(_TSV_ESCAPES)


def unescaped(cell: str) -> str:
    """The text that a cell of TSV stands for."""
    return _TSV_ESCAPED.sub(lambda found: _TSV_SIGNS[found[1]], cell)


def csv_row(prediction: Prediction) -> str:
    """The columns of a JSONL row; `top` is JSON text."""
    fields = record(prediction)
    fields["top"] = json.dumps(fields["top"], ensure_ascii=False)
    return csv_line([fields.get(column) for column in COLUMNS])


def table_row(labels: tuple[str, ...], width: int) -> Row:
    """Rows of fixed widths, so that none has to wait for the next."""
    label_width = min(
        max((cell_len(_printable(label)) for label in labels), default=7), max(min(width // 2, width - 23), 8)
    )
    label_width = max(label_width, len("unknown"))
    path_width = max(width - label_width - 11, 12)

    def row(prediction: Prediction) -> str:
        if prediction.error is not None:
            return ""
        lines = []
        path = _shortened(_printable(prediction.path), path_width)
        for label, score in _answers(prediction):
            lines.append(
                f"{path}  {_fitted(_printable(label) or 'unknown', label_width)}  {score:7.4f}".rstrip() + "\n"
            )
            # the path is said once for the labels of one image
            path = " " * path_width
        if prediction.explanation is not None:
            lines += _explain_lines(prediction.explanation, label_width, width)
        return "".join(lines)

    return row


def _explain(explanation: Explanation) -> dict[str, Any]:
    return {
        "margin": _rounded(explanation.margin),
        "prompts": [
            {"label": entry.label, "prompt": entry.prompt, "similarity": _rounded(entry.similarity)}
            for entry in explanation.prompts
        ],
    }


def _explanation(fields: dict[str, Any]) -> Explanation:
    prompts = tuple(
        PromptSimilarity(str(entry["label"]), str(entry["prompt"]), float(entry["similarity"]))
        for entry in fields["prompts"]
    )
    return Explanation(_number(fields["margin"]), prompts)


def _explain_lines(explanation: Explanation, label_width: int, width: int) -> list[str]:
    room = max(width - label_width - 15, 12)
    lines = [] if explanation.margin is None else [f"    {explanation.margin:7.4f}  margin\n"]
    for entry in explanation.prompts:
        label, prompt = _fitted(_printable(entry.label), label_width), _fitted(_printable(entry.prompt), room).rstrip()
        lines.append(f"    {entry.similarity:7.4f}  {label}  {prompt}\n")
    return lines


def _answers(prediction: Prediction) -> list[tuple[str, float]]:
    """Label and score of each line; an unknown image has one line with an empty label."""
    top: tuple[ScoredLabel, ...] = prediction.top
    if prediction.label is None:
        return [("", entry.score) for entry in top[:1]]
    return [(entry.label, entry.score) for entry in top]


def _rounded(value: float | None) -> float | None:
    # float32 holds seven digits; more would only look exact
    return None if value is None else float(f"{value:.7g}")


def csv_line(cells: Any) -> str:
    """A line of CSV with its end."""
    buffer = io.StringIO()
    # a lone carriage return is quoted only where it is part of the line end
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _printable(text: str) -> str:
    """Control characters could move the cursor; lone surrogates can't be shown; a space of any width is a space."""
    spaced = "".join(" " if unicodedata.category(sign) == "Zs" else sign for sign in text)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in spaced)


def _fitted(label: str, width: int) -> str:
    if cell_len(label) <= width:
        return set_cell_size(label, width)
    return set_cell_size(label, width - 1) + "…"


def _shortened(path: str, width: int) -> str:
    """The end of a long path says more than its beginning."""
    if cell_len(path) <= width:
        return set_cell_size(path, width)
    while cell_len(path) > width - 1:
        path = path[1:]
    return set_cell_size("…" + path, width)


def _number(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)

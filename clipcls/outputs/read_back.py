"""Predictions read back from what `clipcls.outputs.sinks` wrote: to go on with a run, to sort by, to evaluate."""

import binascii
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from clipcls.errors import UsageError
from clipcls.outputs.parquet import read_parquet
from clipcls.outputs.rows import COLUMNS, prediction_of, unescaped
from clipcls.records import Format, Prediction, ScoredLabel

# in bytes: a cell may hold the scores of many thousand labels
_LONGEST_CELL = 2**31 - 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A prediction with the place of its rows.

    Attributes:
        prediction: without what its format doesn't hold: TSV knows no similarities (None, and NaN in `top`).
        start: of its first row, in bytes from the beginning.
        end: of its last row.
    """

    prediction: Prediction
    start: int
    end: int


def read_predictions(file: BinaryIO, kind: Format, name: str) -> Iterator[Prediction]:
    """The predictions in an output, one for each image.

    Args:
        file: at its beginning; Parquet has to be seekable.
        name: of the file, for messages.

    Raises:
        UsageError: it holds something else, or ends within a row.
    """
    if kind == "parquet":
        yield from read_parquet(file, name)
        return
    lines = _Counted(file)
    end = 0
    for stored in read_stored(lines, kind, name):
        end = stored.end
        yield stored.prediction
    if lines.is_torn or lines.bytes > end > 0:
        raise UsageError(f"{name}: ends within a row; the run that wrote it was cut short. `--resume` completes it.")


class _Counted:
    """Lines as they are read, a pipe's too."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.bytes = 0
        self.is_torn = False

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.bytes += len(line)
            self.is_torn = not line.endswith(b"\n")
            yield line


def read_stored(file: Iterable[bytes], kind: Format, name: str) -> Iterator[StoredPrediction]:
    """The predictions in a text output with their places, but for a last row that was written in part.

    Raises:
        UsageError: it holds something else.
    """
    match kind:
        case "jsonl":
            yield from _read_jsonl(file, name)
        case "csv":
            yield from _read_csv(file, name)
        case "tsv":
            yield from _read_tsv(file, name)
        case _:
            raise UsageError(f"{name}: predictions can't be read back from {kind}; use tsv, jsonl, csv or parquet.")


def _whole_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    for line in file:
        if line.endswith(b"\n"):
            yield line


def _parsed(make: Callable[[T], Prediction], row: T, name: str, line: int) -> Prediction:
    try:
        return make(row)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError) as exc:
        raise UsageError(f"{name}, line {line}: not a row that `clipcls predict` writes.") from exc


def _read_jsonl(file: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
    start = 0
    for number, line in enumerate(_whole_lines(file), 1):
        end = start + len(line)
        if line.strip():
            yield StoredPrediction(_parsed(_from_json, line, name, number), start, end)
        start = end


def _from_json(line: bytes) -> Prediction:
    return prediction_of(json.loads(line))


def _read_csv(file: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in _whole_lines(file):
            end += len(line)
            yield line.decode("utf-8", "surrogateescape")

    csv.field_size_limit(_LONGEST_CELL)
    # strict, so that a file that ends within quotes is seen to do so
    reader = csv.reader(lines(), strict=True)
    header = next(reader, None)
    if header is None:
        return
    if tuple(header) != COLUMNS:
        raise UsageError(f"{name}: its first line isn't the header that `clipcls predict` writes.")
    start = end
    while True:
        try:
            row = next(reader, None)
        except csv.Error as exc:
            if "unexpected end" in str(exc):
                return
            raise UsageError(f"{name}, line {reader.line_num}: not CSV: {exc}.") from exc
        if row is None:
            return
        yield StoredPrediction(_parsed(_from_cells, row, name, reader.line_num), start, end)
        start = end


def _from_cells(cells: list[str]) -> Prediction:
    record: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    record["top"] = json.loads(record["top"])
    for column in ("label", "error"):
        # CSV doesn't tell an empty text from none, and no label and no error is empty
        record[column] = record[column] or None
    return prediction_of(record)


def _read_tsv(file: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
    """The lines of one image follow one another; the same image again begins with a label that it had."""
    path = ""
    answers: dict[str, ScoredLabel] = {}
    first = start = 0
    for number, line in enumerate(_whole_lines(file), 1):
        try:
            shown, label, score = line.decode("utf-8", "surrogateescape").removesuffix("\n").split("\t")
            place, answer = unescaped(shown), ScoredLabel(unescaped(label), float(score), math.nan)
        except ValueError as exc:
            raise UsageError(f"{name}, line {number}: not a row that `clipcls predict` writes.") from exc
        # an unknown image has one line, without a label
        again = answer.label in answers or not answer.label or "" in answers
        if answers and (place != path or again):
            yield StoredPrediction(_from_answers(path, answers), first, start)
            answers, first = {}, start
        path = place
        answers[answer.label] = answer
        start += len(line)
    if answers:
        yield StoredPrediction(_from_answers(path, answers), first, start)


def _from_answers(path: str, answers: dict[str, ScoredLabel]) -> Prediction:
    best = next(iter(answers.values()))
    return Prediction(path, best.label or None, best.score, None, tuple(answers.values()) if best.label else ())

"""Reads predictions back from the outputs of runs, to resume, to sort or to evaluate."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from clipcls.errors import UsageError, listed, reason
from clipcls.outputs.duplicates import begins_duplicates, read_lines, read_parquet
from clipcls.outputs.formats import format_for, format_names
from clipcls.outputs.formats.output_format import OutputFormat
from clipcls.outputs.formats.text import TextFormat
from clipcls.outputs.part_files import parts_in
from clipcls.records import Prediction


def read_predictions(
    file: BinaryIO, format: OutputFormat, name: str, question: str | None = None
) -> Iterator[Prediction]:
    """Yield the predictions in a whole output; see `OutputFormat.read`.

    A list of duplicates counts, too: the label of a picture that may go is its group, and those to keep are left out.

    Args:
        question: the one whose answers are taken, where several were asked.

    Raises:
        UsageError: it holds something else, ends within a row, or has a format that can't be read; or there is no such
            question, or none is chosen.
    """
    for prediction in read_rows(file, format, name):
        yield _of_question(prediction, question, name) if question or prediction.answers else prediction


def _of_question(prediction: Prediction, question: str | None, name: str) -> Prediction:
    """Return the answer to one question as a prediction; a picture that it wasn't asked of is unknown."""
    answers = dict(prediction.answers)
    if question not in answers:
        if not answers:
            raise UsageError(f"{name}: its rows have one answer; leave --question out.")
        raise UsageError(f"{name}: answers to {listed(answers)}; choose one with --question {next(iter(answers))}.")
    answer = answers[question]
    if answer is None:
        return replace(prediction, answers=())
    return replace(
        prediction, label=answer.label, score=answer.score, similarity=answer.similarity, top=answer.top, answers=()
    )


def read_rows(file: BinaryIO, format: OutputFormat, name: str) -> Iterator[Prediction]:
    """Yield the predictions in a whole output, with the answers to all questions; see `read_predictions`."""
    if not format.can_be_read:
        names = format_names(lambda one: one.can_be_read)
        raise UsageError(f"{name}: predictions can't be read back from {format.name}; use {names}.")
    if isinstance(format, TextFormat):
        first = file.readline()
        lines = chain([first] if first else [], file)
        if begins_duplicates(first, format.name):
            yield from read_lines(lines, format.name, name)
        else:
            yield from format.read_lines(lines, name)
        return
    format.require()
    duplicates = read_parquet(file) if format.name == "parquet" else None
    yield from format.read(file, name) if duplicates is None else duplicates


def read_results(output: Path, question: str | None = None) -> Iterator[Prediction]:
    """Yield the predictions in a file of results, or in the part files of a folder; see `read_predictions`.

    Raises:
        UsageError: it can't be read, holds something else or nothing, or its name tells no format.
    """
    parts = parts_in(output).values() if output.is_dir() else [output]
    if not parts:
        raise UsageError(f"{output}: a folder without part files, as `clipcls predict --output-dir` writes them.")
    is_empty = True
    try:
        for part in parts:
            format = _format_of(part)
            with part.open("rb") as file:
                for prediction in read_predictions(file, format, str(part), question):
                    is_empty = False
                    yield prediction
    except (OSError, ValueError) as exc:
        raise UsageError(f"{output}: can't be read: {reason(exc)}.") from exc
    if is_empty:
        raise UsageError(f"{output}: holds no predictions.")


def _format_of(predictions: Path) -> OutputFormat:
    try:
        return format_for(predictions)
    except UsageError as exc:
        names = format_names(lambda one: one.can_be_read, prefix=".")
        raise UsageError(f"{predictions}: its name tells no format: predictions end in {names}.") from exc


def predictions_in(path: Path) -> Iterator[Prediction]:
    """Yield the predictions in a file of results, without a partly written last row.

    Raises:
        UsageError: it holds something else.
    """
    with path.open("rb") as file:
        yield from format_for(path).read(file, str(path), torn=True)

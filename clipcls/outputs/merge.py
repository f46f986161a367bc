"""Puts the outputs of a job's parts together, in the order of its inputs.

Which part an output holds, and that it is complete, is in its journal, which lies beside it. A row's index says where
it belongs: the rows of an output rise in it, except those of images that were run again, which follow the others.
"""

import contextlib
import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from clipcls.errors import UsageError, reason
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats import format_for
from clipcls.outputs.journal import PART_SETTING, Journal, RunSettings, differences, journal_path
from clipcls.outputs.part_files import parts_in
from clipcls.outputs.resume import journal_of_new
from clipcls.outputs.rows import RowShape
from clipcls.outputs.sinks import open_sink, published
from clipcls.outputs.vectors import file_format_for
from clipcls.outputs.vectors.parquet import IndexedRow, ParquetParts, indexed_rows, stated_origin
from clipcls.outputs.vectors.vector_format import VectorRows
from clipcls.records import InputPart, Listing, Prediction

#: A setting of runs over features, and of no others.
_OF_FEATURES = "--dtype"
# rows of features that are written at once
_BLOCK = 1000
# files that are open besides those that are read
_OTHER_FILES = 64

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class PartOutput:
    """The output of a part.

    Attributes:
        settings: those of the job.
        listing: what the job's inputs were; None if the part isn't complete.
    """

    path: Path
    part: InputPart
    settings: RunSettings
    listing: Listing | None

    @property
    def files(self) -> list[Path]:
        """The file, or the part files of the folder."""
        return list(parts_in(self.path).values()) if self.path.is_dir() else [self.path]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The result of merging.

    Attributes:
        parts: the number of parts.
        done: the number of images.
        failed: how many of them have an error.
    """

    parts: int
    done: int
    failed: int


def merge(outputs: Sequence[Path], destination: Destination) -> MergeReport:
    """Write the rows of all parts of a job to one output, as a run over all inputs would have written them.

    Memory holds a row of each part, or a row group where the format has them. A file appears once it is whole.

    Args:
        outputs: files and folders with the rows of parts, and folders that hold such.
        destination: what to write; of features, a file whose extension says in which format.

    Raises:
        StoppedError: the output can't be written, or a part is still being written.
        UsageError: a part is missing, isn't complete, is there twice, or is of another job.
    """
    parts = find_parts(outputs)
    merged = _merge_features if _OF_FEATURES in parts[0].settings else _merge_predictions
    done, failed = merged(parts, destination)
    return MergeReport(len(parts), done, failed)


# ---------------------------------------------------------------------------------------------------------
# Which parts there are


def find_parts(outputs: Sequence[Path]) -> list[PartOutput]:
    """Return all parts of a job, in order.

    Raises:
        StoppedError: a part is still being written.
        UsageError: a part is missing, isn't complete, is there twice, or is of another job.
    """
    found: dict[int, PartOutput] = {}
    for path in _outputs_in(outputs):
        output = _read_part(path)
        if output is None:
            if path not in outputs:  # another file in a folder with parts, such as what they were merged to
                continue
            raise UsageError(f"{path}: not a part of a job; it was made without --part.")
        first = next(iter(found.values()), output)
        if output.part.count != first.part.count:
            raise UsageError(f"{path} is part {output.part}, and {first.path} part {first.part}: not of one job.")
        if (twin := found.get(output.part.number)) is not None:
            raise UsageError(f"{path} and {twin.path} are both part {output.part}; leave one out.")
        if differing := list(differences(first.settings, output.settings)):
            raise UsageError(f"{path} was made with other settings than {first.path}: {', '.join(differing)}.")
        found[output.part.number] = output
    if not found:
        raise UsageError("No parts, such as `clipcls predict --part I/N --output FILE` writes, in what was given.")
    parts = [found[number] for number in sorted(found)]
    _require_complete(parts)
    return parts


def _require_complete(parts: Sequence[PartOutput]) -> None:
    count = parts[0].part.count
    if missing := sorted(set(range(1, count + 1)) - {output.part.number for output in parts}):
        are = "parts {} are" if len(missing) > 1 else "part {} is"
        raise UsageError(f"Of {count} parts, {are.format(', '.join(map(str, missing)))} missing.")
    if broken := [f"part {output.part.number} ({output.path})" for output in parts if output.listing is None]:
        raise UsageError(f"Not complete: {', '.join(broken)}. Run it again; --resume keeps what is done.")
    for before, output in pairwise(parts):
        if before.listing != output.listing:
            raise UsageError(
                f"The inputs have changed between the runs of {before.path} and {output.path}, so that rows would be "
                "missing or double: run the older one again."
            )


def _outputs_in(outputs: Sequence[Path]) -> Iterator[Path]:
    """Yield the outputs, and those in folders that aren't outputs themselves."""
    for path in outputs:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder.")
        if not path.is_dir() or journal_path(path).exists():
            yield path
        else:
            held = [each for each in sorted(path.iterdir()) if journal_path(each).exists()]
            yield from (each for each in held if not each.name.startswith("."))


def _read_part(path: Path) -> PartOutput | None:
    """Return what the journal of an output says; None if it is of no part."""
    journal_file = journal_path(Path(os.path.realpath(path)))
    try:
        with Journal(journal_file, str(path), read_only=True) as journal:
            settings, listing = dict(journal.settings or {}), journal.listing
            is_whole = path.is_dir() or journal.whole == path.stat().st_size
    except OSError as exc:
        raise UsageError(f"{path}: {journal_file}, which says what part it is, can't be read: {reason(exc)}.") from exc
    if PART_SETTING not in settings:
        return None
    part = InputPart.parse(settings.pop(PART_SETTING))
    return PartOutput(path, part, settings, listing if is_whole else None)


# ---------------------------------------------------------------------------------------------------------
# Rows in order


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of a part in which the index rises.

    Attributes:
        files: the files that they are in.
        start: the first of them, counted from the first file's first row.
        stop: the end.
    """

    files: tuple[Path, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Reader(Generic[_Row]):
    """Reads the rows of a file, or only their indices."""

    indices: Callable[[Path], Iterable[int | None]]
    rows: Callable[[Path], Iterable[_Row]]
    index_of: Callable[[_Row], Any]

    def merged(self, parts: Sequence[PartOutput]) -> Iterator[_Row]:
        """Return the rows of all parts by index; equal ones, which are of one container, in their part's order."""
        runs = [run for output in parts for run in self._runs(output)]

        def merge() -> Iterator[_Row]:
            with _open_files(len(runs)):
                yield from heapq.merge(*map(self._read, runs), key=self.index_of)

        return merge()

    def _read(self, run: _Run) -> Iterator[_Row]:
        return islice(chain.from_iterable(map(self.rows, run.files)), run.start, run.stop)

    def _runs(self, output: PartOutput) -> Iterator[_Run]:
        files: list[Path] = []
        start = row = 0
        last = -1
        for path in output.files:
            files.append(path)
            first = row
            for index in self.indices(path):
                if index is None:
                    raise UsageError(f"{path}: a row without an index, so that its place can't be told.")
                if index < last:
                    yield _Run(tuple(files), start, row)
                    files, start, row, first = [path], row - first, row - first, 0
                last = index
                row += 1
        yield _Run(tuple(files), start, row)


@contextlib.contextmanager
def _open_files(count: int) -> Iterator[None]:
    """Allow so many files to be open at once, as far as the system does."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------------------------------------------------
# Predictions


def _merge_predictions(parts: Sequence[PartOutput], destination: Destination) -> tuple[int, int]:
    settings = parts[0].settings
    destination = replace(destination, shape=_shape(settings))
    format = destination.format
    format.require()
    reader = _Reader(_prediction_indices, _predictions, attrgetter("index"))
    rows = reader.merged(parts)
    several = {name for name, *_, is_multi, _, _ in settings.get("--questions", ()) if is_multi}
    done = failed = 0
    with contextlib.ExitStack() as stack:
        journal = None
        if destination.is_standard_output:
            sink = stack.enter_context(open_sink(destination, ()))
        else:
            path = Path(destination.output)
            if destination.is_resumable:
                journal = stack.enter_context(journal_of_new(path, settings))
            sink = stack.enter_context(published(path, format, early=False))
        for prediction in rows:
            prediction = _without_index(prediction, several)
            done += 1
            failed += prediction.error is not None
            if journal is not None and prediction.error is not None and not format.keeps_errors:
                journal.add_failure(prediction)
            sink.write(prediction)
    return done, failed


def _shape(settings: RunSettings) -> RowShape:
    questions = tuple(name for name, *_ in settings.get("--questions", ()))
    return RowShape("--min-known" in settings, questions, "--without-priors" in settings)


def _prediction_indices(path: Path) -> Iterator[int | None]:
    return (prediction.index for prediction in _predictions(path))


def _predictions(path: Path) -> Iterator[Prediction]:
    try:
        with path.open("rb") as file:
            yield from format_for(path).read(file, str(path))
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc


def _without_index(prediction: Prediction, several: set[str]) -> Prediction:
    """Return a prediction as a run over all inputs gives it.

    Args:
        several: the questions that take several answers, which rows don't say.
    """
    answers = tuple((name, answer and replace(answer, several=name in several)) for name, answer in prediction.answers)
    return replace(prediction, index=None, answers=answers)


# ---------------------------------------------------------------------------------------------------------
# Features


def _merge_features(parts: Sequence[PartOutput], destination: Destination) -> tuple[int, int]:
    if destination.is_standard_output:
        raise UsageError("Features are no text: give --output FILE.")
    path = Path(destination.output)
    format = file_format_for(path)
    format.require()
    origin = stated_origin(next(file for output in parts for file in output.files))
    reader = _Reader(_feature_indices, indexed_rows, itemgetter(0))
    rows = reader.merged(parts)
    done = failed = 0
    with format.open_sink(path, origin, parts[0].settings[_OF_FEATURES]) as sink:
        while block := list(islice(rows, _BLOCK)):
            sink.write(_vector_rows(block, origin.embed_dim))
            done += len(block)
            failed += sum(error is not None for _, _, error, _ in block)
    return done, failed


def _feature_indices(path: Path) -> Iterator[int | None]:
    return (index for _, _, index in ParquetParts().rows_of(path))


def _vector_rows(block: Sequence[IndexedRow], embed_dim: int) -> VectorRows:
    features = [vector for *_, vector in block if vector is not None]
    return VectorRows(
        tuple(key for _, key, _, _ in block),
        np.stack(features) if features else np.empty((0, embed_dim), np.float32),
        tuple(error for _, _, error, _ in block),
    )

"""The output of a run: written anew, or gone on with after the rows that it holds."""

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.part_files import parts_in, predictions_in
from clipcls.outputs.read_back import StoredPrediction, read_stored
from clipcls.outputs.run_record import Journal, Settings, differences, journal_path
from clipcls.outputs.sinks import Parts, Sink, format_for, open_sink, published, text_sink
from clipcls.outputs.target import Target, check_target, implied_format, is_resumable
from clipcls.records import Format, ImageRef, Prediction

logger = logging.getLogger(__name__)

#: settings that errors depend on, and nothing else
_LIMITS = ("--max-pixels", "--max-bytes")


@dataclass(slots=True)
class Done:
    """The images that an output holds.

    Attributes:
        count: how many.
        failed: how many of them have an error.
    """

    count: int = 0
    failed: int = 0
    _paths: Counter[str] = field(default_factory=Counter)

    def add(self, prediction: Prediction) -> None:
        """Count an image in."""
        self.count += 1
        self.failed += prediction.error is not None
        self._paths[prediction.path] += 1

    def remaining(self, images: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """The images that aren't done; one that is listed twice is done once for each time that it was."""
        for image in images:
            if self._paths[image.path] > 0:
                self._paths[image.path] -= 1
            else:
                yield image


class Output:
    """An open output.

    Attributes:
        done: what it held before.
        can_resume: whether a run that is stopped can go on with it.
    """

    def __init__(self, sink: Sink, journal: Journal | None = None, done: Done | None = None, kind: str = "") -> None:
        self._sink = sink
        self._journal = journal
        self._keeps_errors = kind != "tsv"
        self.done = done or Done()
        self.can_resume = journal is not None

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; it then ends with its last whole row.
        """
        if self._journal is not None and prediction.error is not None and not self._keeps_errors:
            self._journal.add_failure(prediction)
        self._sink.write(prediction)


@contextlib.contextmanager
def open_output(target: Target, labels: tuple[str, ...], settings: Callable[[], Settings]) -> Iterator[Output]:
    """Open an output.

    Args:
        labels: all labels of the run, for the widths of a table.
        settings: gives all that rows depend on, by the names of the options; rows of others aren't gone on with.

    Raises:
        StoppedError: it can't be written, or another run writes to it.
        UsageError: it can't be gone on with, or see `check_target`.
    """
    check_target(target)
    kind = target.kind or implied_format(target)
    if target.folder is not None:
        with _open_folder(target, target.folder, settings()) as output:
            yield output
    elif is_resumable(target, kind):
        # what a link leads to: two names of a file have one journal
        path = Path(os.path.realpath(target.output))
        with _open_text(target, path, cast("Format", kind), labels, settings()) as output:
            yield output
    else:
        with open_sink(target.output, kind, labels=labels) as sink:
            yield Output(sink)


# ---------------------------------------------------------------------------------------------------------
# One file of text


@contextlib.contextmanager
def _open_text(
    target: Target, path: Path, kind: Format, labels: tuple[str, ...], settings: Settings
) -> Iterator[Output]:
    with contextlib.ExitStack() as stack:
        try:
            journal = stack.enter_context(Journal(journal_path(path), target.output))
        except OSError as exc:
            if target.resume:
                raise StoppedError(f"{journal_path(path)}: can't be written: {exc.strerror}.") from exc
            logger.warning(
                "%s: can't be written (%s), so that this run can't be resumed", journal_path(path), exc.strerror
            )
            yield Output(stack.enter_context(open_sink(target.output, kind, labels=labels)))
            return
        with _can_write(target.output):
            goes_on = target.resume and path.exists() and bool(path.stat().st_size or journal.failed)
            done = _go_on(target, path, kind, journal, settings) if goes_on else Done()
            stream = cast("BinaryIO", stack.enter_context(path.open("rb+" if goes_on else "wb", buffering=0)))
            if not goes_on:
                journal.begin(settings)
            begins = not stream.seek(0, os.SEEK_END)
        yield Output(text_sink(kind, stream, labels, target.output, begins=begins), journal, done, kind)
        with contextlib.suppress(StoppedError):  # it spares the next run one image
            journal.finish(stream.tell())


def _go_on(target: Target, path: Path, kind: Format, journal: Journal, settings: Settings) -> Done:
    """Read what is done, cut off a last row that was written in part, and take out what is to be run again."""
    _require_same(target, journal, settings)
    if target.retry_errors:
        journal.retry()
        if kind != "tsv":
            _take_out_errors(path, kind)
        journal.restate(settings)
    done = Done()
    for failed in journal.failed:
        done.add(failed)
    # of the lines of one image in TSV, the last may be missing
    is_whole = kind != "tsv" or not _lists_several(settings) or journal.whole == path.stat().st_size
    end = 0
    with path.open("rb+") as file:
        for row, is_last in _marking_last(read_stored(file, kind, target.output)):
            if is_whole or not is_last:
                done.add(row.prediction)
                end = row.end
        file.truncate(end)
    return done


def _lists_several(settings: Settings) -> bool:
    """Whether an image may have several lines in TSV."""
    return bool(settings.get("--multi-label")) or (settings.get("--top-k") or 1) > 1


def _marking_last(rows: Iterator[StoredPrediction]) -> Iterator[tuple[StoredPrediction, bool]]:
    before = next(rows, None)
    for row in rows:
        if before is not None:
            yield before, False
        before = row
    if before is not None:
        yield before, True


def _take_out_errors(path: Path, kind: Format) -> None:
    """Rewrite a file without the rows of images that failed."""
    with published(path, kind, early=False) as sink:
        for prediction in predictions_in(path, kind):
            if prediction.error is None:
                sink.write(prediction)


def _require_same(target: Target, journal: Journal, settings: Settings) -> None:
    """Refuse rows that other settings made."""
    if journal.settings is None:
        raise UsageError(
            f"--resume: {target.name} isn't empty, and nothing says how it was made ({journal.path} is missing or "
            "empty). Choose another output, or remove it."
        )
    # through JSON, as they were kept
    now = json.loads(json.dumps(settings))
    raised = {name: now[name] for name in _LIMITS if target.retry_errors and _is_raised(journal.settings, now, name)}
    differing = list(differences({**journal.settings, **raised}, now))
    if differing:
        raise UsageError(
            f"--resume: {target.name} was begun with other settings: {', '.join(differing)}. Give those again, "
            "or choose another output."
        )


def _is_raised(before: Settings, now: Settings, limit: str) -> bool:
    """Whether a limit is higher than it was, so that it holds for all rows without an error."""
    old, new = before.get(limit), now.get(limit)
    return isinstance(old, int) and isinstance(new, int) and old < new


@contextlib.contextmanager
def _can_write(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoppedError(f"{name}: can't be written: {exc.strerror}.") from exc


# ---------------------------------------------------------------------------------------------------------
# A folder of part files


@contextlib.contextmanager
def claim_folder(target: Target, folder: Path, settings: Settings) -> Iterator[tuple[Journal, dict[int, Path]]]:
    """Have a folder for part files to oneself.

    Returns:
        Its journal, and the part files in it by their numbers; what a killed run left unfinished is removed.

    Raises:
        StoppedError: it can't be written, or another run writes to it.
        UsageError: it can't be gone on with.
    """
    with contextlib.ExitStack() as stack:
        with _can_write(target.name):
            folder.mkdir(parents=True, exist_ok=True)
            journal = stack.enter_context(Journal(journal_path(folder), target.name))
            parts = parts_in(folder)
            if not parts:
                journal.begin(settings)
        if parts and not target.resume:
            raise UsageError(
                f"--output-dir {folder}: there are results in it. Give --resume to go on, or another folder."
            )
        if parts:
            _require_same(target, journal, settings)
        yield journal, parts


@contextlib.contextmanager
def _open_folder(target: Target, folder: Path, settings: Settings) -> Iterator[Output]:
    with claim_folder(target, folder, settings) as (journal, parts):
        with _can_write(target.name):
            done = _go_on_in(parts, target)
        if parts and target.retry_errors:
            journal.restate(settings)
        with Parts(folder, target.kind or "parquet", max(parts, default=-1) + 1) as sink:
            yield Output(sink, journal, done)


def _go_on_in(parts: dict[int, Path], target: Target) -> Done:
    done = Done()
    for number, path in list(parts.items()):
        kind = format_for(path)
        if target.retry_errors and any(row.error is not None for row in predictions_in(path, kind)):
            _take_out_errors(path, kind)
            # else each run that retries in vain would leave an empty file
            if next(predictions_in(path, kind), None) is None:
                path.unlink()
                del parts[number]
                continue
        for prediction in predictions_in(path, kind):
            done.add(prediction)
    return done

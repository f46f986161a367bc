"""Opens the output of a run, either new or resumed after the rows that it holds."""

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from clipcls.errors import StoppedError, UsageError, printable
from clipcls.outputs.atomic import can_write
from clipcls.outputs.destination import Destination, check_destination
from clipcls.outputs.formats import format_for
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.outputs.formats.text import TextFormat, TextSink, WholeLines
from clipcls.outputs.journal import Journal, RunSettings, differences, journal_path
from clipcls.outputs.part_files import parts_in, remove_draft_parts
from clipcls.outputs.read_back import predictions_in
from clipcls.outputs.sinks import Parts, open_sink, published
from clipcls.records import ImageRef, Listing, Prediction

if TYPE_CHECKING:
    from clipcls.outputs.vectors.write import VectorDestination

logger = logging.getLogger(__name__)

#: Settings that only errors depend on.
_LIMITS = ("--max-pixels", "--max-bytes")


@dataclass(slots=True)
class Done:
    """The images that an output already holds.

    Attributes:
        count: the number of images.
        failed: how many of them have an error.
    """

    count: int = 0
    failed: int = 0
    _rows: Counter[str | tuple[str, int]] = field(default_factory=Counter)
    _have_index: bool = False

    def add(self, path: str, error: str | None, index: int | None = None) -> None:
        """Count an image."""
        self.count += 1
        self.failed += error is not None
        self._rows[_key(path, index)] += 1
        self._have_index = self._have_index or index is not None

    def remove(self, prediction: Prediction) -> None:
        """Undo the count of an image."""
        self.count -= 1
        self.failed -= prediction.error is not None
        self._rows[_key(prediction.path, prediction.index)] -= 1

    def remaining(self, images: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Yield the images that aren't done; one that is listed n times is skipped as often as it was done.

        Raises:
            UsageError: a part of a job has rows of images that aren't, or no longer, at their place in the inputs.
        """
        for image in images:
            key = _key(image.path, image.index)
            if self._rows[key] > 0:
                self._rows[key] -= 1
            else:
                yield image
        if self._have_index and self._rows.total():
            key = next(key for key, left in self._rows.items() if left)
            path = printable(key if isinstance(key, str) else key[0])
            raise UsageError(
                f"The inputs have changed since this part was begun ({path} isn't where it was), so its rows can't be "
                "put in order: run it anew, without --resume."
            )


def _key(path: str, index: int | None) -> str | tuple[str, int]:
    return path if index is None else (path, index)


class RunOutput:
    """An open output of a run.

    Attributes:
        done: the images that it held before.
        can_resume: whether a stopped run can be resumed.
        listing: what the job's inputs were, which a run sets once all rows of its part of them are written.
    """

    def __init__(
        self, sink: Sink, format: OutputFormat, journal: Journal | None = None, done: Done | None = None
    ) -> None:
        self._sink = sink
        self._format = format
        self._journal = journal
        self.done = done or Done()
        self.can_resume = journal is not None
        self.listing: Listing | None = None

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; it then ends with its last whole row.
        """
        if self._journal is not None and prediction.error is not None and not self._format.keeps_errors:
            self._journal.add_failure(prediction)
        self._sink.write(prediction)


@contextlib.contextmanager
def open_output(
    destination: Destination, labels: tuple[str, ...], settings: Callable[[], RunSettings]
) -> Iterator[RunOutput]:
    """Open the output of a run.

    Args:
        labels: all labels of the run, for the widths of a table.
        settings: returns all settings that rows depend on, by option name; with others the run isn't resumed.

    Raises:
        StoppedError: the output can't be written, or another run writes to it.
        UsageError: the run can't be resumed, or see `check_destination`.
    """
    check_destination(destination)
    format = destination.format
    if destination.folder is not None:
        with _open_folder(destination, destination.folder, settings()) as output:
            yield output
    elif destination.is_resumable and isinstance(format, TextFormat):
        with _open_text(destination, format, labels, settings()) as output:
            yield output
    elif destination.shape.has_index:
        with _open_part(destination, labels, settings()) as output:
            yield output
    else:
        with open_sink(destination, labels) as sink:
            yield RunOutput(sink, format)


@contextlib.contextmanager
def _open_part(destination: Destination, labels: tuple[str, ...], settings: RunSettings) -> Iterator[RunOutput]:
    """Open a file for a part of a job that can't be resumed, but has a journal that says which part it is."""
    with journal_of_new(Path(destination.output), settings) as journal:
        with open_sink(destination, labels) as sink:
            output = RunOutput(sink, destination.format)
            yield output
        _complete(journal, output)


@contextlib.contextmanager
def journal_of_new(output: Path, settings: RunSettings) -> Iterator[Journal]:
    """Open a new journal of a file that is written anew inside of the context.

    Raises:
        StoppedError: it can't be written, or another run writes to the file.
    """
    path = Path(os.path.realpath(output))
    with contextlib.ExitStack() as stack:
        with can_write(str(journal_path(path))):
            journal = stack.enter_context(Journal(journal_path(path), str(output)))
        journal.begin(settings)
        yield journal
        with can_write(str(output)):
            journal.finish(path.stat().st_size)


def _complete(journal: Journal, output: RunOutput) -> None:
    if output.listing is not None:
        journal.complete(output.listing)


# ---------------------------------------------------------------------------------------------------------
# One file of text


@contextlib.contextmanager
def _open_text(
    destination: Destination, format: TextFormat, labels: tuple[str, ...], settings: RunSettings
) -> Iterator[RunOutput]:
    name = destination.output
    # links are followed, so that two names of a file share one journal
    path = Path(os.path.realpath(name))
    with contextlib.ExitStack() as stack:
        try:
            journal = stack.enter_context(Journal(journal_path(path), name))
        except OSError as exc:
            if destination.resume or destination.shape.has_index:
                raise StoppedError(f"{journal_path(path)}: can't be written: {exc.strerror}.") from exc
            logger.warning(
                "%s: can't be written (%s), so that this run can't be resumed", journal_path(path), exc.strerror
            )
            yield RunOutput(stack.enter_context(open_sink(destination, labels)), format)
            return
        with can_write(name):
            goes_on = destination.resume and path.exists() and bool(path.stat().st_size or journal.failed)
            done = _go_on(destination, path, format, journal, settings) if goes_on else Done()
            stream = cast("BinaryIO", stack.enter_context(path.open("rb+" if goes_on else "wb", buffering=0)))
            if not goes_on:
                journal.begin(settings)
            elif journal.listing is not None:
                journal.complete(None)
            begins = not stream.seek(0, os.SEEK_END)
        sink = TextSink(stream, format.for_labels(labels), name, begins=begins)
        output = RunOutput(sink, format, journal, done)
        yield output
        _complete(journal, output)
        with contextlib.suppress(StoppedError):  # without it, the next run only repeats one image
            journal.finish(stream.tell())


def _go_on(destination: Destination, path: Path, format: TextFormat, journal: Journal, settings: RunSettings) -> Done:
    """Read which images are done, cut off a partly written last row, and remove the rows to be run again."""
    require_same(destination, journal, settings)
    if destination.retry_errors:
        journal.retry()
        if format.keeps_errors:
            _take_out_errors(path, format)
        journal.restate(settings)
    done = Done()
    for failed in journal.failed:
        done.add(failed.path, failed.error, failed.index)
    # of several rows of one image, the last may be missing
    is_whole = format.one_row_per_image or not _lists_several(settings) or journal.whole == path.stat().st_size
    last, end, end_before = None, 0, 0
    with path.open("rb+") as file:
        for last, row_end in format.read_rows(WholeLines(file, destination.output)):
            done.add(last.path, last.error, last.index)
            end_before, end = end, row_end
        if last is not None and not is_whole:
            done.remove(last)
            end = end_before
        file.truncate(end)
    return done


def _lists_several(settings: RunSettings) -> bool:
    return bool(settings.get("--multi-label")) or (settings.get("--top-k") or 1) > 1


def _take_out_errors(path: Path, format: OutputFormat) -> None:
    """Rewrite a file without the rows of images that failed."""
    with published(path, format, early=False) as sink, path.open("rb") as file:
        for prediction in format.read(file, str(path), torn=True):
            if prediction.error is None:
                sink.write(prediction)


def require_same(destination: "Destination | VectorDestination", journal: Journal, settings: RunSettings) -> None:
    """Refuse to resume rows that were made with other settings.

    Raises:
        UsageError: they were, or nothing says how they were made.
    """
    if journal.settings is None:
        raise UsageError(
            f"--resume: {destination.name} isn't empty, and nothing says how it was made ({journal.path} is missing or "
            "empty). Choose another output, or remove it."
        )
    # through JSON, to compare equal to those read from the journal
    now = json.loads(json.dumps(settings))
    raised = {
        name: now[name] for name in _LIMITS if destination.retry_errors and _is_raised(journal.settings, now, name)
    }
    differing = list(differences({**journal.settings, **raised}, now))
    if differing:
        raise UsageError(
            f"--resume: {destination.name} was begun with other settings: {', '.join(differing)}. Give those again, "
            "or choose another output."
        )


def _is_raised(before: RunSettings, now: RunSettings, limit: str) -> bool:
    """Return whether a limit is higher than it was, so that rows without an error stay right."""
    old, new = before.get(limit), now.get(limit)
    return isinstance(old, int) and isinstance(new, int) and old < new


# ---------------------------------------------------------------------------------------------------------
# A folder of part files


@contextlib.contextmanager
def claim_folder(
    destination: Destination, folder: Path, settings: RunSettings
) -> Iterator[tuple[Journal, dict[int, Path]]]:
    """Lock a folder for part files, and remove those that a killed run left unfinished.

    Yields:
        The folder's journal, and its part files by number.

    Raises:
        StoppedError: the folder can't be written, or another run writes to it.
        UsageError: the run can't be resumed.
    """
    with contextlib.ExitStack() as stack:
        with can_write(destination.name):
            folder.mkdir(parents=True, exist_ok=True)
            journal = stack.enter_context(Journal(journal_path(folder), destination.name))
            remove_draft_parts(folder)
            parts = parts_in(folder)
            if not parts:
                journal.begin(settings)
        if parts and not destination.resume:
            raise UsageError(
                f"--output-dir {folder}: there are results in it. Give --resume to go on, or another folder."
            )
        if parts:
            require_same(destination, journal, settings)
        yield journal, parts


@contextlib.contextmanager
def _open_folder(destination: Destination, folder: Path, settings: RunSettings) -> Iterator[RunOutput]:
    with claim_folder(destination, folder, settings) as (journal, parts):
        with can_write(destination.name):
            done = _go_on_in(parts, destination)
        if parts and destination.retry_errors:
            journal.restate(settings)
        if journal.listing is not None:
            journal.complete(None)
        with Parts(folder, destination.format, max(parts, default=-1) + 1) as sink:
            output = RunOutput(sink, destination.format, journal, done)
            yield output
        _complete(journal, output)


def _go_on_in(parts: dict[int, Path], destination: Destination) -> Done:
    done = Done()
    for number, path in list(parts.items()):
        if destination.retry_errors and any(row.error is not None for row in predictions_in(path)):
            _take_out_errors(path, format_for(path, destination.shape))
            # otherwise each retry in vain would leave an empty file
            if next(predictions_in(path), None) is None:
                path.unlink()
                del parts[number]
                continue
        for prediction in predictions_in(path):
            done.add(prediction.path, prediction.error, prediction.index)
    return done

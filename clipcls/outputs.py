"""The output of a run: written anew, or gone on with after the rows that it holds."""

import contextlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from clipcls.errors import StoppedError, UsageError
from clipcls.journal import Journal, Settings, differences, journal_path
from clipcls.parquet import count_rows, read_parquet, require_pyarrow
from clipcls.records import Format, ImageRef, Prediction
from clipcls.results import StoredPrediction, read_stored
from clipcls.sinks import Parts, Sink, format_for, open_sink, published, text_sink

logger = logging.getLogger(__name__)

#: settings that errors depend on, and nothing else
_LIMITS = ("--max-pixels", "--max-bytes")
_PART = re.compile(r"part-(\d{6,})\.(?:jsonl|csv|parquet)")
# with the one slash that is left of two in a path; a drive's name has one letter
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class Target:
    """Where results are to go.

    Attributes:
        output: a file, or `-`; not used with a folder.
        folder: for part files, each there once it is whole.
        kind: None for what the output tells.
        resume: go on with what is there.
        retry_errors: but run the images again that failed.
    """

    output: str = "-"
    folder: Path | None = None
    kind: Format | None = None
    resume: bool = False
    retry_errors: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.output if self.folder is None else str(self.folder)


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


def check_target(target: Target) -> None:
    """Refuse what contradicts itself or can't be done, before anything is opened.

    Raises:
        UsageError: it does, or it needs pyarrow, which isn't installed.
    """
    kind = target.kind or _told(target)
    if target.folder is not None and _ADDRESS.match(str(target.folder)):
        raise UsageError(f"--output-dir {target.folder}: an address; results are written to folders only.")
    if target.retry_errors and not target.resume:
        raise UsageError("--retry-errors goes with --resume.")
    if not target.output:
        raise UsageError("--output is empty. Give a file, or - for standard output.")
    if target.folder is not None and target.output != "-":
        raise UsageError("Give --output or --output-dir, not both.")
    if target.folder is not None and kind in ("table", "tsv"):
        raise UsageError(f"--output-dir: {kind} has no rows for images that failed; use parquet, jsonl or csv.")
    if kind == "parquet":
        require_pyarrow()
        if target.folder is None and target.output == "-":
            raise UsageError("Parquet can't be written to standard output. Give --output FILE or --output-dir DIR.")
    if target.resume and target.folder is None and not _is_resumable(target, kind):
        raise UsageError(
            f"--resume: a run can't go on with {'standard output' if target.output == '-' else target.output}. "
            "Give --output FILE with the format tsv, jsonl or csv, or --output-dir DIR for part files."
        )


def _told(target: Target) -> Format | None:
    """The format that the output itself tells."""
    if target.folder is not None:
        return "parquet"
    return None if target.output == "-" else format_for(Path(target.output))


def _is_resumable(target: Target, kind: str | None) -> bool:
    """Whether it is a file of rows."""
    path = Path(target.output)
    return kind in ("jsonl", "csv", "tsv") and target.output != "-" and (path.is_file() or not path.exists())


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
    kind = target.kind or _told(target)
    if target.folder is not None:
        with _open_folder(target, target.folder, settings()) as output:
            yield output
    elif _is_resumable(target, kind):
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


def predictions_in(path: Path, kind: Format) -> Iterator[Prediction]:
    """The predictions in a file of results.

    Raises:
        UsageError: it holds something else.
    """
    with path.open("rb") as file:
        if kind == "parquet":
            yield from read_parquet(file, str(path))
        else:
            yield from (row.prediction for row in read_stored(file, kind, str(path)))


def tally(path: Path, kind: Format) -> tuple[int, int]:
    """How many predictions there are in a file of results, and how many of them have an error.

    Raises:
        UsageError: it holds something else.
    """
    if kind == "parquet":
        return count_rows(path)
    errors = [row.error is not None for row in predictions_in(path, kind)]
    return len(errors), sum(errors)


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
            parts = _parts_in(folder)
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


def _parts_in(folder: Path) -> dict[int, Path]:
    """The part files by their numbers; what a killed run left unfinished is removed."""
    parts = {}
    for path in sorted(folder.iterdir()):
        if match := _PART.fullmatch(path.name.removeprefix(".").removesuffix(".part")):
            if path.name.startswith("."):
                path.unlink()
            else:
                parts[int(match[1])] = path
    return parts


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

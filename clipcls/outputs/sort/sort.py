"""Carries out a plan, and undoes it.

A process that is killed leaves at most one file half done; the next one that works on the folder clears that up first.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clipcls.errors import ImageError, StoppedError, UsageError, reason
from clipcls.outputs.sort import place
from clipcls.outputs.sort.log import END, LOG_NAME, SortRun, append, file_line, locked, read_runs, write_runs
from clipcls.outputs.sort.names import numbered
from clipcls.outputs.sort.place import SortedFile, require_file, shown, status_of, translated
from clipcls.outputs.sort.plan import SortPlan
from clipcls.records import FileStamp

_BLOCK = 64  # files whose lines in the log are flushed to the disk together
_NAME_ERRORS = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
_LINK_ERRORS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP})

#: A file with its final target, and why nothing was done; None if it was done.
SortOutcome = tuple[SortedFile, str | None]


def carry_out(plan: SortPlan) -> Generator[SortOutcome, None, None]:
    """Sort one file for each outcome that is requested, and yield it; closing the generator stops between two files.

    Raises:
        StoppedError: the folder can't be written to, or a source can't be removed; what was done before stays done.
    """
    if not plan.run.files and not (plan.root / LOG_NAME).exists():
        return
    with translated(plan.into):
        plan.run.made = [] if plan.root.exists() else ["."]
        plan.root.mkdir(exist_ok=True)
    with locked(plan.root):
        runs = _clear_up(plan.root)
        if not (runs and runs[-1].ended):
            write_runs(plan.root, runs)
        if not plan.run.files:
            return
        try:
            yield from _Sorter(plan).outcomes()
        except GeneratorExit:
            append(plan.root, END)
            raise
        append(plan.root, END)


def _clear_up(root: Path) -> list[SortRun]:
    runs = read_runs(root)
    with translated(root):
        for path in itertools.chain.from_iterable(run.remains for run in runs):
            path.unlink(missing_ok=True)
    return runs


class _Sorter:
    def __init__(self, plan: SortPlan) -> None:
        self._plan = plan
        self._by = plan.run.by
        self._moved: dict[Path, Path] = {}
        folders = sorted({file.target.parent for file in plan.run.files.values()})
        plan.run.made += [folder.name for folder in folders if status_of(folder) is None]
        append(plan.root, plan.run.line())
        for folder in folders:
            with translated(plan.into / folder.name):
                folder.mkdir(exist_ok=True)

    def outcomes(self) -> Iterator[SortOutcome]:
        # links come in blocks of their own, since their text depends on where their files have been moved
        for _, files in itertools.groupby(self._plan.run.files.values(), lambda file: file.leads_to is not None):
            while block := list(itertools.islice(files, _BLOCK)):
                yield from self._block(block)

    def _block(self, block: Sequence[SortedFile]) -> Iterator[SortOutcome]:
        files: list[SortedFile] = []
        for file in block:
            try:
                files.append(self._prepare(file))
            except ImageError as exc:
                yield file, str(exc)
        self._announce(*files)
        yield from map(self._perform, files)

    def _announce(self, *files: SortedFile) -> None:
        append(self._plan.root, *(file_line(file, self._plan.root) for file in files), durable=True)

    def _prepare(self, file: SortedFile) -> SortedFile:
        """Return the file with its current status, for the log; it may have changed since it was planned."""
        folder = file.target.parent
        link = source_link = None
        if file.leads_to is not None:
            status = status_of(file.source)
            if status is None or not stat.S_ISLNK(status.st_mode):
                raise ImageError("no such link any more")
            source_link = os.fspath(file.source.readlink())
            # directly to the file that it led to, even if that has moved; a relative link stays relative
            end = self._moved.get(file.leads_to, file.leads_to)
            link = os.fspath(end) if Path(source_link).is_absolute() else os.path.relpath(end, folder)
        elif self._by == "move" and file.source.is_symlink():
            raise ImageError("it has become a link meanwhile")
        else:
            status = require_file(os.fspath(file.source))
        if self._by == "symlink":
            # links to files in the folder are relative, so that they survive a move of the folder
            is_inside = file.source.is_relative_to(self._plan.root)
            link = os.path.relpath(file.source, folder) if is_inside else os.fspath(file.source)
        return replace(file, size=status.st_size, mtime_ns=status.st_mtime_ns, link=link, source_link=source_link)

    def _perform(self, file: SortedFile) -> SortOutcome:
        for number in itertools.count(2):
            try:
                place.put(file)
                break
            except FileExistsError:
                # another file has got this name meanwhile
                file = replace(file, target=file.target.with_name(numbered(file.source.name, number)))
                self._announce(file)
            except ImageError as exc:
                return file, str(exc)
            except OSError as exc:
                return file, self._why_left_out(exc, file)
        with translated(file.target):
            file = replace(file, stamp=FileStamp.of(file.target.lstat()))
        append(self._plan.root, {"done": file.number, "mark": file_line(file, self._plan.root)["mark"]})
        if self._by == "move":
            self._moved[file.source] = file.target
        return file, None

    def _why_left_out(self, exc: OSError, file: SortedFile) -> str:
        """Return why one file is left out.

        Raises:
            StoppedError: the other files would fail as well.
        """
        why = reason(exc)
        if exc.errno in _NAME_ERRORS:
            return f"can't have this name in {self._plan.into}: {why}"
        if status_of(file.source) is None:
            return "no such file any more"
        if self._by == "hardlink" and exc.errno in _LINK_ERRORS:
            return f"can't be linked: {why}; --by copy or --by symlink can"
        if exc.filename == os.fspath(file.source) and exc.filename2 is None:
            raise StoppedError(
                f"{shown(Path(file.given))}: can't be taken from its place: {why}. --by copy leaves it there."
            ) from exc
        with translated(Path(self._plan.shown_target(file))):
            raise exc


def undo(into: Path) -> Generator[SortOutcome, None, None]:
    """Undo the last run into a folder: take back one file for each outcome that is requested, and yield it.

    Moved files go back to their places, unless something else is there by now; copies and links are removed unless
    they were changed or their originals are gone. Folders that the run made are removed once they are empty. An undo
    may be killed and run again. Files that couldn't be taken back stay in the log; if none of them can be the next
    time either, the run before is undone.

    Raises:
        StoppedError: the log can't be written.
        UsageError: there is no log, or it can't be read.
    """
    root = Path(os.path.realpath(into))
    if not (root / LOG_NAME).is_file():
        raise UsageError(f"{into}: nothing to undo, `clipcls sort` has left no record there.")
    with locked(root):
        runs = _clear_up(root)
        if not runs:  # a run that was killed before it began
            write_runs(root, runs)
        found = False
        for index, run in reversed(list(enumerate(runs))):
            files = {number: file for number, file in run.files.items() if file.stamp is not None}
            if found and files:
                return
            kept: set[int] = set()
            for file in reversed(files.values()):
                reason, stays = _try_to_take_back(file)
                if stays:
                    kept.add(file.number)
                yield file, reason
            _remove_empty(root / name for name in run.made if name != ".")
            run.files = {number: file for number, file in files.items() if number in kept}
            runs[index : index + 1] = [replace(run, tried=True)] if kept else []
            write_runs(root, runs)
            _remove_empty(root for name in run.made if name == ".")
            # runs in which nothing happened are removed along with it
            found = found or len(kept) < len(files) or (bool(files) and not run.tried)


def _try_to_take_back(file: SortedFile) -> tuple[str | None, bool]:
    """Take a file back; return why it can't be, if so, and whether it stays in the log for another try."""
    try:
        return place.take_back(file), False
    except FileExistsError:
        return f"something else is at {shown(file.source)} now", True
    except ImageError as exc:
        return str(exc), True
    except OSError as exc:
        return f"can't be taken back: {reason(exc)}", True


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something, or is gone
            folder.rmdir()

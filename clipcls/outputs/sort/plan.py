"""Decides which picture goes where, without touching anything."""

import os
import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from clipcls.errors import ImageError, StoppedError, UsageError, reason
from clipcls.outputs.sort.log import LOG_NAME, SortRun, read_runs
from clipcls.outputs.sort.names import FAILED, UNKNOWN, FileNames, FolderNames
from clipcls.outputs.sort.place import SortedFile, is_current, require_file, shown
from clipcls.records import Prediction, SortMethod


def plan(predictions: Iterable[Prediction], into: Path, by: SortMethod = "copy") -> "SortPlan":
    """Find a place for each picture, without touching anything.

    The best label names the folder; `_unknown` holds pictures without a label, `_failed` those with an error. No two
    labels share a folder and no name is given twice, even if upper and lower case count as the same. Pictures that an
    earlier run put in place, and that are unchanged, stay there.

    Args:
        into: the folder for the labels' folders; it is made later if it doesn't exist.
        by: how a picture gets there. A symbolic link is followed, except that `move` moves the link itself.

    Raises:
        UsageError: nothing can be put into `into`, or not by this method.
    """
    if not into.is_dir():
        if os.path.lexists(into):
            raise UsageError(f"{into} isn't a folder; give --into a folder, or the name of a new one.")
        if not Path(os.path.realpath(into)).parent.is_dir():
            raise UsageError(f"{into} can't be made: the folder that it is to lie in isn't there.")
    found = SortPlan(into, by)
    for prediction in predictions:
        found.add(prediction)
    # a link is moved after the file that it may lead to
    files = sorted(found.run.files.values(), key=lambda file: file.leads_to is not None)
    found.run.files = {number: replace(file, number=number) for number, file in enumerate(files, 1)}
    return found


class SortPlan:
    """A plan for sorting pictures, made row by row.

    Attributes:
        into: the folder for the labels' folders, as the user gave it.
        root: its absolute path, with links resolved.
        run: the planned run with its files.
        left_out: path and reason of each picture that can't be sorted.
        already_there: how many pictures are where they belong.
    """

    def __init__(self, into: Path, by: SortMethod) -> None:
        self.into = into
        self.root = Path(os.path.realpath(into))
        self.run = SortRun(secrets.token_hex(6), by, {})
        self.left_out: list[tuple[str, str]] = []
        self.already_there = 0
        self._device = (self.root if self.root.exists() else self.root.parent).stat().st_dev
        runs = read_runs(self.root)
        self._remains = {path for run in runs for path in run.remains}
        self._before = {file.source: file for run in runs for file in run.files.values() if file.stamp is not None}
        self._folders = FolderNames(self.root, {label: name for run in runs for label, name in run.folders.items()})
        self._names: dict[Path, FileNames] = {}
        self._parents: dict[str, Path] = {}
        self._listed: set[Path] = set()

    def shown_target(self, file: SortedFile) -> str:
        """Return the target of a picture below the folder that the user gave."""
        return os.fspath(self.into / file.target.relative_to(self.root))

    def add(self, prediction: Prediction) -> None:
        """Plan where one more picture goes."""
        label = prediction.label if prediction.error is None else None
        if label is not None:
            folder = self._folders.of(label)
        elif not self._folders.is_free(folder := UNKNOWN if prediction.error is None else FAILED):
            raise UsageError(f"{self.into / folder} isn't a folder; rename it, or sort into another place.")
        try:
            file = self._file(prediction.path, self.root / folder)
        except (ImageError, OSError) as exc:
            self.left_out.append((prediction.path, reason(exc) if isinstance(exc, OSError) else str(exc)))
            return
        if file is None:
            self.already_there += 1
            return
        self.run.files[file.number] = file
        if label is not None:
            self.run.folders[label] = folder

    def _file(self, given: str, folder: Path) -> SortedFile | None:
        """Return a picture with its target; None if it is already where it belongs."""
        source = self._canonical(given)
        if source in self._listed:
            raise ImageError("listed twice; the first row counts")
        self._listed.add(source)
        if source == self.root / LOG_NAME:
            raise ImageError("the record of what was sorted")
        before = self._before.get(source)
        is_gone = not os.path.lexists(given)
        if _is_same_folder(source.parent, folder):
            if not is_gone:
                return None
        elif before is not None and before.by == self.run.by and before.target.parent == folder and is_current(before):
            return None
        if is_gone and before is not None and before.by == "move":
            raise ImageError(f"no such file: an earlier run moved it to {shown(before.target)}")
        leads_to = self._leads_to(source) if self.run.by == "move" and source.is_symlink() else None
        if leads_to is None:
            self._check_file(given)
        target = folder / self._names_in(folder).take(source.name)
        number = len(self.run.files) + 1
        return SortedFile(self.run.name, number, self.run.by, source, target, given, leads_to)

    def _canonical(self, given: str) -> Path:
        try:
            folder, name = os.path.split(given)
            os.fsencode(given)
            if folder not in self._parents:
                self._parents[folder] = Path(os.path.realpath(folder))
        except ValueError as exc:
            raise ImageError(f"not a possible file name: {exc}") from exc
        if name in ("", os.curdir, os.pardir):
            require_file(given)
            raise ImageError("a folder, not a file")
        return self._parents[folder] / name

    def _check_file(self, given: str) -> None:
        status = require_file(given)
        if self.run.by == "hardlink" and status.st_dev != self._device:
            raise UsageError(
                f"{shown(Path(given))} and {self.into} lie on different file systems, which no hard link spans. "
                "Use --by copy or --by symlink."
            )

    def _leads_to(self, link: Path) -> Path:
        """Return the file that a link leads to, even if an earlier run has moved that file."""
        end = Path(os.path.realpath(link))
        if not end.exists() and end in self._before and self._before[end].by == "move":
            end = self._before[end].target
        require_file(os.fspath(end if end.exists() else link))
        return end

    def _names_in(self, folder: Path) -> FileNames:
        if folder not in self._names:
            try:
                found = [name for name in os.listdir(folder) if folder / name not in self._remains]  # noqa: PTH208
            except FileNotFoundError:
                found = []
            except OSError as exc:
                raise StoppedError(f"{self.into / folder.name}: can't be read: {exc.strerror}.") from exc
            self._names[folder] = FileNames(found)
        return self._names[folder]


def _is_same_folder(one: Path, other: Path) -> bool:
    """Return whether two names, equal or different in case only, lead to the same folder."""
    try:
        return one == other or (one.name.casefold() == other.name.casefold() and one.samefile(other))
    except OSError:
        return False

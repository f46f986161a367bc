"""Pictures into one folder for each label: what goes where, and putting it there.

`plan` only looks; `carry_out` does what a plan says and records it in the folder (`log`), so that
`undo` can take it back. A process that is killed leaves at most one file half done: the next one that
works on the folder first clears that up.
"""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipcls.errors import ImageError, StoppedError, UsageError
from clipcls.outputs.sort.log import NAME, Entry, Ledger, Mark, Method, Run, locked, read_runs
from clipcls.outputs.sort.names import FAILED, UNKNOWN, FileNames, FolderNames, numbered
from clipcls.outputs.sort.place import copy, move, move_link, require_file, shown, status_of, stopped, translated
from clipcls.outputs.sort.undo import Before, done_before, settle
from clipcls.records import Prediction

_BLOCK = 64  # files whose entries are brought to the disk together
_NAME_ERRORS = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG})
_LINK_ERRORS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Action:
    """One picture on its way.

    Attributes:
        source: its path as the prediction has it.
        path: the same, absolute, the folders in it no links.
        folder: name of the folder it goes to.
        name: what it is called there.
        leads_to: for a symbolic link that is moved, the file that it leads to.
    """

    source: str
    path: Path
    folder: str
    name: str
    leads_to: Path | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that nothing can be done for."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order.

    Attributes:
        into: the folder of the folders, as given.
        root: the same, absolute and no link.
        folders: name of the folder of each label.
        already_there: how many pictures are where they belong.
    """

    into: Path
    root: Path
    by: Method
    folders: Mapping[str, str]
    actions: Sequence[Action]
    left_out: Sequence[LeftOut]
    already_there: int

    def target(self, action: Action) -> str:
        """Where a picture goes, for people to read."""
        return os.fspath(self.into / action.folder / action.name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action.

    Attributes:
        action: with the name that the file got.
        error: why nothing was done.
    """

    action: Action
    error: str | None = None


# ---------------------------------------------------------------------------------------------------------
# What goes where


def plan(predictions: Iterable[Prediction], into: Path, by: Method = "copy") -> Plan:
    """Find a place for each picture, without touching anything.

    The best label names the folder; `_unknown` holds pictures without a label, `_failed` those with an error. No two
    labels share a folder and no name is given twice, also where upper and lower case are the same. What an earlier run
    has put in place, and is unchanged, is left as it is.

    Args:
        into: the folder of the folders; made if it isn't there.
        by: how a picture gets there. A symbolic link is followed, except that `move` moves the link itself.

    Raises:
        UsageError: nothing can be put into `into`, or not by this method.
    """
    planner = _Planner(into, by)
    for prediction in predictions:
        planner.add(prediction)
    return planner.plan()


class _Planner:
    def __init__(self, into: Path, by: Method) -> None:
        _require_folder(into)
        self._into = into
        self._by = by
        self._root = Path(os.path.realpath(into))
        self._device = (self._root if self._root.exists() else self._root.parent).stat().st_dev
        runs = read_runs(self._root)
        self._before, self._leftovers = done_before(runs)
        self._folders = FolderNames(self._root, {label: name for run in runs for label, name in run.folders.items()})
        self._used: dict[str, str] = {}
        self._names: dict[str, FileNames] = {}
        self._parents: dict[str, Path] = {}
        self._listed: set[Path] = set()
        self._single: set[tuple[int, int]] = set()
        self._actions: list[Action] = []
        self._left_out: list[LeftOut] = []
        self._already_there = 0

    def plan(self) -> Plan:
        # a link is moved after the file that it may lead to
        actions = sorted(self._actions, key=lambda action: action.leads_to is not None)
        return Plan(self._into, self._root, self._by, self._used, actions, self._left_out, self._already_there)

    def add(self, prediction: Prediction) -> None:
        folder = self._folder(prediction)
        try:
            action = self._action(prediction.path, folder)
        except ImageError as exc:
            self._left_out.append(LeftOut(prediction.path, str(exc)))
            return
        except OSError as exc:
            self._left_out.append(LeftOut(prediction.path, (exc.strerror or str(exc)).lower()))
            return
        if action is None:
            self._already_there += 1
            return
        self._actions.append(action)
        if prediction.error is None and prediction.label is not None:
            self._used[prediction.label] = folder

    def _folder(self, prediction: Prediction) -> str:
        if prediction.error is None and prediction.label is not None:
            return self._folders.of(prediction.label)
        name = UNKNOWN if prediction.error is None else FAILED
        if not self._folders.is_free(name):
            raise UsageError(f"{self._into / name} isn't a folder; rename it, or sort into another place.")
        return name

    def _action(self, source: str, folder: str) -> Action | None:
        """What to do with a picture; None for nothing.

        Raises:
            ImageError: it can't be sorted.
        """
        path = self._canonical(source)
        if path in self._listed:
            raise ImageError("listed twice; the first row counts")
        self._listed.add(path)
        if path == self._root / NAME:
            raise ImageError("the record of what was sorted")
        before = self._before.get(path)
        if self._is_there(path, folder, before):
            return None
        if before is not None and before.by == "move" and status_of(path) is None:
            raise ImageError(f"no such file: an earlier run moved it to {shown(before.entry.target)}")
        leads_to = self._leads_to(path) if self._by == "move" and path.is_symlink() else None
        if leads_to is None:
            self._check_file(source)
        return Action(source, path, folder, self._names_in(folder).take(path.name), leads_to)

    def _canonical(self, source: str) -> Path:
        try:
            folder, name = os.path.split(os.fspath(source))
            os.fsencode(source)
            if folder not in self._parents:
                self._parents[folder] = Path(os.path.realpath(folder))
        except ValueError as exc:
            raise ImageError(f"not a possible file name: {exc}") from exc
        if name in ("", os.curdir, os.pardir):
            require_file(source)
            raise ImageError("a folder, not a file")
        return self._parents[folder] / name

    def _is_there(self, path: Path, folder: str, before: "Before | None") -> bool:
        """Whether a picture is in its folder, or an earlier run has put it there."""
        place = self._root / folder
        if path.parent == place or _is_same_folder(path.parent, place):
            return status_of(path) is not None
        return before is not None and before.entry.target.parent == place and before.holds(self._by)

    def _check_file(self, source: str) -> None:
        status = require_file(source)
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink == 1 and self._by == "move":
            # a file system that doesn't tell upper from lower case finds it by several names
            if identity in self._single:
                raise ImageError("listed twice, by another name; the first row counts")
            self._single.add(identity)
        if self._by == "hardlink" and status.st_dev != self._device:
            raise UsageError(
                f"{shown(Path(source))} and {self._into} lie on different file systems, which no hard link spans. "
                "Use --by copy or --by symlink."
            )

    def _leads_to(self, link: Path) -> Path:
        """The file that a link leads to, also where an earlier run has moved it."""
        end = Path(os.path.realpath(link))
        if not end.exists() and end in self._before and self._before[end].by == "move":
            end = self._before[end].entry.target
        require_file(os.fspath(end if end.exists() else link))
        return end

    def _names_in(self, folder: str) -> FileNames:
        if folder not in self._names:
            place = self._root / folder
            try:
                found = [entry.name for entry in os.scandir(place) if place / entry.name not in self._leftovers]
            except FileNotFoundError:
                found = []
            except OSError as exc:
                raise StoppedError(f"{self._into / folder}: can't be read: {exc.strerror}.") from exc
            self._names[folder] = FileNames(found)
        return self._names[folder]


def _require_folder(into: Path) -> None:
    if into.is_dir():
        return
    if os.path.lexists(into):
        raise UsageError(f"{into} isn't a folder; give --into a folder, or the name of a new one.")
    if not Path(os.path.realpath(into)).parent.is_dir():
        raise UsageError(f"{into} can't be made: the folder that it is to lie in isn't there.")


def _is_same_folder(one: Path, other: Path) -> bool:
    """Whether two names, which differ in case at most, lead to the same folder."""
    if one.name.casefold() != other.name.casefold():
        return False
    try:
        return one.samefile(other)
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------
# Doing it


def carry_out(plan: Plan) -> Generator[Outcome, None, None]:
    """Do what a plan says, one file for each outcome that is asked for; whoever stops asking stops between two files.

    Raises:
        StoppedError: the folder can't be written to, or a source not taken away; what was done before stays done.
    """
    if not plan.actions and not (plan.root / NAME).exists():
        return
    with translated(plan.into):
        made = [] if plan.root.exists() else ["."]
        plan.root.mkdir(exist_ok=True)
    with locked(plan.root), Ledger(plan.root) as ledger:
        _settle(plan.root, ledger)
        if not plan.actions:
            return
        carrier = _Carrier(plan, ledger, made)
        try:
            yield from carrier.outcomes()
        except GeneratorExit:
            ledger.end()
            raise
        ledger.end()


def _settle(root: Path, ledger: Ledger) -> None:
    """Bring to an end what an earlier run was at when it was killed."""
    for run in read_runs(root)[-1:]:
        if not run.ended:
            with translated(root):
                settled = settle(run)
            for entry in settled:
                ledger.finish(entry)
            ledger.end()


class _Carrier:
    def __init__(self, plan: Plan, ledger: Ledger, made: Sequence[str]) -> None:
        self._plan = plan
        self._ledger = ledger
        folders = sorted({action.folder for action in plan.actions})
        new = [folder for folder in folders if status_of(plan.root / folder) is None]
        self._run = Run(secrets.token_hex(6), plan.by, plan.folders, [*made, *new])
        ledger.begin(self._run)
        for folder in folders:
            with translated(plan.into / folder):
                (plan.root / folder).mkdir(exist_ok=True)
        self._planned = {(action.folder, action.name) for action in plan.actions}
        self._moved: dict[Path, Path] = {}
        self._number = 0

    def outcomes(self) -> Iterator[Outcome]:
        # not in one block with what they may lead to: what they say depends on where that has got to
        for _, actions in itertools.groupby(self._plan.actions, lambda action: action.leads_to is not None):
            while block := list(itertools.islice(actions, _BLOCK)):
                yield from self._block(block)

    def _block(self, actions: Sequence[Action]) -> Iterator[Outcome]:
        entries: list[tuple[Action, Entry]] = []
        for action in actions:
            try:
                entries.append((action, self._entry(action)))
            except ImageError as exc:
                yield Outcome(action, str(exc))
        self._ledger.intend(entry for _, entry in entries)
        for action, entry in entries:
            yield self._perform(action, entry)

    def _entry(self, action: Action) -> Entry:
        """What the record says before a file is touched; it is looked at anew, a while may have passed."""
        self._number += 1
        link = source_link = None
        target = self._plan.root / action.folder / action.name
        if action.leads_to is not None:
            status = status_of(action.path)
            if status is None or not stat.S_ISLNK(status.st_mode):
                raise ImageError("no such link any more")
            source_link = os.fspath(action.path.readlink())
            link = self._moved_link(action.leads_to, source_link, target)
        elif self._plan.by == "move" and action.path.is_symlink():
            raise ImageError("it has become a link meanwhile")
        else:
            status = require_file(os.fspath(action.path))
        if self._plan.by == "symlink":
            link = self._link(action.path, target)
        return Entry(self._number, action.path, target, status.st_size, status.st_mtime_ns, link, source_link)

    def _link(self, source: Path, target: Path) -> str:
        """Links outlive the move of the folder that they are in: to what it holds they are relative, else absolute."""
        if source.is_relative_to(self._plan.root):
            return os.path.relpath(source, target.parent)
        return os.fspath(source)

    def _moved_link(self, leads_to: Path, text: str, target: Path) -> str:
        """Straight to the file that it led to, which may have been moved before; a relative link stays relative."""
        end = self._moved.get(leads_to, leads_to)
        return os.fspath(end) if Path(text).is_absolute() else os.path.relpath(end, target.parent)

    def _perform(self, action: Action, entry: Entry) -> Outcome:
        try:
            entry = self._put_somewhere(entry)
        except ImageError as exc:
            return Outcome(action, str(exc))
        except OSError as exc:
            return Outcome(action, self._blame(exc, action, entry))
        with translated(entry.target):
            self._ledger.finish(replace(entry, mark=Mark.of(entry.target.lstat())))
        if self._plan.by == "move":
            self._moved[entry.source] = entry.target
        return Outcome(replace(action, name=entry.target.name))

    def _put_somewhere(self, entry: Entry) -> Entry:
        """Put a file where it is to go, or beside what has come there meanwhile."""
        number = 1
        while True:
            try:
                self._put(entry)
                return entry
            except FileExistsError:
                number += 1
                name = numbered(entry.source.name, number)
                if (entry.target.parent.name, name) not in self._planned:
                    entry = replace(entry, target=entry.target.with_name(name))
                    self._ledger.intend([entry])

    def _put(self, entry: Entry) -> None:
        source, target = entry.source, entry.target
        part = self._run.part(entry, target.parent)
        match self._plan.by:
            case "copy":
                copy(source, target, part)
            case "hardlink":
                # of the file itself: systems differ in whether they follow a link
                target.hardlink_to(os.path.realpath(source))
            case "symlink":
                target.symlink_to(entry.link or source)
            case "move" if entry.link is not None:
                move_link(source, target, entry.link)
            case "move":
                move(source, target, part)

    def _blame(self, exc: OSError, action: Action, entry: Entry) -> str:
        """Why one file is left out.

        Raises:
            StoppedError: the others would fare no better.
        """
        reason = (exc.strerror or str(exc)).lower()
        if exc.errno in _NAME_ERRORS:
            return f"can't have this name in {self._plan.into}: {reason}"
        if status_of(entry.source) is None:
            return "no such file any more"
        if self._plan.by == "hardlink" and exc.errno in _LINK_ERRORS:
            return f"can't be linked: {reason}; --by copy or --by symlink can"
        if isinstance(exc.filename, str | os.PathLike) and exc.filename2 is None and Path(exc.filename) == entry.source:
            raise StoppedError(
                f"{shown(Path(action.source))}: can't be taken from its place: {reason}. --by copy leaves it there."
            ) from exc
        raise stopped(exc, Path(self._plan.target(replace(action, name=entry.target.name)))) from exc

"""What was sorted: brought to an end where a run was killed, known again, and taken back."""

import contextlib
import os
import stat
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipcls.errors import ImageError, UsageError
from clipcls.outputs.sort.log import NAME, Entry, Mark, Method, Run, locked, read_runs, shorten
from clipcls.outputs.sort.place import (
    identical,
    is_placeholder,
    keep_link_times,
    move,
    move_link,
    shown,
    status_of,
    translated,
)

_COARSEST_NS = 2 * 10**9  # FAT knows even seconds only


@dataclass(frozen=True, slots=True)
class Undone:
    """What became of a file that was to be taken back.

    Attributes:
        source: where it came from.
        target: where it was put.
        error: why it stays there.
    """

    source: Path
    target: Path
    error: str | None = None


# ---------------------------------------------------------------------------------------------------------
# What earlier runs have done


@dataclass(frozen=True, slots=True)
class Before:
    """A file that an earlier run has put in place."""

    by: Method
    entry: Entry

    def holds(self, by: Method) -> bool:
        """Whether doing it again, by this method, would change nothing."""
        entry, mark = self.entry, self.entry.mark
        target = status_of(entry.target)
        if self.by != by or target is None or mark is None:
            return False
        if by == "move":
            return status_of(entry.source) is None
        if by == "copy":
            source = _status_through_links(entry.source)
            return (
                source is not None
                and (source.st_size, source.st_mtime_ns) == (entry.size, entry.mtime_ns)
                and (target.st_size, target.st_mtime_ns) == (mark.size, mark.mtime_ns)
            )
        return _is_link_to_source(by, entry, target)


@dataclass(frozen=True, slots=True)
class _Remains:
    """What a run that was killed has left of a file.

    Attributes:
        mark: of the target, where it is in place.
        leftovers: files that nobody will miss.
    """

    mark: Mark | None
    leftovers: tuple[Path, ...]


def done_before(runs: Sequence[Run]) -> tuple[dict[Path, Before], frozenset[Path]]:
    """What earlier runs have done, by source; and what is cleared away before anything else is done."""
    done: dict[Path, Before] = {}
    leftovers: list[Path] = []
    for run in runs:
        for entry in run.entries.values():
            if entry.mark is None and run is runs[-1] and not run.ended:
                remains = _remains(run, entry)
                leftovers += remains.leftovers
                entry = replace(entry, mark=remains.mark)
            if entry.mark is not None:
                done[entry.source] = Before(run.by, entry)
    return done, frozenset(leftovers)


def settle(run: Run) -> list[Entry]:
    """Bring to an end what a run that was killed was at: each of its files is in place, or was never touched.

    Returns:
        The entries that only now have a mark.
    """
    settled: list[Entry] = []
    if run.ended:
        return settled
    for entry in [entry for entry in run.entries.values() if entry.mark is None]:
        remains = _remains(run, entry)
        for leftover in remains.leftovers:
            leftover.unlink(missing_ok=True)
        if remains.mark is not None:
            run.entries[entry.number] = replace(entry, mark=remains.mark)
            settled.append(run.entries[entry.number])
    return settled


def _remains(run: Run, entry: Entry) -> _Remains:
    part = run.part(entry, entry.target.parent)
    parts = (part,) if os.path.lexists(part) else ()
    target = status_of(entry.target)
    if target is None:
        return _Remains(None, parts)
    if _was_put(run.by, entry, target):
        return _Remains(Mark.of(target), parts)
    return _Remains(None, (*parts, entry.target) if _is_half_done(run.by, entry, target, bool(parts)) else parts)


def _was_put(by: Method, entry: Entry, target: os.stat_result) -> bool:
    """Whether a file without a mark is in place."""
    if by == "copy":
        is_whole = _looks_like_source(entry, target) and not is_placeholder(target)
        return is_whole and identical(entry.source, entry.target)
    if by == "move":
        return status_of(entry.source) is None and _looks_like_source(entry, target)
    return _is_link_to_source(by, entry, target)


def _is_half_done(by: Method, entry: Entry, target: os.stat_result, has_part: bool) -> bool:
    """Whether a target beside its source was made by us, and holds nothing that the source doesn't."""
    is_empty = stat.S_ISREG(target.st_mode) and target.st_size == 0
    if by != "move":
        return by == "copy" and has_part and is_empty
    source = status_of(entry.source)
    if source is None:
        return False
    if os.path.samestat(source, target) or is_empty:
        return True
    if not _looks_like_source(entry, target):
        return False
    return entry.link is not None or identical(entry.source, entry.target)


def _looks_like_source(entry: Entry, target: os.stat_result) -> bool:
    if entry.link is not None:
        return _says(entry.target, target, entry.link)
    is_near = abs(target.st_mtime_ns - entry.mtime_ns) <= _COARSEST_NS
    return stat.S_ISREG(target.st_mode) and target.st_size == entry.size and is_near


def _is_link_to_source(by: Method, entry: Entry, target: os.stat_result) -> bool:
    if by == "symlink":
        return entry.link is not None and _says(entry.target, target, entry.link)
    source = _status_through_links(entry.source)
    return source is not None and os.path.samestat(source, target)


def _says(path: Path, status: os.stat_result, text: str) -> bool:
    return stat.S_ISLNK(status.st_mode) and os.fspath(path.readlink()) == text


def _status_through_links(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


# ---------------------------------------------------------------------------------------------------------
# Taking it back


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a file can't be taken back.

    Attributes:
        stays: in the record, so that it can be tried again; what isn't ours any more doesn't.
    """

    reason: str
    stays: bool


def undo(into: Path) -> Generator[Undone, None, None]:
    """Take back the last run into a folder, one file for each answer that is asked for.

    What was moved goes back to its place, unless something else is there by now; copies and links are removed unless
    they were changed, or hold what can't be found elsewhere any more. Folders that the run made go once they are
    empty. It may be killed and run again. Of moves that couldn't be taken back the record is kept; where none of them
    can be the next time either, the run before is taken back.

    Raises:
        StoppedError: the record can't be written.
        UsageError: there is no record, or it can't be read.
    """
    root = Path(os.path.realpath(into))
    if not (root / NAME).is_file():
        raise UsageError(f"{into}: nothing to undo, `clipcls sort` has left no record there.")
    with locked(root):
        runs = read_runs(root)
        with translated(into):
            for run in runs[-1:]:
                settle(run)
        if not runs:  # a run that was killed before it began
            (root / NAME).unlink()
        found = False
        for run in reversed(runs):
            done = [entry for entry in run.entries.values() if entry.mark is not None]
            if found and done:
                return
            kept: list[Entry] = []
            for entry in reversed(done):
                refusal = _take_back(run, entry)
                if refusal is not None and refusal.stays:
                    kept.append(entry)
                yield Undone(entry.source, entry.target, refusal.reason if refusal is not None else None)
            _remove_empty(root / name for name in run.made if name != ".")
            shorten(root, run, kept[::-1])
            _remove_empty(root for name in run.made if name == ".")
            # runs in which nothing happened are cleared away along with it
            found = found or len(kept) < len(done) or (bool(done) and not run.tried)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something, or is gone
            folder.rmdir()


def _take_back(run: Run, entry: Entry) -> _Refusal | None:
    try:
        if run.by == "move":
            return _move_back(run, entry)
        return _remove(run.by, entry)
    except FileExistsError:
        return _Refusal(f"something else is at {shown(entry.source)} now", stays=True)
    except ImageError as exc:
        return _Refusal(str(exc), stays=True)
    except OSError as exc:
        return _Refusal(f"can't be taken back: {(exc.strerror or str(exc)).lower()}", stays=True)


def _move_back(run: Run, entry: Entry) -> _Refusal | None:
    source, target = status_of(entry.source), status_of(entry.target)
    if target is None:
        if source is not None:  # an undo that was killed has done it
            return None
        return _Refusal("it isn't there any more", stays=True)
    if not _is_what_was_put(entry, target):
        return _Refusal("it isn't the file that was put there", stays=True)
    if source is not None and is_placeholder(source):
        entry.source.unlink()
        source = None
    if source is None:
        entry.source.parent.mkdir(parents=True, exist_ok=True)
        if entry.source_link is not None:
            move_link(entry.target, entry.source, entry.source_link)
        else:
            move(entry.target, entry.source, run.part(entry, entry.source.parent))
    elif _is_back(entry, source, target):
        # what an undo that was killed hasn't come to
        run.part(entry, entry.source.parent).unlink(missing_ok=True)
        if entry.source_link is not None:
            keep_link_times(entry.target, entry.source)
        entry.target.unlink()
    else:
        raise FileExistsError
    return None


def _is_what_was_put(entry: Entry, target: os.stat_result) -> bool:
    """Whether it is the same file, though it may have been edited; or another just like it, on another disk."""
    if entry.link is not None:
        return _says(entry.target, target, entry.link)
    mark = Mark.of(target)
    known = entry.mark
    return known is not None and (
        (mark.size, mark.mtime_ns) == (known.size, known.mtime_ns)
        or (mark.device, mark.inode) == (known.device, known.inode)
    )


def _is_back(entry: Entry, source: os.stat_result, target: os.stat_result) -> bool:
    """Whether a file is in both places, by an undo that was killed or by hand."""
    if entry.source_link is not None:
        return _says(entry.source, source, entry.source_link)
    if os.path.samestat(source, target):
        return True
    return stat.S_ISREG(source.st_mode) and _looks_like_source(entry, source) and identical(entry.source, entry.target)


def _remove(by: Method, entry: Entry) -> _Refusal | None:
    target = status_of(entry.target)
    if target is None:
        return None
    if by == "copy":
        return _remove_copy(entry, target)
    if not _is_link_to_source(by, entry, target):
        return _Refusal("it isn't the link that was put there, or its original is gone or replaced", stays=False)
    entry.target.unlink()
    return None


def _remove_copy(entry: Entry, target: os.stat_result) -> _Refusal | None:
    mark = Mark.of(target)
    known = entry.mark
    if not entry.source.is_file():
        return _Refusal(f"its original is gone from {shown(entry.source)}", stays=False)
    # a status of which nothing has changed is enough; another disk, or other permissions, have it compared
    is_same = stat.S_ISREG(target.st_mode) and (mark == known or identical(entry.source, entry.target))
    if not is_same:
        return _Refusal("it has been changed", stays=False)
    entry.target.unlink()
    return None

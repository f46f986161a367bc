"""Copies, links or moves one file to a free name, whole or not at all, and never over another file.

A problem with the file itself raises `ImageError`, a taken name `FileExistsError`, and a problem with the target's
place any other `OSError`; callers decide what that means.
"""

import contextlib
import errno
import filecmp
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipcls.errors import ImageError, StoppedError, printable, reason
from clipcls.records import FileStamp, SortMethod

_BLOCK = 1 << 20
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# a frame, or a part of a video, by its time
_FRAME = re.compile(r"(.+)#t=[\d.,]+", re.DOTALL)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True, slots=True)
class SortedFile:
    """One picture that is to be sorted, or is in place.

    Attributes:
        run: name of the run that sorts it, in which `number` is unique.
        source: absolute path, with no links among its folders.
        target: the path to put it at, in the same form.
        given: its path in the prediction.
        leads_to: for a symbolic link that is to be moved, the file that it leads to.
        size: size of the source in bytes; `mtime_ns` is also the source's.
        link: text of the symbolic link that is made.
        source_link: text of the source, if it is a symbolic link that is moved.
        stamp: stamp of the target once it is in place.
    """

    run: str
    number: int
    by: SortMethod
    source: Path
    target: Path
    given: str = ""
    leads_to: Path | None = None
    size: int = 0
    mtime_ns: int = 0
    link: str | None = None
    source_link: str | None = None
    stamp: FileStamp | None = None

    def part(self, place: Path) -> Path:
        """Return the temporary path of a copy until it is whole and gets its place."""
        return place.with_name(f".clipcls-sort-{self.run}-{self.number}.part")


def put(file: SortedFile) -> None:
    """Put a file in place; if that fails, source and target stay as they were."""
    match file.by:
        case "copy":
            _copy(file.source, file.target, file.part(file.target))
        case "hardlink":
            # to the file itself, since systems differ in whether they follow a link
            file.target.hardlink_to(os.path.realpath(file.source))
        case "symlink":
            file.target.symlink_to(file.link or file.source)
        case "move":
            _move(file.source, file.target, file.part(file.target), file.link)


def is_current(file: SortedFile) -> bool:
    """Return whether putting a file in place again would change nothing."""
    source, target = status_of(file.source), status_of(file.target)
    if target is None or file.by == "move":
        return target is not None and source is None
    if file.by == "symlink":
        return _says(file.target, file.link)
    try:
        source = file.source.stat()
    except OSError:
        return False
    if file.by == "hardlink":
        return os.path.samestat(source, target)
    facts = source.st_size, source.st_mtime_ns, target.st_size, target.st_mtime_ns
    return file.stamp is not None and facts == (file.size, file.mtime_ns, file.stamp.size, file.stamp.mtime_ns)


def find_remains(file: SortedFile) -> tuple[FileStamp | None, list[Path]]:
    """Find what a process left of a file, if it was killed at that file or before it.

    Returns:
        The target's stamp if it is in place, else None; and the files to remove, whose content the source holds.
    """
    parts = [part] if os.path.lexists(part := file.part(file.target)) else []
    source, target = status_of(file.source), status_of(file.target)
    if target is None:
        return None, parts
    is_empty = stat.S_ISREG(target.st_mode) and target.st_size == 0
    is_move_half_done = file.by == "move" and source is not None and (is_empty or _is_in_both_places(file))
    if is_move_half_done or (parts and is_empty):
        return None, [*parts, file.target]
    is_put = _identical(file.source, file.target) if file.by == "copy" else is_current(file)
    return FileStamp.of(target) if is_put else None, parts


def take_back(file: SortedFile) -> str | None:
    """Take a file back; return why a copy or link is left there instead, or None.

    Raises:
        ImageError: it isn't what was moved.
    """
    target = status_of(file.target)
    if file.by == "move":
        _move_back(file, target)
        return None
    if target is None:
        return None
    if file.by != "copy":
        if not is_current(file):
            return "it isn't the link that was put there, or its original is gone or replaced"
    elif not file.source.is_file():
        return f"its original is gone from {shown(file.source)}"
    # an equal stamp is enough; another disk or new permissions change it, so that contents are compared
    elif FileStamp.of(target) != file.stamp and (file.target.is_symlink() or not _identical(file.source, file.target)):
        return "it has been changed"
    file.target.unlink()
    return None


def _move_back(file: SortedFile, target: os.stat_result | None) -> None:
    source = status_of(file.source)
    if target is None:
        if source is None:
            raise ImageError("it isn't there any more")
        return  # done by an undo that was killed
    now, then = FileStamp.of(target), file.stamp
    # it may have been edited, or be on another disk
    is_same = then is not None and (now.inode == then.inode or (now.size, now.mtime_ns) == (then.size, then.mtime_ns))
    if not (_says(file.target, file.link) if file.link is not None else is_same):
        raise ImageError("it isn't the file that was put there")
    if source is not None and (_is_placeholder(source) or _is_in_both_places(file)):
        file.source.unlink()  # left by an undo that was killed
    file.source.parent.mkdir(parents=True, exist_ok=True)
    _move(file.target, file.source, file.part(file.source), file.source_link)


def _is_in_both_places(file: SortedFile) -> bool:
    """Return whether a move, there or back, was cut short after it made the new file and before it removed the old."""
    if file.link is not None or file.source.is_symlink() or file.target.is_symlink():
        return _says(file.source, file.source_link) and _says(file.target, file.link)
    return file.source.samefile(file.target) or _identical(file.source, file.target)


def _says(link: Path, text: str | None) -> bool:
    return link.is_symlink() and os.fspath(link.readlink()) == text


def _identical(one: Path, other: Path) -> bool:
    """Return whether two files hold the same bytes; False if one of them can't be read."""
    filecmp.clear_cache()  # which takes files of the same size and time for unchanged
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------
# Copying and moving


def _copy(source: Path, target: Path, part: Path, *, durable: bool = False) -> None:
    """Copy a file with times and permissions; if durable, flush it to the disk, and keep its owner if allowed."""
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as copied:
            before = require_file(os.fspath(source))
            for block in _blocks(source):
                copied.write(block)
            copied.flush()
            if durable:
                with contextlib.suppress(OSError):
                    os.chown(part, before.st_uid, before.st_gid)
            # copystat sets the times first; not every file system has permissions
            with contextlib.suppress(PermissionError):
                shutil.copystat(source, part)
            after, size = require_file(os.fspath(source)), os.fstat(copied.fileno()).st_size
            if not before.st_size == after.st_size == size or before.st_mtime_ns != after.st_mtime_ns:
                raise ImageError("it changed while it was copied")
            if durable:
                os.fsync(copied.fileno())
        _rename(part, target)
    finally:
        part.unlink(missing_ok=True)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
    except OSError as exc:
        raise ImageError(f"can't be read: {reason(exc)}") from exc


def _move(source: Path, target: Path, part: Path, link: str | None) -> None:
    """Move a file, or a symbolic link with its times and a new text; a copy is flushed before the source goes."""
    try:
        if link is None:
            _rename(source, target)
        else:
            target.symlink_to(link)
            status = source.lstat()
            with contextlib.suppress(OSError, NotImplementedError):
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
                os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        _copy(source, target, part, durable=True)
        with contextlib.suppress(OSError):  # some file systems can't flush a folder
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    try:
        source.unlink(missing_ok=True)
    except OSError:
        target.unlink()  # safe: it is a second name or a copy of the source
        raise


def _rename(source: Path, target: Path) -> None:
    """Give a file another name; the old one may remain as well."""
    try:
        os.link(source, target, follow_symlinks=False)
        return
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.EXDEV):
            raise
    # without hard links, a bare rename could replace any file; this one replaces an empty file of ours
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0))
    try:
        source.replace(target)
    except OSError as exc:
        target.unlink(missing_ok=True)
        # the target's folder took the empty file, so that the problem lies with the source's folder
        raise OSError(exc.errno, exc.strerror, os.fspath(source)) from exc


def _is_placeholder(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and stat.S_IMODE(status.st_mode) == 0


# ---------------------------------------------------------------------------------------------------------
# Checking files, and naming their problems


def status_of(path: Path) -> os.stat_result | None:
    """Return the status of a path, without following a link; None if nothing is there."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_file(path: str) -> os.stat_result:
    """Return the status of a file; links are followed.

    Raises:
        ImageError: there is none, or it isn't a file of its own: a folder, a pipe, an address, inside a larger file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116, pathlib would drop a slash at the end
    except ValueError as exc:
        raise ImageError(f"not a possible file name: {exc}") from exc
    except OSError as exc:
        raise ImageError(_why_not(path, exc)) from exc
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")
    return status


def _why_not(path: str, exc: OSError) -> str:
    if _ADDRESS.match(path):
        return "an address, not a file"
    if isinstance(exc, NotADirectoryError):
        parents = [parent for parent in Path(path).parents if parent.is_file()]
        return f"inside {shown(Path(parents[0].name))}, not a file of its own" if parents else "no such file"
    if (frame := _FRAME.fullmatch(path)) and Path(frame[1]).is_file():
        return f"a part of {shown(Path(Path(frame[1]).name))}, not a file of its own"
    if isinstance(exc, FileNotFoundError):
        return "a link that leads nowhere" if os.path.lexists(path) else "no such file"
    return reason(exc)


@contextlib.contextmanager
def translated(place: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StoppedError` that names the place."""
    try:
        yield
    except OSError as exc:
        raise StoppedError(f"{shown(place)}: can't be written: {reason(exc)}.") from exc


def shown(path: Path) -> str:
    """Return a path as printable text on one line."""
    return printable(os.fsencode(path).decode("utf-8", "replace"))

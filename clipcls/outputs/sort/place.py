"""One file put under a name that nothing has yet: copied, linked or moved, whole or not at all, never over another.

What is wrong with the file itself is an `ImageError`, a name that is taken a `FileExistsError`, and what is wrong with
the place it goes to any other `OSError`; whoever calls says what that means.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clipcls.errors import ImageError, StoppedError

_BLOCK = 1 << 20
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def status_of(path: Path) -> os.stat_result | None:
    """The status of what has this name, of a link itself; None if nothing has."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_file(path: str) -> os.stat_result:
    """The status of a file, through links.

    Raises:
        ImageError: there is none, or it isn't a file of its own: a folder, a pipe, an address, inside a larger file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116, pathlib would drop a slash at the end
    except ValueError as exc:
        raise ImageError(f"not a possible file name: {exc}") from exc
    except OSError as exc:
        raise ImageError(_why_not(path, exc)) from exc
    if stat.S_ISREG(status.st_mode):
        return status
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    raise ImageError(f"{kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file")


def _why_not(path: str, exc: OSError) -> str:
    if _ADDRESS.match(path):
        return "an address, not a file"
    if isinstance(exc, NotADirectoryError):
        parents = [parent for parent in Path(path).parents if parent.is_file()]
        return f"inside {shown(Path(parents[0].name))}, not a file of its own" if parents else "no such file"
    if isinstance(exc, FileNotFoundError):
        return "a link that leads nowhere" if os.path.lexists(path) else "no such file"
    return (exc.strerror or str(exc)).lower()


def identical(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; False where one of them can't be read."""
    try:
        # a pipe would have to be waited for; and filecmp remembers what it has compared by size and time only
        if not (one.is_file() and other.is_file()):
            return False
        with one.open("rb") as first, other.open("rb") as second:
            if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
                return False
            while block := first.read(_BLOCK):
                if block != second.read(_BLOCK):
                    return False
            return True
    except OSError:
        return False


def copy(source: Path, target: Path, part: Path, *, durable: bool = False) -> None:
    """Copy a file with its times and permissions.

    Args:
        part: its name until it is whole, in the folder of `target`; what has that name is replaced.
        durable: have it on the disk when this returns, with its owner where that is allowed.

    Raises:
        FileExistsError: `target` is taken.
        ImageError: the source can't be read, or changes meanwhile.
        OSError: the copy can't be written.
    """
    part.unlink(missing_ok=True)
    try:
        _fill(part, source, durable)
        _name(part, target)
        if durable:
            _sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _fill(part: Path, source: Path, durable: bool) -> None:
    with _reading():
        file = source.open("rb")
    with file, open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copied:  # noqa: PTH123
        before = os.fstat(file.fileno())
        while block := _read(file):
            copied.write(block)
        copied.flush()
        if durable:
            with contextlib.suppress(OSError):
                os.chown(part, before.st_uid, before.st_gid)
        # the times come first in it; not every file system has permissions
        with contextlib.suppress(PermissionError):
            shutil.copystat(source, part)
        after, size = os.fstat(file.fileno()), os.fstat(copied.fileno()).st_size
        if not before.st_size == after.st_size == size or before.st_mtime_ns != after.st_mtime_ns:
            raise ImageError("it changed while it was copied")
        if durable:
            os.fsync(copied.fileno())


def _read(file: BinaryIO) -> bytes:
    with _reading():
        return file.read(_BLOCK)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """What goes wrong in here is the source's fault."""
    try:
        yield
    except OSError as exc:
        raise ImageError(f"can't be read: {(exc.strerror or str(exc)).lower()}") from exc


def _name(part: Path, target: Path) -> None:
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; if it is something else, that comes again
        _rename(part, target)


def _rename(source: Path, target: Path) -> None:
    """Rename over an empty file made for it: a bare rename would go over whatever is there."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0))
    try:
        source.replace(target)
    except PermissionError as exc:
        target.unlink(missing_ok=True)
        # a folder that took the empty file takes this one too: it's the other one that doesn't let go
        raise PermissionError(exc.errno, exc.strerror, os.fspath(source)) from exc
    except OSError:
        target.unlink(missing_ok=True)
        raise


def is_placeholder(status: os.stat_result) -> bool:
    """Whether it is the empty file that `copy` and `move` make for a moment where there are no hard links."""
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and stat.S_IMODE(status.st_mode) == 0


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems know no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move(source: Path, target: Path, part: Path) -> None:
    """Move a file that isn't a link; across file systems it is copied to the disk before the source goes.

    Args:
        part: see `copy`; for other file systems.

    Raises:
        FileExistsError: `target` is taken.
        ImageError: the source can't be read, or changes meanwhile.
        OSError: it can't be written, or the source can't be taken away; both are as they were.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as exc:
        if _renamed(source, target, exc):
            return
        copy(source, target, part, durable=True)
    _take_away(source, target)


def _renamed(source: Path, target: Path, refused: OSError) -> bool:
    """Whether a file that couldn't be linked could be renamed; if not, it lies on another file system."""
    if refused.errno == errno.EXDEV:
        return False
    try:
        _rename(source, target)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            return False
        raise
    return True


def move_link(source: Path, target: Path, text: str) -> None:
    """Move a symbolic link, with its times.

    Args:
        text: what it says there.

    Raises:
        FileExistsError: `target` is taken.
        OSError: it can't be written, or the source can't be taken away; both are as they were.
    """
    target.symlink_to(text)
    keep_link_times(source, target)
    _take_away(source, target)


def keep_link_times(source: Path, target: Path) -> None:
    """Give a symbolic link the times and the owner of another, where that can be."""
    status = source.lstat()
    with contextlib.suppress(OSError, NotImplementedError):
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)


def _take_away(source: Path, target: Path) -> None:
    try:
        source.unlink(missing_ok=True)
    except OSError:
        target.unlink()  # another name of the same file, or a copy of it
        raise


@contextlib.contextmanager
def translated(place: Path) -> Iterator[None]:
    """What the system refuses in here, as a `StoppedError` that names the place."""
    try:
        yield
    except OSError as exc:
        raise stopped(exc, place) from exc


def stopped(exc: OSError, place: Path) -> StoppedError:
    """What the system refuses, as the end of the run."""
    return StoppedError(f"{shown(place)}: can't be written: {(exc.strerror or str(exc)).lower()}.")


def shown(path: Path) -> str:
    """A name on one line, in any terminal."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)

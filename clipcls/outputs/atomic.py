"""Writes files that appear whole or not at all, by one process at a time."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from clipcls.errors import StoppedError, first_line


class Draft:
    """A context manager for a draft beside the file that it replaces once published; otherwise the draft is removed.

    A link stays a link: the file it leads to is replaced. A device or a pipe can't be replaced; it is written to.

    Args:
        buffering: see `open`.

    Attributes:
        file: the draft, open for writing.

    Raises:
        OSError: the file can't be written.
        StoppedError: another process is writing to it.
    """

    def __init__(self, path: Path, buffering: int = -1) -> None:
        self._is_special = path.exists() and not path.is_file()
        self._path = Path(os.path.realpath(path))  # unlike Path.resolve, it accepts a link to itself
        self._draft = self._path.with_name(f".{self._path.name}.part")
        self._is_published = False
        with contextlib.ExitStack() as stack:
            if not self._is_special:
                if os.name != "nt":  # Windows can't rename an open file
                    require_lock(stack.enter_context(self._draft.open("ab")), str(path))
                stack.callback(self._discard)
            place = path if self._is_special else self._draft
            self.file = stack.enter_context(place.open("wb", buffering))
            self._stack = stack.pop_all()

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def publish(self) -> None:
        """Flush the draft to the disk and replace the file by it.

        Raises:
            OSError: the file can't be written.
        """
        self.file.flush()
        if self._is_special:
            return
        os.fsync(self.file.fileno())
        self.file.close()
        if self._path.exists():
            shutil.copymode(self._path, self._draft)
        self._draft.replace(self._path)
        self._is_published = True

    def _discard(self) -> None:
        if not self._is_published:  # else it may be another process's draft by now
            self._draft.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file by what `write` writes; see `Draft`.

    Raises:
        OSError: the file can't be written.
        StoppedError: another process is writing to it.
    """
    with Draft(path) as draft:
        write(draft.file)
        draft.publish()


@contextlib.contextmanager
def can_write(name: str) -> Iterator[None]:
    """Raise a `StoppedError` where an output can't be written; a `BrokenPipeError` passes through.

    Args:
        name: the output's name.

    Raises:
        StoppedError: the output can't be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else first_line(exc)
        raise StoppedError(f"{name}: can't be written: {reason}.") from exc


def require_lock(file: BinaryIO, name: str) -> None:
    """Lock a file until it is closed, or raise.

    Args:
        name: the name of the output that the file belongs to.

    Raises:
        StoppedError: another process has locked it.
    """
    if not lock(file):
        raise StoppedError(f"{name}: another run is writing to it. Wait for its end, or choose another output.")


def lock(file: BinaryIO | int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; always succeeds on systems without locks.

    Args:
        wait: wait for a process that has locked it.

    Returns:
        False if another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True

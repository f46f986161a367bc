"""Open regular files such that nothing hangs, and a failure is the error of one image."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from clipcls.errors import ImageError, reason

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)

#: Default limit for the size of one input, in bytes.
MAX_BYTES = 2**30


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is refused unopened, since opening it may hang.

    Raises:
        ImageError: it can't be opened, or isn't a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _require_regular(os.stat(path).st_mode)  # noqa: PTH116, surrogates and bytes stay as they are
        descriptor = os.open(path, flags)
        try:
            _require_regular(os.fstat(descriptor).st_mode)  # it may have been swapped since
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as exc:
        raise ImageError(reason(exc)) from exc
    except ValueError as exc:
        raise ImageError(f"not a possible file name: {exc}") from exc


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "special file")
        raise ImageError(f"not a regular file: {kind}")


@contextmanager
def reading() -> Iterator[None]:
    """Turn errors of reading an open file into `ImageError`."""
    try:
        yield
    except OSError as exc:
        raise ImageError(f"can't be read: {reason(exc)}") from exc
    except MemoryError as exc:
        raise ImageError("not enough memory to read it") from exc

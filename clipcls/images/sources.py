"""A picture's file, opened: by its path, from memory, or as it was handed over."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from clipcls.errors import ImageError
from clipcls.images.damage import pillow_errors

#: A path, a file's bytes, or an open binary file.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is refused unopened, so that nothing can hang.

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
        raise ImageError((exc.strerror or str(exc)).lower()) from exc
    except ValueError as exc:
        raise ImageError(f"not a possible file name: {exc}") from exc


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """The source as a seekable file, which is closed in the end if it was opened here."""
    if isinstance(source, str | os.PathLike):
        with open_file(source) as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        with pillow_errors("file"):
            file = source if source.seekable() else io.BytesIO(source.read())
        yield file


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "special file")
        raise ImageError(f"not a regular file: {kind}")

"""Open a picture's file by its path, from memory, or as it was handed over."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from clipcls.images.pillow_errors import pillow_errors
from clipcls.inputs.open_file import open_file

#: A path, a file's bytes, or an open binary file.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """Open a source as a seekable file; a file that the caller opened is left open."""
    if isinstance(source, str | os.PathLike):
        with open_file(source) as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        with pillow_errors("file"):
            file = source if source.seekable() else io.BytesIO(source.read())
        yield file

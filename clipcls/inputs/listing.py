"""Name where the pictures of a run are, and read lists of paths."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from clipcls.errors import ImageError, UsageError, reason
from clipcls.inputs.stores import local_path, open_named
from clipcls.inputs.video import Sampling
from clipcls.records import InputPart
from clipcls.text_files import UTF8_MARK, refuse_utf16

_CHUNK = 1 << 16
# how MP4 and MOV, Matroska and WebM, and AVI begin
_VIDEO = re.compile(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL)
_LONGEST = 1 << 20  # bytes in one path of a list; a longer one means no list, or another separator


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the pictures of a run are, as the user names it; `discover` lists them.

    Attributes:
        inputs: files, folders, patterns, shards, tables, addresses, or `-` for paths on standard input.
        files_from: a file with a list of further paths, or `-`; read after `inputs`.
        null: paths in lists end with NUL instead of a newline.
        column: the column of tables that holds the pictures; None where tables aren't read.
        allow_urls: whether web addresses may be fetched; otherwise each is an error.
        allow_private_urls: whether lists and tables may name stores on any server, such as `ftp://…`.
        stdin: what `-` reads; the process's own standard input by default.
        sampling: which frames of videos are taken; None for one a second of videos that are named, and for none in
            folders.
        part: the part of the pictures that is read; None for all of them.
    """

    inputs: str | Sequence[str | os.PathLike[str]] = ()
    files_from: str | None = None
    null: bool = False
    column: str | None = None
    allow_urls: bool = False
    allow_private_urls: bool = False
    stdin: BinaryIO | None = None
    sampling: Sampling | None = None
    part: InputPart | None = None

    @property
    def names(self) -> list[str]:
        """The inputs as a list."""
        # a string is a sequence, too: its letters would be taken for paths, and a `/` for the whole disk
        return [self.inputs] if isinstance(self.inputs, str) else [os.fspath(path) for path in self.inputs]

    @property
    def read_standard_input(self) -> bool:
        """Whether standard input is read."""
        return self.files_from == "-" or "-" in self.names

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's record says of how the inputs are read, by the names of the options."""
        return {} if self.sampling is None else self.sampling.settings

    def open_list(self) -> BinaryIO | None:
        """Open the list that `files_from` names.

        Raises:
            UsageError: it can't be read.
        """
        if self.files_from is None:
            return None
        if self.files_from == "-":
            return self.standard_input()
        try:
            return open_named(local_path(self.files_from))  # closed when the list ends
        except (OSError, ValueError, ImageError) as exc:
            raise UsageError(f"--files-from {self.files_from}: can't be read: {reason(exc)}") from exc

    def standard_input(self) -> BinaryIO:
        """Return what `-` reads.

        Raises:
            UsageError: standard input is closed.
        """
        if self.stdin is not None:
            return self.stdin
        if sys.stdin is None:
            raise UsageError("standard input is closed, so no list of paths can be read from it")
        # not sys.stdin.buffer: a thread that waits for it at the end of a run would make the interpreter abort
        return open(sys.stdin.fileno(), "rb", closefd=False)


def read_list(listing: BinaryIO, null: bool) -> Iterator[str]:
    """Read the paths of a list, one at a time, so that it may be endless.

    Raises:
        UsageError: the list breaks off, or isn't a list of paths.
    """
    records = _null_separated(listing) if null else _lines(listing)
    while True:
        try:
            record = next(records, None)
        except (OSError, ValueError, ImageError) as exc:
            raise UsageError(f"the list of paths breaks off: {exc}") from exc
        if record is None:
            return
        if record:
            yield os.fsdecode(record)


def _lines(listing: BinaryIO) -> Iterator[bytes]:
    """Yield lines without their ends, and without the CR and byte order mark of lists made on Windows."""
    is_first = True
    while line := listing.readline(_LONGEST):
        if is_first and _VIDEO.match(line):
            raise UsageError("a video stands where a list of paths was expected; give its file's name instead")
        if is_first and b"\0" in line:  # names may begin with any bytes
            refuse_utf16(line, "the list of paths")
        is_first = False
        if len(line) == _LONGEST:
            raise UsageError("a path in the list is longer than 1 MiB; is the list NUL-separated (-0)?")
        line = line.removesuffix(b"\n")
        # unless a file is really named so
        if (line.endswith(b"\r") or line.startswith(UTF8_MARK)) and (b"\0" in line or not os.path.lexists(line)):
            line = line.removesuffix(b"\r").removeprefix(UTF8_MARK)
        yield line


def _null_separated(listing: BinaryIO) -> Iterator[bytes]:
    read: Callable[[int], bytes] = getattr(listing, "read1", listing.read)  # read1 doesn't wait for a full chunk
    rest = b""
    while chunk := read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
        if len(rest) > _LONGEST:
            raise UsageError("a path in the list is longer than 1 MiB; does -0 belong here?")
    yield rest

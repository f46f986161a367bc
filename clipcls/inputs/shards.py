"""Read tar shards, such as WebDataset's, in one pass and in memory that doesn't grow with them.

`predict` and `train` share this reader. It never takes damage for the end of a shard.
"""

import importlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Self

from braceexpand import braceexpand

from clipcls.errors import ImageError, UsageError, first_line, reason
from clipcls.inputs.stores import in_store, open_named
from clipcls.records import FileStamp, ImageRef, Span

#: Names that WebDataset reserves.
RESERVED = re.compile(r"__[^/]*__($|/)")

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
# magic bytes of a file: the module that decompresses it, which not every Python has, and the module's own error
_COMPRESSIONS = {
    rb"\x1f\x8b\x08": ("gzip", "BadGzipFile"),
    rb"BZh[1-9]1AY&SY": ("bz2", ""),
    rb"\xfd7zXZ\0": ("lzma", "LZMAError"),
    rb"\x28\xb5\x2f\xfd": ("compression.zstd", "ZstdError"),
}
# a file's header whose numbers are all octal digits and whose name isn't continued elsewhere
_PLAIN = re.compile(rb"[^\0].{123}[0-7]{11}[\0 ].{12}[0-7]{6}[\0 ]{2}0\0.{187}\0.{166}", re.DOTALL)
_CHUNK = 2**16
_SMALLEST_PART, _LARGEST_PART = 2**13, 2**16  # bytes of a shard read at once for headers
_MOST_BYTES = 2**30  # bytes of a picture that has to be read into memory here
_MOST_HEADER_BYTES = 2**24  # bytes of a header's extension, such as a long name
_EXTENSIONS_OF_HEADERS = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)

#: What reading a broken tar raises; some of these are bugs of tarfile on malformed headers.
DAMAGE = (OSError, EOFError, ValueError, IndexError, OverflowError, RecursionError, tarfile.TarError, zlib.error)

#: Modes of `tarfile.open`: an uncompressed regular file, whose contents are skipped; a stream; a stream that may be
#: compressed.
Mode = Literal["r:", "r|", "r|*"]


class NotTarError(tarfile.ReadError):
    """The first header of a tar can't be read."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a shard: a file, folder, link or the like.

    Attributes:
        header: its name, type, size and offset.
    """

    header: tarfile.TarInfo
    _archive: tarfile.TarFile

    def read(self) -> bytes:
        """Read the content of a file; only possible before the next member is asked for."""
        file = self._archive.extractfile(self.header)
        return b"" if file is None else file.read()


def is_shard(name: str) -> bool:
    """Tell whether a file name is a tar's, compressed or not."""
    return name.lower().endswith(_ENDINGS)


def expand_braces(pattern: str) -> list[str]:
    """List the names that braces stand for, as in `{000..009}.tar` and `{train,test}.tar`.

    Raises:
        UsageError: a brace has no partner.
    """

    try:
        return list(braceexpand(pattern))
    except ValueError as exc:
        raise UsageError(f"{pattern}: {first_line(exc)}") from exc


def read_pictures(shard: str, extensions: Set[str]) -> Iterator[ImageRef]:
    """Yield the pictures in a shard, in its order, without hidden files and WebDataset's reserved names.

    In an uncompressed shard only headers are read, and a picture's content is a `Span`; in others pictures are read.
    A fault of the shard becomes an image with its name and an error, behind the pictures that precede it.

    Args:
        shard: path of a regular file, or an address in a store, where pictures are always read.
        extensions: of pictures, in lower case.
    """
    try:
        file = open_named(shard)
    except (OSError, ValueError) as exc:
        yield ImageRef(shard, f"can't be opened: {reason(exc)}")
        return
    except ImageError as exc:
        yield ImageRef(shard, str(exc))
        return
    with file:
        try:
            yield from _pictures(shard, file, extensions)
        except (NotTarError, ImageError) as exc:
            yield ImageRef(shard, first_line(exc))
        except DAMAGE as exc:
            yield ImageRef(shard, f"broken here, and nothing behind it is read: {reason(exc)}")


def members(file: Any, mode: Mode = "r:") -> Iterator[Member]:
    """Yield the members of a tar, in its order; each is forgotten when the next is asked for.

    Args:
        file: open, at its beginning.

    Raises:
        NotTarError: it isn't a tar, or is broken in its first header.
        tarfile.ReadError: it is broken at this member; a broken tar may raise anything in `DAMAGE`.
    """
    size = os.fstat(file.fileno()).st_size if mode == "r:" else None
    end = 0
    with _opened(file, mode) as archive:
        while (header := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
            if size is not None and archive.offset > size:  # unread contents may be missing
                raise tarfile.ReadError("unexpected end of data")
            if header.size < 0 or archive.offset <= end:  # tarfile would loop for ever
                raise tarfile.ReadError("a header with a size below zero")
            end = archive.offset
            yield Member(header, archive)


# ---------------------------------------------------------------------------------------------------------
# From a tar to its members


class _Header(tarfile.TarInfo):
    """The header of a member, broken or not; `tarfile` itself takes a broken one for the end, which hides damage."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = cls._of_file(buf, encoding, errors) or super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS_OF_HEADERS and not 0 <= header.size <= _MOST_HEADER_BYTES:
            # tarfile would read all of it into memory
            raise tarfile.ReadError(f"a header that is said to have {header.size:,} bytes")
        return header

    @classmethod
    def _of_file(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self | None:
        """Read only name and size, if the header is as plain as most are.

        That takes a quarter of the time of a whole header, which counts beside small pictures.
        """
        if not _PLAIN.match(buf) or int(buf[148:154], 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return None
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.size = int(buf[124:135], 8)
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as exc:
            if isinstance(exc, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(str(exc)) from exc


class _Ending:
    """A stream that raises at its end, where tarfile would ask on, after a wrong size in a header almost for ever."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        return data


class _Window:
    """A file that is read in larger parts as long as little is skipped.

    Each system call lets other threads take the interpreter and then waits for it: with several calls a header, finding
    small pictures took longer than decoding them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = self._start = 0
        self._data = b""
        self._length = _SMALLEST_PART

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        offset = self._position - self._start
        if offset < 0 or offset + size > len(self._data):
            self._fill(size)
            offset = 0
        data = self._data[offset : offset + size]
        self._position += len(data)
        return data

    def _fill(self, size: int) -> None:
        passed_over = self._position - (self._start + len(self._data))
        self._length = min(2 * self._length, _LARGEST_PART) if passed_over <= _SMALLEST_PART else _SMALLEST_PART
        self._data = b""
        self._file.seek(self._position)
        self._data = self._file.read(max(size, self._length))
        self._start = self._position


def _opened(file: Any, mode: Mode) -> tarfile.TarFile:
    """Open an archive and read its first header."""
    source: Any = _Window(file) if mode == "r:" else _Ending(file)
    try:
        return tarfile.open(fileobj=source, mode=mode, tarinfo=_Header)
    except tarfile.ReadError as exc:
        raise NotTarError(f"not a tar file ({exc})") from exc


@contextmanager
def _uncompressed(file: BinaryIO) -> Iterator[Any]:
    """Open a file's decompressed stream, or the file itself if its first bytes say it isn't compressed.

    Raises:
        ImageError: this Python can't decompress it.
    """
    # not tarfile's own stream, which stops after the first of several compressed parts and checks no checksum
    head = file.read(16)
    if not head:
        raise ImageError("empty file")
    file.seek(0)
    found = next((names for start, names in _COMPRESSIONS.items() if re.match(start, head, re.DOTALL)), None)
    if found is None:
        yield file
        return
    name, own_error = found
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        raise ImageError(f"this Python can't decompress it ({exc}); decompress it first") from exc
    with module.open(file) as stream:
        try:
            yield stream
        except getattr(module, own_error, EOFError) as exc:
            raise tarfile.ReadError(first_line(exc)) from exc


# ---------------------------------------------------------------------------------------------------------
# From members to pictures


def _pictures(shard: str, file: BinaryIO, extensions: Set[str]) -> Iterator[ImageRef]:
    on_disk = not in_store(shard)
    stamp = FileStamp.of(os.fstat(file.fileno())) if on_disk else None
    with _uncompressed(file) as stream:
        has_spans = on_disk and stream is file
        for member in members(stream, "r:" if has_spans else "r|"):
            if _is_picture(member.header, extensions):
                yield _reference(shard, member, stamp if has_spans else None)
        while stream is not file and stream.read(_CHUNK):  # damage may show only at the very end
            pass


def _is_picture(header: tarfile.TarInfo, extensions: Set[str]) -> bool:
    name = header.name
    _, dot, ending = name.rpartition(".")
    return dot + ending.lower() in extensions and not (header.isdir() or RESERVED.match(name) or _is_hidden(name))


def _is_hidden(name: str) -> bool:
    if not name.startswith(".") and "/." not in name:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _reference(shard: str, member: Member, stamp: FileStamp | None) -> ImageRef:
    """Return a picture as a `Span` of the file with this stamp; without a stamp, with its content."""
    header = member.header
    path = f"{shard}/{header.name}"
    if not header.isreg():
        target = os.fsencode(header.linkname).decode("utf-8", "replace")
        return ImageRef(path, f"a link to {target}, and links in shards aren't followed" if target else "no file")
    if stamp is not None and header.sparse is None:
        return ImageRef(path, content=Span(shard, header.offset_data, header.size, stamp))
    if header.size > _MOST_BYTES:
        return ImageRef(path, f"{header.size:,} bytes, more than the {_MOST_BYTES:,} that are read from such a shard")
    return ImageRef(path, content=member.read())

"""Read files in stores such as S3, by the addresses that fsspec opens: `s3://bucket/a.jpg`, `gs://…`, `hf://…`.

The packages behind fsspec raise errors without a common root, so every call goes through `_ask`, which translates them
and ends calls after a time where it can. A folder's address ends in `/` here.
"""

import hashlib
import io
import os
import posixpath
import re
from datetime import datetime
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from clipcls.errors import ClipclsError, ImageError, TooLargeError, first_line
from clipcls.records import FileStamp, ImageRef, Stored

_PROTOCOL = re.compile(r"([a-z][a-z0-9+.:_-]+)://", re.IGNORECASE)
_ELSEWHERE = ("", "http", "https", "file", "local")
# Addresses in lists and tables mustn't choose a server, which could be inside the reader's own network. In these stores
# the server is the user's setting, or one company's.
_SETTLED = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"})
# these pass addresses on to any other protocol, also to http, which has a guarded fetcher of its own
_WRAPPERS = frozenset(
    "generic reference simplecache filecache blockcache cached dir zip tar libarchive dask "  # noqa: SIM905
    "async_wrapper asyncwrapper asynclocal data".split()
)
# entries of a store's file information that change with the content, in each store's spelling
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "blob_id")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified")
_BLOCK = 2**23  # bytes per request
# seconds for one answer, or for a listing, which may be thousands of answers; packages retry by themselves, some for
# half an hour
_PATIENCE = {"ls": 600.0}
_USUAL_PATIENCE = 120.0


class NotFoundError(ImageError):
    """Nothing exists at an address."""


def is_address(text: str) -> bool:
    """Tell whether a text is an address for fsspec, not one of the web or of a local file."""
    return _protocol(text) not in _ELSEWHERE


def in_store(name: str) -> bool:
    """Tell whether a name is an address in a store, and not the name of an existing file."""
    return is_address(name) and not os.path.lexists(name)


def local_path(name: str) -> str:
    """Return the path of a `file://` address, percent-encoded or not; other names as they are."""
    if _protocol(name) not in ("file", "local") or os.path.lexists(name):
        return name
    path = name.partition("://")[2]
    return path if os.path.lexists(path) else unquote(path, errors="surrogateescape")


def require_readable(address: str, trusted: bool = True) -> None:
    """Refuse an address that mustn't be read.

    Args:
        trusted: whether the user named it directly, and so may choose any server.

    Raises:
        ImageError: it mustn't be read.
    """
    protocol = _protocol(address)
    if "::" in address:
        raise ImageError("a chained address (with ::), and those aren't read")
    if protocol in _WRAPPERS:
        raise ImageError(f"{protocol}:// stands for other addresses, and those aren't read")
    if not trusted and protocol not in _SETTLED:
        raise ImageError(f"a {protocol}:// address in a list or a table; --allow-private-urls has it read")


def look(address: str) -> ImageRef:
    """Look up an address: a folder, whose path then ends in `/`, or a file with its size and stamp.

    Raises:
        NotFoundError: nothing is there.
        ImageError: the store can't be asked.
    """
    if address.endswith("/"):
        return ImageRef(address)
    return _reference(address, _ask(address, "info"))


def entries(folder: str) -> list[ImageRef]:
    """List a folder's entries, each as `look` returns it, sorted by name.

    Raises:
        NotFoundError: there is no such folder.
        ImageError: the store can't be asked.
    """
    found = {}
    for facts in _ask(folder, "ls", detail=True, forget=True):
        name = posixpath.basename(facts["name"].rstrip("/"))
        # S3's consoles mark a folder by an object with its own name
        if name and not _is_same(folder, facts["name"]):
            found[name] = _reference(posixpath.join(folder, name), facts)
    return [found[name] for name in sorted(found)]


def read(address: str, stored: Stored, max_bytes: int) -> bytes:
    """Read a file; safe to call from many threads.

    Args:
        stored: what `look` returned for it.
        max_bytes: a larger file is refused, and not read further.

    Raises:
        ImageError: it can't be read, is too large, or has another length than `stored`.
    """
    limit = max_bytes if stored.size is None else stored.size
    content = io.BytesIO()
    while stored.size != 0 and (left := limit - content.tell()) >= 0:
        # one byte more shows growth; stores refuse a request that starts at a file's end, or any part of an empty one
        asked = left + 1 if left <= _BLOCK else _BLOCK
        if content.write(_part(address, content.tell(), asked)) < asked:
            break
    if stored.size is not None and content.tell() != stored.size:
        raise ImageError("it has changed since it was listed")
    if content.tell() > max_bytes:
        raise TooLargeError(f"more than the limit of {max_bytes:,} bytes")
    return content.getvalue()


def open_named(name: str) -> BinaryIO:
    """Open a file for reading, on disk or, in requests of some megabytes, in a store.

    Raises:
        ImageError: it can't be opened in a store; reading it may raise this, too.
        OSError, ValueError: it can't be opened on disk.
    """
    if not in_store(name):
        return open(name, "rb")  # noqa: PTH123, the name stays as given
    content = look(name).content
    if not isinstance(content, Stored):
        raise ImageError("a folder, not a file")
    if content.size is None:
        raise ImageError("its store doesn't say how long it is")
    return cast("BinaryIO", io.BufferedReader(_Stream(name, content.size), _BLOCK))


def beside(table: str, name: str) -> str:
    """Return the address that a relative path in a stored table means."""
    protocol, _, place = table.rpartition("/")[0].partition("://")
    server, _, folder = place.partition("/")
    path = posixpath.join("/", folder, name)
    if {".", ".."} & set(name.split("/")):  # stores don't resolve these; the result never leaves the bucket
        path = posixpath.normpath(path) + "/" * name.endswith("/")
    return f"{protocol}://{server}{path}"


# ---------------------------------------------------------------------------------------------------------
# Calls to fsspec


def _protocol(text: str) -> str:
    found = _PROTOCOL.match(text) if "://" in text else None  # quicker for most names
    return found[1].lower() if found else ""


def _ask(address: str, method: str, forget: bool = False, **options: Any) -> Any:
    """Call a method of an address's file system, and return its answer.

    Args:
        forget: drop the answer from fsspec's cache, which would keep whole listings.
    """
    require_readable(address)
    try:
        # imported here, so that a run without addresses doesn't load it
        from fsspec.asyn import sync
        from fsspec.core import url_to_fs

        # looked up each time: fsspec caches it, for each thread and process where needed
        system, path = url_to_fs(address)
        if system.async_impl:
            answer = sync(
                system.loop,
                getattr(system, f"_{method}"),
                path,
                timeout=_PATIENCE.get(method, _USUAL_PATIENCE),
                **options,
            )
        else:
            answer = getattr(system, method)(path, **options)
        if forget:
            system.invalidate_cache(path)
        return answer
    except ClipclsError:
        raise
    except FileNotFoundError as exc:
        raise NotFoundError(_reason(exc, address)) from exc
    except Exception as exc:
        raise ImageError(_reason(exc, address)) from exc


def _reason(exc: Exception, address: str) -> str:
    if isinstance(exc, ImportError):  # its message names the package
        return f"{_protocol(address)}:// needs a package that isn't installed: {first_line(exc)}"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    message = exc.strerror if isinstance(exc, OSError) and exc.strerror else first_line(exc)
    if isinstance(exc, FileNotFoundError):  # most messages are only the path
        return "no such file or directory" if "/" in message else f"no such file or directory: {message}"
    return f"access denied: {message}" if isinstance(exc, PermissionError) else message


def _part(address: str, start: int, size: int) -> bytes:
    data: bytes = _ask(address, "cat_file", start=start, end=start + size)
    return data


class _Stream(io.RawIOBase):
    """A file in a store, read in parts; fsspec's own stream waits for ever and raises its package's errors."""

    def __init__(self, address: str, size: int) -> None:
        self._address = address
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes.

        Raises:
            ImageError: see `open_named`.
        """
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = _part(self._address, self._position, wanted)
        if len(data) != wanted:
            raise ImageError("it has changed since it was opened")
        buffer[:wanted] = data
        self._position += wanted
        return wanted


# ---------------------------------------------------------------------------------------------------------
# From a store's file information to references


def _reference(address: str, facts: dict[str, Any]) -> ImageRef:
    if facts["type"] == "directory":
        return ImageRef(f"{address}/")
    size = facts.get("size")
    return ImageRef(address, content=Stored(size, None if size is None else _stamp(size, facts), is_known=True))


def _stamp(size: int, facts: dict[str, Any]) -> FileStamp | None:
    """Make a stamp of a version, whose hash takes an inode's place, or of a time; None if the store gives neither."""
    version = next((facts[name] for name in _VERSIONS if facts.get(name)), None)
    if version is not None:
        digest = hashlib.sha256(str(version).encode("utf-8", "surrogatepass")).digest()
        return FileStamp(size, 0, 0, int.from_bytes(digest[:8]))
    moment = next((facts[name] for name in _TIMES if isinstance(facts.get(name), datetime)), None)
    if moment is None:
        return None
    time = round(moment.timestamp() * 1e9)
    return FileStamp(size, time, time, 0)


def _is_same(folder: str, name: str) -> bool:
    return posixpath.join("/", folder.partition("://")[2]).strip("/") == name.strip("/")

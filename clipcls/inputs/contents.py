"""Open the bytes of an input: in a file, in a part of one, in memory, in a store, or on the web."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from clipcls.errors import ImageError, TooLargeError
from clipcls.inputs import stores
from clipcls.inputs.open_file import MAX_BYTES, open_file, reading
from clipcls.inputs.tables import read_embedded
from clipcls.inputs.web import Web
from clipcls.records import Address, Container, Embedded, FileStamp, Frame, ImageRef, Span, Stored


@dataclass(frozen=True, slots=True)
class Content:
    """An opened input.

    Attributes:
        file: the input's bytes, from their start.
        stamp: changes with the input, see `known_stamp`; None if unknown.
        seen: when the stamp was taken, in Unix seconds.
    """

    file: BinaryIO
    stamp: FileStamp | None = None
    seen: float | None = None


@contextmanager
def open_content(image: ImageRef, max_bytes: int = MAX_BYTES, web: Web | None = None) -> Iterator[Content]:
    """Open an input for reading; safe to call from many threads.

    Args:
        max_bytes: a larger input is refused; no more than that is fetched.
        web: fetches addresses; None refuses them.

    Raises:
        ImageError: it can't be opened, is too large, or can't be fetched.
    """
    if isinstance(image.content, Address):
        if web is None:
            raise ImageError("an address on the web, which nothing was allowed to fetch")
        yield Content(io.BytesIO(web.fetch(image.content.url, max_bytes)))
    elif isinstance(image.content, Span):
        _require_fitting(image.content.size, max_bytes)
        seen = time.time()
        yield Content(io.BytesIO(_read_span(image.content)), image.content.stamp, seen)
    elif isinstance(image.content, Stored):
        seen = time.time()
        stored = image.content if image.content.is_known else _asked(image.path)
        _require_fitting(stored.size or 0, max_bytes)
        yield Content(io.BytesIO(stores.read(image.path, stored, max_bytes)), stored.stamp, seen)
    elif isinstance(image.content, Embedded):
        (found,) = read_embedded([image])
        if found.error is not None:
            raise ImageError(found.error)
        with open_content(found, max_bytes) as opened:
            yield opened
    elif isinstance(image.content, Container):
        raise ImageError(f"a {image.content.kind}, and no picture")
    elif isinstance(image.content, Frame):
        raise ImageError("a frame of a video, which has no file of its own")
    elif image.content is not None:
        _require_fitting(len(image.content), max_bytes)
        yield Content(io.BytesIO(image.content))
    else:
        with open_file(image.path) as file:
            with reading():
                seen, stamp = time.time(), FileStamp.of(os.fstat(file.fileno()))
            _require_fitting(stamp.size, max_bytes)
            yield Content(file, stamp, seen)


def known_stamp(image: ImageRef) -> FileStamp | None:
    """Return the stamp that changes with an input, without opening it; None if it has none.

    A file's stamp is taken now; a part of a file, a frame of a video, or a file in a store has that from when it was
    listed.
    """
    match image.content:
        case None:
            return FileStamp.at(image.path)
        case Span() | Stored() | Frame():
            return image.content.stamp
        case _:
            return None


def known_path(image: ImageRef) -> str:
    """Return the path under which an input's stamp is cached.

    For a part of a file that includes its offset and size, since a shard may hold a name twice; for a frame of a video,
    what decodes it. An address in a store begins with `/`: it doesn't depend on the working directory.
    """
    match image.content:
        case Span(file, offset, size):
            return f"{file}/{offset}+{size}"
        case Frame(video, time, _, _, decoder):
            return f"{video}/{decoder}#t={time}"
        case Stored():
            return f"/{image.path}"
        case _:
            return image.path


def located(image: ImageRef) -> ImageRef:
    """Return an input with its size and stamp, which its store is asked for unless they are known.

    Raises:
        ImageError: the store can't be asked, or has no such file.
    """
    if isinstance(image.content, Stored) and not image.content.is_known:
        return replace(image, content=_asked(image.path))
    return image


def _asked(address: str) -> Stored:
    content = stores.look(address).content
    if not isinstance(content, Stored):
        raise ImageError("a folder; with / behind its name, it is gone through")
    return content


def _require_fitting(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(f"{size:,} bytes, more than the limit of {limit:,}")


def _read_span(span: Span) -> bytes:
    with open_file(span.file) as file, reading():
        if FileStamp.of(os.fstat(file.fileno())) != span.stamp:
            raise ImageError(f"{os.path.basename(span.file)} has changed since it was listed")  # noqa: PTH119
        file.seek(span.offset)
        data = file.read(span.size)
        if len(data) < span.size:
            raise ImageError("truncated: the file that it lies in ends before it does")
        return data

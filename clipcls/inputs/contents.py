"""The bytes of an input, wherever they are: a file, a part of a larger one, memory, or the web."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from clipcls.errors import ImageError
from clipcls.inputs import stores
from clipcls.inputs.open_file import open_file, reading
from clipcls.inputs.tables import read_embedded
from clipcls.inputs.web import Web
from clipcls.records import Address, Container, Embedded, ImageRef, Span, Stored, file_status

#: Of one file, unless a run says otherwise.
MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Content:
    """An input that is open.

    Attributes:
        file: at its start.
        status: what tells whether it is unchanged, see `known_status`; None where nothing does.
        seen: when the status was taken, in Unix seconds.
    """

    file: BinaryIO
    status: str | None = None
    seen: float | None = None


@contextmanager
def open_content(image: ImageRef, max_bytes: int = MAX_BYTES, web: Web | None = None) -> Iterator[Content]:
    """Open an input for reading; safe to call from many threads.

    Args:
        max_bytes: a larger one is refused; of what is fetched, no more is read.
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
        yield Content(io.BytesIO(_read_span(image.content)), known_status(image), seen)
    elif isinstance(image.content, Stored):
        seen = time.time()
        stored = image.content if image.content.status is not None else _asked(image.path)
        _require_fitting(stored.size or 0, max_bytes)
        yield Content(io.BytesIO(stores.read(image.path, stored, max_bytes)), stored.status or None, seen)
    elif isinstance(image.content, Embedded):
        (found,) = read_embedded([image])
        if found.error is not None:
            raise ImageError(found.error)
        with open_content(found, max_bytes) as opened:
            yield opened
    elif isinstance(image.content, Container):
        raise ImageError(f"a {image.content.kind}, and no picture")
    elif image.content is not None:
        _require_fitting(len(image.content), max_bytes)
        yield Content(io.BytesIO(image.content))
    else:
        with open_file(image.path) as file:
            with reading():
                seen, status = time.time(), os.fstat(file.fileno())
            _require_fitting(status.st_size, max_bytes)
            yield Content(file, file_status(status), seen)


def known_status(image: ImageRef) -> str | None:
    """What tells whether an input is unchanged, where that is known without looking at it.

    Returns:
        For a span, its larger file's status and its place in that; in a store, what that has said; empty for what can't
        be told by a status; None for a file, which is to be looked at.
    """
    match image.content:
        case None:
            return None
        case Span() as span:
            return f"{span.status} {span.offset} {span.size}"
        case Stored() as stored:
            return stored.status or ""
        case _:
            return ""


def known_path(image: ImageRef) -> str:
    """By which path an input's status is known, which for one in a store doesn't depend on the working directory."""
    return f"/{image.path}" if isinstance(image.content, Stored) else image.path


def located(image: ImageRef) -> ImageRef:
    """An input with the status that its store gives it, if it is in one that hasn't been asked.

    Raises:
        ImageError: the store can't be asked, or has no such file.
    """
    if isinstance(image.content, Stored) and image.content.status is None:
        return replace(image, content=_asked(image.path))
    return image


def _asked(address: str) -> Stored:
    content = stores.look(address).content
    if not isinstance(content, Stored):
        raise ImageError("a folder; with / behind its name, it is gone through")
    return content


def _require_fitting(size: int, limit: int) -> None:
    if size > limit:
        raise ImageError(f"{size:,} bytes, more than the limit of {limit:,}")


def _read_span(span: Span) -> bytes:
    with open_file(span.file) as file, reading():
        if file_status(os.fstat(file.fileno())) != span.status:
            raise ImageError(f"{os.path.basename(span.file)} has changed since it was listed")  # noqa: PTH119
        file.seek(span.offset)
        data = file.read(span.size)
        if len(data) < span.size:
            raise ImageError("truncated: the file that it lies in ends before it does")
        return data

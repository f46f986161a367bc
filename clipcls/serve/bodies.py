"""Read the bodies of requests, within limits of size, memory and time."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import python_multipart  # noqa: F401 - Starlette reads forms with it, and would miss it only at the first one
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from clipcls.serve.problems import RequestError

#: The time in which a request's body has to come.
UPLOAD_SECONDS = 60.0
_MOST_FIELDS = 20_000
# lists, objects and what is in them: many take far more memory than the body
_MOST_VALUES = 250_000


@dataclass(frozen=True, slots=True)
class Body:
    """What a request brings.

    Attributes:
        fields: what JSON says, or the texts of a form or of the address, each as a list.
        files: name and content of each uploaded file.
        is_json: whether the body is JSON.
        in_address: the texts of the address of a body that is JSON.
    """

    fields: Any
    files: tuple[tuple[str, bytes], ...] = ()
    is_json: bool = False
    in_address: dict[str, list[str]] = field(default_factory=dict)


class _InMemoryParser(MultiPartParser):
    # pictures of others don't belong in files
    spool_max_size = 2**40


class BodyReader:
    """Reads bodies, and counts what they hold in memory.

    Args:
        most_bytes: a larger body is refused.
        most_held: bytes of all bodies that haven't been answered; a body beyond is refused for now.
    """

    def __init__(self, most_bytes: int, most_held: int) -> None:
        self._most_bytes = most_bytes
        self._most_held = most_held
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, most_files: int) -> AsyncIterator[Body]:
        """Read a body, which counts until the end of the context.

        Raises:
            RequestError: it is too large, too slow, or of a kind that isn't understood.
        """
        size = 0

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal size
            is_refused = False
            async for chunk in request.stream():
                if is_refused:  # read to its end, since a client that still sends doesn't see an answer
                    continue
                size += len(chunk)
                self._held += len(chunk)
                if size > self._most_bytes:
                    is_refused = True
                    self._held -= size
                    size = 0
                    continue
                if self._held > self._most_held:
                    raise RequestError(503, "Too many bytes wait.", retry_after=1)
                yield chunk
            if is_refused:
                raise RequestError(413, f"The body has more than {self._most_bytes:,} bytes.")

        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                body = await _parse(request, chunks(), most_files, self._most_bytes)
            yield body
        except TimeoutError as exc:
            raise RequestError(408, f"The body didn't come within {UPLOAD_SECONDS:g} seconds.") from exc
        except ClientDisconnect as exc:
            raise RequestError(400, "The body ends before its end.") from exc
        finally:
            self._held -= size


async def _parse(request: Request, chunks: AsyncGenerator[bytes, None], most_files: int, most_bytes: int) -> Body:
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    asked: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        asked.setdefault(name, []).append(text)
    if kind == "multipart/form-data":
        if "charset" in parameters and "utf-8" not in parameters:  # some of Python's take hours
            raise RequestError(415, "Content-Type: a form's charset is utf-8.", "Content-Type")
        parser = _InMemoryParser(
            request.headers, chunks, max_files=most_files, max_fields=_MOST_FIELDS, max_part_size=most_bytes
        )
        try:
            form = await parser.parse()
        except MultiPartException as exc:
            raise RequestError(422, f"The form can't be read: {exc.message.removesuffix('.')}.") from exc
        files = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.append((value.filename or name, await value.read()))
            else:
                asked.setdefault(name, []).append(value)
        await form.close()
        return Body(asked, tuple(files))
    data = b"".join([chunk async for chunk in chunks])
    # Hugging Face's client says nothing of the type of bytes
    is_untold = not kind and data[:64].lstrip()[:1] not in b"{["
    if kind.startswith("image/") or kind == "application/octet-stream" or is_untold:
        return Body(asked, (("image", data),))
    if kind not in ("application/json", "") and not kind.endswith("+json"):
        raise RequestError(
            415, f"Content-Type {kind}: expected application/json, multipart/form-data or image/….", "Content-Type"
        )
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise RequestError(413, f"The body has more than {_MOST_VALUES:,} values.")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RequestError(422, f"The body is no JSON: {exc}.") from exc
    return Body(fields, is_json=True, in_address=asked)

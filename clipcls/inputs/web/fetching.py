"""Fetch an address's content, with redirects, retries, and a limit of size."""

import io
import random
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version

import httpcore2

from clipcls.errors import ImageError, TooLargeError, UsageError
from clipcls.inputs.web.network import Network, PassingError, Patience
from clipcls.inputs.web.targets import Target, parse

_GOOD = (200, 203)
_MOVED = (301, 302, 303, 307, 308)
_PASSING = (429, 500, 502, 503, 504)
_MOST_REDIRECTS = 5
# seconds before the first retry, doubled for each that follows
_FIRST_WAIT = 0.5
# seconds that a Retry-After is cut to; longer makes no difference, since nobody waits for it
_LONGEST_WAIT = 86_400.0
# idle connections: how many are kept, and for how many seconds
_KEPT = 32
_KEPT_SECONDS = 5.0
# bytes of an unneeded answer that are read to keep its connection
_SHORT = 2**16
_PIECE = 2**16


class Fetcher:
    """Fetches addresses over a pool of connections."""

    def __init__(self, timeout: float, retries: int, allow_private: bool) -> None:
        # with retries, half of the time is left for one after a server falls silent
        self._patience = Patience(timeout, timeout / 2 if retries else timeout)
        self._retries = retries
        try:
            trusted = httpcore2.default_ssl_context()
        except OSError as exc:
            raise UsageError(
                f"The certificates that SSL_CERT_FILE names can't be read: {exc.strerror or exc}."
            ) from exc
        self._pool = httpcore2.ConnectionPool(
            ssl_context=trusted,
            max_connections=None,
            max_keepalive_connections=_KEPT,
            keepalive_expiry=_KEPT_SECONDS,
            network_backend=Network(self._patience, allow_private),
        )
        # identity: a compressed answer could unpack to any size
        self._headers = (
            ("User-Agent", _user_agent()),
            ("Accept", "image/*, */*;q=0.5"),
            ("Accept-Encoding", "identity"),
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Fetch an address's content, see `clipcls.inputs.web.Web.fetch`."""
        target = parse(url)
        until = time.monotonic() + self._patience.whole
        attempts = 0
        while True:
            try:
                return self._followed(target, max_bytes, until)
            except PassingError as exc:
                wait = max(exc.wait, _FIRST_WAIT * 2**attempts * random.uniform(0.5, 1))
                if attempts == self._retries or time.monotonic() + wait >= until:
                    raise
            attempts += 1
            time.sleep(wait)

    def _followed(self, target: Target, max_bytes: int, until: float) -> bytes:
        for _ in range(_MOST_REDIRECTS + 1):
            with self._asked(target, until) as answer:
                location = _header(answer, b"location")
                if answer.status not in _MOVED or not location:
                    return _content(answer, max_bytes)
                _read_short(answer)
            target = target.redirected(location)
        raise ImageError(f"more than {_MOST_REDIRECTS} redirects")

    @contextmanager
    def _asked(self, target: Target, until: float) -> Iterator[httpcore2.Response]:
        url = httpcore2.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        headers = [("Host", target.authority), *self._headers]
        timeouts = dict.fromkeys(("connect", "read", "write"), until)
        try:
            with self._pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as answer:
                yield answer
        except httpcore2.RemoteProtocolError as exc:
            raise PassingError("the answer breaks off, or isn't HTTP") from exc


def _content(answer: httpcore2.Response, max_bytes: int) -> bytes:
    if answer.status not in _GOOD:
        raise _refusal(answer)
    size = _size(answer)
    if size is not None and size > max_bytes:
        raise TooLargeError(f"{size:,} bytes, more than the limit of {max_bytes:,}")
    content = io.BytesIO()
    for piece in _plain(answer):
        if content.tell() + len(piece) > max_bytes:
            raise TooLargeError(f"more than the limit of {max_bytes:,} bytes")
        content.write(piece)
    return content.getvalue()


def _refusal(answer: httpcore2.Response) -> ImageError:
    """Return the error that an answer's status means."""
    try:
        message = f"HTTP {answer.status}: {HTTPStatus(answer.status).phrase.lower()}"
    except ValueError:
        message = f"HTTP {answer.status}"
    if answer.status not in _PASSING:
        return ImageError(message)
    wait = _wait(_header(answer, b"retry-after"))
    return PassingError(f"{message}; it asks to wait {wait:,.0f} s" if wait else message, wait)


def _wait(value: str) -> float:
    """Return the seconds until a Retry-After, a number or a date; 0 if it is neither."""
    if value.isascii() and value.isdigit():
        return min(float(value), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), _LONGEST_WAIT)


def _plain(answer: httpcore2.Response) -> Iterator[bytes]:
    """Yield the body in pieces; decompress gzip, which stores of compressed files send unasked."""
    coding = _header(answer, b"content-encoding").lower()
    if coding in ("", "identity"):
        return answer.iter_stream()
    if coding in ("gzip", "x-gzip"):
        return _unpacked(answer.iter_stream())
    raise ImageError(f"it comes packed as {coding[:20]!r}, unasked")


def _unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip into pieces of at most `_PIECE` bytes."""
    decoder = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        rest = chunk
        while rest:
            try:
                yield decoder.decompress(rest, _PIECE)
            except zlib.error as exc:
                raise ImageError("it comes packed with gzip, and is damaged") from exc
            rest = decoder.unconsumed_tail
        if decoder.eof:  # bytes behind the end yield no content, so no limit would ever stop them
            return
    raise PassingError("it comes packed with gzip, and breaks off")


def _read_short(answer: httpcore2.Response) -> None:
    """Read a short answer that nobody needs, so that its connection can be reused."""
    size = _size(answer)
    if size is not None and size <= _SHORT:
        for _ in answer.iter_stream():
            pass


def _size(answer: httpcore2.Response) -> int | None:
    value = _header(answer, b"content-length")
    return int(value) if value.isascii() and value.isdigit() else None


def _header(answer: httpcore2.Response, name: bytes) -> str:
    """Return the first header of a name; empty if there is none."""
    value = next((value for key, value in answer.headers if key.lower() == name), b"")
    return value.decode(errors="surrogateescape").strip()


def _user_agent() -> str:
    try:
        return f"clipcls/{version('clipcls')} (zero-shot image classification)"
    except PackageNotFoundError:  # run from a checkout
        return "clipcls (zero-shot image classification)"

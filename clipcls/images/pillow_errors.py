"""Silence Pillow's warnings and log on odd files, and translate its errors on damaged ones into `ImageError`."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from clipcls.errors import ImageError, NotAnImageError, TooLargeError, reason

# Without a handler, Python would print the errors in Pillow's log; each is raised as an exception as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

# The types of Pillow's own errors. Errors of other types, and some of these, come from Python and speak of its
# objects, or say no more than that a decoder failed.
_SPEAKING = (OSError, SyntaxError, ValueError, RuntimeError)
_UNSPEAKABLE = re.compile(
    r"\b(?:object|argument|unpack|tuple|list|dict|range|literal|codec|decoder|int|str|PIL|math)\b"
)
_NO_SENSE = "what it holds makes no sense"


class UnpackedTooLargeError(ImageError):
    """A text or a colour profile in a picture is larger than Pillow unpacks."""


def silence_pillow() -> None:
    """Keep Pillow from warning about odd files; call it before each file."""
    # Pillow warns from inside its own modules (EXIF it can't parse, suspicious sizes).
    # warnings.catch_warnings swaps a process-wide list and mustn't be used on threads, so the one narrow
    # filter stays; it is looked up at each call since a host or a test runner may have put others in front.
    if not warnings.filters or warnings.filters[0] != _PILLOW_FILTER:
        warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def pillow_errors(kind: str) -> Iterator[None]:
    """Translate what Pillow raises over a damaged file of this kind into `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        if kind not in ("file", "image"):
            raise ImageError(f"damaged {kind}: its header can't be read") from exc
        raise NotAnImageError("not an image in a format Pillow reads") from exc
    except Image.DecompressionBombError as exc:
        numbers = [f"{int(number):,}" for number in re.findall(r"\d+", str(exc))]
        size, limit = numbers if len(numbers) == 2 else ("too many", "Pillow's")
        raise TooLargeError(f"{size} pixels, more than the limit of {limit}") from exc
    except MemoryError as exc:
        raise ImageError("not enough memory to decode it") from exc
    except Exception as exc:
        # Broad on purpose: on damaged files the plugins raise OSError, SyntaxError, ValueError, struct.error,
        # zlib.error, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError and more.
        # One bad file must not end a run.
        if isinstance(exc, RuntimeError) and re.search("alloc(?!.*Security limit)", str(exc)):  # torch's, libheif's
            raise ImageError("not enough memory to decode it") from exc
        if isinstance(exc, OSError) and exc.errno:  # the disk's, not Pillow's
            raise ImageError(f"can't be read: {reason(exc)}") from exc
        if isinstance(exc, EOFError) or "truncated" in str(exc).lower():
            raise ImageError(f"truncated {kind}: the file ends before the picture does") from exc
        if "MAX_TEXT" in str(exc) or "Decompressed data too large" in str(exc):
            raise UnpackedTooLargeError(f"damaged {kind}: a text or a colour profile in it is too large") from exc
        raise ImageError(f"damaged {kind}: {_said(exc)}") from exc


def _said(exc: Exception) -> str:
    """Return what Pillow's error says of a damaged file, on one line."""
    text = str(exc)
    if "Security limit" in text:  # libheif's
        return "it asks for more than any picture needs"
    if type(exc) not in _SPEAKING or _UNSPEAKABLE.search(text):
        return _NO_SENSE
    text = re.sub(r" \(chunk .*|: .*", "", text, flags=re.DOTALL)  # drop quotes of the file's content
    text = " ".join(re.sub(r"\bb['\"]|['\"]", "", text).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200] or _NO_SENSE

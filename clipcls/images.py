"""From an image file to a decoded, corrected, upright picture; `clipcls.pixels` fits it to a model's input.

What open_clip's own transform gets silently wrong is corrected before it: EXIF orientation is applied,
palettes become colours before anything is resized, transparency is laid on white, 16-bit and float pictures
are scaled to 8 bits. Colour profiles (ICC) aren't applied; CLIP's training and open_clip don't either. Of
an animation or a multi-page file, the first frame counts. What a file is follows from its content, never
from its name.

Pillow reads every file's header and decodes most formats. Plain JPEGs are handed to simplejpeg, which calls the same
libjpeg-turbo without Pillow's copies (a fifth to a third quicker); whatever it finds odd goes back to Pillow.

Whatever is wrong with a file ends as an `ImageError` that doesn't name it: the caller knows its path.
"""

import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clipcls.errors import ImageError
from clipcls.geometry import Picture, as_image, placement
from clipcls.records import Decode, Preprocessing

try:
    import simplejpeg
except ImportError:  # there is no build of it for this Python or processor: Pillow decodes, more slowly
    simplejpeg = None

#: Pillow's own limit, above which it speaks of a decompression bomb: 537 MB of RGB.
MAX_PIXELS = 178_956_970

#: In the order in which they are tried. Left out are what needs a foreign program (EPS: Ghostscript, which
#: would run a file's code), what is no picture (MPEG, HDF5, GRIB) and what nobody has.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "ICNS", "CUR", "PPM", "PSD"),
    *("QOI", "DDS", "DIB", "PCX", "SGI", "SUN", "XBM", "XPM", "FITS", "TGA"),
)

_SIGNATURES = {
    rb"\xff\xd8\xff": "JPEG",
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"GIF8": "GIF",
    rb"RIFF....WEBP": "WEBP",
    rb"II\*\0|MM\0\*": "TIFF",
}

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


def decode_picture(
    source: Source, preprocessing: Preprocessing, decode: Decode = "fast", max_pixels: int = MAX_PIXELS
) -> Picture:
    """Decode one picture, correct it and turn it upright; safe to call from many threads.

    Args:
        source: a path, a file's bytes, or an open binary file (left open).
        preprocessing: what the picture will be fitted to; `fast` decodes a large JPEG at a reduced scale, never
            under twice the resized picture.
        decode: `exact` decodes in full, by Pillow.
        max_pixels: a picture with more is refused before it is decoded. A limit above Pillow's own raises
            Pillow's for the whole process.

    Raises:
        ImageError: whatever is wrong with the file.
    """
    with _opened(source) as file:
        return _decoded(file, preprocessing, decode, max_pixels)


def load_layers(source: Source, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture, corrected as for `load_pixels` and of at least twice the model's size, but whole.

    Returns:
        A picture in mode L or RGB, or in RGBA where the file has transparency, which isn't laid on white.

    Raises:
        ImageError: whatever is wrong with the file.
    """
    with _opened(source) as file:
        return as_image(_decoded(file, preprocessing, "fast", max_pixels, transparency=True).image)


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


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "special file")
        raise ImageError(f"not a regular file: {kind}")


# ---------------------------------------------------------------------------------------------------------
# Pillow's global state and its errors

# Where nobody listens to Pillow's log, Python would print its errors; each comes as an exception as well.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _prepare_pillow(max_pixels: int) -> None:
    # Pillow warns about odd files from inside its own modules (EXIF it can't parse, suspicious sizes).
    # warnings.catch_warnings swaps a process-wide list and mustn't be used on threads, so the one narrow
    # filter stays; it is looked up at each call since a host or a test runner may have put others in front.
    if not warnings.filters or warnings.filters[0] != _PILLOW_FILTER:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    limit = Image.MAX_IMAGE_PIXELS  # Pillow warns above it and refuses above twice as much
    if limit is not None and max_pixels > 2 * limit:
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2


@contextmanager
def pillow_errors(kind: str) -> Iterator[None]:
    """Translate what Pillow raises over a damaged file of this kind into `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        message = "not an image in a format Pillow reads"
        if kind in _SIGNATURES.values():
            message = f"damaged {kind}: its header can't be read"
        raise ImageError(message) from exc
    except Image.DecompressionBombError as exc:
        numbers = [f"{int(number):,}" for number in re.findall(r"\d+", str(exc))]
        size, limit = numbers if len(numbers) == 2 else ("too many", "Pillow's")
        raise ImageError(f"{size} pixels, more than the limit of {limit}") from exc
    except MemoryError as exc:
        raise ImageError("not enough memory to decode it") from exc
    except Exception as exc:
        # Broad on purpose: on damaged files the plugins raise OSError, SyntaxError, ValueError, struct.error,
        # zlib.error, EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError and more.
        # One bad file must not end a run.
        if isinstance(exc, OSError) and exc.errno:  # the disk's, not Pillow's
            raise ImageError(f"can't be read: {(exc.strerror or str(exc)).lower()}") from exc
        text = str(exc) or type(exc).__name__
        if isinstance(exc, EOFError) or "truncated" in text.lower():
            raise ImageError(f"truncated {kind}: the file ends before the picture does") from exc
        raise ImageError(f"damaged {kind}: {text}") from exc


# ---------------------------------------------------------------------------------------------------------
# Decoding


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """The source as a seekable file."""
    if isinstance(source, str | os.PathLike):
        with open_file(source) as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        with pillow_errors("file"):
            file = source if source.seekable() else io.BytesIO(source.read())
        yield file


def _decoded(
    file: BinaryIO, preprocessing: Preprocessing, decode: Decode, max_pixels: int, transparency: bool = False
) -> Picture:
    _prepare_pillow(max_pixels)
    with pillow_errors("file"):
        file.seek(0)
        head = file.read(16)
    if not head:
        raise ImageError("empty file")
    kind = next((name for start, name in _SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    with pillow_errors(kind or "image"):
        image = Image.open(file, formats=(kind,) if kind else _available_formats())
    with pillow_errors(image.format or "image"):
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"{width:,} × {height:,} pixels, more than the limit of {max_pixels:,}")
        if decode == "fast" and image.format in ("JPEG", "MPO"):
            return _decoded_jpeg(file, image, preprocessing)
        image.load()
        orientation = _orientation(image)
        upright = _turned(_to_eight_bits(image, transparency), orientation)
    return Picture(upright, upright.size, upright.size)


# ---------------------------------------------------------------------------------------------------------
# JPEG


def _decoded_jpeg(file: BinaryIO, image: Image.Image, preprocessing: Preprocessing) -> Picture:
    """Decode in full, or at 1/2, 1/4 or 1/8 where that leaves twice the pixels that resizing will leave."""
    width, height = image.size
    orientation = _orientation(image)
    turned = orientation >= 5
    across, down = placement((height, width) if turned else (width, height), preprocessing).resized
    least = (2 * down, 2 * across) if turned else (2 * across, 2 * down)
    scale = next((n for n in (8, 4, 2) if width >= n * least[0] and height >= n * least[1]), 1)
    picture: Image.Image | NDArray[np.uint8] | None = _by_simplejpeg(file, image, scale)
    if picture is None:
        if scale > 1:
            # rounded down: Pillow takes the largest scale that leaves as much, and itself rounds up
            image.draft(None, (width // scale, height // scale))
        image.load()
        picture = _to_eight_bits(image)
    if orientation == 1:
        return Picture(picture, (width, height), (width / scale, height / scale))
    upright = _turned(as_image(picture), orientation)
    size = (height, width) if turned else (width, height)
    extent = (size[0] / scale, size[1] / scale)
    # the stored picture's left and top may have become right and bottom
    left = upright.width - extent[0] if orientation in (2, 3, 6, 7) else 0.0
    top = upright.height - extent[1] if orientation in (3, 4, 7, 8) else 0.0
    return Picture(upright, size, extent, (left, top))


def _by_simplejpeg(file: BinaryIO, image: Image.Image, scale: int) -> NDArray[np.uint8] | None:
    """(height, width, 1 or 3) uint8; None for what is better left to Pillow, damaged files among it."""
    if simplejpeg is None or image.mode not in ("L", "RGB"):
        return None
    file.seek(0)
    data = file.read()
    width, height = (-(-side // scale) for side in image.size)
    reduced = scale > 1
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "GRAY" if image.mode == "L" else "RGB",
            fastdct=reduced,
            fastupsample=reduced,
            min_width=width if reduced else 0,
            min_height=height if reduced else 0,
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none that can be read."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001
        # A damaged EXIF block raises as many kinds of errors as a damaged picture; the pixels are still good.
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


# ---------------------------------------------------------------------------------------------------------
# Every mode to 8 bits, grey or RGB


def _to_eight_bits(image: Image.Image, transparency: bool = False) -> Image.Image:
    """Any mode to L or RGB, with transparency laid on white; to RGBA where there is some that is to be kept."""
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F"):
        return _from_range(image)
    if image.has_transparency_data:
        return _with_alpha(image) if transparency else _on_white(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # A 16-bit PNG: Pillow keeps the high byte of the pixels, and the whole of the transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = _with_alpha(image)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by its type's full range (65535 is white), so that a picture's brightness stays its own."""
    tags = getattr(image, "tag_v2", {})  # TIFF's, and unknown to Pillow: 12 bits in 16, and 0 for white
    full = 4095 if tags.get(258) == (12,) else 65535
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


def _from_range(image: Image.Image) -> Image.Image:
    """32-bit integers and floats to grey.

    Their types don't say what white is. PNM files of more than 8 bits are known to reach 65535; for others,
    values within 0 to 1 (floats), 0 to 255 or 0 to 65535 (integers) are taken as such, and all else is stretched
    from its own smallest to its own largest value. Infinities count as the ends of that range, NaN as its lower
    end.
    """
    values = np.array(image, np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("no pixel holds a finite number")
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if image.format == "PPM" and image.mode == "I":
        low, high = 0.0, 65535.0
    elif low >= 0:
        limits = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
        within = [limit for limit in limits if high <= limit]
        low, high = (0.0, within[0]) if within else (low, high)
    np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    values -= low
    values *= 255.0 / (high - low) if high > low else 0.0
    return Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))

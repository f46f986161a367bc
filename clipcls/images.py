"""From an image file to a decoded, corrected, upright picture; `clipcls.pixels` fits it to a model's input.

What open_clip's own transform gets silently wrong is corrected before it: EXIF orientation is applied,
palettes become colours before anything is resized, transparency is laid on white, 16-bit and float pictures
are scaled to 8 bits. Colour profiles (ICC) aren't applied; CLIP's training and open_clip don't either. Of
an animation or a multi-page file, the first frame counts. What a file is follows from its content, never
from its name.

Pillow reads every file's header and decodes most formats. Plain JPEGs are handed to simplejpeg, which calls the same
libjpeg-turbo without Pillow's copies (a fifth to a third quicker); whatever it finds odd goes back to Pillow. HEIC is
read by pillow-heif, where that is installed: the primary image, as the file itself turns it.

Whatever is wrong with a file ends as an `ImageError` that doesn't name it: the caller knows its path.
"""

import contextlib
import ctypes
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging, features

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
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"\x00\x00\x01\x00": "ICO",
}
_HEAD_BYTES = 256

# The container of HEIC and of AVIF files names its content in a list of brands, of which some fit both.
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_SHARED_BRANDS = frozenset((b"mif1", b"mif2", b"msf1", b"miaf"))

# A tile of a TIFF is unpacked whole, however little of it the picture shows; up to here that is no matter.
_USUAL_TILE = 4096**2

# Of the largest picture; smaller ones may have more. Encoders make ten, or a few more.
_MOST_SCANS = 16

# The markers of a JPEG that a frame, with its bits a colour, begins with.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

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
        if kind not in ("file", "image"):
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
        if isinstance(exc, RuntimeError) and re.search("alloc(?!.*Security limit)", str(exc)):  # torch's, libheif's
            raise ImageError("not enough memory to decode it") from exc
        if isinstance(exc, OSError) and exc.errno:  # the disk's, not Pillow's
            raise ImageError(f"can't be read: {(exc.strerror or str(exc)).lower()}") from exc
        if isinstance(exc, EOFError) or "truncated" in str(exc).lower():
            raise ImageError(f"truncated {kind}: the file ends before the picture does") from exc
        raise ImageError(f"damaged {kind}: {_said(exc)}") from exc


# Of these types Pillow's own errors are. Others, and some of these, come from Python and speak of its objects, or
# say no more than that a decoder failed.
_SPEAKING = (OSError, SyntaxError, ValueError, RuntimeError)
_UNSPEAKABLE = re.compile(
    r"\b(?:object|argument|unpack|tuple|list|dict|range|literal|codec|decoder|int|str|PIL|math)\b"
)
_NO_SENSE = "what it holds makes no sense"


def _said(exc: Exception) -> str:
    """What Pillow has to say of a damaged file, on one line."""
    text = str(exc)
    if "MAX_TEXT" in text:
        return "a text or a colour profile in it is too large when unpacked"
    if "Security limit" in text:  # libheif's
        return "it asks for more than any picture needs"
    if type(exc) not in _SPEAKING or _UNSPEAKABLE.search(text):
        return _NO_SENSE
    text = re.sub(r" \(chunk .*|: .*", "", text, flags=re.DOTALL)  # what is in the file instead
    text = " ".join(re.sub(r"\bb['\"]|['\"]", "", text).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200] or _NO_SENSE


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
        head = file.read(_HEAD_BYTES)
    if not head:
        raise ImageError("empty file")
    kind = _kind(head)
    with pillow_errors(kind or "image"):
        image = _header(file, kind, max_pixels)
    with pillow_errors(kind or image.format or "image"):
        _require_fitting(image, max_pixels)
        if image.format in ("JPEG", "MPO"):
            _require_few_scans(file, image, max_pixels)
            if decode == "fast":
                return _decoded_jpeg(file, image, preprocessing)
        _fit_transparent_colour(image)
        image.load()
        _require_fitting(image, max_pixels)  # what an ICNS file holds may be larger than what it says
        orientation = _orientation(image)
        upright = _turned(_to_eight_bits(image, transparency), orientation)
    return Picture(upright, upright.size, upright.size)


def _kind(head: bytes) -> str | None:
    """The format, where a file's first bytes leave no doubt."""
    if head[4:8] != b"ftyp":
        return next((name for start, name in _SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = (head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4)))  # the first one counts most
    for brand in brands:
        if brand in _HEIC_BRANDS or brand in _AVIF_BRANDS:
            return "HEIC" if brand in _HEIC_BRANDS else "AVIF"
    return "HEIC" if brands[0] in _SHARED_BRANDS else None


def _header(file: BinaryIO, kind: str | None, max_pixels: int) -> ImageFile.ImageFile:
    """The picture before it is decoded."""
    if kind == "HEIC":
        file.seek(0)
        return _heic_opener()(file)
    if kind == "AVIF" and not features.check("avif"):
        raise ImageError("AVIF needs Pillow 11.3 or newer, built with it: pip install --upgrade pillow")
    if kind == "TIFF":
        _silence_libtiff()
    if kind == "ICO":
        _require_fitting_icons(file, max_pixels)
    try:
        return Image.open(file, formats=(kind,) if kind else _available_formats())
    except UnidentifiedImageError as exc:
        bits = _jpeg_bits(file) if kind == "JPEG" else 8
        if bits == 8:
            raise
        raise ImageError(f"a JPEG of {bits} bits a colour, which Pillow doesn't read") from exc


@cache
def _heic_opener() -> Callable[[BinaryIO], ImageFile.ImageFile]:
    try:
        import pillow_heif
    except ImportError as exc:
        raise ImageError("HEIC needs the package pillow-heif: pip install 'clipcls[heic]'") from exc
    # Not registered with Pillow, which would change what a host's Image.open does. Pictures are decoded on
    # threads as it is, so none are started for a picture's tiles.
    options = pillow_heif.options
    options.DECODE_THREADS, options.THUMBNAILS, options.DEPTH_IMAGES, options.AUX_IMAGES = 0, False, False, False
    opener: Callable[[BinaryIO], ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return opener


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing on the process's standard error what Pillow also raises as an exception."""
    # On Windows libtiff is inside Pillow's own library, and can't be reached.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler  # in a library that Pillow's is linked to
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _jpeg_bits(file: BinaryIO) -> int:
    """Bits a colour by the header of a JPEG; 8 where it isn't found."""
    file.seek(2)
    while len(segment := file.read(4)) == 4 and segment[0] == 0xFF:
        if segment[1] in _JPEG_FRAMES:
            return (file.read(1) or b"\x08")[0]
        file.seek(int.from_bytes(segment[2:], "big") - 2, os.SEEK_CUR)
    return 8


# ---------------------------------------------------------------------------------------------------------
# Limits


def _require_fitting(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{width:,} × {height:,} pixels, more than the limit of {max_pixels:,}")
    tags = getattr(image, "tag_v2", {})
    across, down = tags.get(322), tags.get(323)
    if isinstance(across, int) and isinstance(down, int) and across * down > max(max_pixels, _USUAL_TILE):
        raise ImageError(f"tiles of {across:,} × {down:,} pixels, more than the limit of {max_pixels:,}")


def _require_few_scans(file: BinaryIO, image: Image.Image, max_pixels: int) -> None:
    """Every scan of a JPEG, of a dozen bytes perhaps, costs the time of going through all of its pixels.

    Args:
        file: where Pillow left it, behind the header of the first scan.
    """
    layers = getattr(image, "layers", 0)
    whole = bytes((0xFF, 0xDA, 0, 6 + 2 * layers, layers))  # a scan of all layers: in a plain JPEG the only one
    file.seek(max(0, file.tell() - 8 - 2 * layers))
    if file.read(len(whole)) == whole and not image.info.get("progressive"):
        return
    file.seek(0)
    scans, (width, height) = file.read().count(b"\xff\xda"), image.size
    if scans * width * height > _MOST_SCANS * max(max_pixels, MAX_PIXELS):
        raise ImageError(f"{scans:,} scans of {width:,} × {height:,} pixels, more than any picture needs")


def _require_fitting_icons(file: BinaryIO, max_pixels: int) -> None:
    """Look at the sizes of the pictures in an icon, of which Pillow decodes one as soon as it opens the file."""
    file.seek(4)
    directory = file.read(16 * int.from_bytes(file.read(2), "little"))
    for entry in range(0, len(directory) - 15, 16):
        file.seek(int.from_bytes(directory[entry + 12 : entry + 16], "little"))
        head = file.read(24)
        if head.startswith(b"\x89PNG"):
            width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        else:  # a bitmap, and as many rows of its mask
            width = int.from_bytes(head[4:8], "little", signed=True)
            height = int.from_bytes(head[8:12], "little", signed=True) // 2
        if abs(width * height) > max_pixels:
            raise ImageError(f"{abs(width):,} × {abs(height):,} pixels, more than the limit of {max_pixels:,}")


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
    if image.format == "HEIF":
        return 1  # a HEIC file has its own, which libheif applies; what its EXIF says is no more than a note
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
        return image.convert("RGBA") if transparency else _on_white(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _fit_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Bring the colour that a PNG declares transparent to the depth that Pillow gives its pixels, 8 bits mostly.

    Source: PNG specification, third edition, 11.3.1.1: of a colour's two bytes as many bits count as a sample has.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or not image.tile or isinstance(colour, bytes):
        return
    samples = image.tile[0][3]  # as they are in the file
    if isinstance(colour, tuple):
        wide = samples == "RGB;16B"  # of which Pillow keeps the high byte
        image.info["transparency"] = tuple(value >> 8 if wide else value & 255 for value in colour)
    elif isinstance(colour, int) and samples in ("L", "L;2", "L;4"):
        most = {"L": 255, "L;2": 3, "L;4": 15}[samples]
        image.info["transparency"] = (colour & most) * (255 // most)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
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
    with np.errstate(invalid="ignore"):  # there are NaNs that even a conversion complains of
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

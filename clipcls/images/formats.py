"""Read a picture's header by Pillow, or by pillow-heif if it is HEIC."""

import contextlib
import ctypes
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging, features

from clipcls.errors import ImageError
from clipcls.images.jpeg import bits_per_colour
from clipcls.images.limits import require_fitting_icons

#: Pillow's formats in the order in which they are tried. Left out are those that need another program (EPS:
#: Ghostscript, which would run a file's code), that hold no picture (MPEG, HDF5, GRIB) or that nobody has.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "ICNS", "CUR", "PPM", "PSD"),
    *("QOI", "DDS", "DIB", "PCX", "SGI", "SUN", "XBM", "XPM", "FITS", "TGA"),
)

# a TIFF's tag of what its samples are
_SAMPLE_KINDS = {
    1: "integers",
    2: "signed integers",
    3: "floats",
    4: "undefined data",
    5: "complex integers",
    6: "complex",
}
# a TIFF's tag of what its channels are
_COLOURS = {0: "grey, 0 is white", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
# what Pillow says of sound TIFFs that it lacks
_UNKNOWN = ("unknown pixel mode", "unknown data organization", "Invalid value for samples per pixel")
_libtiff_lock = Lock()


def open_header(file: BinaryIO, kind: str | None, max_pixels: int) -> ImageFile.ImageFile:
    """Read a file's header; an icon is decoded, too.

    Args:
        kind: the format by `kind_of`.

    Returns:
        The picture before it is decoded.

    Raises:
        ImageError: the format needs a library that is missing, Pillow can't read the file, or an icon is too large.
    """
    if kind == "HEIC":
        file.seek(0)
        return _heic_opener()(file)
    if kind == "AVIF" and not features.check("avif"):
        raise ImageError("AVIF needs Pillow 11.3 or newer, built with it: pip install --upgrade pillow")
    if kind == "TIFF":
        _silence_libtiff()
        return _open_tiff(file)
    if kind == "ICO":
        require_fitting_icons(file, max_pixels)
    try:
        return Image.open(file, formats=(kind,) if kind else _available_formats())
    except UnidentifiedImageError as exc:
        bits = bits_per_colour(file) if kind == "JPEG" else 8
        if bits == 8:
            raise
        raise ImageError(f"a JPEG of {bits} bits a colour, which Pillow doesn't read") from exc


def _open_tiff(file: BinaryIO) -> ImageFile.ImageFile:
    try:
        image = Image.open(file, formats=("TIFF",))
    except UnidentifiedImageError as exc:
        if layout := _unread_layout(file):
            raise ImageError(f"a TIFF of {layout}, which Pillow doesn't read") from exc
        raise
    tags = getattr(image, "tag_v2", {})
    if tags.get(284) != 2:
        return image
    if image.mode == "LA":
        raise ImageError("a TIFF whose transparency is a plane of its own, which Pillow doesn't read")
    if image.tile and image.tile[0][0] == "raw":
        # Pillow's own reader takes planes for 8 bits a channel, libtiff doesn't; the switch is the process's, but
        # whoever opens a TIFF meanwhile gets the same pixels
        with _libtiff_lock:
            before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
            try:
                return Image.open(file, formats=("TIFF",))
            finally:
                TiffImagePlugin.READ_LIBTIFF = before
    return image


def _unread_layout(file: BinaryIO) -> str | None:
    """Describe the pixels of a TIFF that is sound but of a kind that Pillow lacks; None for any other."""
    try:
        file.seek(0)
        TiffImagePlugin.TiffImageFile(file)
    except SyntaxError as exc:
        if str(exc) not in _UNKNOWN:
            return None
    except (OSError, ValueError):
        return None
    file.seek(0)
    header = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(header + (file.read(8) if b"+" in header[2:4] else b""))
    file.seek(tags.next)
    tags.load(file)
    bits, colours = tags.get(258, (1,)), tags.get(262, 0)
    samples = max(len(bits), tags.get(277, 1))
    kind = _SAMPLE_KINDS.get(tags.get(339, (1,))[0], "data of an unknown kind")
    what = _COLOURS.get(colours, f"colours of type {colours}")
    return f"{samples} channel{'s' * (samples > 1)} of {bits[0]}-bit {kind} ({what})"


def _available_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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

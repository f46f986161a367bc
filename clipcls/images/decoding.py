"""Decode a picture: read its header, check its size, decode it, correct it, turn it upright."""

from typing import BinaryIO

from PIL import Image

from clipcls.errors import ImageError
from clipcls.images.colour import to_eight_bits
from clipcls.images.formats import open_header
from clipcls.images.geometry import Picture, as_image
from clipcls.images.jpeg import decode_jpeg
from clipcls.images.limits import MAX_PIXELS, raise_pillows_limit, require_few_scans, require_fitting
from clipcls.images.orientation import orientation_of, turn_upright
from clipcls.images.pillow_errors import UnpackedTooLargeError, pillow_errors, silence_pillow
from clipcls.images.png import fit_transparent_colour, without_texts
from clipcls.images.sources import Source, open_source
from clipcls.inputs.signatures import HEAD_BYTES, kind_of
from clipcls.records import Decode, Preprocessing

#: Part of the cache key of features; raise it whenever some file's pixels come out differently.
DECODER_VERSION = 6


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
        ImageError: the file can't be read or decoded, or is refused.
    """
    with open_source(source) as file:
        return _decoded(file, preprocessing, decode, max_pixels)


def load_layers(source: Source, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one picture and correct it as `load_pixels` does, without fitting it to the model's input.

    Returns:
        The whole picture in mode L or RGB, or in RGBA where the file has transparency, which isn't laid on white; a
        large JPEG at a reduced scale, never under twice the resized picture.

    Raises:
        ImageError: the file can't be read or decoded, or is refused.
    """
    with open_source(source) as file:
        return as_image(_decoded(file, preprocessing, "fast", max_pixels, transparency=True).image)


def _decoded(
    file: BinaryIO, preprocessing: Preprocessing, decode: Decode, max_pixels: int, transparency: bool = False
) -> Picture:
    silence_pillow()
    raise_pillows_limit(max_pixels)
    with pillow_errors("file"):
        file.seek(0)
        head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError("empty file")
    kind = kind_of(head)
    sources = [file]
    while True:
        try:
            return _picture(sources[-1], kind, preprocessing, decode, max_pixels, transparency)
        except UnpackedTooLargeError:
            if kind != "PNG" or len(sources) == 3:
                raise
            sources.append(without_texts(file, keep_orientation=len(sources) == 1))


def _picture(
    file: BinaryIO, kind: str | None, preprocessing: Preprocessing, decode: Decode, max_pixels: int, transparency: bool
) -> Picture:
    with pillow_errors(kind or "image"):
        image = open_header(file, kind, max_pixels)
    with pillow_errors(kind or image.format or "image"):
        require_fitting(image, max_pixels)
        if image.format in ("JPEG", "MPO"):
            require_few_scans(file, image, max_pixels)
            if decode == "fast":
                return decode_jpeg(file, image, preprocessing)
        fit_transparent_colour(image)
        image.load()
        require_fitting(image, max_pixels)  # an ICNS file may hold a larger picture than its header says
        orientation = orientation_of(image)
        upright = turn_upright(to_eight_bits(image, transparency), orientation)
    return Picture(upright, upright.size, upright.size)

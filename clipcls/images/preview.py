"""Make a picture small, to be shown on a page."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.images.decoding import decode_picture
from clipcls.images.geometry import Picture, as_image, placement
from clipcls.images.limits import MAX_PIXELS
from clipcls.images.pillow_errors import pillow_errors
from clipcls.images.resizing import resize_quickly
from clipcls.images.sources import Source
from clipcls.records import Preprocessing

#: The longest side of a preview, in pixels.
PREVIEW_SIDE = 160
_QUALITY = 76

Pixels = NDArray[np.uint8]


def make_preview(source: Source | Pixels, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return a WebP of the whole picture, upright, on white where it is transparent; a small one keeps its size.

    Args:
        source: a path, a file's bytes, or an open binary file (left open); or pixels, (height, width, 3) uint8.
        max_pixels: a picture with more is refused before it is decoded.

    Raises:
        ImageError: the file can't be read or decoded, or is refused.
    """
    if isinstance(source, np.ndarray):
        size = source.shape[1], source.shape[0]
        picture = Picture(source, size, size)
    else:
        picture = decode_picture(source, _within(PREVIEW_SIDE), max_pixels=max_pixels)
    place = placement(picture.size, _within(min(PREVIEW_SIDE, max(picture.size))))
    content = io.BytesIO()
    with pillow_errors("image"):
        small = as_image(resize_quickly(picture, place, Image.Resampling.BICUBIC))
        small.convert("RGB").save(content, "WEBP", quality=_QUALITY, method=4)
    return content.getvalue()


def _within(side: int) -> Preprocessing:
    return Preprocessing((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "longest")

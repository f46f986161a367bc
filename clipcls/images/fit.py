"""Turn an image file into the pixels that a model takes."""

import numpy as np
from numpy.typing import NDArray

from clipcls.images.decoding import decode_picture
from clipcls.images.geometry import Picture, pad, placement, resampling
from clipcls.images.limits import MAX_PIXELS
from clipcls.images.pillow_errors import pillow_errors
from clipcls.images.resizing import resize_exactly, resize_quickly
from clipcls.images.sources import Source
from clipcls.records import Decode, Preprocessing


def load_pixels(
    source: Source,
    preprocessing: Preprocessing,
    decode: Decode = "fast",
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode one picture and fit it to the model's input; safe to call from many threads.

    Args:
        source: a path, a file's bytes, or an open binary file (left open).
        decode: `exact` gives open_clip's own pixels of an RGB or grey picture, bit for bit, after the corrections.
            Others are converted to RGB before they are resized; open_clip resizes first, and Pillow does that to
            palettes and to single bits without smoothing. `fast` lets a large JPEG be decoded at a reduced scale, never
            under twice the resized picture.
        max_pixels: a picture with more is refused before it is decoded.

    Returns:
        (height, width, 3) uint8 RGB, to be divided by 255 and normalised with the preprocessing's mean, std.

    Raises:
        ImageError: the file can't be read or decoded, or is refused.
    """
    return fit(decode_picture(source, preprocessing, decode, max_pixels), preprocessing, decode)


def fit(picture: Picture, preprocessing: Preprocessing, decode: Decode = "fast") -> NDArray[np.uint8]:
    """Fit a decoded picture to the model's input; see `load_pixels`."""
    place = placement(picture.size, preprocessing)
    resize = resize_exactly if decode == "exact" else resize_quickly
    with pillow_errors("image"):
        return pad(resize(picture, place, resampling(preprocessing)), place, preprocessing)

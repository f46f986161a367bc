"""Decode JPEGs at the scale that a model has use for, plain ones by simplejpeg.

It calls the same libjpeg-turbo as Pillow without Pillow's copies (a fifth to a third quicker). Pillow decodes the rest.
"""

import os
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.images.colour import to_eight_bits
from clipcls.images.geometry import Picture, as_image, placement
from clipcls.images.orientation import orientation_of, turn_upright
from clipcls.records import Preprocessing

try:
    import simplejpeg
except ImportError:  # there is no build of it for this Python or processor: Pillow decodes, more slowly
    simplejpeg = None

# The markers that begin a JPEG's frame header, which has its bits a colour.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_jpeg(file: BinaryIO, image: Image.Image, preprocessing: Preprocessing) -> Picture:
    """Decode at 1/8, 1/4 or 1/2 where that leaves each side at least twice its resized length, else in full."""
    width, height = image.size
    orientation = orientation_of(image)
    turned = orientation >= 5
    across, down = placement((height, width) if turned else (width, height), preprocessing).resized
    least = (2 * down, 2 * across) if turned else (2 * across, 2 * down)
    scale = next((n for n in (8, 4, 2) if width >= n * least[0] and height >= n * least[1]), 1)
    picture: Image.Image | NDArray[np.uint8] | None = _by_simplejpeg(file, image, scale)
    if picture is None:
        if scale > 1:
            # rounded down: Pillow reduces as far as leaves at least this size, and itself rounds up
            image.draft(None, (width // scale, height // scale))
        image.load()
        picture = to_eight_bits(image)
    if orientation == 1:
        return Picture(picture, (width, height), (width / scale, height / scale))
    upright = turn_upright(as_image(picture), orientation)
    size = (height, width) if turned else (width, height)
    extent = (size[0] / scale, size[1] / scale)
    # the stored picture's left and top may have become right and bottom
    left = upright.width - extent[0] if orientation in (2, 3, 6, 7) else 0.0
    top = upright.height - extent[1] if orientation in (3, 4, 7, 8) else 0.0
    return Picture(upright, size, extent, (left, top))


def _by_simplejpeg(file: BinaryIO, image: Image.Image, scale: int) -> NDArray[np.uint8] | None:
    """Decode to (height, width, 1 or 3) uint8; None for files that are left to Pillow, such as damaged ones."""
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


def bits_per_colour(file: BinaryIO) -> int:
    """Read the bits a colour from a JPEG's frame header; 8 where there is none."""
    file.seek(2)
    while len(segment := file.read(4)) == 4 and segment[0] == 0xFF:
        if segment[1] in _JPEG_FRAMES:
            return (file.read(1) or b"\x08")[0]
        file.seek(int.from_bytes(segment[2:], "big") - 2, os.SEEK_CUR)
    return 8

"""Resize what the model's window shows of a decoded picture.

`resize_exactly` resizes as open_clip does. `resize_quickly` hands pictures to cykooz-resizer, which has Pillow's
filters in vector instructions: it is four times as fast, and off by one or two grey levels in one value of seven.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.images.geometry import Picture, Placement, as_image, shown_box

try:
    import cykooz_resizer
except ImportError:  # there is no build of it for this Python or processor: Pillow resizes, more slowly
    cykooz_resizer = None

_MAX_RESIZED = 2**26  # in exact mode, a resized picture with more pixels is never built whole

# Pillow first averages a larger picture down to so many times its new size, which turns fine lines to moiré. Cosines
# with exact pixels, at worst: of photographs 0.99999 at 3 and 0.99998 at 2, of lines 0.996 and 0.980.
_REDUCING_GAP = 3.0

# Rows that are copied for cykooz-resizer at a time. Memory for a copy of a whole picture is had from the system anew,
# which takes longer than to resize it: five times as long for 4000 × 3000.
_STRIP = 128


def resize_exactly(picture: Picture, place: Placement, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Resize and crop with Pillow as open_clip's transform does, bit for bit.

    A resized picture that is too large to be built, most of which would be cut away again (a strip of 1 × 5000 becomes
    224 × 1,120,000), is resized in one step instead.
    """
    if place.resized[0] * place.resized[1] > _MAX_RESIZED:
        return resize_in_one_step(picture, place, resampling)
    return _as_array(as_image(picture.image).resize(place.resized, resampling).crop(place.shown))


def resize_in_one_step(picture: Picture, place: Placement, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Resize with Pillow only what the window shows, straight from the decoded picture."""
    left, top, right, bottom = place.shown
    box = shown_box(picture, place)
    resized = as_image(picture.image).resize((right - left, bottom - top), resampling, box, _REDUCING_GAP)
    return _as_array(resized)


def resize_quickly(picture: Picture, place: Placement, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Resize with cykooz-resizer only what the window shows; with Pillow where that has to do."""
    if cykooz_resizer is None or place.is_wasteful:
        return resize_in_one_step(picture, place, resampling)
    left, top, right, bottom = place.shown
    x, y, end_x, end_y = shown_box(picture, place)
    width = right - left
    # Across before down, as Pillow does it. In one call it is the other way round, and one value in six is off.
    narrow = [
        _resized(strip, (width, len(strip)), (x, 0, end_x - x, len(strip)), resampling)
        for strip in _strips(picture.image)
    ]
    return _resized(np.concatenate(narrow), (width, bottom - top), (0, y, width, end_y - y), resampling).copy()


def _strips(image: Image.Image | NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield some rows at a time of a picture, (rows, width, 1 or 3)."""
    if isinstance(image, np.ndarray):
        yield from (image[row : row + _STRIP] for row in range(0, len(image), _STRIP))
    else:
        for row in range(0, image.height, _STRIP):
            yield np.atleast_3d(np.asarray(image.crop((0, row, image.width, min(row + _STRIP, image.height)))))


def _resized(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    resampling: Image.Resampling,
) -> NDArray[np.uint8]:
    """Resize the box, left, top, width and height, of (height, width, 1 or 3) to a width and a height."""
    height, width, channels = pixels.shape
    kind = cykooz_resizer.PixelType.U8 if channels == 1 else cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    target = cykooz_resizer.ImageData(*size, kind)
    filters = cykooz_resizer.FilterType
    chosen = filters.catmull_rom if resampling is Image.Resampling.BICUBIC else filters.bilinear
    method = cykooz_resizer.ResizeAlg.convolution(chosen)
    options = cykooz_resizer.ResizeOptions(method, crop_box=cykooz_resizer.CropBox(*box))
    # a resizer of its own: it is locked while it resizes
    cykooz_resizer.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size[1], size[0], channels)


def _as_array(image: Image.Image) -> NDArray[np.uint8]:
    return np.atleast_3d(np.array(image))  # array, not asarray: torch wants it writable

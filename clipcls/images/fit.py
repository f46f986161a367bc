"""Turn an image file into the pixels that a model takes.

`exact` resizes with Pillow as open_clip's transform does. `fast` resizes with torch, whose antialiased resize of 8-bit
pictures has the same filters in vector instructions: on AVX2 three to four times as fast, and off by one or two grey
levels in one of some two hundred values.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from clipcls.images.decoding import decode_picture
from clipcls.images.geometry import Picture, Placement, fit_exactly, fit_in_one_step, placement, resampling
from clipcls.images.limits import MAX_PIXELS
from clipcls.images.pillow_errors import pillow_errors
from clipcls.images.sources import Source
from clipcls.records import Decode, Preprocessing

# resize at most so many times the window's pixels: most of a very long or tall picture would be cut away again
_MAX_WASTE = 3
_UPWARDS = 1 + 1e-9


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
    with pillow_errors("image"):
        if decode == "exact":
            fitted = fit_exactly(picture, preprocessing)
            if fitted is not None:
                return np.array(fitted.convert("RGB"))  # array, not asarray: torch wants it writable
        # without vector instructions, torch gets a width of one pixel wrong
        elif place.resized[0] > 1 and np.prod(place.resized) <= _MAX_WASTE * np.prod(place.window):
            return _fit_fast(picture, place, preprocessing)
        return np.array(fit_in_one_step(picture, preprocessing).convert("RGB"))


def _fit_fast(picture: Picture, place: Placement, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    # array, not asarray: torch warns of Pillow's read-only memory
    pixels = picture.image if isinstance(picture.image, np.ndarray) else np.array(picture.image)
    # torch resizes from the array's first pixel: an axis along which the picture begins later is flipped meanwhile
    reversed_axes = tuple(axis for axis, start in enumerate(picture.origin[::-1]) if start)
    pixels = np.ascontiguousarray(np.flip(pixels, reversed_axes)) if reversed_axes else pixels
    resized = _resized(pixels, picture.extent, place.resized, resampling(preprocessing).name.lower())
    resized = np.ascontiguousarray(np.flip(resized, reversed_axes)) if reversed_axes else resized
    (width, height), (left, top) = place.window, place.corner
    shown = resized[max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width]
    if shown.shape[:2] == (height, width):
        return np.ascontiguousarray(shown)  # a copy, which frees the pixels that were cut away
    fill = preprocessing.fill_color if preprocessing.resize_mode == "longest" else 0
    window = np.full((height, width, 3), fill, dtype=np.uint8)
    down, across = max(0, -top), max(0, -left)
    window[down : down + shown.shape[0], across : across + shown.shape[1]] = shown
    return window


def _resized(
    pixels: NDArray[np.uint8], extent: tuple[float, float], size: tuple[int, int], mode: str
) -> NDArray[np.uint8]:
    """Resize the part of (height, width[, 1 or 3]) that shows the picture to (size[1], size[0], 3)."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if extent != size:
        batch = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)  # NHWC -> NCHW, in name only
        if extent == (batch.shape[3], batch.shape[2]):
            resized = interpolate(batch, size=size[::-1], mode=mode, antialias=True)
        else:
            # torch rounds the size down: the last pixels, of which the picture has a part, make up less than one
            # half. The factor is a little more than the quotient, since 522 * (249 / 522) comes to less than 249
            scale = (size[1] / extent[1] * _UPWARDS, size[0] / extent[0] * _UPWARDS)
            resized = interpolate(batch, scale_factor=scale, mode=mode, antialias=True)
        pixels = resized[0].permute(1, 2, 0).numpy()
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

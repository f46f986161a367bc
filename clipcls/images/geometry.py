"""Fit a decoded picture to the model's window, rounding as open_clip (torchvision and timm) does."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.records import Preprocessing

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_RESIZED = 2**26  # in exact mode, a resized picture with more pixels is never built whole


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright, grey or RGB.

    Attributes:
        image: a picture in mode L or RGB, or (height, width, 1 or 3) uint8.
        size: width and height at the file's full scale.
        extent: width and height of the part of `image` that shows the picture (reduced decoding rounds up).
        origin: left and top of that part; above 0 where turning the picture moved the rounded-up edge there.
    """

    image: Image.Image | NDArray[np.uint8]
    size: tuple[int, int]
    extent: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the model's window lies on the resized picture.

    Attributes:
        resized: width and height of the whole picture after resizing.
        corner: left and top of the window on it; negative where the window is the wider of the two.
        window: width and height of the model's input.
    """

    resized: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[int, int]


def placement(size: tuple[int, int], preprocessing: Preprocessing) -> Placement:
    """Return where the model's window lies on a picture of this width and height."""
    window = preprocessing.size[::-1]
    resized = _resized(size, preprocessing)
    corner = (_corner(resized[0], window[0]), _corner(resized[1], window[1]))
    return Placement(resized, corner, window)


def _resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height after resizing, rounded as by open_clip's transform."""
    (width, height), (target_height, target_width) = size, preprocessing.size
    if preprocessing.resize_mode == "squash":
        return target_width, target_height
    if preprocessing.resize_mode == "shortest" and target_width == target_height:  # torchvision's Resize(int)
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_width * width / height), target_width
    ratios = (height / target_height, width / target_width)  # open_clip's ResizeKeepRatio, from timm
    ratio = max(ratios) if preprocessing.resize_mode == "longest" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))  # at 0, open_clip's would fail


def _corner(resized: int, window: int) -> int:
    """Return the window's offset by torchvision's center_crop: halves round to even in a crop, down in padding."""
    return -((window - resized) // 2) if window > resized else round((resized - window) / 2.0)


def resampling(preprocessing: Preprocessing) -> Image.Resampling:
    """Return the filter to resize with."""
    # open_clip drops the interpolation when it resizes by the shortest side to a window that isn't square
    odd = preprocessing.resize_mode == "shortest" and preprocessing.size[0] != preprocessing.size[1]
    return _RESAMPLING["bicubic" if odd else preprocessing.interpolation]


def as_image(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """Return the picture as one of Pillow's, in mode L or RGB."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def fit_exactly(picture: Picture, preprocessing: Preprocessing) -> Image.Image | None:
    """Resize and crop with Pillow as open_clip's transform does, bit for bit.

    Returns:
        The window; None where the resized picture, most of which would be cut away again, is too large to be built
        (a strip of 1 × 5000 becomes 224 × 1,120,000), and `fit_in_one_step` has to do.
    """
    place = placement(picture.size, preprocessing)
    if place.resized[0] * place.resized[1] > _MAX_RESIZED:
        return None
    resized = as_image(picture.image).resize(place.resized, resampling(preprocessing))
    left, top = place.corner
    if resized.width < place.window[0] or resized.height < place.window[1]:
        return _padded(resized, place, preprocessing)
    return resized.crop((left, top, left + place.window[0], top + place.window[1]))


def fit_in_one_step(picture: Picture, preprocessing: Preprocessing) -> Image.Image:
    """Resize only what the window shows, straight from the decoded picture."""
    place = placement(picture.size, preprocessing)
    left, top = max(0, place.corner[0]), max(0, place.corner[1])
    width, height = min(place.window[0], place.resized[0]), min(place.window[1], place.resized[1])
    image = as_image(picture.image)
    across, down = picture.extent[0] / place.resized[0], picture.extent[1] / place.resized[1]
    x, y = picture.origin[0] + left * across, picture.origin[1] + top * down
    box = (x, y, min(x + width * across, image.width), min(y + height * down, image.height))
    # reducing_gap: pictures over six times too large are first averaged down to three times the size
    resized = image.resize((width, height), resampling(preprocessing), box, reducing_gap=3.0)
    return resized if (width, height) == place.window else _padded(resized, place, preprocessing)


def _padded(image: Image.Image, place: Placement, preprocessing: Preprocessing) -> Image.Image:
    fill = preprocessing.fill_color if preprocessing.resize_mode == "longest" else 0
    canvas = Image.new(image.mode, place.window, (fill,) * len(image.getbands()))
    canvas.paste(image, (max(0, -place.corner[0]), max(0, -place.corner[1])))
    return canvas

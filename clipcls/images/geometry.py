"""Place the model's window on a resized picture, rounding as open_clip (torchvision and timm) does."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcls.records import Preprocessing

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# resize at most so many times the window's pixels: most of a very long or tall picture would be cut away again
_MAX_WASTE = 3


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

    @property
    def shown(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what the window shows of the resized picture."""
        left, top = max(0, self.corner[0]), max(0, self.corner[1])
        return left, top, min(left + self.window[0], self.resized[0]), min(top + self.window[1], self.resized[1])

    @property
    def is_wasteful(self) -> bool:
        """Whether most of the resized picture lies outside the window."""
        return self.resized[0] * self.resized[1] > _MAX_WASTE * self.window[0] * self.window[1]


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


def shown_box(picture: Picture, place: Placement) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what the window shows, on the decoded picture."""
    left, top, right, bottom = place.shown
    across, down = picture.extent[0] / place.resized[0], picture.extent[1] / place.resized[1]
    x, y = picture.origin[0] + left * across, picture.origin[1] + top * down
    # the last pixel's edge may be rounded to a little outside the picture
    end = (picture.origin[0] + picture.extent[0], picture.origin[1] + picture.extent[1])
    return x, y, min(x + (right - left) * across, end[0]), min(y + (bottom - top) * down, end[1])


def pad(shown: NDArray[np.uint8], place: Placement, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Put what the window shows, (height, width, 1 or 3), into the whole window: (height, width, 3), grey as RGB."""
    width, height = place.window
    if shown.shape == (height, width, 3):
        return shown
    fill = preprocessing.fill_color if preprocessing.resize_mode == "longest" else 0
    window = np.full((height, width, 3), fill, np.uint8)
    across, down = max(0, -place.corner[0]), max(0, -place.corner[1])
    window[down : down + shown.shape[0], across : across + shown.shape[1]] = shown
    return window

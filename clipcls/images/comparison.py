"""Tell by their pixels whether two pictures are one: re-encoded, resized, or cut a little.

Features can't: to a model, the next frame of a burst is as near as a copy in JPEG. So both pictures, squeezed into a
square, are laid over one another, a little scaled and shifted, until they fit best. A copy then lies within the other
picture without a turn, and agrees in every block of it; between two frames, the camera or something before it has
moved. A mirrored or turned picture, one in grey, or one with a text written over it isn't the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from clipcls.images.decoding import decode_picture
from clipcls.images.fit import fit
from clipcls.images.limits import MAX_PIXELS
from clipcls.images.sources import Source
from clipcls.records import Preprocessing

Plane = NDArray[np.floating[Any]]
Affine = NDArray[np.float64]
Outline = NDArray[np.float32]

# pixels across and down; lines of print on a page are still apart
SIDE = 256
_SQUARE = Preprocessing((SIDE, SIDE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "squash")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_COARSEST = 32
# a picture isn't compared in more pixels than so many times its own
_MOST_ENLARGED = 1.5
# how much of the other picture's width and height a copy shows, in pixels of the coarsest square: four fifths or more
_EXTENTS = (32, 30, 29, 27, 26)
# lower, nothing fits well enough to go on: copies had at least 0.86
_LEAST_CORRELATION = 0.7
_STEPS = 8
_BLOCK = 16  # pixels; 8 in smaller squares
# a block has detail from this deviation on, in grey levels of 255; a picture with fewer such blocks can't be compared
_DETAIL, _FEWEST_DETAILED = 8.0, 4
# Limits of what a copy differs by; measured on 120 photographs, as `tests/benchmarks/duplicates.py` changes them.
_MOST_TURN = 0.3  # degrees: copies up to 0.11, frames turned by 0.4 to 1 degree from 0.5
_MOST_OUTSIDE = 0.01  # of a side: copies up to 0.004, frames shifted by 1 to 4 % from 0.015
_MOST_DETAIL = 0.7  # of a block's own deviation: 98 % of copies up to 0.53, with something moved from 0.86
_MOST_COLOUR = 16.0  # grey levels, in a block: copies up to 14, 98 % of pictures turned grey from 22
_MOST_TONE = 3.0  # grey levels, of the whole: copies up to 1.5, pictures lighter or darker by 15 % from 7.6
# pixels across and down of an outline, and the least correlation of two that are compared: of copies 0.49
_OUTLINE, _LEAST_RESEMBLANCE = 8, 0.4


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What is kept of a picture to compare it.

    Attributes:
        pixels: (SIDE, SIDE, 3) uint8, the whole picture, upright, squeezed into a square.
        size: width and height of the picture.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PixelDifference:
    """What two pictures differ by, once one is laid over the other.

    Attributes:
        turn: the angle that one has to be turned or sheared by, in degrees.
        outside: how far it then reaches out of the other, as a share of its side.
        detail: the greatest deviation in a block, of the block's own deviation.
        colour: the greatest deviation of a block's mean in one of the channels, in grey levels.
        tone: the deviation of the whole picture's mean in one of the channels, in grey levels.
    """

    turn: float
    outside: float
    detail: float
    colour: float
    tone: float

    @property
    def is_copy(self) -> bool:
        """Whether one picture is a copy of the other, or of a part of it."""
        fits = self.turn <= _MOST_TURN and self.outside <= _MOST_OUTSIDE and self.detail <= _MOST_DETAIL
        return fits and self.colour <= _MOST_COLOUR and self.tone <= _MOST_TONE


def read_thumbnail(source: Source, max_pixels: int = MAX_PIXELS) -> Thumbnail:
    """Decode a picture to be compared.

    Args:
        source: a path, a file's bytes, or an open binary file (left open).
        max_pixels: a picture with more is refused before it is decoded.

    Raises:
        ImageError: the file can't be read or decoded, or is refused.
    """
    picture = decode_picture(source, _SQUARE, max_pixels=max_pixels)
    return Thumbnail(fit(picture, _SQUARE), picture.size)


def outline(thumbnail: Thumbnail) -> Outline:
    """Return what tells most pictures apart in no time, (64,) float32, of length 1 and mean 0."""
    block = SIDE // _OUTLINE
    grey = thumbnail.pixels.reshape(_OUTLINE, block, _OUTLINE, block, 3).mean(axis=(1, 3)) @ _LUMA
    grey = (grey - grey.mean()).ravel()
    found: Outline = (grey / max(float(np.linalg.norm(grey)), 1e-3)).astype(np.float32)
    return found


def may_be_copies(one: Outline, other: Outline) -> bool:
    """Tell by two outlines whether it is worth while to compare the pictures."""
    return float(one @ other) >= _LEAST_RESEMBLANCE


def compare(one: Thumbnail, other: Thumbnail) -> PixelDifference | None:
    """Return what two pictures differ by; None where they don't resemble, or have no detail to be compared by."""
    side = SIDE
    while side > _COARSEST and side > _MOST_ENLARGED * min(*one.size, *other.size):
        side //= 2
    whole, part = (_pyramid(picture.pixels) for picture in (one, other))
    (correlation, place), turned_about = _search(whole[_COARSEST], part[_COARSEST]), False
    about = _search(part[_COARSEST], whole[_COARSEST])
    if about[0] > correlation:
        (correlation, place), turned_about = about, True
    if correlation < _LEAST_CORRELATION:
        return None
    if turned_about:
        whole, part, one, other = part, whole, other, one
    for level in sorted(part):
        if level <= min(side, SIDE // 2):
            place = _aligned(whole[level], part[level], place)
            if level > _COARSEST and (_turn(place) > 4 * _MOST_TURN or _outside(place) > 4 * _MOST_OUTSIDE):
                return PixelDifference(_turn(place), _outside(place), np.inf, np.inf, np.inf)
    return _difference(_Laid(place, side), whole[side], part[side], one, other)


def _pyramid(pixels: NDArray[np.uint8]) -> dict[int, Plane]:
    """Return the picture in grey at every side from SIDE down to _COARSEST."""
    grey: Plane = pixels.astype(np.float32) @ _LUMA
    levels = {len(grey): grey}
    while len(grey) > _COARSEST:
        grey = _halved(grey)
        levels[len(grey)] = grey
    return levels


def _halved(plane: Plane) -> Plane:
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def _search(whole: Plane, part: Plane) -> tuple[float, Affine]:
    """Return the best correlation of the part, scaled and shifted, within the whole, and its place there.

    Returns:
        The place maps the part's points to the whole's, (2, 3), in shares of the sides.
    """
    side = len(whole)
    best, place = -1.0, np.eye(2, 3)
    for width, height in ((width, height) for width in _EXTENTS for height in _EXTENTS if abs(width - height) <= 3):
        scaled = np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)).ravel()
        scaled = scaled - scaled.mean()
        windows = sliding_window_view(whole, (height, width)).reshape(-1, height * width)  # (places, pixels)
        squares = np.einsum("ij,ij->i", windows, windows) - height * width * windows.mean(axis=1) ** 2
        norms = np.sqrt(np.maximum(squares, 1e-3) * max(float(scaled @ scaled), 1e-3))
        correlations = windows @ scaled / norms
        found = int(correlations.argmax())
        if correlations[found] > best:
            top, left = divmod(found, side - width + 1)
            best = float(correlations[found])
            place = np.array([[width, 0, left], [0, height, top]]) / side
    return best, place


def _aligned(whole: Plane, part: Plane, place: Affine) -> Affine:
    """Return a better place, by least squares of the differences.

    Source: Baker and Matthews, Lucas-Kanade 20 Years On, IJCV 2004: the inverse compositional algorithm.
    """
    side = len(part)
    across, down = _grid(side)
    steep_down, steep_across = (side * slope for slope in np.gradient(part))
    slopes = np.stack([slope * factor for slope in (steep_across, steep_down) for factor in (across, down, 1)])
    slopes = slopes.reshape(6, -1).astype(np.float32)
    squares = (slopes @ slopes.T).astype(np.float64)
    # what has no slopes to go by, such as a wall, stays where it is
    squares[np.diag_indices(6)] += 1e-3 * squares.diagonal() + side * side
    for _ in range(_STEPS):
        difference = np.where(_is_inside(place, side), _warped(whole, place) - part, 0).ravel()
        change = np.linalg.solve(squares, (slopes @ difference).astype(np.float64)).reshape(2, 3)
        place = place @ np.linalg.inv(np.vstack([np.eye(2, 3) + change, [0, 0, 1]]))
        if np.abs(change).max() * side < 0.02:
            break
    return place


def _grid(side: int) -> tuple[Plane, Plane]:
    """Return the positions of the pixels' centres across, (1, side), and down, (side, 1), in shares of the side."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return centres[None], centres[:, None]


def _warped(plane: Plane, place: Affine) -> Plane:
    """Return the plane as seen from the part's place on it."""
    size = plane.shape[::-1]
    scaled = place * [1, 1, len(plane)]
    moved = Image.fromarray(plane).transform(
        size, Image.Transform.AFFINE, scaled.ravel().tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(moved)


def _is_inside(place: Affine, side: int) -> NDArray[np.bool_]:
    """Return which of the part's pixels, (side, side), lie on the whole."""
    across, down = _grid(side)
    edge = 0.5 / side
    inside = np.ones((side, side), dtype=np.bool_)
    for row in place:
        position = row[0] * across + row[1] * down + row[2]
        inside &= (position >= edge) & (position <= 1 - edge)
    return inside


def _turn(place: Affine) -> float:
    return float(np.degrees(max(abs(place[0, 1]), abs(place[1, 0]))))


def _outside(place: Affine) -> float:
    corners = place @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    return float(max(0.0, -corners.min(), corners.max() - 1))


@dataclass(frozen=True, slots=True)
class _Laid:
    """A square of pixels that lies on another, cut into blocks."""

    place: Affine
    side: int

    def blocks(self, plane: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return (blocks, pixels in each)."""
        block = max(_BLOCK // 2, self.side // _BLOCK)
        count = self.side // block
        return plane.reshape(count, block, count, block).swapaxes(1, 2).reshape(count * count, -1)


def _difference(laid: _Laid, whole: Plane, part: Plane, one: Thumbnail, other: Thumbnail) -> PixelDifference | None:
    inside = laid.blocks(_is_inside(laid.place, laid.side))
    used = inside.mean(axis=1) > 0.5
    if used.mean() < 0.5:
        return None
    weights = inside[used].astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    seen = _blurred(part)
    values = laid.blocks(seen)[used]
    means = (values * weights).sum(axis=1, keepdims=True)
    deviations = np.sqrt((weights * (values - means) ** 2).sum(axis=1))
    if (deviations >= _DETAIL).sum() < _FEWEST_DETAILED:
        return None
    unlike = laid.blocks(_warped(_blurred(whole), laid.place) - seen)[used]
    detail = np.sqrt((weights * unlike**2).sum(axis=1)) / (deviations + _DETAIL)
    shifts = np.stack(
        [
            (weights * laid.blocks(_warped(ours, laid.place) - theirs)[used]).sum(axis=1)
            for ours, theirs in zip(_channels(one, laid.side), _channels(other, laid.side), strict=True)
        ]
    )  # (3, blocks)
    return PixelDifference(
        turn=_turn(laid.place),
        outside=_outside(laid.place),
        detail=float(detail.max()),
        colour=float(np.abs(shifts).max()),
        tone=float(np.abs(shifts.mean(axis=1)).max()),
    )


def _channels(picture: Thumbnail, side: int) -> list[Plane]:
    """Return red, green and blue, each (side, side)."""
    planes = [np.ascontiguousarray(picture.pixels[:, :, channel], dtype=np.float32) for channel in range(3)]
    while len(planes[0]) > side:
        planes = [_halved(plane) for plane in planes]
    return planes


def _blurred(plane: Plane) -> Plane:
    """Return the plane smoothed a little, so that what a resize leaves of the finest lines counts less."""
    padded = np.pad(plane, 1, mode="edge")
    down = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4

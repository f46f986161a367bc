"""Draw heat maps over the picture that they are of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipcls.images.lettering import font_for

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]

# Every eighth colour of viridis, by Nathaniel J. Smith, Stefan van der Walt and Eric Firing, who gave it away (CC0
# 1.0): https://github.com/BIDS/colormap. Equal steps look equal, in grey and to the colour-blind as well.
_VIRIDIS = (
    "440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d2f6a8e2c728e297a8e26818e23898e21908c1f988b1f9f88"
    "21a68528ae8031b57b3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725"
)
_COLOURS = np.frombuffer(bytes.fromhex(_VIRIDIS), dtype=np.uint8).reshape(-1, 3).astype(np.float32)
# of the colours over the picture in grey, whose contrast is lowered so that colours can be told
_OPACITY = 0.65
_GREY_LOW, _GREY_HIGH = 40.0, 216.0

_SIDE = 224  # smaller pictures are enlarged to about this
_MARGIN = 14
_MOST_ACROSS = 4
_POINTS, _SMALL_POINTS = 15, 12
_BAR_HEIGHT = 12
_INK, _PALE = (20, 20, 20), (90, 90, 90)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is drawn of one picture.

    Attributes:
        title: above all.
        pixels: (height, width, 3), the picture as the model saw it.
        captions: of each map.
        values: (n_maps, rows, columns) float32.
        top: the value of the brightest colour; 0 and less have the darkest.
        notes: lines below, what the values are among them.
        smooth: whether values between the maps' own are drawn.
    """

    title: str
    pixels: Pixels
    captions: Sequence[str]
    values: Array
    top: float
    notes: Sequence[str] = ()
    smooth: bool = False


def draw_sheet(sheet: Sheet) -> Image.Image:
    """Return the picture and its maps side by side, with the scale of colours below."""
    height, width = sheet.pixels.shape[:2]
    zoom = max(1, round(_SIDE / width))
    picture = Image.fromarray(sheet.pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    panels = [picture, *(overlay(picture, each, sheet.top, sheet.smooth) for each in sheet.values)]
    names = ["as the model saw it", *sheet.captions]
    across = min(_MOST_ACROSS, len(panels))
    step = (picture.width + _MARGIN, picture.height + _POINTS + 8 + _MARGIN)
    full_width = max(across * step[0] + _MARGIN, 2 * (_SIDE + _MARGIN) + _MARGIN)
    lines = [line for note in sheet.notes for line in _wrapped(note, full_width - 2 * _MARGIN)]
    rows = math.ceil(len(panels) / across)
    first = _MARGIN + _SMALL_POINTS + _MARGIN
    bar_top = first + rows * step[1]
    whole = Image.new(
        "RGB",
        (full_width, bar_top + _BAR_HEIGHT + (_SMALL_POINTS + 6) * (1 + len(lines)) + _MARGIN),
        "white",
    )
    _write(whole, (_MARGIN, _MARGIN), sheet.title, _SMALL_POINTS, _PALE, full_width - 2 * _MARGIN)
    for place, (panel, name) in enumerate(zip(panels, names, strict=True)):
        x, y = _MARGIN + place % across * step[0], first + place // across * step[1]
        _write(whole, (x, y), name, _POINTS, _INK, picture.width)
        whole.paste(panel, (x, y + _POINTS + 8))
    _draw_bar(whole, bar_top, sheet.top)
    for number, line in enumerate(lines):
        y = bar_top + _BAR_HEIGHT + (_SMALL_POINTS + 6) * (1 + number) + 4
        _write(whole, (_MARGIN, y), line, _SMALL_POINTS, _PALE, full_width)
    return whole


def overlay(picture: Image.Image, values: Array, top: float, smooth: bool = False) -> Image.Image:
    """Return a map, (rows, columns), in colours over a picture in grey."""
    shares = np.clip(values / top if top > 0 else values * 0, 0, 1).astype(np.float32)
    if smooth:
        shares = np.asarray(Image.fromarray(shares).resize(picture.size, Image.Resampling.BILINEAR))
    else:
        shares = _enlarged(shares, picture.size)
    colours = colour_of(shares)
    grey = np.asarray(picture.convert("L")).astype(np.float32)
    return Image.fromarray(_mixed(colours, _GREY_LOW + grey * ((_GREY_HIGH - _GREY_LOW) / 255)))


def _enlarged(shares: Array, size: tuple[int, int]) -> Array:
    """Repeat values, (rows, columns), to a width and a height, with edges where the hidden squares have theirs."""
    places = [
        np.searchsorted(np.linspace(0, pixels, cells + 1).round()[1:], np.arange(pixels), side="right")
        for pixels, cells in zip(size[::-1], shares.shape, strict=True)
    ]
    return shares[np.ix_(*places)]


def colour_of(shares: Array) -> Array:
    """Return the colours of numbers from 0 to 1, in an array with a last axis of 3, from 0 to 255."""
    places = shares * (len(_COLOURS) - 1)
    lower = np.minimum(places.astype(np.int64), len(_COLOURS) - 2)
    rest = (places - lower)[..., None].astype(np.float32)
    found: Array = _COLOURS[lower] * (1 - rest) + _COLOURS[lower + 1] * rest
    return found


def _mixed(colours: Array, grey: Array) -> Pixels:
    mixed = _OPACITY * colours + (1 - _OPACITY) * grey[..., None]
    return mixed.round().astype(np.uint8)


def _draw_bar(whole: Image.Image, y: int, top: float) -> None:
    """Draw the scale, its colours as they are over middle grey."""
    width = min(whole.width - 2 * _MARGIN, 2 * _SIDE)
    shares = np.tile(np.linspace(0, 1, width, dtype=np.float32), (_BAR_HEIGHT, 1))
    grey = np.full(shares.shape, (_GREY_LOW + _GREY_HIGH) / 2, dtype=np.float32)
    whole.paste(Image.fromarray(_mixed(colour_of(shares), grey)), (_MARGIN, y))
    draw = ImageDraw.Draw(whole)
    for share, text, anchor in ((0.0, "0 or less", "la"), (0.5, f"{top / 2:.3g}", "ma"), (1.0, f"{top:.3g}", "ra")):
        place = (_MARGIN + share * width, y + _BAR_HEIGHT + 3)
        draw.text(place, text, fill=_INK, font=font_for(text, _SMALL_POINTS), anchor=anchor)


def _write(
    whole: Image.Image, place: tuple[int, int], text: str, points: int, colour: tuple[int, int, int], width: int
) -> None:
    font = font_for(text, points)
    while font.getlength(text) > width and len(text) > 1:
        # a caption's end, its score, is kept
        middle = len(text) // 2
        text = text[: middle - 1] + "…" + text[middle + 1 :] if "…" not in text else _without_one(text)
    ImageDraw.Draw(whole).text(place, text, fill=colour, font=font)


def _without_one(text: str) -> str:
    """Return a shortened text without the sign before its ellipsis."""
    place = text.index("…")
    return text[: place - 1] + text[place:] if place > 1 else text[:1] + text[2:]


def _wrapped(text: str, width: int) -> list[str]:
    font = font_for(text, _SMALL_POINTS)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines

"""Fonts of this machine that have the signs of a text."""

import logging
from contextlib import suppress
from functools import cache

from PIL import ImageFont

from clipcls.errors import quoted

logger = logging.getLogger(__name__)

_ASCII = frozenset(range(128))
_PRINTED = frozenset(range(33, 127))
# words in the names of families that look like handwriting
_HANDWRITTEN = (
    "handwrit",
    "hand",
    "script",
    "caveat",
    "indie flower",
    "patrick",
    "kalam",
    "comic",
    "humor",
    "xkcd",
    "klee",
)


def font_for(text: str, points: int, handwritten: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font that has all signs of a text, DejaVu Sans if that does; warn if this machine has none.

    Args:
        handwritten: prefer one that looks like handwriting, where this machine has one.
    """
    return ImageFont.truetype(_path_for(frozenset(map(ord, text)) - _ASCII, handwritten), points)


@cache
def _path_for(signs: frozenset[int], handwritten: bool) -> str:
    from matplotlib import font_manager
    from matplotlib.font_manager import get_font

    usual: str = font_manager.findfont("DejaVu Sans")  # matplotlib brings it along
    names: dict[str, str] = {
        entry.fname: entry.name.lower() for entry in font_manager.fontManager.ttflist if "Last Resort" not in entry.name
    }
    others = sorted(names)
    by_hand = [path for path in others if handwritten and any(word in names[path] for word in _HANDWRITTEN)]
    for path in (*by_hand, usual, *others):
        with suppress(OSError, RuntimeError):  # a font that can't be read
            if signs | _PRINTED <= get_font(path).get_charmap().keys():
                return path
    logger.warning(
        "no font of this machine has all of %s: boxes are drawn; install one, such as fonts-noto-cjk",
        quoted(map(chr, sorted(signs))),
    )
    return usual

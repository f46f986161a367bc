"""Fonts of this machine that have the signs of a text."""

import logging
from contextlib import suppress
from functools import cache

from PIL import ImageFont

from clipcls.errors import quoted

logger = logging.getLogger(__name__)

_ASCII = frozenset(range(128))
_PRINTED = frozenset(range(33, 127))


def font_for(text: str, points: int) -> ImageFont.FreeTypeFont:
    """Return a font that has all signs of a text, DejaVu Sans if that does; warn if this machine has none."""
    return ImageFont.truetype(_path_for(frozenset(map(ord, text)) - _ASCII), points)


@cache
def _path_for(signs: frozenset[int]) -> str:
    from matplotlib import font_manager
    from matplotlib.font_manager import get_font

    usual: str = font_manager.findfont("DejaVu Sans")  # matplotlib brings it along
    others = sorted({entry.fname for entry in font_manager.fontManager.ttflist if "Last Resort" not in entry.name})
    for path in (usual, *others):
        with suppress(OSError, RuntimeError):  # a font that can't be read
            if signs | _PRINTED <= get_font(path).get_charmap().keys():
                return path
    logger.warning(
        "no font of this machine has all of %s: boxes are drawn; install one, such as fonts-noto-cjk",
        quoted(map(chr, sorted(signs))),
    )
    return usual

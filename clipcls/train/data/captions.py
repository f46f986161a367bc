"""Captions as they are shown to the text tower: one of a row's, in a template that fits its script."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from clipcls.inputs.labelled.examples import Example

_CJK = re.compile("[\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


def caption_key(caption: str) -> str:
    """What captions that count as one have in common: most tokenizers don't tell case and spacing."""
    return " ".join(caption.casefold().split())


class Phrasing:
    """Draws a caption of a row, and a template around it."""

    def __init__(self, templates: Sequence[str]) -> None:
        bare = [template for template in templates if template == "{}"]
        self._chinese = [t for t in templates if _CJK.search(t)] + bare or ["{}"]
        self._other = [t for t in templates if not _CJK.search(t)] or ["{}"]

    def draw(self, row: Example, rng: random.Random) -> tuple[str, str]:
        """The caption that was drawn, and the same as it is shown to the text tower."""
        caption = rng.choice(row.captions)
        template = rng.choice(self._chinese if _CJK.search(caption) else self._other)
        return caption, template.replace("{}", caption)

    def every(self, captions: Iterable[str]) -> Iterator[str]:
        """Every caption in every template that may be drawn around it."""
        for caption in captions:
            for template in self._chinese if _CJK.search(caption) else self._other:
                yield template.replace("{}", caption)

"""Captions as they are shown to the text tower: one of a row's, in a template that fits its script."""

import random
from collections.abc import Iterable, Iterator, Sequence

from clipcls.inputs.labelled.examples import Example
from clipcls.labels.prompts import ByScript


class Phrasing:
    """Draws a caption of a row, and a template around it."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._templates = ByScript(templates)

    def draw(self, row: Example, rng: random.Random) -> tuple[str, str]:
        """Draw a caption; returns it, and how it is shown to the text tower."""
        caption = rng.choice(row.captions)
        template = rng.choice(self._templates.fitting(caption))
        return caption, template.replace("{}", caption)

    def every(self, captions: Iterable[str]) -> Iterator[str]:
        """Yield every caption in every template that may be drawn around it."""
        for caption in captions:
            for template in self._templates.fitting(caption):
                yield template.replace("{}", caption)

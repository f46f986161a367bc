"""Writes another label on a note in each picture.

Models that learned from captions can read, and may answer what is written and not what is shown.

Source: Westerhoff et al. 2025 (SCAM), https://arxiv.org/abs/2504.04893: notes that are drawn into pictures do what
handwritten ones do.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from clipcls.errors import UsageError, printable
from clipcls.evaluate.attacks.pictures import Variant, checked_severities
from clipcls.images.geometry import Picture, as_image, placement, shown_box
from clipcls.images.lettering import font_for
from clipcls.predict.ranking import Indices
from clipcls.records import Label, Preprocessing

#: The share of what the model sees that the note covers, by severity.
SIZES = (0.0, 0.005, 0.01, 0.02, 0.05)
#: Where notes lie, by their centre: the shares of the way from left to right and from top to bottom.
PLACES = {
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
    "centre": (0.5, 0.5),
}

_PAPER, _INK = (252, 252, 247), (24, 24, 32)
#: The names of the variants; the blank one, in the largest size, tells what the paper does without the writing.
NOTE, BLANK = "note", "blank note"

#: One more label, which pictures with notes may get.
NOTE_LABEL = "paper note"

# from the edge of what the model sees, as a share of its shorter side
_MARGIN = 0.03
# notes are drawn so large, and scaled down
_POINTS = 64
# breadth by height that lines are broken for
_ASPECT = 2.2


@dataclass(frozen=True, slots=True)
class Notes:
    """What is written in each picture, and where.

    Attributes:
        labels: (n,) int64, the label that is written.
        places: (n,) int64, the index in PLACES.
    """

    labels: Indices
    places: Indices


def choose_notes(labels: Sequence[Label], truth: Indices, pictures: Sequence[int], seed: int) -> Notes:
    """Choose a wrong label and a place for each picture.

    Args:
        truth: (n,) int64, the right label of each picture; an index from len(labels) on is no label.
        pictures: the indices of the pictures in the data, which chance is seeded by.

    Raises:
        UsageError: a picture's label is the only one.
    """
    texts = np.array([written_text(label).casefold() for label in labels])
    chosen, places = [], []
    for right, picture in zip(truth.tolist(), pictures, strict=True):
        random = np.random.default_rng((seed, picture))
        # labels may be written alike
        others = np.flatnonzero(texts != texts[right]) if right < len(labels) else np.arange(len(labels))
        if not len(others):
            raise UsageError("--attack text writes another label in each picture, and there is none: give more labels.")
        chosen.append(int(random.choice(others)))
        places.append(int(random.integers(len(PLACES))))
    return Notes(np.array(chosen, dtype=np.int64), np.array(places, dtype=np.int64))


def written_text(label: Label) -> str:
    """Return what stands on a label's notes."""
    return label.texts[0] if label.texts else label.name


class TextAttack:
    """Lays a note on each picture.

    Args:
        notes: of the pictures.
        pictures: the indices of the pictures in the data.
        severities: indices in SIZES; None for all but 0.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        notes: Notes,
        pictures: Sequence[int],
        preprocess: Preprocessing,
        severities: tuple[int, ...] | None,
    ) -> None:
        chosen = checked_severities(severities, len(SIZES) - 1, "text")
        notes_of = [Variant(NOTE, severity, f"{SIZES[severity]:.1%}") for severity in chosen]
        self.variants = (*notes_of, Variant(BLANK, chosen[-1], notes_of[-1].strength))
        self._texts = [written_text(label) for label in labels]
        draw_note(self._texts[0])  # looks for fonts before several threads do
        self._notes = {
            picture: (label, place)
            for picture, label, place in zip(pictures, notes.labels.tolist(), notes.places.tolist(), strict=True)
        }
        self._preprocess = preprocess

    def change(self, picture: Picture, place: int) -> Iterator[Picture]:
        """Yield the picture with its note, in each size."""
        label, corner = self._notes[place]
        box = shown_box(picture, placement(picture.size, self._preprocess))
        for variant in self.variants:
            share = SIZES[variant.severity]
            note = draw_note(self._texts[label], variant.name == BLANK)
            yield picture if share == 0 else _with_note(picture, note, share, corner, box)


def _with_note(
    picture: Picture, note: Image.Image, share: float, place: int, box: tuple[float, float, float, float]
) -> Picture:
    """Return a picture with a note on it.

    Args:
        share: of the box, that the note covers.
        box: left, top, right and bottom of what the model sees.
    """
    left, top, right, bottom = box
    breadth, height = right - left, bottom - top
    wide = (share * breadth * height * note.width / note.height) ** 0.5
    margin = _MARGIN * min(breadth, height)
    wide = min(wide, breadth - 2 * margin)
    # where a long note doesn't fit, it becomes smaller
    high = min(wide * note.height / note.width, height - 2 * margin)
    size = max(1, round(high * note.width / note.height)), max(1, round(high))
    across, down = list(PLACES.values())[place]
    x = left + margin + across * (breadth - 2 * margin - size[0])
    y = top + margin + down * (height - 2 * margin - size[1])
    image = as_image(picture.image).convert("RGB")
    if image is picture.image:
        image = image.copy()
    image.paste(note.resize(size, Image.Resampling.LANCZOS), (max(0, round(x)), max(0, round(y))))
    return Picture(image, picture.size, picture.extent, picture.origin)


@lru_cache(maxsize=256)
def draw_note(text: str, blank: bool = False) -> Image.Image:
    """Return a note with a text on it, in a size to be scaled down.

    Args:
        blank: leave the text out, on paper of the same form.
    """
    shown = printable(text)
    font = font_for(shown, _POINTS, handwritten=True)
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    forms = {textwrap.fill(shown, max(1, -(-len(shown) // lines)), break_long_words=False) for lines in (1, 2, 3)}
    boxes = {form: canvas.multiline_textbbox((0, 0), form, font, align="center") for form in sorted(forms)}
    form, (left, top, right, bottom) = min(boxes.items(), key=lambda item: abs(np.log(_aspect(item[1]) / _ASPECT)))
    pad = _POINTS // 3
    note = Image.new("RGB", (round(right - left) + 2 * pad, round(bottom - top) + 2 * pad), _PAPER)
    if not blank:
        ImageDraw.Draw(note).multiline_text((pad - left, pad - top), form, _INK, font, align="center")
    return note


def _aspect(box: tuple[float, float, float, float]) -> float:
    return max(1.0, box[2] - box[0]) / max(1.0, box[3] - box[1])

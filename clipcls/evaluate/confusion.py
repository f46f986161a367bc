"""Which classes are mistaken for which: the most confused pairs, and the matrix as a picture."""

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import printable, quoted
from clipcls.evaluate.metrics import UNKNOWN, Answers
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.predict.ranking import Indices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

#: The name shown for a missing answer.
NO_ANSWER = "unknown"

# example pictures for each pair
_EXAMPLES = 3
# up to this many classes, cells are large enough to hold their counts
_NUMBERED = 25
_LONGEST_NAME = 24
_INCHES = (6.0, 26.0)  # least and greatest width of the matrix
_DPI = 100
_SMALLEST = 5.0  # font size of the names, in points
_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
_DARK = 0.3  # above this share, a cell's background is dark and its number white


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """A class and a wrong answer to some of its images.

    Attributes:
        predicted: the wrong answer; None for images without an answer.
        count: the number of images of the class that got this answer.
        share: the same as a share of the class's images.
        paths: some of these images, highest scores first.
    """

    truth: str
    predicted: str | None
    count: int
    share: float
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        names: of the classes, in the order of the rows and columns.
        counts: (classes, classes + 1) int64, truth by answer; the last column counts images without an answer.
        pairs: the most confused pairs, most images first.
    """

    names: tuple[str, ...]
    counts: Indices
    pairs: tuple[ConfusedPair, ...]


def most_confused(
    answers: Answers, counts: Indices, names: Sequence[str], paths: Sequence[str], limit: int
) -> tuple[ConfusedPair, ...]:
    """Return the pairs of a class and a wrong answer with the most images; ties go to the larger share.

    Args:
        counts: (classes, classes + 1) int64, see `Confusion`.
        paths: of the images.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    support = counts.sum(axis=1)
    rows, columns = np.nonzero(wrong)
    shares = wrong[rows, columns] / support[rows]
    order = np.lexsort((columns, rows, -shares, -wrong[rows, columns]))[:limit]
    pairs = []
    for row, column, share in zip(rows[order].tolist(), columns[order].tolist(), shares[order], strict=True):
        predicted = UNKNOWN if column == len(names) else column
        images = np.flatnonzero((answers.truth == row) & (answers.predicted == predicted))
        images = images[np.argsort(-answers.score[images], kind="stable")][:_EXAMPLES]
        answer = None if predicted == UNKNOWN else names[column]
        examples = tuple(paths[image] for image in images.tolist())
        pairs.append(ConfusedPair(names[row], answer, int(wrong[row, column]), float(share), examples))
    return tuple(pairs)


def draw_confusion(confusion: Confusion, title: str, picture: Path) -> None:
    """Draw the matrix as a PNG, each row coloured by shares of its class.

    Args:
        picture: the file to write; it is written whole, or not at all.

    Raises:
        StoppedError: the file can't be written.
    """
    # imported only to draw, since it is slow; without pyplot, whose figures are global
    import matplotlib

    with matplotlib.rc_context({"font.family": _fonts(confusion.names)}):
        _draw_confusion(confusion, title, picture)


def _fonts(names: Sequence[str]) -> list[str]:
    """Return fonts that have the signs of all names, as far as the machine has some; matplotlib asks them in turn."""
    from matplotlib import font_manager, rcParams
    from matplotlib.font_manager import FontProperties

    fonts = [str(family) for family in rcParams["font.family"]]
    found = {font_manager.findfont(FontProperties(family=[family])) for family in fonts}
    missing = {ord(sign) for name in names for sign in printable(name)} - _signs_of(found)
    # the last resort has a sign for every one there is: a box
    entries = (entry for entry in font_manager.fontManager.ttflist if not entry.name.startswith("Last Resort"))
    others = sorted({(entry.name, entry.fname) for entry in entries})
    for family, path in others if missing else ():
        had = _signs_of([path])
        if missing & had:
            fonts.append(family)
            missing -= had
    if missing:
        logger.warning(
            "the confusion plot shows boxes for %s: no font of this machine has them; install one, such as those of "
            "the packages fonts-noto-cjk or fonts-noto-core",
            quoted(map(chr, sorted(missing))),
        )
    return fonts


def _signs_of(paths: Iterable[str]) -> set[int]:
    from matplotlib.font_manager import get_font

    signs: set[int] = set()
    for path in paths:
        with suppress(OSError, RuntimeError):  # a font that can't be read
            signs |= get_font(path).get_charmap().keys()
    return signs


def _draw_confusion(confusion: Confusion, title: str, picture: Path) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts, columns = _shown(confusion)
    size = min(max(_INCHES[0], 0.14 * len(columns)), _INCHES[1])
    cell = size / len(columns)  # in inches
    figure = Figure(figsize=(size + 2.5, size * len(counts) / len(columns) + 2.5), dpi=_DPI)
    axes = figure.subplots()
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)
    # the square root of the share, so that a few images of a hundred are visible too
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.6, ticks=_TICKS)
    axes.set_title(title)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    _name_ticks(axes, columns, confusion.names, cell)
    if len(columns) <= _NUMBERED:
        _write_numbers(axes, counts, shares, cell)
    with can_write(str(picture)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # `_fonts` has said it
        write_atomically(picture, lambda file: figure.savefig(file, format="png", bbox_inches="tight"))


def _shown(confusion: Confusion) -> tuple[NDArray[np.int64], list[str]]:
    """Return the counts and the names of their columns, without the last column if every image got an answer."""
    names = list(confusion.names)
    if confusion.counts[:, -1].any():
        return confusion.counts, [*names, NO_ANSWER]
    return confusion.counts[:, :-1], names


def _name_ticks(axes: "Axes", columns: Sequence[str], rows: Sequence[str], cell: float) -> None:
    """Name the classes, in letters as large as the cells allow; of very many classes, name every few."""
    points = min(10.0, max(_SMALLEST, 72 * cell * 0.7))
    every = math.ceil(_SMALLEST / (72 * cell))
    axes.set_xticks(range(0, len(columns), every), [_short(name) for name in columns[::every]], rotation=90)
    axes.set_yticks(range(0, len(rows), every), [_short(name) for name in rows[::every]])
    axes.tick_params(labelsize=points)


def _write_numbers(axes: "Axes", counts: NDArray[np.int64], shares: NDArray[np.float64], cell: float) -> None:
    digits = len(str(counts.max()))
    points = min(11.0, 72 * cell * 0.9 / (0.6 * max(digits, 2)))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > _DARK else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=points, color=colour)


def _short(name: str) -> str:
    """Return a name cut to a readable length, with dollar signs escaped, since they would begin a formula."""
    shown = printable(name).replace("$", r"\$")
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"

"""Which classes are taken for which: the most confused pairs, and the matrix as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import printable
from clipcls.evaluate.metrics import UNKNOWN, Answers
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.predict.ranking import Indices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What the answer is called that isn't one.
NO_ANSWER = "unknown"

# pictures that are named for each pair
_EXAMPLES = 3
# up to so many classes, cells are large enough for their numbers
_NUMBERED = 25
_LONGEST_NAME = 24
_INCHES = (6.0, 26.0)  # that the matrix is wide, at least and at most
_DPI = 100
_SMALLEST = 5.0  # letters, in points
_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
_DARK = 0.3  # the share from which a cell's ground is dark


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """A class and a wrong answer.

    Attributes:
        predicted: None where there was no answer.
        count: images of the class that got this answer.
        share: of the class's images.
        paths: some of them, those with the highest scores first.
    """

    truth: str
    predicted: str | None
    count: int
    share: float
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """What was taken for what.

    Attributes:
        names: of the classes, which are the rows and the columns; one more column is of no answer.
        counts: (classes, classes + 1) int64.
        pairs: the most confused ones, most images first.
    """

    names: tuple[str, ...]
    counts: Indices
    pairs: tuple[ConfusedPair, ...]


def most_confused(
    answers: Answers, counts: Indices, names: Sequence[str], paths: Sequence[str], limit: int
) -> tuple[ConfusedPair, ...]:
    """The pairs of a class and a wrong answer with the most images; of equally many, those with the larger share.

    Args:
        counts: (classes, classes + 1) int64.
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
    """Draw the matrix, each row in shares of its class.

    Args:
        picture: the PNG to write; it is there whole, or not at all.

    Raises:
        StoppedError: it can't be written.
    """
    # not before something is drawn; and without pyplot, whose figures are global
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts, columns = _shown(confusion)
    size = min(max(_INCHES[0], 0.14 * len(columns)), _INCHES[1])
    cell = size / len(columns)  # in inches
    figure = Figure(figsize=(size + 2.5, size * len(counts) / len(columns) + 2.5), dpi=_DPI)
    axes = figure.subplots()
    support = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(support, 1)
    # a few images of a hundred should be seen, too
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the class's images", shrink=0.6, ticks=_TICKS)
    axes.set_title(title)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    _name_ticks(axes, columns, confusion.names, cell)
    if len(columns) <= _NUMBERED:
        _write_numbers(axes, counts, shares, cell)
    with can_write(str(picture)):
        write_atomically(picture, lambda file: figure.savefig(file, format="png", bbox_inches="tight"))


def _shown(confusion: Confusion) -> tuple[NDArray[np.int64], list[str]]:
    """The counts with the names of their columns; no column for no answer where there always was one."""
    names = list(confusion.names)
    if confusion.counts[:, -1].any():
        return confusion.counts, [*names, NO_ANSWER]
    return confusion.counts[:, :-1], names


def _name_ticks(axes: "Axes", columns: Sequence[str], rows: Sequence[str], cell: float) -> None:
    """Every class by name, in letters as large as its cell allows; of very many, some."""
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
    """A name as plain text of a bearable length; a dollar sign would begin a formula."""
    shown = printable(name).replace("$", r"\$")
    return shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…"

"""A table for people, with columns of fixed widths, so that rows can be written at once."""

import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from clipcls.errors import printable
from clipcls.outputs.formats.text import TextFormat, WholeLines, answers
from clipcls.records import Explanation, Prediction

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class TableFormat(TextFormat):
    """A line for each listed answer; none for an image with an error.

    Attributes:
        width: width of a line, in cells of the terminal.
        label_width: width of the labels' column.
    """

    width: int = 80
    label_width: int = len(_UNKNOWN)

    name = "table"
    extensions = ("table",)
    keeps_errors = False
    keeps_explanations = True
    can_be_read = False
    one_row_per_image = False

    def for_labels(self, labels: tuple[str, ...], width: int | None = None) -> Self:
        """Return the table with columns for these labels; `width` defaults to the terminal's."""
        from rich.cells import cell_len

        width = width or shutil.get_terminal_size().columns
        longest = max((cell_len(printable_cells(label)) for label in labels), default=0)
        longest += max((cell_len(printable_cells(name)) + 2 for name in self.shape.questions), default=0)
        label_width = max(min(longest, max(min(width // 2, width - 23), 8)), len(_UNKNOWN))
        return replace(self, width=width, label_width=label_width)

    def row(self, prediction: Prediction) -> str:
        if prediction.error is not None:
            return ""
        path_width = max(self.width - self.label_width - 11, 12)
        path = shortened_path(printable_cells(prediction.path), path_width)
        lines = []
        for label, score in self._answers(prediction):
            shown = fitted(printable_cells(label) or _UNKNOWN, self.label_width)
            lines.append(f"{path}  {shown}  {score:7.4f}".rstrip() + "\n")
            # only the first line of an image shows its path
            path = " " * path_width
        if prediction.explanation is not None:
            lines += self._explain(prediction.explanation)
        return "".join(lines)

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        raise ValueError("what was shortened can't be read back")

    def _answers(self, prediction: Prediction) -> list[tuple[str, float]]:
        if not self.shape.questions:
            return answers(prediction)
        return [
            (f"{name}: {', '.join(answer.labels) or _UNKNOWN}", answer.score)
            for name, answer in prediction.answers
            if answer is not None
        ]

    def _explain(self, explanation: Explanation) -> list[str]:
        room = max(self.width - self.label_width - 15, 12)
        lines = [] if explanation.margin is None else [f"    {explanation.margin:7.4f}  margin\n"]
        for entry in explanation.prompts:
            label = fitted(printable_cells(entry.label), self.label_width)
            lines.append(
                f"    {entry.similarity:7.4f}  {label}  {fitted(printable_cells(entry.prompt), room).rstrip()}\n"
            )
        return lines


def printable_cells(text: str) -> str:
    """Replace lone surrogates and characters that could move the cursor, and spaces of any width by a space."""
    spaced = "".join(" " if unicodedata.category(sign) == "Zs" else sign for sign in text)
    return printable(spaced)


def fitted(label: str, width: int) -> str:
    """Return a text of this width in cells, padded, or without its end."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(label) <= width:
        return set_cell_size(label, width)
    return set_cell_size(label, width - 1) + "…"


def shortened_path(path: str, width: int) -> str:
    """Return a path of this width in cells, padded, or without its beginning, since its end says more."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(path) <= width:
        return set_cell_size(path, width)
    while cell_len(path) > width - 1:
        path = path[1:]
    return set_cell_size("…" + path, width)

"""Figures as columns of text."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipcls.errors import printable

if TYPE_CHECKING:
    from clipcls.evaluate.groups import GroupShare
    from clipcls.evaluate.metrics import Estimate

Rows = list[tuple[str, ...]]

_DASH = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int, last_left: bool = False) -> str:
    """Return rows as text in columns as wide as their cells; those after the first `left` are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        is_left = number < left or (last_left and number == len(header) - 1)
        grid.add_column(Text(name), justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row[: len(header)]))
    buffer = io.StringIO()
    # wide enough for any path, since a shortened one can't be opened
    Console(file=buffer, width=100_000, color_system=None, legacy_windows=False).print(grid)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def cells(estimate: "Estimate") -> tuple[str, str]:
    """Return a figure and its interval."""
    return decimal(estimate.value), interval(estimate)


def interval(estimate: "Estimate | GroupShare") -> str:
    """Return the ends of a figure's interval."""
    return f"{decimal(estimate.low)} to {decimal(estimate.high)}"


def decimal(value: float) -> str:
    """Return a number with four decimals; a dash for NaN."""
    return _DASH if math.isnan(value) else f"{value:.4f}"

"""The part files of a folder of results, and what is in them."""

import re
from collections.abc import Iterator
from pathlib import Path

from clipcls.outputs.parquet import count_rows, read_parquet
from clipcls.outputs.read_back import read_stored
from clipcls.records import Format, Prediction

#: Rows in each file of `Parts`.
PART_ROWS = 10_000


def part_name(number: int, kind: str) -> str:
    """What the files of `Parts` are called."""
    return f"part-{number:06d}.{kind}"


_PART = re.compile(r"part-(\d{6,})\.(?:jsonl|csv|parquet)")


def parts_in(folder: Path) -> dict[int, Path]:
    """The part files by their numbers; what a killed run left unfinished is removed."""
    parts = {}
    for path in sorted(folder.iterdir()):
        if match := _PART.fullmatch(path.name.removeprefix(".").removesuffix(".part")):
            if path.name.startswith("."):
                path.unlink()
            else:
                parts[int(match[1])] = path
    return parts


def predictions_in(path: Path, kind: Format) -> Iterator[Prediction]:
    """The predictions in a file of results.

    Raises:
        UsageError: it holds something else.
    """
    with path.open("rb") as file:
        if kind == "parquet":
            yield from read_parquet(file, str(path))
        else:
            yield from (row.prediction for row in read_stored(file, kind, str(path)))


def tally(path: Path, kind: Format) -> tuple[int, int]:
    """How many predictions there are in a file of results, and how many of them have an error.

    Raises:
        UsageError: it holds something else.
    """
    if kind == "parquet":
        return count_rows(path)
    errors = [row.error is not None for row in predictions_in(path, kind)]
    return len(errors), sum(errors)

"""Read what predict, ask or duplicates wrote, for the commands that do something with it."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from clipcls.errors import UsageError
from clipcls.records import Prediction

if TYPE_CHECKING:
    from clipcls.outputs.formats.output_format import OutputFormat

    Reader = Callable[[BinaryIO, OutputFormat, str], Iterator[Prediction]]

logger = logging.getLogger(__name__)

_IN_MEMORY = 1 << 24  # bytes of standard input; more goes to a temporary file


def read_source(source: str, format_name: str | None, read: "Reader") -> Iterator[Prediction]:
    """Read the predictions in a file, in the part files of a folder, or on standard input, or a table of labels.

    Args:
        source: a path, or `-`.
        format_name: None for what the extension implies.
        read: reads a file, which is open and has a format and a name.

    Raises:
        UsageError: it can't be read.
    """
    from clipcls.outputs.formats import find_format, format_for

    if source == "-":
        with _standard_input() as file:
            yield from read(file, find_format(format_name or "jsonl"), "standard input")
        return
    if format_name is None and _is_label_table(source):
        yield from _labelled(source)
        return
    try:
        for path in _files_in(Path(source)):
            with path.open("rb") as file:
                format = find_format(format_name) if format_name else format_for(path)
                yield from read(file, format, str(path))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"{source}: can't be read: {reason}.") from exc


def _is_label_table(source: str) -> bool:
    """Tell whether a file is a table of labels, such as a report exports, and not of predictions."""
    from clipcls.errors import ImageError
    from clipcls.inputs.tables import is_table, table_columns

    if not is_table(source) or not os.path.isfile(source):  # noqa: PTH113
        return False
    try:
        columns = table_columns(source, tried=True)
    except (ImageError, UsageError):  # the reader of predictions says it
        return False
    return {"path", "label"} <= set(columns) and not {"score", "keep"} & set(columns)


def _labelled(table: str) -> Iterator[Prediction]:
    """Yield a prediction for each row of a table of labels."""
    from clipcls.inputs.labelled.tables import read_table

    truth = read_table(table)
    for problem in truth.problems:
        logger.warning("%s", problem)
    for example in truth.examples:
        yield Prediction(example.image.path, example.labels[0], None, None)


def _files_in(source: Path) -> Iterable[Path]:
    """Return the files that `predict --output` or `--output-dir` wrote."""
    from clipcls.outputs.part_files import parts_in

    if not source.is_dir():
        return [source]
    parts = parts_in(source)
    if not parts:
        raise UsageError(f"{source}: there are no part files in it that `clipcls predict --output-dir` writes.")
    return parts.values()


@contextmanager
def _standard_input() -> Iterator[BinaryIO]:
    """All of it, so that its end is seen, and Parquet can be read from it."""
    import shutil
    import tempfile

    if sys.stdin is None:
        raise UsageError("Standard input is closed, so no predictions can be read from it.")
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.seek(0)
        yield cast("BinaryIO", file)

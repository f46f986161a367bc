"""The output formats. A new one is a class in a module of its own here, and an entry in `OUTPUT_FORMATS`."""

from collections.abc import Callable
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.outputs.formats.csv import CsvFormat
from clipcls.outputs.formats.jsonl import JsonlFormat
from clipcls.outputs.formats.output_format import OutputFormat
from clipcls.outputs.formats.parquet import ParquetFormat
from clipcls.outputs.formats.table import TableFormat
from clipcls.outputs.formats.tsv import TsvFormat
from clipcls.outputs.rows import ONE_ANSWER, RowShape

#: The default formats for a terminal, a pipe and part files.
TERMINAL_FORMAT, PIPE_FORMAT, PARTS_FORMAT = TableFormat(), TsvFormat(), ParquetFormat()
#: All formats by their names, in the order in which messages list them.
OUTPUT_FORMATS: dict[str, OutputFormat] = {
    made.name: made for made in (TERMINAL_FORMAT, PIPE_FORMAT, JsonlFormat(), CsvFormat(), PARTS_FORMAT)
}


def find_format(name: str) -> OutputFormat:
    """Return the format with a name.

    Raises:
        UsageError: there is none.
    """
    try:
        return OUTPUT_FORMATS[name]
    except KeyError:
        raise UsageError(f"Unknown format {name!r}. Use one of: {', '.join(OUTPUT_FORMATS)}.") from None


def format_for(path: Path, shape: RowShape = ONE_ANSWER) -> OutputFormat:
    """Return the format that a file's extension implies.

    Args:
        shape: what its rows are to hold.

    Raises:
        UsageError: it implies none.
    """
    extension = path.suffix.lower().removeprefix(".")
    for found in OUTPUT_FORMATS.values():
        if extension in found.extensions:
            return found.with_shape(shape)
    names = "|".join(OUTPUT_FORMATS)
    raise UsageError(f"{path}: .{extension} tells no format that clipcls writes. Give --format {names}.")


def format_names(
    condition: Callable[[OutputFormat], bool], *, first: OutputFormat | None = None, prefix: str = ""
) -> str:
    """Return the names of the formats that meet a condition, such as `tsv, jsonl or csv`.

    Args:
        first: the format to name before the others.
        prefix: text before each name.
    """
    found = sorted(filter(condition, OUTPUT_FORMATS.values()), key=lambda one: one is not first)
    *others, last = (prefix + one.name for one in found)
    return f"{', '.join(others)} or {last}" if others else last

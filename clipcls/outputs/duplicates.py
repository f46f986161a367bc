"""Write which pictures are there more than once, and read back which of them may go."""

import base64
import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats.table import printable_cells, shortened_path
from clipcls.outputs.formats.tsv import escaped, unescaped
from clipcls.records import Duplicate, Prediction
from clipcls.text_files import UTF8_MARK, csv_rows

COLUMNS = ("group", "kind", "keep", "path", "why", "similarity", "bytes", "path_b64")

_TSV_COLUMNS = COLUMNS[:6]
_CSV_HEADER = ",".join(COLUMNS).encode()


def write_duplicates(rows: Sequence[Duplicate], destination: Destination) -> None:
    """Write the rows to a file, which appears whole or not at all, or to standard output.

    Raises:
        StoppedError: the output can't be written.
    """
    content = _ENCODERS[destination.format.name](rows)
    with can_write("standard output" if destination.is_standard_output else destination.name):
        if not destination.is_standard_output:
            write_atomically(Path(destination.output), lambda file: file.write(content))
            return
        if sys.stdout is None:
            raise StoppedError("standard output is closed. Give --output FILE.")
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


# ---------------------------------------------------------------------------------------------------------
# Writing


def _table(rows: Sequence[Duplicate]) -> bytes:
    """Return a line for each picture; the group's number stands on the line of the picture to keep."""
    number_width = len(str(max((row.group for row in rows), default=0)))
    room = shutil.get_terminal_size().columns - number_width - 13
    lines = []
    for row in rows:
        number, kind, note = (row.group, "keep", row.why) if row.keep else ("", row.kind, f"{row.similarity:.4f}")
        path = shortened_path(printable_cells(row.path), max(room - len(note), 12))
        lines.append(f"{number:>{number_width}}  {kind:7}  {path}  {note}\n")
    return "".join(lines).encode()


def _tsv(rows: Sequence[Duplicate]) -> bytes:
    lines = (
        f"{row.group}\t{row.kind}\t{_yes(row.keep)}\t{escaped(row.path)}\t{row.why}\t{row.similarity:.6f}\n"
        for row in rows
    )
    return "".join(lines).encode("utf-8", "surrogateescape")


def _jsonl(rows: Sequence[Duplicate]) -> bytes:
    return "".join(json.dumps(_fields(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[Duplicate]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        fields = _fields(row) | {"keep": _yes(row.keep)}
        writer.writerow([fields.get(column) for column in COLUMNS])
    return text.getvalue().encode()


def _parquet(rows: Sequence[Duplicate]) -> bytes:
    import pyarrow as arrow
    import pyarrow.parquet

    kinds = {"group": arrow.int64(), "keep": arrow.bool_(), "similarity": arrow.float64(), "bytes": arrow.int64()}
    schema = arrow.schema([(column, kinds.get(column, arrow.string())) for column in COLUMNS])
    content = io.BytesIO()
    table = arrow.Table.from_pylist([_fields(row) for row in rows], schema=schema)
    arrow.parquet.write_table(table, content, compression="zstd")
    return content.getvalue()


_ENCODERS: dict[str, Callable[[Sequence[Duplicate]], bytes]] = {
    "table": _table,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}


def _fields(row: Duplicate) -> dict[str, Any]:
    """Return a row in JSON types; a path that isn't UTF-8 gets replacement characters, and `path_b64`."""
    raw = os.fsencode(row.path)
    path = raw.decode("utf-8", "replace")
    fields: dict[str, Any] = {
        "group": row.group,
        "kind": row.kind,
        "keep": row.keep,
        "path": path,
        "why": row.why,
        "similarity": float(f"{row.similarity:.7g}"),
        "bytes": row.size,
    }
    return fields if path == row.path else fields | {"path_b64": base64.b64encode(raw).decode("ascii")}


def _yes(keep: bool) -> str:
    return "yes" if keep else "no"


# ---------------------------------------------------------------------------------------------------------
# Reading


def begins_duplicates(line: bytes, format_name: str) -> bool:
    """Tell by the first line of a text whether it is a list of duplicates in the format of this name."""
    line = line.removeprefix(UTF8_MARK).rstrip(b"\r\n")
    if format_name == "csv":
        return line == _CSV_HEADER
    if format_name == "tsv":
        cells = line.split(b"\t")
        return len(cells) == len(_TSV_COLUMNS) and cells[2] in (b"yes", b"no")
    try:
        fields = json.loads(line) if format_name == "jsonl" else None
    except ValueError:
        return False
    return isinstance(fields, dict) and {"group", "keep"} <= fields.keys()


def read_lines(lines: Iterable[bytes], format_name: str, name: str) -> Iterator[Prediction]:
    """Yield the pictures that may go by a text, each with its group as its label.

    Args:
        name: the file's name, for messages.

    Raises:
        UsageError: it holds something else.
    """
    texts = (line.decode("utf-8", "surrogateescape") for line in lines)
    number = 0
    try:
        for fields in _rows_of(texts, format_name):
            yield from _may_go(fields)
            number += 1
    except (ValueError, TypeError, KeyError) as exc:
        raise UsageError(f"{name}, behind row {number}: not a row that `clipcls duplicates` writes.") from exc


def _rows_of(texts: Iterable[str], format_name: str) -> Iterator[dict[str, Any]]:
    if format_name == "jsonl":
        yield from (json.loads(text) for text in texts if text.strip())
    elif format_name == "tsv":
        for text in texts:
            cells = map(unescaped, text.removesuffix("\n").split("\t"))
            yield dict(zip(_TSV_COLUMNS, cells, strict=True))
    else:
        rows = csv_rows(texts)
        next(rows, None)  # the header
        for _, row in rows:
            yield dict(zip(COLUMNS, row, strict=True))


def read_parquet(file: BinaryIO) -> Iterator[Prediction] | None:
    """Return the pictures that may go by a Parquet file, each with its group as its label; None if it lists others.

    The file is left at its beginning.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(file).names
    except (OSError, pyarrow.ArrowException):
        names = []  # the reader of predictions says what is wrong
    file.seek(0)
    if not {"group", "keep"} <= set(names):
        return None
    return chain.from_iterable(map(_may_go, pyarrow.parquet.read_table(file).to_pylist()))


def _may_go(fields: dict[str, Any]) -> Iterator[Prediction]:
    """Yield a row's picture, unless it is to be kept."""
    if fields["keep"] in (True, "yes"):
        return
    raw = fields.get("path_b64")
    path = os.fsdecode(base64.b64decode(raw, validate=True)) if raw else fields["path"]
    if not isinstance(path, str):
        raise TypeError("a path is a text")
    similarity = float(fields["similarity"])
    yield Prediction(path, f"group-{int(fields['group']):04}", similarity, similarity)

"""Read tables with a column of pictures: their paths or addresses, or in Parquet the pictures themselves.

`predict` and labelled data share this reader. It reads a few rows at a time, but of Parquet at least a page, whose size
the file's writer chose: pyarrow's puts up to 1024 pictures in one by default.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BufferedReader
from typing import Any, TextIO, cast

from clipcls.errors import ImageError, UsageError, first_line, listed, printable, reason, shortened
from clipcls.inputs.stores import open_named
from clipcls.records import Embedded, ImageRef
from clipcls.text_files import CsvError, csv_rows, refuse_utf16

#: Extensions of tables.
TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
# columns of pictures, by the names that other programs give them too
PICTURE_COLUMNS = ("path", "image", "filepath", "file_name", "filename", "url")
# how a picture's file begins in base64: JPEG, PNG, GIF, WebP, TIFF
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_SHORTEST_BASE64 = 64  # characters; a shorter text may be a path
_LONGEST_LINE = 2**26  # characters in a JSON lines file's line
_TRIED_RECORDS = 100  # one of so many first records of a JSON lines file has to have the column
_BATCH_BYTES = 2**22  # bytes of a Parquet column to read at once
_BATCH_ROWS = 1024
# by default pyarrow reads a whole row group's column at once
_BUFFERED = {"buffer_size": 2**20, "pre_buffer": False}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the column that is read.

    Attributes:
        row: its row's number, counted from 0 without the header.
        value: a path or an address, or a picture's content.
        error: why there is no value.
        place: where the row is, such as `line 7`; in Parquet `row 7`, counted from 0.
        beside: the row's values in further columns, by name, in the row's own order.
    """

    row: int
    value: str | bytes | None = None
    error: str | None = None
    place: str = field(default="", compare=False)
    beside: Mapping[str, Any] = field(default_factory=dict, compare=False)


def is_table(name: str) -> bool:
    """Tell whether a file name is a table's."""
    return name.lower().endswith(TABLES)


def is_parquet(name: str) -> bool:
    """Tell whether a file name is a Parquet file's."""
    return name.lower().endswith(".parquet")


def is_part(name: str) -> bool:
    """Tell whether a file in a folder is a part of a Parquet data set, whose other files begin with `_`."""
    return is_parquet(name) and not os.path.basename(name).startswith("_")  # noqa: PTH119


def find_picture_column(table: str, columns: Sequence[str]) -> str | None:
    """Return the column of pictures by its name; None if no name is known.

    Raises:
        UsageError: there are several.
    """
    if {"path", "image"} <= set(columns):
        raise UsageError(f"{table}: path and image may both be the column of the pictures; rename one.")
    return next((name for name in PICTURE_COLUMNS if name in columns), None)


def check_column(table: str, column: str) -> None:
    """Check that a table has a column of pictures; other faults show when it is read.

    Raises:
        UsageError: see `read_column`.
    """
    with contextlib.suppress(ImageError):
        if is_parquet(table):
            row_groups(table, column)  # reading a cell could load a page of many megabytes
            return
        with contextlib.closing(read_column(table, column)) as cells:
            next(cells, None)


def row_groups(table: str, column: str | None = None) -> list[int]:
    """Return how many rows each row group of a Parquet file has.

    Args:
        column: a column that the file must have; None to check none.

    Raises:
        UsageError, ImageError: see `read_column`.
    """
    with _parquet(table) as file:
        if column is not None:
            _require_column(file, column, table)
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def table_columns(table: str, *, tried: bool = False) -> list[str]:
    """List the names of a table's columns, in JSON lines those of all records.

    Args:
        tried: of JSON lines look at the first hundred records only, as `read_column` does for a column.

    Raises:
        UsageError: pyarrow isn't installed, or a text table is in UTF-16.
        ImageError: the table can't be read.
    """
    if is_parquet(table):
        with _parquet(table) as file:
            return list(file.schema_arrow.names)
    with _opened(table) as file:
        if table.lower().endswith(".jsonl"):
            found = itertools.islice(_json_records(file), _TRIED_RECORDS if tried else None)
            records = (record for _, record in found if isinstance(record, dict))
            return list(dict.fromkeys(name for record in records for name in record))
        return next(csv_rows(file, _delimiter(table)), (0, list[str]()))[1]


def read_column(
    table: str, column: str | None, rows: range | None = None, beside: Sequence[str] = ()
) -> Generator[Cell, None, None]:
    """Read the cells of a column in order.

    - CSV and TSV files are UTF-8 and begin with the names of their columns; empty lines aren't rows.
    - In JSON lines, each line that isn't blank is a row.
    - In Parquet a column holds text, bytes, or Hugging Face's pictures (a struct of `bytes` and `path`; the path is
      used only without bytes).

    Args:
        table: path of a regular file, or an address in a store.
        column: None yields cells without a value, so that embedded pictures aren't read.
        rows: the rows of a Parquet file to read, all by default; row groups without any of them aren't read.
        beside: further columns to read; rows of a text table may lack them.

    Raises:
        UsageError: there is no such column, it holds something else, pyarrow isn't installed, or a text table is in
            UTF-16; before the first cell.
        ImageError: the table can't be read, or is broken at this row.
    """
    if is_parquet(table):
        return _parquet_cells(table, column, rows, beside)
    if table.lower().endswith(".jsonl"):
        return _json_cells(table, column, beside)
    return _csv_cells(table, column, beside)


def holds_pictures(table: str, column: str) -> bool:
    """Tell whether a table's column holds the pictures themselves, not their paths.

    Raises:
        UsageError, ImageError: see `read_column`.
    """
    if not is_parquet(table):
        return False
    with _parquet(table) as file:
        _require_column(file, column, table)
        return _is_embedded(file, column)


def class_names(table: str, column: str) -> list[str]:
    """List the class names of a column of numbers, which Parquet files of Hugging Face's `datasets` carry."""
    if not is_parquet(table):
        return []
    with _parquet(table) as file:
        metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(metadata)["info"]["features"][column]
        names = feature.get("feature", feature)["names"]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def read_embedded(images: Iterable[ImageRef]) -> Iterator[ImageRef]:
    """Read the contents of pictures embedded in Parquet tables; yield others unchanged.

    Pictures of one table that follow each other in its order are read in one pass.
    """
    for source, group in itertools.groupby(images, key=_source):
        if source is None:
            yield from group
            continue
        cells: Generator[Cell, None, None] | None = None
        last = -1
        for image in group:
            assert isinstance(image.content, Embedded)
            if cells is None or image.content.row <= last:
                cells = read_column(*source, range(image.content.row, sys.maxsize))
            last = image.content.row
            yield _with_content(image, cells, last)


def _source(image: ImageRef) -> tuple[str, str] | None:
    return (image.content.table, image.content.column) if isinstance(image.content, Embedded) else None


def _with_content(image: ImageRef, cells: Iterator[Cell], row: int) -> ImageRef:
    try:
        cell = next((cell for cell in cells if cell.row == row), Cell(row, error="the table has no such row"))
    except (ImageError, UsageError) as exc:
        return ImageRef(image.path, str(exc))
    if isinstance(cell.value, bytes):
        return replace(image, content=cell.value)
    return ImageRef(image.path, cell.error or "a path, where other rows hold pictures")


def _checked(value: object, column: str | None) -> tuple[str | bytes | None, str | None]:
    """Return a cell's path or address, stripped, or the picture that it holds; or None and what is wrong with it."""
    if column is None:
        return None, None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, f"nothing in the column {column}"
    if not isinstance(value, str):
        return None, f"no text in the column {column}"
    text = value.strip()
    uri = _DATA_URI.match(text)
    if uri or (len(text) >= _SHORTEST_BASE64 and text.startswith(_BASE64)):
        try:
            return base64.b64decode(text[uri.end() if uri else 0 :], validate=True), None
        except ValueError:  # a path may begin so; an address can't
            if uri:
                return None, f"a data URI in the column {column} that isn't base64"
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # JSON can hold lone surrogates
        return None, f"no possible file name in the column {column}"
    return text, None


def named(columns: Sequence[str]) -> str:
    """Return the names of columns, as far as a line has room for them."""
    return listed((printable(shortened(name)) for name in columns), 20) or "none"


def _require(column: str, columns: Iterable[str], table: str) -> None:
    names = list(columns)
    if column not in names:
        raise UsageError(f"{table}: no column {column}; there are: {named(names)}")
    if names.count(column) > 1:
        raise UsageError(f"{table}: several columns {column}; rename those that aren't meant.")


# ---------------------------------------------------------------------------------------------------------
# Text


@contextmanager
def _opened(table: str) -> Iterator[TextIO]:
    """Open a table as text; bytes that aren't UTF-8 become surrogates."""
    try:
        with open_named(table) as raw:
            refuse_utf16(cast("BufferedReader", raw).peek(2), table)
            with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield file
    except (OSError, ValueError, CsvError) as exc:
        raise ImageError(reason(exc)) from exc


def _delimiter(table: str) -> str:
    return "\t" if table.lower().endswith(".tsv") else ","


def _csv_cells(table: str, column: str | None, beside: Sequence[str]) -> Generator[Cell, None, None]:
    with _opened(table) as file:
        rows = csv_rows(file, _delimiter(table))
        _, columns = next(rows, (0, list[str]()))
        for name in beside if column is None else (column, *beside):
            _require(name, columns, table)
        place = None if column is None else columns.index(column)
        others = [(name, number) for number, name in enumerate(columns) if name in beside]
        for row, (line, record) in enumerate(rows):
            if any(record[len(columns) :]):
                error = f"{len(record)} cells, where the header has {len(columns)}; put a cell with commas in quotes"
                yield Cell(row, error=error, place=f"line {line}")
                continue
            found = {name: record[number] for name, number in others if number < len(record)}
            value = record[place] if place is not None and place < len(record) else None
            yield Cell(row, *_checked(value, column), f"line {line}", found)


def _json_cells(table: str, column: str | None, beside: Sequence[str]) -> Generator[Cell, None, None]:
    with _opened(table) as file:
        if column is not None:
            tried = (record for _, record in itertools.islice(_json_records(file), _TRIED_RECORDS))
            _require(
                column, dict.fromkeys(name for record in tried if isinstance(record, dict) for name in record), table
            )
            file.seek(0)
        for row, (line, record) in enumerate(_json_records(file)):
            if isinstance(record, dict):
                found = {name: value for name, value in record.items() if name in beside}
                yield Cell(row, *_checked(record.get(column or ""), column), f"line {line}", found)
            else:
                yield Cell(row, error=record, place=f"line {line}")


def _json_records(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each line that isn't blank: its number, and its record or what is wrong with it."""
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE)
        if not line:
            return
        if len(line) == _LONGEST_LINE:
            raise ImageError("a line longer than 64 MiB; JSON lines have a record in each line")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as exc:
            yield number, f"not JSON: {first_line(exc)}"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


# ---------------------------------------------------------------------------------------------------------
# Parquet


def _parquet_cells(
    table: str, column: str | None, rows: range | None, beside: Sequence[str]
) -> Generator[Cell, None, None]:
    with _parquet(table) as file:
        if column is not None:
            _require_column(file, column, table)
        for name in beside:
            _require(name, file.schema_arrow.names, table)
        rows = range(sys.maxsize) if rows is None else rows
        end = 0
        for number in range(file.num_row_groups):
            # group by group, so that a damaged one doesn't cost those before it
            start, end = end, end + file.metadata.row_group(number).num_rows
            if max(start, rows.start) < min(end, rows.stop):
                records = itertools.islice(_records(file, number, column, beside), rows.stop - start)
                for row, record in enumerate(records, start):
                    if row in rows:
                        yield _parquet_cell(row, column, record)


def _records(file: Any, group: int, column: str | None, beside: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each row as Arrow scalars by column."""
    at_once = _BATCH_ROWS if column is None else _rows_at_once(file.metadata.row_group(group), column)
    columns = list(dict.fromkeys(beside if column is None else (column, *beside)))
    for batch in file.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
        for scalars in zip(*batch.columns, strict=True):
            yield dict(zip(batch.schema.names, scalars, strict=True))


def _parquet_cell(row: int, column: str | None, record: dict[str, Any]) -> Cell:
    beside = {name: _plain(scalar) for name, scalar in record.items() if name != column}
    picture = None if column is None else _value(record[column])
    if isinstance(picture, bytes) and picture:
        return Cell(row, picture, None, f"row {row}", beside)
    return Cell(row, *_checked(picture or None, column), f"row {row}", beside)


def _plain(scalar: Any) -> Any:
    """Convert an Arrow scalar to Python; text that isn't UTF-8 becomes None."""
    try:
        return scalar.as_py()
    except ValueError:
        return None


@contextmanager
def _parquet(table: str) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile`, and translate its errors."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError(f"Parquet needs the package pyarrow ({exc}): pip install 'clipcls[parquet]'") from exc
    try:
        # opened here, since pyarrow can't encode every name
        with open_named(table) as file, parquet.ParquetFile(file, **_BUFFERED) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as exc:
        raise ImageError(reason(exc)) from exc


def _require_column(file: Any, column: str, table: str) -> None:
    from pyarrow import types

    _require(column, file.schema_arrow.names, table)
    kind = file.schema_arrow.field(column).type
    fields = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
    if not (_is_bytes_like(kind) or any(_is_bytes_like(fields.get(name)) for name in ("bytes", "path"))):
        raise UsageError(f"{table}: the column {column} holds {kind}; needed are paths, bytes, or pictures as structs")


def _is_embedded(file: Any, column: str) -> bool:
    """Tell whether a column of pictures has bytes in any row."""
    from pyarrow import types

    kind = file.schema_arrow.field(column).type
    if not types.is_struct(kind):
        text = (types.is_string, types.is_large_string, types.is_string_view)
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return not any(test(kind) for test in text)
    if not _is_bytes_like({field.name: field.type for field in kind}.get("bytes")):
        return False
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == f"{column}.bytes":
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                if not known or chunk.statistics.null_count < group.num_rows:
                    return True
    return False


def _is_bytes_like(kind: Any) -> bool:
    """Tell whether values of an Arrow type are text or bytes."""
    from pyarrow import types

    if kind is None:
        return False
    if types.is_dictionary(kind):
        return _is_bytes_like(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    more = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, *more))


def _rows_at_once(group: Any, column: str) -> int:
    """Return how many rows hold about `_BATCH_BYTES` of the column: large pictures come one by one."""
    chunks = map(group.column, range(group.num_columns))
    size: int = sum(
        chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")
    )
    rows: int = group.num_rows
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _value(scalar: Any) -> str | bytes | None:
    """Return an Arrow scalar's text or bytes; a struct's bytes, or its path if it has none."""
    import pyarrow

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.DictionaryScalar):
        return _value(scalar.value)
    if isinstance(scalar, pyarrow.StructScalar):
        fields = [field.name for field in scalar.type]
        values = (_value(scalar[name]) for name in ("bytes", "path") if name in fields)
        return next((value for value in values if value), None)
    if not isinstance(scalar, pyarrow.BinaryScalar):  # texts are binary scalars, too
        return None
    data: bytes = scalar.as_buffer().to_pybytes()
    # not scalar.as_py(), which refuses what isn't UTF-8
    return os.fsdecode(data) if isinstance(scalar, pyarrow.StringScalar) else data

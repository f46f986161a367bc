"""Tables with a column of pictures: their paths or addresses, or in Parquet the pictures themselves.

Tables are read as they go, a few rows at a time. Of Parquet, what is in memory at least is a page, which the file's
writer has made as large as it likes: pyarrow's own writer, unless told otherwise, puts up to 1024 pictures in one.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from clipcls.errors import ImageError, UsageError, first_line, reason
from clipcls.inputs.stores import open_named

_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl")
_LONGEST_FIELD = 2**24  # of a CSV file, in characters; csv's own limit is 131,072
_LONGEST_LINE = 2**26  # of a JSON lines file, in characters
_TRIED_RECORDS = 100  # of a JSON lines file, one of which has to have the column
_BATCH_BYTES = 2**22  # of the column, in Parquet
_BATCH_ROWS = 1024
# without these, a whole row group's column would be read at once
_BUFFERED = {"buffer_size": 2**20, "pre_buffer": False}


@dataclass(frozen=True, slots=True)
class Cell:
    """What a row has in the column.

    Attributes:
        row: from 0; the names of the columns aren't one.
        value: a path or an address, or a picture's content.
        error: why there is no value.
    """

    row: int
    value: str | bytes | None = None
    error: str | None = None


def is_table(name: str) -> bool:
    """Whether a name is that of a table."""
    return name.lower().endswith(_ENDINGS)


def is_parquet(name: str) -> bool:
    """Whether a name is that of a Parquet file."""
    return name.lower().endswith(".parquet")


def check_column(table: str, column: str) -> None:
    """Look whether a table has a column of pictures; whatever else may be wrong with it shows when it is read.

    Raises:
        UsageError: see `read_column`.
    """
    with contextlib.suppress(ImageError):
        if is_parquet(table):
            row_groups(table, column)  # its first cell may lie in a page of many megabytes
            return
        with contextlib.closing(read_column(table, column)) as cells:
            next(cells, None)


def row_groups(table: str, column: str | None = None) -> list[int]:
    """How many rows each row group of a Parquet file has.

    Args:
        column: that it has to have; none by default.

    Raises:
        UsageError, ImageError: see `read_column`.
    """
    with _parquet(table) as file:
        if column is not None:
            _require_column(file, column, table)
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def read_column(table: str, column: str, rows: range | None = None) -> Generator[Cell, None, None]:
    """The cells of a column, in their order.

    - CSV and TSV files are UTF-8 and begin with the names of their columns; lines without a field are no rows.
    - In JSON lines, each line that isn't blank is a row.
    - In Parquet a column holds text, bytes, or Hugging Face's pictures (a struct of `bytes` and `path`, of which
      the bytes are taken where there are some).

    Args:
        table: path of a regular file, or an address in a store.
        rows: of Parquet, which of its rows; all by default. Row groups without any of them aren't read.

    Raises:
        UsageError: there is no such column, it holds something else, or pyarrow isn't installed; before the first cell.
        ImageError: the table can't be read, or is broken here.
    """
    if is_parquet(table):
        return _parquet_cells(table, column, rows)
    if table.lower().endswith(".jsonl"):
        return _json_cells(table, column)
    return _csv_cells(table, column, "\t" if table.lower().endswith(".tsv") else ",")


def _text_cell(row: int, column: str, value: object) -> Cell:
    """A cell with a path or an address, which are stripped as in the tables that `clipcls train` reads."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return Cell(row, error=f"nothing in the column {column}")
    if not isinstance(value, str):
        return Cell(row, error=f"no text in the column {column}")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # JSON can hold what no name is made of
        return Cell(row, error=f"no possible file name in the column {column}")
    return Cell(row, value.strip())


def _require(column: str, columns: Iterable[str], table: str) -> None:
    listed = list(columns)
    if column not in listed:
        raise UsageError(f"{table}: no column {column}; there are: {', '.join(listed) or 'none'}")


# ---------------------------------------------------------------------------------------------------------
# Text


@contextmanager
def _opened(table: str) -> Iterator[TextIO]:
    """A table as text, in which bytes that aren't UTF-8 are kept as surrogates; errors are translated."""
    try:
        with (
            open_named(table) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            yield file
    except (OSError, ValueError, csv.Error) as exc:
        raise ImageError(reason(exc)) from exc


def _csv_cells(table: str, column: str, delimiter: str) -> Generator[Cell, None, None]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))  # other columns may hold long texts
    with _opened(table) as file:
        records = csv.reader(file, delimiter=delimiter)
        columns = next(records, [])
        _require(column, columns, table)
        place = columns.index(column)
        for row, record in enumerate(filter(None, records)):
            yield _text_cell(row, column, record[place] if place < len(record) else None)


def _json_cells(table: str, column: str) -> Generator[Cell, None, None]:
    with _opened(table) as file:
        tried = itertools.islice(_json_records(file), _TRIED_RECORDS)
        _require(column, dict.fromkeys(name for record in tried if isinstance(record, dict) for name in record), table)
        file.seek(0)
        for row, record in enumerate(_json_records(file)):
            if isinstance(record, dict):
                yield _text_cell(row, column, record.get(column))
            else:
                yield Cell(row, error=record)


def _json_records(file: TextIO) -> Iterator[dict[str, Any] | str]:
    """The record of each line that isn't blank, or what is wrong with the line."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ImageError("a line longer than 64 MiB; JSON lines have a record in each line")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as exc:
            yield f"not JSON: {first_line(exc)}"
            continue
        yield record if isinstance(record, dict) else "not a JSON object"


# ---------------------------------------------------------------------------------------------------------
# Parquet


def _parquet_cells(table: str, column: str, rows: range | None) -> Generator[Cell, None, None]:
    with _parquet(table) as file:
        _require_column(file, column, table)
        rows = range(sys.maxsize) if rows is None else rows
        end = 0
        for number in range(file.num_row_groups):
            # group by group, so that damage of one takes nothing from those before it
            start, end = end, end + file.metadata.row_group(number).num_rows
            if max(start, rows.start) < min(end, rows.stop):
                scalars = itertools.islice(_scalars(file, number, column), rows.stop - start)
                for row, scalar in enumerate(scalars, start):
                    if row in rows:
                        yield _parquet_cell(row, column, _value(scalar))


def _scalars(file: Any, group: int, column: str) -> Iterator[Any]:
    at_once = _rows_at_once(file.metadata.row_group(group), column)
    for batch in file.iter_batches(at_once, row_groups=[group], columns=[column], use_threads=False):
        yield from batch.column(0)


def _parquet_cell(row: int, column: str, value: str | bytes | None) -> Cell:
    return Cell(row, value) if isinstance(value, bytes) and value else _text_cell(row, column, value or None)


@contextmanager
def _parquet(table: str) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`; errors are translated."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError(f"Parquet needs the package pyarrow ({exc}): pip install 'clipcls[parquet]'") from exc
    try:
        # an open file, since pyarrow can't encode every name
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


def _is_bytes_like(kind: Any) -> bool:
    """Whether values of an Arrow type are text or bytes."""
    from pyarrow import types

    if kind is None:
        return False
    if types.is_dictionary(kind):
        return _is_bytes_like(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    more = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, *more))


def _rows_at_once(group: Any, column: str) -> int:
    """As many rows of a row group as hold some megabytes of the column; large pictures come one by one."""
    chunks = map(group.column, range(group.num_columns))
    size: int = sum(
        chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")
    )
    rows: int = group.num_rows
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _value(scalar: Any) -> str | bytes | None:
    """The text or the bytes of an Arrow scalar; of a struct the bytes, else the path."""
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

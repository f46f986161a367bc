"""Parquet: a row a picture or text, with its features in a list of fixed size (the extra `parquet`)."""

import contextlib
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipcls.errors import UsageError, first_line
from clipcls.outputs.atomic import Draft, can_write
from clipcls.outputs.formats import PARTS_FORMAT
from clipcls.outputs.formats.parquet import require_pyarrow
from clipcls.outputs.part_files import part_name, parts_in
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import (
    DType,
    FileFormat,
    FolderFormat,
    StoredVectors,
    VectorRows,
    Vectors,
    VectorSink,
    joined,
)

_GROUP_ROWS = 10_000
_ORIGIN = b"clipcls"
_KEY_OF = {"images": "path", "texts": "text"}


class ParquetFile(FileFormat):
    """A table with the columns `path` (of texts `text`), `embedding` and `error`.

    Rows without features have a null for `embedding`. A path that isn't UTF-8 gets replacement characters, and
    `path_b64`. The schema's metadata holds the origin. Rows of a part of some inputs have a column `index`.
    """

    name = "parquet"
    extension = ".parquet"
    keeps_index = True

    def require(self) -> None:
        require_pyarrow()

    @contextlib.contextmanager
    def open_sink(self, path: Path, origin: FeatureOrigin, dtype: DType) -> Iterator[VectorSink]:
        with contextlib.ExitStack() as stack:
            with can_write(str(path)):
                draft = stack.enter_context(Draft(path))
            sink = _ParquetSink(draft.file, str(path), origin, dtype)
            try:
                yield sink
            finally:
                sink.close()
                with can_write(str(path)):
                    draft.publish()

    def read(self, path: Path) -> StoredVectors:
        table = _read(path, ("path", "path_b64", "text", "embedding"))
        origin = _origin(table, path)
        try:
            column = table.column("embedding")
            width = column.type.list_size
            # flatten leaves the null rows out; to_numpy would import pandas where it is installed
            blocks: tuple[Any, ...] = tuple(
                np.from_dlpack(part.flatten()).reshape(-1, width) for part in column.chunks if len(part)
            )
            has_features = column.is_valid().to_pylist()
        except (KeyError, AttributeError, TypeError, ValueError) as exc:
            raise UsageError(f"{path}: its column embedding doesn't hold features: {first_line(exc)}.") from exc
        keys = [key for key, is_there in zip(paths_in(table, _key(table)), has_features, strict=True) if is_there]
        return StoredVectors(keys, blocks, origin, len(has_features) - len(keys))


class ParquetParts(FolderFormat):
    """Files as `ParquetFile` writes them, `part-000000.parquet` and so on."""

    name = "parquet"
    keeps_index = True

    def write_part(self, folder: Path, number: int, rows: VectorRows, origin: FeatureOrigin, dtype: DType) -> None:
        with ParquetFile().open_sink(folder / part_name(number, PARTS_FORMAT), origin, dtype) as sink:
            sink.write(rows)

    def parts_in(self, folder: Path) -> dict[int, Path]:
        return parts_in(folder)

    def rows_of(self, part: Path) -> Iterator[tuple[str, str | None, int | None]]:
        table = _read(part, ("path", "path_b64", "text", "error", "index"))
        keys, errors = paths_in(table, _key(table)), table.column("error").to_pylist()
        indices = table.column("index").to_pylist() if "index" in table.column_names else [None] * len(keys)
        yield from zip(keys, errors, indices, strict=True)

    def read(self, folder: Path) -> StoredVectors:
        parts = [ParquetFile().read(part) for part in self.parts_in(folder).values()]
        if any(part.origin != parts[0].origin for part in parts):
            raise UsageError(f"{folder}: its files were made by different models, or with different settings.")
        keys = [key for part in parts for key in part.keys]
        blocks = tuple(block for part in parts for block in part.blocks)
        return StoredVectors(keys, blocks, parts[0].origin, sum(part.failed for part in parts))


class _ParquetSink:
    """Collects rows in memory, and writes them in row groups of some thousands."""

    def __init__(self, file: Any, name: str, origin: FeatureOrigin, dtype: DType) -> None:
        self._arrow, self._parquet = require_pyarrow()
        self._file, self._name = file, name
        self._dtype: DType = dtype
        self._width = origin.embed_dim
        self._waiting: list[VectorRows] = []
        self._rows = 0
        self._origin = origin
        self._schema: Any = None
        self._writer: Any = None

    def _begin(self, has_index: bool) -> None:
        arrow = self._arrow
        kind = arrow.list_(arrow.from_numpy_dtype(np.dtype(self._dtype)), self._width)
        key = _KEY_OF[self._origin.of]
        fields = [(key, arrow.string()), ("embedding", kind), ("error", arrow.string())]
        fields += [("path_b64", arrow.string())] if key == "path" else []
        fields += [("index", arrow.int64())] if has_index else []
        self._schema = arrow.schema(fields).with_metadata({_ORIGIN: self._origin.to_json()})
        with can_write(self._name):
            # features don't compress, and their statistics say nothing
            names = [name for name in self._schema.names if name != "embedding"]
            self._writer = self._parquet.ParquetWriter(
                self._file,
                self._schema,
                compression=dict.fromkeys(names, "zstd") | {"embedding": "none"},
                use_dictionary=names,
                write_statistics=names,
            )

    def write(self, rows: VectorRows) -> None:
        if self._writer is None:
            self._begin(rows.indices is not None)
        self._waiting.append(rows)
        self._rows += len(rows.keys)
        if self._rows >= _GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._writer is None:  # a file without rows
            self._begin(has_index=False)
        try:
            self._write_group()
        finally:
            with can_write(self._name):
                self._writer.close()

    def _write_group(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        rows, arrow = joined(waiting), self._arrow
        vectors = arrow.FixedSizeListArray.from_arrays(
            arrow.array(rows.spread(0.0, self._dtype).ravel()), self._width, mask=arrow.array(~rows.has_features)
        )
        errors = [error and os.fsencode(error).decode("utf-8", "replace") for error in rows.errors]
        named = path_columns(rows.keys)
        columns = [
            arrow.array(named["image_path"], arrow.string()),
            vectors,
            arrow.array(errors, arrow.string()),
        ]
        if "path_b64" in self._schema.names:
            columns.append(arrow.array(named.get("path_b64", [None] * len(rows.keys)), arrow.string()))
        if "index" in self._schema.names:
            columns.append(arrow.array(rows.indices, arrow.int64()))
        with can_write(self._name):
            self._writer.write_table(arrow.Table.from_arrays(columns, schema=self._schema))


#: A row of a part of some inputs: index, path, error and features, which are None with an error.
IndexedRow = tuple[int, str, str | None, Vectors | None]


def stated_origin(path: Path) -> FeatureOrigin:
    """Read what made the features in a file.

    Raises:
        UsageError: the file holds something else, or isn't whole.
    """
    origin = _origin(_read(path, ()), path)
    if origin is None:
        raise UsageError(f"{path}: nothing in it says what made its features.")
    return origin


def indexed_rows(path: Path) -> Iterator[IndexedRow]:
    """Yield the rows of a file with a part of some inputs.

    Raises:
        UsageError: the file holds something else, or isn't whole.
    """
    arrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                table = file.read_row_group(number)
                column = table.column("embedding").combine_chunks()
                features = iter(np.from_dlpack(column.flatten()).reshape(-1, column.type.list_size))
                named = zip(*(table.column(name).to_pylist() for name in ("index", "error")), strict=True)
                for key, (index, error) in zip(paths_in(table, "path"), named, strict=True):
                    yield index, key, error, next(features) if error is None else None
    except (OSError, KeyError, arrow.ArrowException) as exc:
        raise UsageError(f"{path}: not features of a part, or not whole: {first_line(exc).rstrip('.')}.") from exc


def _read(path: Path, columns: tuple[str, ...]) -> Any:
    """Read the columns of a file that are there."""
    arrow, parquet = require_pyarrow()
    try:
        # parquet.read_table would import pandas as well, and copy what is mapped
        with parquet.ParquetFile(path, memory_map=True) as file:
            wanted = [name for name in columns if name in file.schema_arrow.names]
            # the first has no rows, for a file without any
            groups = [file.read_row_groups([], columns=wanted)]
            groups += [file.read_row_group(number, columns=wanted) for number in range(file.num_row_groups)]
            return arrow.concat_tables(groups)
    except (OSError, arrow.ArrowException) as exc:
        raise UsageError(f"{path}: not a Parquet file, or not a whole one: {first_line(exc).rstrip('.')}.") from exc


def path_columns(paths: Sequence[str]) -> dict[str, list[str | None]]:
    """Return the columns that name pictures: one that isn't UTF-8 gets replacement characters, and `path_b64`."""
    shown: list[str | None] = [os.fsencode(path).decode("utf-8", "replace") for path in paths]
    raw = [
        None if path == plain else b64encode(os.fsencode(path)).decode()
        for path, plain in zip(paths, shown, strict=True)
    ]
    return {"image_path": shown} | ({"path_b64": raw} if any(raw) else {})


def paths_in(table: Any, name: str) -> list[str]:
    """Return the paths of a table with columns as `path_columns` gives them."""
    shown: list[str] = table.column(name).to_pylist()
    if "path_b64" not in table.column_names:
        return shown
    raw = table.column("path_b64").to_pylist()
    return [os.fsdecode(b64decode(odd)) if odd else path for path, odd in zip(shown, raw, strict=True)]


def _key(table: Any) -> str:
    return "text" if "text" in table.column_names else "path"


def _origin(table: Any, path: Path) -> FeatureOrigin | None:
    stated = (table.schema.metadata or {}).get(_ORIGIN)
    return None if stated is None else FeatureOrigin.from_json(stated, str(path))

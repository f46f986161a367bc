"""Predictions as Parquet, by pyarrow (the extra `parquet`)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from clipcls.errors import StoppedError, UsageError, first_line
from clipcls.outputs.rows import prediction_of, record
from clipcls.records import Prediction

# of a row group: rows, or answers that they list
_GROUP_ROWS = 8192
_GROUP_ANSWERS = 131_072


class ParquetSink:
    """Writes predictions to a Parquet file, which can be read once it is closed.

    Rows are in memory until a row group of some thousands is written.

    Args:
        file: open, and empty.
        name: of the output, for messages.
        indexed: whether predictions have an index.

    Raises:
        StoppedError: the file can't be written.
        UsageError: pyarrow isn't installed.
    """

    def __init__(self, file: BinaryIO, name: str, *, indexed: bool = False) -> None:
        self._name = name
        self._arrow, parquet = require_pyarrow()
        self._schema = _schema(self._arrow, indexed)
        self._rows: list[dict[str, Any]] = []
        self._answers = 0
        with self._can_write():
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, prediction: Prediction) -> None:
        """Write one prediction; it may stay in memory for a while."""
        self._rows.append(record(prediction))
        self._answers += len(prediction.top)
        if len(self._rows) >= _GROUP_ROWS or self._answers >= _GROUP_ANSWERS:
            self._write_group()

    def close(self) -> None:
        """Write what is left, and the end that makes the file readable."""
        try:
            self._write_group()
        finally:
            with self._can_write():
                self._writer.close()

    def _write_group(self) -> None:
        rows, self._rows, self._answers = self._rows, [], 0
        if rows:
            with self._can_write():
                self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))

    @contextlib.contextmanager
    def _can_write(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else first_line(exc)
            raise StoppedError(f"{self._name}: can't be written: {reason}.") from exc


def read_parquet(file: BinaryIO, name: str) -> Iterator[Prediction]:
    """The predictions in a Parquet file.

    Raises:
        UsageError: it isn't one that `ParquetSink` wrote, or pyarrow isn't installed.
    """
    arrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(file) as source:
            for batch in source.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield prediction_of(row)
    except (OSError, arrow.ArrowException, KeyError, TypeError, ValueError) as exc:
        raise _not_ours(name, exc) from exc


def _not_ours(name: str, exc: Exception) -> UsageError:
    return UsageError(f"{name}: not a Parquet file that `clipcls predict` writes: {first_line(exc)}")


def count_rows(path: Path) -> tuple[int, int]:
    """How many predictions there are in a Parquet file, and how many of them have an error.

    Raises:
        UsageError: it isn't one that `ParquetSink` wrote, or pyarrow isn't installed.
    """
    arrow, parquet = require_pyarrow()
    try:
        with path.open("rb") as file:
            errors = parquet.read_table(file, columns=["error"]).column("error")
            return len(errors), len(errors) - errors.null_count
    except (OSError, arrow.ArrowException, KeyError) as exc:
        raise _not_ours(str(path), exc) from exc


def require_pyarrow() -> tuple[ModuleType, ModuleType]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        UsageError: pyarrow isn't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise UsageError(f"Parquet needs the package pyarrow ({exc}): pip install 'clipcls[parquet]'") from exc
    return pyarrow, pyarrow.parquet


def _schema(arrow: ModuleType, indexed: bool) -> Any:
    answer = arrow.struct(
        [("label", arrow.string()), ("score", arrow.float64()), ("similarity", arrow.float64())],
    )
    return arrow.schema(
        [
            ("path", arrow.string()),
            ("label", arrow.string()),
            ("score", arrow.float64()),
            ("similarity", arrow.float64()),
            ("top", arrow.list_(answer)),
            ("error", arrow.string()),
            ("path_b64", arrow.string()),
            *([("index", arrow.int64())] if indexed else []),
        ]
    )

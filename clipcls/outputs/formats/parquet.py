"""Parquet, written and read with pyarrow (the extra `parquet`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from clipcls.errors import UsageError, first_line
from clipcls.outputs.atomic import can_write
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.records import Prediction

# a row group is written once it has as many rows, or answers listed in them
_GROUP_ROWS = 8192
_GROUP_ANSWERS = 131_072


class ParquetFormat(OutputFormat):
    """Rows in an Arrow table, which can be read once the file is closed."""

    name = "parquet"
    extensions = ("parquet", "pq")
    keeps_index = True

    def require(self) -> None:
        require_pyarrow()

    @contextlib.contextmanager
    def open_sink(self, stream: BinaryIO, name: str, *, indexed: bool = False) -> Iterator[Sink]:
        with contextlib.closing(_ParquetSink(stream, name, indexed, self.has_known)) as sink:
            yield sink

    def read(self, file: BinaryIO, name: str, *, torn: bool = False) -> Iterator[Prediction]:
        arrow, parquet = require_pyarrow()
        try:
            with parquet.ParquetFile(file) as source:
                for batch in source.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        yield prediction_of(row)
        except (OSError, arrow.ArrowException, KeyError, TypeError, ValueError) as exc:
            raise _not_ours(name, exc) from exc

    def tally(self, path: Path) -> tuple[int, int]:
        arrow, parquet = require_pyarrow()
        try:
            with path.open("rb") as file:
                errors = parquet.read_table(file, columns=["error"]).column("error")
                return len(errors), len(errors) - errors.null_count
        except (OSError, arrow.ArrowException, KeyError) as exc:
            raise _not_ours(str(path), exc) from exc


class _ParquetSink:
    """Collects rows in memory, and writes them as row groups of some thousands."""

    def __init__(self, file: BinaryIO, name: str, indexed: bool, has_known: bool) -> None:
        self._name = name
        self._arrow, parquet = require_pyarrow()
        self._schema = _schema(self._arrow, indexed, has_known)
        self._rows: list[dict[str, Any]] = []
        self._answers = 0
        with can_write(name):
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, prediction: Prediction) -> None:
        self._rows.append(row_fields(prediction))
        self._answers += len(prediction.top)
        if len(self._rows) >= _GROUP_ROWS or self._answers >= _GROUP_ANSWERS:
            self._write_group()

    def close(self) -> None:
        """Write the remaining rows, and the footer that makes the file readable."""
        try:
            self._write_group()
        finally:
            with can_write(self._name):
                self._writer.close()

    def _write_group(self) -> None:
        rows, self._rows, self._answers = self._rows, [], 0
        if rows:
            with can_write(self._name):
                self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._schema))


def _not_ours(name: str, exc: Exception) -> UsageError:
    return UsageError(f"{name}: not a Parquet file that `clipcls predict` writes: {first_line(exc)}")


def require_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Import pyarrow and its Parquet module.

    Raises:
        UsageError: they aren't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise UsageError(f"Parquet needs the package pyarrow ({exc}): pip install 'clipcls[parquet]'") from exc
    return pyarrow, pyarrow.parquet


def _schema(arrow: ModuleType, indexed: bool, has_known: bool) -> Any:
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
            *([("known", arrow.float64())] if has_known else []),
            *([("index", arrow.int64())] if indexed else []),
        ]
    )

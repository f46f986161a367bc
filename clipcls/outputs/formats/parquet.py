"""Parquet, written and read with pyarrow (the extra `parquet`)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from clipcls.errors import UsageError, first_line
from clipcls.outputs.atomic import can_write
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.outputs.rows import RowShape, prediction_of, row_fields
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
    def open_sink(self, stream: BinaryIO, name: str) -> Iterator[Sink]:
        with contextlib.closing(_ParquetSink(stream, name, self.shape)) as sink:
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

    def __init__(self, file: BinaryIO, name: str, shape: RowShape) -> None:
        self._name = name
        self._arrow, parquet = require_pyarrow()
        self._schema = _schema(self._arrow, shape)
        self._questions = shape.questions
        self._rows: list[dict[str, Any]] = []
        self._answers = 0
        with can_write(name):
            self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, prediction: Prediction) -> None:
        self._rows.append(row_fields(prediction, self._questions))
        self._answers += len(prediction.top) + sum(len(answer.top) for _, answer in prediction.answers if answer)
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


def _schema(arrow: ModuleType, shape: RowShape) -> Any:
    text, number = arrow.string(), arrow.float64()
    scored = arrow.struct([("label", text), ("score", number), ("similarity", number)])
    answer = [("label", text), ("score", number), ("similarity", number), ("top", arrow.list_(scored))]
    to_question = arrow.struct([*answer, *([("uncorrected", scored)] if shape.has_uncorrected else [])])
    return arrow.schema(
        [
            ("path", text),
            *([(name, to_question) for name in shape.questions] or answer),
            ("error", text),
            ("path_b64", text),
            *([("known", number)] if shape.has_known else []),
            *([("index", arrow.int64())] if shape.has_index else []),
        ]
    )

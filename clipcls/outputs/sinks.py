"""Where predictions are written: standard output, a file, or part files in a folder. One row at a time."""

import contextlib
import io
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast, get_args

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import lock
from clipcls.outputs.parquet import ParquetSink
from clipcls.outputs.part_files import PART_ROWS, part_name
from clipcls.outputs.rows import COLUMNS, Row, csv_line, csv_row, jsonl_row, table_row, tsv_row
from clipcls.records import Format, Prediction

FORMATS: tuple[str, ...] = get_args(Format)


class Sink(Protocol):
    """Takes predictions in their order."""

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; a file then ends with its last whole row.
        """


class TextSink:
    """Writes predictions row by row, each at once.

    Args:
        stream: binary, so that names in any bytes come out as they are; at its end, and best without a buffer, whose
            rest nobody could take back from a full disk.
        row: turns a prediction into text with its line ends; may be empty.
        header: written first.
        name: of the output, for messages.
    """

    def __init__(self, stream: BinaryIO, row: Row, header: str = "", name: str = "standard output") -> None:
        self._stream = stream
        self._row = row
        self._name = name
        self._write(header)

    def write(self, prediction: Prediction) -> None:
        """See `Sink`."""
        self._write(self._row(prediction))

    def _write(self, text: str) -> None:
        data = rest = text.encode("utf-8", "surrogateescape")
        try:
            while rest:
                # a file without a buffer may take a part only
                rest = rest[self._stream.write(rest) :]
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            self._take_back(len(data) - len(rest))
            raise StoppedError(f"{self._name}: can't be written: {exc.strerror}.") from exc

    def _take_back(self, length: int) -> None:
        """Cut off a part of a row, unless others have written to the same file behind it."""
        with contextlib.suppress(OSError):
            if length and self._stream.seekable():
                end = self._stream.tell()
                if end == self._stream.seek(0, os.SEEK_END):
                    self._stream.truncate(end - length)


class Parts:
    """Writes predictions to files of PART_ROWS rows in a folder, each there under its name once it is whole.

    A context manager, which publishes the last file.

    Args:
        first: number of the first file.
    """

    def __init__(self, folder: Path, kind: Format, first: int = 0) -> None:
        self._folder = folder
        self._kind = kind
        self._number = first
        self._rows = 0
        self._open = contextlib.ExitStack()
        self._part: Sink | None = None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.__exit__(*exc)

    def write(self, prediction: Prediction) -> None:
        """See `Sink`; the row is in a file when that is whole."""
        if self._part is None:
            path = self._folder / part_name(self._number, self._kind)
            self._part = self._open.enter_context(published(path, self._kind, early=True))
        self._part.write(prediction)
        self._rows += 1
        if self._rows >= PART_ROWS:
            self._open.close()
            self._part, self._rows = None, 0
            self._number += 1


@contextlib.contextmanager
def open_sink(output: str, kind: str | None, *, labels: tuple[str, ...]) -> Iterator[Sink]:
    """The sink for a file that is written anew, or for standard output.

    Args:
        output: a file's name, or `-`.
        kind: one of FORMATS; None for what the file's extension tells, or else a table on a terminal and TSV.
        labels: all labels of the run, for the widths of the table.

    Raises:
        StoppedError: the output can't be written.
        UsageError: the extension tells no format, and none is given.
    """
    if output == "-":
        if sys.stdout is None:
            raise StoppedError("standard output is closed. Give --output FILE.")
        kind = kind or ("table" if sys.stdout.isatty() else "tsv")
        yield text_sink(kind, _standard_output(), labels, "standard output")
        return
    path = Path(output)
    kind = kind or format_for(path)
    # Parquet can't be read before its end is written
    with published(path, kind, early=True) if kind == "parquet" else _opened(path, kind, labels, output) as sink:
        yield sink


@contextlib.contextmanager
def published(path: Path, kind: str, *, early: bool) -> Iterator[Sink]:
    """A sink for a file that gets its name when it is left, so that it is whole wherever it is.

    Args:
        early: also where it is left by an exception, with the rows until then.

    Raises:
        StoppedError: the file can't be written.
    """
    if path.exists() and not path.is_file():  # a device or a pipe, whose place no file may take
        with _opened(path, kind, (), str(path)) as sink:
            yield sink
        return
    path = Path(os.path.realpath(path))  # a link stays one
    draft = path.with_name(f".{path.name}.part")
    with _held(draft, str(path)):
        try:
            with contextlib.ExitStack() as stack:
                sink = stack.enter_context(_opened(draft, kind, (), str(path)))
                try:
                    yield sink
                except BaseException:
                    if early:
                        stack.close()
                        _publish(draft, path)
                    raise
            _publish(draft, path)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(draft: Path, name: str) -> Iterator[None]:
    """Keep other runs from writing to the same draft."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(draft.open("ab"))
        except OSError as exc:
            raise StoppedError(f"{name}: can't be written: {exc.strerror}.") from exc
        if not lock(file):
            raise StoppedError(f"{name}: another run is writing to it. Wait for its end, or choose another output.")
        yield


def _publish(draft: Path, path: Path) -> None:
    try:
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, draft)
        draft.replace(path)
    except OSError as exc:
        raise StoppedError(f"{path}: can't be written: {exc.strerror}.") from exc


@contextlib.contextmanager
def _opened(path: Path, kind: str, labels: tuple[str, ...], name: str) -> Iterator[Sink]:
    try:
        stream = cast("BinaryIO", path.open("wb", buffering=0))
    except OSError as exc:
        raise StoppedError(f"{name}: can't be written: {exc.strerror}.") from exc
    with stream, _on_stream(stream, kind, labels, name) as sink:
        yield sink


@contextlib.contextmanager
def _on_stream(
    stream: BinaryIO, kind: str, labels: tuple[str, ...], name: str, *, indexed: bool = False
) -> Iterator[Sink]:
    if kind != "parquet":
        yield text_sink(kind, stream, labels, name)
        return
    with contextlib.closing(ParquetSink(stream, name, indexed=indexed)) as sink:
        yield sink


def encode(predictions: Iterable[Prediction], kind: Format) -> bytes:
    """Predictions that have an index as the content of a file."""
    content = io.BytesIO()
    with _on_stream(content, kind, (), "memory", indexed=True) as sink:
        for prediction in predictions:
            sink.write(prediction)
    return content.getvalue()


def _standard_output() -> BinaryIO:
    """Its buffer; of a file, what is below that."""
    buffer: Any = sys.stdout.buffer
    sys.stdout.flush()
    is_file = isinstance(buffer, io.BufferedWriter) and stat.S_ISREG(os.fstat(buffer.fileno()).st_mode)
    return cast("BinaryIO", buffer.raw if is_file else buffer)


def text_sink(kind: str, stream: BinaryIO, labels: tuple[str, ...], name: str, *, begins: bool = True) -> TextSink:
    """The sink of a format that is text, at the end of a stream.

    Args:
        begins: False where there are rows already, which have a header if the format has one.

    Raises:
        UsageError: there is no such format.
    """
    match kind:
        case "table":
            return TextSink(stream, table_row(labels, shutil.get_terminal_size().columns), name=name)
        case "tsv":
            return TextSink(stream, tsv_row, name=name)
        case "jsonl":
            return TextSink(stream, jsonl_row, name=name)
        case "csv":
            return TextSink(stream, csv_row, header=csv_line(COLUMNS) if begins else "", name=name)
    raise UsageError(f"Unknown format {kind!r}. Use one of: {', '.join(FORMATS)}.")


def format_for(output: Path) -> Format:
    """The format that a file's extension tells.

    Raises:
        UsageError: it tells none that clipcls writes.
    """
    suffix = output.suffix.lower().removeprefix(".")
    kind = {"ndjson": "jsonl", "txt": "tsv", "": "tsv", "pq": "parquet"}.get(suffix, suffix)
    if kind not in FORMATS:
        raise UsageError(f"{output}: .{suffix} tells no format that clipcls writes. Give --format {'|'.join(FORMATS)}.")
    return cast("Format", kind)

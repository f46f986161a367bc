"""Writes predictions row by row to standard output, a file, or part files in a folder."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from clipcls.errors import StoppedError
from clipcls.outputs.atomic import Draft, can_write
from clipcls.outputs.destination import Destination
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.outputs.part_files import part_name
from clipcls.records import Prediction

#: Rows in each part file.
PART_ROWS = 10_000


class Parts:
    """Writes predictions to files of PART_ROWS rows in a folder, each of which gets its name once it is whole.

    Leaving the context publishes the last file.

    Args:
        first: the number of the first file.
    """

    def __init__(self, folder: Path, format: OutputFormat, first: int = 0) -> None:
        self._folder = folder
        self._format = format
        self._number = first
        self._rows = 0
        self._open = contextlib.ExitStack()
        self._part: Sink | None = None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *exc: Any) -> None:
        self._open.__exit__(*exc)

    def write(self, prediction: Prediction) -> None:
        """Write one prediction; see `Sink`. The row can be read once its file is whole."""
        if self._part is None:
            path = self._folder / part_name(self._number, self._format)
            self._part = self._open.enter_context(published(path, self._format, early=True))
        self._part.write(prediction)
        self._rows += 1
        if self._rows >= PART_ROWS:
            self._open.close()
            self._part, self._rows = None, 0
            self._number += 1


@contextlib.contextmanager
def open_sink(destination: Destination, labels: tuple[str, ...]) -> Iterator[Sink]:
    """Open a sink for a new file or for standard output.

    Args:
        labels: all labels of the run, for the widths of a table.

    Raises:
        StoppedError: the output can't be written.
        UsageError: no format is given, and the extension implies none.
    """
    output, format = destination.output, destination.format.for_labels(labels)
    if output == "-":
        if sys.stdout is None:
            raise StoppedError("standard output is closed. Give --output FILE.")
        with format.open_sink(_standard_output(), "standard output") as sink:
            yield sink
    elif format.can_stream:
        with contextlib.ExitStack() as stack:
            with can_write(output):
                stream = cast("BinaryIO", stack.enter_context(Path(output).open("wb", buffering=0)))
            yield stack.enter_context(format.open_sink(stream, output))
    else:
        with published(Path(output), format, early=True) as sink:
            yield sink


@contextlib.contextmanager
def published(path: Path, format: OutputFormat, *, early: bool) -> Iterator[Sink]:
    """Open a sink for a file that gets its name when the context is left, so that no file is ever partial.

    Args:
        early: publish the rows so far even if an exception ends the context.

    Raises:
        StoppedError: the file can't be written, or another run writes to it.
    """
    with contextlib.ExitStack() as stack:
        with can_write(str(path)):
            draft = stack.enter_context(Draft(path, buffering=0))
        rows = stack.enter_context(contextlib.ExitStack())
        sink = rows.enter_context(format.open_sink(draft.file, str(path)))
        try:
            yield sink
        except BaseException:
            if early:
                _publish(rows, draft, path)
            raise
        _publish(rows, draft, path)


def _publish(rows: contextlib.ExitStack, draft: Draft, path: Path) -> None:
    rows.close()
    with can_write(str(path)):
        draft.publish()


def encode(predictions: Iterable[Prediction], format: OutputFormat) -> bytes:
    """Return the content of a file of predictions that have an index."""
    content = io.BytesIO()
    with format.with_shape(replace(format.shape, has_index=True)).open_sink(content, "memory") as sink:
        for prediction in predictions:
            sink.write(prediction)
    return content.getvalue()


def _standard_output() -> BinaryIO:
    """Return the buffer of standard output, or its unbuffered stream if it is a file."""
    buffer: Any = sys.stdout.buffer
    sys.stdout.flush()
    is_file = isinstance(buffer, io.BufferedWriter) and stat.S_ISREG(os.fstat(buffer.fileno()).st_mode)
    return cast("BinaryIO", buffer.raw if is_file else buffer)

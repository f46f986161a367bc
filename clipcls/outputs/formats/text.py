"""The base of the text formats: rows are written at once, and read back with their positions."""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import BinaryIO, ClassVar

from clipcls.errors import UsageError
from clipcls.outputs.atomic import can_write
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.records import Prediction
from clipcls.text_files import UTF8_MARK, refuse_utf16

_CUT_SHORT = "{}: ends within a row; the run that wrote it was cut short. `--resume` completes it."


class WholeLines:
    """The lines of a file, without the byte order mark that editors write, and without a partly written last line.

    Args:
        is_whole: whether a last line without its end counts, as editors leave it.

    Attributes:
        name: the file's name, for messages.
        number: number of the current line, from 1.
        end: end of the current line, in bytes from the beginning.
        last: the current line.
        lacks_end: whether the last line has no end.
    """

    def __init__(self, file: Iterable[bytes], name: str, *, is_whole: bool = False) -> None:
        self._file = file
        self._is_whole = is_whole
        self.name = name
        self.number = self.end = 0
        self.lacks_end = False
        self.last = b""

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            if not self.number:
                refuse_utf16(line, self.name)
            self.lacks_end = not line.endswith(b"\n")
            if not self.lacks_end or self._is_whole:
                self.number += 1
                self.end += len(line)
                self.last = line if self.number > 1 else line.removeprefix(UTF8_MARK)
                yield self.last


class TextFormat(OutputFormat):
    """A format of lines of UTF-8, in which the bytes of file names are kept.

    Attributes:
        one_row_per_image: whether an image with several answers has only one row.
    """

    can_stream = True
    one_row_per_image: ClassVar[bool] = True

    @property
    def header(self) -> str:
        """The beginning of a file."""
        return ""

    @abstractmethod
    def row(self, prediction: Prediction) -> str:
        """Return the lines of a prediction with their line ends; empty if it has no lines."""

    @abstractmethod
    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        """Yield each prediction with the end of its rows, in bytes from the beginning.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: a line isn't a row of this format.
        """

    def read_rows(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        """Yield each prediction with the end of its rows, in bytes from the beginning.

        Raises:
            UsageError: a line isn't a row of this format.
        """
        try:
            yield from self.parse(lines)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise UsageError(f"{lines.name}, line {lines.number}: not a row that `clipcls predict` writes.") from exc

    def read(self, file: BinaryIO, name: str, *, torn: bool = False) -> Iterator[Prediction]:
        return self.read_lines(file, name, torn=torn)

    def read_lines(self, file: Iterable[bytes], name: str, *, torn: bool = False) -> Iterator[Prediction]:
        """Yield the predictions in the lines of a file; see `read`."""
        lines = WholeLines(file, name, is_whole=not torn)
        end = 0
        try:
            for prediction, end in self.read_rows(lines):  # noqa: B007
                yield prediction
        except UsageError as exc:
            if lines.lacks_end:
                raise UsageError(_CUT_SHORT.format(name)) from exc
            raise
        if not torn and lines.end > end > 0:
            raise UsageError(_CUT_SHORT.format(name))

    @contextlib.contextmanager
    def open_sink(self, stream: BinaryIO, name: str) -> Iterator[Sink]:
        yield TextSink(stream, self, name)


class TextSink:
    """Writes each prediction at once.

    Args:
        stream: the stream at its end; see `OutputFormat.open_sink`.
        name: the output's name, for messages.
        begins: whether to write the header; False if there are rows already.
    """

    def __init__(self, stream: BinaryIO, format: TextFormat, name: str, *, begins: bool = True) -> None:
        self._stream = stream
        self._row = format.row
        self._name = name
        if begins:
            self._write(format.header)

    def write(self, prediction: Prediction) -> None:
        """Write one prediction; see `Sink`."""
        self._write(self._row(prediction))

    def _write(self, text: str) -> None:
        data = rest = text.encode("utf-8", "surrogateescape")
        with can_write(self._name):
            try:
                while rest:
                    # an unbuffered file may take only a part
                    rest = rest[self._stream.write(rest) :]
                self._stream.flush()
            except OSError:
                self._take_back(len(data) - len(rest))
                raise

    def _take_back(self, length: int) -> None:
        """Cut off a partly written row, unless another process has written behind it."""
        with contextlib.suppress(OSError):
            if length and self._stream.seekable():
                end = self._stream.tell()
                if end == self._stream.seek(0, os.SEEK_END):
                    self._stream.truncate(end - length)


def answers(prediction: Prediction) -> list[tuple[str, float]]:
    """Return label and score of each listed answer; an unknown image has one, with an empty label."""
    if prediction.label is None:
        return [("", entry.score) for entry in prediction.top[:1]]
    return [(entry.label, entry.score) for entry in prediction.top]

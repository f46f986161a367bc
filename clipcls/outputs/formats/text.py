"""What the formats that are text have in common: rows that are written at once, and read back with their places."""

import binascii
import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, TypeVar

from clipcls.errors import UsageError
from clipcls.outputs.atomic import can_write
from clipcls.outputs.formats.output_format import OutputFormat, Sink
from clipcls.records import Prediction

_Row = TypeVar("_Row")
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A prediction with the place of its rows.

    Attributes:
        prediction: without what its format doesn't hold: TSV knows no similarities (None, and NaN in `top`).
        start: of its first row, in bytes from the beginning.
        end: of its last row.
    """

    prediction: Prediction
    start: int
    end: int


class TextFormat(OutputFormat):
    """A format of lines of UTF-8, in which a name's bytes stay what they are.

    Attributes:
        header: what a file begins with.
        one_row_per_image: whether an image with several answers has one row.
    """

    can_stream = True
    header: ClassVar[str] = ""
    one_row_per_image: ClassVar[bool] = True

    @abstractmethod
    def row(self, prediction: Prediction) -> str:
        """Return the lines of a prediction with their ends; empty where it has none."""

    @abstractmethod
    def read_rows(self, lines: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
        """Read the predictions with their places, but for a last row that was written in part.

        Raises:
            UsageError: the lines are something else.
        """

    def for_labels(self, labels: tuple[str, ...]) -> "TextFormat":
        """Return the format with columns that are wide enough for all labels."""
        return self

    @contextlib.contextmanager
    def open_sink(
        self, stream: BinaryIO, name: str, labels: tuple[str, ...] = (), *, indexed: bool = False
    ) -> Iterator[Sink]:
        """See `OutputFormat.open_sink`."""
        yield TextSink(stream, self.for_labels(labels), name)

    def read(self, file: BinaryIO, name: str, *, torn: bool = False) -> Iterator[Prediction]:
        """See `OutputFormat.read`."""
        lines = _CountedLines(file)
        end = 0
        for stored in self.read_rows(lines, name):
            end = stored.end
            yield stored.prediction
        if not torn and (lines.is_torn or lines.bytes > end > 0):
            raise UsageError(
                f"{name}: ends within a row; the run that wrote it was cut short. `--resume` completes it."
            )


class TextSink:
    """Writes predictions row by row, each at once.

    Args:
        stream: at its end; see `OutputFormat.open_sink`.
        name: of the output, for messages.
        begins: False where there are rows already, so that no header is needed.
    """

    def __init__(self, stream: BinaryIO, format: TextFormat, name: str, *, begins: bool = True) -> None:
        self._stream = stream
        self._row = format.row
        self._name = name
        if begins:
            self._write(format.header)

    def write(self, prediction: Prediction) -> None:
        """See `Sink`."""
        self._write(self._row(prediction))

    def _write(self, text: str) -> None:
        data = rest = text.encode("utf-8", "surrogateescape")
        with can_write(self._name):
            try:
                while rest:
                    # a file without a buffer may take a part only
                    rest = rest[self._stream.write(rest) :]
                self._stream.flush()
            except OSError:
                self._take_back(len(data) - len(rest))
                raise

    def _take_back(self, length: int) -> None:
        """Cut off a part of a row, unless others have written to the same file behind it."""
        with contextlib.suppress(OSError):
            if length and self._stream.seekable():
                end = self._stream.tell()
                if end == self._stream.seek(0, os.SEEK_END):
                    self._stream.truncate(end - length)


def answers(prediction: Prediction) -> list[tuple[str, float]]:
    """Return label and score of each line that lists an answer; an unknown image has one, with an empty label."""
    if prediction.label is None:
        return [("", entry.score) for entry in prediction.top[:1]]
    return [(entry.label, entry.score) for entry in prediction.top]


def whole_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Leave out a last line without an end."""
    return (line for line in lines if line.endswith(b"\n"))


def parse_row(parse: Callable[[_Row], _Parsed], row: _Row, name: str, line: int) -> _Parsed:
    """Parse a row of a file.

    Raises:
        UsageError: `parse` raises what comes of something else than such a row.
    """
    try:
        return parse(row)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError) as exc:
        raise UsageError(f"{name}, line {line}: not a row that `clipcls predict` writes.") from exc


class _CountedLines:
    """Lines as they are read, a pipe's too."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.bytes = 0
        self.is_torn = False

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.bytes += len(line)
            self.is_torn = not line.endswith(b"\n")
            yield line

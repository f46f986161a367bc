"""The interface of every output format."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, Self

from clipcls.outputs.rows import ONE_ANSWER, RowShape
from clipcls.records import Prediction


class Sink(Protocol):
    """Writes predictions in order."""

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; a file then ends with its last whole row.
        """


@dataclass(frozen=True)
class OutputFormat(ABC):
    """A way to write predictions to a file, and to read them back.

    Attributes:
        name: the name for `--format`.
        extensions: the extensions of its files, without the dot; part files have the first.
        keeps_errors: whether images that failed have rows.
        keeps_explanations: whether rows have room for explanations.
        keeps_index: whether rows have room for an index; see `RowShape`.
        can_be_read: whether predictions can be read back.
        can_stream: whether rows can be read once written, which standard output and `--resume` need.
        shape: what the rows that are written hold.
    """

    shape: RowShape = ONE_ANSWER

    name: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    keeps_errors: ClassVar[bool] = True
    keeps_explanations: ClassVar[bool] = False
    keeps_index: ClassVar[bool] = False
    can_be_read: ClassVar[bool] = True
    can_stream: ClassVar[bool] = False

    @property
    def can_resume(self) -> bool:
        """Whether a run can resume a file of this format."""
        return self.can_stream and self.can_be_read

    @property
    def fits_parts(self) -> bool:
        """Whether part files can have this format; they have to hold errors, since images without a row aren't done."""
        return self.keeps_errors and self.can_be_read

    def require(self) -> None:  # noqa: B027, most need none
        """Check that the libraries of the format are installed.

        Raises:
            UsageError: one isn't.
        """

    def with_shape(self, shape: RowShape) -> Self:
        """Return the format with room for what rows hold."""
        return replace(self, shape=shape)

    def for_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the format with columns that are wide enough for these labels."""
        return self

    @abstractmethod
    def open_sink(self, stream: BinaryIO, name: str) -> AbstractContextManager[Sink]:
        """Open a sink at the beginning of a stream.

        Args:
            stream: preferably unbuffered, so that a row that a full disk cuts off can be removed.
            name: the output's name, for messages.
        """

    @abstractmethod
    def read(self, file: BinaryIO, name: str, *, torn: bool = False) -> Iterator[Prediction]:
        """Yield the predictions in a file, one for each image.

        Args:
            file: the file at its beginning; seekable if the format can't be streamed.
            name: the file's name, for messages.
            torn: leave out a partly written last row instead of raising an error.

        Raises:
            UsageError: the file holds something else, or ends within a row.
        """

    def tally(self, path: Path) -> tuple[int, int]:
        """Count the predictions in a file, and those with an error.

        Raises:
            UsageError: the file holds something else.
        """
        with path.open("rb") as file:
            failed = [prediction.error is not None for prediction in self.read(file, str(path), torn=True)]
        return len(failed), sum(failed)

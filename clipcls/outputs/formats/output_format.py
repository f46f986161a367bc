"""What every output format is asked."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, Self

from clipcls.records import Prediction


class Sink(Protocol):
    """Takes predictions in their order."""

    def write(self, prediction: Prediction) -> None:
        """Write one prediction.

        Raises:
            BrokenPipeError: the reader of a pipe is gone.
            StoppedError: the output can't be written; a file then ends with its last whole row.
        """


class OutputFormat(ABC):
    """A way to write predictions to a file, and to read them back.

    Attributes:
        name: what `--format` calls it.
        extensions: what its files' names may end in, without the dot; those of part files end in the first.
        keeps_errors: whether images that failed have rows.
        keeps_explanations: whether rows have room for explanations.
        keeps_index: whether rows have room for the index that a run on a cluster gives them.
        can_be_read: whether predictions can be read back.
        can_stream: whether rows can be read as soon as they are written, as standard output and `--resume` need it.
    """

    name: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    keeps_errors: ClassVar[bool] = True
    keeps_explanations: ClassVar[bool] = False
    keeps_index: ClassVar[bool] = False
    can_be_read: ClassVar[bool] = True
    can_stream: ClassVar[bool] = False

    @property
    def can_resume(self) -> bool:
        """Whether a run can go on with a file of it."""
        return self.can_stream and self.can_be_read

    @property
    def fits_parts(self) -> bool:
        """Whether part files can be of it: what they don't hold isn't done."""
        return self.keeps_errors and self.can_be_read

    def require(self) -> None:  # noqa: B027, most need none
        """Check that the libraries it needs are installed.

        Raises:
            UsageError: one isn't.
        """

    def for_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the format with columns that are wide enough for these labels."""
        return self

    @abstractmethod
    def open_sink(self, stream: BinaryIO, name: str, *, indexed: bool = False) -> AbstractContextManager[Sink]:
        """Open a sink at the beginning of a stream.

        Args:
            stream: best without a buffer, so that what a full disk doesn't take can be taken back.
            name: of the output, for messages.
            indexed: whether predictions have an index.
        """

    @abstractmethod
    def read(self, file: BinaryIO, name: str, *, torn: bool = False) -> Iterator[Prediction]:
        """Read the predictions in a file, one for each image.

        Args:
            file: at its beginning, and seekable where the format can't be streamed.
            name: of the file, for messages.
            torn: whether a last row that was written in part is left out; otherwise it is an error.

        Raises:
            UsageError: it holds something else, or ends within a row.
        """

    def tally(self, path: Path) -> tuple[int, int]:
        """Count the predictions in a file, and those among them that have an error.

        Raises:
            UsageError: it holds something else.
        """
        with path.open("rb") as file:
            failed = [prediction.error is not None for prediction in self.read(file, str(path), torn=True)]
        return len(failed), sum(failed)

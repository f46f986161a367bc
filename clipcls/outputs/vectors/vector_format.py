"""The interface of every format of features."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipcls.outputs.vectors.origin import FeatureOrigin

DType = Literal["float32", "float16"]
Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class VectorRows:
    """Rows of a file of features.

    Attributes:
        keys: paths of pictures, or texts.
        features: (n_good, embed_dim), of the rows without an error, in order.
        errors: for each row, why it has no features; None if it has.
        indices: for each row, its place in the inputs, if they are a part's.
    """

    keys: tuple[str, ...]
    features: Vectors
    errors: tuple[str | None, ...]
    indices: tuple[int, ...] | None = None

    @property
    def has_features(self) -> NDArray[np.bool_]:
        """Which rows have features, (n_rows,)."""
        return np.array([error is None for error in self.errors], dtype=np.bool_)

    def spread(self, fill: float, dtype: DType) -> Vectors:
        """Return features for all rows, those with an error filled with one value: (n_rows, embed_dim)."""
        spread = np.full((len(self.keys), self.features.shape[1]), fill, dtype=dtype)
        spread[self.has_features] = self.features
        return spread


def joined(parts: Sequence[VectorRows]) -> VectorRows:
    """Return the rows of several parts, at least one."""
    keys = tuple(key for part in parts for key in part.keys)
    errors = tuple(error for part in parts for error in part.errors)
    indices = None if parts[0].indices is None else tuple(index for part in parts for index in part.indices or ())
    return VectorRows(keys, np.concatenate([part.features for part in parts]), errors, indices)


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """Features as a file holds them.

    Attributes:
        keys: paths of pictures, or texts, of the rows that have features.
        blocks: arrays of (n, embed_dim), one after the other in the keys' order; some are mapped from the disk.
        origin: what made them; None where nothing says so.
        failed: the number of rows without features.
    """

    keys: Sequence[str]
    blocks: tuple[Vectors, ...]
    origin: FeatureOrigin | None
    failed: int = 0


class VectorSink(Protocol):
    """Writes rows of features in order."""

    def write(self, rows: VectorRows) -> None:
        """Write rows.

        Raises:
            StoppedError: the output can't be written.
        """


class FileFormat(ABC):
    """A way to write features to a file, and to read them back.

    Attributes:
        name: the name for `--format`.
        extension: of its files, with the dot.
        keeps_index: whether rows have room for their place in the inputs.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    keeps_index: ClassVar[bool] = False

    def require(self) -> None:  # noqa: B027, most need none
        """Check that the libraries of the format are installed.

        Raises:
            UsageError: one isn't.
        """

    @abstractmethod
    def open_sink(self, path: Path, origin: FeatureOrigin, dtype: DType) -> AbstractContextManager[VectorSink]:
        """Open a sink for a file that gets its name, with the rows so far, when the context is left.

        Raises:
            StoppedError: the file can't be written.
        """

    @abstractmethod
    def read(self, path: Path) -> StoredVectors:
        """Read a file of features.

        Raises:
            UsageError: it holds something else, or isn't whole.
        """


class FolderFormat(ABC):
    """A way to write features to a folder in parts, each of which is there once it is whole. All need pyarrow.

    Attributes:
        name: the name for `--format`.
        keeps_index: whether rows have room for their place in the inputs.
    """

    name: ClassVar[str]
    keeps_index: ClassVar[bool] = False

    @abstractmethod
    def write_part(self, folder: Path, number: int, rows: VectorRows, origin: FeatureOrigin, dtype: DType) -> None:
        """Write a part.

        Raises:
            StoppedError: it can't be written.
        """

    @abstractmethod
    def parts_in(self, folder: Path) -> dict[int, Path]:
        """Return a file of each whole part in a folder, by the parts' numbers, in order."""

    @abstractmethod
    def rows_of(self, part: Path) -> Iterator[tuple[str, str | None, int | None]]:
        """Yield the path, the error and the index of each row of a part."""

    @abstractmethod
    def read(self, folder: Path) -> StoredVectors:
        """Read all parts of a folder.

        Raises:
            UsageError: a part isn't whole, or they are of different models.
        """

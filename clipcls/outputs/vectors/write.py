"""Opens the output of a run that writes features: a file, or a folder of parts that a later run goes on with."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.atomic import can_write
from clipcls.outputs.formats.parquet import require_pyarrow
from clipcls.outputs.journal import Journal, RunSettings, journal_path
from clipcls.outputs.part_files import remove_draft_parts
from clipcls.outputs.resume import Done, journal_of_new, require_same
from clipcls.outputs.sinks import PART_ROWS
from clipcls.outputs.vectors import FILE_FORMATS, FOLDER_FORMATS, file_format_for
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import DType, FileFormat, FolderFormat, VectorRows, VectorSink, joined
from clipcls.records import Listing

_Format = TypeVar("_Format", FileFormat, FolderFormat)


@dataclass(frozen=True, slots=True)
class VectorDestination:
    """Where features are written.

    Attributes:
        output: a file; None if there is a folder.
        folder: a folder for parts of 10,000 rows, each of which appears once it is whole.
        format_name: name of the format; None to choose it by the output.
        dtype: of the features.
        resume: continue the features that are there.
        has_index: rows have their place in the inputs, since other outputs hold other rows of the job; a run sets it.
    """

    output: Path | None = None
    folder: Path | None = None
    format_name: str | None = None
    dtype: DType = "float32"
    resume: bool = False
    has_index: bool = False
    retry_errors = False

    def __post_init__(self) -> None:
        """Refuse contradictory or impossible settings.

        Raises:
            UsageError: the settings are such, or a library that the format needs isn't installed.
        """
        if (self.output is None) == (self.folder is None):
            raise UsageError("Features are no text: give --output FILE or --output-dir DIR, one of them.")
        if self.has_index and not (self.folder_format() if self.output is None else self.file_format()).keeps_index:
            raise UsageError("--part: only Parquet has room for a row's place in the whole; give --output ….parquet.")
        if self.output is None:
            self.folder_format()
            require_pyarrow()
            return
        format = self.file_format()
        if self.output.suffix.lower() != format.extension:
            raise UsageError(f"--output {self.output}: name it …{format.extension}, or choose another --format.")
        if self.resume:
            raise UsageError(
                "--resume goes on with --output-dir. A file is written anew, which is quick with what is cached."
            )
        format.require()

    @property
    def name(self) -> str:
        """The name for messages."""
        return str(self.output or self.folder)

    def file_format(self) -> FileFormat:
        """Return the format of the file: the one that was given, or else the one that fits its name.

        Raises:
            UsageError: there is no such format.
        """
        assert self.output is not None
        return _named(self.format_name, FILE_FORMATS) if self.format_name else file_format_for(self.output)

    def folder_format(self) -> FolderFormat:
        """Return the format of the folder: the one that was given, or else Parquet.

        Raises:
            UsageError: there is no such format.
        """
        return _named(self.format_name or "parquet", FOLDER_FORMATS)


def _named(name: str, formats: dict[str, _Format]) -> _Format:
    if name in formats:
        return formats[name]
    if name in FILE_FORMATS:
        raise UsageError(f"--output-dir holds {' or '.join(formats)}; for {name} give --output FILE.")
    raise UsageError(f"Unknown format {name!r}. Use one of: {', '.join(FILE_FORMATS)}.")


@dataclass(slots=True)
class VectorOutput:
    """An open output of a run.

    Attributes:
        sink: writes rows.
        done: the pictures that it held before.
        listing: what the job's inputs were, which a run sets once all rows of its part of them are written.
    """

    sink: VectorSink
    done: Done
    listing: Listing | None = None


@contextlib.contextmanager
def open_vectors(
    destination: VectorDestination, origin: FeatureOrigin, settings: Callable[[], RunSettings]
) -> Iterator[VectorOutput]:
    """Open the output of a run.

    Args:
        settings: returns all settings that rows depend on, by option name; with others the run isn't resumed.

    Raises:
        StoppedError: the output can't be written, or another run writes to it.
        UsageError: the run can't be resumed.
    """
    dtype = destination.dtype
    if destination.output is not None:
        with contextlib.ExitStack() as stack:
            journal = None
            if destination.has_index:
                journal = stack.enter_context(journal_of_new(destination.output, settings()))
            with destination.file_format().open_sink(destination.output, origin, dtype) as sink:
                output = VectorOutput(sink, Done())
                yield output
            if journal is not None and output.listing is not None:
                journal.complete(output.listing)
        return
    assert destination.folder is not None
    folder, format = destination.folder, destination.folder_format()
    with contextlib.ExitStack() as stack:
        with can_write(destination.name):
            folder.mkdir(parents=True, exist_ok=True)
            journal = stack.enter_context(Journal(journal_path(folder), destination.name))
            remove_draft_parts(folder)
            parts = format.parts_in(folder)
            others = [one.name for one in FOLDER_FORMATS.values() if one.parts_in(folder)]
        if others and not parts:
            raise UsageError(f"--output-dir {folder}: there are features in the format {others[0]} in it.")
        if not parts:
            journal.begin(settings())
        elif not destination.resume:
            raise UsageError(
                f"--output-dir {folder}: there are features in it. Give --resume to go on, or another folder."
            )
        else:
            require_same(destination, journal, settings())
        done = Done()
        for part in parts.values():
            for key, error, index in format.rows_of(part):
                done.add(key, error, index)
        if journal.listing is not None:
            journal.complete(None)
        with _Parts(folder, format, max(parts, default=-1) + 1, origin, dtype) as part_sink:
            output = VectorOutput(part_sink, done)
            yield output
        if output.listing is not None:
            journal.complete(output.listing)


class _Parts:
    """Writes parts of PART_ROWS rows; leaving the context writes the last one."""

    def __init__(self, folder: Path, format: FolderFormat, first: int, origin: FeatureOrigin, dtype: DType) -> None:
        self._folder, self._format = folder, format
        self._number = first
        self._origin = origin
        self._dtype: DType = dtype
        self._waiting: list[VectorRows] = []
        self._rows = 0

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, StoppedError):
            self._write()

    def write(self, rows: VectorRows) -> None:
        self._waiting.append(rows)
        self._rows += len(rows.keys)
        if self._rows >= PART_ROWS:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if waiting:
            self._format.write_part(self._folder, self._number, joined(waiting), self._origin, self._dtype)
            self._number += 1

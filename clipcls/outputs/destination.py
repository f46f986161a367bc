"""Where a run writes its results, and in which format."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.outputs.formats import PARTS_FORMAT, PIPE_FORMAT, TERMINAL_FORMAT, find_format, format_for, format_names
from clipcls.outputs.formats.output_format import OutputFormat
from clipcls.outputs.rows import ONE_ANSWER, RowShape

# one slash, since Path drops the second; two letters or more, since a drive's name has one
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results are written.

    Attributes:
        output: a file, or `-` for standard output; ignored if there is a folder.
        folder: a folder for part files, each of which appears once it is whole.
        format_name: name of the format; None to choose it by the output.
        resume: continue the results that are there.
        retry_errors: when resuming, run the images that failed again.
        shape: what rows hold; a run sets it.
    """

    output: str = "-"
    folder: Path | None = None
    format_name: str | None = None
    resume: bool = False
    retry_errors: bool = False
    shape: RowShape = ONE_ANSWER

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.output if self.folder is None else str(self.folder)

    @property
    def is_standard_output(self) -> bool:
        """Whether results go to standard output."""
        return self.folder is None and self.output == "-"

    @property
    def format(self) -> OutputFormat:
        """The format that was given, or else the one that fits the output.

        Raises:
            UsageError: there is no such format.
        """
        return self._format.with_shape(self.shape)

    @property
    def _format(self) -> OutputFormat:
        if self.format_name is not None:
            return find_format(self.format_name)
        if self.folder is not None:
            return PARTS_FORMAT
        if self.output != "-":
            return format_for(Path(self.output))
        return TERMINAL_FORMAT if sys.stdout is not None and sys.stdout.isatty() else PIPE_FORMAT

    @property
    def is_resumable(self) -> bool:
        """Whether it is a file that a run can resume."""
        path = Path(self.output)
        is_file = self.folder is None and self.output != "-" and (path.is_file() or not path.exists())
        return is_file and self.format.can_resume


def check_destination(destination: Destination) -> None:
    """Refuse contradictory or impossible settings before anything is opened.

    Raises:
        UsageError: the settings are such, or a library that the format needs isn't installed.
    """
    output, folder, format = destination.output, destination.folder, destination.format
    if folder is not None and _ADDRESS.match(str(folder)):
        raise UsageError(f"--output-dir {folder}: an address; results are written to folders only.")
    if destination.retry_errors and not destination.resume:
        raise UsageError("--retry-errors goes with --resume.")
    if not output:
        raise UsageError("--output is empty. Give a file, or - for standard output.")
    if folder is not None and output != "-":
        raise UsageError("Give --output or --output-dir, not both.")
    if folder is not None and not format.fits_parts:
        names = format_names(lambda one: one.fits_parts, first=PARTS_FORMAT)
        raise UsageError(f"--output-dir: {format.name} has no rows for images that failed; use {names}.")
    if destination.shape.has_index and destination.is_standard_output:
        raise UsageError("--part: give --output FILE or --output-dir DIR, beside which is recorded which part it is.")
    if destination.shape.has_index and not format.keeps_index:
        names = format_names(lambda one: one.keeps_index, prefix=".")
        raise UsageError(f"--part: {format.name} has no room for a row's place in the whole; write {names}.")
    format.require()
    if folder is None and output == "-" and not format.can_stream:
        raise UsageError(
            f"{format.name.capitalize()} can't be written to standard output. Give --output FILE or --output-dir DIR."
        )
    if destination.resume and folder is None and not destination.is_resumable:
        names = format_names(lambda one: one.can_resume)
        raise UsageError(
            f"--resume: a run can't go on with {'standard output' if output == '-' else output}. "
            f"Give --output FILE with the format {names}, or --output-dir DIR for part files."
        )


def check_explanations(destination: Destination) -> None:
    """Refuse a format that has no room for explanations.

    Raises:
        UsageError: the format has none, or doesn't exist.
    """
    if not destination.format.keeps_explanations:
        names = format_names(lambda one: one.keeps_explanations and one.can_be_read)
        raise UsageError(
            f"--explain: {destination.format.name} has no room for explanations. Use --format {names}, or "
            f"{TERMINAL_FORMAT.name} to read them."
        )

"""Where `clipcls eval` and `calibrate` write what they found."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import typer

from clipcls.errors import StoppedError, UsageError

#: The number of images below which bootstrap intervals are known to be too narrow.
FEW = 50


@dataclass(frozen=True, slots=True)
class Output:
    """Where an evaluation is written.

    Attributes:
        file: a file, or `-` for standard output.
        plot: a PNG file for the confusion matrix; None for no plot.
    """

    format: Literal["table", "json"]
    file: str
    plot: Path | None

    def check(self, sources: Sequence[str | Path | None]) -> None:
        """Refuse output files that can't be written, or would replace inputs.

        Raises:
            UsageError: an output is one of the inputs, or has an unsuitable name.
            StoppedError: an output can't be written, or standard output is closed.
        """
        from clipcls.inputs.discover import EXTENSIONS

        if self.file == "-" and sys.stdout is None:
            raise StoppedError("standard output is closed. Give --output FILE.")

        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise UsageError(f"--confusion-plot {self.plot}: a name that ends in .png is needed.")
        if Path(self.file).suffix.lower() in EXTENSIONS:
            raise UsageError(f"--output {self.file}: not a name for results.")
        for option, path in (("--output", self.file), ("--confusion-plot", self.plot)):
            if path is None or path == "-":
                continue
            target = Path(path)
            written = target.absolute().parent if _is_replaced(target) else target
            if target.is_dir() or not os.access(written, os.W_OK):
                raise StoppedError(
                    f"{target}: can't be written: it is a folder, or in one that isn't there or is closed."
                )
            for source in sources:
                if source and target.exists() and os.path.exists(source) and target.samefile(source):  # noqa: PTH110
                    raise UsageError(f"{option} {target} is one of the inputs, which it would overwrite.")
                if source and path is self.plot and target.resolve().is_relative_to(Path(source).resolve()):
                    raise UsageError(f"{option} {target} lies in {source}, where it would be taken for data.")

    def write_result(self, record: Callable[[], Mapping[str, Any]], report: Callable[[], str]) -> None:
        """Write a result as JSON or as text to read.

        Raises:
            StoppedError: the file can't be written.
        """
        if self.format == "json":
            self.write(json.dumps(record(), ensure_ascii=False, allow_nan=False) + "\n")
        else:
            self.write(report())

    def write(self, text: str) -> None:
        """Write a whole report at once.

        Raises:
            StoppedError: the file can't be written.
        """
        if self.file == "-":
            typer.echo(text.encode("utf-8", "replace"), nl=False)
            return
        from clipcls.outputs.atomic import write_atomically

        def write(file: BinaryIO) -> None:
            file.write(text.encode("utf-8", "replace"))

        path = Path(self.file)
        try:
            if _is_replaced(path):
                write_atomically(path, write)
            else:
                with path.open("wb") as opened:
                    write(opened)
        except OSError as exc:
            raise StoppedError(f"{self.file}: can't be written: {exc.strerror}.") from exc


def exit_if_left_out(count: int, images: int, quiet: bool, more: str = "") -> None:
    """Say how many images aren't in the figures, and exit, if there are any.

    Raises:
        typer.Exit: there are.
    """
    if count:
        if not quiet:
            typer.echo(f"clipcls: {count:,} of {images:,} images were left out of the figures{more}", err=True)
        raise typer.Exit(1)


def _is_replaced(path: Path) -> bool:
    """Return whether a new file replaces the path; links, devices and pipes such as /dev/stdout are written to."""
    return not path.is_symlink() and (path.is_file() or not path.exists())

"""Where the results of a run are to go."""

import re
from dataclasses import dataclass
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.outputs.parquet import require_pyarrow
from clipcls.outputs.sinks import format_for
from clipcls.records import Format

# with the one slash that is left of two in a path; a drive's name has one letter
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, slots=True)
class Target:
    """Where results are to go.

    Attributes:
        output: a file, or `-`; not used with a folder.
        folder: for part files, each there once it is whole.
        kind: None for what the output tells.
        resume: go on with what is there.
        retry_errors: but run the images again that failed.
    """

    output: str = "-"
    folder: Path | None = None
    kind: Format | None = None
    resume: bool = False
    retry_errors: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.output if self.folder is None else str(self.folder)


def check_target(target: Target) -> None:
    """Refuse what contradicts itself or can't be done, before anything is opened.

    Raises:
        UsageError: it does, or it needs pyarrow, which isn't installed.
    """
    kind = target.kind or implied_format(target)
    if target.folder is not None and _ADDRESS.match(str(target.folder)):
        raise UsageError(f"--output-dir {target.folder}: an address; results are written to folders only.")
    if target.retry_errors and not target.resume:
        raise UsageError("--retry-errors goes with --resume.")
    if not target.output:
        raise UsageError("--output is empty. Give a file, or - for standard output.")
    if target.folder is not None and target.output != "-":
        raise UsageError("Give --output or --output-dir, not both.")
    if target.folder is not None and kind in ("table", "tsv"):
        raise UsageError(f"--output-dir: {kind} has no rows for images that failed; use parquet, jsonl or csv.")
    if kind == "parquet":
        require_pyarrow()
        if target.folder is None and target.output == "-":
            raise UsageError("Parquet can't be written to standard output. Give --output FILE or --output-dir DIR.")
    if target.resume and target.folder is None and not is_resumable(target, kind):
        raise UsageError(
            f"--resume: a run can't go on with {'standard output' if target.output == '-' else target.output}. "
            "Give --output FILE with the format tsv, jsonl or csv, or --output-dir DIR for part files."
        )


def implied_format(target: Target) -> Format | None:
    """The format that the output itself tells."""
    if target.folder is not None:
        return "parquet"
    return None if target.output == "-" else format_for(Path(target.output))


def is_resumable(target: Target, kind: str | None) -> bool:
    """Whether it is a file of rows."""
    path = Path(target.output)
    return kind in ("jsonl", "csv", "tsv") and target.output != "-" and (path.is_file() or not path.exists())

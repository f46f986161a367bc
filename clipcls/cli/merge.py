"""`clipcls merge`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clipcls.cli import options
from clipcls.cli.running import FormatOption


def merge_command(
    parts: Annotated[
        list[Path],
        typer.Argument(
            metavar="PART",
            help="What runs with --part wrote: files, folders of part files, or a folder with all of them.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="File to write; - is standard output. Features: .parquet, .npy or .npz."),
    ] = "-",
    format: FormatOption = None,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Put the outputs of a job's parts together, in the order of its inputs, or say which part is missing.

    Example: clipcls merge parts/ -o labels.jsonl
    """
    options.set_up_logging(verbose, quiet)
    from clipcls.cli.outputs import refuse_output
    from clipcls.errors import UsageError
    from clipcls.outputs.destination import Destination
    from clipcls.outputs.merge import merge
    from clipcls.outputs.vectors import FILE_FORMATS

    if format is not None or Path(output).suffix.lower() not in {each.extension for each in FILE_FORMATS.values()}:
        refuse_output(Destination(output, None, format), parts)
    elif any(Path(output).exists() and part.exists() and part.samefile(output) for part in parts):
        raise UsageError(f"--output {output!r} is one of the parts, which it would overwrite.")
    report = merge(parts, Destination(output, None, format))
    if not quiet and output != "-" and sys.stderr.isatty():
        typer.echo(f"clipcls: {report.done:,} images of {report.parts} parts in {output}", err=True)

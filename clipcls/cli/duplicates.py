"""`clipcls duplicates`: pictures that are there more than once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.outputs import refuse_output
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.errors import UsageError
from clipcls.records import Likeness

if TYPE_CHECKING:
    from clipcls.predict.duplicates import DuplicateReport
    from clipcls.records import Duplicate


@dataclass(frozen=True, slots=True)
class _FinderOptions(options.ModelOptions):
    """The options for the model; the default is the one that finds most copies of the embedded ones."""

    model: options.ModelOption = "pictogram"


@options.grouped
def duplicates(
    *,
    inputs: options.InputsArgument = None,
    kind: Annotated[
        Likeness, typer.Option("--kind", help="What pictures share at the least; each kind includes those before it.")
    ] = "picture",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=-1.0,
            max=1.0,
            help="Lowest cosine: of two shots of a scene; else of two pictures to compare. [default: 0.9; else 0.7]",
        ),
    ] = None,
    asked: _FinderOptions,
    further: options.InputOptions,
    format: Annotated[
        options.FormatName | None,
        typer.Option("--format", help="[default: by the output's extension; table on a terminal, else tsv]"),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-",
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Find pictures that are there more than once, and say which one to keep.

    bytes: the same file again. picture: also copies of it, in another format, size or quality, or with a little cut
    off. scene: also other shots of the same scene. Nothing is removed: `clipcls sort` moves what may go.

    Example: clipcls duplicates photos/ --output copies.csv
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.outputs.destination import Destination
    from clipcls.outputs.duplicates import write_duplicates
    from clipcls.predict.duplicates import find_duplicates

    if kind == "bytes" and threshold is not None:
        raise UsageError("--threshold is for --kind picture and scene; the same bytes need none.")
    sources = further.sources(inputs)
    # opened by its name, what it was redirected to would be emptied
    destination = Destination("-" if output in ("/dev/stdout", "/dev/fd/1") else output, format_name=format)
    refuse_output(destination, [*(inputs or ()), further.files_from, asked.model])
    limit, web = errors.limit(), fetching.web(further)
    with Session(asked.spec(), how.execution(limits, False, web)) as session:
        if kind != "bytes":
            quantise_ahead(session, lambda: list_again(sources))
        with Progress(not verbosity.quiet, "") as progress, StopSignals("stopping without a result") as signals:
            report = find_duplicates(sources, session, kind, threshold, limit, signals.received, progress.watch())
    if signals.exit_code:
        raise typer.Exit(signals.exit_code)
    write_duplicates(report.rows, destination)
    _report(report, verbosity.quiet)


def _report(report: "DuplicateReport", quiet: bool) -> None:
    """Say what was found, and exit with 1 if pictures couldn't be read."""
    if not quiet:
        if report.failed:
            typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
        typer.echo(f"clipcls: {_summary(report.rows, report.done)}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _summary(rows: "Sequence[Duplicate]", done: int) -> str:
    if not rows:
        return f"no duplicates among {done:,} images"
    groups = rows[-1].group
    going = [row for row in rows if not row.keep]
    megabytes = sum(row.size or 0 for row in going) / 1e6
    named = f"{groups:,} {'group' if groups == 1 else 'groups'} among {done:,} images"
    return f"{named}; {len(going):,} {'picture' if len(going) == 1 else 'pictures'} could go, {megabytes:,.1f} MB"

"""`clipcls sort`: pictures into one folder for each label, by what predict wrote."""

import os
import sys
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.predictions import read_source
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.errors import StoppedError, UsageError
from clipcls.records import SortMethod

if TYPE_CHECKING:
    from clipcls.outputs.sort.plan import SortPlan

_VERBS: dict[SortMethod, str] = {"copy": "copied", "hardlink": "linked", "symlink": "linked", "move": "moved"}


def sort(
    predictions: Annotated[
        str | None,
        typer.Argument(
            metavar="PREDICTIONS",
            help="What predict or duplicates wrote, or a table of path and label: .jsonl, .csv, .tsv or .parquet; - "
            "is standard input.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="DIR", help="Where each label has its folder; made if need be.", show_default=False
        ),
    ] = None,
    by: Annotated[SortMethod, typer.Option("--by", help="How a picture gets there.")] = "copy",
    format: Annotated[
        options.FormatName | None,
        typer.Option("--format", help="Of the predictions. [default: by the extension; jsonl on standard input]"),
    ] = None,
    question: options.QuestionOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print where each picture would go, and touch nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Move without asking.")] = False,
    undo: Annotated[
        Path | None,
        typer.Option("--undo", metavar="DIR", help="Take back the last run into this folder.", show_default=False),
    ] = None,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Put pictures into one folder for each label, by what predict wrote.

    Example: clipcls sort predictions.jsonl --into sorted/
    """
    options.set_up_logging(verbose, quiet)
    if undo is not None:
        if predictions is not None or into is not None or dry_run:
            raise UsageError("--undo DIR goes alone: no predictions, no --into, no --dry-run.")
        _undo(undo, verbose, quiet)
        return
    if predictions is None or into is None:
        raise UsageError("Give predictions and --into DIR, or --undo DIR.")
    asks = by == "move" and not yes and not dry_run
    if asks and (predictions == "-" or not _is_terminal()):
        raise UsageError("--by move asks first, and there is nobody to ask: give --yes. --dry-run shows what it does.")
    from clipcls.outputs.read_back import read_predictions
    from clipcls.outputs.sort.plan import plan

    read = partial(read_predictions, question=question)
    planned = plan(read_source(predictions, format, read), into, by)
    if not (planned.run.files or planned.left_out or planned.already_there):
        raise UsageError(f"{predictions}: no predictions in it.")
    if dry_run:
        _show(planned, quiet)
    else:
        _sort(planned, asks, verbose, quiet)


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _show(planned: "SortPlan", quiet: bool) -> None:
    """Print what would be done, a `source<TAB>target` a line, escaped as in TSV."""
    with Progress(not quiet, "-") as progress:
        for path, reason in planned.left_out:
            progress.print_error(path, reason)
    for file in planned.run.files.values():
        _print_pair(file.given, planned.shown_target(file))
    if not quiet:
        there = f", {planned.already_there:,} are there already" if planned.already_there else ""
        typer.echo(f"clipcls: {_files(len(planned.run.files))} would be {_VERBS[planned.run.by]}{there}", err=True)
    _exit_if_left_out(planned, len(planned.left_out), quiet)


def _print_pair(first: str, second: str) -> None:
    from clipcls.outputs.formats.tsv import escaped

    if sys.stdout is None:
        raise StoppedError("standard output is closed.")
    line = f"{escaped(first)}\t{escaped(second)}\n"
    sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))


def _print_done(first: str, second: str) -> bool:
    """Print what was done; False where nobody reads it any more, which is no reason to stop half-way."""
    try:
        _print_pair(first, second)
        sys.stdout.flush()
    except BrokenPipeError:
        # what is in the buffer has to go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _sort(planned: "SortPlan", asks: bool, verbose: bool, quiet: bool) -> None:
    from clipcls.outputs.sort.sort import carry_out

    if asks and planned.run.files and not _agreed(planned):
        typer.echo("clipcls: nothing was moved", err=True)
        raise typer.Exit(1)
    counts: Counter[str] = Counter()
    left_out = len(planned.left_out)
    with (
        Progress(not quiet, "-" if verbose else "") as progress,
        StopSignals("finishing the file at hand") as signals,
        closing(carry_out(planned)) as outcomes,
    ):
        for path, reason in planned.left_out:
            progress.print_error(path, reason)
        progress.start(lambda: len(planned.run.files))
        try:
            while not signals.received() and (outcome := next(outcomes, None)) is not None:
                file, error = outcome
                if error is not None:
                    left_out += 1
                    progress.print_error(file.given, error)
                else:
                    counts[file.target.parent.name] += 1
                    verbose = verbose and _print_done(file.given, planned.shown_target(file))
                progress.update(counts.total(), left_out - len(planned.left_out))
        except StoppedError as exc:
            raise StoppedError(f"{exc} {_how_to_go_on(planned, counts.total())}") from exc
    if not quiet:
        _report(planned, counts)
    if signals.exit_code:
        typer.echo(f"clipcls: {_how_to_go_on(planned, counts.total())}", err=True)
        raise typer.Exit(signals.exit_code)
    _exit_if_left_out(planned, left_out, quiet)


def _agreed(planned: "SortPlan") -> bool:
    # not typer.confirm, which writes to standard output too
    typer.echo(f"Move {_files(len(planned.run.files))} into {planned.into}/? [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _how_to_go_on(planned: "SortPlan", done: int) -> str:
    if not done:
        return "Nothing was done."
    return (
        f"{done:,} of {_files(len(planned.run.files))} are done: the same command goes on, "
        f"`clipcls sort --undo {planned.into}` takes them back."
    )


def _report(planned: "SortPlan", counts: Counter[str]) -> None:
    """Say how many pictures went into each folder."""
    typer.echo(f"clipcls: {_files(counts.total())} {_VERBS[planned.run.by]} into {planned.into}/", err=True)
    width = max((len(f"{count:,}") for count in counts.values()), default=0)
    for folder in sorted(counts):
        typer.echo(f"clipcls:   {counts[folder]:>{width},}  {folder}", err=True)
    if planned.already_there:
        typer.echo(f"clipcls: {_files(planned.already_there)} there already", err=True)


def _exit_if_left_out(planned: "SortPlan", count: int, quiet: bool) -> None:
    if not count:
        return
    if not quiet:
        found_none = not planned.run.files and not planned.already_there
        hint = "; run it in the folder that predict was run in" if found_none else ""
        typer.echo(f"clipcls: {count:,} {'row' if count == 1 else 'rows'} left out{hint}", err=True)
    raise typer.Exit(1)


def _files(count: int) -> str:
    return f"{count:,} {'file' if count == 1 else 'files'}"


def _undo(into: Path, verbose: bool, quiet: bool) -> None:
    from clipcls.outputs.sort.sort import undo

    done = kept = 0
    with (
        Progress(not quiet, "-" if verbose else "") as progress,
        StopSignals("finishing the file at hand") as signals,
        closing(undo(into)) as outcomes,
    ):
        progress.start(None)
        while not signals.received() and (outcome := next(outcomes, None)) is not None:
            file, error = outcome
            if error is not None:
                kept += 1
                progress.print_error(os.fspath(file.target), error)
            else:
                done += 1
                verbose = verbose and _print_done(os.fspath(file.target), os.fspath(file.source))
            progress.update(done, kept)
    if not quiet:
        stay = f"; {_files(kept)} left there" if kept else ""
        typer.echo(f"clipcls: {_files(done)} taken back from {into}/{stay}", err=True)
    if signals.exit_code:
        typer.echo("clipcls: the same command goes on", err=True)
        raise typer.Exit(signals.exit_code)
    if kept:
        raise typer.Exit(1)

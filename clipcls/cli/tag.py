"""`clipcls tag`: labels as keywords, where photo managers read them."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.predictions import read_source
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.errors import ImageError, StoppedError, UsageError

if TYPE_CHECKING:
    from clipcls.outputs.tag.keywords import Keyword
    from clipcls.outputs.tag.tag import Tagger


def tag_command(
    predictions: Annotated[
        str | None,
        typer.Argument(
            metavar="PREDICTIONS",
            help="What predict or ask wrote, or a table of path and label: .jsonl, .csv, .tsv or .parquet; - is "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        Literal["sidecar", "xmp", "exif"],
        typer.Option("--write", help="Where to: a file beside each picture, or XMP or EXIF in it, else beside it."),
    ] = "sidecar",
    sidecar_name: Annotated[
        Literal["full", "stem"],
        typer.Option("--sidecar-name", help="photo.jpg.xmp, as darktable and digiKam, or photo.xmp, as Adobe."),
    ] = "full",
    under: Annotated[
        str | None, typer.Option("--under", metavar="KEYWORD", help="A keyword above the others in their hierarchy.")
    ] = None,
    format: Annotated[
        options.FormatName | None,
        typer.Option("--format", help="Of the predictions. [default: by the extension; jsonl on standard input]"),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="NAME", help="Only its answers. [default: those to all]")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="What --undo takes. [default: PREDICTIONS.tagged.jsonl]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and touch nothing.")] = False,
    undo: Annotated[
        Path | None,
        typer.Option(
            "--undo", metavar="LOG", help="Restore every byte of what the log's runs wrote to.", show_default=False
        ),
    ] = None,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write labels as keywords beside pictures, or into them, where photo managers read them.

    Example: clipcls tag predictions.jsonl
    """
    options.set_up_logging(verbose, quiet)
    if undo is not None:
        if predictions is not None or log is not None or dry_run:
            raise UsageError("--undo LOG goes alone: no predictions, no --log, no --dry-run.")
        _undo(undo, quiet)
        return
    if predictions is None:
        raise UsageError("Give predictions, or --undo LOG.")
    if under is not None and "|" in under.strip("|"):
        raise UsageError("--under takes one keyword, without a | in it.")
    from clipcls.outputs.tag.tag import Tagger

    tagger = Tagger(write, sidecar_name)
    rows = _keywords(predictions, format, question, under)
    if dry_run:
        _show(rows, tagger, quiet)
        return
    if log is None:
        log = Path("clipcls.tagged.jsonl" if predictions == "-" else f"{predictions.rstrip('/')}.tagged.jsonl")
    _tag(rows, tagger, log, quiet)


def _keywords(
    source: str, format: str | None, question: str | None, under: str | None
) -> "Iterator[tuple[str, tuple[Keyword, ...]]]":
    """Yield the path and the keywords of each row; without keywords for pictures that are unknown or failed."""
    from functools import partial

    from clipcls.outputs.journal import read_record
    from clipcls.outputs.read_back import read_predictions, read_rows
    from clipcls.outputs.tag.keywords import keywords_of

    record = None if source == "-" else read_record(Path(source))
    settings = None if record is None else record.settings
    read = read_rows if question is None else partial(read_predictions, question=question)
    for prediction in read_source(source, format, read):
        yield prediction.path, keywords_of(prediction, settings, under) if prediction.error is None else ()


def _show(rows: "Iterator[tuple[str, tuple[Keyword, ...]]]", tagger: "Tagger", quiet: bool) -> None:
    """Print a `target<TAB>keyword;…` a line, escaped as in TSV."""
    from clipcls.outputs.formats.tsv import escaped

    counts: Counter[str] = Counter()
    with Progress(not quiet, "-") as progress:
        for path, keywords in rows:
            if not keywords:
                counts["unlabelled"] += 1
                continue
            try:
                target = tagger.target(path)
            except ImageError as exc:
                counts["left out"] += 1
                progress.print_error(path, str(exc))
                continue
            counts["done"] += 1
            line = f"{escaped(str(target))}\t{escaped(';'.join(keyword.path for keyword in keywords))}\n"
            sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape"))
    _report(counts, "would be looked at", quiet)


def _tag(rows: "Iterator[tuple[str, tuple[Keyword, ...]]]", tagger: "Tagger", log: Path, quiet: bool) -> None:
    from clipcls.outputs.tag.tag import open_log

    counts: Counter[str] = Counter()
    undo = f"`clipcls tag --undo {log}` takes them back"
    with (
        Progress(not quiet, "") as progress,
        StopSignals("finishing the file at hand") as signals,
        open_log(log) as file,
    ):
        progress.start(None)
        for path, keywords in rows:
            if signals.received():
                break
            try:
                kind = "unlabelled" if not keywords else "done" if tagger.tag(path, keywords, file) else "there already"
            except ImageError as exc:
                kind = "left out"
                progress.print_error(path, str(exc))
            except StoppedError as exc:
                raise StoppedError(f"{exc} {counts['done']:,} files are tagged; {undo}.") from exc
            counts[kind] += 1
            progress.update(counts["done"], counts["left out"])
    _report(counts, f"tagged; {undo}" if counts["done"] else "tagged", quiet, signals.exit_code)


def _report(counts: Counter[str], done: str, quiet: bool, exit_code: int = 0) -> None:
    """Say what was done, and exit with what came of it."""
    if not quiet:
        noun = "file" if counts["done"] == 1 else "files"
        others = [f"{counts[kind]:,} {said}" for kind, said in _SAID.items() if counts[kind]]
        typer.echo(f"clipcls: {counts['done']:,} {noun} {done}", err=True)
        if others:
            typer.echo(f"clipcls: {', '.join(others)}", err=True)
    if exit_code or counts["left out"]:
        raise typer.Exit(exit_code or 1)


_SAID = {
    "there already": "had their keywords already",
    "unlabelled": "without a label",
    "left out": "left out",
}


def _undo(log: Path, quiet: bool) -> None:
    from clipcls.outputs.tag.tag import undo

    done = kept = 0
    with (
        Progress(not quiet, "") as progress,
        StopSignals("finishing the file at hand") as signals,
        closing(undo(log)) as outcomes,
    ):
        progress.start(None)
        while not signals.received() and (outcome := next(outcomes, None)) is not None:
            path, why = outcome
            if why is None:
                done += 1
            else:
                kept += 1
                progress.print_error(str(path), why)
            progress.update(done, kept)
    if not quiet:
        stay = f"; {kept:,} left as they are" if kept else ""
        typer.echo(f"clipcls: {done:,} {'file' if done == 1 else 'files'} restored{stay}", err=True)
    if signals.exit_code:
        typer.echo("clipcls: the same command goes on", err=True)
        raise typer.Exit(signals.exit_code)
    if kept:
        raise typer.Exit(1)

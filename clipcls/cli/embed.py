"""`clipcls embed`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals

if TYPE_CHECKING:
    from clipcls.embed.session import Session
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.vectors.write import VectorDestination
    from clipcls.predict.error_limit import ErrorLimit


@options.grouped
def embed_command(
    *,
    inputs: options.InputsArgument = None,
    # or texts
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text instead of pictures; repeatable.")
    ] = None,
    texts: Annotated[
        str | None, typer.Option("--texts", metavar="FILE", help="Texts, one a line; - is standard input.")
    ] = None,
    prompts: options.TextPromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    asked: options.ModelOptions,
    # in and out
    further: options.DividedInputOptions,
    videos: options.VideoOptions,
    format: Annotated[
        Literal["parquet", "npy", "npz"] | None,
        typer.Option("--format", help="[default: by the output's extension; parquet in a folder]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .parquet, .npy or .npz file to write.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            help="Folder for parts, each there once it is whole; with npy as clip-retrieval lays it out.",
        ),
    ] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option("--dtype", help="Of the features.")] = "float32",
    resume: options.ResumeOption = False,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Write the features of pictures, or of texts, to files for other programs.

    Example: clipcls embed images/ -o features.parquet
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.errors import UsageError
    from clipcls.outputs.vectors.write import VectorDestination

    destination = VectorDestination(output, output_dir, format, dtype, resume, has_index=further.part is not None)
    of_texts = bool(text) or texts is not None
    if of_texts and (inputs or further.files_from is not None or further.part is not None):
        raise UsageError("Give pictures, or --text and --texts; each in a file of its own.")
    if not of_texts and (prompts or template):
        raise UsageError("--prompts and --template are for --text and --texts.")
    execution = how.execution(limits, strict_prompts, fetching.web(further))
    with Session(asked.spec(), execution) as session:
        if of_texts:
            _write_texts(session, [*(text or ()), *read_texts(texts)], prompts, template, destination)
            return
        sources = further.sources(inputs, videos.sampling())
        limit = errors.limit()
        quantise_ahead(session, lambda: list_again(sources))
        _write_pictures(session, sources, destination, limit, verbosity.quiet)


def _write_pictures(
    session: "Session", sources: "Sources", destination: "VectorDestination", limit: "ErrorLimit", quiet: bool
) -> None:
    """Write features, and exit with what came of it."""
    from clipcls.predict.write_features import write_features

    with Progress(not quiet, "") as progress, StopSignals("finishing the batch at hand") as signals:
        watch = progress.watch(destination.name)
        report = write_features(session, sources, destination, limit, signals.received, watch)
    if signals.exit_code:
        typer.echo(f"clipcls: {report.done:,} images done{report.go_on}", err=True)
        raise typer.Exit(signals.exit_code)
    if report.failed and not quiet:
        typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
    if not quiet and sys.stderr.isatty():
        typer.echo(f"clipcls: features of {report.done:,} images in {destination.name}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _write_texts(
    session: "Session",
    texts: Sequence[str],
    prompts: str | None,
    template: Sequence[str] | None,
    destination: "VectorDestination",
) -> None:
    from clipcls.errors import UsageError
    from clipcls.labels.prompts import templates_set
    from clipcls.predict.write_features import write_text_features

    if destination.folder is not None:
        raise UsageError("Texts are written to one file: give --output FILE.")
    if not texts:
        raise UsageError("No texts: the file of --texts is empty.")
    chosen = options.prompt_set(prompts, template) or templates_set(["{}"])
    write_text_features(session, texts, chosen, destination)


def read_texts(name: str | None) -> list[str]:
    """Return the lines of a file that aren't blank."""
    from clipcls.text_files import decode_text, read_text

    if name is None:
        return []
    text = decode_text(sys.stdin.buffer.read(), "standard input") if name == "-" else read_text(Path(name))
    return [line.strip() for line in text.splitlines() if line.strip()]

"""`clipcls search`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals

if TYPE_CHECKING:
    from clipcls.embed.session import Session
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.vectors.vector_format import StoredVectors
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.predict.pool import PicturePool
    from clipcls.predict.run import RunReport


@options.grouped
def search_command(
    *,
    context: typer.Context,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY",
            help="A text, a picture's path, or terms joined by ' + ' and ' - ', with weights as in 2:red.",
            show_default=False,
        ),
    ] = None,
    inputs: options.InputsArgument = None,
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries", metavar="FILE", help="Queries, one a line; - is standard input. All arguments are inputs then."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Search what `clipcls embed` wrote, a file or a folder."),
    ] = None,
    prompts: options.TextPromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    # how many
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="The most pictures to list for a query.")] = 10,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Lowest score.")] = None,
    # with which model
    asked: options.ModelOptions,
    # in and out
    further: options.InputOptions,
    videos: options.VideoOptions,
    format: Annotated[
        Literal["table", "tsv", "jsonl"] | None,
        typer.Option("--format", help="[default: table on a terminal, else tsv; with -0 bare paths]"),
    ] = None,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Find pictures by what is in them, by words or by a picture.

    With -0, only paths are written, each ended by NUL.

    Example: clipcls search "a red car" images/
    """
    verbosity.set_up_logging()
    from clipcls.cli.embed import read_texts
    from clipcls.embed.session import Session
    from clipcls.errors import UsageError
    from clipcls.outputs.hits import HIT_FORMATS
    from clipcls.outputs.vectors import read_vectors
    from clipcls.predict.query import parse_query
    from clipcls.predict.search import search

    if further.null and format is not None:
        raise UsageError("-0 writes bare paths; leave --format out.")
    given = [] if query is None else [query]
    texts, places = (given, []) if queries is None else (read_texts(queries), given)
    places += inputs or []
    if not texts:
        raise UsageError("No query. Give a text or a picture's path, or --queries FILE.")
    wanted = [parse_query(text) for text in texts]
    stored = None if features is None else read_vectors(features)
    if stored is not None and (places or further.files_from is not None):
        raise UsageError("Give inputs or --features, not both.")
    sources = None if stored is not None else further.sources(places, videos.sampling())
    made_by = None if stored is None or stored.origin is None else stored.origin.model
    spec = asked.spec_for(context, made_by)
    prompt_set = options.prompt_set(prompts, template)
    chosen = "paths" if further.null else format or ("table" if sys.stdout and sys.stdout.isatty() else "tsv")
    web = fetching.web(further)
    with Session(spec, how.execution(limits, strict_prompts, web)) as session:
        limit = errors.limit()
        pool, report = _pool(session, stored, features, sources, limit, verbosity.quiet)
        found = search(wanted, pool, session, top_k=top_k, threshold=threshold, prompts=prompt_set)
        for asked_for, hits in found:
            text = HIT_FORMATS[chosen].text(asked_for.text, hits, len(wanted) > 1)
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
            sys.stdout.buffer.flush()
    if report is not None and report.failed:
        if not verbosity.quiet:
            typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
        raise typer.Exit(1)


def _pool(
    session: "Session",
    stored: "StoredVectors | None",
    features: Path | None,
    sources: "Sources | None",
    limit: "ErrorLimit",
    quiet: bool,
) -> "tuple[PicturePool, RunReport | None]":
    """Return the pictures to search; a signal while they are read ends the command."""
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.predict.pool import embed_pool, stored_pool

    if stored is not None:
        return stored_pool(stored, str(features), session), None
    assert sources is not None
    quantise_ahead(session, lambda: list_again(sources))
    with Progress(not quiet, "") as progress, StopSignals("keeping the features so far") as signals:
        found = embed_pool(session, sources, limit, signals.received, progress.watch())
    if signals.exit_code:
        raise typer.Exit(signals.exit_code)
    return found

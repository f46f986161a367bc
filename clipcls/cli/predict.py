"""`clipcls predict`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.mistakes import refuse_split_labels
from clipcls.cli.outputs import refuse_output
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.cli.stderr import silence_libraries
from clipcls.records import Engine, Per

if TYPE_CHECKING:
    from clipcls.distributed.run import Spread
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.destination import Destination
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.error_limit import ErrorLimit


@options.grouped
def predict(
    *,
    context: typer.Context,
    inputs: options.InputsArgument = None,
    # what to look for
    wanted: options.LabelOptions,
    prompts: options.PromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    taught: options.TaughtOption = None,
    # with which model
    asked: options.ModelOptions,
    # how to score
    score: options.ScoreOption = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Every label that reaches the threshold is an answer.")
    ] = False,
    background: options.BackgroundOption = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Labels to list per image. [default: 1; multi-label: all that pass]"),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Lowest score; below it an image is unknown.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option("--min-margin", help="Lowest distance of the best score to the second.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Scores and thresholds that `clipcls calibrate` fitted."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also the similarity of each prompt of the two best labels, and the margin."),
    ] = False,
    # in and out
    further: options.InputOptions,
    videos: options.VideoOptions,
    per: Annotated[
        Per,
        typer.Option("--per", help="A row for each frame of videos, segment, or video; or for what occurs in a video."),
    ] = "frame",
    format: Annotated[
        options.FormatName | None,
        typer.Option("--format", help="[default: by the output's extension; table on a terminal, else tsv]"),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Folder for part files, each there once it is whole.")
    ] = None,
    resume: options.ResumeOption = False,
    retry_errors: options.RetryErrorsOption = False,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    engine: Annotated[Engine, typer.Option("--engine", help="This process, or a Ray cluster's workers.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="Head node, or auto. [default: RAY_ADDRESS, else this machine alone]",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option("--ray-workers", min=1, help="Worker processes. [default: one a GPU, or 8 cores]")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option("--gpus-per-worker", min=0, help="A fraction has workers share one. [default: 1 if there are]"),
    ] = None,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Say what is in pictures, without training.

    Example: clipcls predict images/ --labels cat,dog,truck
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.outputs.destination import Destination, check_explanations
    from clipcls.predict.calibration import read_calibration
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.ranking import Scoring

    refuse_split_labels(inputs or (), wanted.labels or ())
    sources = further.sources(inputs, videos.sampling())
    # opened by its name, what it was redirected to would be emptied
    output = "-" if output in ("/dev/stdout", "/dev/fd/1") else output
    destination = Destination(output, output_dir, format, resume, retry_errors)
    if explain:
        check_explanations(destination)
    refuse_output(
        destination,
        [*(inputs or ()), further.files_from, wanted.labels_file, prompts, asked.model, calibration, taught],
    )
    limit = errors.limit()
    web = fetching.web(further)
    spread = _spread(engine, ray_address, ray_workers, gpus_per_worker, how.workers, verbosity.verbose)
    prompt_set = options.prompt_set(prompts, template)
    learned = None if taught is None else options.read_taught(taught, wanted.are_given, prompts, template)
    labels = wanted.read() if learned is None else learned
    spec = asked.spec_for(context, None if learned is None else learned.origin.model)
    if spread is not None:
        from clipcls.distributed.run import check_spread

        check_spread(destination, spec, spread)
    with Session(spec, how.execution(limits, strict_prompts, web)) as session:
        quantise_ahead(session, lambda: list_again(sources))
        classifier = Classifier(
            session,
            labels,
            prompt_set,
            Scoring(score, multi_label, top_k, threshold, min_margin),
            background=background,
            calibration=None if calibration is None else read_calibration(calibration),
            explain=explain,
            per=per,
        )
        _run(classifier, sources, destination, limit, spread, verbosity)


def _run(
    classifier: "Classifier",
    sources: "Sources",
    destination: "Destination",
    limit: "ErrorLimit",
    spread: "Spread | None",
    verbosity: options.VerbosityOptions,
) -> None:
    """Run here or on a cluster, and exit with what came of it."""
    from clipcls.predict.run import run

    quiet = verbosity.quiet
    shown = destination.output if destination.folder is None and spread is None else ""
    message = "finishing the batch at hand" if spread is None else "stopping the workers"
    with Progress(not quiet, shown) as progress, StopSignals(message) as signals:
        watch = progress.watch(destination.name)
        if spread is None:
            report = run(classifier, sources, destination, limit, signals.received, watch)
        else:
            from clipcls.distributed.run import run_on_cluster

            if not spread.verbose:
                silence_libraries()
            report = run_on_cluster(classifier, sources, destination, spread, limit, signals.received, watch)
    if signals.exit_code:
        typer.echo(f"clipcls: {report.done:,} images done{report.go_on}", err=True)
        raise typer.Exit(signals.exit_code)
    if report.failed and not quiet:
        typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
    if not quiet and not destination.is_standard_output and sys.stderr.isatty():
        typer.echo(f"clipcls: {report.done:,} images in {destination.name}", err=True)
    if report.failed:
        raise typer.Exit(1)


def _spread(
    engine: Engine,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    threads: int | None,
    verbose: bool,
) -> "Spread | None":
    from clipcls.errors import UsageError

    if engine == "ray":
        from clipcls.distributed.run import Spread

        return Spread(address, workers, gpus_per_worker, threads, verbose)
    if any(option is not None for option in (address, workers, gpus_per_worker)):
        raise UsageError("--ray-address, --ray-workers and --gpus-per-worker belong to --engine ray.")
    return None

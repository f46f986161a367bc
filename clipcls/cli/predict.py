"""`clipcls predict`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.predict_run import Labelling
from clipcls.models.catalog import DEFAULT_MODEL
from clipcls.records import Engine, Format, OnError

if TYPE_CHECKING:
    from clipcls.distributed.run import Spread
    from clipcls.outputs.target import Target
    from clipcls.records import PromptSet


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Files, directories, globs, addresses, or - for paths on standard input.",
            show_default=False,
        ),
    ] = None,
    # what to look for
    labels: options.LabelsOption = None,
    label: options.LabelOption = None,
    labels_file: options.LabelsFileOption = None,
    prompts: options.PromptsOption = "default",
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    model: options.ModelOption = DEFAULT_MODEL,
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
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
    files_from: Annotated[
        str | None,
        typer.Option("--files-from", help="Read paths from a file, one per line; - is standard input."),
    ] = None,
    null: Annotated[bool, typer.Option("-0", "--null", help="Listed paths end with NUL, not newline.")] = False,
    column: Annotated[
        str | None,
        typer.Option("--column", help="Column of paths or images in inputs that are .parquet, .csv, .tsv or .jsonl."),
    ] = None,
    allow_urls: options.AllowUrlsOption = False,
    allow_private_urls: Annotated[
        bool, typer.Option("--allow-private-urls", help="Also from private and link-local addresses.")
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="[default: by the output's extension; table on a terminal, else tsv]"),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Folder for part files, each there once it is whole.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the output where an earlier run ended.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="With --resume: run the images again that failed.")
    ] = False,
    # what may go wrong
    on_error: Annotated[OnError, typer.Option("--on-error", help="What a bad image does to the run.")] = "skip",
    max_errors: Annotated[
        str | None, typer.Option("--max-errors", metavar="N|P%", help="More bad images than that stop the run.")
    ] = None,
    max_pixels: options.MaxPixelsOption = None,
    max_bytes: options.MaxBytesOption = None,
    url_timeout: Annotated[
        float, typer.Option("--url-timeout", metavar="SECONDS", min=0.1, help="Time to fetch an image in.")
    ] = 30.0,
    url_retries: Annotated[
        int, typer.Option("--url-retries", min=0, help="How often a fetch that failed is tried again.")
    ] = 2,
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
    decode: options.DecodeOption = "fast",
    batch_size: options.BatchSizeOption = None,
    workers: options.WorkersOption = None,
    cache_dir: options.CacheDirOption = None,
    cache_size: options.CacheSizeOption = None,
    no_cache: options.NoCacheOption = False,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Say what is in pictures, without training.

    Example: clipcls predict images/ --labels cat,dog,truck
    """
    options.set_up_logging(verbose, quiet)
    from clipcls.embed.cache.database import default_folder
    from clipcls.embed.cache.store import DEFAULT_LIMIT, MEGABYTE
    from clipcls.embed.execution import Execution
    from clipcls.errors import UsageError
    from clipcls.images.limits import MAX_PIXELS
    from clipcls.inputs.contents import MAX_BYTES
    from clipcls.inputs.listing import Sources
    from clipcls.inputs.web import Web
    from clipcls.labels import label_files as label_sources
    from clipcls.outputs.target import Target
    from clipcls.predict.calibration import read_calibration
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.predict.ranking import Scoring
    from clipcls.records import ModelSpec

    if not inputs and files_from is None:
        raise UsageError("No images. Give files, directories, globs, or - for paths on standard input.")
    # opened by its name, what it was redirected to would be emptied
    output = "-" if output in ("/dev/stdout", "/dev/fd/1") else output
    target = Target(output, output_dir, format, resume, retry_errors)
    if explain:
        _check_format_of_explanations(target)
    _check_target(target, [*(inputs or ()), files_from, labels_file, prompts, model, calibration])
    limit = ErrorLimit.parse(max_errors, on_error)
    if (allow_private_urls or url_timeout != 30.0 or url_retries != 2) and not allow_urls:
        raise UsageError("Options for addresses need --allow-urls.")
    spread = _spread(engine, ray_address, ray_workers, gpus_per_worker, workers, verbose)
    spec = ModelSpec(model, arch, preprocess, device, precision)
    if spread is not None:
        from clipcls.distributed.run import check_spread

        check_spread(target, spec, spread)
    classifier = Classifier(
        labels=label_sources.parse_labels(labels, label or (), labels_file),
        model=spec,
        prompts=_prompt_set(prompts, template),
        scoring=Scoring(score, multi_label, top_k, threshold, min_margin),
        background=background,
        execution=Execution(
            decode=decode,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels or MAX_PIXELS,
            max_bytes=max_bytes or MAX_BYTES,
            web=Web(url_timeout, url_retries, allow_private_urls) if allow_urls else None,
            cache_dir=None if no_cache else cache_dir or default_folder(),
            cache_size=DEFAULT_LIMIT if cache_size is None else cache_size * MEGABYTE,
            strict_prompts=strict_prompts,
        ),
    )
    classifier.explain = explain
    classifier.calibration = None if calibration is None else read_calibration(calibration)
    sources = Sources(inputs or [], files_from, null, column, allow_urls, allow_private_urls)
    if spread is None:
        Labelling(classifier, sources, target, limit, quiet).run()
    else:
        from clipcls.cli.predict_on_cluster import SpreadLabelling

        SpreadLabelling(classifier, sources, target, limit, quiet, spec, spread).run()


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


def _check_target(target: "Target", sources: Sequence[str | Path | None]) -> None:
    """Refuse an output that can't be written, or that would replace a picture or what the results are made from."""
    from clipcls.errors import StoppedError, UsageError
    from clipcls.inputs.discover import EXTENSIONS
    from clipcls.outputs.target import check_target

    check_target(target)
    if target.folder is not None or target.output == "-":
        return
    path = Path(target.output)
    if path.suffix.lower() in EXTENSIONS:
        raise UsageError(f"--output {target.output!r}: not a name for results.")
    if path.is_dir() or not path.absolute().parent.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise StoppedError(
            f"{target.output}: can't be written: it is a folder, closed to you, or in a folder that isn't there."
        )
    for source in sources:
        if source and os.path.exists(source) and path.exists() and path.samefile(source):  # noqa: PTH110, globs may be long
            raise UsageError(f"--output {target.output!r} is one of the inputs, which it would overwrite.")


def _check_format_of_explanations(target: "Target") -> None:
    from clipcls.errors import UsageError
    from clipcls.outputs.sinks import format_for

    kind = target.kind or ("parquet" if target.folder is not None else None)
    if kind is None and target.output != "-":
        kind = format_for(Path(target.output))
    if kind is None:
        kind = "table" if sys.stdout is not None and sys.stdout.isatty() else "tsv"
    if kind not in ("jsonl", "table"):
        raise UsageError(f"--explain: {kind} has no room for explanations. Use --format jsonl, or table to read them.")


def _prompt_set(prompts: str, templates: list[str] | None) -> "PromptSet":
    from clipcls.errors import UsageError
    from clipcls.labels.prompts import load_prompt_set, templates_set

    if not templates:
        return load_prompt_set(prompts)
    if prompts != "default":
        raise UsageError("Give --prompts or --template, not both; a file of prompts can hold all templates.")
    return templates_set(templates)

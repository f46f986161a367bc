"""`clipcls predict`."""

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress

if TYPE_CHECKING:
    from clipcls.records import PromptSet


class Format(enum.StrEnum):
    TABLE = "table"
    TSV = "tsv"
    JSONL = "jsonl"
    CSV = "csv"


class Score(enum.StrEnum):
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    COSINE = "cosine"


class DecodeMode(enum.StrEnum):
    FAST = "fast"
    EXACT = "exact"


class OnError(enum.StrEnum):
    SKIP = "skip"
    STOP = "stop"


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Files, directories, globs, or - for paths on standard input.", show_default=False
        ),
    ] = None,
    # what to look for
    labels: Annotated[str | None, typer.Option("--labels", help="Labels, separated by commas.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="LABEL", help="One label, never split; repeatable.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="Labels in a .txt, .csv, .json or .yaml file.")
    ] = None,
    prompts: Annotated[
        str, typer.Option("--prompts", help="Prompt set: a name from `clipcls prompts list`, or a file.")
    ] = "default",
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEMPLATE", help='Template such as "a photo of a {}"; repeatable.'),
    ] = None,
    strict_prompts: Annotated[
        bool, typer.Option("--strict-prompts", help="A prompt over the context length is an error.")
    ] = False,
    # with which model
    model: options.ModelOption = "photo",
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    # how to score
    score: Annotated[
        Score | None,
        typer.Option("--score", help="What the score is. [default: softmax; multi-label: sigmoid]"),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Every label that reaches the threshold is an answer.")
    ] = False,
    background: Annotated[
        str, typer.Option("--background", help="What sigmoid scores of a model without a bias compare with.")
    ] = "a photo",
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Labels to list per image. [default: 1]")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Lowest score; below it an image is unknown.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option("--min-margin", help="Lowest distance of the best score to the second.")
    ] = None,
    # in and out
    files_from: Annotated[
        str | None,
        typer.Option("--files-from", help="Read paths from a file, one per line; - is standard input."),
    ] = None,
    null: Annotated[bool, typer.Option("-0", "--null", help="Listed paths end with NUL, not newline.")] = False,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="[default: by the output's extension; table on a terminal, else tsv]"),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-",
    on_error: Annotated[OnError, typer.Option("--on-error", help="What a bad image does to the run.")] = OnError.SKIP,
    # how to run
    decode: Annotated[
        DecodeMode, typer.Option("--decode", help="fast, or exact: open_clip's own pixels, bit for bit.")
    ] = DecodeMode.FAST,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", envvar="CLIPCLS_BATCH_SIZE", min=1, help="[default: 32 on a CPU, 128 on a GPU]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", envvar="CLIPCLS_WORKERS", min=1, help="Decoding threads. [default: one a core]"),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option("--max-pixels", min=1, help="Larger images are errors. [default: 178956970]")
    ] = None,
    cache_dir: options.CacheDirOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    verbose: options.VerboseOption = 0,
    quiet: options.QuietOption = False,
) -> None:
    """Say what is in pictures, without training.

    Example: clipcls predict images/ --labels cat,dog,truck
    """
    options.set_up_logging(verbose, quiet)
    from clipcls import labels as label_sources
    from clipcls.cache import default_folder
    from clipcls.errors import StoppedError, UsageError
    from clipcls.images import MAX_PIXELS
    from clipcls.inputs import discover
    from clipcls.predict import Classifier, Execution
    from clipcls.ranking import Scoring
    from clipcls.records import ModelSpec
    from clipcls.sinks import open_sink

    if not inputs and files_from is None:
        raise UsageError("No images. Give files, directories, globs, or - for paths on standard input.")
    classifier = Classifier(
        labels=label_sources.parse_labels(labels, label or (), labels_file),
        model=ModelSpec(model, arch, preprocess, device, precision),
        prompts=_prompt_set(prompts, template),
        scoring=Scoring(
            kind=(score or (Score.SIGMOID if multi_label else Score.SOFTMAX)).value,
            multi_label=multi_label,
            top_k=top_k,
            threshold=threshold,
            min_margin=min_margin,
        ),
        background=background,
        execution=Execution(
            decode=decode.value,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels or MAX_PIXELS,
            cache_dir=None if no_cache else cache_dir or default_folder(),
            strict_prompts=strict_prompts,
        ),
    )
    sources = inputs or []
    images = discover(sources, files_from, null)
    rereadable = files_from is None and "-" not in sources
    done = failed = 0
    names = tuple(label.name for label in classifier.labels)
    kind = format.value if format else None
    with open_sink(output, kind, labels=names) as sink, Progress(not quiet, output) as progress:
        # the model is opened before the progress starts, so that its errors and warnings come first
        _ = classifier.label_features
        progress.start((lambda: sum(1 for _ in discover(sources))) if rereadable else None)
        for prediction in classifier.predict(images):
            sink.write(prediction)
            done += 1
            if prediction.error is not None:
                failed += 1
                progress.print_error(prediction.path, prediction.error)
                if on_error is OnError.STOP:
                    raise StoppedError(f"stopped at the first bad image (--on-error stop), {done} done.")
            progress.update(done, failed)
    if not done:
        raise UsageError("No images found in what was given.")
    if failed:
        if not quiet:
            typer.echo(f"clipcls: {failed} of {done} images could not be read", err=True)
        raise typer.Exit(1)


def _prompt_set(prompts: str, templates: list[str] | None) -> "PromptSet":
    from clipcls.errors import UsageError
    from clipcls.prompts import load_prompt_set, templates_set

    if not templates:
        return load_prompt_set(prompts)
    if prompts != "default":
        raise UsageError("Give --prompts or --template, not both; a file of prompts can hold all templates.")
    return templates_set(templates)

"""`clipcls predict`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.catalog import DEFAULT_MODEL
from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.records import Decode, Format, OnError, ScoreKind

if TYPE_CHECKING:
    from clipcls.predict import Classifier
    from clipcls.records import PromptSet


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
    model: options.ModelOption = DEFAULT_MODEL,
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    # how to score
    score: Annotated[
        ScoreKind | None,
        typer.Option("--score", help="What the score is. [default: softmax; multi-label: sigmoid]"),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Every label that reaches the threshold is an answer.")
    ] = False,
    background: Annotated[
        str | None,
        typer.Option(
            "--background", help="What sigmoid scores of a model without a bias compare with. [default: a photo]"
        ),
    ] = None,
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
    on_error: Annotated[OnError, typer.Option("--on-error", help="What a bad image does to the run.")] = "skip",
    # how to run
    decode: Annotated[
        Decode, typer.Option("--decode", help="fast, or exact: open_clip's own pixels, bit for bit.")
    ] = "fast",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            envvar="CLIPCLS_BATCH_SIZE",
            min=1,
            help="Halved where memory runs out. [default: 16 on a CPU, 256 on a GPU]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", envvar="CLIPCLS_WORKERS", min=1, help="Decoding threads. [default: one a core]"),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option("--max-pixels", min=1, help="Larger images are errors. [default: 178956970]")
    ] = None,
    cache_dir: options.CacheDirOption = None,
    cache_size: options.CacheSizeOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Say what is in pictures, without training.

    Example: clipcls predict images/ --labels cat,dog,truck
    """
    options.set_up_logging(verbose, quiet)
    from clipcls import labels as label_sources
    from clipcls.cache import DEFAULT_LIMIT, MEGABYTE, default_folder
    from clipcls.embed import Execution
    from clipcls.errors import UsageError
    from clipcls.images import MAX_PIXELS
    from clipcls.predict import Classifier
    from clipcls.ranking import Scoring
    from clipcls.records import ModelSpec

    if not inputs and files_from is None:
        raise UsageError("No images. Give files, directories, globs, or - for paths on standard input.")
    _check_output(output, format, [*(inputs or ()), files_from, labels_file, prompts, model])
    classifier = Classifier(
        labels=label_sources.parse_labels(labels, label or (), labels_file),
        model=ModelSpec(model, arch, preprocess, device, precision),
        prompts=_prompt_set(prompts, template),
        scoring=Scoring(score, multi_label, top_k, threshold, min_margin),
        background=background,
        execution=Execution(
            decode=decode,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels or MAX_PIXELS,
            cache_dir=None if no_cache else cache_dir or default_folder(),
            cache_size=DEFAULT_LIMIT if cache_size is None else cache_size * MEGABYTE,
            strict_prompts=strict_prompts,
        ),
    )
    done, failed = _run(
        classifier, inputs or [], files_from, null, output=output, kind=format, on_error=on_error, quiet=quiet
    )
    if not done:
        raise UsageError("No images found in what was given.")
    if failed:
        if not quiet:
            typer.echo(f"clipcls: {failed} of {done} images could not be read", err=True)
        raise typer.Exit(1)


def _run(
    classifier: "Classifier",
    sources: list[str],
    files_from: str | None,
    null: bool,
    *,
    output: str,
    kind: Format | None,
    on_error: OnError,
    quiet: bool,
) -> tuple[int, int]:
    """Classify and write; returns how many images there were, and how many of them could not be read."""
    from clipcls.errors import StoppedError
    from clipcls.inputs import discover
    from clipcls.sinks import open_sink

    images = discover(sources, files_from, null)
    countable = files_from is None and "-" not in sources
    names = tuple(label.name for label in classifier.labels)
    done = failed = 0
    with Progress(not quiet, output) as progress:
        # all that can go wrong with model and labels does so before the output is touched
        classifier.label_features = classifier.embed_labels(progress.update_labels)
        with open_sink(output, kind, labels=names) as sink:
            progress.start((lambda: sum(1 for _ in discover(sources))) if countable else None)
            for prediction in classifier.predict(images):
                sink.write(prediction)
                done += 1
                if prediction.error is not None:
                    failed += 1
                    progress.print_error(prediction.path, prediction.error)
                    if on_error == "stop":
                        raise StoppedError(f"stopped at the first bad image (--on-error stop), {done} done.")
                progress.update(done, failed)
    return done, failed


def _check_output(output: str, kind: Format | None, sources: Sequence[str | Path | None]) -> None:
    """Refuse an output that can't be written, or that would replace a picture or what the results are made from."""
    from clipcls.errors import StoppedError, UsageError
    from clipcls.inputs import EXTENSIONS
    from clipcls.sinks import format_for

    if output == "-":
        return
    path = Path(output)
    if not output or path.suffix.lower() in EXTENSIONS:
        raise UsageError(f"--output {output!r}: not a name for results.")
    if kind is None:
        format_for(path)
    if path.is_dir() or not path.absolute().parent.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise StoppedError(
            f"{output}: can't be written: it is a folder, closed to you, or in a folder that isn't there."
        )
    for source in sources:
        if source and os.path.exists(source) and path.exists() and path.samefile(source):  # noqa: PTH110, globs may be long
            raise UsageError(f"--output {output!r} is one of the inputs, which it would overwrite.")


def _prompt_set(prompts: str, templates: list[str] | None) -> "PromptSet":
    from clipcls.errors import UsageError
    from clipcls.prompts import load_prompt_set, templates_set

    if not templates:
        return load_prompt_set(prompts)
    if prompts != "default":
        raise UsageError("Give --prompts or --template, not both; a file of prompts can hold all templates.")
    return templates_set(templates)

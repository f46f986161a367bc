"""`clipcls heatmap`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.mistakes import refuse_split_labels
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.errors import StoppedError, UsageError

if TYPE_CHECKING:
    from clipcls.predict.heat_files import HeatDestination

# more panels than that can't be told on one drawing
_MOST_PANELS = 24


@options.grouped
def heatmap_command(
    *,
    inputs: options.InputsArgument = None,
    # what to look for
    wanted: options.LabelOptions,
    prompts: options.PromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    asked: options.ModelOptions,
    # what to show
    method: Annotated[
        Literal["auto", "gradient", "occlusion"],
        typer.Option("--method", help="Gradient by the attention, or parts hidden; auto: gradient where it can be."),
    ] = "auto",
    against: Annotated[
        Literal["others"] | None,
        typer.Option("--against", help="A label's map minus the mean of the other labels'."),
    ] = None,
    unweighted: Annotated[
        bool, typer.Option("--unweighted", help="Not times the score: also what speaks for a label that isn't there.")
    ] = False,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Score each label by itself.")] = False,
    background: options.BackgroundOption = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", min=1, max=_MOST_PANELS, help="Labels to draw, the best ones. [default: up to 6 all, else 5]"
        ),
    ] = None,
    # in and out
    further: options.InputOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR|FILE.png", help="Folder, or a file for one picture.")
    ] = Path("heatmaps"),
    smooth: Annotated[bool, typer.Option("--smooth", help="Draw values between those of the parts.")] = False,
    npy: Annotated[
        bool, typer.Option("--npy", help="Also write the parts' values, float32, to STEM.LABEL.npy for each label.")
    ] = False,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Draw where in pictures the scores of labels come from.

    Each drawing shows what the model saw, and a map beside each label's score. All maps of a call have one scale.

    Example: clipcls heatmap photo.jpg --labels cat,dog -o photo-heat.png
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.heat_files import HeatDestination, write_heat_maps
    from clipcls.predict.heatmap import HeatSettings
    from clipcls.predict.ranking import Scoring

    refuse_split_labels(inputs or (), wanted.labels or ())
    sources = further.sources(inputs)
    destination = HeatDestination(output, npy, smooth)
    _refuse_output(destination, inputs or ())
    limit, web = errors.limit(), fetching.web(further)
    prompt_set, labels = options.prompt_set(prompts, template), wanted.read()
    settings = HeatSettings(method, against is not None, not unweighted, top_k)
    with Session(asked.spec(), how.execution(limits, strict_prompts, web)) as session:
        quantise_ahead(session, lambda: list_again(sources))
        classifier = Classifier(session, labels, prompt_set, Scoring(multi_label=multi_label), background=background)
        with Progress(not verbosity.quiet, "") as progress, StopSignals("drawing the maps so far") as signals:
            watch = progress.watch()
            report = write_heat_maps(classifier, sources, destination, settings, limit, signals.received, watch)
    if not verbosity.quiet:
        if report.failed:
            typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
        drawn = report.done - report.failed
        if drawn:
            typer.echo(f"clipcls: {drawn:,} {'drawing' if drawn == 1 else 'drawings'} in {output}", err=True)
    if signals.exit_code:
        raise typer.Exit(signals.exit_code)
    if report.failed:
        raise typer.Exit(1)


def _refuse_output(destination: "HeatDestination", inputs: Sequence[str]) -> None:
    """Refuse an output that can't be written, or that would replace a picture."""
    path = destination.path
    if destination.is_file:
        if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
            raise StoppedError(f"{path}: can't be written: it is a folder, or in one that isn't there or is closed.")
        if any(path.exists() and os.path.exists(name) and path.samefile(name) for name in inputs):  # noqa: PTH110
            raise UsageError(f"--output {path} is one of the inputs, which it would overwrite.")
    elif not path.is_dir() and (path.exists() or path.suffix):
        raise UsageError(f"--output {path}: give a folder, or a name that ends in .png.")

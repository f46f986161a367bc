"""`clipcls predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.mistakes import refuse_split_labels
from clipcls.cli.outputs import refuse_output, refuse_page
from clipcls.cli.report import RunPage
from clipcls.cli.running import ClusterOptions, OutputOptions, Run, carry_out
from clipcls.records import Per

if TYPE_CHECKING:
    from clipcls.predict.ranking import Unknown


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
    unknown: Annotated[
        bool, typer.Option("--unknown", help="An image that looks more like other words than like a label is unknown.")
    ] = False,
    min_known: Annotated[
        float | None,
        typer.Option("--min-known", help="--unknown, where labels have a lower share of the likeness. [default: 0.5]"),
    ] = None,
    unknown_words: Annotated[
        str | None,
        typer.Option("--unknown-words", metavar="FILE", help="--unknown by these words; a file or set as of labels."),
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
    further: options.DividedInputOptions,
    videos: options.VideoOptions,
    per: Annotated[
        Per,
        typer.Option("--per", help="A row for each frame of videos, segment, or video; or for what occurs in a video."),
    ] = "frame",
    written: OutputOptions,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Also write a page to look at answers and correct them."),
    ] = None,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    cluster: ClusterOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Say what is in pictures, without training.

    Example: clipcls predict images/ --labels cat,dog,truck
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.outputs.destination import check_explanations
    from clipcls.predict.calibration import read_calibration
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.ranking import Scoring

    refuse_split_labels(inputs or (), wanted.labels or ())
    sources = further.sources(inputs, videos.sampling())
    destination = written.destination(sources)
    if explain:
        check_explanations(destination)
    made_from = [
        *(inputs or ()),
        *(further.files_from, wanted.labels_file, prompts, asked.model, calibration, unknown_words, taught),
    ]
    refuse_output(destination, made_from)
    if report is not None:
        refuse_page("--report", report, [*made_from, None if destination.is_standard_output else destination.name])
    limit = errors.limit()
    web = fetching.web(further)
    spread = cluster.spread(how.workers, verbosity.verbose)
    prompt_set = options.prompt_set(prompts, template)
    learned = None if taught is None else options.read_taught(taught, wanted.are_given, prompts, template)
    labels = wanted.read() if learned is None else learned
    spec = asked.spec_for(context, None if learned is None else learned.origin.model)
    if spread is not None:
        from clipcls.distributed.run import check_spread

        check_spread(destination, spec, spread)
    scoring = Scoring(
        score, multi_label, top_k, threshold, min_margin, _when_unknown(unknown, min_known, unknown_words)
    )
    with Session(spec, how.execution(limits, strict_prompts, web)) as session:
        quantise_ahead(session, lambda: list_again(sources))
        classifier = Classifier(
            session,
            labels,
            prompt_set,
            scoring,
            background=background,
            calibration=None if calibration is None else read_calibration(calibration),
            explain=explain,
            per=per,
        )
        page = None if report is None else RunPage(report, classifier, sources, destination)
        carry_out(classifier, Run(sources, destination, limit, spread, page), verbosity.quiet)


def _when_unknown(wanted: bool, min_known: float | None, words: str | None) -> "Unknown | None":
    from clipcls.labels.label_files import read_labels
    from clipcls.predict.ranking import Unknown

    if not wanted and min_known is None and words is None:
        return None
    found = None if words is None else tuple(text for label in read_labels(words) for text in label.texts)
    return Unknown(words=found) if min_known is None else Unknown(min_known, found)

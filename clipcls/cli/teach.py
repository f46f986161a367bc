"""`clipcls teach`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.outputs import refuse_output
from clipcls.cli.progress import Progress
from clipcls.cli.report_output import FEW
from clipcls.cli.signals import StopSignals
from clipcls.errors import UsageError, listed, printable

if TYPE_CHECKING:
    from clipcls.embed.execution import Execution
    from clipcls.evaluate.teach import TeachPlan, TeachReport
    from clipcls.outputs.destination import Destination
    from clipcls.predict.taught import Taught
    from clipcls.records import Label, ModelSpec, Prediction, PromptSet

# rows of the table of labels, and of suspects
_MOST_LABELS = 40
_MOST_SUSPECTS = 10


@options.grouped
def teach_command(
    *,
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="EXAMPLES|INPUT",
            help="Labelled pictures: a folder of class folders, a table (.csv, .tsv, .jsonl, .parquet) with columns "
            "path and label, such as a report's corrections, or tar shards. With --suggest any pictures.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write, such as pets.taught. With --suggest what predict writes; - is standard output.",
        ),
    ] = "-",
    leave_one_out: Annotated[
        str | None,
        typer.Option(
            "--leave-one-out",
            metavar="FILE",
            help="Also write the answer to each example as the others taught it, in a format of predict.",
        ),
    ] = None,
    # instead of teaching
    suggest: Annotated[
        int | None,
        typer.Option(
            "--suggest", metavar="N", min=1, help="Don't teach: list the N pictures that are most worth labelling."
        ),
    ] = None,
    taught: options.TaughtOption = None,
    # what to look for
    wanted: options.DataLabelOptions,
    prompts: options.PromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    asked: options.ModelOptions,
    # how to run
    allow_urls: options.AllowUrlsOption = False,
    limits: options.LimitOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Improve answers by a few labelled pictures, in seconds; predict --taught and eval --taught use the file.

    Labels may be given besides those of the examples; they keep their places by their words. Zero-shot answers are kept
    where the examples teach nothing better.

    Example: clipcls teach corrections.csv -o pets.taught
    """
    verbosity.set_up_logging()
    from clipcls.inputs.web import Web
    from clipcls.outputs.destination import Destination

    execution = how.execution(limits, strict_prompts, Web() if allow_urls else None)
    sources = [*data, wanted.labels_file, prompts, asked.model, taught]
    labels, prompt_set = wanted.read_if_given(), options.prompt_set(prompts, template)
    if suggest is not None:
        if leave_one_out is not None:
            raise UsageError("--leave-one-out is for teaching; leave --suggest out.")
        destination = Destination(output)
        refuse_output(destination, sources)
        learned = None if taught is None else options.read_taught(taught, labels, prompts, template)
        spec = asked.spec_for(context, None if learned is None else learned.origin.model)
        _suggest(data, suggest, destination, learned or wanted.read(), prompt_set, spec, execution, verbosity.quiet)
        return
    from clipcls.evaluate.teach import TeachPlan

    if taught is not None:
        raise UsageError("--taught goes with --suggest; teaching begins with examples.")
    if output == "-":
        raise UsageError("What is taught is written to a file: give -o, such as -o pets.taught.")
    if leave_one_out in ("-", "/dev/stdout"):
        raise UsageError("--leave-one-out needs a file: the figures go to standard output.")
    answers = None if leave_one_out is None else Destination(leave_one_out)
    for destination in filter(None, [Destination(output, format_name="jsonl"), answers]):
        refuse_output(destination, sources)
    _keep_other_files(Path(output))
    plan = TeachPlan(asked.spec(), execution, labels or (), prompt_set)
    _teach(data, plan, Path(output), answers, verbosity)


def _teach(
    data: Sequence[str],
    plan: "TeachPlan",
    output: Path,
    answers: "Destination | None",
    verbosity: options.VerbosityOptions,
) -> None:
    from clipcls.evaluate.teach import teach
    from clipcls.outputs.atomic import can_write, write_atomically
    from clipcls.predict.taught import taught_bytes

    allow_urls = plan.execution.web is not None
    truth = options.labelled_pictures(data, plan.labels or None, False, allow_urls)
    with Progress(not verbosity.quiet, "") as progress:
        report = teach(truth, plan, progress.watch())
    with can_write(str(output)):
        write_atomically(output, lambda file: file.write(taught_bytes(report.taught)))
    if answers is not None:
        _write(report.answers, answers, report.taught.labels)
    typer.echo(_text(report, output, verbosity.verbose).encode("utf-8", "replace"), nl=False)
    if report.failed:
        if not verbosity.quiet:
            total = len(truth.examples)
            typer.echo(f"clipcls: {len(report.failed):,} of {total:,} images could not be read", err=True)
        raise typer.Exit(1)


def _suggest(
    data: Sequence[str],
    count: int,
    destination: "Destination",
    what: "Sequence[Label] | Taught",
    prompts: "PromptSet | None",
    spec: "ModelSpec",
    execution: "Execution",
    quiet: bool,
) -> None:
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.inputs.listing import Sources
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.pool import embed_pool
    from clipcls.predict.suggest import require_choice, suggest
    from clipcls.predict.taught import Taught

    require_choice(what.labels if isinstance(what, Taught) else what)
    sources = Sources(data, allow_urls=execution.web is not None)
    with Session(spec, execution) as session:
        quantise_ahead(session, lambda: list_again(sources))
        classifier = Classifier(session, what, prompts)
        with Progress(not quiet, "") as progress, StopSignals("keeping the features so far") as signals:
            watch = progress.watch()
            classifier.embed_labels(watch.labels)
            pool, report = embed_pool(session, sources, stop=signals.received, watch=watch)
        if signals.exit_code:
            raise typer.Exit(signals.exit_code)
        found = suggest(classifier, pool, count)
        _write(found, destination, classifier.labels)
    if not found and not quiet:
        typer.echo("clipcls: nothing to suggest: all these pictures are examples already", err=True)
    if report.failed:
        if not quiet:
            typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
        raise typer.Exit(1)


def _write(predictions: "Sequence[Prediction]", destination: "Destination", labels: "Sequence[Label]") -> None:
    from clipcls.outputs.sinks import open_sink

    with open_sink(destination, tuple(label.name for label in labels)) as sink:
        for prediction in predictions:
            sink.write(prediction)


def _keep_other_files(path: Path) -> None:
    """Refuse to replace what isn't a taught file."""
    from clipcls.predict.taught import read_taught

    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        read_taught(path)
    except UsageError as exc:
        raise UsageError(
            f"--output {path}: there is a file that `clipcls teach` didn't write; choose another name."
        ) from exc


# ---------------------------------------------------------------------------------------------------------
# What is told


def _text(report: "TeachReport", output: Path, verbose: bool) -> str:
    shown = len([count for count in report.taught.examples if count])
    lines = [
        f"{report.count:,} examples of {shown:,} of {len(report.taught.labels):,} labels; each is judged by what the "
        f"others taught\n",
        _figures(report),
        _labels(report),
        _suspects(report, verbose),
        _notes(report),
    ]
    use = f"To use it:\nclipcls predict INPUT --taught {printable(str(output))}\n"
    return "\n".join(filter(None, [*lines, use]))


def _figures(report: "TeachReport") -> str:
    from clipcls.cli.tables import cells, interval, table

    gain = report.gain
    rows = [
        ("zero-shot", *cells(report.zero_shot), ""),
        ("taught", *cells(report.accuracy), ""),
        ("gain", f"{gain.value:+.4f}", interval(gain), f"{report.p:.4f}"),
    ]
    return table(("", "accuracy", "95 % interval", "McNemar's p"), rows, left=1)


def _labels(report: "TeachReport") -> str:
    from clipcls.cli.tables import table

    rows = [
        (label.name, f"{count:,}", *("–" if math.isnan(recall) else f"{recall:.4f}" for recall in recalls))
        for label, count, recalls in zip(report.taught.labels, report.taught.examples, report.recalls, strict=True)
    ]
    more = f"and {len(rows) - _MOST_LABELS:,} more labels\n" if len(rows) > _MOST_LABELS else ""
    return table(("label", "examples", "zero-shot recall", "taught recall"), rows[:_MOST_LABELS], left=1) + more


def _suspects(report: "TeachReport", verbose: bool) -> str:
    from clipcls.cli.tables import table

    if not report.suspects:
        return ""
    shown = report.suspects if verbose else report.suspects[:_MOST_SUSPECTS]
    rows = [(one.label, f"{one.score:.4f}", one.likely, f"{one.likely_score:.4f}", one.path) for one in shown]
    header = ("label", "score", "rather", "score", "picture")
    hidden = len(report.suspects) - len(shown)
    more = f"and {hidden:,} more, which -v lists\n" if hidden else ""
    title = "Look at these: the other examples contradict their labels\n"
    return f"{title}{table(header, rows, left=1, last_left=True)}{more}"


def _notes(report: "TeachReport") -> str:
    lines = []
    if report.is_zero_shot:
        lines.append("the examples taught nothing better than the labels' words, so that zero-shot answers are kept")
    if report.count < FEW:
        lines.append(f"with {report.count:,} examples, figures and intervals are rough")
    if report.repeated:
        count = len(report.repeated)
        lines.append(
            f"{count:,} {'example is' if count == 1 else 'examples are'} another one's picture, and left out: "
            f"{listed(report.repeated)}"
        )
    if report.failed:
        paths = listed(path for path, _ in report.failed)
        lines.append(f"{len(report.failed):,} images could not be read and count for nothing: {paths}")
    if report.problems:
        lines.append(f"in the data, {len(report.problems):,} to look at: {'; '.join(report.problems[:5])}")
    return "".join(f"Note: {printable(line)}\n" for line in lines)

"""`clipcls calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.cli.report_output import Output
from clipcls.errors import UsageError, listed, printable

if TYPE_CHECKING:
    from clipcls.evaluate.before_after import Measures
    from clipcls.evaluate.calibrate import CalibrationReport, CalibrationSettings
    from clipcls.evaluate.evaluate import EvalPlan
    from clipcls.evaluate.metrics import Estimate
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.predict.calibration import LabelThreshold, Rule

# images, below which a fit is said to be rough
_FEW = 100
# rows of the table of labels
_MOST_LABELS = 40
_LONGEST_LABEL = 24


@options.grouped
def calibrate_command(
    *,
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="A folder of class folders, a table (.csv, .tsv, .jsonl, .parquet) with columns path and label or "
            "labels, or tar shards with .cls members.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE.yaml", help="File to write; - is standard output.", show_default=False
        ),
    ],
    # thresholds
    target_precision: Annotated[
        float | None,
        typer.Option(
            "--target-precision",
            metavar="SHARE",
            help="For each label the lowest threshold at which such a share of its answers is right, such as 0.95.",
        ),
    ] = None,
    best_f1: Annotated[bool, typer.Option("--best-f1", help="For each label the threshold with the best F1.")] = False,
    min_answers: Annotated[
        int | None,
        typer.Option(
            "--min-answers",
            metavar="N",
            min=1,
            help="How many answers a label's threshold must rest on; with --best-f1, images of the label. "
            "[default: enough to hold one that is wrong, 20 for 0.95; best-f1: 10]",
        ),
    ] = None,
    # how sure one can be of it
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", metavar="SHARE", help="Fit without this share of the images, and measure on it."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses the images that are held out.")] = 0,
    # what to look for
    wanted: options.DataLabelOptions,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="Prompt set, by name or file. [default: the data's own, else the model's, else default]",
            autocompletion=options.complete_prompts,
        ),
    ] = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    taught: options.TaughtOption = None,
    # with which model
    asked: options.ModelOptions,
    # how to score
    score: options.ScoreOption = None,
    multi_label: options.DataMultiLabelOption = False,
    background: options.BackgroundOption = None,
    # how to run
    allow_urls: options.AllowUrlsOption = False,
    limits: options.LimitOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Correct scores by labelled pictures, and find each label's threshold.

    Example: clipcls calibrate pictures/ --target-precision 0.95 -o calibration.yaml
    """
    verbosity.set_up_logging()
    from clipcls.evaluate.calibrate import CalibrationSettings
    from clipcls.evaluate.evaluate import EvalPlan
    from clipcls.inputs.web import Web
    from clipcls.predict.ranking import Scoring

    target = Output("table", output, None)
    target.check([*data, wanted.labels_file, prompts, asked.model, taught])
    _keep_other_files(output)
    settings = CalibrationSettings(_rule(target_precision, best_f1, min_answers), holdout, seed)
    names = wanted.read_if_given()
    learned = None if taught is None else options.read_taught(taught, names, prompts, template)
    names = names if learned is None else learned.labels
    truth = options.labelled_pictures(data, names, multi_label, allow_urls)
    prompt_set = options.prompt_set(prompts or (None if template else truth.templates_file), template)
    plan = EvalPlan(
        labels=wanted.among(truth, names) if learned is None else learned.labels,
        models=(asked.spec_for(context, None if learned is None else learned.origin.model),),
        prompts=(learned or prompt_set,),
        scoring=Scoring(score, truth.multi_label),
        background=background,
        execution=how.execution(limits, strict_prompts, Web() if allow_urls else None),
    )
    _run(truth, plan, settings, target, verbosity.quiet)


def _run(truth: "Truth", plan: "EvalPlan", settings: "CalibrationSettings", target: Output, quiet: bool) -> None:
    from clipcls.evaluate.calibrate import calibrate
    from clipcls.predict.calibration import calibration_text

    with Progress(not quiet, "") as progress:
        report = calibrate(truth, plan, settings, progress.watch())
    target.write(calibration_text(report.calibration))
    to_stderr = target.file == "-"
    if not (to_stderr and quiet):
        typer.echo(_text(report).encode("utf-8", "replace"), nl=False, err=to_stderr)
    if report.failed:
        if not quiet:
            total = len(truth.examples)
            typer.echo(f"clipcls: {len(report.failed):,} of {total:,} images could not be read", err=True)
        raise typer.Exit(1)


def _keep_other_files(output: str) -> None:
    """Refuse to replace what isn't a calibration."""
    from clipcls.predict.calibration import read_calibration

    path = Path(output)
    if output == "-" or not path.is_file() or path.stat().st_size == 0:
        return
    try:
        read_calibration(path)
    except UsageError as exc:
        raise UsageError(f"--output {output}: there is a file that isn't a calibration; choose another name.") from exc


def _rule(target_precision: float | None, best_f1: bool, least: int | None) -> "Rule | None":
    from clipcls.evaluate.before_after import rule_for_f1, rule_for_precision

    if target_precision is not None:
        if best_f1:
            raise UsageError("--target-precision and --best-f1 are two ways to choose a threshold: give one.")
        return rule_for_precision(target_precision, least)
    if best_f1:
        return rule_for_f1(least)
    if least is not None:
        raise UsageError("--min-answers is for thresholds: give --target-precision or --best-f1.")
    return None


# ---------------------------------------------------------------------------------------------------------
# What is told


def _text(report: "CalibrationReport") -> str:
    held = report.held_out
    parts = [_opening(report)]
    if held is not None:
        parts.append(f"On {held.images:,} images that were held out:\n{_figures(held)}")
    caution = "" if held is not None else ", which is rather too good: --holdout 0.5 measures on others"
    parts.append(f"On the {report.fitted.images:,} images that it was fitted on{caution}:\n{_figures(report.fitted)}")
    if report.calibration.rule is not None:
        parts.append(_thresholds(report))
    parts.append(_notes(report))
    return "\n".join(part for part in parts if part)


def _opening(report: "CalibrationReport") -> str:
    made = report.calibration
    fitted = f"{made.origin.images:,} images, {len(made.basis.labels):,} labels\n"
    if made.temperature is None:
        return fitted
    bias = "" if made.logit_bias is None else f", logit_bias {made.logit_bias:.6g}"
    return f"{fitted}temperature {made.temperature:.6g} (logit_scale {made.logit_scale:.6g}{bias})\n"


def _figures(measures: "Measures") -> str:
    from clipcls.cli.tables import table
    from clipcls.evaluate.results import LESS_IS_BETTER

    rows = [
        (name, *_cells(before), *_cells(measures.after[name]), "\u2193" if name in LESS_IS_BETTER else "")
        for name, before in measures.before.items()
    ]
    return table(("figure", "before", "95 % interval", "after", "95 % interval", ""), rows, left=1)


def _thresholds(report: "CalibrationReport") -> str:
    from clipcls.cli.tables import table

    made, held = report.calibration, report.held_out
    rows: list[tuple[str, ...]] = []
    for name, found in zip(made.basis.labels, made.thresholds, strict=True):
        shown = "never" if found.threshold is None else f"{found.threshold:.6f}"
        rows.append((_short(name), shown, f"{found.images:,}", f"{found.answers:,}", *_precision(found)))
    header = ("label", "threshold", "images", "answers", "precision", "95 % interval")
    more = f"and {len(rows) - _MOST_LABELS:,} more labels, which the file lists\n" if len(rows) > _MOST_LABELS else ""
    text = table(header, rows[:_MOST_LABELS], left=1) + more
    if held is None or not made.thresholds:
        return text
    others = [
        (_short(name), f"{found.answers:,}", *_precision(found))
        for name, found in zip(made.basis.labels, held.labels, strict=True)
    ]
    return f"{text}\nHeld out:\n{table(('label', *header[3:]), others[:_MOST_LABELS], left=1)}{more}"


def _short(name: str) -> str:
    """Return a label cut so that its row fits 80 columns."""
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}\u2026"


def _precision(found: "LabelThreshold") -> tuple[str, str]:
    from clipcls.predict.calibration import share_interval

    if not found.answers:
        return "–", ""
    low, high = share_interval(found.right, found.answers)
    return f"{found.right / found.answers:.4f}", f"{low:.4f} to {high:.4f}"


def _notes(report: "CalibrationReport") -> str:
    made, lines = report.calibration, []
    if not report.is_fitted:
        lines.append("no answer was wrong, so that there is no best temperature; the model's own is kept")
    if made.origin.images < _FEW:
        lines.append(f"{made.origin.images:,} images are few: what was fitted is rough")
    fitted = list(zip(made.basis.labels, made.thresholds, strict=False))
    if noted := [f"{name}: {found.note}" for name, found in fitted if found.note is not None]:
        lines.append(listed(noted, separator="; "))
    never = [name for name, found in zip(made.basis.labels, made.thresholds, strict=False) if found.threshold is None]
    if never:
        lines.append(f"never answered, so that such images will be unknown: {listed(never)}")
    if report.outside:
        lines.append(
            f"{report.outside:,} images are of classes that aren't among the labels: any answer to them is wrong, and "
            "the temperature was fitted without them"
        )
    if report.failed:
        paths = listed(path for path, _ in report.failed)
        lines.append(f"{len(report.failed):,} images could not be read and count for nothing: {paths}")
    if report.problems:
        lines.append(f"in the data, {len(report.problems):,} to look at: {'; '.join(report.problems[:5])}")
    return "".join(f"Note: {printable(line)}\n" for line in lines)


def _cells(estimate: "Estimate") -> tuple[str, str]:
    from math import isnan

    if isnan(estimate.value):
        return "–", ""
    return f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"

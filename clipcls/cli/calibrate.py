"""`clipcls calibrate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.eval_report import Output
from clipcls.cli.progress import Progress
from clipcls.errors import UsageError
from clipcls.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from clipcls.evaluate.before_after import Measures
    from clipcls.evaluate.calibrate import Report, Settings
    from clipcls.evaluate.evaluate import Plan
    from clipcls.evaluate.metrics import Estimate
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.predict.calibration import LabelThreshold, Rule
    from clipcls.records import Label, PromptSet

# images, below which a fit is said to be rough
_FEW = 100
# rows of the table of labels
_MOST_LABELS = 40
# names that a line lists
_MOST_NAMES = 5


def calibrate(
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
    labels: options.DataLabelsOption = None,
    label: options.LabelOption = None,
    labels_file: options.LabelsFileOption = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Prompt set, by name or file. [default: the data's own, else default]"),
    ] = None,
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
    multi_label: options.DataMultiLabelOption = False,
    background: options.BackgroundOption = None,
    # how to run
    allow_urls: options.AllowUrlsOption = False,
    max_pixels: options.MaxPixelsOption = None,
    max_bytes: options.MaxBytesOption = None,
    decode: options.DecodeOption = "fast",
    batch_size: options.BatchSizeOption = None,
    workers: options.WorkersOption = None,
    cache_dir: options.CacheDirOption = None,
    cache_size: options.CacheSizeOption = None,
    no_cache: options.NoCacheOption = False,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Correct scores by labelled pictures, and find each label's threshold.

    Example: clipcls calibrate pictures/ --target-precision 0.95 -o calibration.yaml
    """
    options.set_up_logging(verbose, quiet)
    from clipcls.embed.cache.database import default_folder
    from clipcls.embed.cache.store import DEFAULT_LIMIT, MEGABYTE
    from clipcls.embed.execution import Execution
    from clipcls.evaluate.calibrate import Settings
    from clipcls.evaluate.evaluate import Plan
    from clipcls.images.limits import MAX_PIXELS
    from clipcls.inputs.contents import MAX_BYTES
    from clipcls.inputs.web import Web
    from clipcls.labels.label_files import make_label
    from clipcls.predict.ranking import Scoring
    from clipcls.records import ModelSpec

    target = Output("table", output, None)
    target.check([*data, labels_file, prompts, model])
    _keep_other_files(output)
    settings = Settings(_rule(target_precision, best_f1, min_answers), holdout, seed)
    names = _labels(labels, label, labels_file)
    truth = _truth(data, names, multi_label, allow_urls)
    plan = Plan(
        labels=names or tuple(map(make_label, truth.classnames)),
        models=(ModelSpec(model, arch, preprocess, device, precision),),
        prompts=(_prompt_set(prompts, template, truth),),
        scoring=Scoring(score, truth.multi_label),
        background=background,
        execution=Execution(
            decode=decode,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels or MAX_PIXELS,
            max_bytes=max_bytes or MAX_BYTES,
            web=Web() if allow_urls else None,
            cache_dir=None if no_cache else cache_dir or default_folder(),
            cache_size=DEFAULT_LIMIT if cache_size is None else cache_size * MEGABYTE,
            strict_prompts=strict_prompts,
        ),
    )
    _run(truth, plan, settings, target, quiet)


def _run(truth: "Truth", plan: "Plan", settings: "Settings", target: Output, quiet: bool) -> None:
    from clipcls.evaluate.calibrate import calibrate
    from clipcls.evaluate.evaluate import Watch
    from clipcls.predict.calibration import render

    with Progress(not quiet, "") as progress:
        watch = Watch(
            labels=progress.update_labels,
            begin=lambda total: progress.start(lambda: total),
            images=progress.update,
            failed=progress.print_error,
        )
        report = calibrate(truth, plan, settings, watch)
    target.write(render(report.calibration))
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


def _labels(labels: str | None, label: Sequence[str] | None, file: Path | None) -> "tuple[Label, ...] | None":
    """What is asked for; None for the data's classes."""
    from clipcls.labels.label_files import parse_labels

    return None if labels is None and not label and file is None else parse_labels(labels, label or (), file)


def _truth(data: Sequence[str], labels: "Sequence[Label] | None", multi_label: bool, allow_urls: bool) -> "Truth":
    from dataclasses import replace

    from clipcls.inputs.labelled.read import read_truth

    truth = read_truth(data, None if labels is None else [label.name for label in labels], allow_urls)
    return replace(truth, multi_label=True) if multi_label else truth


def _prompt_set(prompts: str | None, templates: Sequence[str] | None, truth: "Truth") -> "PromptSet":
    from clipcls.labels.prompts import load_prompt_set, templates_set

    if templates:
        if prompts is not None:
            raise UsageError("Give --prompts or --template, not both; a file of prompts can hold all templates.")
        return templates_set(templates)
    return load_prompt_set(prompts or truth.templates_file or "default")


# ---------------------------------------------------------------------------------------------------------
# What is told


def _text(report: "Report") -> str:
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


def _opening(report: "Report") -> str:
    made = report.calibration
    fitted = f"{made.origin.images:,} images, {len(made.basis.labels):,} labels\n"
    if made.temperature is None:
        return fitted
    bias = "" if made.logit_bias is None else f", logit_bias {made.logit_bias:.6g}"
    return f"{fitted}temperature {made.temperature:.6g} (logit_scale {made.logit_scale:.6g}{bias})\n"


def _figures(measures: "Measures") -> str:
    from clipcls.cli.eval_report import table
    from clipcls.evaluate.before_after import ERRORS

    rows = [
        (name, *_cells(before), *_cells(measures.after[name]), "less is better" if name in ERRORS else "")
        for name, before in measures.before.items()
    ]
    return table(("figure", "before", "95 % interval", "after", "95 % interval", ""), rows, left=1)


def _thresholds(report: "Report") -> str:
    from clipcls.cli.eval_report import table

    made, held = report.calibration, report.held_out
    rows: list[tuple[str, ...]] = []
    for number, (name, found) in enumerate(zip(made.basis.labels, made.thresholds, strict=True)):
        shown = "never" if found.threshold is None else f"{found.threshold:.6f}"
        row: tuple[str, ...] = (name, shown, f"{found.images:,}", f"{found.answers:,}", *_precision(found))
        if held is not None:
            row += (f"{held.labels[number].answers:,}", *_precision(held.labels[number]))
        rows.append((*row, found.note or ""))
    header = ["label", "threshold", "images", "answers", "precision", "95 % interval"]
    header += ["held out: answers", "precision", "95 % interval"] if held is not None else []
    shown_rows = rows[:_MOST_LABELS]
    more = f"and {len(rows) - _MOST_LABELS:,} more labels, which the file lists\n" if len(rows) > _MOST_LABELS else ""
    return table((*header, ""), shown_rows, left=1, last_left=True) + more


def _precision(found: "LabelThreshold") -> tuple[str, str]:
    from clipcls.predict.calibration import share_interval

    if not found.answers:
        return "–", ""
    low, high = share_interval(found.right, found.answers)
    return f"{found.right / found.answers:.4f}", f"{low:.4f} to {high:.4f}"


def _notes(report: "Report") -> str:
    from clipcls.cli.eval_report import plain

    made, lines = report.calibration, []
    if not report.is_fitted:
        lines.append("no answer was wrong, so that there is no best temperature; the model's own is kept")
    if made.origin.images < _FEW:
        lines.append(f"{made.origin.images:,} images are few: what was fitted is rough")
    never = [name for name, found in zip(made.basis.labels, made.thresholds, strict=False) if found.threshold is None]
    if never:
        lines.append(f"never answered, so that such images will be unknown: {_listed(never)}")
    if report.outside:
        lines.append(
            f"{report.outside:,} images are of classes that aren't among the labels: any answer to them is wrong, and "
            "the temperature was fitted without them"
        )
    if report.failed:
        paths = _listed([path for path, _ in report.failed])
        lines.append(f"{len(report.failed):,} images could not be read and count for nothing: {paths}")
    if report.problems:
        lines.append(f"in the data, {len(report.problems):,} to look at: {'; '.join(report.problems[:5])}")
    return "".join(f"Note: {plain(line)}\n" for line in lines)


def _cells(estimate: "Estimate") -> tuple[str, str]:
    from math import isnan

    if isnan(estimate.value):
        return "–", ""
    return f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more

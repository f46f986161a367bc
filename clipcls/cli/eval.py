"""`clipcls eval`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.eval_report import Command, Evaluation
from clipcls.cli.report_output import Output
from clipcls.errors import UsageError
from clipcls.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.records import PromptSet


@options.grouped
def eval_command(
    *,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="A folder of class folders, a table (.csv, .tsv, .jsonl, .parquet) with columns path and label or "
            "labels, or tar shards with .cls members.",
            show_default=False,
        ),
    ],
    # what to look for
    wanted: options.DataLabelOptions,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="PROMPTS",
            help="Prompt set, by name or file; repeatable, to compare. [default: the data's own, else the model's, "
            "else default]",
            autocompletion=options.complete_prompts,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEMPLATE", help="Template; all that are given are one more prompt set."),
    ] = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="As for predict; repeatable, to compare. [env var: CLIPCLS_MODEL; default: photo]",
            autocompletion=options.complete_model,
        ),
    ] = None,
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    device: options.DeviceOption = "auto",
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            envvar="CLIPCLS_PRECISION",
            help="As for predict; repeatable, to compare. [default: auto]",
        ),
    ] = None,
    runtime: options.RuntimeOption = "auto",
    # or without one
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Judge what predict wrote, instead of running a model."),
    ] = None,
    # how to score
    score: options.ScoreOption = None,
    multi_label: options.DataMultiLabelOption = False,
    background: options.BackgroundOption = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="With several labels an image: lowest score. [default: 0.5]")
    ] = None,
    # out
    format: Annotated[
        Literal["table", "json"], typer.Option("--format", help="Tables to read, or all there is as JSON.")
    ] = "table",
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-",
    confused: Annotated[
        int, typer.Option("--confused", metavar="N", min=0, help="How many of the most confused pairs to list.")
    ] = 10,
    confusion_plot: Annotated[
        Path | None,
        typer.Option("--confusion-plot", metavar="FILE.png", help="Draw the best result's confusion matrix."),
    ] = None,
    # how to run
    allow_urls: options.AllowUrlsOption = False,
    limits: options.LimitOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Measure models and prompts on labelled pictures, before a labelling job is run.

    Example: clipcls eval pictures/ --prompts simple --prompts default
    """
    verbosity.set_up_logging()
    from clipcls.evaluate.evaluate import EvalPlan
    from clipcls.inputs.web import Web
    from clipcls.predict.ranking import Scoring
    from clipcls.records import ModelSpec

    target = Output(format, output, confusion_plot)
    target.check([*data, wanted.labels_file, predictions, *(prompts or ()), *(model or ())])
    names = wanted.read()
    truth = options.labelled_pictures(data, names, multi_label, allow_urls)
    if predictions is not None:
        given = {"--model": model, "--prompts": prompts, "--template": template, "--score": score, "--arch": arch}
        _refuse_with_predictions([option for option, value in given.items() if value])
        Evaluation(truth, target, verbosity.quiet, verbosity.verbose).judge(predictions, names, confused)
        return
    if threshold is not None and not truth.multi_label:
        raise UsageError("--threshold is for several labels an image; with one, the output tells what thresholds do.")
    models = [
        (name, chosen) for name in _models(model, [arch, preprocess]) for chosen in dict.fromkeys(precision or ["auto"])
    ]
    sets = _prompt_sets(prompts or [], template or [], truth)
    plan = EvalPlan(
        labels=wanted.among(truth, names),
        models=tuple(ModelSpec(name, arch, preprocess, device, chosen, runtime) for name, chosen in models),
        prompts=tuple(prompt_set for _, prompt_set in sets),
        scoring=Scoring(score, truth.multi_label, threshold=threshold),
        background=background,
        execution=how.execution(limits, strict_prompts, Web() if allow_urls else None),
        confused=confused,
    )
    command = Command(
        models=[_model_arguments(*chosen) for chosen in models],
        prompts=[arguments for arguments, _ in sets],
        labels=_label_arguments(wanted, truth),
        settings={
            "--arch": arch,
            "--preprocess": preprocess,
            "--decode": None if how.decode == "fast" else how.decode,
            "--score": score,
            "--background": background,
            "--threshold": threshold,
            "--multi-label": truth.multi_label,
        },
    )
    Evaluation(truth, target, verbosity.quiet, verbosity.verbose).measure(plan, command)


def _refuse_with_predictions(given: Sequence[str]) -> None:
    if given:
        raise UsageError(f"--predictions are judged as they are: leave {', '.join(given)} out.")


def _models(models: Sequence[str] | None, stated: Sequence[str | None]) -> list[str]:
    # not typer's own, which would take a path with a space for two
    names = list(dict.fromkeys(models or [os.environ.get("CLIPCLS_MODEL") or DEFAULT_MODEL]))
    if len(names) > 1 and any(stated):
        raise UsageError("--arch and --preprocess say what one weights file is; evaluate it by itself.")
    return names


def _model_arguments(name: str, precision: str) -> list[str]:
    return ["--model", name, *([] if precision == "auto" else ["--precision", precision])]


def _prompt_sets(
    prompts: Sequence[str], templates: Sequence[str], truth: "Truth"
) -> "list[tuple[list[str], PromptSet | None]]":
    """The prompt sets, each with the options that stand for it; None, without options, for each model's own."""
    from clipcls.labels.prompts import load_prompt_set, templates_set

    sets: list[tuple[list[str], PromptSet | None]]
    sets = [(["--prompts", name], load_prompt_set(name)) for name in dict.fromkeys(prompts)]
    if templates:
        options = [part for template in templates for part in ("--template", template)]
        sets.append((options, templates_set(templates)))
    if not sets and truth.templates_file is not None:
        sets.append((["--prompts", truth.templates_file], load_prompt_set(truth.templates_file)))
    return sets or [([], None)]


def _label_arguments(wanted: options.DataLabelOptions, truth: "Truth") -> list[str]:
    """The options that give the labels which were used."""
    if not wanted.are_given:
        if truth.classnames_file is not None and not truth.same:
            return ["--labels-file", truth.classnames_file]
        names = [name for name in truth.classnames if name not in truth.same]
        if not any("," in name for name in names):
            return ["--labels", ",".join(names)]
        return [part for name in names for part in ("--label", name)]
    given = [] if wanted.labels is None else ["--labels", ",".join(wanted.labels)]
    given += [part for name in wanted.label or () for part in ("--label", name)]
    return given if wanted.labels_file is None else [*given, "--labels-file", str(wanted.labels_file)]

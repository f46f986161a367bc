"""`clipcls eval`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.attack_report import AttackOptions, measure_attack, refuse_several
from clipcls.cli.choices_report import measure_choices
from clipcls.cli.compare_options import ComparedModelOptions, PromptOptions, arguments_of
from clipcls.cli.eval_report import Command, Evaluation
from clipcls.cli.report_output import Output
from clipcls.cli.retrieval_report import measure
from clipcls.errors import UsageError

if TYPE_CHECKING:
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.predict.taught import Taught
    from clipcls.records import PromptSet

# columns of groups that one run takes
_MOST_COLUMNS = 2


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
    prompting: PromptOptions,
    taught: Annotated[
        Path | None,
        typer.Option(
            "--taught",
            metavar="FILE",
            help="Compare what `clipcls teach` wrote with zero-shot answers, without the pictures that taught it.",
        ),
    ] = None,
    # with which model
    compared: ComparedModelOptions,
    # other ways to measure
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Measure how well pictures and captions find one another: DATA is a table with a column caption, or "
            "shards. Captions are taken as they are, unless --prompts or --template is given.",
        ),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Judge what predict wrote, instead of running a model."),
    ] = None,
    question: options.QuestionOption = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="COLUMN",
            help="Compare the figures of groups that a column of the table names; twice for two columns, alone and "
            "together.",
        ),
    ] = None,
    attacking: AttackOptions,
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
        int | None,
        typer.Option(
            "--confused", metavar="N", min=0, help="How many of the most confused pairs to list. [default: 10]"
        ),
    ] = None,
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
    from clipcls.evaluate.evaluate import DEFAULT_CONFUSED, EvalPlan
    from clipcls.inputs.labelled.choices import has_choices
    from clipcls.inputs.web import Web
    from clipcls.predict.ranking import Scoring

    target = Output(format, output, confusion_plot)
    target.check([*data, wanted.labels_file, predictions, taught, *(prompting.prompts or ()), *(compared.model or ())])
    execution = how.execution(limits, prompting.strict_prompts, Web() if allow_urls else None)
    groups = tuple(dict.fromkeys(group or ()))
    if len(groups) > _MOST_COLUMNS:
        raise UsageError(f"--group: {len(groups)} columns; two at most, as groups of more would be too small.")
    if attacking.attack is None:
        ways = {"--severity": attacking.severity, "--limit": attacking.limit, "--seed": attacking.seed}
        _refuse("these say how to --attack, which isn't given", ways)
    else:
        others: dict[str, object] = {
            "--retrieval": retrieval,
            "--predictions": predictions,
            "--question": question,
            "--taught": taught,
            "--group": group,
            "--score": score,
            "--multi-label": multi_label,
            "--background": background,
            "--threshold": threshold,
            "--confused": confused,
            "--confusion-plot": confusion_plot,
        }
        _refuse("--attack measures whether the answers of a model hold", others)
        names = wanted.read_if_given()
        truth = options.labelled_pictures(data, names, False, allow_urls, ())
        specs, prompt_sets = compared.specs(), prompting.sets(truth.templates_file)
        refuse_several(len(specs), len(prompt_sets))
        from clipcls.evaluate.attacks.run import AttackPlan

        attack_plan = AttackPlan(
            attacking.attack,
            wanted.among(truth, names),
            specs[0],
            prompt_sets[0][1],
            execution,
            None if attacking.severity is None else tuple(attacking.severity),
            attacking.limit,
            attacking.seed or 0,
        )
        measure_attack(truth, attack_plan, target, verbosity.quiet)
        return
    if retrieval:
        meaningless: dict[str, object] = {
            "--labels": wanted.labels,
            "--label": wanted.label,
            "--labels-file": wanted.labels_file,
            "--predictions": predictions,
            "--taught": taught,
            "--score": score,
            "--multi-label": multi_label,
            "--background": background,
            "--threshold": threshold,
            "--confused": confused,
            "--confusion-plot": confusion_plot,
        }
        _refuse("--retrieval measures captions, which have no labels and thresholds", meaningless)
        from clipcls.evaluate.retrieval import Pairs, RetrievalPlan
        from clipcls.inputs.labelled.read import read_for_retrieval

        pairs = Pairs.of(read_for_retrieval(data, allow_urls, groups))
        caption_prompts = tuple(prompt_set for _, prompt_set in prompting.sets())
        measure(pairs, RetrievalPlan(compared.specs(), caption_prompts, execution), target, verbosity.quiet)
        return
    if predictions is None and has_choices(data):
        meaningless = {"--labels": wanted.are_given, "--score": score, "--multi-label": multi_label}
        meaningless |= {"--threshold": threshold, "--taught": taught, "--confused": confused, "--question": question}
        meaningless |= {"--group": group}
        _refuse("multiple-choice questions have choices of their own", meaningless | {"--background": background})
        (model, *other_models), ((_, choice_prompts), *more) = compared.specs(), prompting.sets()
        if other_models or more:
            raise UsageError("Multiple-choice questions are measured with one model and one prompt set at a time.")
        measure_choices(data[0], model, choice_prompts, execution, target, verbosity.quiet)
        return
    names = wanted.read_if_given()
    learned = None if taught is None else options.read_taught(taught, names, prompting.prompts, prompting.template)
    names = names if learned is None else learned.labels
    truth = options.labelled_pictures(data, names, multi_label, allow_urls, groups)
    most = DEFAULT_CONFUSED if confused is None else confused
    if predictions is not None:
        given: dict[str, object] = {"--model": compared.model, "--prompts": prompting.prompts, "--taught": taught}
        given |= {"--template": prompting.template}
        _refuse("--predictions are judged as they are", given | {"--score": score, "--arch": compared.arch})
        Evaluation(truth, target, verbosity.quiet, verbosity.verbose).judge(predictions, names, most, question)
        return
    if question is not None:
        raise UsageError("--question chooses among the answers of --predictions.")
    if threshold is not None and not truth.multi_label:
        raise UsageError("--threshold is for several labels an image; with one, the output tells what thresholds do.")
    models = compared.specs(None if learned is None else learned.origin.model)
    labels = wanted.among(truth, names) if learned is None else learned.labels
    label_arguments = _label_arguments(wanted, truth) if learned is None else []
    sets: list[tuple[list[str], PromptSet | Taught | None]] = [*prompting.sets(truth.templates_file)]
    if learned is not None:
        sets = [
            (
                [*_prompt_options(learned.prompts), *_label_options([label.name for label in learned.labels])],
                learned.prompts,
            ),
            (["--taught", str(taught)], learned),
        ]
    plan = EvalPlan(
        labels=labels,
        models=models,
        prompts=tuple(prompt_set for _, prompt_set in sets),
        scoring=Scoring(score, truth.multi_label, threshold=threshold),
        background=background,
        execution=execution,
        confused=most,
    )
    command = Command(
        models=[arguments_of(model) for model in models],
        prompts=[arguments for arguments, _ in sets],
        labels=label_arguments,
        settings={
            "--arch": compared.arch,
            "--preprocess": compared.preprocess,
            "--decode": None if how.decode == "fast" else how.decode,
            "--score": score,
            "--background": background,
            "--threshold": threshold,
            "--multi-label": truth.multi_label,
        },
    )
    Evaluation(truth, target, verbosity.quiet, verbosity.verbose).measure(plan, command)


def _refuse(why: str, options: Mapping[str, object]) -> None:
    """Refuse options that have no meaning, if they are given."""
    given = [option for option, value in options.items() if value is not None and value is not False and value != []]
    if given:
        raise UsageError(f"{why}: leave {', '.join(given)} out.")


def _label_arguments(wanted: options.DataLabelOptions, truth: "Truth") -> list[str]:
    """The options that give the labels which were used."""
    if not wanted.are_given:
        if truth.classnames_file is not None and not truth.same:
            return ["--labels-file", truth.classnames_file]
        return _label_options([name for name in truth.classnames if name not in truth.same])
    given = [] if wanted.labels is None else ["--labels", ",".join(wanted.labels)]
    given += [part for name in wanted.label or () for part in ("--label", name)]
    return given if wanted.labels_file is None else [*given, "--labels-file", wanted.labels_file]


def _label_options(names: Sequence[str]) -> list[str]:
    if not any("," in name for name in names):
        return ["--labels", ",".join(names)]
    return [part for name in names for part in ("--label", name)]


def _prompt_options(prompts: "PromptSet") -> list[str]:
    """The options that give prompts which aren't used anyway."""
    from clipcls.labels.prompts import load_prompt_set

    if prompts.by_script or prompts.templates == load_prompt_set("default").templates:
        return []
    return [part for template in prompts.templates for part in ("--template", template)]

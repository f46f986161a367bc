"""`clipcls eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    from clipcls.embed.execution import Execution
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.predict.taught import Taught
    from clipcls.records import PromptSet

# columns of groups that one run takes
_MOST_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class WayOptions:
    """The options for what is measured, and how."""

    taught: Annotated[
        Path | None,
        typer.Option(
            "--taught",
            metavar="FILE",
            help="Compare what `clipcls teach` wrote with zero-shot answers, without the pictures that taught it.",
        ),
    ] = None
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Measure how well pictures and captions find one another: DATA is a table with a column caption, or "
            "shards. Captions are taken as they are, unless --prompts or --template is given.",
        ),
    ] = False
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Judge what predict wrote, instead of running a model."),
    ] = None
    question: options.QuestionOption = None
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="COLUMN",
            help="Compare the figures of groups that a column of the table names; twice for two columns, alone and "
            "together.",
        ),
    ] = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns of groups.

        Raises:
            UsageError: there are too many.
        """
        groups = tuple(dict.fromkeys(self.group or ()))
        if len(groups) > _MOST_COLUMNS:
            raise UsageError(f"--group: {len(groups)} columns; two at most, as groups of more would be too small.")
        return groups


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """The options for scores."""

    score: options.ScoreOption = None
    multi_label: options.DataMultiLabelOption = False
    background: options.BackgroundOption = None
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="With several labels an image: lowest score. [default: 0.5]")
    ] = None


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The options for what is written."""

    format: Annotated[
        Literal["table", "json"], typer.Option("--format", help="Tables to read, or all there is as JSON.")
    ] = "table"
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")] = "-"
    confused: Annotated[
        int | None,
        typer.Option(
            "--confused", metavar="N", min=0, help="How many of the most confused pairs to list. [default: 10]"
        ),
    ] = None
    confusion_plot: Annotated[
        Path | None,
        typer.Option("--confusion-plot", metavar="FILE.png", help="Draw the best result's confusion matrix."),
    ] = None


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
    # with which model
    compared: ComparedModelOptions,
    # other ways to measure
    ways: WayOptions,
    attacking: AttackOptions,
    # how to score
    scoring: ScoreOptions,
    # out
    shown: ReportOptions,
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
    from clipcls.inputs.labelled.choices import has_choices
    from clipcls.inputs.web import Web

    target = Output(shown.format, shown.output, shown.confusion_plot)
    target.check(
        [*data, wanted.labels_file, ways.predictions, ways.taught, *(prompting.prompts or ()), *(compared.model or ())]
    )
    execution = how.execution(limits, prompting.strict_prompts, Web() if allow_urls else None)
    run = _Run(
        data, wanted, prompting, compared, ways, attacking, scoring, shown, allow_urls, execution, target, verbosity
    )
    if attacking.attack is not None:
        run.attack(attacking.attack)
        return
    run.refuse("these say how to --attack, which isn't given", "--severity", "--limit", "--seed")
    if ways.retrieval:
        run.retrieve()
    elif ways.predictions is not None:
        run.judge(ways.predictions)
    elif has_choices(data):
        run.choose()
    else:
        run.compare()


@dataclass(frozen=True, slots=True)
class _Run:
    """What the command line asks for, and each of the ways to measure it."""

    data: list[str]
    wanted: options.DataLabelOptions
    prompting: PromptOptions
    compared: ComparedModelOptions
    ways: WayOptions
    attacking: AttackOptions
    scoring: ScoreOptions
    shown: ReportOptions
    allow_urls: bool
    execution: "Execution"
    target: Output
    verbosity: options.VerbosityOptions

    def refuse(self, why: str, *names: str) -> None:
        """Refuse options that have no meaning, if they are given.

        Raises:
            UsageError: one is.
        """
        groups = (self.wanted, self.prompting, self.compared, self.ways, self.attacking, self.scoring, self.shown)
        given = []
        for name in names:
            field = name.removeprefix("--").replace("-", "_")
            value = next(getattr(group, field) for group in groups if hasattr(group, field))
            if value is not None and value is not False and value != []:
                given.append(name)
        if given:
            raise UsageError(f"{why}: leave {', '.join(given)} out.")

    def attack(self, kind: Literal["text", "corrupt", "adversarial"]) -> None:
        """Measure whether answers hold."""
        from clipcls.evaluate.attacks.run import AttackPlan

        others = ("--retrieval", "--predictions", "--question", "--taught", "--group", "--score", "--multi-label")
        figures = ("--background", "--threshold", "--confused", "--confusion-plot")
        self.refuse("--attack measures whether the answers of a model hold", *others, *figures)
        names = self.wanted.read_if_given()
        truth = options.labelled_pictures(self.data, names, False, self.allow_urls, ())
        specs, prompt_sets = self.compared.specs(), self.prompting.sets(truth.templates_file)
        refuse_several(len(specs), len(prompt_sets))
        asked = self.attacking
        severities = None if asked.severity is None else tuple(asked.severity)
        labels, prompts = self.wanted.among(truth, names), prompt_sets[0][1]
        plan = AttackPlan(kind, labels, specs[0], prompts, self.execution, severities, asked.limit, asked.seed or 0)
        measure_attack(truth, plan, self.target, self.verbosity.quiet)

    def retrieve(self) -> None:
        """Measure how well pictures and captions find one another."""
        from clipcls.evaluate.retrieval import Pairs, RetrievalPlan
        from clipcls.inputs.labelled.read import read_for_retrieval

        others = ("--labels", "--label", "--labels-file", "--predictions", "--taught", "--score", "--multi-label")
        figures = ("--background", "--threshold", "--confused", "--confusion-plot")
        self.refuse("--retrieval measures captions, which have no labels and thresholds", *others, *figures)
        pairs = Pairs.of(read_for_retrieval(self.data, self.allow_urls, self.ways.groups))
        prompts = tuple(prompt_set for _, prompt_set in self.prompting.sets())
        measure(pairs, RetrievalPlan(self.compared.specs(), prompts, self.execution), self.target, self.verbosity.quiet)

    def choose(self) -> None:
        """Measure answers to multiple-choice questions."""
        others = ("--labels", "--label", "--labels-file", "--score", "--multi-label", "--threshold", "--taught")
        figures = ("--confused", "--question", "--group", "--background")
        self.refuse("multiple-choice questions have choices of their own", *others, *figures)
        (model, *other_models), ((_, prompts), *more) = self.compared.specs(), self.prompting.sets()
        if other_models or more:
            raise UsageError("Multiple-choice questions are measured with one model and one prompt set at a time.")
        measure_choices(self.data[0], model, prompts, self.execution, self.target, self.verbosity.quiet)

    def judge(self, predictions: Path) -> None:
        """Measure what `predict` wrote."""
        others = ("--model", "--prompts", "--taught", "--template", "--score", "--arch")
        self.refuse("--predictions are judged as they are", *others)
        names = self.wanted.read_if_given()
        truth = options.labelled_pictures(self.data, names, self.scoring.multi_label, self.allow_urls, self.ways.groups)
        self._evaluation(truth).judge(predictions, names, self._confused, self.ways.question)

    def compare(self) -> None:
        """Measure each model with each prompt set."""
        from clipcls.evaluate.evaluate import EvalPlan
        from clipcls.predict.ranking import Scoring

        prompting, asked, taught = self.prompting, self.scoring, self.ways.taught
        names = self.wanted.read_if_given()
        learned = None if taught is None else options.read_taught(taught, names, prompting.prompts, prompting.template)
        names = names if learned is None else learned.labels
        truth = options.labelled_pictures(self.data, names, asked.multi_label, self.allow_urls, self.ways.groups)
        if self.ways.question is not None:
            raise UsageError("--question chooses among the answers of --predictions.")
        if asked.threshold is not None and not truth.multi_label:
            raise UsageError(
                "--threshold is for several labels an image; with one, the output tells what thresholds do."
            )
        models = self.compared.specs(None if learned is None else learned.origin.model)
        sets: list[tuple[list[str], PromptSet | Taught | None]] = [*prompting.sets(truth.templates_file)]
        if learned is not None:
            without = [*_prompt_options(learned.prompts), *_label_options([label.name for label in learned.labels])]
            sets = [(without, learned.prompts), (["--taught", str(taught)], learned)]
        plan = EvalPlan(
            labels=self.wanted.among(truth, names) if learned is None else learned.labels,
            models=models,
            prompts=tuple(prompt_set for _, prompt_set in sets),
            scoring=Scoring(asked.score, truth.multi_label, threshold=asked.threshold),
            background=asked.background,
            execution=self.execution,
            confused=self._confused,
        )
        command = Command(
            models=[arguments_of(model) for model in models],
            prompts=[arguments for arguments, _ in sets],
            labels=_label_arguments(self.wanted, truth) if learned is None else [],
            settings={
                "--arch": self.compared.arch,
                "--preprocess": self.compared.preprocess,
                "--decode": None if self.execution.decode == "fast" else self.execution.decode,
                "--score": asked.score,
                "--background": asked.background,
                "--threshold": asked.threshold,
                "--multi-label": truth.multi_label,
            },
        )
        self._evaluation(truth).measure(plan, command)

    @property
    def _confused(self) -> int:
        from clipcls.evaluate.evaluate import DEFAULT_CONFUSED

        return DEFAULT_CONFUSED if self.shown.confused is None else self.shown.confused

    def _evaluation(self, truth: "Truth") -> Evaluation:
        return Evaluation(truth, self.target, self.verbosity.quiet, self.verbosity.verbose)


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

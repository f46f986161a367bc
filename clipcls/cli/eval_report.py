"""Runs `clipcls eval`, and writes its figures as tables or JSON."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcls.cli.group_report import group_notes, group_tables
from clipcls.cli.progress import Progress
from clipcls.cli.report_output import FEW, Output, exit_if_left_out
from clipcls.cli.tables import Rows, cells, decimal, interval, table
from clipcls.errors import UsageError, listed, printable
from clipcls.records import Label

if TYPE_CHECKING:
    from clipcls.evaluate.evaluate import EvalPlan
    from clipcls.evaluate.results import EvalOutcome, EvalResult
    from clipcls.inputs.labelled.examples import Truth

# most rows of a table of classes; with more classes, only those with the lowest recall are shown
_MOST_CLASSES = 40
_WORST_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Command:
    """The `clipcls predict` commands that label pictures as they were evaluated.

    Attributes:
        models: the options of each model, in the order of the plan.
        prompts: the options of each prompt set, in the order of the plan.
        labels: the options that give the labels.
        settings: further options with their values; None and False leave one out, True makes it a flag.
    """

    models: Sequence[Sequence[str]]
    prompts: Sequence[Sequence[str]]
    labels: Sequence[str]
    settings: Mapping[str, object]

    def of(self, result: int) -> str:
        """Return the command for the result with this index."""
        model, prompts = divmod(result, len(self.prompts))
        given = {option: value for option, value in self.settings.items() if value is not None and value is not False}
        more = [
            part for option, value in given.items() for part in ([option] if value is True else [option, str(value)])
        ]
        parts = [*self.models[model], *self.prompts[prompts], *self.labels, *more]
        return f"clipcls predict INPUT {shlex.join(parts)}"


class Evaluation:
    """One run of `clipcls eval`.

    Args:
        quiet: show neither progress nor lines for bad images.
        verbose: show all paths, and whole ones.
    """

    def __init__(self, truth: "Truth", output: Output, quiet: bool, verbose: bool = False) -> None:
        self._truth = truth
        self._output = output
        self._quiet = quiet
        self._verbose = verbose

    def measure(self, plan: "EvalPlan", command: Command) -> None:
        """Run the models, and write the figures.

        Raises:
            StoppedError: the output can't be written.
            typer.Exit: some images failed.
        """
        from clipcls.evaluate.evaluate import evaluate

        with Progress(not self._quiet, "") as progress:
            outcome = evaluate(self._truth, plan, progress.watch())
        self._finish(outcome, command.of(outcome.best))

    def judge(
        self, predictions: Path, labels: Sequence[Label] | None, confused: int, question: str | None = None
    ) -> None:
        """Evaluate earlier predictions, and write the figures.

        Raises:
            UsageError: the predictions can't be read.
            StoppedError: the output can't be written.
            typer.Exit: some images failed or have no prediction.
        """
        from clipcls.evaluate.evaluate import evaluate_predictions
        from clipcls.outputs.read_back import read_results

        self._finish(evaluate_predictions(self._truth, read_results(predictions, question), labels, confused), None)

    def _finish(self, outcome: "EvalOutcome", command: str | None) -> None:
        from clipcls.evaluate.results import outcome_record

        best = outcome.results[outcome.best]
        if self._output.plot is not None:
            if best.confusion is None:
                raise UsageError("--confusion-plot needs one label an image.")
            from clipcls.evaluate.confusion import draw_confusion

            draw_confusion(best.confusion, _title(best), self._output.plot)
        self._output.write_result(
            lambda: outcome_record(outcome) | {"command": command}, lambda: report(outcome, command, self._verbose)
        )
        without = len(outcome.caveats.failed) + len(outcome.caveats.missing)
        exit_if_left_out(without, outcome.images, self._quiet)


# ---------------------------------------------------------------------------------------------------------
# Tables


def report(outcome: "EvalOutcome", command: str | None, verbose: bool = False) -> str:
    """Return an evaluation as text: all figures of the best result, and a comparison with the others.

    Args:
        verbose: name all example pictures of confused pairs by their whole paths.
    """
    best = outcome.results[outcome.best]
    parts = [_opening(outcome)]
    if len(outcome.results) > 1:
        parts += [_comparison(outcome), f"The best, {_title(best)}:\n"]
    parts += [_figures(best), _classes(outcome, best)]
    if best.levels:
        parts += [_levels(best), _label_levels(best)]
    if best.confusion is not None and best.confusion.pairs:
        parts.append(_confused(best, verbose))
    parts += [group_tables(groups, outcome.classes.names) for groups in best.groups]
    parts.append(_notes(outcome, best))
    if command is not None:
        parts.append(f"To label pictures so:\n{printable(command)}\n")
    return "\n".join(part for part in parts if part)


def _opening(outcome: "EvalOutcome") -> str:
    of = "" if outcome.measured == outcome.images else f" of {outcome.images:,}"
    labels = outcome.classes.n_labels
    return f"{outcome.measured:,}{of} images measured, {labels:,} label{'s' if labels != 1 else ''}\n"


def _comparison(outcome: "EvalOutcome") -> str:
    name = outcome.results[0].headline[0]
    rows: Rows = []
    for number, (result, beside) in enumerate(zip(outcome.results, outcome.comparisons, strict=True)):
        row = (result.model or "", result.prompts or "", *cells(result.headline[1]))
        if number == outcome.best:
            rows.append((*row, "best", "", "", ""))
        else:
            same = ("", "") if beside.p is None else (f"{beside.agreement:.4f}", f"{beside.p:.4f}")
            rows.append((*row, f"{beside.difference.value:+.4f}", interval(beside.difference), *same))
    header = ("model", "prompts", name, "95 % interval", "to the best", "95 % interval", "same answer", "McNemar's p")
    return table(header if not outcome.multi_label else header[:-2], rows, left=2) + _warn_of_choice(outcome)


def _warn_of_choice(outcome: "EvalOutcome") -> str:
    """Return a warning that the best of three or more results looks too good."""
    if len(outcome.results) < 3:
        return ""
    others = len(outcome.results) - 1
    return (
        f"The best was chosen by these images, so that its figure is rather too high; p isn't corrected for {others} "
        "comparisons.\n"
    )


def _figures(result: "EvalResult") -> str:
    from clipcls.evaluate.results import LESS_IS_BETTER

    rows: Rows = [
        (name, *cells(estimate), "less is better" if name in LESS_IS_BETTER else "")
        for name, estimate in result.figures.items()
    ]
    lines = [f"{name}: left out, {reason}\n" for name, reason in result.omitted.items()]
    return table(("figure", "value", "95 % interval", ""), rows, left=1) + "".join(lines)


def _classes(outcome: "EvalOutcome", result: "EvalResult") -> str:
    figures = list(zip(outcome.classes.names, result.classes, strict=False))
    title = ""
    if len(figures) > _MOST_CLASSES:
        found = [entry for entry in figures if entry[1].support]
        figures = sorted(found, key=lambda entry: entry[1].recall)[:_WORST_CLASSES]
        title = f"The {len(figures)} classes with the lowest recall; --format json tells all {len(result.classes):,}.\n"
    rows: Rows = []
    for name, of_class in figures:
        row = (name, f"{of_class.support:,}", *map(decimal, (of_class.precision, of_class.recall, of_class.f1)))
        rows.append((*row, decimal(of_class.average_precision)) if outcome.multi_label else row)
    header = ("class", "images", "precision", "recall", "F1", "average precision")
    return title + table(header if outcome.multi_label else header[:-1], rows, left=1)


def _levels(result: "EvalResult") -> str:
    from clipcls.evaluate.metrics import ThresholdFigures

    rows = [
        (f"{level.threshold:.2f}", f"{level.answered:,}", decimal(level.coverage), decimal(level.accuracy))
        for level in result.levels
        if isinstance(level, ThresholdFigures)
    ]
    return table(("threshold", "answered", "coverage", "accuracy"), rows, left=0)


def _label_levels(result: "EvalResult") -> str:
    from clipcls.evaluate.metrics import LabelThresholdFigures

    rows = [
        (f"{level.threshold:.2f}", decimal(level.precision), decimal(level.recall), decimal(level.f1))
        for level in result.levels
        if isinstance(level, LabelThresholdFigures)
    ]
    return table(("threshold", "precision", "recall", "F1"), rows, left=0)


def _confused(result: "EvalResult", verbose: bool) -> str:
    assert result.confusion is not None
    from clipcls.evaluate.confusion import NO_ANSWER

    pairs = result.confusion.pairs
    shared = "" if verbose else _shared_folder([path for pair in pairs for path in pair.paths])
    rows: Rows = [
        (
            pair.truth,
            NO_ANSWER if pair.predicted is None else pair.predicted,
            f"{pair.count:,}",
            f"{pair.share:.0%}",
            "  ".join(path.removeprefix(shared) for path in (pair.paths if verbose else pair.paths[:1])),
        )
        for pair in pairs
    ]
    example = f"such as, in {shared}" if shared else "such as"
    return table(("truth", "answer", "images", "of class", example), rows, left=2, last_left=True)


def _shared_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths begin with, with its slash; empty if there is none."""
    shared = os.path.commonprefix(list(paths))  # noqa: RUF071, whole paths may be addresses
    return shared[: shared.rfind("/") + 1]


def _notes(outcome: "EvalOutcome", best: "EvalResult") -> str:
    told = outcome.caveats
    lines = _caution(outcome, best)
    if told.failed:
        paths = listed(path for path, _ in told.failed)
        lines.append(f"{len(told.failed):,} images could not be read and are in none of the figures: {paths}")
    if told.missing:
        lines.append(f"{len(told.missing):,} images aren't among the predictions: {listed(told.missing)}")
    if told.unasked:
        lines.append(f"{len(told.unasked):,} predictions are of pictures that the data don't hold, and don't count")
    if told.unknown:
        lines.append(f"{told.unknown:,} images are unknown, which is counted as wrong")
    if told.outside:
        named = listed(f"{name} ({count:,})" for name, count in told.outside.items())
        what = "such labels don't count" if outcome.multi_label else "they are counted as wrong"
        within = "" if math.isnan(best.within) else f"; accuracy@1 without them: {best.within:.4f}"
        lines.append(f"images of classes that aren't among the labels: {named}; {what}{within}")
    if told.unseen:
        lines.append(f"no image is of {listed(told.unseen)}; such labels are in no mean over classes")
    if told.repeated:
        lines.append(f"{len(told.repeated):,} paths come more than once and count as often: {listed(told.repeated)}")
    if told.problems:
        lines.append(f"in the data, {len(told.problems):,} to look at: {listed(told.problems, separator='; ')}")
    lines += group_notes(best.groups)
    return "".join(f"Note: {printable(line)}\n" for line in lines)


def _caution(outcome: "EvalOutcome", best: "EvalResult") -> list[str]:
    """Return warnings where the intervals mislead."""
    count = outcome.measured
    if outcome.classes.n_labels == 1 and not outcome.multi_label:
        return ["with one label there is nothing to take it for; the figures tell nothing"]
    if best.right is not None and best.right.all():
        # with 95 % probability, n images show an error that occurs at least once in n / 3 images
        most = min(1.0, 3 / count)
        return [f"no answer was wrong, so that resamples can't be; of new images, up to {most:.1%} may well be"]
    if count < FEW:
        return [f"{count:,} images are few: the intervals are rough, and each class's figures rougher still"]
    return []


def _title(result: "EvalResult") -> str:
    return "predictions" if result.model is None else f"model {result.model}, prompts {result.prompts}"

"""Runs `clipcls eval` on multiple-choice questions, and writes its figures."""

from typing import TYPE_CHECKING, Any

import typer

from clipcls.cli.progress import Progress
from clipcls.cli.report_output import FEW, Output
from clipcls.cli.tables import cells, table
from clipcls.errors import UsageError, listed, printable

if TYPE_CHECKING:
    from clipcls.embed.execution import Execution
    from clipcls.evaluate.multiple_choice import ChoiceResult
    from clipcls.records import ModelSpec, PromptSet


def measure_choices(
    data: str, model: "ModelSpec", prompts: "PromptSet | None", execution: "Execution", output: Output, quiet: bool
) -> None:
    """Answer the questions of a table, and write how many are right.

    Raises:
        UsageError: the table can't be used.
        StoppedError: the output can't be written.
        typer.Exit: some images failed.
    """
    from clipcls.evaluate.multiple_choice import evaluate_choices
    from clipcls.inputs.labelled.choices import read_choices

    if output.plot is not None:
        raise UsageError("--confusion-plot is for labels, and the choices of a question are its own.")
    examples, problems = read_choices(data, execution.web is not None)
    with Progress(not quiet, "") as progress:
        result = evaluate_choices(examples, model, execution, prompts, problems, progress.watch())
    output.write_result(lambda: _record(result), lambda: _text(result))
    if result.failed:
        if not quiet:
            typer.echo(f"clipcls: {len(result.failed):,} of {len(examples):,} images could not be read", err=True)
        raise typer.Exit(1)


def _record(result: "ChoiceResult") -> dict[str, Any]:
    from clipcls.evaluate.results import estimate_record, failure_record

    return {
        "accuracy": estimate_record(result.accuracy),
        "chance": result.chance,
        "measured": result.measured,
        "failed": [failure_record(path, error) for path, error in result.failed],
        "wrong": list(result.wrong),
        "weak": result.weak,
        "problems": list(result.problems),
    }


def _text(result: "ChoiceResult") -> str:
    rows = [("accuracy", *cells(result.accuracy)), ("by chance", f"{result.chance:.4f}", "")]
    notes = []
    if result.measured < FEW:
        notes.append("intervals of so few questions are too narrow")
    notes += [
        f"{count:,} of the questions ask for {what}, which models like these are known to tell badly"
        for what, count in result.weak.items()
    ]
    if result.failed:
        paths = listed(path for path, _ in result.failed)
        notes.append(f"{len(result.failed):,} images could not be read and count for nothing: {paths}")
    if result.problems:
        notes.append(f"in the data, {len(result.problems):,} to look at: {'; '.join(result.problems[:5])}")
    told = "".join(f"Note: {printable(note)}\n" for note in notes)
    figures = table(("figure", "value", "95 % interval"), rows, left=1)
    measured = f"{result.measured:,} question{'' if result.measured == 1 else 's'} measured"
    return f"{measured}\n\n{figures}{chr(10) if told else ''}{told}"

"""Runs `clipcls eval --attack`, and writes its figures as tables of 80 columns or JSON."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli.progress import Progress
from clipcls.cli.report_output import FEW, Output, exit_if_left_out
from clipcls.cli.tables import Rows, cells, decimal, interval, table
from clipcls.errors import UsageError, listed, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipcls.evaluate.attacks.results import AttackOutcome, NoteFigures, VariantFigures
    from clipcls.evaluate.attacks.run import AttackPlan
    from clipcls.evaluate.groups import GroupShare
    from clipcls.inputs.labelled.examples import Truth

# labels that are shown, those that become the answer most often
_MOST_LABELS = 10
_LABEL_WIDTH = 30


@dataclass(frozen=True, slots=True)
class AttackOptions:
    """The options for attacks."""

    attack: Annotated[
        Literal["text", "corrupt", "adversarial"] | None,
        typer.Option(
            "--attack",
            help="Measure how answers hold where another label is written in the pictures, where they are spoilt, or "
            "where noise is made to turn answers.",
        ),
    ] = None
    severity: Annotated[
        list[int] | None,
        typer.Option(
            "--severity",
            metavar="N",
            min=0,
            help="How much pictures are changed: text 1 to 4, corrupt 1 to 5, 0 for not at all; repeatable. "
            "[default: all from 1]",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Attack N pictures, chosen by chance. [default: all; adversarial: 100]"
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Another chance in an attack. [default: 0]")
    ] = None


def measure_attack(truth: "Truth", plan: "AttackPlan", output: Output, quiet: bool) -> None:
    """Attack the pictures, and write how the answers hold.

    Raises:
        UsageError: the data, labels or settings can't be used.
        StoppedError: the output can't be written.
        typer.Exit: some images failed.
    """
    from clipcls.evaluate.attacks.results import attack_record
    from clipcls.evaluate.attacks.run import attack

    with Progress(not quiet, "") as progress:
        outcome = attack(truth, plan, progress.watch())
    output.write_result(lambda: attack_record(outcome), lambda: _report(outcome))
    exit_if_left_out(len(outcome.failed), outcome.chosen, quiet)


def _report(outcome: "AttackOutcome") -> str:
    chosen = "" if outcome.measured == outcome.images else f" of {outcome.images:,}"
    parts = [
        f"{outcome.measured:,}{chosen} images attacked, {len(outcome.labels):,} labels\n",
        table(("figure", "value", "95 % interval"), [("accuracy as they are", *cells(outcome.plain))], left=1),
    ]
    if outcome.kind == "text":
        parts += [_by_size(outcome), *_of_notes(outcome)]
    elif outcome.kind == "corrupt":
        parts += [_by_fault(outcome)]
    else:
        parts += [_by_noise(outcome)]
    parts.append("".join(f"Note: {printable(line)}\n" for line in _notes(outcome)))
    return "\n".join(part for part in parts if part)


# ---------------------------------------------------------------------------------------------------------
# Tables


def _by_size(outcome: "AttackOutcome") -> str:
    from clipcls.evaluate.attacks.text import BLANK

    rows: Rows = []
    for figures in outcome.variants:
        blank = " blank" if figures.variant.name == BLANK else ""
        rows.append((figures.variant.strength + blank, *_change(figures), *_success(figures)))
    return table(("size of note", "accuracy", "change", "95 % interval", "success", "95 % interval"), rows, left=1)


def _of_notes(outcome: "AttackOutcome") -> list[str]:
    assert outcome.notes is not None
    order = sorted(outcome.notes.labels.items(), key=lambda item: -item[1].value)
    title = "success of the largest note, by"
    left_out = len(order) - _MOST_LABELS
    more = f"{left_out:,} more labels do so less often; --format json tells all.\n" if left_out > 0 else ""
    return [
        _shares(f"{title} label", dict(order[:_MOST_LABELS])) + more,
        _shares(f"{title} place", outcome.notes.places),
    ]


def _shares(title: str, shares: "Mapping[str, GroupShare]") -> str:
    rows = [
        (_fitted(name), f"{share.whole:,}", decimal(share.value), interval(share)) for name, share in shares.items()
    ]
    return table((title, "images", "share", "95 % interval"), rows, left=1)


def _by_fault(outcome: "AttackOutcome") -> str:
    """Return a row a fault, the worst first, with the accuracies at each severity."""
    severities = sorted({figures.variant.severity for figures in outcome.variants})
    at = {(figures.variant.name, figures.variant.severity): figures.accuracy.value for figures in outcome.variants}
    rows = [
        (
            fault.name,
            _signed(-fault.relative_drop.value),
            _turned(fault.relative_drop.low, fault.relative_drop.high),
            *(f"{at[fault.name, severity]:.2f}" for severity in severities),
        )
        for fault in outcome.faults
    ]
    numbers = [f"at {severity}" if not place else str(severity) for place, severity in enumerate(severities)]
    title = "Relative change of accuracy, the worst first, and accuracy by severity\n"
    return title + table(("fault", "change", "95 % interval", *numbers), rows, left=1)


def _by_noise(outcome: "AttackOutcome") -> str:
    rows = [(figures.variant.strength, *_change(figures), *_success(figures)) for figures in outcome.variants]
    return table(("noise", "accuracy", "change", "95 % interval", "success", "95 % interval"), rows, left=1)


def _change(figures: "VariantFigures") -> tuple[str, str, str]:
    """Return the accuracy, and how far it is from that of the pictures as they are."""
    drop = figures.drop
    return decimal(figures.accuracy.value), _signed(-drop.value), _turned(drop.low, drop.high)


def _success(figures: "VariantFigures") -> tuple[str, str]:
    share = figures.success
    return ("", "") if share is None else (decimal(share.value), interval(share))


def _turned(low: float, high: float) -> str:
    """Return the interval of a change from that of a drop."""
    return f"{_signed(-high)} to {_signed(-low)}"


def _signed(value: float) -> str:
    if math.isnan(value) or not round(value, 4):
        return decimal(abs(value))
    return f"{value:+.4f}"


def _fitted(text: str) -> str:
    from clipcls.outputs.formats.table import fitted

    return fitted(printable(text), _LABEL_WIDTH).rstrip()


# ---------------------------------------------------------------------------------------------------------
# Notes


def _notes(outcome: "AttackOutcome") -> list[str]:
    lines = [f"{outcome.measured:,} images are few: the intervals are rough"] if outcome.measured < FEW else []
    if not outcome.plain.value:
        lines.append("no picture is answered right as it is, so that there is nothing to lose")
    elif outcome.kind == "text" and outcome.notes is not None:
        lines += _remedy(outcome, outcome.notes)
    elif outcome.kind == "adversarial":
        lines += _fallen(outcome)
    if outcome.failed:
        paths = listed(path for path, _ in outcome.failed)
        lines.append(f"{len(outcome.failed):,} images could not be read and are in none of the figures: {paths}")
    if outcome.problems:
        found = listed(outcome.problems, separator="; ")
        lines.append(f"in the data, {len(outcome.problems):,} to look at: {found}")
    return lines


def _remedy(outcome: "AttackOutcome", notes: "NoteFigures") -> list[str]:
    """Return whether the model reads, and what can be done."""
    from clipcls.evaluate.attacks.text import BLANK, NOTE_LABEL

    written = max(
        (figures for figures in outcome.variants if figures.variant.name != BLANK), key=lambda f: f.variant.severity
    )
    blank = next(figures for figures in outcome.variants if figures.variant.name == BLANK)
    if written.success is None or blank.success is None or not written.variant.severity:
        return []
    if written.success.low <= blank.success.value:
        return ["no sign that the model reads: a written label becomes the answer no more often than by a blank note"]
    lines = ["the model reads: a written label becomes the answer more often than by a blank note"]
    if notes.found is not None and notes.lost is not None and notes.found.whole:
        share, count = f"{notes.found.value:.0%}", f"{notes.found.part:,} of {notes.found.whole:,}"
        lines.append(
            f"one more label, {NOTE_LABEL!r}, takes {share} of the answers that the largest note turned ({count}), and "
            f"{notes.lost.value:.1%} of the right answers to pictures without notes"
        )
        if notes.found.low > notes.lost.value:
            lines.append(f"to do: add --label {NOTE_LABEL!r} to the labels")
    lines.append('to do: compare templates, such as --template "a photo of a {} with a note on it", by the same attack')
    return lines


def _fallen(outcome: "AttackOutcome") -> list[str]:
    """Return in plain words how many answers stand."""
    lines = []
    whole = [figures.variant.strength for figures in outcome.variants if not figures.accuracy.value]
    made = "noise that nobody sees, made by somebody who has the model"
    if whole:
        lines.append(f"everything falls: at {whole[0]}, not one right answer withstands {made}")
    else:
        last = outcome.variants[-1]
        lines.append(f"at {last.variant.strength}, {last.relative_drop.value:.0%} of the right answers fall to {made}")
    lines.append("torch computed these answers in fp32, so that the accuracy may differ from that of other precisions")
    return lines


def refuse_several(models: int, prompts: int) -> None:
    """Refuse to attack more than one model with one prompt set.

    Raises:
        UsageError: there are several.
    """
    if models > 1 or prompts > 1:
        raise UsageError("--attack measures one model with one prompt set at a time.")

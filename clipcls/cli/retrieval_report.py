"""Runs `clipcls eval --retrieval`, and writes its figures as tables or JSON."""

from typing import TYPE_CHECKING

from clipcls.cli.progress import Progress
from clipcls.cli.report_output import FEW, Output, exit_if_left_out
from clipcls.cli.tables import Rows, cells, interval, table
from clipcls.errors import listed, printable, shortened

if TYPE_CHECKING:
    from clipcls.evaluate.retrieval import Pairs, RetrievalOutcome, RetrievalPlan, RetrievalResult


def measure(pairs: "Pairs", plan: "RetrievalPlan", output: Output, quiet: bool) -> None:
    """Run the models, and write the figures.

    Args:
        quiet: show neither progress nor lines for bad images.

    Raises:
        StoppedError: the output can't be written.
        typer.Exit: some images failed.
    """
    from clipcls.evaluate.retrieval import measure_retrieval, retrieval_record

    with Progress(not quiet, "") as progress:
        outcome = measure_retrieval(pairs, plan, progress.watch())
    output.write_result(lambda: retrieval_record(outcome), lambda: report(outcome))
    exit_if_left_out(len(outcome.failed), outcome.images, quiet, ", with their captions")


def report(outcome: "RetrievalOutcome") -> str:
    """Return a measurement as text: all figures of the best result, and a comparison with the others."""
    best = outcome.results[outcome.best]
    parts = [f"{outcome.measured_images:,} images and {outcome.measured_captions:,} captions measured\n"]
    if len(outcome.results) > 1:
        parts += [_comparison(outcome), f"The best, model {best.model}, {_presented(best)}:\n"]
    parts += [_figures(outcome, best), _notes(outcome, best)]
    return "\n".join(part for part in parts if part)


def _presented(result: "RetrievalResult") -> str:
    return "captions as they are" if result.prompts is None else f"prompts {result.prompts}"


def _comparison(outcome: "RetrievalOutcome") -> str:
    from clipcls.evaluate.retrieval import MEAN_RECALL_AT_1

    rows: Rows = []
    for number, result in enumerate(outcome.results):
        gap = result.difference
        beside = ("best", "") if number == outcome.best else (f"{gap.value:+.4f}", interval(gap))
        rows.append((result.model, _presented(result), *cells(result.figures[MEAN_RECALL_AT_1]), *beside))
    header = ("model", "captions", MEAN_RECALL_AT_1, "95 % interval", "to the best", "95 % interval")
    warning = "The best was chosen by these images, so that its figure is rather too high.\n"
    return table(header, rows, left=2) + (warning if len(rows) > 2 else "")


def _figures(outcome: "RetrievalOutcome", result: "RetrievalResult") -> str:
    from clipcls.evaluate.retrieval import MEDIAN_RANK

    rows: Rows = []
    for name, found in result.figures.items():
        if name.endswith(MEDIAN_RANK):
            rows.append((name, f"{found.value:,.0f}", f"{found.low:,.0f} to {found.high:,.0f}", "less is better"))
        else:
            chance = outcome.by_chance.get(name)
            rows.append((name, *cells(found), "" if chance is None else f"by chance {chance:.4f}"))
    lines = [f"{name}: left out, {reason}\n" for name, reason in outcome.omitted.items()]
    return table(("figure", "value", "95 % interval", ""), rows, left=1) + "".join(lines)


def _notes(outcome: "RetrievalOutcome", best: "RetrievalResult") -> str:
    lines = []
    if next(iter(best.figures.values())).value == 1:
        lines.append("nothing was found in a wrong place, so that resamples can't be; new images may well be")
    elif outcome.measured_images < FEW:
        lines.append(f"{outcome.measured_images:,} images are few: the intervals are rough")
    if outcome.failed:
        captions = outcome.captions - outcome.measured_captions
        lines.append(
            f"{len(outcome.failed):,} images could not be read and are in none of the figures, nor are their "
            f"{captions:,} captions: {listed(path for path, _ in outcome.failed)}"
        )
    if outcome.shared:
        several = listed((f"{shortened(caption, 40)!r} ({count:,})" for caption, count in outcome.shared.items()), 3)
        lines.append(
            f"{len(outcome.shared):,} captions are those of several images, {several}; as in CLIP_benchmark each "
            "finds but its own image, which lowers recall"
        )
    if outcome.problems:
        lines.append(f"in the data, {len(outcome.problems):,} to look at: {listed(outcome.problems, separator='; ')}")
    return "".join(f"Note: {printable(line)}\n" for line in lines)

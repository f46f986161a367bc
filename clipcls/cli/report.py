"""`clipcls report`: one page to look at predictions, and to correct them."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.outputs import refuse_page
from clipcls.cli.progress import Progress
from clipcls.errors import StoppedError, UsageError, printable
from clipcls.records import Prediction

if TYPE_CHECKING:
    from clipcls.embed.watch import Watch
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.destination import Destination
    from clipcls.outputs.journal import RunRecord
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.report import ReportOutcome


@options.grouped
def report_command(
    *,
    predictions: Annotated[
        list[Path],
        typer.Argument(
            metavar="PREDICTIONS",
            help="What predict wrote: .jsonl, .csv, .tsv or .parquet, or a folder of part files.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path(
        "report.html"
    ),
    truth: Annotated[
        list[str] | None,
        typer.Option(
            "--truth", metavar="DATA", help="What is on the pictures, as eval reads it: a table, or class folders."
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--most", metavar="N", min=1, help="Pictures to show, the least sure; others are counted. [default: 2000]"
        ),
    ] = None,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            "--thumbnails", metavar="DIR", help="Put the small pictures there, all of them, not into the page."
        ),
    ] = None,
    question: options.QuestionOption = None,
    column: options.ColumnOption = None,
    allow_urls: options.AllowUrlsOption = False,
    workers: options.WorkersOption = None,
    limits: options.LimitOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Look at predictions on one page, and correct them.

    The page needs no server and no network. It shows the least sure answers of each label first; keys set the right
    label, and the corrections are saved as a table that eval, calibrate, train and sort read.

    Example: clipcls report labels.jsonl --output report.html
    """
    verbosity.set_up_logging()
    from clipcls.embed.execution import Execution
    from clipcls.images.limits import MAX_PIXELS
    from clipcls.inputs.open_file import MAX_BYTES
    from clipcls.inputs.web import Web
    from clipcls.outputs.journal import read_record
    from clipcls.outputs.report.settings import label_names, shown_settings
    from clipcls.predict.report import ReportPlan, write_report

    refuse_page("--output", output, [*predictions, *(truth or ())])
    _make_folder(thumbnails)
    records = [read_record(path) for path in predictions]
    settings = _shared_settings(records)
    plan = ReportPlan(
        title=", ".join(map(str, predictions)),
        most=most,
        previews=thumbnails,
        labels=label_names(settings),
        multi_label=bool(settings.get("--multi-label")),
        truth=None if truth is None else options.labelled_pictures(truth, None, False, allow_urls),
        column=column,
    )
    execution = Execution(
        workers=workers,
        max_pixels=limits.max_pixels or MAX_PIXELS,
        max_bytes=limits.max_bytes or MAX_BYTES,
        web=Web() if allow_urls else None,
    )
    with Progress(not verbosity.quiet, "") as progress:
        outcome = write_report(
            _read(predictions, records, question), output, plan, shown_settings(settings), execution, progress.watch()
        )
    if not verbosity.quiet:
        _tell(outcome, output)
    if outcome.unreadable:
        raise typer.Exit(1)


class RunPage:
    """The page about a run of `clipcls predict`.

    A run in this process is followed while it runs. One that goes on, or that runs on a cluster, is read back from its
    output.
    """

    def __init__(self, page: Path, classifier: "Classifier", sources: "Sources", destination: "Destination") -> None:
        from clipcls.errors import shortened
        from clipcls.predict.report import ReportPlan, ReportRows

        self._page = page
        self._classifier = classifier
        self._output = Path(destination.name)
        title = f"predictions of {', '.join(sources.names)}" if destination.is_standard_output else destination.name
        labels = [label.name for label in classifier.labels]
        multi_label = classifier.scoring.multi_label
        plan = ReportPlan(shortened(title), labels=labels, multi_label=multi_label, column=sources.column)
        self._rows = ReportRows(plan)
        self._record: RunRecord | None = None

    def following(self, watch: "Watch") -> "Watch":
        """Return a watch that takes the predictions of the run."""
        return replace(watch, predicted=self._rows.add)

    def read_back(self) -> None:
        """Take the predictions from the run's output."""
        from clipcls.outputs.journal import read_record

        self._record = read_record(self._output)
        for prediction in _read([self._output], [self._record]):
            self._rows.add(prediction)

    def write(self, is_answered: bool, quiet: bool) -> None:
        """Write the page.

        Args:
            is_answered: whether any picture has an answer, so that the model is there.
        """
        from clipcls.outputs.report.settings import shown_settings

        session = self._classifier.session
        model = None if session.spec is None else session.spec.name
        settings = self._record.settings if self._record is not None else {}
        if is_answered and self._record is None:
            settings = self._classifier.settings()
        with Progress(not quiet, "") as progress:
            outcome = self._rows.write(self._page, shown_settings(settings, model), session.execution, progress.watch())
        if not quiet:
            _tell(outcome, self._page)


def _make_folder(folder: Path | None) -> None:
    if folder is None:
        return
    if any(not re.fullmatch("[0-9a-f]{2}", entry.name) for entry in _entries(folder)):
        raise UsageError(f"--thumbnails {folder}: it holds other files; give a folder of its own.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoppedError(f"--thumbnails {folder}: can't be made: {exc.strerror}.") from exc


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _tell(outcome: "ReportOutcome", page: Path) -> None:
    """Say what a page shows, and what it can't."""
    pictures = f"{outcome.total:,} {'picture' if outcome.total == 1 else 'pictures'}"
    shown = pictures if outcome.shown == outcome.total else f"{outcome.shown:,} of {pictures} shown, all counted,"
    typer.echo(f"clipcls: {shown} in {page}", err=True)
    if outcome.unreadable:
        path, why = outcome.unreadable[0]
        count = len(outcome.unreadable)
        hint = "; run it in the folder that predict was run in" if count == outcome.shown else ""
        typer.echo(f"clipcls: {count:,} of them can't be read again{hint}; {printable(path)}: {why}", err=True)


def _shared_settings(records: "Sequence[RunRecord | None]") -> dict[str, object]:
    """Return the settings that all runs had; none where nothing is known of one of them."""
    known = [record.settings for record in records if record is not None]
    if len(known) < len(records):
        return {}
    return {name: value for name, value in known[0].items() if all(other.get(name) == value for other in known)}


def _read(
    outputs: Sequence[Path], records: "Sequence[RunRecord | None]", question: str | None = None
) -> Iterator[Prediction]:
    """Yield all predictions, and the failures that only a journal keeps."""
    from clipcls.outputs.read_back import read_results

    for path, record in zip(outputs, records, strict=True):
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder.")
        failed = () if record is None else record.failed
        # where every picture failed, a format without errors has no rows
        if not failed or path.is_dir() or path.stat().st_size:
            yield from read_results(path, question)
        yield from failed

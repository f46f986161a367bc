"""The run of `clipcls predict --engine ray`."""

from typing import TYPE_CHECKING

from clipcls.cli.predict_run import Labelling
from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.cli.stderr import silence_libraries

if TYPE_CHECKING:
    from clipcls.distributed.run import Run, Spread
    from clipcls.distributed.work import Report
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.destination import Destination
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.records import ModelSpec


class SpreadLabelling(Labelling):
    """One run over a cluster.

    Args:
        spec: what the classifier's model was asked for as.
        spread: how it is spread.
    """

    def __init__(
        self, classifier: "Classifier", sources: "Sources", destination: "Destination", limit: "ErrorLimit",
        quiet: bool, spec: "ModelSpec", spread: "Spread",
    ):  # fmt: skip
        super().__init__(classifier, sources, destination, limit, quiet)
        self._spec = spec
        self._spread = spread

    def run(self) -> None:
        """See `Labelling.run`; besides, the cluster may be out of reach (StoppedError)."""
        from clipcls.distributed.run import Listing, open_run

        if not self._spread.verbose:
            silence_libraries()
        sources = self._sources
        listing = Listing(
            lambda: sources.images(unread=True), sources.column, sources.allow_urls, sources.allow_private_urls
        )
        with Progress(not self._quiet, "") as progress, StopSignals("stopping the workers") as signals:
            parts = (self._classifier, self._spec, listing, self._destination, self._spread)
            with open_run(*parts, progress.update_labels) as run:
                self._report_resumed(run.before)
                total = run.total
                progress.start(None if total is None else lambda: total, run.before)
                exceeded = self._follow(run, progress, signals)
        self._report(run.before, run.failed, True, signals.exit_code, exceeded)

    def _follow(self, run: "Run", progress: Progress, signals: StopSignals) -> bool:
        """Count what is done; returns whether too many images failed."""
        for report in run.reports():
            if report is not None and self._exceeded_by(report, progress):
                return True
            progress.update(run.before + self._done, run.failed + self._failed)
            if signals.received():
                break
        return False

    def _exceeded_by(self, report: "Report", progress: Progress) -> bool:
        self._done += report.count
        # each is reported, however many are too many
        return True in [self._exceeds(path, error, progress) for path, error in report.failed]

"""The run of `clipcls predict`: from inputs to an output, with all that can happen on the way."""

from itertools import chain
from typing import TYPE_CHECKING

import typer

from clipcls.cli.progress import Progress
from clipcls.cli.signals import StopSignals
from clipcls.errors import StoppedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipcls.inputs.listing import Sources
    from clipcls.outputs.destination import Destination
    from clipcls.outputs.resume import RunOutput
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.records import ImageRef, Prediction


class Labelling:
    """One run.

    Args:
        limit: stops a run gone wrong.
        quiet: without progress and lines for bad images.
    """

    def __init__(
        self, classifier: "Classifier", sources: "Sources", destination: "Destination", limit: "ErrorLimit", quiet: bool
    ):
        self._classifier = classifier
        self._sources = sources
        self._destination = destination
        self._limit = limit
        self._quiet = quiet
        self._done = self._failed = 0

    def run(self) -> None:
        """Classify and write.

        Raises:
            StoppedError: the output can't be written, or too many images failed.
            UsageError: there are no images, or the output can't be gone on with.
            typer.Exit: some images failed, or there was a signal.
        """
        from clipcls.outputs.resume import open_output

        classifier = self._classifier
        labels = tuple(label.name for label in classifier.labels)
        shown = self._destination.output if self._destination.folder is None else ""
        with Progress(not self._quiet, shown) as progress, StopSignals("finishing the batch at hand") as signals:
            # all that can go wrong with model, labels and sources does so before the output is touched
            classifier.label_features = classifier.embed_labels(progress.update_labels)
            images = self._images()
            with open_output(self._destination, labels, classifier.settings) as output:
                before = output.done
                self._report_resumed(before.count)
                progress.start(self._sources.count if self._sources.are_countable else None, before.count)
                predictions = classifier.predict(before.remaining(images), signals.received)
                exceeded = self._write(predictions, output, progress)
        self._report(before.count, before.failed, output.can_resume, signals.exit_code, exceeded)

    def _images(self) -> "Iterator[ImageRef]":
        """The images that there are; that there are none is no reason to empty an output."""
        images = self._sources.images()
        if self._destination.resume:
            return images
        first = next(images, None)
        if first is None:
            raise self._none_found()
        return chain([first], images)

    def _none_found(self) -> UsageError:
        return UsageError(f"No images found in what was given.{self._sources.hint()}")

    def _write(self, predictions: "Iterator[Prediction]", output: "RunOutput", progress: Progress) -> bool:
        """Write rows; returns whether too many images failed."""
        before = output.done
        for prediction in predictions:
            output.write(prediction)
            self._done += 1
            if prediction.error is not None and self._exceeds(prediction.path, prediction.error, progress):
                return True
            progress.update(before.count + self._done, before.failed + self._failed)
        return False

    def _exceeds(self, path: str, error: str, progress: Progress) -> bool:
        """Count and report an image that couldn't be read; returns whether it was one too many."""
        self._failed += 1
        progress.print_error(path, error)
        return self._limit.is_exceeded(self._failed, self._done)

    def _report_resumed(self, count: int) -> None:
        if count and not self._quiet:
            typer.echo(f"clipcls: {self._destination.name}: going on after {count:,} images", err=True)

    def _report(self, before: int, failed_before: int, can_resume: bool, exit_code: int, exceeded: bool) -> None:
        done, failed = before + self._done, failed_before + self._failed
        go_on = "; the same command with --resume goes on" if can_resume else ""
        if exceeded:
            raise StoppedError(f"{self._limit}; {done:,} done{go_on}.")
        if exit_code:
            typer.echo(f"clipcls: {done:,} images done{go_on}", err=True)
            raise typer.Exit(exit_code)
        if not done:
            raise self._none_found()
        if failed:
            if not self._quiet:
                typer.echo(f"clipcls: {failed:,} of {done:,} images could not be read", err=True)
            raise typer.Exit(1)

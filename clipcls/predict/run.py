"""Classify the pictures of some sources, and write the predictions as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from clipcls.embed.watch import Watch
from clipcls.errors import StoppedError, UsageError, printable
from clipcls.inputs.discover import are_countable, discover, exists, hint
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.inputs.parts import Listed
from clipcls.outputs.destination import Destination
from clipcls.outputs.journal import PART_SETTING, RunSettings
from clipcls.outputs.resume import open_output
from clipcls.outputs.rows import RowShape
from clipcls.outputs.sinks import open_sink
from clipcls.predict.answerer import Answerer
from clipcls.predict.error_limit import ErrorLimit
from clipcls.records import ImageRef, Prediction


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run.

    Attributes:
        done: the number of images in the output, with an answer or an error, earlier runs' included.
        failed: how many of them have an error.
        can_resume: whether a stopped run can be resumed.
    """

    done: int
    failed: int
    can_resume: bool

    @property
    def go_on(self) -> str:
        """The end of a message that says how to resume the run; empty if it can't be resumed."""
        return "; the same command with --resume goes on" if self.can_resume else ""


class Tally:
    """Counts the images of a run, and reports the counts to the watch.

    Args:
        before: the number of images that earlier runs have done, and how many of them have an error.
        can_resume: whether a stopped run can be resumed.

    Attributes:
        exceeded: whether too many images failed, so that the run must stop.
    """

    def __init__(self, limit: ErrorLimit, watch: Watch, before: tuple[int, int], can_resume: bool) -> None:
        self.exceeded = False
        self._limit = limit
        self._watch = watch
        self._before = before
        self._can_resume = can_resume
        self._done = self._failed = 0

    def add(self, count: int, failed: Sequence[tuple[str, str]] = ()) -> None:
        """Count more images; `failed` holds path and error of each that couldn't be read."""
        self._done += count
        self._failed += len(failed)
        for path, error in failed:
            self._watch.failed(path, error)
        self.exceeded = bool(failed) and self._limit.is_exceeded(self._failed, self._done)
        if not self.exceeded:
            self._watch.images(self._before[0] + self._done, self._before[1] + self._failed)

    def report(self, sources: Sources, may_be_empty: bool) -> RunReport:
        """Return the result of the run, once its output is closed.

        Args:
            may_be_empty: whether there need be no image: the run was stopped, or others have all of the images.

        Raises:
            StoppedError: too many images failed.
            UsageError: there was no image at all.
        """
        report = RunReport(self._before[0] + self._done, self._before[1] + self._failed, self._can_resume)
        if self.exceeded:
            raise StoppedError(f"{self._limit}; {report.done:,} done{report.go_on}.")
        if not report.done and not may_be_empty:
            raise none_found(sources)
        return report


def run(
    classifier: Answerer,
    sources: Sources,
    destination: Destination,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> RunReport:
    """Classify pictures and write the predictions, in input order.

    Errors of model, labels and sources are raised before the output is touched, and sources are looked at before the
    model is: where no picture exists, none is loaded and no file is written. A destination that is resumed keeps
    what it holds, and only the images that it lacks are classified.

    With `sources.part`, rows have an index, and the output is one that `clipcls.outputs.merge` puts together with those
    of the other parts; a part may have no images at all.

    Args:
        limit: how many images may fail; any number by default.
        stop: called after every batch; once it returns True, the run ends with the images that the model has begun.
        watch: told how far the run is.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: the output can't be written, or too many images failed.
        UsageError: there are no images, or the output can't be resumed.
    """
    refuse_resume(classifier, destination)
    if sources.part is not None and classifier.per != "frame":
        raise UsageError(f"--part is for rows of pictures and frames; leave it out with --per {classifier.per}.")
    watch = watch or Watch()
    destination = replace(destination, shape=shape_for(sources, classifier.row_shape))
    left_out, listed = LeftOut(takes_videos=True), Listed()
    images = discover(sources, left_out=left_out, listed=listed)
    if sources.read_standard_input:  # which may be slow to come
        classifier.embed_labels(watch.labels)
    # rows of a pipe to a pipe come as they are asked for, missing pictures' too
    if not destination.resume and not (sources.read_standard_input and destination.is_standard_output):
        images, exist = look_for_one(images, sources, left_out, listed)
        if not exist:
            return _fail_all(images, destination, limit or ErrorLimit(), sources, watch)
    classifier.embed_labels(watch.labels)
    labels = tuple(label.name for label in classifier.labels)
    settings = partial(settings_for, sources, classifier.settings)
    with open_output(destination, labels, settings) as output:
        before = output.done
        is_countable = classifier.per == "frame" and are_countable(sources)
        watch.begin((lambda: count(sources)) if is_countable else None, before.count)
        can_resume = output.can_resume and classifier.per == "frame"
        tally = Tally(limit or ErrorLimit(), watch, (before.count, before.failed), can_resume)
        for prediction in classifier.predict(before.remaining(images), stop):
            output.write(prediction)
            watch.predicted(prediction)
            tally.add(1, [] if prediction.error is None else [(prediction.path, prediction.error)])
            if tally.exceeded:
                break
        stopped = stop()
        if sources.part is not None and not (stopped or tally.exceeded):
            output.listing = listed.listing
    if not stopped:
        left_out.report(sources.names)
    return tally.report(sources, stopped or listed.listing.count > 0)


def shape_for(sources: Sources, shape: RowShape) -> RowShape:
    """Return the shape of rows with the index that those of a part have."""
    return replace(shape, has_index=sources.part is not None)


def settings_for(sources: Sources, settings: Callable[[], RunSettings]) -> RunSettings:
    """Return the settings of a run with which frames and which part of the inputs it is of."""
    part = {} if sources.part is None else {PART_SETTING: str(sources.part)}
    return {**settings(), **sources.settings, **part}


def refuse_resume(classifier: Answerer, destination: Destination) -> None:
    """Refuse to resume rows for videos as a whole, which don't say which frames they are of.

    Raises:
        UsageError: the run has such rows, and is to be resumed.
    """
    if destination.resume and classifier.per != "frame":
        raise UsageError(
            f"--resume goes on with rows of pictures and frames, not with --per {classifier.per}: run it again without "
            "--resume; what was done is in the cache."
        )


def _fail_all(
    images: Iterator[ImageRef], destination: Destination, limit: ErrorLimit, sources: Sources, watch: Watch
) -> RunReport:
    """Write the errors of images none of which exists; in a file they would replace what an earlier run found."""
    if not destination.is_standard_output:
        raise none_exists(next(images))
    tally = Tally(limit, watch, (0, 0), False)
    with open_sink(destination, ()) as sink:
        for image in images:
            prediction = Prediction(image.path, None, None, None, error=image.error, index=image.index)
            sink.write(prediction)
            watch.predicted(prediction)
            tally.add(1, [(image.path, str(image.error))])
            if tally.exceeded:
                break
    return tally.report(sources, False)


def count(sources: Sources) -> int:
    """Count the pictures by listing them."""
    return sum(1 for _ in discover(sources))


def look_for_one(
    images: Iterator[ImageRef], sources: Sources, left_out: LeftOut, listed: Listed | None = None
) -> tuple[Iterator[ImageRef], bool]:
    """Return all images again, and whether any exists.

    Args:
        listed: what all parts list; it is enough if one of them has an image that exists.

    Raises:
        UsageError: there are none.
    """
    missing: list[ImageRef] = []
    for image in images:
        if image.error is None or exists(image):
            return chain(missing, [image], images), True
        missing.append(image)
    if listed is not None and listed.has_existing:
        return iter(missing), True
    if listed is not None and listed.first is not None:  # another part's, where this one has none
        missing = missing or [listed.first]
    if not missing:
        left_out.report(sources.names)
        raise none_found(sources)
    return iter(missing), False


def none_exists(first: ImageRef) -> UsageError:
    """Return the error of sources that name only what isn't there."""
    return UsageError(
        f"No image that was named exists, so nothing is written. The first: {printable(first.path)}: {first.error}."
    )


def none_found(sources: Sources) -> UsageError:
    """Return the error of sources that hold no picture."""
    found = hint(sources)
    return UsageError(f"No images found in what was given.{'' if found is None else f' {found}.'}")

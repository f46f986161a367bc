"""Label one part of the input at a time on a worker, with the same classifier as a run on one machine."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from clipcls import errors
from clipcls.distributed.model_files import SentModel
from clipcls.distributed.node import NAME, own_folder
from clipcls.distributed.plan import ROWS, Part, read_part
from clipcls.embed.cache.database import default_folder
from clipcls.embed.cache.store import Cache
from clipcls.embed.execution import Execution
from clipcls.embed.lazy_encoder import LazyEncoder, open_runtime
from clipcls.embed.session import Session
from clipcls.errors import ClipclsError, StoppedError
from clipcls.inputs.listing import Sources
from clipcls.outputs.formats.output_format import OutputFormat
from clipcls.outputs.sinks import encode
from clipcls.predict.answerer import Answerer
from clipcls.records import ImageRef, ModelFacts, Prediction

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder

# how often a part may kill a worker of one node before the run stops
_MOST_ATTEMPTS = 3
# Arrow's limit for one value
_MOST_BYTES = 2**31 - 1
# marks older than this are left over: no part takes as long
_MARKS_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a run has to know.

    Attributes:
        classifier: the classifier with its labels embedded, without a session.
        execution: settings of the machine that started the run.
        facts: the model's facts on the workers' device.
        threads: number of threads that decode, and on a CPU compute.
        format: format of the part files.
        run: a name that no other run has.
        directory: the folder that relative paths start from.
        sources: how to read the input; without its names.
        default_cache: whether each node uses its default cache folder.
        release: version of clipcls that started the run.
    """

    classifier: Answerer
    execution: Execution
    model: SentModel
    facts: ModelFacts
    threads: int
    format: OutputFormat
    run: str
    directory: str
    sources: Sources
    default_cache: bool
    release: str = version("clipcls")


@dataclass(frozen=True, slots=True)
class Task:
    """A part to be labelled.

    Attributes:
        line: the part's line in the plan.
        again: paths of the pictures to label, where the part's others are done; None for all pictures.
    """

    line: str
    again: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class PartReport:
    """The result of labelling a part.

    Attributes:
        number: the part's number.
        count: number of images done, failed ones included.
        failed: paths and errors of the images that couldn't be read.
        content: the content of the part's file.
        stopped: class name and message of an error that ends the run.
    """

    number: int
    count: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    content: bytes = b""
    stopped: tuple[str, str] | None = None

    def require(self) -> None:
        """Raise the error that ends the run, if there was one.

        Raises:
            ClipclsError: the worker stopped with it.
        """
        if self.stopped is not None:
            name, message = self.stopped
            # an error class that isn't in `clipcls.errors` still ends the run
            raise getattr(errors, name, StoppedError)(message)


class Worker:
    """Labels parts, and opens the model at the first one.

    Args:
        fetch: returns the content that a reference in the job's model stands for.
    """

    def __init__(self, job: Job, fetch: Callable[[Any], bytes]) -> None:
        self._job = job
        self._fetch = fetch
        self._classifier: Answerer | None = None

    def label(self, task: Task) -> PartReport:
        """Label a part, and return its rows or the error that ends the run."""
        part = read_part(task.line)
        try:
            if self._classifier is None:
                self._classifier = self._prepare()
            self._require_seen(part)
            with _attempt(self._job.run, part):
                return self._label(part, task.again, self._classifier)
        except ClipclsError as exc:
            # Ray would take an exception for a failed machine, and reword its message
            return PartReport(part.number, stopped=(type(exc).__name__, f"on {NAME}: {exc}"))

    def _prepare(self) -> Answerer:
        job = self._job
        if job.release != version("clipcls"):
            raise StoppedError(f"clipcls is {version('clipcls')} here, and {job.release} where the run was started.")
        _remove_old_marks()
        with contextlib.suppress(OSError):  # only relative paths need it
            os.chdir(job.directory)
        cache_dir = default_folder() if job.default_cache else job.execution.cache_dir
        execution = replace(job.execution, workers=job.threads, cache_dir=cache_dir)
        return job.classifier.on(Session(LazyEncoder(job.facts, self._open), execution))

    def _open(self, cache: Cache) -> Any:
        return open_runtime(self._job.facts, cache, self._load, self._job.threads)

    def _load(self) -> "Encoder":
        # a worker whose parts are all cached never imports torch
        import torch

        from clipcls.models.encoder import open_encoder

        torch.set_num_threads(self._job.threads)
        files = self._job.model.here(self._fetch)
        return open_encoder(files, self._job.facts.device, self._job.facts.precision)

    def _require_seen(self, part: Part) -> None:
        """Stop if the pictures are on another machine, where each would become an error."""
        place = part.place
        if place is None:
            return
        folder = os.path.dirname(os.path.join(self._job.directory, place))  # noqa: PTH118, PTH120, as given
        if not os.path.isdir(folder):  # noqa: PTH112
            raise StoppedError(
                f"there is no {folder}: what is to be labelled has to be in a file system that all nodes share, or in "
                "a store such as s3://."
            )

    def _label(self, part: Part, again: tuple[str, ...] | None, classifier: Answerer) -> PartReport:
        job = self._job
        images: Iterable[ImageRef] = part.images(job.sources)
        if again is not None:
            images = _only(images, again)
        failed: list[tuple[str, str]] = []
        count = 0

        def rows() -> Iterator[Prediction]:
            nonlocal count
            for prediction in classifier.predict(images):
                if prediction.error is not None:
                    failed.append((prediction.path, prediction.error))
                yield replace(prediction, index=part.number * ROWS + count)
                count += 1

        content = encode(rows(), job.format)
        classifier.session.close()
        if len(content) > _MOST_BYTES:
            raise StoppedError(
                f"the rows of part {part.number} are {len(content):,} bytes, more than the {_MOST_BYTES:,} that can be "
                "sent: list fewer labels (--top-k), or cut its shard into smaller ones."
            )
        return PartReport(part.number, count, tuple(failed), content)


def _only(images: Iterable[ImageRef], paths: tuple[str, ...]) -> Iterator[ImageRef]:
    """Yield the images that have these paths, each as often as its path is listed."""
    wanted = Counter(paths)
    for image in images:
        if wanted[image.path] > 0:
            wanted[image.path] -= 1
            yield image


@contextlib.contextmanager
def _attempt(run: str, part: Part) -> Iterator[None]:
    """Keep a mark on the disk while a worker labels a part; it is left behind if the worker is killed.

    Raises:
        StoppedError: the part has killed several workers, and would kill the next one.
    """
    mark, attempts = None, 0
    with contextlib.suppress(OSError, StoppedError):  # a full disk shouldn't end a run for want of a mark
        mark = own_folder() / f"{run}-{part.number}.at"
        with mark.open("ab") as file:
            attempts = file.tell()
            file.write(b".")
    if attempts >= _MOST_ATTEMPTS:
        raise StoppedError(
            f"{attempts} workers were killed while they were at part {part.number}, as for want of memory. Its line in "
            ".clipcls-plan, in the output's folder, says which pictures it has."
        )
    try:
        yield
    finally:
        if mark is not None:
            with contextlib.suppress(OSError):
                mark.unlink(missing_ok=True)


def _remove_old_marks() -> None:
    """Remove the marks that interrupted runs have left."""
    with contextlib.suppress(OSError, StoppedError):
        for mark in own_folder().glob("*.at"):
            if mark.stat().st_mtime < time.time() - _MARKS_SECONDS:
                mark.unlink(missing_ok=True)

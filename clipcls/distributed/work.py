"""What a worker does: one part of the input at a time, with the same classifier as a run on one machine."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clipcls import errors
from clipcls.cache import Cache, default_folder
from clipcls.distributed.plan import ROWS, Part, read_part, run_of
from clipcls.distributed.weights import SentModel
from clipcls.embed import LazyEncoder
from clipcls.errors import ClipclsError, StoppedError
from clipcls.outputs import predictions_in
from clipcls.predict import Classifier
from clipcls.records import Format, ImageRef, ModelFacts, Prediction
from clipcls.sinks import Sink, part_name, published

PLAN_NAME = ".clipcls-plan"
# of a part, before it is taken for the workers' killer
_MOST_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Job:
    """All that workers have to know, which is the same for all.

    Attributes:
        classifier: with its labels embedded, and without a model.
        facts: of the model, on the workers' device.
        threads: that decode, and on a CPU that compute.
        folder: for part files.
        run: a name of this run, which the plan in the folder ends with.
        directory: that relative paths start from.
        retry: run those images again that failed.
        default_cache: whether the cache lies where each node has its own by default.
        release: of clipcls.
    """

    classifier: Classifier
    model: SentModel
    facts: ModelFacts
    threads: int
    folder: Path
    kind: Format
    run: str
    directory: str
    column: str | None
    allow_urls: bool
    allow_private_urls: bool
    retry: bool
    default_cache: bool
    release: str = version("clipcls")

    def part_file(self, number: int) -> Path:
        """Where the rows of a part go."""
        return self.folder / part_name(number, self.kind)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a part.

    Attributes:
        number: the part's.
        count: images that were done.
        failed: paths and errors of those that couldn't be read.
        stopped: the class and the message of an error that ends the run.
    """

    number: int
    count: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    stopped: tuple[str, str] | None = None

    def require(self) -> None:
        """Raise the error that ends the run, if there was one.

        Raises:
            ClipclsError: there was.
        """
        if self.stopped is not None:
            name, message = self.stopped
            raise getattr(errors, name)(message)

    def as_json(self) -> str:
        """For the way back from the worker."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Report":
        """What `as_json` gave."""
        fields = json.loads(text)
        failed = tuple((path, error) for path, error in fields["failed"])
        return cls(fields["number"], fields["count"], failed, fields["stopped"] and tuple(fields["stopped"]))


class Worker:
    """Labels parts; opens the model at the first one.

    Args:
        fetch: gives the content that a reference in the job's model stands for.
    """

    def __init__(self, job: Job, fetch: Callable[[Any], bytes]) -> None:
        self._job = job
        self._fetch = fetch
        self._classifier: Classifier | None = None

    def label(self, line: str) -> Report:
        """Label a part, and write its file.

        Args:
            line: of the plan.
        """
        part = read_part(line)
        try:
            if self._classifier is None:
                self._classifier = self._prepare()
            return self._label(part, self._classifier)
        except ClipclsError as exc:
            # an exception would be taken for a failure of the machine, and come to the other end in Ray's wording
            return Report(part.number, stopped=(type(exc).__name__, str(exc)))

    def _prepare(self) -> Classifier:
        job = self._job
        node = os.uname().nodename if hasattr(os, "uname") else "this node"
        if job.release != version("clipcls"):
            raise StoppedError(f"{node} has clipcls {version('clipcls')}, the run was started by {job.release}.")
        try:
            os.chdir(job.directory)
        except OSError as exc:
            raise StoppedError(
                f"{node}: {job.directory}: {exc.strerror}. All nodes need the folder that the run was started in."
            ) from exc
        if run_of(job.folder / PLAN_NAME) != job.run:
            raise StoppedError(
                f"{node} doesn't see {job.folder}: --output-dir has to be in a file system that all nodes share."
            )
        classifier = job.classifier
        cache_dir = default_folder() if job.default_cache else classifier.execution.cache_dir
        classifier.execution = replace(classifier.execution, workers=job.threads, cache_dir=cache_dir)
        classifier.use(LazyEncoder(job.facts, self._open))
        return classifier

    def _open(self, cache: Cache) -> Any:
        # torch is imported here, so that parts that are cached do without
        import torch

        from clipcls.encoder import open_encoder

        torch.set_num_threads(self._job.threads)
        files = self._job.model.here(self._fetch)
        return open_encoder(files, self._job.facts.device, self._job.facts.precision, cache.weights, cache.file_sha256)

    def _label(self, part: Part, classifier: Classifier) -> Report:
        job = self._job
        path = job.part_file(part.number)
        images = part.images(job.column, job.allow_urls, job.allow_private_urls)
        if not path.exists():
            _refuse_killer(part, path)
            rows = classifier.predict(images)
        elif job.retry:
            rows = self._retried(path, images, classifier)
        else:
            # an earlier attempt wrote it, and was lost before anybody heard of it
            return _tallied(part.number, predictions_in(path, job.kind))
        with published(path, job.kind, early=False, attempt=secrets.token_hex(16)) as sink:
            return _tallied(part.number, _written(rows, sink, part.number * ROWS))

    def _retried(self, path: Path, images: Iterator[ImageRef], classifier: Classifier) -> Iterator[Prediction]:
        """The rows of a part, anew where they have an error."""
        rows = list(predictions_in(path, self._job.kind))
        listed = list(images)
        if [row.path for row in rows] != [image.path for image in listed]:
            return classifier.predict(listed)  # a shard or a table that isn't what it was
        again = classifier.predict(image for image, row in zip(listed, rows, strict=True) if row.error is not None)
        return (row if row.error is None else next(again) for row in rows)


def _written(rows: Iterator[Prediction], sink: Sink, first: int) -> Iterator[Prediction]:
    for index, row in enumerate(rows, first):
        sink.write(replace(row, index=index))
        yield row


def _tallied(number: int, rows: Iterator[Prediction]) -> Report:
    count, failed = 0, []
    for row in rows:
        count += 1
        if row.error is not None:
            failed.append((row.path, row.error))
    return Report(number, count, tuple(failed))


def _refuse_killer(part: Part, path: Path) -> None:
    """Give a part up that ended several workers, whose drafts are left behind.

    Raises:
        StoppedError: it did.
    """
    attempts = sum(1 for _ in path.parent.glob(f".{path.name}.*.part"))
    if attempts >= _MOST_ATTEMPTS:
        raise StoppedError(
            f"{path.name}: {attempts} workers ended without a word while they were at it, as for want of memory. Its "
            f"images are in line {part.number + 1} of {path.parent / PLAN_NAME}."
        )

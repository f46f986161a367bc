"""Find pictures that are there more than once: in the same bytes, as copies in other bytes, or as shots of a scene."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from clipcls.embed.image_reader import Features
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import ImageError
from clipcls.images.comparison import may_be_copies
from clipcls.inputs.discover import discover
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.inputs.tables import read_embedded
from clipcls.inputs.video import require_whole
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.keeping import File, GroupMember, pixels, rows_of
from clipcls.predict.linkage import complete_linkage
from clipcls.predict.looks import Look, Reader
from clipcls.predict.neighbours import NearPairs, near_pairs
from clipcls.predict.run import Tally, look_for_one, none_exists
from clipcls.records import Duplicate, ImageRef, Likeness, Span, Stored

logger = logging.getLogger(__name__)

# Measured by `tests/benchmarks/duplicates.py` with the embedded models; see examples/duplicates/README.md.
#: The lowest cosine of pictures whose pixels are compared, and the most others that are compared with each.
COMPARED_COSINE, MOST_COMPARED = 0.7, 16
#: The lowest cosine of two pictures of a scene, and the most others that are looked at for each.
SCENE_COSINE, MOST_OF_SCENE = 0.9, 100
# pictures that are read between two looks at whether to stop
_CHUNK = 256

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """The result of a search for duplicates.

    Attributes:
        rows: the pictures that are in groups; of each group the one to keep first, then the others in input order. The
            groups are in the order of their first pictures.
        done: how many pictures were looked at.
        failed: how many of them couldn't be read.
    """

    rows: tuple[Duplicate, ...]
    done: int
    failed: int


def find_duplicates(
    sources: Sources,
    session: Session,
    kind: Likeness = "picture",
    threshold: float | None = None,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> DuplicateReport:
    """Find the pictures that are there more than once, and say which one of each group to keep.

    Same bytes are found by their hashes. For copies in other bytes, the features tell which pictures may be some, and
    the pixels of these are compared (`clipcls.images.comparison`): a group holds copies of one picture, its largest.
    In a group of a scene, every picture is near to every other by its features (complete linkage); only the largest
    copy of each counts.

    Args:
        session: its model is opened only where more than the same bytes is looked for.
        kind: what pictures have to share at the least; each kind includes those before it.
        threshold: the lowest cosine of two pictures of a scene; where no scenes are looked for, of two pictures to be
            compared. None for SCENE_COSINE, COMPARED_COSINE.
        limit: how many pictures may fail; any number by default.
        stop: asked again and again; once it returns True, the search ends without a result.
        watch: told how far the search is.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: too many pictures failed.
        UsageError: there are no pictures.
    """
    left_out, watch = LeftOut(), watch or Watch()
    images, exist = look_for_one(discover(sources, left_out=left_out), sources, left_out)
    if not exist:
        raise none_exists(next(images))
    listed = list(require_whole(images))
    watch.begin(lambda: len(listed), 0)
    tally = Tally(limit or ErrorLimit(), watch, (0, 0), False)
    with ThreadPoolExecutor(session.execution.threads(), thread_name_prefix="read") as pool:
        rows = _Search(session, pool, stop, tally).run(listed, kind, threshold)
    if not stop():
        left_out.report(sources.names)
    report = tally.report(sources, stop())
    return DuplicateReport(tuple(rows), report.done, report.failed)


class _NoResultError(Exception):
    """The search ends early."""


class _Search:
    """The steps of a search.

    Args:
        pool: threads that read pictures and compare them.
    """

    def __init__(self, session: Session, pool: ThreadPoolExecutor, stop: Callable[[], bool], tally: Tally) -> None:
        self._session = session
        self._pool = pool
        self._stop = stop
        self._tally = tally

    def run(self, listed: Sequence[ImageRef], kind: Likeness, threshold: float | None) -> list[Duplicate]:
        """Return the rows of the report; none where the search is stopped, or too many pictures fail."""
        try:
            files = self._files(listed)
            same = self._same_bytes(files, counted=kind == "bytes")
            images = [files[places[0]].image for places in same]
            reader = Reader(images, self._session.execution)
            if kind == "bytes":
                groups = [
                    [GroupMember(file, content, content) for file in places] for content, places in enumerate(same)
                ]
                return rows_of(groups, files, reader, {}, None)
            features, good = self._features(images, same)
            least = COMPARED_COSINE if threshold is None else threshold
            scene = SCENE_COSINE if threshold is None else threshold
            pairs = near_pairs(features, least if kind == "picture" else min(scene, COMPARED_COSINE), MOST_COMPARED)
            looks = self._looks(pairs, good, reader)
            pictures = self._copies(pairs, good, looks, reader)
            scenes = [[number] for number in range(len(pictures))]
            if kind == "scene":
                largest = features[[copies[0] for copies in pictures]]
                scenes = complete_linkage(len(pictures), near_pairs(largest, scene, MOST_OF_SCENE))
            groups = [
                [
                    GroupMember(file, good[row], number)
                    for number in numbers
                    for row in pictures[number]
                    for file in same[good[row]]
                ]
                for numbers in scenes
            ]
            return rows_of(groups, files, reader, looks, dict(zip(good, features, strict=True)))
        except _NoResultError:
            return []

    def _files(self, listed: Iterable[ImageRef]) -> list[File]:
        """Return the files that are there, each once, however often it is named."""
        found: dict[object, File] = {}
        for image in listed:
            key, file = _status(image)
            if file.image.error is not None:
                self._count(1, [file.image])
            elif key in found:
                self._count(1)
                logger.info("%s: listed twice", image.path)
            else:
                found[key] = file
        return list(found.values())

    def _same_bytes(self, files: Sequence[File], counted: bool) -> list[list[int]]:
        """Return which files have the same bytes, files with bytes of their own included, in the order of the first.

        Args:
            counted: count the files, as no later step does.
        """
        by_size: dict[int | None, list[int]] = defaultdict(list)
        for place, file in enumerate(files):
            by_size[file.size].append(place)
        alike = sorted(place for size, places in by_size.items() if size is None or len(places) > 1 for place in places)
        # pictures in a table are read in one pass
        images = read_embedded(files[place].image for place in alike)
        reader = Reader((), self._session.execution)
        digests: dict[int, object] = dict(zip(alike, self._map(reader.digest, images), strict=True))
        same: dict[object, list[int]] = defaultdict(list)
        for place in range(len(files)):
            digest = digests.get(place)
            same[digest if isinstance(digest, bytes) else place].append(place)
        if counted:
            failed = {place: digest for place, digest in digests.items() if isinstance(digest, ImageError)}
            self._count(len(files), [replace(files[place].image, error=str(exc)) for place, exc in failed.items()])
        return list(same.values())

    def _features(self, images: Sequence[ImageRef], same: Sequence[Sequence[int]]) -> tuple[Features, list[int]]:
        """Return the features of pictures, (n_good, embed_dim), and which pictures have some."""
        features = np.empty((len(images), self._session.facts.embed_dim), dtype=np.float32)
        good: list[int] = []
        place = 0
        for batch in embed_images(images, self._session, self._stop):
            features[len(good) : len(good) + len(batch.features)] = batch.features
            failed = []
            for image, error in zip(batch.images, batch.errors, strict=True):
                if error is None:
                    good.append(place)
                else:
                    failed.append(replace(image, error=error))
                place += 1
            self._count(sum(map(len, same[place - len(batch.images) : place])), failed)
        self._check()
        return features[: len(good)], good

    def _looks(self, pairs: NearPairs, good: Sequence[int], reader: Reader) -> dict[int, Look]:
        """Return how the pictures look that are in pairs; those that can't be read any more are left out."""
        wanted = [good[row] for row in np.unique(np.concatenate([pairs.first, pairs.second])).tolist()]
        logger.info("%d pictures have others near them, %d pairs", len(wanted), len(pairs.first))
        found = zip(wanted, self._map(reader.look, wanted), strict=True)
        return {content: look for content, look in found if look is not None}

    def _copies(self, pairs: NearPairs, good: Sequence[int], looks: dict[int, Look], reader: Reader) -> list[list[int]]:
        """Return which pictures are copies of one, by their rows of features, the largest first.

        Each group begins with the largest picture that is no copy of another. It is compared with its neighbours, then
        with the neighbours of those that are its copies, and so on: never are two copies compared, of which there may
        be thousands. A copy of several pictures, such as the frames of a burst made small, goes to the one that it
        differs least from.
        """
        near: dict[int, list[int]] = defaultdict(list)
        for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
            if good[first] in looks and good[second] in looks:
                near[first].append(second)
                near[second].append(first)
        groups: dict[int, list[int]] = {}
        copied: dict[int, tuple[float, int]] = {}  # how much a copy differs, and what from
        compared = 0
        for largest in sorted(range(len(good)), key=lambda row: (-pixels(looks.get(good[row])), row)):
            if largest in copied:
                continue
            groups[largest] = [largest]
            seen, outer = {largest}, near[largest]
            while outer:
                new = [row for row in dict.fromkeys(outer) if row not in groups and row not in seen]
                seen.update(new)
                new = [row for row in new if may_be_copies(looks[good[largest]].outline, looks[good[row]].outline)]
                compared += len(new)
                outer = []
                differences = self._map(lambda row: reader.unlikeness(good[largest], good[row]), new)  # noqa: B023
                for row, difference in zip(new, differences, strict=True):
                    if difference is not None:
                        copied[row] = min(copied.get(row, (difference, largest)), (difference, largest))
                        outer += near[row]
        logger.info("%d pairs compared by their pixels", compared)
        for row, (_, largest) in sorted(copied.items()):
            groups[largest].append(row)
        return list(groups.values())

    def _map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Yield the results for some items, computed on the threads.

        Raises:
            _NoResultError: the search is to end.
        """
        rest = iter(items)
        while chunk := list(islice(rest, _CHUNK)):
            yield from self._pool.map(function, chunk)
            self._check()

    def _count(self, count: int, failed: Sequence[ImageRef] = ()) -> None:
        self._tally.add(count, [(image.path, str(image.error)) for image in failed])
        if self._tally.exceeded:
            raise _NoResultError

    def _check(self) -> None:
        if self._stop():
            raise _NoResultError


def _status(image: ImageRef) -> tuple[object, File]:
    """Return what tells a file from others, and its size and time; without an error only if it is there."""
    content = image.content
    if isinstance(content, Span):
        return (os.path.realpath(content.file), content.offset), File(image, content.size)
    if isinstance(content, Stored):
        return image.path, File(image, content.size)
    if content is not None or image.error is not None:
        return object(), File(image, len(content) if isinstance(content, bytes) else None)
    try:
        status = os.stat(image.path)  # noqa: PTH116, the name stays as given
    except (OSError, ValueError):
        return object(), File(image)  # reading it tells what is wrong
    # a link that leads to a picture isn't another picture, but a second name of a file may be
    key = (status.st_dev, status.st_ino, os.path.realpath(image.path) if status.st_nlink > 1 else "")
    return key, File(
        image if status.st_size else replace(image, error="empty file"), status.st_size, status.st_mtime_ns
    )

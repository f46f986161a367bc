"""Cut the input of a run on a cluster into parts, each with a file of results of its own.

The plan is kept beside the results, so that a resumed run has the same parts: a part that has its file is done, and
isn't run again.
"""

import itertools
import json
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.discover import expand
from clipcls.inputs.listing import Sources
from clipcls.inputs.stores import in_store, look
from clipcls.inputs.tables import row_groups
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.records import Address, Container, ContainerKind, FileStamp, ImageRef, Span, Stored

#: A row's index is ROWS times its part's number, plus its place in the part.
ROWS = 10**9

# pictures in a part: with fewer the time between parts counts, with more too much is lost with a worker
_FEWEST, _MOST = 100, 5_000
# requests to stores at a time, since each is slow to answer
_ASKED_AT_ONCE = 16
# length of a picture's entry in the plan if it has an error
_ENTRY_WITH_ERROR = 2
# parts for each worker, so that all have something to do until the end
_PARTS_A_WORKER = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the input.

    Attributes:
        number: number of the part, from 0 in input order.
        count: number of pictures; None where the part would have to be read to count them.
        line: the part as JSON, as it stands in the plan's file and is sent to a worker.
    """

    number: int
    count: int | None
    line: str

    @property
    def container(self) -> str | None:
        """The path of the shard, table or video that the part is in; None for picture files."""
        fields = json.loads(self.line)
        return next((fields[kind] for kind in get_args(ContainerKind) if kind in fields), None)

    @property
    def paths(self) -> list[str]:
        """The paths that `discover` listed; if a shard or table is cut, only its first part has its path."""
        images, rows = _parsed(json.loads(self.line))
        return [image.path for image in images] if rows is None or rows[0] == 0 else []

    @property
    def place(self) -> str | None:
        """The path of the first picture, shard or table that lies in a file system; None where there is none."""
        images, _ = _parsed(json.loads(self.line))
        seen = (image for image in images if image.error is None and isinstance(image.content, Container | None))
        return next((image.path for image in seen if not in_store(image.path)), None)

    def images(self, sources: Sources) -> Iterator[ImageRef]:
        """Yield the part's pictures in input order; reads a shard or a table for it.

        Args:
            sources: see `clipcls.inputs.discover.expand`.
        """
        images, rows = _parsed(json.loads(self.line))
        for image in images:
            yield from expand(image, sources, rows)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Consecutive picture files, or a range of rows of one shard or table."""

    images: Sequence[ImageRef]
    rows: tuple[int, int] | None = None
    count: int | None = None


def read_part(line: str) -> Part:
    """Parse a part's line.

    Raises:
        ValueError, KeyError, TypeError: the line isn't one of a part.
    """
    fields = json.loads(line)
    return Part(fields["part"], fields["count"], line)


class Plan:
    """The parts of a run, and the file that lists them.

    Args:
        goes_on: whether to read the file; False where there are no results yet, and the plan is made anew.
        retry: whether to drop inputs that couldn't be listed, so that they are listed anew.

    Attributes:
        parts: the parts in input order; those added by a later run follow the earlier ones.

    Raises:
        UsageError: the file isn't a plan.
    """

    def __init__(self, path: Path, goes_on: bool, retry: bool = False) -> None:
        self._path = path
        self.parts: list[Part] = []
        if goes_on:
            self._read()
        if retry:
            self.parts = [_without_errors(part) for part in self.parts]

    def extend(
        self,
        images: Iterable[ImageRef],
        workers: int,
        column: str | None = None,
        finished: AbstractSet[int] = frozenset(),
        mended: AbstractSet[str] = frozenset(),
    ) -> None:
        """Bring the plan up to date: add new inputs, and drop unfinished ones that are no longer listed.

        Args:
            images: the inputs as `clipcls.inputs.discover.discover` lists them with `unread`.
            workers: number of workers; parts are small enough for all of them to have some.
            column: the tables' column of pictures.
            finished: numbers of the parts that stay as they are.
            mended: paths of shards and tables that may have changed, since they are read again.

        Raises:
            UsageError: a shard or a table has changed since some of it was done.
        """
        images = list(images)
        statuses = _statuses(images)
        self._compare(statuses, finished, mended)
        first = self.parts[-1].number + 1 if self.parts else 0
        if self.parts:
            images = self._go_on(images, statuses, finished)
        self.parts += [_part(number, cut, statuses) for number, cut in enumerate(_cuts(images, workers, column), first)]

    def _go_on(
        self, images: Sequence[ImageRef], statuses: dict[str, str | None], finished: AbstractSet[int]
    ) -> list[ImageRef]:
        """Keep the parts that are finished or still listed, and return the images that are in none of them."""
        places = _Places(images)
        kept = []
        for part in self.parts:
            container = part.container
            found = (places.take(path, container is not None) for path in part.paths)
            listed = [images[place] for place in found if place is not None]
            if part.number in finished or (container is not None and container in statuses):
                kept.append(part)
            elif listed and container is None:
                # made anew: a picture that was missing may be there now
                kept.append(_part(part.number, _Cut(listed, count=len(listed)), statuses))
        self.parts = kept
        return [images[place] for place in places.left()]

    def _compare(self, statuses: dict[str, str | None], finished: AbstractSet[int], mended: AbstractSet[str]) -> None:
        begun = {part.container for part in self.parts if part.number in finished} - mended
        for number, part in enumerate(self.parts):
            container = part.container
            if container is None or container not in statuses:
                continue
            fields = json.loads(part.line)
            if fields["status"] == statuses[container]:
                continue
            if container in begun:
                raise UsageError(
                    f"--resume: {container} isn't what it was when some of it was done, so that other pictures in it "
                    "might be left out. Leave it out here, and label it with an output of its own."
                )
            self.parts[number] = _of_fields(fields | {"status": statuses[container]})

    def write(self) -> None:
        """Write the plan's file.

        Raises:
            StoppedError: it can't be written.
        """
        content = "".join(part.line + "\n" for part in self.parts).encode("ascii")
        with can_write(str(self._path)):
            write_atomically(self._path, lambda file: file.write(content))

    def _read(self) -> None:
        try:
            self.parts = [read_part(line) for line in self._path.read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(
                f"{self._path}: missing, or not the plan of a run, so that its results can't be gone on with. Choose "
                "another output."
            ) from exc


class _Places:
    """The places of paths in a long list; a path may be listed as a picture and as a shard or a table."""

    def __init__(self, images: Sequence[ImageRef]) -> None:
        self._first: tuple[dict[str, int], dict[str, int]] = ({}, {})  # of pictures, and of containers
        self._more: dict[tuple[str, bool], deque[int]] = defaultdict(deque)
        for place, image in enumerate(images):
            is_container = isinstance(image.content, Container)
            if self._first[is_container].setdefault(image.path, place) != place:
                self._more[image.path, is_container].append(place)

    def take(self, path: str, is_container: bool) -> int | None:
        """Return the path's first place that isn't taken yet, and take it; None where there is none."""
        place = self._first[is_container].pop(path, None)
        if place is None and (more := self._more.get((path, is_container))):
            place = more.popleft()
        return place

    def left(self) -> list[int]:
        """Return the places that weren't taken, in order."""
        first = (place for places in self._first for place in places.values())
        return sorted(itertools.chain(first, *self._more.values()))


def _part(number: int, cut: _Cut, statuses: dict[str, str | None]) -> Part:
    fields: dict[str, Any] = {"part": number, "count": cut.count}
    image = cut.images[0]
    if isinstance(image.content, Container):
        fields |= {image.content.kind: image.path, "rows": cut.rows, "status": statuses[image.path]}
    else:
        fields["images"] = [_entry(image) for image in cut.images]
    return _of_fields(fields)


def _of_fields(fields: dict[str, Any]) -> Part:
    return Part(fields["part"], fields["count"], json.dumps(fields, separators=(",", ":")))


def _without_errors(part: Part) -> Part:
    fields = json.loads(part.line)
    if "images" not in fields:
        return part
    images = [entry for entry in fields["images"] if len(entry) != _ENTRY_WITH_ERROR]
    return _of_fields(fields | {"images": images, "count": len(images)})


def _statuses(images: Iterable[ImageRef]) -> dict[str, str | None]:
    """Return for each shard and table a text that changes when it does; None where it can't be told."""
    paths = {image.path for image in images if isinstance(image.content, Container)}
    stored = {path for path in paths if in_store(path)}
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        found = dict(zip(stored, pool.map(_status, stored), strict=True))
    return found | {path: _status(path) for path in paths - stored}


def _status(path: str) -> str | None:
    try:
        if in_store(path):
            stored = look(path).content
            return f"{stored.size} {stored.stamp or ''}" if isinstance(stored, Stored) else None
    except ImageError:
        return None  # the worker that reads it reports the error
    stamp = FileStamp.at(path)
    # without the inode: a copy on another disk counts as the same
    return f"{stamp.size} {stamp.mtime_ns}" if stamp else None


def _entry(image: ImageRef) -> list[Any]:
    if image.error is not None:
        return [image.path, image.error]
    match image.content:
        case Address():
            return [image.path, None, "web"]
        case Stored(size, stamp, is_known):
            return [image.path, None, "store", size, str(stamp or "") if is_known else None]
    return [image.path]


def _image(path: str, error: str | None = None, place: str | None = None, *facts: Any) -> ImageRef:
    if place == "web":
        return ImageRef(path, content=Address(path))
    return ImageRef(path, error, _stored(*facts) if place == "store" else None)


def _stored(size: int | None, stamp: str | None) -> Stored:
    return Stored(size, FileStamp.parse(stamp) if stamp else None, is_known=stamp is not None)


def _parsed(fields: dict[str, Any]) -> tuple[list[ImageRef], tuple[int, int] | None]:
    for kind in get_args(ContainerKind):
        if kind in fields:
            return [ImageRef(fields[kind], content=Container(kind))], fields["rows"] and tuple(fields["rows"])
    return [_image(*entry) for entry in fields["images"]], None


# ---------------------------------------------------------------------------------------------------------
# Where to cut


def _cuts(images: Sequence[ImageRef], workers: int, column: str | None) -> Iterator[_Cut]:
    """Cut the input into parts that are small enough for all workers to have some."""
    containers = [image for image in images if isinstance(image.content, Container)]
    shards = [image for image in containers if image.content == Container("shard")]
    groups = {image.path: _groups(image, column) for image in containers if image.content == Container("table")}
    few = len(shards) < workers * _PARTS_A_WORKER
    counts = {image.path: count for image in shards if few and (count := _pictures_in(image)) is not None}
    total = len(images) - len(containers) + sum(map(sum, groups.values())) + sum(counts.values())
    size = min(max(math.ceil(total / (workers * _PARTS_A_WORKER)), _FEWEST), _MOST)
    for is_container, several in itertools.groupby(images, lambda image: isinstance(image.content, Container)):
        if not is_container:
            yield from _batches(list(several), size)
            continue
        for image in several:
            sizes = groups.get(image.path) or [counts.get(image.path, 0)]
            ranges = list(_ranges(sizes, size))
            if not ranges:
                yield _Cut([image])
                continue
            ranges[-1] = (ranges[-1][0], ROWS)  # open-ended: it may have grown since it was counted
            yield from (_Cut([image], rows, min(rows[1], sum(sizes)) - rows[0]) for rows in ranges)


def _batches(images: Sequence[ImageRef], size: int) -> Iterator[_Cut]:
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield _Cut(batch, count=len(batch))


def _groups(table: ImageRef, column: str | None) -> list[int]:
    try:
        return row_groups(table.path, column)
    except (ImageError, UsageError):
        return []  # the worker that reads it reports the error


def _pictures_in(shard: ImageRef) -> int | None:
    """Count the pictures in a shard; None where all of it would have to be read."""
    if in_store(shard.path):
        return None
    listed = expand(shard, Sources())
    first = next(listed, None)
    if first is None or not isinstance(first.content, Span):
        return None
    return 1 + sum(1 for _ in listed)


def _ranges(groups: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of up to `size` rows; they end at groups' ends, except within a group that is larger."""
    first = stop = 0
    for rows in groups:
        if stop > first and stop - first + rows > size:
            yield first, stop
            first = stop
        stop += rows
        while stop - first > size:
            yield first, first + size
            first += size
    if stop > first:
        yield first, stop

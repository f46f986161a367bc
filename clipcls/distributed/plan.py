"""What a run on a cluster is cut into: parts of the input, each with a file of results of its own.

The plan is kept beside the results, since the same parts have to be known when a run is gone on with: whatever part has
its file is done, and nothing of it is done twice.
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
from typing import Any

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.discover import expand
from clipcls.inputs.listing import Sources
from clipcls.inputs.stores import in_store, look
from clipcls.inputs.tables import row_groups
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.records import Address, Container, FileStamp, ImageRef, Span, Stored

#: The index of a row is ROWS times its part's number, plus its place in the part.
ROWS = 10**9

# pictures in a part: fewer would spend their time between parts, more would be lost with a worker
_FEWEST, _MOST = 100, 5_000
# stores that are asked for shards take their time to answer
_ASKED_AT_ONCE = 16
# of what the plan has of a picture
_ENTRY_WITH_ERROR = 2
# parts for each worker, so that all have something to do until the end
_PARTS_A_WORKER = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the input.

    Attributes:
        number: from 0, in input order.
        count: pictures in it; None where it would have to be read to know.
        line: all of it as JSON, for the plan's file and for the worker that it is sent to.
    """

    number: int
    count: int | None
    line: str

    @property
    def container(self) -> str | None:
        """The path of the shard or the table that it is in; None for pictures."""
        fields = json.loads(self.line)
        path: str | None = fields.get("shard", fields.get("table"))
        return path

    @property
    def paths(self) -> list[str]:
        """What `discover` listed; of a shard or a table that is cut, its first part says so."""
        images, rows = _parsed(json.loads(self.line))
        return [image.path for image in images] if rows is None or rows[0] == 0 else []

    @property
    def place(self) -> str | None:
        """The path of its first picture, or what holds it, that was seen in a file system; None where there is none."""
        images, _ = _parsed(json.loads(self.line))
        seen = (image for image in images if image.error is None and isinstance(image.content, Container | None))
        return next((image.path for image in seen if not in_store(image.path)), None)

    def images(self, sources: Sources) -> Iterator[ImageRef]:
        """Its pictures in input order; a shard or a table is read for that.

        Args:
            sources: see `clipcls.inputs.discover.expand`.
        """
        images, rows = _parsed(json.loads(self.line))
        for image in images:
            yield from expand(image, sources, rows)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Consecutive pictures, or some of what a container holds."""

    images: Sequence[ImageRef]
    rows: tuple[int, int] | None = None
    count: int | None = None


def read_part(line: str) -> Part:
    """A part from its line.

    Raises:
        ValueError, KeyError, TypeError: it isn't one.
    """
    fields = json.loads(line)
    return Part(fields["part"], fields["count"], line)


class Plan:
    """The parts of a run, and the file that lists them.

    Args:
        goes_on: False where there are no results of it yet, so that it is made anew.
        retry: forget what couldn't even be listed, so that it is listed anew.

    Attributes:
        parts: in input order; what has come since is behind what was there.

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
        """Plan what is listed now: add what is new, and take out what isn't listed any more and not finished.

        Args:
            images: as `clipcls.inputs.discover.discover` lists them, with `unread`.
            workers: that shall all have something to do.
            column: of the pictures, in tables.
            finished: numbers of parts that stay as they are.
            mended: shards and tables that may have changed since, which are read again.

        Raises:
            UsageError: a shard or a table isn't what it was when some of it was done.
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
        """Keep of the parts what is finished or listed; returns what else is listed."""
        places = _Places(images)
        kept = []
        for part in self.parts:
            container = part.container
            found = (places.take(path, container is not None) for path in part.paths)
            listed = [images[place] for place in found if place is not None]
            if part.number in finished or (container is not None and container in statuses):
                kept.append(part)
            elif listed and container is None:
                # as they are now; one that wasn't there may have come
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
        """Put the plan on the disk.

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
    """Where in a long list something is; what was a picture before may have come as a shard or a table."""

    def __init__(self, images: Sequence[ImageRef]) -> None:
        self._first: tuple[dict[str, int], dict[str, int]] = ({}, {})  # of pictures, and of what holds several
        self._more: dict[tuple[str, bool], deque[int]] = defaultdict(deque)
        for place, image in enumerate(images):
            is_container = isinstance(image.content, Container)
            if self._first[is_container].setdefault(image.path, place) != place:
                self._more[image.path, is_container].append(place)

    def take(self, path: str, is_container: bool) -> int | None:
        """The place of a path that wasn't taken before; None where there is none."""
        place = self._first[is_container].pop(path, None)
        if place is None and (more := self._more.get((path, is_container))):
            place = more.popleft()
        return place

    def left(self) -> list[int]:
        """Those that weren't taken, in their order."""
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
    """What tells whether shards and tables are what they were; None where nothing does."""
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
        return None  # whoever reads it will say so
    stamp = FileStamp.at(path)
    # not the inode: a copy on another disk will do
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
    for kind in ("shard", "table"):
        if kind in fields:
            return [ImageRef(fields[kind], content=Container(kind))], fields["rows"] and tuple(fields["rows"])
    return [_image(*entry) for entry in fields["images"]], None


# ---------------------------------------------------------------------------------------------------------
# Where to cut


def _cuts(images: Sequence[ImageRef], workers: int, column: str | None) -> Iterator[_Cut]:
    """The input in parts, which are no larger than needed for all workers to have some."""
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
            ranges[-1] = (ranges[-1][0], ROWS)  # with whatever has come since it was counted
            yield from (_Cut([image], rows, min(rows[1], sum(sizes)) - rows[0]) for rows in ranges)


def _batches(images: Sequence[ImageRef], size: int) -> Iterator[_Cut]:
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield _Cut(batch, count=len(batch))


def _groups(table: ImageRef, column: str | None) -> list[int]:
    try:
        return row_groups(table.path, column)
    except (ImageError, UsageError):
        return []  # whoever reads it will say so


def _pictures_in(shard: ImageRef) -> int | None:
    """How many pictures there are in a shard; None where all of it would have to be read to know."""
    if in_store(shard.path):
        return None
    listed = expand(shard, Sources())
    first = next(listed, None)
    if first is None or not isinstance(first.content, Span):
        return None
    return 1 + sum(1 for _ in listed)


def _ranges(groups: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Rows in ranges of up to `size`, at the ends of groups where these aren't larger themselves."""
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

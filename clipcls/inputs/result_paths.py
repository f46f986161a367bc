"""Find pictures again by the paths that results show."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.discover import discover, image_on_web, is_web
from clipcls.inputs.listing import Sources
from clipcls.inputs.shards import is_shard
from clipcls.inputs.stores import in_store, require_readable
from clipcls.inputs.tables import is_table
from clipcls.inputs.video import frame_at, is_video, split_path
from clipcls.records import ImageRef, Stored


def pictures_at(
    paths: Sequence[str], column: str | None = None, allow_urls: bool = False
) -> Iterator[tuple[int, ImageRef]]:
    """Find pictures by their paths in results; each shard and each table is gone through once.

    Args:
        column: the column of pictures in tables; None to know it by its name.
        allow_urls: whether web addresses may be fetched.

    Yields:
        Each path's place among `paths`, and its picture, with an error where it can't be found. Pictures in shards and
        tables come last.
    """
    held: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for place, path in enumerate(paths):
        container = _container_of(path)
        if container is None:
            yield place, _picture(path, allow_urls)
        else:
            held[container].setdefault(path, []).append(place)
    for container, wanted in held.items():
        yield from _held(container, wanted, Sources([container], column=column, allow_urls=allow_urls))


def _container_of(path: str) -> str | None:
    """Return the shard or table that a path leads into; None for any other path."""
    if is_web(path) or os.path.lexists(path):
        return None
    outer = path
    while "/" in outer:
        outer = outer.rpartition("/")[0]
        if (is_shard(outer) or is_table(outer)) and (os.path.isfile(outer) or in_store(outer)):  # noqa: PTH113
            return outer
    return None


def _picture(path: str, allow_urls: bool) -> ImageRef:
    if is_web(path):
        return image_on_web(path, allow_urls)
    if path == "-":
        return ImageRef(path, "it came on standard input, which keeps nothing")
    if not in_store(path):
        return _local(path)
    try:
        require_readable(path, trusted=False)
    except ImageError as exc:
        return ImageRef(path, str(exc))
    return ImageRef(path, content=Stored())


def _local(path: str) -> ImageRef:
    """Return a picture, or the first frame of a video or of a part of one."""
    part = None if os.path.lexists(path) else split_path(path)
    if part is None and not is_video(path):
        return ImageRef(path)
    video, start, _ = part or (path, 0, None)
    return ImageRef(path, "no such file or directory") if not os.path.exists(video) else frame_at(video, start)  # noqa: PTH110


def _held(container: str, wanted: dict[str, list[int]], sources: Sources) -> Iterator[tuple[int, ImageRef]]:
    """Yield the pictures in a shard or a table that are wanted; of several with one name the first counts."""
    fault = f"it isn't in {container} any more"
    try:
        for image in discover(sources):
            if image.path == container:
                fault = image.error or fault
            for place in wanted.pop(image.path, ()):
                yield place, image
            if not wanted:
                return
    except UsageError as exc:
        fault = str(exc)
    for path, places in wanted.items():
        for place in places:
            yield place, ImageRef(path, fault)

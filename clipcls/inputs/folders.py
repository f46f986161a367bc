"""Walk folders and match patterns, on disk and in stores alike, sorted by name."""

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from fnmatch import translate

from clipcls.errors import ImageError, reason
from clipcls.inputs import stores
from clipcls.inputs.left_out import SIDE_FOLDERS, LeftOut
from clipcls.records import ImageRef


def walk(folder: str, left_out: LeftOut | None = None) -> Iterator[tuple[ImageRef, bool]]:
    """Walk everything below a folder that isn't hidden: sorted by name, each folder before its contents.

    Args:
        left_out: receives the folders that programs keep beside pictures, which aren't walked.

    Yields:
        Each entry, and whether it is a folder; a folder that can't be read has an error.
    """
    trail: list[
        _Folder | _StoredFolder
    ] = []  # the folders that the walk is inside of; not recursion, which has a depth limit
    image, is_folder = ImageRef(folder), True
    while True:
        if is_folder and trail and _name(image) in SIDE_FOLDERS:
            if left_out is not None:
                left_out.add_folder(image.path)
        elif not is_folder:
            yield image, False
        else:
            try:
                opened = _StoredFolder(image.path) if stores.in_store(image.path) else _Folder(image.path)
            except (OSError, ImageError) as exc:
                yield ImageRef(image.path, why_unopened(image.path, exc)), True
            else:
                if all(opened.identity != above.identity for above in trail):  # otherwise a link leads back up
                    if trail:
                        yield image, True
                    trail.append(opened)
        while trail and not trail[-1].left:
            trail.pop()
        if not trail:
            return
        image, is_folder = trail[-1].next()


def why_unopened(path: str, exc: OSError | ValueError | ImageError) -> str:
    """Say why a path can't be opened."""
    if isinstance(exc, ImageError):
        return str(exc)
    if isinstance(exc, ValueError):
        hint = "; is the list NUL-separated (-0)?" if "\0" in path else ""
        return f"not a possible file name: {exc}{hint}"
    if isinstance(exc, FileNotFoundError) and os.path.lexists(path):
        return "dangling link: no such file or directory"
    return reason(exc)


class _Folder:
    """The visible names in one folder, last one first."""

    def __init__(self, path: str) -> None:
        status = os.stat(path)  # noqa: PTH116
        self._path = path
        self.identity: object = (status.st_dev, status.st_ino)
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        self._folders = {entry.name for entry in visible if _is_folder(entry)}
        self.left = sorted((entry.name for entry in visible), reverse=True)

    def next(self) -> tuple[ImageRef, bool]:
        name = self.left.pop()
        return ImageRef(_join(self._path, name)), name in self._folders


class _StoredFolder:
    """The visible entries of a folder in a store, last one first; stores have no links."""

    def __init__(self, path: str) -> None:
        self.identity: object = path
        self.left = [image for image in reversed(stores.entries(path)) if not _name(image).startswith(".")]

    def next(self) -> tuple[ImageRef, bool]:
        image = self.left.pop()
        return image, image.path.endswith("/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that can't be searched
        return False


def _join(folder: str, name: str) -> str:
    # pathlib would normalise the name
    return posixpath.join(folder, name) if stores.is_address(folder) else os.path.join(folder, name)  # noqa: PTH118


def _name(image: ImageRef) -> str:
    return posixpath.basename(image.path.rstrip("/"))


# ---------------------------------------------------------------------------------------------------------
# Patterns; the glob module isn't used because its `**` follows a loop of links until the path is too long


def has_magic(text: str) -> bool:
    """Tell whether a name may be a pattern."""
    return any(character in text for character in "*?[")


def is_pattern(name: str) -> bool:
    """Tell whether a name is a pattern and not the name of an existing file.

    Raises:
        ImageError: its store can't be asked.
    """
    return has_magic(name) and _found(name) is None


def matches(pattern: str) -> Iterator[ImageRef]:
    """Yield what a pattern matches, sorted; a part of it matches hidden names only if it begins with a dot.

    Raises:
        ImageError: its store can't be asked.
    """
    base = "/" if pattern.startswith("/") else ""
    if stores.in_store(pattern):
        base, _, pattern = pattern.partition("://")
        base += "://"
    yield from _matches(ImageRef(base), [part for part in pattern.split("/") if part])


def _matches(base: ImageRef, parts: Sequence[str]) -> Iterator[ImageRef]:
    if not parts:
        image = base if base.content is not None else _found(base.path)
        yield from () if image is None else (image,)
    elif base.content is not None:  # a file has nothing below it
        return
    elif parts[0] == "**":
        yield from _matches_below(base, parts[1:])
    elif not has_magic(parts[0]):
        yield from _matches(ImageRef(_join(base.path, parts[0])), parts[1:])
    else:
        matching = re.compile(translate(parts[0])).match
        for name, image in _held(base.path):
            if matching(name) and (parts[0].startswith(".") or not name.startswith(".")):
                yield from _matches(image, parts[1:])


def _matches_below(base: ImageRef, rest: Sequence[str]) -> Iterator[ImageRef]:
    if rest:
        yield from _matches(base, rest)
    for image, is_folder in walk(base.path or os.curdir):
        found = image if base.path else ImageRef(image.path.removeprefix("./"), image.error)
        if found.error is not None or (not rest and not is_folder):
            yield found
        elif is_folder and rest:
            yield from _matches(found, rest)


def _found(path: str) -> ImageRef | None:
    """Return the file or folder at a path; None if there is nothing."""
    if not stores.in_store(path):
        return ImageRef(path) if os.path.lexists(path) else None
    try:
        return stores.look(path)
    except stores.NotFoundError:
        return None


def _held(folder: str) -> Iterator[tuple[str, ImageRef]]:
    """Yield a folder's entries by name; like a shell, nothing if it isn't a folder or can't be read."""
    if not stores.in_store(folder):
        try:
            names = sorted(os.listdir(folder or os.curdir))  # noqa: PTH208
        except OSError:
            return
        yield from ((name, ImageRef(_join(folder, name))) for name in names)
        return
    try:
        held = stores.entries(folder)
    except stores.NotFoundError:
        return
    yield from ((_name(image), image) for image in held)

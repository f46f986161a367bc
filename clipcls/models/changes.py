"""Notices when a model's files change while they are read."""

from collections.abc import Iterable
from pathlib import Path

from clipcls.records import FileStamp


def look_at(files: Iterable[Path]) -> dict[str, FileStamp | None]:
    """Return the stamps of a model's files, their folders, and the hub references that chose them.

    Folders are included because a file that appears beside another may be preferred to it.
    """
    paths = {str(path.absolute()) for path in files}
    watched = paths | {str(Path(path).parent) for path in paths} | set(_hub_references(paths))
    return {path: FileStamp.at(path) for path in sorted(watched)}


def have_changed(files: Iterable[Path], seen: dict[str, FileStamp | None]) -> bool:
    """Return whether any of a model's files differs from what `look_at` saw; other files don't matter."""
    return any(FileStamp.at(path) != seen.get(path) for path in (str(path.absolute()) for path in files))


def _hub_references(paths: Iterable[str]) -> Iterable[str]:
    """Yield the files that name the newest commit, for files in the hub's cache (`…/snapshots/COMMIT/FILE`)."""
    for path in map(Path, paths):
        if path.parent.parent.name == "snapshots":
            yield str(path.parent.parent.parent / "refs" / "main")

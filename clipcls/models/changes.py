"""Whether a model's files are what they were before they were read."""

from collections.abc import Iterable
from pathlib import Path

from clipcls.records import FileStamp


def look_at(files: Iterable[Path]) -> dict[str, FileStamp | None]:
    """What a model's files look like, and what else decides which files are its own.

    A file that appears beside one of them may be preferred to it, so that their folders are looked at as well.
    """
    paths = {str(path.absolute()) for path in files}
    watched = paths | {str(Path(path).parent) for path in paths} | set(_hub_references(paths))
    return {path: FileStamp.at(path) for path in sorted(watched)}


def have_changed(files: Iterable[Path], seen: dict[str, FileStamp | None]) -> bool:
    """Whether any of a model's files isn't what `look_at` saw; what else happened in their folders doesn't matter."""
    return any(FileStamp.at(path) != seen.get(path) for path in (str(path.absolute()) for path in files))


def _hub_references(paths: Iterable[str]) -> Iterable[str]:
    """For files of the hub's cache (`…/snapshots/COMMIT/FILE`): what says which commit is the newest."""
    for path in map(Path, paths):
        if path.parent.parent.name == "snapshots":
            yield str(path.parent.parent.parent / "refs" / "main")

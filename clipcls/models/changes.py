"""Whether a model's files are what they were before they were read."""

import os
from collections.abc import Iterable
from pathlib import Path

from clipcls.records import file_status


def look_at(files: Iterable[Path]) -> dict[str, str | None]:
    """What a model's files look like, and what else decides which files are its own.

    A file that appears beside one of them may be preferred to it, so that their folders are looked at as well.
    """
    paths = {str(path.absolute()) for path in files}
    watched = paths | {str(Path(path).parent) for path in paths} | set(_hub_references(paths))
    return {path: status_of(path) for path in sorted(watched)}


def have_changed(files: Iterable[Path], seen: dict[str, str | None]) -> bool:
    """Whether any of a model's files isn't what `look_at` saw; what else happened in their folders doesn't matter."""
    return any(status_of(path) != seen.get(path) for path in (str(path.absolute()) for path in files))


def _hub_references(paths: Iterable[str]) -> Iterable[str]:
    """For files of the hub's cache (`…/snapshots/COMMIT/FILE`): what says which commit is the newest."""
    for path in map(Path, paths):
        if path.parent.parent.name == "snapshots":
            yield str(path.parent.parent.parent / "refs" / "main")


def status_of(path: str) -> str | None:
    """Return what changes with a file's content; None where there is no such file."""
    try:
        return file_status(os.stat(path))  # noqa: PTH116
    except OSError:
        return None

"""Find tar shards of labelled or captioned pictures, and the files that describe them, in CLIP_benchmark's layout.

    DATA/dataset_type.txt       `multilabel`, `retrieval`, or not there
    DATA/classnames.txt         and other files, see `class_shards`
    DATA/test/nshards.txt       how many shards there are: 0.tar, 1.tar …

Source: clip_benchmark.webdataset_builder, https://github.com/LAION-AI/CLIP_benchmark
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from clipcls.errors import UsageError, first_line
from clipcls.inputs.shards import expand_braces, is_shard
from clipcls.text_files import read_text

#: Holds the word for what the shards are, `multilabel` or `retrieval`.
TYPE = "dataset_type.txt"

_COUNT = "nshards.txt"
_SPLIT = "test"


def shards_in(folder: Path) -> bool:
    """Tell whether a folder is laid out as shards."""
    places = (folder, folder / _SPLIT)
    return any((place / _COUNT).is_file() for place in places) or any(map(_first_shard, places))


def shards_of_folder(folder: Path) -> list[str]:
    """List the shards in a folder's `test`, or in the folder itself.

    Raises:
        UsageError: the file with their number can't be read.
    """
    split = folder / _SPLIT
    place = split if (split / _COUNT).is_file() or _first_shard(split) else folder
    try:
        if not (place / _COUNT).exists():
            return [str(path) for path in sorted(filter(_is_shard, place.iterdir()), key=_numerically)]
        count = int(read_text(place / _COUNT))
    except (OSError, ValueError) as exc:
        raise UsageError(f"{place / _COUNT}: no number of shards can be read: {first_line(exc)}") from exc
    return [str(place / f"{number}.tar") for number in range(count)]


def named_shards(names: Sequence[str]) -> list[str]:
    """List the shards that paths, patterns and names with braces stand for.

    Raises:
        UsageError: a pattern matches nothing, or a brace has no partner.
    """
    return [shard for name in names for shard in _named(name)]


class Beside:
    """The files that describe shards, in their folder or in the one above.

    Args:
        shards: of which the first tells the folder.
        main: the file that tells which of the two folders it is.
    """

    def __init__(self, shards: Sequence[str], main: str) -> None:
        folder = Path(shards[0]).parent if shards else Path()
        # a relative path stays relative unless its parent can't be told from it
        above = folder.parent if folder.name not in ("", "..") else folder.absolute().parent
        self.folder = folder if (folder / main).is_file() or not (above / main).is_file() else above

    def path_of(self, name: str) -> str | None:
        """Return a file's path; None if it doesn't exist."""
        return os.fspath(self.folder / name) if (self.folder / name).is_file() else None

    def lines(self, name: str) -> list[str]:
        """Read a file's lines that aren't blank; none if it doesn't exist."""
        path = self.path_of(name)
        if path is None:
            return []
        return [line.strip() for line in read_text(Path(path)).split("\n") if line.strip()]


def _is_shard(path: Path) -> bool:
    return is_shard(path.name)


def _first_shard(folder: Path) -> bool:
    return folder.is_dir() and any(is_shard(path.name) for path in folder.iterdir() if path.is_file())


def _numerically(path: Path) -> tuple[tuple[int, str], ...]:
    """Return a sort key that puts 10.tar behind 9.tar."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name))


def _named(name: str) -> list[str]:
    """List the shards that a path, a pattern or a name with braces stands for."""
    if os.path.lexists(name):
        return [name]
    found = []
    for part in expand_braces(name):
        found += _matching(part) if any(sign in part for sign in "*?[") else [part]
    return found


def _matching(pattern: str) -> list[str]:
    import glob

    found = sorted(map(Path, glob.glob(pattern)), key=_numerically)  # noqa: PTH207, as it was given
    if not found:
        raise UsageError(f"{pattern}: no file matches this pattern.")
    return [str(path) for path in found]

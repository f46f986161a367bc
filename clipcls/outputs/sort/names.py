"""Names of folders after labels, and of files beside others, that hold on Linux, macOS and Windows."""

import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from clipcls.outputs.sort.place import status_of

#: Where images go that have no label, and those that couldn't be read; no label's folder is called so.
UNKNOWN, FAILED = "_unknown", "_failed"

_FORBIDDEN = frozenset('/\\:*?"<>|')
_UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, separators of lines
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_LONGEST_FOLDER = 200  # bytes; some file systems hold fewer than 255, and a number may come behind
_LONGEST_FILE = 255
_LONGEST_EXTENSION = 32  # what is longer belongs to the name


def name_key(name: str) -> str:
    """What is equal for two names that some file system takes for one."""
    return unicodedata.normalize("NFC", name.casefold())


def folder_name(label: str) -> str:
    """A label as the name of one folder, which isn't hidden and leads nowhere else."""
    signs = ("_" if sign in _FORBIDDEN or unicodedata.category(sign) in _UNPRINTED else sign for sign in label)
    name = _cut("".join(signs).strip(" "), _LONGEST_FOLDER).rstrip(" ")
    name = re.sub(r"^\.|\.$", "_", name)
    return f"_{name}" if not name or _DEVICES.fullmatch(name) else name


class FolderNames:
    """Folders in `root` for labels, a different one for each.

    Args:
        known: the folders that labels had before.
    """

    def __init__(self, root: Path, known: Mapping[str, str]) -> None:
        self._root = root
        self._names = {label: name for label, name in known.items() if folder_name(name) == name and self.is_free(name)}
        self._taken = {name_key(name) for name in (UNKNOWN, FAILED, *self._names.values())}

    def of(self, label: str) -> str:
        """The name of a label's folder."""
        if label not in self._names:
            self._names[label] = self._choose(folder_name(label))
        return self._names[label]

    def is_free(self, name: str) -> bool:
        """Whether there is nothing of that name, or a folder; a link could lead out."""
        status = status_of(self._root / name)
        return status is None or stat.S_ISDIR(status.st_mode)

    def _choose(self, name: str) -> str:
        candidates = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        chosen = next(each for each in candidates if name_key(each) not in self._taken and self.is_free(each))
        self._taken.add(name_key(chosen))
        return chosen


class FileNames:
    """Names in one folder.

    Args:
        taken: those that it holds.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {name_key(name) for name in taken}
        self._numbers: dict[str, int] = {}

    def take(self, name: str) -> str:
        """The name, or the first of `name-2.jpg`, `name-3.jpg`, … that is free."""
        key = name_key(name)
        number = self._numbers.get(key, 1)
        while name_key(taken := numbered(name, number)) in self._taken:
            number += 1
        self._numbers[key] = number + 1
        self._taken.add(name_key(taken))
        return taken


def numbered(name: str, number: int) -> str:
    """A file's name with a number before its extension, no longer than a name may be; without one for 1."""
    if number == 1:
        return name
    stem, extension = os.path.splitext(name)  # noqa: PTH122, pathlib takes the name for a path
    if len(os.fsencode(extension)) > _LONGEST_EXTENSION:
        stem, extension = name, ""
    end = f"-{number}{extension}"
    return _cut(stem, _LONGEST_FILE - len(os.fsencode(end))) + end


def _cut(text: str, limit: int) -> str:
    """As many whole characters as fit into so many bytes."""
    text = text[:limit]
    while len(text.encode("utf-8", "surrogateescape")) > limit:
        text = text[:-1]
    return text

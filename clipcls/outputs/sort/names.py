"""Makes names of folders from labels, and free names of files, that are valid on Linux, macOS and Windows."""

import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from clipcls.outputs.sort.place import status_of

#: The folders of images without a label, and of those that couldn't be read; no label's folder gets these names.
UNKNOWN, FAILED = "_unknown", "_failed"

_FORBIDDEN = frozenset('/\\:*?"<>|')
_UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, separators of lines
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_LONGEST_FOLDER = 200  # bytes; some file systems allow fewer than 255, and a number may be appended
_LONGEST_FILE = 255
_LONGEST_EXTENSION = 32  # bytes; a longer one counts as a part of the name


def name_key(name: str) -> str:
    """Return a key that is equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFC", name.casefold())


def folder_name(label: str) -> str:
    """Turn a label into the name of one folder that isn't hidden and holds no path."""
    signs = ("_" if sign in _FORBIDDEN or unicodedata.category(sign) in _UNPRINTED else sign for sign in label)
    name = _cut("".join(signs).strip(" "), _LONGEST_FOLDER).rstrip(" ")
    name = re.sub(r"^\.|\.$", "_", name)
    return f"_{name}" if not name or _DEVICES.fullmatch(name) else name


class FolderNames:
    """The names of the labels' folders in `root`, a different one for each.

    Args:
        known: the folders that labels got in earlier runs.
    """

    def __init__(self, root: Path, known: Mapping[str, str]) -> None:
        self._root = root
        self._names = {label: name for label, name in known.items() if folder_name(name) == name and self.is_free(name)}
        self._taken = {name_key(name) for name in (UNKNOWN, FAILED, *self._names.values())}

    def of(self, label: str) -> str:
        """Return the name of a label's folder."""
        if label not in self._names:
            name = folder_name(label)
            candidates = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
            free = (each for each in candidates if name_key(each) not in self._taken and self.is_free(each))
            self._names[label] = next(free)
            self._taken.add(name_key(self._names[label]))
        return self._names[label]

    def is_free(self, name: str) -> bool:
        """Return whether nothing or a folder has the name; a link isn't allowed, since it could lead out of `root`."""
        status = status_of(self._root / name)
        return status is None or stat.S_ISDIR(status.st_mode)


class FileNames:
    """Gives free names in one folder, in which the names `taken` exist."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {name_key(name) for name in taken}
        self._numbers: dict[str, int] = {}

    def take(self, name: str) -> str:
        """Return the name, or else the first free one of `name-2.jpg`, `name-3.jpg`, …, and reserve it."""
        first = self._numbers.get(name_key(name), 1)
        candidates = ((number, numbered(name, number)) for number in itertools.count(first))
        number, free = next(each for each in candidates if name_key(each[1]) not in self._taken)
        self._numbers[name_key(name)] = number + 1
        self._taken.add(name_key(free))
        return free


def numbered(name: str, number: int) -> str:
    """Return a file's name with a number before its extension, cut to the length limit; unchanged for 1."""
    if number == 1:
        return name
    stem, extension = os.path.splitext(name)  # noqa: PTH122, pathlib takes the name for a path
    if len(os.fsencode(extension)) > _LONGEST_EXTENSION:
        stem, extension = name, ""
    end = f"-{number}{extension}"
    return _cut(stem, _LONGEST_FILE - len(os.fsencode(end))) + end


def _cut(text: str, limit: int) -> str:
    text = text[:limit]  # a character has a byte at least
    while len(text.encode("utf-8", "surrogateescape")) > limit:
        text = text[:-1]
    return text

"""Keeps converted towers in a folder beside the cache's file, each in a folder of its own. Imports no torch.

A conversion that is damaged, or that another model's or another version's code made, is never used, but replaced.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from clipcls.models.runtime.engine import release
from clipcls.outputs.atomic import lock
from clipcls.records import Precision

logger = logging.getLogger(__name__)

Tower = Literal["visual", "text"]
#: The towers, with their names in messages.
TOWERS: Final[dict[Tower, str]] = {"visual": "image tower", "text": "text tower"}

#: The folder's name, in the cache's folder.
CONVERSIONS_NAME = "openvino"
#: The name of a converted tower's description; its weights lie beside it, in `tower.bin`.
MODEL_NAME = "tower.xml"
# to be raised whenever conversions come out differently
_VERSION = 1
LOCK_NAME = ".lock"
_MANIFEST = "manifest.json"
_DRAFT = "draft-"
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted tower, or the note that a tower can't be converted.

    Attributes:
        path: of the OpenVINO IR; None where the conversion failed.
        failure: why it failed.
        notes: what whoever converted it wrote down: numbers, texts and lists.
    """

    path: Path | None
    failure: str | None
    notes: dict[str, Any]

    @property
    def size(self) -> int:
        """The bytes of its files."""
        return 0 if self.path is None else _size(self.path.parent)


@dataclass(frozen=True, slots=True)
class KeptConversion:
    """A folder that holds a conversion; `size` in bytes, `used` in Unix seconds, to a day."""

    folder: Path
    size: int
    used: float


class Conversions:
    """The conversions of one model.

    Args:
        folder: holds the conversions of all models; created when needed.
        limit: bytes that they may take together; the least recently used go first.
        fingerprint: SHA-256 of all that the model's features depend on.
        sha256: returns the SHA-256 of a file's content; a cached one saves reading a large file at every start.
    """

    def __init__(self, folder: Path, limit: int, fingerprint: bytes, sha256: Callable[[Path], bytes]) -> None:
        self.folder = folder
        self.limit = limit
        self._fingerprint = fingerprint
        self._sha256 = sha256

    def find(self, tower: Tower, precision: Precision) -> Conversion | None:
        """Return what an earlier run made of a tower; None where there is nothing that can be used."""
        described = self._described(tower, precision)
        folder = self._place(described)
        try:
            manifest = _read_manifest(folder)
            if manifest["of"] != described:
                raise ValueError("it is another model's")
            for name, digest in manifest["files"].items():
                if self._sha256(folder / name).hex() != digest:
                    raise ValueError(f"{name} isn't what was written")
            failure = manifest["failure"]
            found = Conversion(None if failure else folder / MODEL_NAME, failure, dict(manifest["notes"]))
        except FileNotFoundError:
            return None  # there is no such conversion, or one without its files, which the next one replaces
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            # left where it is: another process may just be replacing it
            warn_once(f"a converted model can't be used ({folder}: {exc}); it is made again")
            return None
        _note_use(folder)
        return found

    def room(self, tower: Tower, precision: Precision) -> int:
        """Return the bytes that a conversion may take, so that both towers of its model can be kept."""
        other: Tower = "text" if tower == "visual" else "visual"
        return self.limit - _size(self._place(self._described(other, precision)))

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """Wait until no other process converts anything, and yield an empty folder for a conversion.

        Raises:
            OSError: the folder can't be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK_NAME).open("ab") as file:
            lock(file, wait=True)
            _drop_drafts(self.folder)
            with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=self.folder, ignore_cleanup_errors=True) as draft:
                yield Path(draft)

    def keep(
        self, draft: Path, tower: Tower, precision: Precision, notes: dict[str, Any], failure: str | None = None
    ) -> Conversion:
        """Keep the conversion in `draft`, and drop others where all take more than the limit.

        Args:
            failure: why the tower can't be converted; then `draft` is empty.

        Raises:
            OSError: it can't be written.
        """
        described = self._described(tower, precision)
        files = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        manifest = {"of": described, "files": files, "failure": failure, "notes": notes}
        _write_manifest(draft, manifest)
        folder = self._place(described)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in sorted(draft.iterdir(), key=lambda path: path.name == _MANIFEST):  # the manifest last
            path.rename(folder / path.name)
        drop_conversions(self.folder.parent, self.limit, keep=folder)
        return Conversion(None if failure else folder / MODEL_NAME, failure, notes)

    def _described(self, tower: Tower, precision: Precision) -> list[Any]:
        return [_VERSION, release(), self._fingerprint.hex(), tower, precision]

    def _place(self, described: list[Any]) -> Path:
        return self.folder / hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def stored_conversions(cache_folder: Path) -> list[KeptConversion]:
    """Return the conversions in a cache's folder, the least recently used first."""
    found = []
    for folder in (cache_folder / CONVERSIONS_NAME).glob("*/"):
        if folder.name.startswith(_DRAFT):
            continue
        with contextlib.suppress(OSError):  # another process may remove it
            manifest = folder / _MANIFEST
            found.append(KeptConversion(folder, _size(folder), manifest.stat().st_mtime if manifest.exists() else 0.0))
    return sorted(found, key=lambda stored: stored.used)


def drop_conversions(
    cache_folder: Path, limit: int, unused_since: float = 0.0, keep: Path | None = None
) -> list[KeptConversion]:
    """Remove conversions until the rest takes at most `limit` bytes; return those that were removed.

    Args:
        unused_since: also remove those that weren't used after this moment, in Unix seconds.
        keep: one to leave.
    """
    found = stored_conversions(cache_folder)
    total = sum(stored.size for stored in found)
    dropped = []
    for stored in found:
        if stored.folder != keep and (total > limit or stored.used < unused_since):
            shutil.rmtree(stored.folder, ignore_errors=True)
            total -= stored.size
            dropped.append(stored)
    return dropped


def remove_leftovers(cache_folder: Path, with_lock: bool) -> None:
    """Remove what killed processes left, unless a process is converting.

    Args:
        with_lock: remove the lock as well, and the folder if it is empty.
    """
    folder = cache_folder / CONVERSIONS_NAME
    with contextlib.suppress(OSError), (folder / LOCK_NAME).open("r+b") as file:
        if lock(file):
            _drop_drafts(folder)
            if with_lock:
                (folder / LOCK_NAME).unlink()
                folder.rmdir()


@cache
def warn_once(message: str) -> None:
    """Log a warning, unless this process has."""
    logger.warning(message)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `_write_manifest` wrote.

    Raises:
        OSError: it can't be read.
        ValueError: it isn't what was written.
    """
    digest, _, text = (folder / _MANIFEST).read_bytes().partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError(f"{_MANIFEST} isn't what was written")
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest).encode()
    (folder / _MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)


def _drop_drafts(folder: Path) -> None:
    """Remove the drafts of processes that were killed; only for who holds the lock."""
    for draft in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note_use(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - (folder / _MANIFEST).stat().st_mtime > _DAY:
            os.utime(folder / _MANIFEST)

"""What `clipcls cache info|clear|prune` do: show the cache, remove it, and make it smaller."""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipcls.embed.cache.database import (
    FAILURES,
    NAME,
    SCHEMA_VERSION,
    WEIGHTS,
    DamagedError,
    Failure,
    identity,
    is_damage,
    is_locked,
    open_database,
    read_version,
    replace_damaged,
    size_of,
)
from clipcls.embed.cache.eviction import Dropped, drop_to_fit, drop_unused_since, forget_paths
from clipcls.embed.cache.store import DEFAULT_LIMIT
from clipcls.errors import UsageError

# the folder may be one that the user chose, and hold weights of theirs: nothing else in it is touched
_WEIGHTS_NAME = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\.part")
_DAY = 24 * 3600.0
_WEIGHTS_DAYS = 30.0


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What `clipcls cache info` shows; sizes in bytes."""

    path: Path
    exists: bool
    size: int = 0
    texts: int = 0
    images: int = 0
    models: int = 0
    fingerprints: int = 0
    weights: int = 0
    weights_size: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `clipcls cache prune` removed; `freed` in bytes."""

    images: int
    texts: int
    paths: int
    weights: int
    damaged: int
    freed: int


def info(folder: Path) -> CacheInfo:
    """What is in the cache, without creating it.

    Raises:
        UsageError: the file is there but can't be read, or isn't a cache of this version.
    """
    path = folder / NAME
    weights = _weights_files(folder)
    sizes = [_size(file) for file in weights if file.suffix == ".safetensors"]
    if not path.is_file():
        return CacheInfo(path, exists=False, weights=len(sizes), weights_size=sum(sizes))
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            counts = _counts(database)
    except FAILURES as exc:
        raise UsageError(f"{path}: {exc}{_advice(exc, path)}") from exc
    return CacheInfo(path, True, size_of(path), **counts, weights=len(sizes), weights_size=sum(sizes))


def clear(folder: Path) -> int:
    """Remove the cache, damaged ones and converted weights included, and return how many bytes that freed.

    Raises:
        UsageError: a file can't be removed.
    """
    freed = sum(_remove(file) for file in [*sorted(folder.glob(f"{NAME}*")), *_weights_files(folder)])
    with contextlib.suppress(OSError):
        (folder / WEIGHTS).rmdir()
    return freed


def prune(folder: Path, older_than: float | None = None, size: int = DEFAULT_LIMIT) -> Pruned:
    """Remove what is of no use any more, and give its space back.

    That is, in this order: paths whose files are gone, embeddings unused for `older_than` days, embeddings least
    recently used until the rest takes at most `size` bytes, converted weights, and damaged files that were set aside.

    Args:
        older_than: in days, with a precision of one day. None: embeddings go for their size alone, weights after
            30 days.

    Raises:
        UsageError: the cache can't be used, or a file can't be removed.
    """
    path = folder / NAME
    before = size_of(path)
    dropped, paths = _prune_database(path, older_than, size) if path.is_file() else (Dropped(), 0)
    moment = time.time() - (_WEIGHTS_DAYS if older_than is None else older_than) * _DAY
    weights = [file for file in _weights_files(folder) if _modified(file) < moment]
    damaged = sorted(folder.glob(f"{NAME}.damaged-*"))
    # a cache set aside just now has been counted as the cache already
    after = size_of(path)
    freed = sum(map(_remove, [*weights, *damaged]))
    return Pruned(dropped.images, dropped.texts, paths, len(weights), len(damaged), max(0, before - after) + freed)


def _prune_database(path: Path, older_than: float | None, size: int) -> tuple[Dropped, int]:
    try:
        opened = identity(path)
        try:
            with contextlib.closing(open_database(path)) as database:
                return _prune_rows(database, older_than, size)
        except FAILURES as exc:
            if not is_damage(exc, path):
                raise
            replace_damaged(path, opened, exc).close()
            return Dropped(), 0
    except (OSError, *FAILURES) as exc:
        raise UsageError(f"{path}: {exc}") from exc


def _prune_rows(database: sqlite3.Connection, older_than: float | None, size: int) -> tuple[Dropped, int]:
    # flipped bytes in an index make rows that can't be found, however often they are written
    (finding,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if finding != b"ok":
        raise DamagedError(finding.decode(errors="replace"))
    paths = forget_paths(database, "path", _is_gone)
    forget_paths(database, "fingerprint", _is_gone)
    dropped = Dropped()
    if older_than is not None:
        dropped += drop_unused_since(database, time.time() - older_than * _DAY)
    step, orphans = drop_to_fit(database, size)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return dropped + step, paths + orphans


def _is_gone(path: bytes) -> bool:
    """Whether there is surely no such file; one that can't be looked at may be there."""
    try:
        os.stat(path)  # noqa: PTH116 - there is no Path of bytes
    except (FileNotFoundError, NotADirectoryError, TypeError, ValueError):
        return True
    except OSError:
        return False
    return False


def _advice(exc: Failure, path: Path) -> str:
    """What to do about a file that can't be read."""
    if is_locked(exc):
        return " by another process. Try again when that is done."
    # it was opened to be read only, which isn't the file's fault
    if is_damage(exc, path) and getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_READONLY:
        return ". `clipcls cache clear` removes it."
    return ""


def _counts(database: sqlite3.Connection) -> dict[str, int]:
    if read_version(database) != SCHEMA_VERSION:
        # its rows are dropped at its next use
        return {}
    tables = {"texts": "text", "images": "image", "models": "model", "fingerprints": "fingerprint"}
    return {
        name: int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for name, table in tables.items()
    }


def _weights_files(folder: Path) -> list[Path]:
    """Converted weights, and drafts of ones whose making was cut short."""
    return sorted(file for file in _entries(folder / WEIGHTS) if _WEIGHTS_NAME.fullmatch(file.name))


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from folder.iterdir()


def _size(file: Path) -> int:
    """Bytes of a file, 0 if another process has removed it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remove(file: Path) -> int:
    size = _size(file)
    try:
        file.unlink(missing_ok=True)
    except OSError as exc:
        raise UsageError(f"{file}: can't be removed: {exc.strerror}") from exc
    return size

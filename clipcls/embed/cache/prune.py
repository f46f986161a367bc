"""What `clipcls cache info|clear|prune` do: show the cache, remove it, and make it smaller."""

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from clipcls.embed.cache.database import (
    FAILURES,
    NAME,
    SCHEMA_VERSION,
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

_DAY = 24 * 3600.0


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


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `clipcls cache prune` removed; `freed` in bytes."""

    images: int
    texts: int
    paths: int
    damaged: int
    freed: int


def info(folder: Path) -> CacheInfo:
    """What is in the cache, without creating it.

    Raises:
        UsageError: the file is there but can't be read, or isn't a cache of this version.
    """
    path = folder / NAME
    if not path.is_file():
        return CacheInfo(path, exists=False)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            counts = _counts(database)
    except FAILURES as exc:
        raise UsageError(f"{path}: {exc}{_advice(exc, path)}") from exc
    return CacheInfo(path, True, size_of(path), **counts)


def clear(folder: Path) -> int:
    """Remove the cache, damaged ones included, and return how many bytes that freed.

    Raises:
        UsageError: a file can't be removed.
    """
    return sum(map(_remove, sorted(folder.glob(f"{NAME}*"))))


def prune(folder: Path, older_than: float | None = None, size: int = DEFAULT_LIMIT) -> Pruned:
    """Remove what is of no use any more, and give its space back.

    That is, in this order: paths whose files are gone, embeddings unused for `older_than` days, embeddings least
    recently used until the rest takes at most `size` bytes, and damaged files that were set aside.

    Args:
        older_than: in days, with a precision of one day. None: embeddings go for their size alone.

    Raises:
        UsageError: the cache can't be used, or a file can't be removed.
    """
    path = folder / NAME
    before = size_of(path)
    dropped, paths = _prune_database(path, older_than, size) if path.is_file() else (Dropped(), 0)
    damaged = sorted(folder.glob(f"{NAME}.damaged-*"))
    # a cache set aside just now has been counted as the cache already
    after = size_of(path)
    freed = sum(map(_remove, damaged))
    return Pruned(dropped.images, dropped.texts, paths, len(damaged), max(0, before - after) + freed)


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


def _size(file: Path) -> int:
    """Bytes of a file, 0 if another process has removed it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(file: Path) -> int:
    size = _size(file)
    try:
        file.unlink(missing_ok=True)
    except OSError as exc:
        raise UsageError(f"{file}: can't be removed: {exc.strerror}") from exc
    return size

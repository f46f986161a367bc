"""What `clipcls cache info|clear|prune` do: show the cache, remove it, and make it smaller."""

import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcls.embed.cache.database import (
    CACHE_NAME,
    FAILURES,
    SCHEMA_VERSION,
    DamagedError,
    Kind,
    drop_rows,
    inode_of,
    is_damage,
    is_locked,
    make_room,
    open_database,
    read_version,
    set_aside,
    sizes_of,
)
from clipcls.embed.cache.store import DEFAULT_LIMIT, room_for_conversions, room_for_rows
from clipcls.errors import UsageError
from clipcls.models.runtime.conversions import (
    KeptConversion,
    drop_conversions,
    remove_leftovers,
    stored_conversions,
)
from clipcls.records import FileStamp

_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What `clipcls cache info` shows; `size` in bytes."""

    path: Path
    exists: bool
    size: int = 0
    texts: int = 0
    images: int = 0
    models: int = 0
    fingerprints: int = 0
    conversions: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `clipcls cache prune` removed; `freed` in bytes."""

    images: int
    texts: int
    paths: int
    damaged: int
    freed: int
    conversions: int = 0


def info(folder: Path) -> CacheInfo:
    """Return what is in the cache, without creating it.

    Raises:
        UsageError: the file is there but can't be read, or isn't a cache of this version.
    """
    path = folder / CACHE_NAME
    converted = stored_conversions(folder)
    size = sum(stored.size for stored in converted)
    if not path.is_file():
        return CacheInfo(path, exists=bool(converted), size=size, conversions=len(converted))
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            # a cache of an earlier version counts as empty, since its next use empties it
            is_current = read_version(database) == SCHEMA_VERSION
            counts = dict(database.execute("SELECT kind, count(*) FROM entry GROUP BY kind") if is_current else [])
    except FAILURES as exc:
        raise UsageError(f"{path}: {exc}{_advice(exc)}") from exc
    return CacheInfo(
        path,
        exists=True,
        size=size + sum(sizes_of(path).values()),
        texts=counts.get(Kind.TEXT, 0),
        images=counts.get(Kind.IMAGE, 0),
        models=counts.get(Kind.MODEL, 0),
        fingerprints=counts.get(Kind.FINGERPRINT, 0),
        conversions=len(converted),
    )


def clear(folder: Path) -> int:
    """Remove the cache with its converted models, and damaged ones that were set aside; return how many bytes it freed.

    Raises:
        UsageError: a file can't be removed.
    """
    freed = sum(map(_remove, sorted(folder.glob(f"{CACHE_NAME}*")))) + _freed(drop_conversions(folder, -1))
    remove_leftovers(folder, with_lock=True)
    return freed


def prune(folder: Path, older_than: float | None = None, size: int = DEFAULT_LIMIT) -> Pruned:
    """Remove entries that are of no use any more, and give their space back to the disk.

    In this order: converted models unused for `older_than` days, the least recently used ones until the rest takes at
    most half of `size` bytes; paths whose files are gone, entries unused for `older_than` days, the least recently used
    entries until all takes at most `size` bytes; and damaged files that were set aside.

    Args:
        older_than: in days, with a precision of one day; None to keep entries of any age.

    Raises:
        UsageError: the cache can't be used, or a file can't be removed.
    """
    path = folder / CACHE_NAME
    oldest = 0.0 if older_than is None else time.time() - older_than * _DAY
    converted = drop_conversions(folder, room_for_conversions(size), oldest)
    remove_leftovers(folder, with_lock=False)
    size = room_for_rows(folder, size)
    before = sum(sizes_of(path).values())
    dropped = _prune_database(path, older_than, size) if path.is_file() else Counter()
    damaged = sorted(folder.glob(f"{CACHE_NAME}.damaged-*"))
    # a cache set aside just now has been counted as the cache already
    freed = max(0, before - sum(sizes_of(path).values())) + sum(map(_remove, damaged))
    freed += _freed(converted)
    return Pruned(dropped[Kind.IMAGE], dropped[Kind.TEXT], dropped[Kind.PATH], len(damaged), freed, len(converted))


def _prune_database(path: Path, older_than: float | None, size: int) -> Counter[int]:
    inode = inode_of(path)
    try:
        with contextlib.closing(open_database(path)) as database:
            return _prune_rows(database, older_than, size)
    except FAILURES as exc:
        if not is_damage(exc, path):
            raise UsageError(f"{path}: {exc}") from exc
        set_aside(path, inode, exc)
        return Counter()


def _prune_rows(database: sqlite3.Connection, older_than: float | None, size: int) -> Counter[int]:
    # flipped bytes in an index hide rows, however often they are written again
    (finding,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if finding != b"ok":
        raise DamagedError(finding.decode(errors="replace"))
    dropped = _forget_missing(database)
    if older_than is not None:
        moment = time.time() - older_than * _DAY
        while step := drop_rows(database, "used < ?", (moment,)):
            dropped += step
    dropped += make_room(database, size)
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return dropped


def _forget_missing(database: sqlite3.Connection) -> Counter[int]:
    rows = database.execute("SELECT id, key FROM entry WHERE kind = ?", (Kind.PATH,))
    gone = [(row,) for row, path in rows if _is_gone(path)]
    with database:
        database.executemany("DELETE FROM entry WHERE id = ?", gone)
    return Counter({Kind.PATH: len(gone)})


def _is_gone(path: bytes) -> bool:
    """Tell whether a file surely doesn't exist; one that can't be examined may exist."""
    try:
        os.stat(path)  # noqa: PTH116 - there is no Path of bytes
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def _advice(exc: BaseException) -> str:
    """Return the end of a message, which says what to do about a file that can't be read."""
    if is_locked(exc):
        return " by another process. Try again when that is done."
    return ". `clipcls cache clear` removes it." if is_damage(exc) else ""


def _freed(converted: Sequence[KeptConversion]) -> int:
    return sum(stored.size for stored in converted)


def _remove(file: Path) -> int:
    stamp = FileStamp.at(file)
    try:
        file.unlink(missing_ok=True)
    except OSError as exc:
        raise UsageError(f"{file}: can't be removed: {exc.strerror}") from exc
    return stamp.size if stamp else 0

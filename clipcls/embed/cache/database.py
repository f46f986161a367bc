"""The cache's file: its table, how it is opened, how it is kept small, and what happens when it is damaged."""

import logging
import os
import sqlite3
import time
import zlib
from collections import Counter
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from clipcls.records import FileStamp

logger = logging.getLogger(__name__)

CACHE_NAME = "clipcls.sqlite3"
SCHEMA_VERSION = 3
# "clc" and the version once more: a flipped byte in `user_version` must not look like a newer clipcls
_APPLICATION_ID = 0x636C6300
_PRAGMAS = (
    # seven rows of 512 features fill 91 % of such a page; pages of 4096 bytes would be half empty, and slower to read
    "page_size = 16384",
    # new rows touch pages all over the index: they are written back to it together, 64 MiB at a time
    "wal_autocheckpoint = 4000",
    "synchronous = NORMAL",
    # KiB: the pages of the index of some 100,000 pictures are read once, not once for every few hundred pictures
    "cache_size = -32768",
    "cell_size_check = ON",
)
# no value of the cache is as large, so that a damaged length is an error instead of a large allocation
_LARGEST_VALUE = 2**26
_BUSY_SECONDS = 10.0
# rows dropped in one transaction; with more of them, fewer pages of the index are written several times
_FEWEST_DROPPED, _MOST_DROPPED = 64, 10_000
# more than a row of 512 features with its path takes, so that no more rows are dropped than have to be
_BYTES_A_ROW = 4096

# `crc` is the CRC-32 of kind, key and value, since SQLite has no checksums; `used` is when the row was last read, in
# Unix seconds, to a day. A row moves to the end of the table, by a new id, when its `used` changes: the lowest ids are
# dropped first, and pages hold rows of one age, since only whole pages make room.
_SCHEMA = """CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    used INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (kind, key)
)"""

# a message that quotes damaged text can't be decoded, and that error isn't SQLite's
FAILURES = (sqlite3.Error, UnicodeDecodeError)

# ERROR, CONSTRAINT, MISMATCH and TOOBIG come from a schema or a row that nobody here wrote
_DAMAGE_CODES = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}
_MOUNTS = Path("/proc/mounts")
# types of file systems that several machines may write to, or that may hide such a one
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2",
    "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
}  # fmt: skip


class Kind(IntEnum):
    """What a row describes; each kind has its own keys, see `clipcls.embed.cache.store`."""

    TEXT = 1
    IMAGE = 2
    PATH = 3
    MODEL = 4
    FINGERPRINT = 5


class DamagedError(sqlite3.DatabaseError):
    """Damage that SQLite doesn't see."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def default_folder() -> Path | None:
    """Return the platform's cache directory for clipcls (`XDG_CACHE_HOME` is honoured on Linux).

    Returns:
        None, with a warning, where no home directory is known, as for users of a container.
    """
    try:
        return platformdirs.user_cache_path("clipcls")
    except RuntimeError:
        _warn_of_no_home()
        return None


@cache
def _warn_of_no_home() -> None:
    logger.warning("no cache in this run: no home directory is known; set HOME or XDG_CACHE_HOME, or --cache-dir")


def checksum(kind: int, key: bytes, value: bytes) -> int:
    """Return the CRC-32 of a row's kind, key and value."""
    return zlib.crc32(value, zlib.crc32(key, kind))


# ---------------------------------------------------------------------------------------------------------
# Opening


def open_database(path: Path) -> sqlite3.Connection:
    """Open a cache; create it if it is missing, empty one of an earlier version, and replace a damaged one.

    Transactions, which are made by `with`, are SQLite's immediate ones: they wait for the lock at the start, since
    waiting for it later may fail at once.

    Raises:
        sqlite3.Error: it can't be opened, or a newer clipcls wrote it.
    """
    inode = inode_of(path)
    try:
        return _connect(path)
    except FAILURES as exc:
        if not is_damage(exc, path):
            raise
        set_aside(path, inode, exc)
        return _connect(path)


def read_version(database: sqlite3.Connection) -> int:
    """Return the schema's version; 0 for a new file.

    Raises:
        sqlite3.OperationalError: a newer clipcls wrote it.
        sqlite3.DatabaseError: no clipcls wrote it.
    """
    # in one statement, since another process may write them at this moment
    version, application = database.execute(
        "SELECT user_version, application_id FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if (version, application) != (0, 0) and application != _APPLICATION_ID + version:
        raise DamagedError("it isn't a cache of clipcls")
    if version > SCHEMA_VERSION:
        raise sqlite3.OperationalError(
            f"it was written by a newer clipcls (schema {version}); use --cache-dir for another one"
        )
    return int(version)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False)
    try:
        # damaged text may not be decodable
        database.text_factory = bytes
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        version = read_version(database)
        _set_journal(database, path)
        if version != SCHEMA_VERSION:
            _create(database)
    except BaseException:
        database.close()
        raise
    return database


def _set_journal(database: sqlite3.Connection, path: Path) -> None:
    """Let several processes read while one writes, if the disk is local: they share memory for that."""
    try:
        database.execute(f"PRAGMA journal_mode = {'DELETE' if is_on_network(path.parent) else 'WAL'}")
    except sqlite3.OperationalError as exc:
        # SQLite doesn't wait for a lock here; whoever holds it is about to switch the mode for good
        if not is_locked(exc):
            raise


def is_on_network(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Tell whether other machines may write to a folder; always False on systems other than Linux.

    Args:
        mounts: the kernel's list of mounts, a line each: device, place, type and more.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    folder, depth, kind = folder.resolve(), 0, ""
    for place, found in (line.split(" ")[1:3] for line in lines):
        mount = Path(place.replace("\\040", " "))
        # of two mounts at the same place, the later one is seen
        if len(mount.parts) >= depth and folder.is_relative_to(mount):
            depth, kind = len(mount.parts), found
    # but not fuseblk, which is for local disks
    return kind in _NETWORK or kind.startswith("fuse.")


def _create(database: sqlite3.Connection) -> None:
    with database:
        database.execute("BEGIN IMMEDIATE")
        # another process may have been quicker
        if read_version(database) == SCHEMA_VERSION:
            return
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            database.execute(f'DROP TABLE "{name.decode()}"')
        database.execute(_SCHEMA)
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID + SCHEMA_VERSION}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


# ---------------------------------------------------------------------------------------------------------
# Damage


def is_damage(exc: BaseException, path: Path | None = None) -> bool:
    """Tell whether an error means that the file's content is damaged, not locked, read-only or on a full disk.

    Args:
        path: of a file that was opened for writing.
    """
    if isinstance(exc, UnicodeDecodeError) or _code(exc) in _DAMAGE_CODES:
        return True
    # a damaged byte of the header can make a file read-only; so is one that another process has set aside
    return path is not None and _code(exc) == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK)


def is_locked(exc: BaseException) -> bool:
    """Tell whether an error means only that another process held the lock for too long."""
    return _code(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def inode_of(path: Path) -> int | None:
    """Return a number that tells a file from another that takes its name; None where there is no file."""
    stamp = FileStamp.at(path)
    return stamp.inode if stamp else None


def set_aside(path: Path, inode: int | None, exc: BaseException) -> None:
    """Rename a damaged cache with its journals, so that the next one starts anew.

    Args:
        inode: of the file when it was opened; nothing is renamed if another process has replaced that file since.
        exc: the error that showed the damage.
    """
    if inode is None or inode_of(path) != inode:
        return
    aside = f"{path.name}.damaged-{time.time_ns()}-{os.getpid()}"
    logger.warning("the cache was damaged (%s); it starts anew, the old file is %s", exc, path.with_name(aside))
    # a process that has it open goes on with the renamed files
    for file in sizes_of(path):
        file.rename(file.with_name(file.name.replace(path.name, aside, 1)))


def _code(exc: BaseException) -> int:
    """Return SQLite's primary code of an error; 0 for other errors."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


# ---------------------------------------------------------------------------------------------------------
# Size


def sizes_of(path: Path) -> dict[Path, int]:
    """Return the existing files of a database, the main one last, with their sizes in bytes."""
    files = (path.with_name(f"{path.name}{suffix}") for suffix in ("-journal", "-shm", "-wal", ""))
    return {file: stamp.size for file in files if (stamp := FileStamp.at(file))}


def used_bytes(database: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use; the file may be larger by free pages, which are filled first."""
    (used,) = database.execute(
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return int(used)


def drop_rows(
    database: sqlite3.Connection, condition: str = "TRUE", values: tuple[Any, ...] = (), most: int = _MOST_DROPPED
) -> Counter[int]:
    """Drop the least recently used rows that meet a condition, at most `most`, and count them by kind."""
    query = f"SELECT id, kind FROM entry WHERE {condition} ORDER BY id LIMIT ?"
    rows = database.execute(query, (*values, most)).fetchall()
    with database:
        database.executemany("DELETE FROM entry WHERE id = ?", [row[:1] for row in rows])
    return Counter(kind for _, kind in rows)


def make_some_room(database: sqlite3.Connection, limit: int) -> Counter[int]:
    """Drop some of the least recently used rows if all take more than `limit` bytes, and count them by kind."""
    excess = used_bytes(database) - limit
    if excess <= 0:
        return Counter()
    return drop_rows(database, most=min(max(excess // _BYTES_A_ROW, _FEWEST_DROPPED), _MOST_DROPPED))


def make_room(database: sqlite3.Connection, limit: int) -> Counter[int]:
    """Drop the least recently used rows until the rest takes at most `limit` bytes, and count them by kind."""
    dropped: Counter[int] = Counter()
    while step := make_some_room(database, limit):
        dropped += step
    return dropped

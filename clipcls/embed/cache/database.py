"""The cache's file: its schema, how it is opened, and what becomes of one that is damaged."""

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from clipcls.embed.cache.filesystem import is_remote

logger = logging.getLogger(__name__)

NAME = "clipcls.sqlite3"
SCHEMA_VERSION = 2
# "clc" and the version once more: a flipped byte in `user_version` must not look like a newer clipcls
_APPLICATION_ID = 0x636C6300
# seven rows of 512 features fill 91 % of such a page; pages of 4096 bytes would be half empty, and slower to read
PAGE_SIZE = 16384
# new images touch pages all over their index: they are written back to it together, 64 MiB at a time
_CHECKPOINT_PAGES = 4000
# nothing of the cache is as large: a damaged length is an error instead of a large allocation
_LARGEST_VALUE = 2**26
_BUSY_SECONDS = 10.0
_PRAGMAS = (
    f"page_size = {PAGE_SIZE}",
    f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
    "synchronous = NORMAL",
    "secure_delete = OFF",
    "cell_size_check = ON",
)

# Enough of two hashes to find a row, in an index half as large; whether it is the row is told by `crc`, which is over
# all of both.
CONTENT_BYTES = 16
SPACE_BYTES = 8

# Values are BLOBs throughout, since a flipped byte in TEXT may not even be decodable. `crc` is the CRC-32 of the key
# and the content, because SQLite has no checksums; `used` is when the row was last read, in Unix seconds, to a day.
# A row moves to the end of its table, by a new id, when its `used` changes: the lowest ids are those to go first, and
# pages hold rows of one age, since only whole pages make room.
_SCHEMA = (
    """CREATE TABLE text (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,      -- SHA-256 of model fingerprint, precision and prompts
        used INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        truncated BLOB NOT NULL,       -- the prompts that were over the context length, one per line
        features BLOB NOT NULL         -- float32, L2-normalised
    )""",
    """CREATE TABLE image (
        id INTEGER PRIMARY KEY,
        content BLOB NOT NULL,         -- the beginning of the file's SHA-256
        space BLOB NOT NULL,           -- the beginning of what else the features depend on: model, preprocessing
        used INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        features BLOB NOT NULL,        -- float32, L2-normalised
        UNIQUE (content, space)
    )""",
    """CREATE TABLE path (
        path BLOB PRIMARY KEY,         -- absolute
        status BLOB NOT NULL,          -- size, times and inode, as they were before the file was read
        content BLOB NOT NULL,         -- SHA-256 of the file
        crc INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE fingerprint (
        path BLOB PRIMARY KEY,         -- absolute, links resolved
        status BLOB NOT NULL,
        sha256 BLOB NOT NULL,
        crc INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE TABLE model (key BLOB PRIMARY KEY, facts BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
)

# a message that quotes damaged text can't be decoded, which isn't SQLite's error any more
FAILURES = (sqlite3.Error, UnicodeDecodeError)
Failure = sqlite3.Error | UnicodeDecodeError

# ERROR, CONSTRAINT, MISMATCH and TOOBIG come from a schema or a row that nobody here wrote
_DAMAGE_CODES = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
}

# device and inode of a file; None where there is none
Identity = tuple[int, int] | None


class DamagedError(sqlite3.DatabaseError):
    """Damage that SQLite doesn't see."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def default_folder() -> Path:
    """The platform's cache directory for clipcls (`XDG_CACHE_HOME` is honoured on Linux)."""
    return platformdirs.user_cache_path("clipcls")


def open_database(path: Path) -> sqlite3.Connection:
    """Open a cache of this version, created, migrated, or begun anew where the file is damaged.

    Raises:
        sqlite3.Error: it can't be opened, or a newer clipcls wrote it.
    """
    before = identity(path)
    try:
        return _connect(path)
    except FAILURES as exc:
        if not is_damage(exc, path):
            raise
        return replace_damaged(path, before, exc)


def replace_damaged(path: Path, damaged: Identity, exc: Failure) -> sqlite3.Connection:
    """Set a damaged file aside, unless another process was quicker, and open the one that takes its place.

    Args:
        damaged: what `identity` said of the file when it was opened.
        exc: how the damage showed.
    """
    # another process may have set it aside, and be writing a sound one by now
    if damaged is not None and identity(path) == damaged:
        logger.warning("the cache was damaged (%s); it starts anew, the old file is %s", exc, _set_aside(path))
    return _connect(path)


def identity(path: Path) -> Identity:
    """What tells a file from another that takes its name."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def is_damage(exc: Failure, path: Path) -> bool:
    """Whether an error speaks against the file's content; locked, read-only or a full disk doesn't."""
    if isinstance(exc, UnicodeDecodeError):
        return True
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return False
    if code == sqlite3.SQLITE_READONLY:
        # the header says so too, by a byte
        return os.access(path, os.W_OK)
    return code & 0xFF in _DAMAGE_CODES or code == sqlite3.SQLITE_READONLY_DBMOVED


def is_locked(exc: Failure) -> bool:
    """Whether an error says no more than that somebody else was at it for longer than is waited for."""
    code = getattr(exc, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def read_version(database: sqlite3.Connection) -> int:
    """The schema's version; 0 is a file without one.

    Raises:
        sqlite3.OperationalError: a newer clipcls wrote it.
        sqlite3.DatabaseError: no clipcls wrote it.
    """
    # in one statement, since another process may write them at this moment
    version, application = database.execute(
        "SELECT user_version, application_id FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if version > SCHEMA_VERSION and application == _APPLICATION_ID + version:
        raise sqlite3.OperationalError(
            f"it was written by a newer clipcls (schema {version}); use --cache-dir for another one"
        )
    if (version, application) not in ((0, 0), (1, 0), (SCHEMA_VERSION, _APPLICATION_ID + SCHEMA_VERSION)):
        raise DamagedError("it isn't a cache of clipcls")
    return int(version)


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; the lock is waited for at the start, since a later one may fail at once."""
    # a signal may have come between the end of one and its exception's way here
    _roll_back(database)
    try:
        # inside, since a signal that comes while the lock is waited for is raised after the transaction has begun
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(*FAILURES):
            _roll_back(database)
        raise


def _roll_back(database: sqlite3.Connection) -> None:
    # some errors have rolled back already
    if database.in_transaction:
        database.execute("ROLLBACK")


def files_of(path: Path) -> list[Path]:
    """Those of a database's files that exist, the main one last."""
    candidates = (path.with_name(f"{path.name}{suffix}") for suffix in ("-journal", "-shm", "-wal", ""))
    return [file for file in candidates if file.exists()]


def size_of(path: Path) -> int:
    """Bytes of a database's files together."""
    total = 0
    for file in files_of(path):
        # the journals of another process come and go
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _set_aside(path: Path) -> Path:
    """Rename a damaged cache with its journals, so that the next one starts anew."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}-{os.getpid()}")
    for file in files_of(path):
        # a process that has it open goes on with the renamed ones; another may have been quicker
        with contextlib.suppress(FileNotFoundError):
            file.rename(file.with_name(file.name.replace(path.name, aside.name, 1)))
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _set_up(database, path.parent)
    except BaseException:
        database.close()
        raise
    return database


def _set_up(database: sqlite3.Connection, folder: Path) -> None:
    database.text_factory = bytes
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
    for pragma in _PRAGMAS:
        database.execute(f"PRAGMA {pragma}")
    version = read_version(database)
    if version == 1:
        _empty_version_1(database)
    # WAL lets several processes read while one writes, but shares memory, which only a local disk can
    # SQLite doesn't wait for a lock here; whoever holds it is about to switch the mode, which lasts
    with contextlib.suppress(sqlite3.OperationalError):
        database.execute(f"PRAGMA journal_mode = {'DELETE' if is_remote(folder) else 'WAL'}")
    if version != SCHEMA_VERSION:
        _create(database)


def _empty_version_1(database: sqlite3.Connection) -> None:
    """Drop a first version's rows, which are label embeddings and soon made again."""
    with transaction(database):
        # another process may have been quicker
        if read_version(database) != 1:
            return
        for table in ("text", "fingerprint"):
            database.execute(f"DROP TABLE IF EXISTS {table}")
        database.execute("PRAGMA user_version = 0")
    # pages of another size need a file that isn't in WAL mode; while another process is at it, they stay as they are
    with contextlib.suppress(sqlite3.OperationalError):
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("VACUUM")


def _create(database: sqlite3.Connection) -> None:
    with transaction(database):
        # another process may have been quicker
        if read_version(database) == SCHEMA_VERSION:
            return
        for statement in _SCHEMA:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID + SCHEMA_VERSION}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

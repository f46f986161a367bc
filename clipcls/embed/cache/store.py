"""The cache as a run uses it: it turns itself off, with one warning, where it can't be used."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.cache.database import (
    CONTENT_BYTES,
    FAILURES,
    NAME,
    SPACE_BYTES,
    Failure,
    Identity,
    identity,
    is_damage,
    is_locked,
    open_database,
    replace_damaged,
    transaction,
)
from clipcls.embed.cache.entries import (
    CachedImage,
    CachedText,
    is_whole,
    pack_features,
    pack_prompts,
    path_key,
    seal,
    unpack_features,
    unpack_prompts,
)
from clipcls.embed.cache.eviction import bite, drop_down_to, drop_oldest, forget_orphans, used_bytes
from clipcls.records import FileStamp

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
DEFAULT_LIMIT = 2048 * MEGABYTE
# how full it is after rows had to go, so that they go seldom
_LEFT_FULL = 0.9
# rows written between two looks at the size
CHECK_ROWS = 1000
# `used` is written no more often, so that a run that only reads writes nothing
_USED_SECONDS = 24 * 3600
# paths of one query, between which other threads get their turn
_BATCH = 512
# a disk that damages one file after the other
_MOST_REBUILDS = 2
# reads or writes that another process's lock outlasted, one after the other; each has cost its time-out
_MOST_SKIPPED = 3

_FIND_IMAGES = f"""
SELECT path.path, path.status, path.content, path.crc, image.crc, image.features, image.id, image.used
FROM path JOIN image ON image.content = substr(path.content, 1, {CONTENT_BYTES}) AND image.space = ?
WHERE path.path IN ({{}})
"""
_GET_IMAGE = "SELECT crc, features, id, used FROM image WHERE content = ? AND space = ?"
# replaced, not updated: the new row lies at the end, and to delete the old one SQLite needs its index entries, and
# notices if they are damaged
_PUT_IMAGE = "INSERT OR REPLACE INTO image (content, space, used, crc, features) VALUES (?, ?, ?, ?, ?)"
_GET_TEXT = "SELECT crc, features, truncated, id, used FROM text WHERE key = ?"
_PUT_TEXT = "INSERT OR REPLACE INTO text (key, used, crc, truncated, features) VALUES (?, ?, ?, ?, ?)"
_TOUCH = "UPDATE {table} SET id = (SELECT max(id) FROM {table}) + 1, used = ? WHERE id = ?"

# what a process has warned of already: a run opens the cache more than once
_warned: set[tuple[Path, str]] = set()

T = TypeVar("T")
Row = tuple[Any, ...]
# what waits for different locks: in WAL mode reading goes on while another process writes
Kind = Literal["read", "write"]
Features = NDArray[np.float32]


class Cache:
    """What is known of texts, images, models and files; it never fails a run. Threads may share one.

    A file that turns out to be damaged is set aside, and a new one is begun. A row that isn't as it was written
    counts as missing.

    Args:
        folder: holds `clipcls.sqlite3`; created when needed. None: nothing is kept.
        limit: bytes that the file's contents may take; the least recently used embeddings go first.
    """

    def __init__(self, folder: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        self._database: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._limit = limit
        self._rebuilds = 0
        # how many were skipped in a row
        self._skipped: dict[Kind, int] = {"read": 0, "write": 0}
        self._written = 0
        self._full = False
        if folder is None:
            return
        folder = Path(folder)
        self._path = folder.absolute() / NAME
        self._identity: Identity = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._use(open_database(self._path))
        except (OSError, *FAILURES) as exc:
            self._warn_once("cache off", "cache off: %s can't be used: %s", self._path, exc)

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        # for a moment there is none while a new file takes the place of a damaged one
        with self._lock:
            return self._database is not None

    def close(self) -> None:
        """Make room if something was written and the limit is exceeded, and let go of the file."""
        with self._lock:
            if self._written:
                self._written = 0
                self._change(self._make_room_at_the_end)
            if self._database is not None:
                self._database.close()
                self._database = None

    # ------------------------------------------------------------------------------------------- texts

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, CachedText]:
        """Those of `keys` that are cached."""
        found: dict[bytes, CachedText] = {}
        stale: list[int] = []

        def read(database: sqlite3.Connection) -> None:
            for key in keys:
                row = database.execute(_GET_TEXT, (key,)).fetchone()
                if row and is_whole(row[0], key, row[1], row[2]):
                    found[key] = CachedText(unpack_features(row[1]), unpack_prompts(row[2]))
                    stale.extend(_if_stale(row[3], row[4]))

        self._ask(read, None)
        self._touch("text", stale)
        return found

    def put_texts(self, texts: dict[bytes, CachedText]) -> None:
        """Keep embeddings, all or none of them."""
        now = int(time.time())
        rows = []
        for key, text in texts.items():
            features, truncated = pack_features(text.features), pack_prompts(text.truncated)
            rows.append((key, now, seal(key, features, truncated), truncated, features))
        self._write_embeddings(_PUT_TEXT, rows, [])

    # ------------------------------------------------------------------------------------------- images

    def find_images(
        self, paths: Sequence[str], stamps: Sequence[FileStamp | None], space: bytes
    ) -> list[Features | None]:
        """Features of files that are unchanged since they were read, None for the others.

        Args:
            stamps: for each path, of which None finds nothing.
            space: what the features depend on besides the file's content.

        Returns:
            For each path, (embed_dim,) float32, L2-normalised.
        """
        if not self.is_on:
            return [None] * len(paths)
        known = list(zip(paths, stamps, strict=True))
        found: list[Features | None] = []
        stale: list[int] = []
        for start in range(0, len(paths), _BATCH):
            files = [_key_and_stamp(path, stamp) for path, stamp in known[start : start + _BATCH]]
            rows = self._select_images([key for key, _ in files], space)
            for key, stamp in files:
                row = rows.get(key)
                if row and row[0] == stamp and _is_whole_image(key, space, row):
                    found.append(unpack_features(row[4]))
                    stale += _if_stale(row[5], row[6])
                else:
                    found.append(None)
        self._touch("image", stale)
        return found

    def get_image(self, content: bytes, space: bytes) -> Features | None:
        """Features of a file by its content.

        Args:
            content: SHA-256 of the file's bytes.
            space: what the features depend on besides the content.
        """

        def read(database: sqlite3.Connection) -> Row | None:
            row: Row | None = database.execute(_GET_IMAGE, _image_key(content, space)).fetchone()
            return row

        row = self._ask(read, None)
        if row is None or not is_whole(row[0], content, space, row[1]):
            return None
        self._touch("image", _if_stale(row[2], row[3]))
        return unpack_features(row[1])

    def put_images(self, images: Sequence[CachedImage], space: bytes) -> None:
        """Keep embeddings, all or none of them, and the paths of those whose files hadn't just changed.

        Args:
            space: what the features depend on besides the content.
        """
        now = int(time.time())
        rows = []
        for image in images:
            if image.features is None:
                continue
            features = pack_features(image.features)
            rows.append((*_image_key(image.content, space), now, seal(image.content, space, features), features))
        self._write_embeddings(_PUT_IMAGE, rows, [row for image in images for row in _path_rows(image)])

    # ------------------------------------------------------------------------------------------- models and files

    def get_model(self, key: bytes) -> str | None:
        """The facts of a model that were kept under `key`."""

        def read(database: sqlite3.Connection) -> bytes | None:
            row = database.execute("SELECT crc, facts FROM model WHERE key = ?", (key,)).fetchone()
            return row[1] if row and is_whole(row[0], key, row[1]) else None

        facts = self._ask(read, None)
        return None if facts is None else facts.decode()

    def put_model(self, key: bytes, facts: str) -> None:
        """Keep the facts of a model, JSON text that the caller made."""
        data = facts.encode()
        row = (key, data, seal(key, data))
        self._change(lambda database: database.execute("INSERT OR REPLACE INTO model VALUES (?, ?, ?)", row))

    def file_sha256(self, path: Path) -> bytes:
        """SHA-256 of a file's content, remembered as long as its size, times and inode stay the same."""
        resolved = path.resolve()
        key, status = os.fsencode(resolved), str(FileStamp.of(resolved.stat())).encode()

        def read(database: sqlite3.Connection) -> bytes | None:
            query = "SELECT crc, sha256 FROM fingerprint WHERE path = ? AND status = ?"
            row = database.execute(query, (key, status)).fetchone()
            return row[1] if row and is_whole(row[0], key, status, row[1]) else None

        known = self._ask(read, None)
        if known is not None:
            return known
        with resolved.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        row = (key, status, digest, seal(key, status, digest))
        self._change(lambda database: database.execute("INSERT OR REPLACE INTO fingerprint VALUES (?, ?, ?, ?)", row))
        return digest

    # ------------------------------------------------------------------------------------------- the file

    def _select_images(self, keys: list[bytes], space: bytes) -> dict[bytes, Row]:
        # few numbers of placeholders: each is a statement that is prepared once
        count = 1 << (len(keys) - 1).bit_length()
        query = _FIND_IMAGES.format(",".join("?" * count))
        values = [space[:SPACE_BYTES], *keys, *[b""] * (count - len(keys))]

        def read(database: sqlite3.Connection) -> dict[bytes, Row]:
            return {row[0]: row[1:] for row in database.execute(query, values)}

        return self._ask(read, {})

    def _use(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._identity = identity(self._path)

    def _ask(self, question: Callable[[sqlite3.Connection], T], otherwise: T, kind: Kind = "read") -> T:
        """What the file answers, or `otherwise` where it can't; asked again if a new file was begun."""
        with self._lock:
            while self._database is not None:
                try:
                    answer = question(self._database)
                except FAILURES as exc:
                    if self._may_skip(exc, kind):
                        break
                    self._recover(exc)
                else:
                    self._skipped[kind] = 0
                    return answer
            return otherwise

    def _change(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Write to the file, if that can be done."""
        self._ask(change, None, "write")

    def _may_skip(self, exc: Failure, kind: Kind) -> bool:
        """Whether to go on without one answer, since another process's lock outlasted the time-out."""
        if not is_locked(exc):
            return False
        self._skipped[kind] += 1
        if self._skipped[kind] >= _MOST_SKIPPED:
            return False
        self._warn_once("locked", "%s: %s by another process; some of it isn't read or written", self._path, exc)
        return True

    def _recover(self, exc: Failure) -> None:
        """Begin a new file in place of a damaged one, or turn the cache off."""
        damaged = is_damage(exc, self._path)
        if self._database is not None:
            # what can't be done within a transaction isn't the file's fault
            forbidden = getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR and self._database.in_transaction
            damaged = damaged and not forbidden
            self._database.close()
            self._database = None
        self._rebuilds += damaged
        if damaged and self._rebuilds <= _MOST_REBUILDS:
            try:
                self._use(replace_damaged(self._path, self._identity, exc))
                return
            except (OSError, *FAILURES) as second:
                exc = second  # type: ignore[assignment]
        self._warn_once("cache off", "cache off: %s: %s", self._path, exc)

    def _warn_once(self, subject: str, message: str, *details: object) -> None:
        """A process hears once of each subject for each file."""
        known = (self._path, subject) in _warned
        _warned.add((self._path, subject))
        logger.log(logging.DEBUG if known else logging.WARNING, message, *details)

    def _write_embeddings(self, statement: str, rows: Sequence[Row], paths: Sequence[Row]) -> None:
        def write(database: sqlite3.Connection) -> None:
            with transaction(database):
                database.executemany(statement, rows)
                database.executemany("INSERT OR REPLACE INTO path VALUES (?, ?, ?, ?)", paths)
            before, self._written = self._written, self._written + max(len(rows), len(paths))
            if before // CHECK_ROWS != self._written // CHECK_ROWS:
                self._make_some_room(database)

        if rows or paths:
            self._change(write)

    def _touch(self, table: str, ids: Sequence[int]) -> None:
        """Note that rows were used, and move them to the end of their table."""

        def write(database: sqlite3.Connection) -> None:
            with transaction(database):
                database.executemany(_TOUCH.format(table=table), [(now, row) for row in sorted(ids)])

        now = int(time.time())
        if ids:
            self._change(write)

    def _make_some_room(self, database: sqlite3.Connection) -> None:
        """One step, since this is in the middle of a run; it goes on at the next look while there is too much."""
        used, left = used_bytes(database), int(self._limit * _LEFT_FULL)
        self._full = used > (left if self._full else self._limit)
        if self._full:
            drop_oldest(database, bite(used - left), 2 * CHECK_ROWS)

    def _make_room_at_the_end(self, database: sqlite3.Connection) -> None:
        dropped = False
        if self._full or used_bytes(database) > self._limit:
            dropped = bool(drop_down_to(database, int(self._limit * _LEFT_FULL)))
        if dropped or self._full:
            forget_orphans(database)
            self._full = False


def _key_and_stamp(path: str, stamp: FileStamp | None) -> tuple[bytes, bytes]:
    """A path's key in the index, and its stamp there; empty ones find nothing."""
    try:
        return (path_key(path), str(stamp).encode()) if stamp else (b"", b"")
    except (OSError, ValueError):
        return b"", b""


def _image_key(content: bytes, space: bytes) -> tuple[bytes, bytes]:
    return content[:CONTENT_BYTES], space[:SPACE_BYTES]


def _path_rows(image: CachedImage) -> Iterator[Row]:
    """The row of the path index, if the path may be remembered."""
    # a working directory that is gone, a path that no file can have: the embedding is kept all the same
    with contextlib.suppress(OSError, ValueError):
        if image.stamp is not None and image.stamp.is_settled(image.seen):
            key, stamp = path_key(image.path), str(image.stamp).encode()
            yield key, stamp, image.content, seal(key, stamp, image.content)


def _is_whole_image(key: bytes, space: bytes, row: Row) -> bool:
    status, content, path_crc, image_crc, features = row[:5]
    return is_whole(path_crc, key, status, content) and is_whole(image_crc, content, space, features)


def _if_stale(row: object, used: object) -> list[int]:
    """The row's id if its use has to be noted."""
    fresh = isinstance(used, int) and time.time() - used < _USED_SECONDS
    return [row] if isinstance(row, int) and not fresh else []

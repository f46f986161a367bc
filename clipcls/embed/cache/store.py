"""The cache as a run uses it: it turns itself off, with one warning, if its file can't be used."""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.cache.database import (
    CACHE_NAME,
    FAILURES,
    Kind,
    checksum,
    inode_of,
    is_damage,
    is_locked,
    make_room,
    make_some_room,
    open_database,
    set_aside,
)
from clipcls.embed.cache.entries import (
    CachedImage,
    CachedText,
    image_key,
    pack_features,
    pack_place,
    pack_text,
    path_key,
    unpack_features,
    unpack_place,
    unpack_text,
)
from clipcls.models.runtime.conversions import CONVERSIONS_NAME, stored_conversions
from clipcls.records import FileStamp

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
DEFAULT_LIMIT = 2048 * MEGABYTE
# rows written between two checks of the size
CHECK_ROWS = 2000
# `used` is updated no more often, so that most runs that only read write nothing
_USED_SECONDS = 24 * 3600
# keys in one query; between queries other threads get their turn
_BATCH = 512
# the cache is given up after so many waits in vain for another process's lock, since each takes its full time
_MOST_WAITS = 3

_GET = "SELECT key, value, crc, id, used FROM entry WHERE kind = ? AND key IN ({})"
# replaced, not updated: the new row lies at the end, and SQLite deletes the old one by its index entries, and so
# notices if they are damaged
_PUT = "INSERT OR REPLACE INTO entry (kind, key, used, crc, value) VALUES (?, ?, ?, ?, ?)"
_TOUCH = "UPDATE entry SET id = (SELECT max(id) FROM entry) + 1, used = ? WHERE id = ?"

_T = TypeVar("_T")


class Cache:
    """Keeps what is known of texts, images, models and files. It never fails a run, and threads may share one.

    A file that turns out to be damaged is set aside, and a new one is begun. A damaged row counts as missing.

    Args:
        folder: holds `clipcls.sqlite3`; created when needed. None to keep nothing.
        limit: bytes that the file's contents may take; the least recently used rows are dropped first.
    """

    def __init__(self, folder: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        self._database: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._limit = limit
        self._waits = self._written = 0
        self._is_replaced = False
        self._folder = None if folder is None else Path(folder).absolute()
        if self._folder is None:
            return
        self._path = self._folder / CACHE_NAME
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, *FAILURES) as exc:
            _warn_once(f"cache off: {self._path} can't be used: {exc}")

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        # without the lock, the moment would show in which a new file replaces a damaged one
        with self._lock:
            return self._database is not None

    @property
    def conversions(self) -> tuple[Path, int] | None:
        """The folder beside the file that converted models are kept in, and the bytes that they may take."""
        if self._folder is None:
            return None
        return self._folder / CONVERSIONS_NAME, room_for_conversions(self._limit)

    def close(self) -> None:
        """Drop rows over the limit if any were written, and close the file."""
        with self._lock:
            if self._written:
                self._ask(lambda database: make_room(database, room_for_rows(self._path.parent, self._limit)), None)
            if self._database is not None:
                self._database.close()
                self._database = None

    # ------------------------------------------------------------------------------------------- texts

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, CachedText]:
        """Return the cached texts among `keys`, by key."""
        return {key: unpack_text(value) for key, value in self._get(Kind.TEXT, keys).items()}

    def put_texts(self, texts: dict[bytes, CachedText]) -> None:
        """Keep embeddings, all or none of them."""
        self._put((Kind.TEXT, key, pack_text(text)) for key, text in texts.items())

    # ------------------------------------------------------------------------------------------- images

    def find_images(
        self, paths: Sequence[str], stamps: Sequence[FileStamp | None], space: bytes
    ) -> list[NDArray[np.float32] | None]:
        """Return the cached features of files that are unchanged since they were read.

        Args:
            stamps: of the files; one without a stamp isn't found.
            space: hash of all that the features depend on besides the file's content.

        Returns:
            For each path, (embed_dim,) float32, L2-normalised, or None.
        """
        places = [path_key(path) if stamp else b"" for path, stamp in zip(paths, stamps, strict=True)]
        known = self._get(Kind.PATH, places)
        contents = [unpack_place(known.get(place), stamp) for place, stamp in zip(places, stamps, strict=True)]
        keys = [content and image_key(content, space) for content in contents]
        found = self._get(Kind.IMAGE, [key for key in keys if key])
        return [unpack_features(found[key]) if key in found else None for key in keys]

    def get_image(self, content: bytes, space: bytes) -> NDArray[np.float32] | None:
        """Return the features of a file by its content.

        Args:
            content: SHA-256 of the file's bytes.
            space: hash of all that the features depend on besides the content.
        """
        values = self._get(Kind.IMAGE, [image_key(content, space)]).values()
        return next(map(unpack_features, values), None)

    def put_images(self, images: Sequence[CachedImage], space: bytes) -> None:
        """Keep embeddings, all or none of them, and the paths of files that hadn't just changed when they were read.

        Args:
            space: hash of all that the features depend on besides the content.
        """
        rows = []
        for image in images:
            if image.features is not None:
                rows.append((Kind.IMAGE, image_key(image.content, space), pack_features(image.features)))
            key = path_key(image.path)
            if key and image.stamp is not None and image.stamp.is_settled(image.seen):
                rows.append((Kind.PATH, key, pack_place(image.stamp, image.content)))
        self._put(rows)

    # ------------------------------------------------------------------------------------------- models and files

    def get_model(self, key: bytes) -> str | None:
        """Return the facts of a model that `put_model` kept under `key`, or None."""
        return next((value.decode() for value in self._get(Kind.MODEL, [key]).values()), None)

    def put_model(self, key: bytes, facts: str) -> None:
        """Keep the facts of a model, as JSON text."""
        self._put([(Kind.MODEL, key, facts.encode())])

    def file_sha256(self, path: Path) -> bytes:
        """Return the SHA-256 of a file's content, remembered as long as its stamp stays the same."""
        resolved = path.resolve()
        key, stamp = os.fsencode(resolved), str(FileStamp.of(resolved.stat())).encode()
        known, _, digest = self._get(Kind.FINGERPRINT, [key]).get(key, b"").partition(b":")
        if known == stamp:
            return digest
        with resolved.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self._put([(Kind.FINGERPRINT, key, stamp + b":" + digest)])
        return digest

    # ------------------------------------------------------------------------------------------- the file

    def _get(self, kind: Kind, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of the keys that have an undamaged row, and note that the rows were used."""
        values: dict[bytes, bytes] = {}
        stale: list[int] = []
        oldest = time.time() - _USED_SECONDS
        for start in range(0, len(keys), _BATCH):
            for key, value, crc, row, used in self._select(kind, keys[start : start + _BATCH]):
                # damage may change the types of values too
                if type(key) is type(value) is bytes and crc == checksum(kind, key, value):
                    values[key] = value
                    if not isinstance(used, int) or used <= oldest:
                        stale.append(row)
        if stale:
            rows = [(int(time.time()), row) for row in sorted(stale)]
            self._write(lambda database: database.executemany(_TOUCH, rows))
        return values

    def _select(self, kind: Kind, keys: Sequence[bytes]) -> list[tuple[object, object, object, int, object]]:
        # a power of two placeholders, so that few different statements have to be prepared
        count = 1 << (len(keys) - 1).bit_length()
        query = _GET.format(",".join("?" * count))
        values = [kind, *keys, *[b""] * (count - len(keys))]
        return self._ask(lambda database: database.execute(query, values).fetchall(), [])

    def _put(self, entries: Iterable[tuple[Kind, bytes, bytes]]) -> None:
        """Keep values, all or none of them; after every CHECK_ROWS rows, drop some of the oldest over the limit."""
        now = int(time.time())
        rows = [(kind, key, now, checksum(kind, key, value), value) for kind, key, value in entries]
        if not rows:
            return
        self._write(lambda database: database.executemany(_PUT, rows))
        before, self._written = self._written, self._written + len(rows)
        if before // CHECK_ROWS != self._written // CHECK_ROWS:
            self._ask(lambda database: make_some_room(database, room_for_rows(self._path.parent, self._limit)), None)

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Change the file in one transaction, if it can be changed."""

        def write(database: sqlite3.Connection) -> None:
            with database:
                change(database)

        self._ask(write, None)

    def _ask(self, question: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Return the result of a question to the database, or `otherwise` if it fails, even with a new file."""
        with self._lock:
            while self._database is not None:
                try:
                    return question(self._database)
                except FAILURES as exc:
                    self._waits += is_locked(exc)
                    if is_locked(exc) and self._waits < _MOST_WAITS:
                        _warn_once(f"{self._path}: {exc} by another process; some of it isn't read or written")
                        break
                    self._recover(self._database, exc)
            return otherwise

    def _open(self) -> None:
        self._database = open_database(self._path)
        self._inode = inode_of(self._path)

    def _recover(self, database: sqlite3.Connection, exc: BaseException) -> None:
        """Replace a damaged file by a new one, but only once; in all other cases turn the cache off."""
        database.close()
        self._database = None
        if is_damage(exc, self._path) and not self._is_replaced:
            self._is_replaced = True
            try:
                set_aside(self._path, self._inode, exc)
                self._open()
                return
            except (OSError, *FAILURES) as second:
                exc = second
        _warn_once(f"cache off: {self._path}: {exc}")


def room_for_conversions(limit: int) -> int:
    """Return how many of a cache's bytes converted models may take: one half."""
    return limit // 2


def room_for_rows(folder: Path, limit: int) -> int:
    """Return how many of a cache's bytes its rows may take: what converted models leave, at least the other half."""
    converted = sum(stored.size for stored in stored_conversions(folder))
    return limit - min(converted, room_for_conversions(limit))


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)

"""The cache as a run uses it: it turns itself off, with one warning, where it can't be used."""

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
from clipcls.records import FileStamp

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
DEFAULT_LIMIT = 2048 * MEGABYTE
# rows written between two looks at the size
CHECK_ROWS = 2000
# `used` is written no more often, so that a run that only reads writes nothing
_USED_SECONDS = 24 * 3600
# keys of one query, between which other threads get their turn
_BATCH = 512
# times that another process's lock outlasted what is waited for; each has cost that
_MOST_WAITS = 3

_GET = "SELECT key, value, crc, id, used FROM entry WHERE kind = ? AND key IN ({})"
# replaced, not updated: the new row lies at the end, and to delete the old one SQLite needs its index entries, and
# notices if they are damaged
_PUT = "INSERT OR REPLACE INTO entry (kind, key, used, crc, value) VALUES (?, ?, ?, ?, ?)"
_TOUCH = "UPDATE entry SET id = (SELECT max(id) FROM entry) + 1, used = ? WHERE id = ?"

_T = TypeVar("_T")


class Cache:
    """What is known of texts, images, models and files; it never fails a run. Threads may share one.

    A file that turns out to be damaged is set aside, and a new one is begun. A row that isn't as it was written
    counts as missing.

    Args:
        folder: holds `clipcls.sqlite3`; created when needed. None: nothing is kept.
        limit: bytes that the file's contents may take; what was least recently used goes first.
    """

    def __init__(self, folder: Path | None, limit: int = DEFAULT_LIMIT) -> None:
        self._database: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._limit = limit
        self._waits = self._written = 0
        self._is_replaced = False
        if folder is None:
            return
        self._path = Path(folder).absolute() / CACHE_NAME
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, *FAILURES) as exc:
            _warn_once(f"cache off: {self._path} can't be used: {exc}")

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
                self._ask(lambda database: make_room(database, self._limit), None)
            if self._database is not None:
                self._database.close()
                self._database = None

    # ------------------------------------------------------------------------------------------- texts

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, CachedText]:
        """Return those of `keys` that are cached."""
        return {key: unpack_text(value) for key, value in self._get(Kind.TEXT, keys).items()}

    def put_texts(self, texts: dict[bytes, CachedText]) -> None:
        """Keep embeddings, all or none of them."""
        self._put((Kind.TEXT, key, pack_text(text)) for key, text in texts.items())

    # ------------------------------------------------------------------------------------------- images

    def find_images(
        self, paths: Sequence[str], stamps: Sequence[FileStamp | None], space: bytes
    ) -> list[NDArray[np.float32] | None]:
        """Return the features of files that are unchanged since they were read, None for the others.

        Args:
            stamps: for each path, of which None finds nothing.
            space: what the features depend on besides the file's content.

        Returns:
            For each path, (embed_dim,) float32, L2-normalised.
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
            space: what the features depend on besides the content.
        """
        values = self._get(Kind.IMAGE, [image_key(content, space)]).values()
        return next(map(unpack_features, values), None)

    def put_images(self, images: Sequence[CachedImage], space: bytes) -> None:
        """Keep embeddings, all or none of them, and the paths of those whose files hadn't just changed.

        Args:
            space: what the features depend on besides the content.
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
        """Return the facts of a model that were kept under `key`."""
        return next((value.decode() for value in self._get(Kind.MODEL, [key]).values()), None)

    def put_model(self, key: bytes, facts: str) -> None:
        """Keep the facts of a model, JSON text that the caller made."""
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
        """Return the values of those keys whose rows are there and whole, and note that they were used."""
        values: dict[bytes, bytes] = {}
        stale: list[int] = []
        oldest = time.time() - _USED_SECONDS
        for start in range(0, len(keys), _BATCH):
            for key, value, crc, row, used in self._select(kind, keys[start : start + _BATCH]):
                # damage may change the types of values too
                if isinstance(key, bytes) and isinstance(value, bytes) and crc == checksum(kind, key, value):
                    values[key] = value
                    if not isinstance(used, int) or used <= oldest:
                        stale.append(row)
        if stale:
            rows = [(int(time.time()), row) for row in sorted(stale)]
            self._write(lambda database: database.executemany(_TOUCH, rows))
        return values

    def _select(self, kind: Kind, keys: Sequence[bytes]) -> list[tuple[object, object, object, int, object]]:
        # few numbers of placeholders: each is a statement that is prepared once
        count = 1 << (len(keys) - 1).bit_length()
        query = _GET.format(",".join("?" * count))
        values = [kind, *keys, *[b""] * (count - len(keys))]
        return self._ask(lambda database: database.execute(query, values).fetchall(), [])

    def _put(self, entries: Iterable[tuple[Kind, bytes, bytes]]) -> None:
        """Keep values, all or none of them; every so often, some of the oldest make room for them."""
        now = int(time.time())
        rows = [(kind, key, now, checksum(kind, key, value), value) for kind, key, value in entries]
        if not rows:
            return
        self._write(lambda database: database.executemany(_PUT, rows))
        before, self._written = self._written, self._written + len(rows)
        if before // CHECK_ROWS != self._written // CHECK_ROWS:
            self._ask(lambda database: make_some_room(database, self._limit), None)

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Change the file in one transaction, if that can be done."""

        def write(database: sqlite3.Connection) -> None:
            with database:
                change(database)

        self._ask(write, None)

    def _ask(self, question: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        """Return what the file answers, or `otherwise` where it can't; asked again if a new file was begun."""
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
        """Begin a new file in place of a damaged one, but no more than once, or turn the cache off."""
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


@cache
def _warn_once(message: str) -> None:
    """Say it once, however often a process opens the cache."""
    logger.warning(message)

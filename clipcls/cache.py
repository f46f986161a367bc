"""The cache: text features, and the fingerprints of model files, in one SQLite file."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from clipcls.errors import UsageError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS text (
    key BLOB PRIMARY KEY,        -- SHA-256 of model fingerprint, precision and prompts
    features BLOB NOT NULL,      -- float32, L2-normalised
    truncated TEXT NOT NULL      -- the prompts that were over the context length, one per line
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fingerprint (
    path BLOB PRIMARY KEY,
    status TEXT NOT NULL,        -- size, times and inode, as they were when the file was read
    sha256 BLOB NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class CachedText:
    """The averaged embedding of one label's prompts.

    Attributes:
        features: (embed_dim,) float32, L2-normalised.
        truncated: those of its prompts that the model saw only the beginning of.
    """

    features: NDArray[np.float32]
    truncated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What `clipcls cache info` shows; size in bytes."""

    path: Path
    exists: bool
    size: int = 0
    texts: int = 0
    fingerprints: int = 0


def default_folder() -> Path:
    """The platform's cache directory for clipcls (`XDG_CACHE_HOME` is honoured on Linux)."""
    return platformdirs.user_cache_path("clipcls")


def text_key(model_fingerprint: bytes, precision: str, prompts: Sequence[str]) -> bytes:
    """SHA-256 over all that the averaged embedding of `prompts` depends on."""
    digest = hashlib.sha256(model_fingerprint + precision.encode())
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


class Cache:
    """A cache that turns itself off, with one warning, where it can't be used; it never fails a run.

    Args:
        folder: holds `clipcls.sqlite3`; created when needed. None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._database: sqlite3.Connection | None = None
        if folder is None:
            return
        folder = Path(folder)
        self._path = folder / "clipcls.sqlite3"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = _open(self._path)
        except (OSError, sqlite3.Error) as exc:
            logger.warning("cache off: %s can't be used: %s", self._path, exc)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, CachedText]:
        """Those of `keys` that are cached."""
        found: dict[bytes, CachedText] = {}
        with self._errors_turn_it_off() as database:
            if database:
                for key in keys:
                    row = database.execute("SELECT features, truncated FROM text WHERE key = ?", (key,)).fetchone()
                    # a row of another shape is damage that SQLite can't see
                    if row and isinstance(row[0], bytes) and len(row[0]) % 4 == 0:
                        features = np.frombuffer(row[0], dtype=np.float32)
                        found[key] = CachedText(features, tuple(row[1].split("\n")) if row[1] else ())
        return found

    def put_texts(self, texts: dict[bytes, CachedText]) -> None:
        """Keep embeddings, all or none of them."""
        rows = [
            (key, text.features.tobytes(), "\n".join(" ".join(prompt.split()) for prompt in text.truncated))
            for key, text in texts.items()
        ]
        with self._errors_turn_it_off() as database:
            if database:
                with database:
                    database.executemany("INSERT OR REPLACE INTO text VALUES (?, ?, ?)", rows)

    def file_sha256(self, path: Path) -> bytes:
        """SHA-256 of a file's content, remembered as long as its size, times and inode stay the same."""
        resolved = path.resolve()
        facts = resolved.stat()
        # models of one architecture have one size, and images of a system may give all files one mtime
        status = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
        name = os.fsencode(resolved)
        with self._errors_turn_it_off() as database:
            if database:
                row = database.execute(
                    "SELECT sha256 FROM fingerprint WHERE path = ? AND status = ?", (name, status)
                ).fetchone()
                if row:
                    return bytes(row[0])
        with resolved.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with self._errors_turn_it_off() as database:
            if database:
                with database:
                    database.execute("INSERT OR REPLACE INTO fingerprint VALUES (?, ?, ?)", (name, status, digest))
        return digest

    @contextlib.contextmanager
    def _errors_turn_it_off(self) -> Iterator[sqlite3.Connection | None]:
        try:
            yield self._database
        except sqlite3.Error as exc:
            logger.warning("cache off: %s: %s", self._path, exc)
            self.close()
            if _is_damage(exc):
                # it may be gone already, or another process may have been quicker
                with contextlib.suppress(OSError):
                    _set_aside(self._path)


def info(folder: Path) -> CacheInfo:
    """What is in the cache, without creating it.

    Raises:
        UsageError: the file is there but isn't a cache of this version.
    """
    path = folder / "clipcls.sqlite3"
    if not path.is_file():
        return CacheInfo(path, exists=False)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            texts, fingerprints = (
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("text", "fingerprint")
            )
    except sqlite3.Error as exc:
        raise UsageError(f"{path}: {exc}. `clipcls cache clear` removes it.") from exc
    return CacheInfo(path, True, sum(file.stat().st_size for file in _files(path)), texts, fingerprints)


def clear(folder: Path) -> int:
    """Remove the cache, damaged ones that were set aside included, and return how many bytes that freed.

    Raises:
        UsageError: a file can't be removed.
    """
    freed = 0
    for file in sorted(folder.glob("clipcls.sqlite3*")):
        try:
            size = file.stat().st_size
            file.unlink()
        except OSError as exc:
            raise UsageError(f"{file}: can't be removed: {exc.strerror}") from exc
        freed += size
    return freed


def _files(path: Path) -> list[Path]:
    names = (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal")
    return [path.with_name(name) for name in names if path.with_name(name).exists()]


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.Error as exc:
        if not _is_damage(exc):
            raise
        logger.warning("the cache was damaged (%s); it starts anew, the old file is %s", exc, _set_aside(path))
        return _connect(path)


def _is_damage(exc: sqlite3.Error) -> bool:
    """Whether an error speaks against the file's content; locked, read-only or a full disk doesn't."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(path: Path) -> Path:
    """Rename a damaged cache, so that the next one starts anew."""
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    path.rename(aside)
    for leftover in _files(path):
        leftover.unlink()
    return aside


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10.0)
    try:
        # WAL lets several processes read while one writes; it needs a local disk, else SQLite stays as it was
        # SQLite doesn't wait for a lock here; whoever holds it is about to switch the mode, which lasts
        with contextlib.suppress(sqlite3.OperationalError):
            database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute("BEGIN IMMEDIATE")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise sqlite3.OperationalError(
                    f"it was written by a newer clipcls (schema {version}); use --cache-dir for another one"
                )
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        database.close()
        raise
    return database

"""What leaves the cache: the least recently used rows, and paths that lead nowhere any more."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from clipcls.cache.database import CONTENT_BYTES, transaction

# rows of one transaction; the more there are, the fewer pages are written several times
STEP = 10_000

_OLDEST = """
SELECT 'image' AS kind, id, used, length(features) FROM image
UNION ALL SELECT 'text', id, used, length(features) FROM text
ORDER BY used LIMIT ?
"""
_NEXT_PATHS = "SELECT path FROM {table} WHERE path > ? ORDER BY path LIMIT ?"
_ORPHANS = f"""
SELECT path, NOT EXISTS (SELECT 1 FROM image WHERE image.content = substr(path.content, 1, {CONTENT_BYTES}))
FROM path WHERE path > ? ORDER BY path LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Numbers of embeddings that were dropped."""

    images: int = 0
    texts: int = 0

    def __add__(self, other: "Dropped") -> "Dropped":
        return Dropped(self.images + other.images, self.texts + other.texts)

    def __bool__(self) -> bool:
        return self.images + self.texts > 0


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something; the file may be larger, its free pages are filled first."""
    (used,) = database.execute(
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return int(used)


def drop_oldest(database: sqlite3.Connection, size: int, most: int = STEP) -> Dropped:
    """Drop the least recently used embeddings, of `size` bytes together, but no more than `most`."""
    images: list[tuple[int]] = []
    texts: list[tuple[int]] = []
    with transaction(database):
        for kind, row, _, length in database.execute(_OLDEST, (most,)).fetchall():
            if size <= 0:
                break
            (images if kind == b"image" else texts).append((row,))
            size -= length
        database.executemany("DELETE FROM image WHERE id = ?", images)
        database.executemany("DELETE FROM text WHERE id = ?", texts)
    return Dropped(len(images), len(texts))


def drop_down_to(database: sqlite3.Connection, size: int) -> Dropped:
    """Drop the least recently used embeddings until the rest takes at most `size` bytes."""
    dropped = Dropped()
    while (excess := used_bytes(database) - size) > 0:
        step = drop_oldest(database, excess)
        if not step:
            break
        dropped += step
    return dropped


def drop_unused_since(database: sqlite3.Connection, moment: float) -> Dropped:
    """Drop the embeddings that were last used before `moment`, in Unix seconds."""
    counts = []
    for table in ("image", "text"):
        count = 0
        while True:
            with transaction(database):
                step = database.execute(
                    f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE used < ? LIMIT ?)", (moment, STEP)
                ).rowcount
            count += step
            if step < STEP:
                break
        counts.append(count)
    return Dropped(*counts)


def forget_orphans(database: sqlite3.Connection) -> int:
    """Forget the paths of images without embeddings, and return how many they were."""
    return _sweep(database, "path", _ORPHANS, lambda _, orphaned: bool(orphaned))


def forget_paths(database: sqlite3.Connection, table: str, is_gone: Callable[[bytes], bool]) -> int:
    """Forget the paths for which `is_gone` holds, and return how many they were."""
    return _sweep(database, table, _NEXT_PATHS.format(table=table), is_gone)


def _sweep(database: sqlite3.Connection, table: str, query: str, is_gone: Callable[..., bool]) -> int:
    """Go through a table in the order of its paths, a step at a time."""
    forgotten, last = 0, b""
    while rows := database.execute(query, (last, STEP)).fetchall():
        gone = [row[:1] for row in rows if is_gone(*row)]
        if gone:
            with transaction(database):
                database.executemany(f"DELETE FROM {table} WHERE path = ?", gone)
        forgotten += len(gone)
        if not isinstance(rows[-1][0], bytes) or rows[-1][0] <= last:
            # damage; going on might never end
            break
        last = rows[-1][0]
    return forgotten

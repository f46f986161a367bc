"""What leaves the cache: the least recently used rows, and paths that lead nowhere any more."""

import heapq
import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from clipcls.embed.cache.database import CONTENT_BYTES, PAGE_SIZE, transaction

# rows of one transaction; the more there are, the fewer pages are written several times
STEP = 10_000

# in the order of their ids, which is that of their use
_OLDEST = """
SELECT '{table}', id, ifnull(CAST(used AS INTEGER), 0), ifnull(length(features), 0) FROM {table} ORDER BY id LIMIT ?
"""
_UNUSED = "SELECT id FROM {table} WHERE id > ? AND used < ? ORDER BY id LIMIT ?"
_FEATURE_BYTES = """
SELECT total(bytes) FROM (SELECT length(features) AS bytes FROM image UNION ALL SELECT length(features) FROM text)
"""
_NEXT_PATHS = "SELECT path FROM {table} WHERE path > ? ORDER BY path LIMIT ?"
_ORPHANS = f"""
SELECT path, NOT EXISTS (SELECT 1 FROM image WHERE image.content = substr(path.content, 1, {CONTENT_BYTES}))
FROM path WHERE path > ? ORDER BY path LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Numbers of embeddings that were dropped, and their bytes."""

    images: int = 0
    texts: int = 0
    size: int = 0

    def __add__(self, other: "Dropped") -> "Dropped":
        return Dropped(self.images + other.images, self.texts + other.texts, self.size + other.size)

    def __bool__(self) -> bool:
        return self.images + self.texts > 0


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something; the file may be larger, its free pages are filled first."""
    (used,) = database.execute(
        "SELECT (page_count - freelist_count) * page_size"
        " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return int(used)


def feature_bytes(database: sqlite3.Connection) -> int:
    """Bytes of all embeddings by themselves; every page of them is read."""
    (total,) = database.execute(_FEATURE_BYTES).fetchone()
    return int(total)


def bite(excess: int) -> int:
    """How many bytes of embeddings to drop at once where pages of `excess` bytes have to go."""
    # a page may be half empty since rows were moved to the end, and goes when half as much was dropped
    return max(excess // 2, PAGE_SIZE)


def drop_oldest(database: sqlite3.Connection, size: int, most: int = STEP) -> Dropped:
    """Drop the least recently used embeddings, of `size` bytes together, but no more than `most`."""
    with transaction(database):
        images, texts, total = _oldest(database, size, most)
        database.executemany("DELETE FROM image WHERE id = ?", images)
        database.executemany("DELETE FROM text WHERE id = ?", texts)
    return Dropped(len(images), len(texts), total)


def drop_bytes(database: sqlite3.Connection, size: int) -> Dropped:
    """Drop the least recently used embeddings, of `size` bytes together."""
    dropped = Dropped()
    while dropped.size < size and (step := drop_oldest(database, size - dropped.size)):
        dropped += step
    return dropped


def drop_down_to(database: sqlite3.Connection, size: int) -> Dropped:
    """Drop the least recently used embeddings until the rest takes at most `size` bytes."""
    dropped = Dropped()
    while (excess := used_bytes(database) - size) > 0:
        step = drop_oldest(database, bite(excess))
        if not step:
            break
        dropped += step
    return dropped


def drop_unused_since(database: sqlite3.Connection, moment: float) -> Dropped:
    """Drop the embeddings that were last used before `moment`, in Unix seconds."""
    counts = {"image": 0, "text": 0}
    for table in counts:
        last = 0
        while rows := database.execute(_UNUSED.format(table=table), (last, moment, STEP)).fetchall():
            with transaction(database):
                database.executemany(f"DELETE FROM {table} WHERE id = ?", rows)
            counts[table] += len(rows)
            last = rows[-1][0]
    return Dropped(counts["image"], counts["text"])


def drop_to_fit(database: sqlite3.Connection, size: int) -> tuple[Dropped, int]:
    """Drop the least recently used embeddings, and their paths, until the compacted file takes at most `size` bytes.

    Returns:
        What was dropped, and how many paths were forgotten.
    """
    # those that wouldn't fit by themselves need no space for a compacted copy
    dropped, paths = drop_bytes(database, feature_bytes(database) - size), forget_orphans(database)
    database.execute("VACUUM")
    while (used := used_bytes(database)) > size:
        # what takes space beside the embeddings, pages' remainders, indexes and paths, is in proportion to them
        features = feature_bytes(database)
        excess = features * (used - size) // used
        # a little more, since each round writes the whole file
        step = drop_bytes(database, excess + excess // 64 + PAGE_SIZE)
        if not step:
            break
        dropped += step
        paths += forget_orphans(database)
        database.execute("VACUUM")
    return dropped, paths


def forget_orphans(database: sqlite3.Connection) -> int:
    """Forget the paths of images without embeddings, and return how many they were."""
    return _sweep(database, "path", _ORPHANS, lambda _, orphaned: bool(orphaned))


def forget_paths(database: sqlite3.Connection, table: str, is_gone: Callable[[bytes], bool]) -> int:
    """Forget the paths for which `is_gone` holds, and return how many they were."""
    return _sweep(database, table, _NEXT_PATHS.format(table=table), is_gone)


def _oldest(database: sqlite3.Connection, size: int, most: int) -> tuple[list[tuple[int]], list[tuple[int]], int]:
    """The ids of the least recently used images and texts, of `size` bytes together, and their bytes."""
    images: list[tuple[int]] = []
    texts: list[tuple[int]] = []
    total = 0
    tables = [database.execute(_OLDEST.format(table=table), (most,)) for table in ("image", "text")]
    # each table's rows go in its order, even if a clock was wrong once; which table's, by the use of the first of each
    for table, row, _, length in itertools.islice(heapq.merge(*tables, key=lambda row: row[2]), most):
        if total >= size:
            break
        (images if table == b"image" else texts).append((row,))
        total += length
    return images, texts, total


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

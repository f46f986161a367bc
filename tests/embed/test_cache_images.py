"""Features of images in the cache: found by path or by content, and the oldest leave first."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_cache import NAME, text, warnings_in

from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.cache.eviction import used_bytes
from clipcls.embed.cache.prune import info
from clipcls.embed.cache.store import MEGABYTE, Cache, Features
from clipcls.records import FileStamp

SPACE = b"s" * 32
DAY = 24 * 3600


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written may be known by their times."""
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what the time is."""
    return lambda moment: monkeypatch.setattr(time, "time", lambda: moment)


def image(path: Path | str, seed: int = 0, *, seen: float | None = None, dim: int = 16) -> CachedImage:
    features = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    content = hashlib.sha256(Path(path).read_bytes()).digest()
    return CachedImage(str(path), FileStamp.of(Path(path).stat()), content, features, seen)


def unnamed(i: int, dim: int = 512) -> CachedImage:
    return CachedImage(f"/nowhere/{i}", None, hashlib.sha256(b"%d" % i).digest(), np.full(dim, i, np.float32))


def written(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:03d}.jpg" for i in range(count)]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def found(cache: Cache, paths: Sequence[Path | str], space: bytes = SPACE) -> list[Features | None]:
    return cache.find_images([str(path) for path in paths], [FileStamp.at(path) for path in paths], space)


def finds(cache: Cache, path: Path | str, space: bytes = SPACE) -> bool:
    return found(cache, [path], space)[0] is not None


def sql(folder: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    database = sqlite3.connect(folder / NAME)
    with database:
        rows = database.execute(statement, values).fetchall()
    database.close()
    return rows


# ------------------------------------------------------------------------------------------- finding


@pytest.mark.usefixtures("settled")
def test_images_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # more than one query's
    files = written(tmp_path / "files", 600)
    images = [image(file, i) for i, file in enumerate(files)]
    cache = Cache(tmp_path / "cache")
    cache.put_images(images, SPACE)
    cache.close()
    cache = Cache(tmp_path / "cache")
    answers = found(cache, [*files, "missing", files[0], "nul\0"])
    for expected, features in zip([*images, None, images[0], None], answers, strict=True):
        assert (features is None) == (expected is None)
        if features is not None and expected is not None:
            assert features.dtype == np.float32
            np.testing.assert_array_equal(features, expected.features)
            np.testing.assert_array_equal(cache.get_image(expected.content, SPACE), expected.features)
    assert cache.get_image(b"other", SPACE) is None
    assert cache.find_images([], [], SPACE) == []
    cache.close()
    assert warnings_in(caplog) == []


@pytest.mark.usefixtures("settled")
def test_images_of_two_spaces_stay_apart(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "files", 1)
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(file, 1)], SPACE)
    assert not finds(cache, file, b"other") and cache.get_image(image(file).content, b"other") is None
    cache.put_images([image(file, 2)], b"other")
    for seed, space in ((1, SPACE), (2, b"other")):
        np.testing.assert_array_equal(found(cache, [file], space)[0], image(file, seed).features)
    cache.close()


@pytest.mark.usefixtures("settled")
def test_images_are_known_by_their_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = written(tmp_path / "files", 1)
    (tmp_path / "link.jpg").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    cache = Cache(tmp_path / "cache")
    cache.put_images([image("files/000.jpg")], SPACE)
    cache.put_images([image("./files/../files/000.jpg")], SPACE)
    assert finds(cache, file) and finds(cache, "files/000.jpg") and finds(cache, "files/./000.jpg")
    assert not finds(cache, "link.jpg")
    cache.put_images([image("link.jpg")], SPACE)
    assert finds(cache, tmp_path / "link.jpg")
    cache.close()
    assert sql(tmp_path / "cache", "SELECT count(*) FROM path") == [(2,)]
    assert info(tmp_path / "cache").images == 1


@pytest.mark.usefixtures("settled")
def test_images_take_names_in_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff\tnew\nline")
    file.write_bytes(b"one")
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(file)], SPACE)
    assert finds(cache, file)
    cache.close()


@pytest.mark.usefixtures("settled")
def test_images_that_changed_are_found_by_content_alone(tmp_path: Path) -> None:
    rewritten, touched, replaced = files = written(tmp_path / "files", 3)
    before = [image(file, i) for i, file in enumerate(files)]
    cache = Cache(tmp_path / "cache")
    cache.put_images(before, SPACE)
    times = rewritten.stat()
    time.sleep(0.02)
    rewritten.write_bytes(b"001.JPG")
    # the same size and time of change as before
    os.utime(rewritten, ns=(times.st_atime_ns, times.st_mtime_ns))
    touched.touch()
    (tmp_path / "new").write_bytes(replaced.read_bytes())
    (tmp_path / "new").rename(replaced)
    assert found(cache, files) == [None] * 3
    assert cache.get_image(image(rewritten).content, SPACE) is None
    for file, known in zip(files[1:], before[1:], strict=True):
        np.testing.assert_array_equal(cache.get_image(image(file).content, SPACE), known.features)
    cache.put_images([image(touched, 1)], SPACE)
    assert finds(cache, touched)
    cache.close()
    assert info(tmp_path / "cache").images == 3


@pytest.mark.usefixtures("settled")
def test_images_swapped_between_paths_are_never_mixed_up(tmp_path: Path) -> None:
    one, two = written(tmp_path / "files", 2)
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(one, 1), image(two, 2)], SPACE)
    one.rename(tmp_path / "third")
    two.rename(one)
    (tmp_path / "third").rename(two)
    assert not finds(cache, one) and not finds(cache, two)
    cache.close()


# ------------------------------------------------------------------------------------------- files that just changed


def test_images_just_changed_are_kept_without_their_path(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "files", 1)
    moment = file.stat().st_ctime
    cache = Cache(tmp_path / "cache")
    for seen in (None, moment, moment + 1.9, moment - 100):
        cache.put_images([image(file, seen=seen)], SPACE)
        assert not finds(cache, file) and cache.get_image(image(file).content, SPACE) is not None
    cache.put_images([image(file, seen=moment + 2.1)], SPACE)
    assert finds(cache, file)
    cache.close()


def test_images_with_an_old_time_but_a_new_inode_are_young(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "files", 1)
    os.utime(file, (10**9, 10**9))
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(file)], SPACE)
    assert not finds(cache, file)
    cache.close()


@pytest.mark.usefixtures("settled")
def test_images_without_features_are_paths_to_those_of_their_content(tmp_path: Path) -> None:
    one, two = written(tmp_path / "files", 2)
    two.write_bytes(one.read_bytes())
    known, other = image(one), image(two)
    cache = Cache(tmp_path / "cache")
    cache.put_images([known], SPACE)
    before = sql(tmp_path / "cache", "SELECT id, used FROM image")
    cache.put_images([CachedImage(other.path, other.stamp, other.content, None)], SPACE)
    (features,) = found(cache, [two])
    np.testing.assert_array_equal(features, known.features)
    assert sql(tmp_path / "cache", "SELECT id, used FROM image") == before
    # of a content that isn't known there is nothing to be found
    two.write_bytes(b"new")
    other = image(two)
    cache.put_images([CachedImage(other.path, other.stamp, other.content, None)], SPACE)
    assert finds(cache, one) and not finds(cache, two)
    cache.close()


@pytest.mark.usefixtures("settled")
def test_images_without_a_stamp_are_kept_without_their_path(tmp_path: Path) -> None:
    (file,) = written(tmp_path / "files", 1)
    known = image(file)
    cache = Cache(tmp_path / "cache")
    cache.put_images([CachedImage(known.path, None, known.content, known.features)], SPACE)
    cache.close()
    assert (info(tmp_path / "cache").images, sql(tmp_path / "cache", "SELECT * FROM path")) == (1, [])


# ------------------------------------------------------------------------------------------- how long rows stay


def test_limit_lets_the_least_recently_used_go_first(tmp_path: Path, clock: Callable[[float], None]) -> None:
    images = [unnamed(i) for i in range(600)]
    cache = Cache(tmp_path)
    for day in range(6):
        clock(10**9 + day * DAY)
        cache.put_images(images[day * 100 : day * 100 + 100], SPACE)
    clock(10**9 + 10 * DAY)
    assert all(cache.get_image(image.content, SPACE) is not None for image in images[:50])
    cache.close()
    cache = Cache(tmp_path, limit=MEGABYTE)
    cache.put_texts({b"k": text()})
    cache.close()
    cache = Cache(tmp_path)
    left = [image.content for image in images if cache.get_image(image.content, SPACE) is not None]
    assert set(cache.get_texts([b"k"])) == {b"k"}
    cache.close()
    # those read again, and the newest; of the last day to lose rows, whose rows have one time, some
    assert {image.content for image in images[:50] + images[400:]} <= set(left)
    assert not {image.content for image in images[50:300]} & set(left)


def test_limit_lets_texts_go_too(tmp_path: Path, clock: Callable[[float], None]) -> None:
    clock(10**9)
    cache = Cache(tmp_path, limit=MEGABYTE)
    cache.put_texts({b"old": text()})
    clock(10**9 + DAY)
    cache.put_images([unnamed(i) for i in range(600)], SPACE)
    cache.close()
    assert info(tmp_path).texts == 0


def test_limit_holds_during_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.store.CHECK_ROWS", 64)
    cache = Cache(tmp_path, limit=MEGABYTE)
    for start in range(0, 4000, 32):
        cache.put_images([unnamed(i) for i in range(start, start + 32)], SPACE)
        assert cache.get_image(unnamed(start + 31).content, SPACE) is not None
    assert (tmp_path / NAME).stat().st_size < 2 * MEGABYTE
    cache.close()


@pytest.mark.usefixtures("settled")
def test_limit_forgets_paths_of_what_went(tmp_path: Path) -> None:
    files = written(tmp_path / "files", 10)
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(file) for file in files], SPACE)
    cache.close()
    cache = Cache(tmp_path / "cache", limit=1)
    cache.put_texts({b"k": text()})
    cache.close()
    facts = info(tmp_path / "cache")
    assert (facts.images, facts.texts, sql(tmp_path / "cache", "SELECT * FROM path")) == (0, 0, [])


def test_limit_frees_no_more_than_it_has_to(tmp_path: Path, clock: Callable[[float], None]) -> None:
    images = [unnamed(i) for i in range(3000)]
    clock(10**9)
    cache = Cache(tmp_path)
    cache.put_images(images, SPACE)
    clock(10**9 + 40 * DAY)
    # one of each page's few
    recent = {image.content for image in images[::2]}
    assert all(cache.get_image(content, SPACE) is not None for content in recent)
    cache.close()
    database = sqlite3.connect(tmp_path / NAME)
    limit = used_bytes(database) - 1
    database.close()
    cache = Cache(tmp_path, limit)
    cache.put_texts({b"k": text()})
    cache.close()
    database = sqlite3.connect(tmp_path / NAME)
    assert 0.88 * limit < used_bytes(database) <= 0.9 * limit
    left = {bytes(row[0]) for row in database.execute("SELECT content FROM image")}
    database.close()
    assert {content[:16] for content in recent} <= left
    assert len(left) > 1500


def test_rows_lie_in_the_order_of_their_use(tmp_path: Path, clock: Callable[[float], None]) -> None:
    images = [unnamed(i, 8) for i in range(5)]
    order = "SELECT id, substr(content, 1, 16) FROM image ORDER BY id"
    clock(10**9)
    cache = Cache(tmp_path)
    cache.put_images(images, SPACE)
    cache.put_texts({b"%d" % i: text() for i in range(3)})
    clock(10**9 + 2 * DAY)
    # read again, then kept again
    assert cache.get_image(images[1].content, SPACE) is not None
    cache.put_images([images[0]], SPACE)
    assert set(cache.get_texts([b"1", b"0"])) == {b"0", b"1"}
    cache.close()
    places = {content: place for place, (_, content) in enumerate(sql(tmp_path, order))}
    assert [places[image.content[:16]] for image in images] == [4, 3, 0, 1, 2]
    assert sql(tmp_path, "SELECT key FROM text ORDER BY id") == [(b"2",), (b"0",), (b"1",)]
    assert sql(tmp_path, "SELECT max(id) - min(id) FROM image") == [(6 - 2,)]


@pytest.mark.usefixtures("settled")
def test_reading_notes_the_use_once_a_day(tmp_path: Path, clock: Callable[[float], None]) -> None:
    (file,) = written(tmp_path / "files", 1)
    folder = tmp_path / "cache"
    used = "SELECT used FROM image UNION ALL SELECT used FROM text"
    start = 4 * 10**9
    clock(start)
    cache = Cache(folder)
    cache.put_images([image(file)], SPACE)
    cache.put_texts({b"k": text()})
    cache.close()
    for hours, expected in ((23, 0), (25, 25), (48, 25), (50, 50)):
        clock(start + hours * 3600)
        before = (folder / NAME).read_bytes()
        cache = Cache(folder)
        assert finds(cache, file) and cache.get_image(image(file).content, SPACE) is not None
        assert cache.get_texts([b"k"])
        cache.close()
        assert sql(folder, used) == [(start + expected * 3600,)] * 2
        assert ((folder / NAME).read_bytes() == before) == (hours != expected)


# ------------------------------------------------------------------------------------------- several at once

WRITER = """
import hashlib, logging, sys, time
from pathlib import Path
import numpy as np
from clipcls.embed.cache.store import Cache
from clipcls.embed.cache.entries import CachedImage
logging.basicConfig(level="WARNING")
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
cache = Cache(Path(sys.argv[1]), limit=int(sys.argv[4]))
for i in range(0, 320, 32):
    names = [f"{sys.argv[2]} {j}".encode() for j in range(i, i + 32)]
    images = [CachedImage("", None, hashlib.sha256(n).digest(), np.full(512, 1, np.float32)) for n in names]
    cache.put_images(images, b"s")
    for image in images:
        found = cache.get_image(image.content, b"s")
        assert found is not None and (found == 1).all() or int(sys.argv[4]) < 2**30
cache.close()
"""


@pytest.mark.parametrize("limit", [2**31, 2**19])
def test_images_processes_write_and_read_at_once(tmp_path: Path, limit: int) -> None:
    start = time.time() + 0.7
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(i), str(start), str(limit)], stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    assert [process.communicate(timeout=30)[1] for process in processes] == [""] * 2
    assert info(tmp_path).images == 640 if limit > 2**30 else info(tmp_path).images < 250


@pytest.mark.usefixtures("settled")
def test_images_threads_share_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = written(tmp_path / "files", 64)
    images = [image(file, i) for i, file in enumerate(files)]
    cache = Cache(tmp_path / "cache")
    wrong: list[str] = []

    def work(part: int) -> None:
        for start in range(part, 64, 8):
            cache.put_images(images[start : start + 2], SPACE)
            answers = found(cache, files)
            for known, features in zip(images, answers, strict=True):
                if features is not None and not np.array_equal(features, known.features):
                    wrong.append(known.path)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(0, 8, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and warnings_in(caplog) == []
    assert all(finds(cache, file) for file in files)
    cache.close()

"""The cache: what goes in comes out, for several threads and processes at once."""

import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.cache.database import _warn_of_no_home, default_folder
from clipcls.embed.cache.entries import CachedImage, CachedText, text_key
from clipcls.embed.cache.prune import info
from clipcls.embed.cache.store import Cache
from clipcls.records import FileStamp

NAME = "clipcls.sqlite3"
KEY = b"k" * 32
SPACE = b"s" * 32


def text(seed: int = 0, truncated: tuple[str, ...] = ()) -> CachedText:
    features = np.random.default_rng(seed).normal(size=8)
    return CachedText((features / np.linalg.norm(features)).astype(np.float32), truncated)


def works(folder: Path) -> bool:
    cache = Cache(folder)
    cache.put_texts({KEY: text(1)})
    cache.close()
    again = Cache(folder)
    found = again.get_texts([KEY])
    again.close()
    return KEY in found and np.array_equal(found[KEY].features, text(1).features)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written may be known by their times."""
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)


def image(path: Path | str, seed: int = 0, *, seen: float | None = None, dim: int = 16) -> CachedImage:
    features = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    content = hashlib.sha256(Path(path).read_bytes()).digest()
    return CachedImage(str(path), FileStamp.of(Path(path).stat()), content, features, seen)


def written(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:03d}.jpg" for i in range(count)]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def found(cache: Cache, paths: Sequence[Path | str], space: bytes = SPACE) -> list[Any]:
    return cache.find_images([str(path) for path in paths], [FileStamp.at(path) for path in paths], space)


def finds(cache: Cache, path: Path | str, space: bytes = SPACE) -> bool:
    return found(cache, [path], space)[0] is not None


# ------------------------------------------------------------------------------------------- texts


def test_cache_texts_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {bytes([i]) * 32: text(i, ("too\nlong a prompt", "另一个") if i == 2 else ()) for i in range(5)}
    cache = Cache(tmp_path / "deep" / "folder")
    cache.put_texts(dict.fromkeys(texts, text(9)))
    cache.put_texts(texts)
    cache.close()
    cache = Cache(tmp_path / "deep" / "folder")
    found = cache.get_texts([*texts, b"missing"])
    cache.close()
    assert found.keys() == texts.keys()
    for key, expected in texts.items():
        assert found[key].features.dtype == np.float32
        np.testing.assert_array_equal(found[key].features, expected.features)
        assert found[key].truncated == (("too long a prompt", "另一个") if expected.truncated else ())
    assert warnings_in(caplog) == []


def test_cache_none_and_closed_keep_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    closed = Cache(tmp_path / "c")
    closed.close()
    closed.close()
    for cache in (Cache(None), closed):
        cache.put_texts({KEY: text()})
        assert cache.get_texts([KEY]) == {}
    assert warnings_in(caplog) == []


def test_text_key_depends_on_every_part() -> None:
    keys = {
        text_key(fingerprint, precision, prompts)
        for fingerprint in (b"a" * 32, b"b" * 32)
        for precision in ("fp32", "bf16")
        for prompts in (("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), ("ab",), ("ab", "c", ""))
    }
    assert len(keys) == 24
    assert text_key(b"a", "fp32", ("x",)) == text_key(b"a", "fp32", ("x",))


# ------------------------------------------------------------------------------------------- images


@pytest.mark.usefixtures("settled")
def test_images_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # more than one query's, with a name that isn't UTF-8
    files = written(tmp_path / "files", 600)
    files.append(files[0].rename(tmp_path / os.fsdecode(b"\xff\tnew\nline")))
    files[0].write_bytes(b"another")
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
    assert info(tmp_path / "cache").images == 1


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


@pytest.mark.usefixtures("settled")
def test_images_without_features_are_paths_to_those_of_their_content(tmp_path: Path) -> None:
    one, two = written(tmp_path / "files", 2)
    two.write_bytes(one.read_bytes())
    known, other = image(one), image(two)
    cache = Cache(tmp_path / "cache")
    cache.put_images([known], SPACE)
    cache.put_images([CachedImage(other.path, other.stamp, other.content, None)], SPACE)
    (features,) = found(cache, [two])
    np.testing.assert_array_equal(features, known.features)
    # of a content that isn't known there is nothing to be found
    two.write_bytes(b"new")
    other = image(two)
    cache.put_images([CachedImage(other.path, other.stamp, other.content, None)], SPACE)
    assert finds(cache, one) and not finds(cache, two)
    cache.close()


# ------------------------------------------------------------------------------------------- several at once

WRITER = """
import hashlib, logging, sys, time
from pathlib import Path
from typing import Any
import numpy as np
from clipcls.embed.cache.store import Cache
from clipcls.embed.cache.entries import CachedImage, CachedText
logging.basicConfig(level="WARNING")
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
cache = Cache(Path(sys.argv[1]), limit=int(sys.argv[4]))
for i in range(0, 320, 32):
    names = [f"{sys.argv[2]} {j}".encode() for j in range(i, i + 32)]
    cache.put_texts({names[0]: CachedText(np.ones(4, np.float32) / 2)})
    images = [CachedImage("", None, hashlib.sha256(n).digest(), np.full(512, 1, np.float32)) for n in names]
    cache.put_images(images, b"s")
    for image in images:
        found = cache.get_image(image.content, b"s")
        assert found is not None and (found == 1).all() or int(sys.argv[4]) < 2**30
cache.close()
"""


@pytest.mark.parametrize("limit", [2**31, 2**19])
def test_cache_processes_create_write_and_read_at_once(tmp_path: Path, limit: int) -> None:
    start = time.time() + 0.7
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(i), str(start), str(limit)], stderr=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 3
    facts = info(tmp_path)
    assert (facts.images, facts.texts) == (960, 30) if limit > 2**30 else facts.images < 250


@pytest.mark.usefixtures("settled")
def test_cache_threads_share_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_cache_waits_for_another_that_is_being_created(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = sqlite3.connect(tmp_path / NAME, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.execute, ["COMMIT"])
    timer.start()
    try:
        assert works(tmp_path)
    finally:
        timer.join()
        other.close()
    assert warnings_in(caplog) == []


# ------------------------------------------------------------------------------------------- fingerprints and models


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content was hashed."""
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counting(file: object, name: str) -> object:
        hashed.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return hashed


def test_file_sha256_is_remembered_until_the_file_changes(tmp_path: Path, read_files: list[str]) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    os.utime(weights, ns=(10**18, 10**18))

    def fingerprint() -> bytes:
        cache = Cache(tmp_path / "cache")
        try:
            return cache.file_sha256(weights)
        finally:
            cache.close()

    assert fingerprint() == fingerprint() == hashlib.sha256(b"one").digest()
    assert len(read_files) == 1
    weights.write_bytes(b"two")
    os.utime(weights, ns=(10**18, 10**18 + 1))
    assert fingerprint() == hashlib.sha256(b"two").digest()
    weights.write_bytes(b"three")
    os.utime(weights, ns=(10**18, 10**18 + 1))
    assert fingerprint() == fingerprint() == hashlib.sha256(b"three").digest()
    assert len(read_files) == 3


def test_file_sha256_is_shared_by_links(tmp_path: Path, read_files: list[str]) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "link").symlink_to("weights")
    cache = Cache(tmp_path / "cache")
    assert cache.file_sha256(tmp_path / "link") == cache.file_sha256(tmp_path / "weights")
    cache.close()
    assert len(read_files) == 1


def test_file_sha256_of_a_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        cache.file_sha256(tmp_path / "missing")
    cache.close()


def test_model_facts_round_trip(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.get_model(KEY) is None
    cache.put_model(KEY, '{"embed_dim": 512}')
    cache.put_model(b"other", "{}")
    cache.put_model(KEY, '{"name": "ü"}')
    assert cache.get_model(KEY) == '{"name": "ü"}'
    cache.close()
    assert cache.get_model(KEY) is None


def test_importing_the_cache_imports_nothing_heavy() -> None:
    code = "import sys, clipcls.embed.cache; print({'torch', 'PIL', 'open_clip'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


def test_default_folder_honours_xdg(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("XDG is of Linux")
    assert default_folder() == tmp_path / "xdg-cache" / "clipcls"


def test_there_is_no_default_folder_without_a_home(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", fail)
    _warn_of_no_home.cache_clear()
    assert default_folder() is None
    assert default_folder() is None
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "no cache in this run: no home directory is known"
    ]

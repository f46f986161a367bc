"""The cache: what goes in comes out, for several threads and processes at once."""

import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from clipcls.embed.cache.database import default_folder
from clipcls.embed.cache.entries import CachedText, text_key
from clipcls.embed.cache.prune import info
from clipcls.embed.cache.store import Cache

NAME = "clipcls.sqlite3"
KEY = b"k" * 32


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


# ------------------------------------------------------------------------------------------- texts


def test_cache_texts_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {bytes([i]) * 32: text(i, ("too long a prompt", "另一个") if i == 2 else ()) for i in range(5)}
    cache = Cache(tmp_path / "deep" / "folder")
    cache.put_texts(texts)
    cache.close()
    cache = Cache(tmp_path / "deep" / "folder")
    found = cache.get_texts([*texts, b"missing"])
    cache.close()
    assert found.keys() == texts.keys()
    for key, expected in texts.items():
        assert found[key].features.dtype == np.float32
        np.testing.assert_array_equal(found[key].features, expected.features)
        assert found[key].truncated == expected.truncated
    assert warnings_in(caplog) == []


def test_cache_truncated_prompts_with_line_breaks_stay_apart(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text(0, ("one\nprompt", "two"))})
    assert cache.get_texts([KEY])[KEY].truncated == ("one prompt", "two")
    cache.close()


def test_cache_put_replaces(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text(0)})
    cache.put_texts({KEY: text(1)})
    np.testing.assert_array_equal(cache.get_texts([KEY])[KEY].features, text(1).features)
    cache.close()


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


# ------------------------------------------------------------------------------------------- several at once

WRITER = """
import logging, sys, time
from pathlib import Path
import numpy as np
from clipcls.embed.cache.store import Cache
from clipcls.embed.cache.entries import CachedText
logging.basicConfig(level="WARNING")
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
cache = Cache(Path(sys.argv[1]))
for i in range(20):
    cache.put_texts({f"{sys.argv[2]} {i}".encode(): CachedText(np.ones(4, np.float32) / 2)})
cache.close()
"""


def test_cache_processes_write_at_once(tmp_path: Path) -> None:
    start = time.time() + 1.0
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(i), str(start)], stderr=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    assert [process.communicate(timeout=30)[1] for process in processes] == [""] * 3
    assert info(tmp_path).texts == 60


def test_cache_threads_write_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(4)

    def write(i: int) -> None:
        barrier.wait()
        cache = Cache(tmp_path)
        for j in range(10):
            cache.put_texts({f"{i} {j}".encode(): text(j)})
        cache.close()

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings_in(caplog) == []
    assert info(tmp_path).texts == 40


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


# ------------------------------------------------------------------------------------------- fingerprints


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


def test_file_sha256_takes_names_in_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"w\xff")
    file.write_bytes(b"one")
    cache = Cache(tmp_path / "cache")
    assert cache.file_sha256(file) == cache.file_sha256(file) == hashlib.sha256(b"one").digest()
    cache.close()


def test_file_sha256_of_a_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        cache.file_sha256(tmp_path / "missing")
    cache.close()


# ------------------------------------------------------------------------------------------- models


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

"""The cache: what goes in comes out, and nothing that happens to its file fails a run."""

import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipcls.cache import SCHEMA_VERSION, Cache, CachedText, CacheInfo, clear, default_folder, info, text_key
from clipcls.errors import UsageError

NAME = "clipcls.sqlite3"
KEY = b"k" * 32
APPLICATION_ID = 0x636C6300


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


def overwrite(file: Path) -> None:
    """In place, so that an open connection meets it too."""
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        stream.write(b"\xff" * size)


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
from clipcls.cache import Cache, CachedText
logging.basicConfig(level="WARNING")
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
cache = Cache(Path(sys.argv[1]))
for i in range(20):
    cache.put_texts({f"{sys.argv[2]} {i}".encode(): CachedText(np.ones(4, np.float32) / 2)})
cache.close()
"""


def test_cache_processes_write_at_once(tmp_path: Path) -> None:
    import time

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


# ------------------------------------------------------------------------------------------- misfortunes


def test_cache_newer_schema_is_refused_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Cache(tmp_path).close()
    database = sqlite3.connect(tmp_path / NAME)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.execute(f"PRAGMA application_id = {APPLICATION_ID + SCHEMA_VERSION + 1}")
    database.execute("CREATE TABLE future (x)")
    database.close()
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text()})
    assert cache.get_texts([KEY]) == {}
    assert cache.file_sha256(Path(__file__)) == hashlib.sha256(Path(__file__).read_bytes()).digest()
    cache.close()
    (warning,) = warnings_in(caplog)
    assert "newer" in warning and str(tmp_path / NAME) in warning
    database = sqlite3.connect(tmp_path / NAME)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert database.execute("SELECT count(*) FROM future").fetchone() == (0,)
    database.close()


def test_cache_damaged_file_is_set_aside_and_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(b"not a database at all" * 100)
    assert works(tmp_path)
    (aside,) = tmp_path.glob(f"{NAME}.*damaged*")
    assert aside.read_bytes().startswith(b"not a database")
    (warning,) = warnings_in(caplog)
    assert "damaged" in warning and str(aside) in warning


def test_cache_damage_during_a_run_turns_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    assert cache.get_texts([KEY]) == {}
    cache.put_texts({KEY: text()})
    cache.close()
    assert len(warnings_in(caplog)) == 1
    assert works(tmp_path)


def test_cache_damaged_and_gone_during_a_run_turns_it_off(tmp_path: Path) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    (tmp_path / NAME).unlink()
    assert cache.get_texts([KEY]) == {}
    cache.close()


@pytest.mark.parametrize("value", [b"", b"abc", b"abcdefgh", "text", 3])
def test_cache_damaged_row_raises_nothing(tmp_path: Path, value: object) -> None:
    assert works(tmp_path)
    with sqlite3.connect(tmp_path / NAME) as database:
        database.execute("UPDATE text SET features = ?", (value,))
    database.close()
    cache = Cache(tmp_path)
    found = cache.get_texts([KEY])
    cache.close()
    assert KEY not in found or found[KEY].features.shape != (8,)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_cache_unwritable_folder_turns_it_off(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / below)
    cache.put_texts({KEY: text()})
    assert cache.get_texts([KEY]) == {}
    cache.close()
    (warning,) = warnings_in(caplog)
    assert warning.startswith("cache off") and str(tmp_path / "file") in warning
    assert (tmp_path / "file").read_text() == "in the way"


def test_cache_folder_where_the_file_should_be_turns_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).mkdir()
    cache = Cache(tmp_path)
    assert cache.get_texts([KEY]) == {}
    assert len(warnings_in(caplog)) == 1


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


# ------------------------------------------------------------------------------------------- info and clear


def test_info_counts_without_creating(tmp_path: Path) -> None:
    folder = tmp_path / "c#1? ü%20"
    assert info(folder) == CacheInfo(folder / NAME, exists=False)
    assert not folder.exists()
    cache = Cache(folder)
    cache.put_texts({b"a": text(), b"b": text()})
    cache.file_sha256(Path(__file__))
    for _ in range(2):  # with the cache in use, then closed
        facts = info(folder)
        assert (facts.exists, facts.texts, facts.fingerprints) == (True, 2, 1)
        assert facts.size > 4000
        cache.close()


def test_info_of_a_damaged_file_says_how_to_remove_it(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"not a database at all" * 100)
    with pytest.raises(UsageError, match="cache clear"):
        info(tmp_path)


def test_clear_removes_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("stays")
    assert works(tmp_path)
    size = info(tmp_path).size
    assert clear(tmp_path) == size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert clear(tmp_path) == clear(tmp_path / "missing") == 0
    assert works(tmp_path)


def test_clear_removes_what_a_running_process_left_beside_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text()})
    assert (tmp_path / f"{NAME}-wal").exists()
    assert clear(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    cache.close()


def test_clear_that_fails_names_the_file(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match=NAME):
        clear(tmp_path)


def test_default_folder_honours_xdg(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("XDG is of Linux")
    assert default_folder() == tmp_path / "xdg-cache" / "clipcls"

"""How the cache stays small, and `clipcls cache info`, `clear` and `prune`."""

import contextlib
import hashlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cache import KEY, NAME, SPACE, text, warnings_in, works

from clipcls.embed.cache.database import used_bytes
from clipcls.embed.cache.entries import CachedImage
from clipcls.embed.cache.prune import CacheInfo, Pruned, clear, info, prune
from clipcls.embed.cache.store import MEGABYTE, Cache
from clipcls.errors import UsageError
from clipcls.records import FileStamp

DAY = 24 * 3600
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what the time is."""
    return lambda moment: monkeypatch.setattr(time, "time", lambda: moment)


def image(path: Path, dim: int = 16) -> CachedImage:
    content = hashlib.sha256(os.fsencode(path)).digest()
    status = FileStamp.of(path.stat()) if path.exists() else None
    return CachedImage(str(path), status, content, np.ones(dim, np.float32), seen=4e9)


def unnamed(i: int, dim: int = 512) -> CachedImage:
    return CachedImage(f"/nowhere/{i}", None, hashlib.sha256(b"%d" % i).digest(), np.full(dim, i, np.float32))


def answers(output: bytes) -> dict[str, str]:
    """The lines of a command, each a name and a value."""
    return dict(line.split("\t") for line in output.decode().splitlines())


# ------------------------------------------------------------------------------------------- the limit


def test_limit_lets_the_least_recently_used_go_first(tmp_path: Path, clock: Callable[[float], None]) -> None:
    images = [unnamed(i) for i in range(600)]
    cache = Cache(tmp_path)
    clock(10**9 - DAY)
    cache.put_texts({b"old": text()})
    for day in range(6):
        clock(10**9 + day * DAY)
        cache.put_images(images[day * 100 : day * 100 + 100], SPACE)
    clock(10**9 + 10 * DAY)
    assert all(cache.get_image(image.content, SPACE) is not None for image in images[:50])
    cache.close()
    cache = Cache(tmp_path, limit=MEGABYTE)
    cache.put_texts({b"new": text()})
    cache.close()
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as database:
        assert 0.8 * MEGABYTE < used_bytes(database) <= MEGABYTE
    cache = Cache(tmp_path)
    left = [image.content for image in images if cache.get_image(image.content, SPACE) is not None]
    assert set(cache.get_texts([b"old", b"new"])) == {b"new"}
    cache.close()
    # those read again, and the newest; of the last day to lose rows, whose rows have one time, some
    assert {image.content for image in images[:50] + images[400:]} <= set(left)
    assert not {image.content for image in images[50:200]} & set(left)


def test_limit_holds_during_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.store.CHECK_ROWS", 64)
    cache = Cache(tmp_path, limit=MEGABYTE)
    for start in range(0, 4000, 32):
        cache.put_images([unnamed(i) for i in range(start, start + 32)], SPACE)
        assert cache.get_image(unnamed(start + 31).content, SPACE) is not None
    assert (tmp_path / NAME).stat().st_size < 2 * MEGABYTE
    cache.close()


def test_limit_lets_paths_go_with_their_images(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.touch()
    cache = Cache(tmp_path / "cache", limit=1)
    cache.put_images([image(file) for file in files], SPACE)
    cache.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / NAME)) as database:
        assert database.execute("SELECT * FROM entry").fetchall() == []


def test_reading_notes_the_use_once_a_day_and_moves_the_row_to_the_end(
    tmp_path: Path, clock: Callable[[float], None]
) -> None:
    (tmp_path / "file").touch()
    known = image(tmp_path / "file")
    start = 4 * 10**9
    clock(start)
    cache = Cache(tmp_path)
    cache.put_images([known], SPACE)
    cache.put_texts({b"k": text(), b"unused": text()})
    cache.close()
    for hours, expected in ((23, 0), (25, 25), (48, 25), (50, 50)):
        clock(start + hours * 3600)
        before = (tmp_path / NAME).read_bytes()
        cache = Cache(tmp_path)
        assert cache.find_images([known.path], [known.stamp], SPACE)[0] is not None
        assert cache.get_image(known.content, SPACE) is not None and cache.get_texts([b"k"])
        cache.close()
        with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as database:
            rows = database.execute("SELECT key, used FROM entry ORDER BY id").fetchall()
        assert [used for key, used in rows if key != b"unused"] == [start + expected * 3600] * 3
        assert ((tmp_path / NAME).read_bytes() == before) == (hours != expected)
        assert (rows[0][0] == b"unused") == (expected > 0)


# ------------------------------------------------------------------------------------------- info and clear


def test_info_counts_without_creating(tmp_path: Path) -> None:
    folder = tmp_path / "c#1? ü%20"
    assert info(folder) == CacheInfo(folder / NAME, exists=False)
    assert not folder.exists()
    cache = Cache(folder)
    cache.put_texts({b"a": text(), b"b": text()})
    cache.file_sha256(Path(__file__))
    cache.put_model(KEY, "{}")
    cache.put_images([image(tmp_path / name) for name in "abc"], SPACE)
    for _ in range(2):  # with the cache in use, then closed
        facts = info(folder)
        assert (facts.exists, facts.texts, facts.images) == (True, 2, 3)
        assert (facts.models, facts.fingerprints) == (1, 1)
        assert facts.size > 4000
        cache.close()


def test_damaged_files_are_named_pruned_and_cleared(tmp_path: Path) -> None:
    for remove in (lambda: prune(tmp_path).freed, lambda: clear(tmp_path)):
        (tmp_path / NAME).write_bytes(b"damaged" * 100)
        with pytest.raises(UsageError, match="cache clear"):
            info(tmp_path)
        assert works(tmp_path)
        assert remove() >= 700 and list(tmp_path.glob("*damaged*")) == []
    assert list(tmp_path.iterdir()) == []


def test_info_of_a_locked_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database.is_on_network", lambda folder: True)
    assert works(tmp_path)
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options | {"timeout": 0.01}))
    with pytest.raises(UsageError, match="locked by another process") as caught:
        info(tmp_path)
    assert "cache clear" not in str(caught.value)
    other.close()
    assert info(tmp_path).texts == 1


def test_info_of_a_newer_cache_is_refused(tmp_path: Path) -> None:
    Cache(tmp_path).close()
    database = sqlite3.connect(tmp_path / NAME)
    database.execute("PRAGMA user_version = 4")
    database.execute(f"PRAGMA application_id = {0x636C6300 + 4}")
    database.close()
    with pytest.raises(UsageError, match="newer"):
        info(tmp_path)
    with pytest.raises(UsageError, match="newer"):
        prune(tmp_path)


def test_clear_removes_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("stays")
    assert works(tmp_path)
    size = info(tmp_path).size
    assert clear(tmp_path) == size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert clear(tmp_path) == clear(tmp_path / "missing") == 0
    assert works(tmp_path)


def test_clear_that_fails_names_the_file(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match=NAME):
        clear(tmp_path)


# ------------------------------------------------------------------------------------------- prune


def test_prune_of_nothing(tmp_path: Path) -> None:
    assert prune(tmp_path / "missing") == Pruned(0, 0, 0, 0, 0)
    assert not (tmp_path / "missing").exists()


def test_prune_forgets_files_that_are_gone(tmp_path: Path) -> None:
    files = [tmp_path / os.fsdecode(b"\xff%d" % i) for i in range(10)]
    for file in files:
        file.write_bytes(b"")
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(file) for file in files], SPACE)
    cache.file_sha256(files[0])
    cache.close()
    for file in files[:4]:
        file.unlink()
    assert prune(tmp_path / "cache").paths == 4
    assert prune(tmp_path / "cache").paths == 0
    assert info(tmp_path / "cache").images == 10
    cache = Cache(tmp_path / "cache")
    found = cache.find_images([str(file) for file in files], [FileStamp.at(file) for file in files], SPACE)
    assert [features is not None for features in found] == [False] * 4 + [True] * 6
    cache.close()


def test_prune_removes_what_is_unused_for_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    now = time.time()
    cache = Cache(tmp_path)
    for days, name in ((40, "old"), (5, "new")):
        monkeypatch.setattr(time, "time", lambda days=days: now - days * DAY)
        cache.put_images([image(tmp_path / name)], SPACE)
        cache.put_texts({name.encode(): text()})
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: now - 40 * DAY)
    cache.put_images([image(file)], SPACE)
    monkeypatch.undo()
    assert prune(tmp_path).images == 0
    removed = prune(tmp_path, older_than=30)
    assert (removed.images, removed.texts, removed.paths) == (2, 1, 1)
    assert cache.get_image(image(tmp_path / "new").content, SPACE) is not None
    assert set(cache.get_texts([b"old", b"new"])) == {b"new"}
    cache.close()
    assert prune(tmp_path, older_than=0).images == 1


def test_prune_makes_the_file_smaller(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_images([image(tmp_path / f"{i}", 512) for i in range(1500)], SPACE)
    cache.close()
    before = (tmp_path / NAME).stat().st_size
    assert before > 3 * MEGABYTE
    removed = prune(tmp_path, size=MEGABYTE)
    after = (tmp_path / NAME).stat().st_size
    assert 0.8 * MEGABYTE < after <= MEGABYTE
    assert removed.images == 1500 - info(tmp_path).images > 1000
    assert removed.freed == before - after


def test_prune_beside_a_run_disturbs_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    cache.put_images([image(tmp_path / f"{i}", 512) for i in range(200)], SPACE)
    assert prune(tmp_path, size=0).images == 200
    assert cache.get_image(image(tmp_path / "0").content, SPACE) is None
    cache.put_images([image(tmp_path / "0")], SPACE)
    assert cache.get_image(image(tmp_path / "0").content, SPACE) is not None
    cache.close()
    assert warnings_in(caplog) == []


def test_prune_of_a_damaged_cache_removes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    cache.put_texts({bytes([i]) * 32: text() for i in range(50)})
    cache.close()
    data = bytearray((tmp_path / NAME).read_bytes())
    place = data.find(bytes([20]) * 32)
    data[place] ^= 64
    (tmp_path / NAME).write_bytes(data)
    removed = prune(tmp_path)
    assert removed.damaged == 1
    (warning,) = warnings_in(caplog)
    assert "damaged" in warning
    assert list(tmp_path.iterdir()) == []
    assert works(tmp_path)


# ------------------------------------------------------------------------------------------- the command line


def test_cache_commands_show_names_and_values(clipcls: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    names = [
        "path", "size", "limit", "label embeddings", "image embeddings", "models", "file fingerprints",
        "converted towers",
    ]  # fmt: skip
    facts = answers(clipcls("cache", "info", "--cache-dir", folder).stdout)
    assert list(facts) == names
    assert (facts["size"], facts["limit"], facts["label embeddings"]) == ("empty", "2048.0 MB", "0")
    cache = Cache(folder)
    cache.put_images([image(tmp_path / f"{i}", 512) for i in range(1000)], SPACE)
    cache.put_texts({KEY: text()})
    cache.close()
    facts = answers(clipcls("cache", "info", "--cache-dir", folder, "--cache-size", "100").stdout)
    assert list(facts) == names
    assert facts["path"] == str(folder / NAME) and facts["limit"] == "100.0 MB"
    assert (facts["image embeddings"], facts["label embeddings"]) == ("1000", "1")
    removed = answers(clipcls("cache", "prune", "--cache-dir", folder, "--size", "1").stdout)
    assert list(removed) == [
        "label embeddings", "image embeddings", "paths", "converted towers", "damaged files", "freed",
    ]  # fmt: skip
    assert int(removed["image embeddings"]) > 500 and float(removed["freed"].split()[0]) > 1
    removed = answers(clipcls("cache", "prune", "--cache-dir", folder, "--older-than", "0").stdout)
    assert int(removed["image embeddings"]) > 100
    freed = answers(clipcls("cache", "clear", "--cache-dir", folder).stdout)
    assert list(freed) == ["freed"]
    assert list(folder.iterdir()) == []


def test_cache_prune_takes_its_size_from_the_environment(
    clipcls: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    cache.put_images([image(tmp_path / f"{i}", 512) for i in range(1000)], SPACE)
    cache.close()
    monkeypatch.setenv("CLIPCLS_CACHE_SIZE", "1")
    monkeypatch.setenv("CLIPCLS_CACHE_DIR", str(tmp_path / "cache"))
    assert answers(clipcls("cache", "info").stdout)["limit"] == "1.0 MB"
    assert int(answers(clipcls("cache", "prune").stdout)["image embeddings"]) > 500


@pytest.mark.parametrize("arguments", [["--older-than", "-1"], ["--size", "x"]])
def test_cache_prune_refuses_nonsense(clipcls: Run, arguments: list[str]) -> None:
    done: Any = clipcls("cache", "prune", *arguments)
    assert done.returncode == 2 and arguments[0].encode() in done.stderr

"""The cache's file: nothing that happens to it fails a run, or gives a wrong answer."""

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cache import KEY, NAME, SPACE, text, warnings_in, works

from clipcls.embed.cache.database import SCHEMA_VERSION, Kind, is_on_network
from clipcls.embed.cache.entries import CachedImage, CachedText
from clipcls.embed.cache.prune import info, prune
from clipcls.embed.cache.store import Cache
from clipcls.records import FileStamp

APPLICATION_ID = 0x636C6300


def overwrite(file: Path) -> None:
    """In place, so that an open connection meets it too."""
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        stream.write(b"\xff" * size)


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


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\xff\xff", b"SQLite format 3\0"])
def test_cache_damaged_file_is_set_aside_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert works(tmp_path)
    (aside,) = tmp_path.glob(f"{NAME}.damaged-*")
    assert aside.read_bytes() == content
    (warning,) = warnings_in(caplog)
    assert "damaged" in warning and str(aside) in warning


def test_cache_damaged_during_a_run_is_rebuilt_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    cache.put_texts({b"new": text()})
    assert set(cache.get_texts([KEY, b"new"])) == {b"new"}
    cache.close()
    assert len(list(tmp_path.glob(f"{NAME}.damaged-*"))) == 1 and works(tmp_path)
    cache = Cache(tmp_path)
    cache._is_replaced = True
    overwrite(tmp_path / NAME)
    assert cache.get_texts([KEY]) == {} and not cache.is_on
    cache.close()
    assert [warning.startswith("cache off") for warning in warnings_in(caplog)] == [False, True]


def test_cache_damage_is_set_aside_by_one_of_those_who_meet_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert works(tmp_path)
    caches = [Cache(tmp_path) for _ in range(3)]
    overwrite(tmp_path / NAME)
    for i, cache in enumerate(caches):
        cache.put_texts({b"%d" % i: text(i)})
    for cache in caches:
        assert set(cache.get_texts([b"0", b"1", b"2"])) == {b"0", b"1", b"2"}
        cache.close()
    assert len(warnings_in(caplog)) == 1
    assert len(list(tmp_path.glob(f"{NAME}.damaged-*-*[0-9]"))) == 1


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_cache_unwritable_folder_turns_it_off(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):  # said once
        cache = Cache(tmp_path / "file" / below)
        cache.put_texts({KEY: text()})
        assert cache.get_texts([KEY]) == {}
        cache.close()
    (warning,) = warnings_in(caplog)
    assert warning.startswith("cache off") and str(tmp_path / "file") in warning
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------------------------------------- locks and signals


class Locked:
    """Another connection that holds the write lock, or in the mode of remote disks, every lock."""

    def __init__(self, folder: Path) -> None:
        self.database = sqlite3.connect(folder / NAME, isolation_level=None)

    def __enter__(self) -> None:
        self.database.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_: object) -> None:
        self.database.execute("COMMIT")

    def close(self) -> None:
        self.database.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database._BUSY_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("remote", [False, True])
def test_cache_locked_for_long_skips_what_it_must_and_then_is_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database.is_on_network", lambda folder: remote)
    assert works(tmp_path)
    cache, locked = Cache(tmp_path), Locked(tmp_path)
    with locked:
        cache.put_texts({b"a": text()})
        # reading needs no lock where memory is shared
        assert set(cache.get_texts([KEY])) == (set() if remote else {KEY})
    cache.put_texts({b"b": text()})
    assert set(cache.get_texts([KEY, b"a", b"b"])) == {KEY, b"b"}
    with locked:
        for _ in range(2):
            cache.put_texts({b"c": text()})
    assert not cache.is_on
    cache.close()
    locked.close()
    first, last = warnings_in(caplog)
    assert "locked by another process" in first and str(tmp_path / NAME) in first and last.startswith("cache off")
    assert works(tmp_path)


def test_transaction_left_open_costs_the_cache_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A signal may raise anywhere."""
    assert works(tmp_path)
    cache = Cache(tmp_path)
    assert cache._database is not None
    cache._database.execute("BEGIN IMMEDIATE")
    cache.put_texts({b"a": text()})
    assert set(cache.get_texts([KEY, b"a"])) == {KEY, b"a"}
    cache.close()
    assert warnings_in(caplog) == []
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


# ------------------------------------------------------------------------------------------- flipped and missing bytes


class Filled:
    """A small cache, and what it has to answer if it answers."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / f"{i}.jpg" for i in range(10)]
        for file in self.files:
            file.write_bytes(file.name.encode())
        features = np.random.default_rng(0).normal(size=(10, 512)).astype(np.float32)
        self.images = [
            CachedImage(str(file), FileStamp.of(file.stat()), hashlib.sha256(file.read_bytes()).digest(), row)
            for file, row in zip(self.files, features, strict=True)
        ]
        self.texts = {bytes([i]) * 32: CachedText(row, ("cut",)) for i, row in enumerate(features)}

    def fill(self, cache: Cache) -> None:
        cache.put_images(self.images, SPACE)
        cache.put_texts(self.texts)
        cache.put_model(KEY, "{}")
        cache.file_sha256(self.files[0])

    def check(self, cache: Cache) -> int:
        """How many answers there were, all of which were right."""
        paths, stamps = [image.path for image in self.images], [image.stamp for image in self.images]
        answers = [
            *zip(self.images, cache.find_images(paths, stamps, SPACE), strict=True),
            *((image, cache.get_image(image.content, SPACE)) for image in self.images),
        ]
        for image, features in answers:
            assert features is None or np.array_equal(features, image.features)
        texts = cache.get_texts(list(self.texts))
        for key, found in texts.items():
            assert np.array_equal(found.features, self.texts[key].features) and found.truncated == ("cut",)
        facts = cache.get_model(KEY)
        assert facts in (None, "{}")
        assert cache.file_sha256(self.files[0]) == hashlib.sha256(self.files[0].read_bytes()).digest()
        return sum(features is not None for _, features in answers) + len(texts) + (facts is not None)


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    """Its cache is in the folder `whole`."""
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)
    content = Filled(tmp_path)
    cache = Cache(tmp_path / "whole")
    content.fill(cache)
    assert content.check(cache) == 31
    cache.close()
    return content


def survives(folder: Path, data: bytes, content: Filled) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / NAME).write_bytes(data)
    cache = Cache(folder)
    content.check(cache)
    content.fill(cache)
    content.check(cache)
    cache.close()
    prune(folder)
    cache = Cache(folder)
    content.fill(cache)
    assert content.check(cache) == 31
    cache.close()


def test_cache_with_flipped_bytes_is_never_wrong(tmp_path: Path, filled: Filled) -> None:
    whole = (tmp_path / "whole" / NAME).read_bytes()
    choice = random.Random(0)
    # the header, where pages begin, and anywhere
    places = [[i] for i in (18, 60, 63, 70, *range(0, 100, 11))]
    places += [[page + choice.randrange(100)] for page in range(0, len(whole), 16384)]
    places += [[choice.randrange(len(whole)) for _ in range(count)] for count in (1, 1, 8, 64, 512)]
    for flipped in places:
        data = bytearray(whole)
        for place in flipped:
            data[place] ^= choice.randrange(1, 256)
        survives(tmp_path / "flipped", bytes(data), filled)


def test_cache_cut_short_is_rebuilt(tmp_path: Path, filled: Filled, caplog: pytest.LogCaptureFixture) -> None:
    whole = (tmp_path / "whole" / NAME).read_bytes()
    for length in (0, 2, 15, 50, 100, 1000, 16384, 20000, len(whole) // 2, len(whole) - 16384):
        caplog.clear()
        survives(tmp_path / "cut", whole[:length], filled)
        assert len(warnings_in(caplog)) == (length > 0)


# What isn't bytes, and isn't an integer; features of no, of an odd and of the right length.
DAMAGES: dict[str, list[object]] = {
    "value": ["flip", b"", b"abc", b"\xff" * 2048, "text", 3],
    "key": ["flip", b"", "text", 3],
    "crc": ["flip", b"abc", "text", 1.5],
    "used": [b"abc", "text", 1.5, 2**62],
}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in DAMAGES.items() for value in values])
def test_cache_damaged_row_counts_as_missing(
    tmp_path: Path, filled: Filled, kind: Kind, name: str, value: object
) -> None:
    database = sqlite3.connect(tmp_path / "whole" / NAME)
    with database:
        (row, old) = database.execute(f"SELECT id, {name} FROM entry WHERE kind = ?", (kind,)).fetchone()
        if value == "flip":
            value = old ^ 64 if isinstance(old, int) else old[:-1] + bytes([old[-1] ^ 64])
        database.execute(f"UPDATE entry SET {name} = ? WHERE id = ?", (value, row))
    database.close()
    cache = Cache(tmp_path / "whole")
    missing = {Kind.IMAGE: 2, Kind.FINGERPRINT: 0}.get(kind, 1) if name != "used" else 0
    assert filled.check(cache) == 31 - missing
    filled.fill(cache)
    assert filled.check(cache) == 31
    cache.close()


# ------------------------------------------------------------------------------------------- versions and file systems


def test_cache_of_an_earlier_version_starts_anew_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = sqlite3.connect(tmp_path / NAME)
    database.executescript(
        f"""
        PRAGMA journal_mode = WAL;
        CREATE TABLE text (key BLOB PRIMARY KEY, features BLOB NOT NULL);
        INSERT INTO text VALUES (x'00', x'00000000');
        PRAGMA user_version = 2;
        PRAGMA application_id = {APPLICATION_ID + 2};
        """
    )
    database.close()
    facts = info(tmp_path)
    assert facts.exists and facts.texts == 0
    assert works(tmp_path)
    assert warnings_in(caplog) == []
    assert info(tmp_path).texts == 1 and list(tmp_path.glob(f"{NAME}.*")) == []


@pytest.mark.parametrize("remote", [False, True])
def test_cache_shares_memory_on_local_disks_only(tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database.is_on_network", lambda folder: remote)
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text(1)})
    assert (tmp_path / f"{NAME}-wal").exists() != remote
    cache.close()
    assert works(tmp_path)


def test_is_on_network_goes_by_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw,relatime 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/sdb /home/local xfs rw 0 0\n"
        "host: /mnt/with\\040space fuse.sshfs rw 0 0\n"
        "//server/share /over cifs rw 0 0\n"
        "/dev/sdc /over ext4 rw 0 0\n"
    )
    kinds = {"/tmp": False, "/home/me/.cache": True, "/home/local/x": False, "/homeless": False, "/over/x": False}
    kinds |= {"/mnt/with space/x": True, "/mnt": False}
    assert {path: is_on_network(Path(path), mounts) for path in kinds} == kinds
    assert not is_on_network(tmp_path, tmp_path / "missing")


# ------------------------------------------------------------------------------------------- a full disk

FULL = """
import logging, resource, sys
from pathlib import Path
import numpy as np
from clipcls.embed.cache.store import Cache
from clipcls.embed.cache.entries import CachedImage, CachedText
logging.basicConfig(level="WARNING", format="%(message)s")
cache = Cache(Path(sys.argv[1]))
cache.put_texts({b"k": CachedText(np.ones(4, np.float32))})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for i in range(40):
    cache.put_images([CachedImage("", None, b"%d %d" % (i, j), np.ones(512, np.float32)) for j in range(32)], b"s")
    cache.get_image(b"0 0", b"s")
print(cache.get_image(b"39 0", b"s"))
cache.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are of POSIX")
def test_cache_on_a_full_disk_turns_itself_off(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "None\n")
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("cache off") and str(tmp_path / NAME) in warning
    # what had been written before stays
    cache = Cache(tmp_path)
    assert set(cache.get_texts([b"k"])) == {b"k"}
    cache.close()

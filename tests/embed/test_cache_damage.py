"""The cache's file: nothing that happens to it fails a run, or gives a wrong answer."""

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from test_cache import KEY, NAME, text, warnings_in, works

from clipcls.embed.cache import store
from clipcls.embed.cache.database import SCHEMA_VERSION, transaction
from clipcls.embed.cache.entries import CachedImage, CachedText
from clipcls.embed.cache.filesystem import is_remote
from clipcls.embed.cache.prune import info, prune
from clipcls.embed.cache.store import Cache
from clipcls.records import FileStamp

APPLICATION_ID = 0x636C6300
SPACE = b"s" * 32


def overwrite(file: Path) -> None:
    """In place, so that an open connection meets it too."""
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        stream.write(b"\xff" * size)


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


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\0" * 40000, b"\xff\xff", b"SQLite format 3\0"])
def test_cache_damaged_file_is_set_aside_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert works(tmp_path)
    (aside,) = tmp_path.glob(f"{NAME}.damaged-*")
    assert aside.read_bytes() == content
    (warning,) = warnings_in(caplog)
    assert "damaged" in warning and str(aside) in warning


def test_cache_empty_file_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).touch()
    assert works(tmp_path) and warnings_in(caplog) == []


def test_cache_damaged_during_a_run_is_rebuilt_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    assert cache.get_texts([KEY]) == {}
    cache.put_texts({KEY: text()})
    assert set(cache.get_texts([KEY])) == {KEY}
    cache.close()
    (warning,) = warnings_in(caplog)
    assert "damaged" in warning
    assert len(list(tmp_path.glob(f"{NAME}.damaged-*"))) == 1
    assert info(tmp_path).texts == 1
    assert works(tmp_path)


def test_cache_damage_that_writing_meets_loses_nothing(tmp_path: Path) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    cache.put_texts({b"new": text()})
    assert set(cache.get_texts([KEY, b"new"])) == {b"new"}
    cache.close()


def test_cache_damage_that_goes_on_turns_it_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.embed.cache.store._MOST_REBUILDS", 0)
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    for _ in range(2):
        cache.put_texts({KEY: text()})
        assert cache.get_texts([KEY]) == {}
    cache.close()
    (warning,) = warnings_in(caplog)
    assert warning.startswith("cache off")


def test_cache_damaged_twice_within_a_second_loses_neither(tmp_path: Path) -> None:
    for content in (b"one" * 1000, b"two" * 1000):
        (tmp_path / NAME).write_bytes(content)
        Cache(tmp_path).close()
    asides = tmp_path.glob(f"{NAME}.damaged-*")
    assert sorted(file.read_bytes()[:3] for file in asides) == [b"one", b"two"]


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


def test_cache_damaged_and_gone_during_a_run_turns_it_off(tmp_path: Path) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    (tmp_path / NAME).unlink()
    assert cache.get_texts([KEY]) == {}
    cache.close()


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


def test_cache_off_is_said_once_for_each_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("in the way")
    for name in ("one", "two", "one", "two"):
        Cache(tmp_path / name).close()
    assert [
        str(tmp_path / name / NAME) in warning
        for name, warning in zip(("one", "two"), warnings_in(caplog), strict=True)
    ] == [True] * 2


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
def test_cache_locked_for_long_skips_what_it_must(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache, locked = Cache(tmp_path), Locked(tmp_path)
    # never three in a row; reading needs no lock, and doesn't count as writing
    for key in (b"a", b"b"):
        with locked:
            for _ in range(2):
                cache.put_texts({key: text()})
                assert set(cache.get_texts([KEY, key])) == {KEY}
        cache.put_texts({key * 2: text()})
    assert set(cache.get_texts([b"a", b"aa", b"b", b"bb"])) == {b"aa", b"bb"}
    cache.close()
    locked.close()
    (warning,) = warnings_in(caplog)
    assert "locked by another process" in warning and str(tmp_path / NAME) in warning
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.usefixtures("impatient")
def test_cache_locked_while_reading_reads_on_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database.is_remote", lambda folder: True)
    assert works(tmp_path)
    cache, locked = Cache(tmp_path), Locked(tmp_path)
    with locked:
        assert cache.get_texts([KEY]) == {} and cache.get_image(b"x", SPACE) is None
    assert set(cache.get_texts([KEY])) == {KEY}
    cache.close()
    locked.close()
    assert len(warnings_in(caplog)) == 1


@pytest.mark.usefixtures("impatient")
def test_cache_locked_for_good_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache, locked = Cache(tmp_path), Locked(tmp_path)
    with locked:
        for still_on in (True, True, False, False):
            cache.put_texts({b"a": text()})
            assert cache.is_on == still_on
    cache.close()
    locked.close()
    assert [warning.startswith("cache off") for warning in warnings_in(caplog)] == [False, True]
    assert works(tmp_path)


class Interrupted:
    """A connection during whose first BEGIN a signal comes, which Python raises once that is done."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    @property
    def in_transaction(self) -> bool:
        return self.database.in_transaction

    def execute(self, statement: str) -> object:
        done = self.database.execute(statement)
        if statement.startswith("BEGIN"):
            raise KeyboardInterrupt
        return done


def test_transaction_that_a_signal_meets_at_its_beginning_is_rolled_back(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    with pytest.raises(KeyboardInterrupt), transaction(cast("sqlite3.Connection", Interrupted(database))):
        pass
    assert not database.in_transaction
    database.close()


def test_transaction_left_open_costs_the_cache_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    assert cache._database is not None
    cache._database.execute("BEGIN IMMEDIATE")
    cache.put_texts({b"a": text()})
    assert set(cache.get_texts([KEY, b"a"])) == {KEY, b"a"}
    cache.close()
    assert warnings_in(caplog) == []
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_what_a_transaction_forbids_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    assert cache._database is not None
    cache._database.execute("BEGIN")
    cache._change(lambda database: database.execute("BEGIN"))
    assert not cache.is_on
    cache.close()
    (warning,) = warnings_in(caplog)
    assert warning.startswith("cache off")
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_cache_is_on_while_a_damaged_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert works(tmp_path)
    cache = Cache(tmp_path)
    overwrite(tmp_path / NAME)
    asked, answers = threading.Event(), []
    thread = threading.Thread(target=lambda: (asked.set(), answers.append(cache.is_on)))
    replace = store.replace_damaged

    def slowly(*args: Any) -> sqlite3.Connection:
        thread.start()
        asked.wait()
        # it has to wait until there is an answer
        assert answers == []
        return replace(*args)

    monkeypatch.setattr(store, "replace_damaged", slowly)
    assert cache.get_texts([KEY]) == {}
    thread.join()
    assert answers == [True]
    cache.close()


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
DAMAGES: dict[tuple[str, ...], list[object]] = {
    ("text.features", "image.features"): ["flip", b"", b"abc", b"\xff" * 2048, "text", 3],
    ("text.truncated", "path.status", "path.content"): ["flip", "text", 3],
    ("model.facts", "fingerprint.sha256", "fingerprint.status"): ["flip", "text", 1.5],
    ("text.crc", "image.crc", "path.crc", "model.crc", "fingerprint.crc"): ["flip", b"abc", "text", 1.5],
}


@pytest.mark.parametrize(
    ("column", "value"),
    [(column, value) for columns, values in DAMAGES.items() for column in columns for value in values],
)
def test_cache_damaged_row_counts_as_missing(tmp_path: Path, filled: Filled, column: str, value: object) -> None:
    table, name = column.split(".")
    database = sqlite3.connect(tmp_path / "whole" / NAME)
    with database:
        if value == "flip":
            (old,) = database.execute(f"SELECT {name} FROM {table}").fetchone()
            value = old ^ 64 if isinstance(old, int) else old[:-1] + bytes([old[-1] ^ 64])
        database.execute(f"UPDATE {table} SET {name} = ?", (value,))
    database.close()
    cache = Cache(tmp_path / "whole")
    missing = {"text": 10, "image": 20, "path": 10, "model": 1, "fingerprint": 0}[table]
    assert filled.check(cache) == 31 - missing
    filled.fill(cache)
    assert filled.check(cache) == 31
    cache.close()


# ------------------------------------------------------------------------------------------- versions and file systems


def test_cache_of_version_1_starts_anew_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = sqlite3.connect(tmp_path / NAME)
    database.executescript(
        """
        PRAGMA journal_mode = WAL;
        CREATE TABLE text (key BLOB PRIMARY KEY, features BLOB NOT NULL, truncated TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE fingerprint (path BLOB PRIMARY KEY, status TEXT NOT NULL, sha256 BLOB NOT NULL) WITHOUT ROWID;
        INSERT INTO text VALUES (x'00', x'00000000', '');
        PRAGMA user_version = 1;
        """
    )
    database.close()
    facts = info(tmp_path)
    assert facts.exists and facts.texts == 0
    assert works(tmp_path)
    assert warnings_in(caplog) == []
    assert list(tmp_path.glob(f"{NAME}.*")) == []
    database = sqlite3.connect(tmp_path / NAME)
    assert database.execute("PRAGMA page_size").fetchone() == (16384,)
    database.close()


@pytest.mark.parametrize("remote", [False, True])
def test_cache_shares_memory_on_local_disks_only(tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.embed.cache.database.is_remote", lambda folder: remote)
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text(1)})
    assert (tmp_path / f"{NAME}-wal").exists() != remote
    cache.close()
    assert works(tmp_path)


def test_is_remote_goes_by_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "22 21 0:5 / /home rw,relatime shared:1 master:2 - nfs4 server:/home rw\n"
        "23 22 8:2 / /home/local rw - xfs /dev/sdb rw\n"
        "24 21 0:6 / /mnt/with\\040space rw - fuse.sshfs host: rw\n"
        "25 21 0:7 / /over rw - cifs //server/share rw\n"
        "26 21 8:3 / /over rw - ext4 /dev/sdc rw\n"
        "nonsense\n"
    )
    kinds = {"/tmp": False, "/home/me/.cache": True, "/home/local/x": False, "/homeless": False, "/over/x": False}
    kinds |= {"/mnt/with space/x": True, "/mnt": False}
    assert {path: is_remote(Path(path), mounts) for path in kinds} == kinds
    assert not is_remote(tmp_path, tmp_path / "missing")


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
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "None\n")
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("cache off") and str(tmp_path / NAME) in warning
    # what had been written before stays
    cache = Cache(tmp_path)
    assert set(cache.get_texts([b"k"])) == {b"k"}
    cache.close()


def test_put_images_keeps_all_or_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    cache.put_texts({KEY: text()})
    database = cache._database
    assert database is not None
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + 4}")
    cache.put_images([CachedImage("", None, b"%d" % i, np.ones(512, np.float32)) for i in range(200)], SPACE)
    assert cache.get_image(b"0", SPACE) is None
    cache.close()
    (warning,) = warnings_in(caplog)
    assert "full" in warning
    assert (info(tmp_path).images, info(tmp_path).texts) == (0, 1)

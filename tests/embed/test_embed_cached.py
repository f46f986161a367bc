"""Features of pictures with the cache in front of decoding and of the model."""

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.embed import image_reader as reader_module
from clipcls.embed import images as embed_module
from clipcls.embed.cache.store import Cache
from clipcls.embed.execution import Execution
from clipcls.embed.image_reader import image_space
from clipcls.embed.images import embed_images
from clipcls.embed.lazy_encoder import LazyEncoder
from clipcls.embed.session import Session
from clipcls.inputs import contents
from clipcls.records import ImageRef, ModelFacts, Preprocessing
from conftest import FakeEncoder, save_pictures


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a test has just written may be known by their times."""
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return save_pictures(tmp_path / "pictures", 12)


class Opened:
    """A model that counts how often it was opened."""

    def __init__(self, **facts: Any) -> None:
        self.encoder = FakeEncoder()
        made = ModelFacts("fake", b"f" * 32, "cpu", "fp32", self.encoder.preprocess, 1.0, None, 8, 3)
        self.facts = replace(made, **facts)
        self.times = 0

    def lazily(self) -> LazyEncoder:
        def load(*_: object) -> Any:
            self.times += 1
            return self.encoder

        return LazyEncoder(self.facts, load)


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("not to be called")


def closed_model(**facts: Any) -> LazyEncoder:
    """One that mustn't be opened."""
    return LazyEncoder(Opened(**facts).facts, refuse)


def references(paths: list[Path]) -> list[ImageRef]:
    return [ImageRef(str(path)) for path in paths]


def run(images: Any, model: LazyEncoder, cache: Cache, **settings: Any) -> tuple[list[str], list[Any]]:
    """The paths, and for each its features or its error."""
    found: list[Any] = []
    names: list[str] = []
    for batch in embed_images(images, Session(model, Execution(**settings), cache)):
        rows = iter(batch.features)
        assert batch.features.dtype == np.float32
        assert len(batch.features) == sum(error is None for error in batch.errors)
        names += [image.path for image in batch.images]
        found += [next(rows).tolist() if error is None else error for error in batch.errors]
    return names, found


def encoded(images: Any, cache: Cache, facts: dict[str, Any] | None = None, **settings: Any) -> int:
    """How many pictures a run puts through the model."""
    model = Opened(**facts or {})
    run(images, model.lazily(), cache, **settings)
    return sum(model.encoder.batches)


# ------------------------------------------------------------------------------------------- hits


def test_second_run_opens_neither_files_nor_model(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Opened()
    first = run(references(paths), model.lazily(), cache)
    assert model.encoder.batches == [12] and model.times == 1
    monkeypatch.setattr(contents, "open_file", refuse)
    monkeypatch.setattr("clipcls.images.decoding._decoded", refuse)
    monkeypatch.setattr(embed_module, "ThreadPoolExecutor", refuse)
    assert run(references(paths), closed_model(), cache) == first


def test_later_process_finds_what_an_earlier_one_kept(tmp_path: Path, paths: list[Path]) -> None:
    for expected in (12, 0):
        cache = Cache(tmp_path / "cache")
        assert encoded(references(paths), cache) == expected
        cache.close()


@pytest.mark.parametrize("how", ["renamed", "copied", "touched", "linked"])
def test_same_content_elsewhere_is_read_but_not_encoded(
    cache: Cache, paths: list[Path], tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (expected, *_) = run(references(paths), Opened().lazily(), cache)
    other = tmp_path / "other.png"
    if how == "renamed":
        paths[0].rename(other)
    elif how == "copied":
        shutil.copy(paths[0], other)
    elif how == "linked":
        other.symlink_to(paths[0])
    else:
        other = paths[0]
        os.utime(other, (10**9, 10**9))
    with monkeypatch.context() as patched:
        patched.setattr("clipcls.images.decoding._decoded", refuse)
        model = Opened()
        assert run([ImageRef(str(other))], model.lazily(), cache)[1] == [expected]
        assert model.encoder.batches == []
    # by then the path is known too
    monkeypatch.setattr(contents, "open_file", refuse)
    assert run([ImageRef(str(other))], closed_model(), cache)[1] == [expected]


def test_changed_file_is_encoded_again(cache: Cache, paths: list[Path]) -> None:
    _, before = run(references(paths), Opened().lazily(), cache)
    Image.new("RGB", (60, 40), (255, 0, 0)).save(paths[3])
    model = Opened()
    _, after = run(references(paths), model.lazily(), cache)
    assert model.encoder.batches == [1]
    assert [i for i in range(12) if before[i] != after[i]] == [3]
    assert after[3][0] > 0.99


def test_file_that_just_changed_is_known_by_its_content_alone(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 3600.0)
    run(references(paths), Opened().lazily(), cache)
    opened = []
    original = contents.open_file

    def noting(path: Any) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(contents, "open_file", noting)
    assert encoded(references(paths), cache) == 0
    assert sorted(opened) == [str(path) for path in paths]


def test_large_file_is_hashed_and_decoded_from_the_disk(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run(references(paths), Opened().lazily(), Cache(None))
    monkeypatch.setattr(reader_module, "_WHOLE_BYTES", 10)
    assert run(references(paths), Opened().lazily(), cache)[1] == expected
    assert run(references(paths), closed_model(), cache)[1] == expected


# ------------------------------------------------------------------------------------------- errors


def test_errors_are_not_cached(cache: Cache, paths: list[Path]) -> None:
    good = paths[2].read_bytes()
    paths[2].write_bytes(good[:100])
    paths[5].unlink()
    for _ in range(2):
        _, found = run(references(paths), Opened().lazily(), cache)
        assert [i for i, answer in enumerate(found) if isinstance(answer, str)] == [2, 5]
        assert found[2].startswith(("truncated", "damaged")) and found[5] == "no such file or directory"
    paths[2].write_bytes(good)
    shutil.copy(paths[0], paths[5])
    _, found = run(references(paths), Opened().lazily(), cache)
    assert not any(isinstance(answer, str) for answer in found)


def test_cached_file_that_is_gone_is_an_error(cache: Cache, paths: list[Path]) -> None:
    run(references(paths), Opened().lazily(), cache)
    paths[1].unlink()
    assert run(references(paths), Opened().lazily(), cache)[1][1] == "no such file or directory"


def test_read_that_fails_midway_is_an_error_of_the_image(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = reader_module._hashed

    def failing(file: Any) -> Any:
        if os.fstat(file.fileno()).st_ino == paths[4].stat().st_ino:
            raise OSError(5, "Input/output error")
        return original(file)

    monkeypatch.setattr(reader_module, "_hashed", failing)
    _, found = run(references(paths), Opened().lazily(), cache)
    assert [answer for answer in found if isinstance(answer, str)] == ["can't be read: input/output error"]


# ------------------------------------------------------------------------------------------- what features depend on


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({}, {"decode": "exact"}),
        ({"precision": "bf16"}, {}),
        ({"fingerprint": b"g" * 32}, {}),
        ({"device": "cuda"}, {"batch_size": 32}),
    ],
    ids=["decode", "precision", "model", "device"],
)
def test_other_features_miss(cache: Cache, paths: list[Path], facts: dict[str, Any], settings: dict[str, Any]) -> None:
    assert encoded(references(paths), cache) == 12
    assert encoded(references(paths), cache, facts, **settings) == 12
    # and the others are still there
    assert encoded(references(paths), cache) == encoded(references(paths), cache, facts, **settings) == 0


def test_devices_of_one_kind_share_features(cache: Cache, paths: list[Path]) -> None:
    assert encoded(references(paths), cache, {"device": "cuda:0"}) == 12
    assert encoded(references(paths), cache, {"device": "cuda:1"}) == 0


def test_batch_size_and_workers_share_features(cache: Cache, paths: list[Path]) -> None:
    assert encoded(references(paths), cache, batch_size=2, workers=1) == 12
    assert encoded(references(paths), cache, batch_size=5, workers=3) == 0


def test_spaces_differ_in_all_they_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Opened().facts
    spaces = {
        image_space(facts, "fast"),
        image_space(facts, "exact"),
        image_space(replace(facts, precision="bf16"), "fast"),
        image_space(replace(facts, device="mps"), "fast"),
        image_space(replace(facts, fingerprint=b"g" * 32), "fast"),
    }
    monkeypatch.setattr(reader_module, "DECODER_VERSION", 999)
    spaces.add(image_space(facts, "fast"))
    assert len(spaces) == 6


def test_features_of_another_length_are_encoded_again(cache: Cache, paths: list[Path]) -> None:
    """A row that another program wrote, or a hash that isn't unique."""
    run(references(paths), Opened().lazily(), cache)
    wide = Opened(embed_dim=4)
    wide.encoder.encode_image = lambda batch: np.full((len(batch), 4), 0.5, np.float32)  # type: ignore[method-assign]
    assert run(references(paths), wide.lazily(), cache)[1] == [[0.5] * 4] * 12


def test_model_without_a_fingerprint_never_uses_the_cache(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all models without one would share their features."""
    for name in ("find_images", "get_image", "put_images"):
        monkeypatch.setattr(Cache, name, lambda *_: [None] * 12 if not _[0].is_on else refuse())
    for _ in range(2):
        assert encoded(references(paths), cache, {"fingerprint": b""}) == 12


# ------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("most", [4, 4096])
def test_hits_misses_and_errors_keep_their_order(
    cache: Cache, paths: list[Path], batch_size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_module, "_MOST_ITEMS", most)
    truth = dict(zip(*run(references(paths), Opened().lazily(), Cache(None)), strict=True))
    random = np.random.default_rng(batch_size)
    paths[7].write_bytes(b"no picture")
    truth[str(paths[7])] = "not an image in a format Pillow reads"
    run(references([path for i, path in enumerate(paths) if i % 3 == 0]), Opened().lazily(), cache)
    for _ in range(6):
        images = [ImageRef(str(paths[i])) for i in random.integers(0, 12, random.integers(1, 40))]
        images.insert(len(images) // 2, ImageRef("gone", error="gone"))
        images[:0] = [ImageRef("gone", error="gone")] * int(random.integers(0, 3))
        names, found = run(images, Opened().lazily(), cache, batch_size=batch_size)
        assert names == [image.path for image in images]
        assert found == [(truth | {"gone": "gone"})[name] for name in names]
        # some become misses again
        for i in random.integers(0, 6, 3):
            os.utime(paths[i])
            cache._write(lambda database: database.execute("DELETE FROM entry WHERE kind = 2 AND random() % 2 = 0"))


def test_batches_of_misses_are_full_whatever_lies_between(cache: Cache, paths: list[Path]) -> None:
    run(references(paths[:6]), Opened().lazily(), cache)
    mixed = [path for two in zip(paths[:6], paths[6:], strict=True) for path in two]
    model = Opened()
    run(references(mixed), model.lazily(), cache, batch_size=3)
    assert model.encoder.batches == [3, 3]


def test_hits_behind_a_miss_are_bounded(cache: Cache, paths: list[Path]) -> None:
    run(references(paths[:1]), Opened().lazily(), cache)
    pulled = 0

    def endless() -> Iterator[ImageRef]:
        nonlocal pulled
        yield ImageRef(str(paths[1]))
        while True:
            pulled += 1
            yield ImageRef(str(paths[0]))

    model = Opened()
    batches = embed_images(endless(), Session(model.lazily(), Execution(batch_size=64), cache))
    first = next(batches)
    assert first.images[0].path == str(paths[1]) and len(first.images) <= embed_module._MOST_ITEMS
    # what is taken in, and what is read ahead
    assert pulled <= embed_module._MOST_ITEMS + 4 * 512
    assert model.encoder.batches == [1]
    batches.close()


def test_hits_in_front_are_answered_before_a_miss_is_read(cache: Cache, paths: list[Path]) -> None:
    run(references(paths[:3]), Opened().lazily(), cache)
    go_on = threading.Event()

    def stalling() -> Iterator[ImageRef]:
        yield from references(paths[:3])
        go_on.wait(60)
        yield ImageRef(str(paths[3]))

    model = Opened()
    batches = embed_images(stalling(), Session(model.lazily(), Execution(), cache))
    answered = len(next(batches).images)
    while answered < 3:
        answered += len(next(batches).images)
    assert model.times == 0 and not go_on.is_set()
    go_on.set()
    assert [len(batch.images) for batch in batches] == [1]


def test_long_run_of_misses_keeps_at_most_three_batches_of_pictures(
    cache: Cache, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = encoded = 0
    ahead = []
    original = contents.open_file

    def counting(path: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return original(path)

    monkeypatch.setattr(contents, "open_file", counting)
    model = Opened()
    encode = model.encoder.encode_image

    def noting(batch: Any) -> Any:
        nonlocal encoded
        ahead.append(decoded - encoded)
        encoded += len(batch)
        return encode(batch)

    model.encoder.encode_image = noting  # type: ignore[method-assign]
    images = [ImageRef(str(paths[i % 12])) for i in range(200)]
    wanted = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    lazy = LazyEncoder(replace(model.facts, preprocess=wanted), model.lazily().open)
    # without a cache each is a miss
    run(images, lazy, Cache(None), batch_size=4, workers=2)
    assert encoded == 200 and max(ahead) <= 12


# ------------------------------------------------------------------------------------------- a cache that fails


@pytest.mark.parametrize("method", ["find_images", "get_image", "put_images"])
def test_cache_that_fails_midway_does_not_stop_the_run(
    cache: Cache, paths: list[Path], method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(references(paths), Opened().lazily(), Cache(None))
    original = getattr(Cache, method)
    calls = 0

    def failing(self: Cache, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        with self._lock:
            if calls == 2 and self._database is not None:
                # whatever is asked of it from now on fails
                self._database.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
        return original(self, *args)

    monkeypatch.setattr(Cache, method, failing)
    images = [*references(paths), *[ImageRef("gone", error="gone")] * 600, *references(paths)]
    names, found = run(images, Opened().lazily(), cache, batch_size=4)
    assert names == [image.path for image in images]
    assert (found[:12], found[-12:]) == (expected[1], expected[1])
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "cache off" in warnings[0].getMessage()


def test_cache_closed_midway_does_not_stop_the_run(cache: Cache, paths: list[Path]) -> None:
    batches = embed_images(references(paths), Session(Opened().lazily(), Execution(batch_size=4), cache))
    answered = len(next(batches).images)
    cache.close()
    assert answered + sum(len(batch.images) for batch in batches) == 12


def test_run_says_how_many_were_cached(cache: Cache, paths: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="clipcls")
    run(references(paths[:5]), Opened().lazily(), cache)
    shutil.copy(paths[0], paths[11])  # known by its content
    run(references(paths), Opened().lazily(), cache)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("images:")]
    assert said == ["images: 0 of 5 from the cache", "images: 6 of 12 from the cache"]

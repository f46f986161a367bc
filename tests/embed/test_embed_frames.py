"""Features of videos' frames: decoded in one pass whatever the number of threads, and kept in the cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed import frames as frames_module
from clipcls.embed.cache.store import Cache
from clipcls.images.video import VideoReader
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.video import Sampling
from clipcls.records import ImageRef
from conftest import FakeEncoder, embed_images
from videos import COLOURS, cut, write_video

pytest.importorskip("av")

EVERY = Sampling("fps", 10)


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
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The readers of videos that are opened, and the times that each is asked for."""
    readers: list[Any] = []

    class Counted(VideoReader):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.times: list[int] = []
            self.closed = 0
            readers.append(self)

        def frame_at(self, time: int) -> Any:
            self.times.append(time)
            return super().frame_at(time)

        def close(self) -> None:
            self.closed += 1
            super().close()

    monkeypatch.setattr("clipcls.images.frames.VideoReader", Counted)
    return readers


def listed(*paths: Path, sampling: Sampling = EVERY) -> list[ImageRef]:
    return list(discover(Sources([str(path) for path in paths], sampling=sampling)))


def colours(images: list[ImageRef], cache: Cache | None = None, **settings: Any) -> list[str]:
    """The colour of each image, or its error."""
    found = []
    for batch in embed_images(images, FakeEncoder(), cache, **settings):
        rows = iter(batch.features)
        for error in batch.errors:
            found.append(list(COLOURS)[int(next(rows).argmax())] if error is None else error)
    return found


EXPECTED = ["red"] * 30 + ["green"] * 20 + ["blue"] * 30


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", cut([("red", 3), ("green", 2), ("blue", 3)]), g="20")


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_decode_a_video_in_one_pass(clip: Path, tmp_path: Path, opened: list[Any], threads: int) -> None:
    other = write_video(tmp_path / "other.webm", cut([("blue", 1)]))
    images = listed(clip, other, clip)
    assert colours(images, workers=threads, batch_size=4) == [*EXPECTED, *["blue"] * 10, *EXPECTED]
    assert [reader.times for reader in opened] == [list(range(0, end, 100)) for end in (8000, 1000, 8000)]
    assert all(reader.closed == 1 for reader in opened)


def test_frames_that_are_known_are_not_decoded_again(clip: Path, cache: Cache, opened: list[Any]) -> None:
    few = listed(clip, sampling=Sampling("fps", 1))
    assert colours(few, cache) == EXPECTED[::10]
    opened.clear()
    assert colours(few, cache) == EXPECTED[::10]
    assert opened == []
    assert colours(listed(clip), cache) == EXPECTED
    assert [len(reader.times) for reader in opened] == [72]


def test_a_video_that_has_changed_is_decoded_anew(clip: Path, cache: Cache) -> None:
    assert set(colours(listed(clip), cache)) == {"red", "green", "blue"}
    write_video(clip, cut([("green", 8)]))
    assert set(colours(listed(clip), cache)) == {"green"}


def test_equal_frames_share_their_features(clip: Path, tmp_path: Path, cache: Cache) -> None:
    colours(listed(clip), cache)
    renamed = clip.rename(tmp_path / "renamed.mp4")
    encoder = FakeEncoder()
    assert sum(len(batch.images) for batch in embed_images(listed(renamed), encoder, cache)) == 80
    assert encoder.batches == []


def test_a_video_that_vanishes_is_an_error_for_each_frame(clip: Path) -> None:
    images = listed(clip, sampling=Sampling("fps", 1))
    clip.unlink()
    assert colours(images) == ["no such file or directory"] * 8


def test_digest_depends_on_shape_and_pixels() -> None:
    one, other = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    assert frames_module.pixels_digest(one) != frames_module.pixels_digest(other)
    assert frames_module.pixels_digest(one) == frames_module.pixels_digest(one.copy())

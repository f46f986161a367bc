"""What frames of videos and animations show."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcls.errors import ImageError
from clipcls.images.frames import open_frames, read_frame
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.video import Sampling, frame_at
from clipcls.records import Frame
from videos import COLOURS, MATRICES, Pixels, cut, plain, turn, write_video

pytest.importorskip("av")


def colour_of(pixels: Pixels) -> str:
    return list(COLOURS)[int(pixels.mean((0, 1)).argmax())]


def frame(path: Path, time: int) -> Frame:
    content = frame_at(str(path), time).content
    assert isinstance(content, Frame)
    return content


def seen(path: Path, times: list[int]) -> list[str]:
    """The colours at some times, in one pass, or what is wrong there."""
    reader = open_frames(frame(path, 0))
    found = []
    for time in times:
        try:
            found.append(colour_of(reader.frame_at(time)))
        except ImageError as exc:
            found.append(str(exc))
    reader.close()
    return found


CUT = [("red", 1.0), ("green", 0.5), ("blue", 1.0)]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv422p10le"),
        ("a.mkv", "libx264", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
    ],
)
def test_frame_at_gives_what_is_shown_then(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write_video(tmp_path / name, cut(CUT), codec=codec, pixels=pixels, g="7")
    expected = {0: "red", 999: "red", 1000: "green", 1499: "green", 1500: "blue", 2400: "blue"}
    assert seen(path, list(expected)) == list(expected.values())
    assert seen(path, [2400, 1499, 0, 1000]) == ["blue", "green", "red", "green"]  # backwards as well
    assert np.abs(read_frame(frame(path, 0)) - plain("red").astype(int)).max() <= 6


def test_frames_of_a_variable_rate_are_shown_until_the_next(tmp_path: Path) -> None:
    frames = [plain(colour) for colour in ("red", "green", "blue", "red")]
    path = write_video(tmp_path / "a.mp4", frames, times=[0, 0.2, 3.5, 3.6])
    assert seen(path, [0, 199, 200, 3499, 3500, 3600]) == ["red", "red", "green", "green", "blue", "red"]
    assert "pictures end after 3.7 seconds" in seen(path, [9000])[0]


@pytest.mark.parametrize("how", MATRICES)
def test_frames_are_turned_as_the_file_says(tmp_path: Path, how: str) -> None:
    picture = np.concatenate([plain("red", (64, 32)), plain("green", (64, 32))])
    picture[:, 32:] //= 2
    upright = {"right": np.rot90(picture, -1), "left": np.rot90(picture), "over": np.rot90(picture, 2)}
    expected = upright.get(how, picture[:, ::-1])
    path = turn(write_video(tmp_path / "a.mp4", [picture]), how)
    pixels = read_frame(frame(path, 0))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(int)).mean() < 6


def test_every_frame_is_the_same_however_it_is_reached(tmp_path: Path) -> None:
    """Frames that refer to ones before and behind them, whose order isn't that in the file."""
    ramp = [np.full((32, 32, 3), 4 * level + 20, dtype=np.uint8) for level in range(50)]
    path = write_video(tmp_path / "a.mkv", ramp, rate=25, g="12", bf="3", qp="4")
    images = list(discover(Sources([str(path)], sampling=Sampling("fps", 25))))
    reader = open_frames(frame(path, 0))
    for level, image in enumerate(images):
        assert isinstance(image.content, Frame)
        in_order = reader.frame_at(image.content.time)
        assert abs(in_order.mean() - (4 * level + 20)) < 2
        if level % 7 == 0:
            assert np.array_equal(read_frame(image.content), in_order)
    reader.close()


def test_a_damaged_part_is_an_error_there_and_nowhere_else(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    data = bytearray(write_video(tmp_path / "a.mp4", noise, g="10").read_bytes())
    media = data.index(b"mdat")
    size = int.from_bytes(data[media - 4 : media], "big")
    start, end = media + size * 4 // 10, media + size * 6 // 10
    data[start:end] = bytes(end - start)  # the encoder's sizes differ between runs
    path = tmp_path / "bad.mp4"
    path.write_bytes(data)
    found = ["damaged" in text for text in seen(path, list(range(0, 10_000, 500)))]
    assert found == [False] * 8 + [True] * 4 + [False] * 8


def test_exact_colours_are_nearer(tmp_path: Path) -> None:
    smooth = np.linspace(30, 220, 64, dtype=np.uint8)
    picture = np.stack(
        [np.tile(smooth, (64, 1)), np.tile(smooth[:, None], (1, 64)), np.full((64, 64), 90, np.uint8)], 2
    )
    listed = frame(write_video(tmp_path / "a.mkv", [picture], qp="0"), 0)
    fast, exact = (np.abs(read_frame(listed, decode=how) - picture.astype(int)).mean() for how in ("fast", "exact"))
    assert exact < 1.1 < fast < 3


def test_large_and_changed_videos_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", cut([("red", 0.5)]))
    listed = frame(path, 0)
    with pytest.raises(ImageError, match="32 × 32 pixels, more than the limit of 1,000"):
        read_frame(listed, max_pixels=1000)
    write_video(path, cut([("green", 0.7)]))
    with pytest.raises(ImageError, match="has changed since it was listed"):
        read_frame(listed)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_frames_of_animations_are_shown_in_their_time(tmp_path: Path, name: str) -> None:
    pictures = [Image.fromarray(plain(colour)).convert("RGBA") for colour in COLOURS]
    white = name == "a.webp"
    if white:  # a GIF's writer would take a clear frame for none
        pictures[1].putalpha(Image.new("L", (32, 32), 0))
    first, *others = pictures
    first.save(tmp_path / name, save_all=True, append_images=others, duration=[500, 1000, 700], lossless=True)
    reader = open_frames(frame(tmp_path / name, 0))
    means = [reader.frame_at(time).mean((0, 1)).tolist() for time in (0, 499, 500, 1500, 0)]
    with pytest.raises(ImageError, match=r"ends after 2\.2 seconds"):
        reader.frame_at(2200)
    reader.close()
    assert means == [[255, 0, 0], [255, 0, 0], [255, 255, 255] if white else [0, 255, 0], [0, 0, 255], [255, 0, 0]]

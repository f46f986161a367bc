"""Which frames of videos and animations are listed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcls.errors import NOTICE, UsageError
from clipcls.inputs.discover import discover, expand
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.inputs.video import Sampling, frame_path, split_path
from clipcls.records import Container, Frame, ImageRef
from videos import COLOURS, cut, plain, write_video

pytest.importorskip("av")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(here: Path) -> str:
    """Ten frames a second, and a keyframe every eighth, for 2.5 seconds."""
    write_video(
        here / "clip.mp4", cut([("red", 1), ("green", 1.5)]), **{"x264-params": "keyint=8:min-keyint=8:scenecut=0"}
    )
    return "clip.mp4"


def found(*inputs: str, sampling: Sampling | None = None) -> list[str]:
    refs = discover(Sources(inputs, sampling=sampling))
    return [ref.path if ref.error is None else f"{ref.path}: {ref.error}" for ref in refs]


def test_discover_lists_the_frames_of_a_video_that_is_named(clip: str) -> None:
    assert found(clip) == ["clip.mp4#t=0", "clip.mp4#t=1", "clip.mp4#t=2"]
    assert found(clip, sampling=Sampling("fps", 3))[:3] == ["clip.mp4#t=0", "clip.mp4#t=0.333", "clip.mp4#t=0.667"]
    assert found(clip, sampling=Sampling("frames", 2)) == ["clip.mp4#t=0.625", "clip.mp4#t=1.875"]
    keyframes = ["clip.mp4#t=0", "clip.mp4#t=0.8", "clip.mp4#t=1.6", "clip.mp4#t=2.4"]
    assert found(clip, sampling=Sampling("keyframes")) == keyframes
    frames = [image.content for image in discover([clip])]
    assert [(one.time, one.until) for one in frames if isinstance(one, Frame)] == [
        (0, 1000),
        (1000, 2000),
        (2000, 2500),
    ]


def test_discover_takes_videos_in_folders_only_if_it_is_told_to(
    clip: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.png")
    left_out = LeftOut(takes_videos=True)
    assert [image.path for image in discover(["."], left_out=left_out)] == ["./a.png"]
    with caplog.at_level(NOTICE, "clipcls"):
        left_out.report(["."])
    assert caplog.messages == ["left out of .: 1 .mp4 (-v lists them); --fps 1 takes frames of the videos"]
    assert found(".", sampling=Sampling("frames", 1)) == ["./a.png", "./clip.mp4#t=1.25"]
    assert found("*.mp4", "**/*.mp4") == 2 * ["clip.mp4#t=0", "clip.mp4#t=1", "clip.mp4#t=2"]


def test_a_fragment_names_a_frame_or_a_part(clip: str, here: Path) -> None:
    assert found("clip.mp4#t=1.25") == ["clip.mp4#t=1.25"]
    assert found("clip.mp4#t=1,2", sampling=Sampling("fps", 2)) == ["clip.mp4#t=1", "clip.mp4#t=1.5"]
    assert found("clip.mp4#t=9,12") == ["clip.mp4#t=9,12: its pictures end after 2.5 seconds"]
    assert found("gone.mp4#t=1") == ["gone.mp4#t=1: no such file or directory"]
    (here / "clip.mp4#t=1.25").touch()  # a file of that name is what is meant
    assert list(discover(["clip.mp4#t=1.25"])) == [ImageRef("clip.mp4#t=1.25")]


@pytest.mark.parametrize(("start", "end", "text"), [(0, None, "0"), (12_500, None, "12.5"), (3000, 8510, "3,8.51")])
def test_frame_paths_are_read_as_they_are_written(start: int, end: int | None, text: str) -> None:
    assert frame_path("a#b.mp4", start, end) == f"a#b.mp4#t={text}"
    assert split_path(frame_path("a#b.mp4", start, end)) == ("a#b.mp4", start, end)
    assert split_path("a.png#t=1") is split_path("a.mp4#t=x") is None


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.m4v", "a.mkv", "a.webm", "a.avi"])
def test_every_format_says_how_long_it_is(here: Path, name: str) -> None:
    write_video(here / name, cut([("red", 1.5)]))
    *_, last = discover([name])
    assert isinstance(last.content, Frame)
    assert (last.path, last.content.until) == (f"{name}#t=1", 1500)


def test_discover_lists_what_is_shown_not_what_is_heard(here: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 1)]), sound=4)
    assert found("a.mp4") == ["a.mp4#t=0"]


def test_a_video_that_is_cut_off_gives_what_it_has(here: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    whole = write_video(here / "whole.mkv", noise).read_bytes()
    (here / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    *frames, error = found("cut.mkv")
    assert frames == ["cut.mkv#t=0", "cut.mkv#t=1", "cut.mkv#t=2"]
    assert error.startswith("cut.mkv: cut off after ")
    assert error.endswith(" of its 6 seconds")


def test_what_is_no_video_is_one_error(here: Path) -> None:
    import av

    (here / "empty.mp4").touch()
    (here / "junk.mp4").write_bytes(b"no video " * 100)
    (here / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n")
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux([*stream.encode(silence), *stream.encode(None)])
    assert found("empty.mp4", "junk.mp4", "list.mp4", "sound.mp4", "http://a.example/b.mp4") == [
        "empty.mp4: empty file",
        "junk.mp4: no video, or a damaged one",
        "list.mp4: no video, or a damaged one",
        "sound.mp4: no pictures in it, only sound or other data",
        "http://a.example/b.mp4: a video on the web, which has to be downloaded first",
    ]


def test_a_picture_that_is_named_as_a_video_is_a_picture(here: Path) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.mp4", format="PNG")
    assert list(discover(["a.mp4"])) == [ImageRef("a.mp4")]


def test_without_pyav_a_video_is_one_error_that_names_the_extra(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert found(clip) == ["clip.mp4: a video needs the package av: pip install 'clipcls[video]'"]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_give_frames_only_if_they_are_asked_for(here: Path, name: str) -> None:
    first, *others = (Image.fromarray(plain(colour)) for colour in COLOURS)
    first.save(here / name, save_all=True, append_images=others, duration=[500, 1000, 700])
    first.save(here / f"still{name[1:]}")
    assert found(name) == [name]
    sampling = Sampling("keyframes")
    assert found(".", sampling=sampling) == [
        f"./{name}#t=0",
        f"./{name}#t=0.5",
        f"./{name}#t=1.5",
        f"./still{name[1:]}",
    ]
    *_, last = discover(Sources([name], sampling=Sampling("fps", 1)))
    assert isinstance(last.content, Frame)
    assert (last.path, last.content.until) == (f"{name}#t=2", 2200)


def test_an_unread_video_is_expanded_elsewhere(clip: str) -> None:
    sources = Sources([clip], sampling=Sampling("fps", 2))
    (unread,) = discover(sources, unread=True)
    assert unread == ImageRef(clip, content=Container("video"))
    assert list(expand(unread, sources)) == list(discover(sources))


@pytest.mark.parametrize("sampling", [("fps", 0), ("fps", float("nan")), ("fps", 2000), ("frames", 0)])
def test_sampling_out_of_range_is_refused(sampling: tuple[str, float]) -> None:
    with pytest.raises(UsageError, match=f"^--{sampling[0]} must be "):
        Sampling(*sampling)  # type: ignore[arg-type]

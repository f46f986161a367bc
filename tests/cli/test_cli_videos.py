"""Videos on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videos import cut, write_video

pytest.importorskip("av")

Run = Callable[..., Any]


@pytest.fixture
def clip(tmp_path: Path) -> str:
    write_video(tmp_path / "clip.mp4", cut([("red", 2), ("green", 2)]))
    return "clip.mp4"


def test_frames_are_rows_and_a_run_goes_on_with_the_same_sampling(clipcls: Run, clip: str, tiny_model: Path) -> None:
    given = ("predict", clip, "--labels", "red,green", "--model", tiny_model, "-o", "out.jsonl")
    assert clipcls(*given, "--fps", "2").returncode == 0
    again = clipcls(*given, "--fps", "2", "--resume")
    assert (again.returncode, again.stderr) == (0, b"clipcls: out.jsonl: going on after 8 images\n")
    other = clipcls(*given, "--fps", "1", "--resume")
    assert other.returncode == 2
    assert b"begun with other settings: --fps" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fps", "1", "--keyframes"), b"Give --fps, --frames or --keyframes, not several of them."),
        (("--fps", "0"), b"--fps must be above 0"),
        (("--per", "occurs"), b"--per occurs asks for each label by itself"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    clipcls: Run, clip: str, tiny_model: Path, options: tuple[str, ...], message: bytes
) -> None:
    done = clipcls("predict", clip, "--labels", "red,green", "--model", tiny_model, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_report_shows_frames(clipcls: Run, clip: str, tiny_model: Path) -> None:
    for per in ("frame", "video"):
        page = ("--report", f"{per}.html", "--output", f"{per}.jsonl", "--labels", "red,blue", "--per", per)
        done = clipcls("predict", clip, "--model", str(tiny_model), *page)
        assert done.returncode == 0 and b"can't be read again" not in done.stderr, done.stderr
    assert clipcls("report", "frame.jsonl").returncode == 0

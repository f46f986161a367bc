"""Answers for videos as a whole, and for segments of them."""

from pathlib import Path
from typing import Any

import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.video import Sampling
from clipcls.outputs.destination import Destination
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.predict.run import run
from clipcls.records import Per, Prediction
from conftest import FakeEncoder
from videos import cut, write_video

pytest.importorskip("av")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def classifier(per: Per, scoring: Scoring | None = None, **more: Any) -> Classifier:
    return Classifier(Session(FakeEncoder(), Execution()), ["red", "green", "blue"], ["{}"], scoring, per=per, **more)


def answers(
    inputs: list[str], per: Per, fps: float = 2, scoring: Scoring | None = None, stop: bool = False
) -> list[Prediction]:
    images = discover(Sources(inputs, sampling=Sampling("fps", fps)))
    return list(classifier(per, scoring).predict(images, lambda: stop))


def shown(predictions: list[Prediction]) -> list[tuple[str, str | None]]:
    return [(one.path, one.error or one.label) for one in predictions]


def test_segments_begin_where_the_picture_changes(here: Path, colours: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 3), ("green", 1), ("blue", 2.5)]))
    expected = [("a.mp4#t=0,3", "red"), ("a.mp4#t=3,4", "green"), ("a.mp4#t=4,6.5", "blue")]
    picture = (str(colours / "red.png"), "red")
    assert shown(answers(["a.mp4", picture[0], "a.mp4"], "segment")) == [*expected, picture, *expected]
    # between two frames, at most a step too late
    assert shown(answers(["a.mp4"], "segment", fps=0.4)) == [("a.mp4#t=0,5", "red"), ("a.mp4#t=5,6.5", "blue")]


def test_a_single_frame_makes_no_segment(here: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 2), ("blue", 0.2), ("red", 1.8), ("blue", 1)]))
    first, last = answers(["a.mp4"], "segment", fps=5)
    assert shown([first, last]) == [("a.mp4#t=0,4", "red"), ("a.mp4#t=4,5", "blue")]
    assert first.score == pytest.approx(answers(["a.mp4"], "frame")[0].score, abs=1e-3)  # the blue one doesn't count


def test_segments_of_nothing_known_have_no_label(here: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 1), ("green", 1), ("blue", 1)]))
    unknown = Scoring(threshold=1.0)
    assert shown(answers(["a.mp4"], "segment", scoring=unknown)) == [("a.mp4#t=0,3", None)]
    several = Scoring(multi_label=True, threshold=0.6)
    assert shown(answers(["a.mp4"], "segment", scoring=several)) == [
        *(("a.mp4#t=0,1", "red"), ("a.mp4#t=1,2", "green"), ("a.mp4#t=2,3", "blue"))
    ]


def test_a_video_is_what_most_of_it_shows(here: Path, colours: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 1), ("blue", 3)]))
    write_video(here / "b.mp4", cut([("green", 1)]))
    found = answers(["a.mp4", "b.mp4", str(colours / "red.png")], "video")
    assert shown(found) == [("a.mp4", "blue"), ("b.mp4", "green"), (str(colours / "red.png"), "red")]
    (frame, *_) = answers(["b.mp4"], "frame")
    assert found[1].score == pytest.approx(frame.score, abs=1e-6)


def test_what_occurs_is_found_however_short(here: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 4), ("blue", 0.5)]))
    scoring = Scoring(multi_label=True, threshold=0.6)
    (found,) = answers(["a.mp4"], "occurs", scoring=scoring)
    assert {one.label for one in found.top} == {"red", "blue"}
    frames = answers(["a.mp4"], "frame", scoring=Scoring("sigmoid", top_k=3))
    best = max(one.score for frame in frames for one in frame.top if one.label == "blue")
    assert next(one.score for one in found.top if one.label == "blue") == pytest.approx(best, abs=1e-6)


def test_errors_are_rows_beside_the_answer(here: Path) -> None:
    whole = write_video(here / "whole.mkv", cut([("red", 6)]), qp="0").read_bytes()
    (here / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    (here / "none.mp4").touch()
    (label, cut_off, none) = answers(["cut.mkv", "none.mp4"], "video")
    assert (label.path, label.label) == ("cut.mkv", "red")
    assert cut_off.path == "cut.mkv"
    assert "cut off after" in str(cut_off.error)
    assert none.error == "empty file"


def test_a_run_that_is_stopped_gives_no_answer_for_half_a_video(here: Path) -> None:
    write_video(here / "a.mp4", cut([("red", 4)]))
    assert answers(["a.mp4"], "video", fps=10, stop=True) == []


def test_what_videos_cannot_have_is_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="give --multi-label"):
        classifier("occurs")
    with pytest.raises(UsageError, match="--explain"):
        classifier("video", explain=True)
    with pytest.raises(UsageError, match="--resume goes on with rows of pictures and frames"):
        run(classifier("segment"), Sources(["a.mp4"]), Destination("a.tsv", resume=True))

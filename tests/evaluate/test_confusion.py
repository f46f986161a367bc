"""The most confused pairs, and the matrix as a picture."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from clipcls.errors import StoppedError
from clipcls.evaluate.confusion import Confusion, _fonts, _signs_of, draw_confusion, most_confused
from clipcls.evaluate.metrics import UNKNOWN, Answers, confusion_matrix

RIGHT = (8, 48, 107)  # the colour of a class whose images are all right


def confusion(truth: Any, predicted: Any, names: tuple[str, ...]) -> Confusion:
    return Confusion(names, confusion_matrix(np.array(truth), np.array(predicted), len(names)), ())


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.array(opened.convert("RGB"))


def test_most_confused_sorts_by_images_then_by_share() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    predicted = np.array([1, 1, 0, 2, 0, 1, 1, UNKNOWN, UNKNOWN, 1])
    score = np.linspace(0.1, 1.0, 10, dtype=np.float32)
    answers = Answers(truth, predicted, predicted, score)
    counts = confusion_matrix(truth, predicted, 3)
    pairs = most_confused(answers, counts, "abc", [f"{number}.png" for number in range(10)], 4)
    assert [(pair.truth, pair.predicted, pair.count) for pair in pairs] == [
        ("c", None, 2),
        ("a", "b", 2),
        ("b", "a", 1),
        ("c", "b", 1),
    ]
    assert pairs[0].share == pytest.approx(2 / 3)
    assert pairs[0].paths == ("8.png", "7.png")
    assert pairs[1].paths == ("1.png", "0.png")


def test_most_confused_is_empty_where_all_is_right() -> None:
    truth = np.array([0, 1])
    answers = Answers(truth, truth, truth, np.ones(2, np.float32))
    assert most_confused(answers, confusion_matrix(truth, truth, 2), "ab", ["0", "1"], 10) == ()


@pytest.mark.parametrize("classes", [1, 2, 30])
def test_draw_confusion_shows_each_class(tmp_path: Path, classes: int) -> None:
    truth = np.arange(classes)
    wrong = np.where(truth % 2 == 0, truth, (truth + 1) % classes)
    names = tuple(f"$class {number}" for number in range(classes))
    draw_confusion(confusion(truth, truth, names), "title", tmp_path / "right.png")
    draw_confusion(confusion(truth, wrong, names), "title", tmp_path / "wrong.png")
    right, other = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert right.shape == other.shape
    assert (right == RIGHT).all(axis=2).sum() >= classes
    assert (right == other).all() == (classes == 1)


def test_draw_confusion_of_many_classes_is_of_a_bearable_size(tmp_path: Path) -> None:
    truth = np.arange(400)
    draw_confusion(confusion(truth, truth, tuple(map(str, truth))), "title", tmp_path / "a.png")
    drawn = pixels(tmp_path / "a.png")
    assert (drawn == RIGHT).all(axis=2).sum() >= 400 and 2000 < max(drawn.shape) < 4000


def test_draw_confusion_has_a_column_of_no_answer_where_there_is_one(tmp_path: Path) -> None:
    draw_confusion(confusion([0, 1], [0, 1], ("a", "b")), "", tmp_path / "answered.png")
    draw_confusion(confusion([0, 1], [0, UNKNOWN], ("a", "b")), "", tmp_path / "unknown.png")
    assert pixels(tmp_path / "answered.png").shape != pixels(tmp_path / "unknown.png").shape


def test_draw_confusion_bears_names_that_no_font_has(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        draw_confusion(confusion([0, 1], [0, 0], ("猫\n", "x" * 500)), "", tmp_path / "a.png")
    assert max(pixels(tmp_path / "a.png").shape) < 1500


def test_signs_that_no_font_has_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    own = font_manager.fontManager.ttflist
    first = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [entry for entry in own if entry.fname == first])
    usual = _fonts(("cat", "Käfer"))
    assert not caplog.records
    assert _fonts(("\ud55c", "cat")) == usual
    assert "shows boxes for '\ud55c': no font of this machine has them; install one" in caplog.text
    # a font that has them is asked behind the usual one
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    more = _signs_of([entry.fname for entry in own if not entry.name.startswith("Last Resort")]) - _signs_of([first])
    sign = next(chr(number) for number in sorted(more) if chr(number).isprintable())
    assert not any("Last Resort" in name for name in _fonts((sign, "\ud55c")))
    assert len(_fonts((sign,))) == len(usual) + 1


def test_draw_confusion_leaves_no_half_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StoppedError, match=r"a\.png: can't be written"):
        draw_confusion(confusion([0], [0], ("a",)), "", tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

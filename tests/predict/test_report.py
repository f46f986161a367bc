"""What a report shows of predictions: which of them, in what order, and how they compare with the truth."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcls.errors import UsageError
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.predict.report import ReportPlan, margin, write_report
from clipcls.records import ImageRef, Prediction, ScoredLabel
from conftest import save_pictures


def answer(path: str, label: str, *scores: float, known: bool = True) -> Prediction:
    """A prediction whose second label is always the same."""
    top = tuple(ScoredLabel(name, score, 0.1) for name, score in zip((label, "other"), scores, strict=False))
    return Prediction(path, label if known else None, scores[0], 0.1, top)


def failed(path: str, error: str = "empty file") -> Prediction:
    return Prediction(path, None, None, None, error=error)


def truth_of(**labels: str) -> Truth:
    return Truth(tuple(Example(ImageRef(path), (label,)) for path, label in labels.items()), tuple(labels.values()))


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(predictions: Sequence[Prediction], **plan: Any) -> Any:
    """The data in the page."""
    write_report(predictions, Path("report.html"), ReportPlan("labels", **plan))
    page = Path("report.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def paths(data: Any) -> list[str]:
    return [row["path"] for row in data["rows"]]


def test_margin() -> None:
    assert margin(answer("a", "cat", 0.75, 0.25)) == 0.5
    assert margin(answer("a", "cat", 0.75)) == 0.75
    assert margin(answer("a", "cat", 0.75, 0.5), multi_label=True) == 0.5
    assert margin(Prediction("a", "cat", float("nan"), None)) == 0.0


def test_unknown_pictures_come_first_then_each_label_with_the_least_sure_first(in_folder: Path) -> None:
    rows = [answer("sure", "cat", 0.9, 0.1), answer("dog", "dog", 0.6, 0.5), answer("unsure", "cat", 0.5, 0.4)]
    data = written([*rows, answer("what", "cat", 0.3, 0.2, known=False), failed("bad")], labels=["cat", "dog", "emu"])
    assert paths(data) == ["what", "unsure", "sure", "dog"]
    assert data["labels"][:3] == ["cat", "dog", "emu"]
    assert (data["counts"], data["unknown"], data["failed"], data["total"]) == ([2, 1, 0], 1, 1, 5)
    assert data["failures"] == [["bad", "empty file"]]


def test_the_least_sure_are_chosen_and_all_are_counted(in_folder: Path) -> None:
    rows = [answer(f"{number}", "cat", 0.5 + number / 100, 0.5) for number in range(40)]
    data = written([*rows[20:], *rows[:20]], most=5)
    assert paths(data) == ["0", "1", "2", "3", "4"]
    assert (data["counts"][0], data["total"]) == (40, 40)
    assert sum(data["histogram"]["counts"]) == 40


def test_unknown_pictures_take_half_of_the_room_unless_more_is_free(in_folder: Path) -> None:
    unknown = [answer(f"u{number}", "cat", 0.1, known=False) for number in range(10)]
    known = [answer(f"k{number}", "cat", 0.9) for number in range(10)]
    assert paths(written([*unknown, *known], most=4)) == ["u0", "u1", "k0", "k1"]
    assert paths(written([*unknown, *known[:1]], most=4)) == ["u0", "u1", "u2", "k0"]


def test_pictures_are_small_and_what_is_gone_has_a_reason(in_folder: Path) -> None:
    (picture,) = save_pictures(in_folder / "pictures", 1, size=(800, 400))
    outcome = write_report(
        [answer("pictures/000.png", "cat", 0.5), answer("gone.png", "cat", 0.4)],
        Path("pages/report.html").parent.parent / "report.html",
        ReportPlan("labels", previews=Path("small ones")),
    )
    assert outcome.unreadable == (("gone.png", "no such file or directory"),)
    (preview,) = Path("small ones").rglob("*.webp")
    with Image.open(preview) as small:
        assert small.size == (160, 80)
    page = Path("report.html").read_text(encoding="utf-8")
    assert '"folder":"small%20ones/"' in page
    assert f'"preview":"{preview.relative_to("small ones").as_posix()}"' in page
    assert picture.exists()


def test_truth_gives_accuracy_and_confusion(in_folder: Path) -> None:
    rows = [
        *(answer("a", "hot dog", 0.9), answer("b", "cat", 0.9), answer("c", "cat", 0.2, known=False)),
        *(answer("unjudged", "cat", 0.9), failed("e")),
    ]
    truth = truth_of(a="Hot_Dog", b="hot_dog", c="cat", e="cat", absent="cat")
    data = written(rows, truth=truth)
    found = data["truth"]
    assert {key: found[key] for key in ("judged", "right", "without", "unseen")} == {
        "judged": 3,
        "right": 1,
        "without": 1,
        "unseen": 1,
    }
    names = [*data["labels"], "unknown"]
    assert {(names[known], names[given]): count for known, given, count in found["confusion"]} == {
        ("hot dog", "hot dog"): 1,
        ("hot dog", "cat"): 1,
        ("cat", "unknown"): 1,
    }
    wrong = {row["path"]: (names[row["truth"]], row["wrong"]) for row in data["rows"] if "truth" in row}
    assert wrong == {"a": ("hot dog", False), "b": ("hot dog", True), "c": ("cat", True)}


def test_wrong_answers_are_chosen_before_right_ones(in_folder: Path) -> None:
    rows = [answer(f"{number}", "cat", 0.5 + number / 100) for number in range(9)]
    data = written(rows, truth=truth_of(**{"8": "dog", "0": "cat"}), most=2)
    assert paths(data) == ["0", "8"]


def test_truth_that_does_not_fit(in_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"None of the predictions is of a picture of the truth\. The first .* of a, "):
        written([answer("a", "cat", 0.9)], truth=truth_of(b="cat"))
    with pytest.raises(UsageError, match="several labels a picture"):
        ReportPlan("labels", truth=Truth((), multi_label=True))
    with pytest.raises(UsageError, match="one picture or more"):
        ReportPlan("labels", most=0)
    with pytest.raises(UsageError, match="no predictions"):
        written([])


@pytest.mark.parametrize(
    ("scores", "low", "high", "bars"),
    [((0.0, 0.99, 1.0), 0.0, 1.0, 20), ((0.21, 0.29), 0.21, 0.3, 9), ((-0.1, 0.3), -0.1, 0.32, 14), ((), 0.0, 0.01, 1)],
)
def test_histogram(in_folder: Path, scores: Sequence[float], low: float, high: float, bars: int) -> None:
    data = written([failed("bad"), *(answer(str(score), "cat", score) for score in scores)])["histogram"]
    assert (data["low"], data["high"], len(data["counts"])) == pytest.approx((low, high, bars))
    assert sum(data["counts"]) == len(scores)


def test_the_same_predictions_have_the_same_name(in_folder: Path) -> None:
    rows = [answer("a", "cat", 0.5), answer("b", "dog", 0.5)]
    one = written(rows)["digest"]
    assert written([answer("a", "cat", 0.50001), rows[1]], most=1)["digest"] == one
    assert written([answer("a", "dog", 0.5), rows[1]])["digest"] != one

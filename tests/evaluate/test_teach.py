"""From labelled pictures to a taught file and its answers; the encoder is right by construction."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls import Classifier, Execution, Scoring, Session, UsageError, load_prompt_set
from clipcls.evaluate.evaluate import EvalPlan, evaluate
from clipcls.evaluate.teach import TeachPlan, TeachReport, teach
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.predict.taught import Taught, read_taught, taught_bytes
from clipcls.records import ImageRef
from conftest import FakeEncoder

HUES = {"warm": (230, 120, 20), "cold": (40, 120, 230), "pale": (220, 220, 200)}
SIMPLE = load_prompt_set("simple")


def save(folder: Path, count: int, hues: Sequence[str] = tuple(HUES), seed: int = 0) -> Path:
    """Plain pictures about the hues, in class folders; no word of these names is known to the encoder."""
    random = np.random.default_rng(seed)
    for name in hues:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = np.clip(np.array(HUES[name]) + random.normal(0, 25, 3), 0, 255).astype(np.uint8)
            Image.fromarray(np.full((8, 8, 3), colour)).save(folder / name / f"{number}.png")
    return folder


def plan(**settings: Any) -> TeachPlan:
    return TeachPlan(FakeEncoder(), Execution(), prompts=SIMPLE, **settings)  # type: ignore[arg-type]


def taught(folder: Path, **settings: Any) -> TeachReport:
    return teach(read_truth([str(folder)]), plan(**settings))


def answers(what: Taught, folder: Path, **scoring: Any) -> list[tuple[str, str | None]]:
    with Session(FakeEncoder(), Execution()) as session:
        found = Classifier(session, what, scoring=Scoring(**scoring)).predict([folder])
        return [(Path(one.path).parent.name, one.label) for one in found]


def test_classes_without_words_are_learned(tmp_path: Path) -> None:
    report = taught(save(tmp_path / "examples", 8))
    assert report.count == 24 and report.accuracy.value > 0.9 > 0.5 > report.zero_shot.value
    assert report.gain.low > 0 and report.p < 0.01 and not report.is_zero_shot
    found = answers(report.taught, save(tmp_path / "others", 20, seed=1))
    assert np.mean([right == label for right, label in found]) > 0.9
    assert report.taught.examples == (8, 8, 8)


def test_labels_without_examples_are_answered_still(tmp_path: Path) -> None:
    report = taught(save(tmp_path / "examples", 8, ["warm", "cold"]), labels=tuple(map(make_label, ["green", "cold"])))
    assert [label.name for label in report.taught.labels] == ["green", "cold", "warm"]
    assert report.taught.examples == (0, 8, 8) and np.isnan(report.recalls[0][0])
    (tmp_path / "green").mkdir()
    Image.new("RGB", (8, 8), (30, 220, 40)).save(tmp_path / "green" / "leaf.png")
    assert answers(report.taught, tmp_path / "green") == [("green", "green")]


def test_leave_one_out_finds_a_wrong_label(tmp_path: Path) -> None:
    folder = save(tmp_path / "examples", 8)
    (folder / "warm" / "0.png").rename(folder / "pale" / "wrong.png")
    report = taught(folder)
    first = report.suspects[0]
    assert Path(first.path).name == "wrong.png" and (first.label, first.likely) == ("pale", "warm")
    assert first.score < first.likely_score
    mine = next(one for one in report.answers if one.path == first.path)
    assert mine.label == "warm" and len(mine.top) == 3
    assert sum(entry.score for entry in mine.top) == pytest.approx(1, abs=1e-5)


def test_pictures_that_are_there_twice_count_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "examples", 4)
    (folder / "warm" / "again.png").write_bytes((folder / "warm" / "1.png").read_bytes())
    report = taught(folder)
    assert report.count == 12 and [Path(path).name for path in report.repeated] == ["again.png"]
    (folder / "cold" / "strange.png").write_bytes((folder / "warm" / "1.png").read_bytes())
    with pytest.raises(
        UsageError, match=r"The same picture has two labels: .*strange.png \(cold\) and .*1.png \(warm\)"
    ):
        taught(folder)


def test_examples_that_cannot_be_used(tmp_path: Path) -> None:
    folder = save(tmp_path / "examples", 2, ["warm"])
    with pytest.raises(UsageError, match=r"Examples of one label only \(warm\)"):
        taught(folder)
    with pytest.raises(UsageError, match=r"Examples of one label only \(warm\)"):
        taught(folder, labels=(make_label("red"), make_label("blue")))
    (folder / "cold").mkdir()
    (folder / "cold" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UsageError, match="Examples of one label only could be read"):
        taught(folder)
    several = Truth((Example(ImageRef("a.png"), ("x", "y")),), ("x", "y"), multi_label=True)
    with pytest.raises(UsageError, match="one label a picture"):
        teach(several, plan())


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "examples", 3)
    (folder / "cold" / "1.png").write_bytes(b"no picture")
    report = taught(folder)
    assert report.count == 8 and [Path(path).name for path, _ in report.failed] == ["1.png"]
    assert not any(path.endswith("cold/1.png") for path in report.taught.origin.paths)


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def encode_image(self, pixels: Any) -> Any:
            features = super().encode_image(pixels)
            features[1] = np.nan
            return features

    truth = read_truth([str(save(tmp_path / "examples", 3))])
    with pytest.raises(UsageError, match=r"The features of .*cold/1.png are no numbers"):
        teach(truth, replace(plan(), model=Broken()))  # type: ignore[arg-type]


def test_evaluation_beside_zero_shot_leaves_the_examples_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "pictures", 8)
    shown = read_truth([str(folder)])
    half = replace(shown, examples=shown.examples[::2])
    made = replace(teach(half, plan()).taught, name="pets.taught")
    what = EvalPlan(made.labels, (FakeEncoder(),), (made.prompts, made), execution=Execution())  # type: ignore[arg-type]
    outcome = evaluate(shown, what)
    assert outcome.images == 12 and [result.prompts for result in outcome.results] == ["simple", "pets.taught"]
    assert outcome.best == 1 and outcome.comparisons[0].difference.high < 0
    assert "12 pictures are examples that taught pets.taught, and left out" in outcome.caveats.problems
    with pytest.raises(UsageError, match=r"All pictures of the data are examples that taught pets\.taught"):
        evaluate(half, what)


# ------------------------------------------------------------------------------------------- answers and the file


@pytest.fixture
def made(tmp_path: Path) -> Taught:
    return taught(save(tmp_path / "examples", 4)).taught


def test_scores_are_the_softmax_of_what_was_taught(made: Taught, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    with Session(encoder, Execution()) as session:
        (found,) = Classifier(session, made, scoring=Scoring(top_k=3)).predict([tmp_path / "examples/warm/0.png"])
    pixels = np.asarray(Image.open(tmp_path / "examples/warm/0.png"))
    (feature,) = encoder.encode_image([pixels])
    logits = 10.0 * (made.head.weights.astype(np.float64) @ feature + made.head.bias)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    names = [label.name for label in made.labels]
    for entry in found.top:
        assert entry.score == pytest.approx(expected[names.index(entry.label)], abs=1e-4)
        (words,) = encoder.encode_text([f"a photo of a {entry.label}."])
        assert entry.similarity == pytest.approx(float(words @ feature), abs=2e-3)


def test_a_file_comes_back_as_it_was(made: Taught, tmp_path: Path) -> None:
    path = tmp_path / "pets.taught"
    path.write_bytes(taught_bytes(made))
    back = read_taught(path)
    assert (back.labels, back.prompts, back.examples, back.origin) == (
        made.labels,
        replace(made.prompts, description=""),
        made.examples,
        made.origin,
    )
    np.testing.assert_array_equal(back.head.weights, made.head.weights)
    assert back.digest == made.digest and back.name == str(path)
    assert answers(back, tmp_path / "examples") == answers(made, tmp_path / "examples")


def test_damaged_and_foreign_files_are_refused(made: Taught, tmp_path: Path) -> None:
    path, whole = tmp_path / "pets.taught", taught_bytes(made)
    damaged = [b"", b"labels: [cat]\n", whole[:100], whole[: len(whole) // 2], whole[:-30]]
    for place in range(40, len(whole) - 40, max(len(whole) // 40, 1)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            assert read_taught(path).digest == made.digest  # a byte that nothing depends on
        except UsageError as exc:
            assert str(exc).startswith(str(path)) and "clipcls teach" in str(exc)
    head = replace(made.head, bias=np.array([0, np.nan, 0], np.float32))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    others = [taught_bytes(replace(made, head=head)), taught_bytes(replace(made, examples=(1, 2)))]
    for content in [*others, *((tmp_path / name).read_bytes() for name in ("other.npz", "pickle.npy"))]:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"not a file that `clipcls teach` wrote, or damaged"):
            read_taught(path)
    with pytest.raises(UsageError, match="can't be read"):
        read_taught(tmp_path / "nowhere.taught")


class Another(FakeEncoder):
    def fingerprint(self, sha256: object) -> bytes:
        return b"other"


def test_another_model_is_refused_by_name(made: Taught) -> None:
    with Session(Another(), Execution()) as session, pytest.raises(UsageError, match="taught with model fake "):
        Classifier(session, made).embed_labels()


def test_another_precision_is_said(made: Taught, caplog: pytest.LogCaptureFixture) -> None:
    encoder = FakeEncoder()
    encoder.precision = "bf16"
    with caplog.at_level(logging.WARNING), Session(encoder, Execution()) as session:
        Classifier(session, made).embed_labels()
    assert "--precision fp32 then, bf16 now; scores differ a little" in caplog.text


def test_settings_that_go_with_no_taught_file(made: Taught) -> None:
    with Session(FakeEncoder(), Execution()) as session:
        with pytest.raises(UsageError, match="prompts of its own"):
            Classifier(session, made, "simple")
        for scoring in (Scoring("sigmoid"), Scoring("cosine"), Scoring(multi_label=True)):
            with pytest.raises(UsageError, match="are softmax scores"):
                Classifier(session, made, scoring=scoring)
        plain = Classifier(session, [label.name for label in made.labels], SIMPLE)
        assert "--taught" in Classifier(session, made).settings() and "--taught" not in plain.settings()

"""Several questions in one pass give what runs of their own give."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls import Classifier, Destination, Execution, Scoring, Session, Sources, UsageError, run, templates_set
from clipcls.labels.label_files import make_label
from clipcls.labels.questions import Question
from clipcls.outputs.formats import format_for
from clipcls.outputs.read_back import read_results
from clipcls.outputs.rows import RowShape
from clipcls.outputs.sinks import open_sink
from clipcls.predict.ask import Questionnaire, mean_features
from clipcls.records import Answer, ImageRef, Prediction, ScoredLabel
from conftest import FakeEncoder

HUES = templates_set(["a {} square"])
COLOUR = Question("colour", tuple(map(make_label, ["red", "green", "blue"])), HUES)
WARM = Question("warm", (make_label("warm", prompts=["red"]), make_label("cold", prompts=["blue"])), when=())
TAGS = Question("tags", COLOUR.labels, HUES, multi=True, threshold=0.5)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in {"a": (250, 10, 10), "b": (20, 230, 20), "c": (10, 90, 240), "d": (240, 220, 30)}.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def answers(pictures: Path, *questions: Question, **settings: Any) -> list[Prediction]:
    with Session(FakeEncoder(), Execution()) as session:
        return list(Questionnaire(session, questions, **settings).predict([pictures]))


def test_answers_equal_those_of_runs_of_their_own(pictures: Path) -> None:
    found = answers(pictures, COLOUR, WARM, TAGS, top_k=2)
    for question in (COLOUR, WARM, TAGS):
        scoring = Scoring(None, question.multi, None if question.multi else 2, question.threshold)
        with Session(FakeEncoder(), Execution()) as session:
            alone = list(Classifier(session, question.labels, question.prompts, scoring).predict([pictures]))
        for mine, own in zip(found, alone, strict=True):
            assert (mine.path, mine.error) == (own.path, own.error)
            answer = dict(mine.answers).get(question.name)
            if own.error is None:
                assert answer is not None
                assert (answer.label, answer.score, answer.top) == (own.label, own.score, own.top)
                assert answer.labels == (
                    tuple(entry.label for entry in own.top)
                    if question.multi and own.label
                    else (own.label,)
                    if own.label
                    else ()
                )


def test_pictures_are_embedded_once(pictures: Path) -> None:
    encoder = FakeEncoder()
    with Session(encoder, Execution()) as session:
        list(Questionnaire(session, [COLOUR, WARM, TAGS]).predict([pictures]))
    assert sum(encoder.batches) == 4


def test_a_question_is_asked_where_others_were_answered_so(pictures: Path) -> None:
    warm = Question("warm", WARM.labels, when=(("colour", ("red", "blue")),))
    after = Question("after", COLOUR.labels, HUES, when=(("warm", ("warm",)), ("tags", ("red",))))
    found = {Path(one.path).name: dict(one.answers) for one in answers(pictures, COLOUR, TAGS, warm, after)}
    assert found["a.png"]["warm"] is not None and found["a.png"]["warm"].label == "warm"
    assert found["b.png"]["warm"] is None and found["b.png"]["after"] is None
    assert found["c.png"]["warm"] is not None and found["c.png"]["after"] is None
    assert found["a.png"]["after"] is not None
    assert found["broken.png"] == {}


def test_a_preferred_choice_is_preferred_no_longer() -> None:
    """All pictures are reddish, so that plain red is the answer to most."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    colours = np.array([(200.0, 40.0, 40.0)] * 300) + np.eye(3)[truth] * 90 + random.normal(0, 12, (300, 3))
    images = [ImageRef(f"{row}.png", content=png(colour)) for row, colour in enumerate(colours)]
    with Session(FakeEncoder(), Execution()) as session:
        plain = Questionnaire(session, [COLOUR, TAGS])
        mean = mean_features(iter(images), session)
        np.testing.assert_allclose(mean, unit(colours.clip(0, 255)).mean(axis=0), atol=5e-3)
        found = list(plain.without_priors(mean).predict(images))
        before = list(plain.predict(images))
    right = np.array(["red", "green", "blue"])[truth]
    corrected = np.array([dict(one.answers)["colour"].label for one in found])  # type: ignore[union-attr]
    kept = np.array([dict(one.answers)["colour"].uncorrected.label for one in found])  # type: ignore[union-attr]
    plainly = np.array([dict(one.answers)["colour"].label for one in before])  # type: ignore[union-attr]
    assert (kept == plainly).all()
    assert (plainly == right).mean() < 0.4 < 0.85 < (corrected == right).mean()
    for one, other in zip(found, before, strict=True):  # several answers stay as they are
        assert dict(one.answers)["tags"] == dict(other.answers)["tags"]


def unit(colours: Any) -> Any:
    return colours / np.linalg.norm(colours, axis=1, keepdims=True)


def png(colour: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), tuple(int(value) for value in np.clip(colour, 0, 255))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("extension", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_come_back(extension: str, pictures: Path, tmp_path: Path) -> None:
    warm = Question("warm", WARM.labels, when=(("colour", ("red",)),))
    output = tmp_path / f"rows.{extension}"
    with Session(FakeEncoder(), Execution()) as session:
        asked = Questionnaire(session, [COLOUR, warm, TAGS])
        report = run(asked, Sources([pictures]), Destination(str(output)))
        expected = list(asked.predict([pictures]))
        if extension != "parquet":  # a resumed run has nothing left to do
            before = output.read_bytes()
            assert run(asked, Sources([pictures]), Destination(str(output), resume=True)).done == report.done == 5
            assert output.read_bytes() == before
            other = Questionnaire(session, [COLOUR])
            with pytest.raises(UsageError, match="--questions"):
                run(other, Sources([pictures]), Destination(str(output), resume=True))
    with output.open("rb") as file:
        found = list(format_for(output).read(file, "rows"))
    if extension == "tsv":
        expected = [one for one in expected if one.error is None]
    for one, other_one in zip(found, expected, strict=True):
        assert (one.path, one.error) == (other_one.path, other_one.error)
        for (name, answer), (also, right) in zip(one.answers, other_one.answers, strict=False):
            assert name == also and (answer is None) == (right is None)
            if answer is not None and right is not None:
                assert answer.label == right.label and answer.score == pytest.approx(right.score, rel=1e-6)


@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_several_answers_come_back_whatever_is_in_them(extension: str, tmp_path: Path) -> None:
    names, path = ("x;y", "back\\slash\\", ";", "two\nlines", "a, b", '"'), tmp_path / f"rows.{extension}"
    for own in (names, names[::-1], *((name,) for name in names), ()):
        top = tuple(ScoredLabel(name, 0.5, 0.5) for name in own)
        answer = Answer(own[0] if own else None, 0.5, 0.5, top, several=True)
        with open_sink(Destination(str(path), shape=RowShape(questions=("q",))), ()) as sink:
            sink.write(Prediction("a.png", None, None, None, answers=(("q", answer),)))
        (found,) = read_results(path, "q")
        assert found.label == (own[0] if own else None) and [entry.label for entry in found.top] == list(own)


def test_json_rows_have_an_object_a_question(pictures: Path, tmp_path: Path) -> None:
    with Session(FakeEncoder(), Execution()) as session:
        run(Questionnaire(session, [COLOUR]), Sources([pictures]), Destination(str(tmp_path / "rows.jsonl")))
    rows = {Path(row["path"]).name: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    first, broken = rows["a.png"], rows["broken.png"]
    assert first.keys() == {"path", "colour", "error"}
    assert first["colour"].keys() == {"label", "score", "similarity", "top"} and first["colour"]["label"] == "red"
    assert broken["colour"] is None and broken["error"]


def test_questions_go_to_another_process(pictures: Path) -> None:
    with Session(FakeEncoder(), Execution()) as session:
        asked = Questionnaire(session, [COLOUR, TAGS])
        asked = asked.without_priors(mean_features([ImageRef(str(path)) for path in pictures.glob("?.png")], session))
        expected = list(asked.predict([pictures]))
        sent = pickle.dumps(asked)
    with Session(FakeEncoder(), Execution()) as session:
        assert list(pickle.loads(sent).on(session).predict([pictures])) == expected


def test_no_questions(pictures: Path) -> None:
    with pytest.raises(UsageError, match="No questions"):
        answers(pictures)

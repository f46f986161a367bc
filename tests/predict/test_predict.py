"""The classifier as Python users meet it, with an encoder that is right by construction."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import UsageError
from clipcls.labels import vocabulary
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.records import ImageRef, Label, PromptSet

COLOURS = ["red", "green", "blue"]
LONG = "one two three four five six red"


@pytest.fixture
def classifier(fake_encoder: Any) -> Callable[..., Classifier]:
    """A classifier of the colours with the fake encoder."""

    def make(labels: Any = COLOURS, **options: Any) -> Classifier:
        session = Session(options.pop("model", lambda: fake_encoder), options.pop("execution", Execution()))
        return Classifier(session, labels, **({"prompts": "simple"} | options))

    return make


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("labels", [COLOURS, COLOURS[::-1]])
@pytest.mark.parametrize("prompts", ["simple", "default", PromptSet("mine", ("{}", "my {c}"))])
def test_predict_names_the_colours(
    classifier: Callable[..., Classifier], colours: Path, labels: list[str], prompts: Any
) -> None:
    predictions = list(classifier(labels, prompts=prompts).predict([colours]))
    assert [Path(prediction.path).stem for prediction in predictions] == sorted(COLOURS)
    for prediction in predictions:
        assert prediction.label == Path(prediction.path).stem
        assert prediction.error is None
        assert prediction.score is not None and prediction.score > 0.99
        assert prediction.similarity is not None and prediction.similarity > 0.99


def test_predict_scores_equal_the_formula(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any
) -> None:
    (prediction,) = classifier(scoring=Scoring(top_k=3)).predict([colours / "blue.png"])
    image = fake_encoder.encode_image(np.full((1, 8, 8, 3), (0, 0, 255), np.uint8))[0].astype(float)
    texts = fake_encoder.encode_text([f"a photo of a {colour}" for colour in COLOURS]).astype(float)
    exponentials = np.exp(10.0 * (texts @ image))
    by_label = {entry.label: entry.score for entry in prediction.top}
    np.testing.assert_allclose([by_label[c] for c in COLOURS], exponentials / exponentials.sum(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_predict_keeps_input_order_and_errors_in_place(
    classifier: Callable[..., Classifier], colours: Path, batch_size: int
) -> None:
    (colours / "bad.png").write_bytes(b"no picture")
    order = ["red.png", "bad.png", "blue.png", "missing.png", "green.png", "red.png"]
    run = classifier(execution=Execution(batch_size=batch_size)).predict(colours / name for name in order)
    predictions = list(run)
    assert [Path(prediction.path).name for prediction in predictions] == order
    assert [prediction.label for prediction in predictions] == ["red", None, "blue", None, "green", "red"]
    for prediction in predictions:
        assert (prediction.error is None) == (prediction.label is not None)
    bad = predictions[1]
    assert (bad.score, bad.similarity, bad.top) == (None, None, ())


def test_predict_takes_references_folders_and_globs(classifier: Callable[..., Classifier], colours: Path) -> None:
    paths = [ImageRef(str(colours / "red.png")), ImageRef("x", error="gone"), str(colours / "g*.png"), colours]
    predictions = list(classifier().predict(paths))
    assert [prediction.label for prediction in predictions] == ["red", None, "green", "blue", "green", "red"]
    assert predictions[1].error == "gone"


def test_predict_takes_one_path_as_one_path(
    classifier: Callable[..., Classifier], colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(colours)
    assert [prediction.label for prediction in classifier().predict("red.png")] == ["red"]


def test_predict_label_is_shown_as_given_and_asked_in_plain_words(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any
) -> None:
    labels = [Label("rouge", ("rouge", "red")), Label("B", (), ("so very blue",)), "dark_green"]
    predictions = list(classifier(labels).predict([colours]))
    assert [prediction.label for prediction in predictions] == ["B", "dark_green", "rouge"]
    assert fake_encoder.texts == ["a photo of a rouge", "a photo of a red", "so very blue", "a photo of a dark green"]


def test_predict_unknown_below_the_threshold(classifier: Callable[..., Classifier], colours: Path) -> None:
    predictions = list(classifier(["red", "blue"], scoring=Scoring(threshold=0.9)).predict([colours]))
    assert [prediction.label for prediction in predictions] == ["blue", None, "red"]
    assert all(prediction.score is not None for prediction in predictions)


# ------------------------------------------------------------------------------------------- laziness and caching


def test_classifier_opens_the_model_at_first_use_and_once(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any
) -> None:
    opened = []

    def model() -> Any:
        opened.append(fake_encoder)
        return fake_encoder

    lazy = classifier(model=model)
    run = lazy.predict([colours])
    assert opened == []
    list(run)
    list(lazy.predict([colours]))
    assert opened == [fake_encoder]
    assert len(fake_encoder.texts) == 3


def test_predict_streams(classifier: Callable[..., Classifier], colours: Path) -> None:
    pulled = 0

    def endless() -> Any:
        nonlocal pulled
        while True:
            pulled += 1
            yield ImageRef(str(colours / "red.png"))

    run = classifier(execution=Execution(batch_size=2)).predict(endless())
    assert [next(run).label for _ in range(5)] == ["red"] * 5
    assert pulled < 2000  # names alone are read further ahead
    run.close()


def test_classifier_second_one_finds_its_texts_in_the_cache(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any, tmp_path: Path
) -> None:
    execution = Execution(cache_dir=tmp_path / "cache")
    first = list(classifier(execution=execution).predict([colours]))
    fake_encoder.texts.clear()
    assert list(classifier(execution=execution).predict([colours])) == first
    assert fake_encoder.texts == []


# ------------------------------------------------------------------------------------------- warnings


def test_classifier_warns_by_name_of_labels_without_a_known_word(
    classifier: Callable[..., Classifier], fake_encoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary.write_words(tmp_path, {"red", "dark"})
    fake_encoder.words = str(tmp_path)
    labels = ["dark red", "zeppelin", Label("rot", ("rot", "red")), "tuba"]
    _ = classifier(labels).label_features
    (warning,) = warnings_in(caplog)
    assert "'zeppelin', 'tuba'" in warning and "'dark red'" not in warning and "'rot'" not in warning


def test_classifier_names_three_of_many_labels_without_a_known_word(
    classifier: Callable[..., Classifier], fake_encoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary.write_words(tmp_path, {"red"})
    fake_encoder.words = str(tmp_path)
    _ = classifier(["red", "zeppelin", *(f"thing{i}" for i in range(1200))]).label_features
    (warning,) = warnings_in(caplog)
    assert "of 'zeppelin', 'thing0', 'thing1' and 1,198 more; its scores for them mean nothing" in warning


@pytest.mark.parametrize("listed", [False, True])
def test_classifier_is_silent_where_all_is_well(
    classifier: Callable[..., Classifier],
    fake_encoder: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    listed: bool,
) -> None:
    vocabulary.write_words(tmp_path, COLOURS)
    fake_encoder.words = str(tmp_path) if listed else None
    _ = classifier().label_features
    assert warnings_in(caplog) == []


def test_classifier_warns_of_cut_prompts_also_from_the_cache(
    classifier: Callable[..., Classifier], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        _ = classifier(["red", LONG], execution=Execution(cache_dir=tmp_path / "cache")).label_features
        (warning,) = warnings_in(caplog)
        assert f"'a photo of a {LONG}'" in warning and "first 8 tokens" in warning


def test_classifier_counts_further_cut_prompts(
    classifier: Callable[..., Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    _ = classifier([LONG, f"{LONG} blue", "red"]).label_features
    (warning,) = warnings_in(caplog)
    assert "(and 1 more)" in warning


def test_classifier_strict_prompts_refuses_cut_ones(
    classifier: Callable[..., Classifier], tmp_path: Path, colours: Path
) -> None:
    for _ in range(2):  # also from the cache
        strict = classifier(["red", LONG], execution=Execution(cache_dir=tmp_path / "c", strict_prompts=True))
        with pytest.raises(UsageError, match=LONG):
            next(strict.predict([colours]))
    _ = classifier(execution=Execution(strict_prompts=True)).label_features


def test_classifier_warns_of_one_label_alone(
    classifier: Callable[..., Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    classifier(["red"])
    (warning,) = warnings_in(caplog)
    assert "always 1" in warning
    caplog.clear()
    classifier(["red"], scoring=Scoring("cosine"))
    classifier(["red"], scoring=Scoring("sigmoid"))
    classifier(["red", "blue"])
    assert warnings_in(caplog) == []


# ------------------------------------------------------------------------------------------- sigmoid


def test_predict_sigmoid_compares_with_the_background(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any
) -> None:
    sigmoid = classifier(scoring=Scoring("sigmoid", multi_label=True, threshold=0.6), background="my green")
    (prediction,) = sigmoid.predict([colours / "red.png"])
    image = fake_encoder.encode_image(np.full((1, 8, 8, 3), (255, 0, 0), np.uint8))[0].astype(float)
    red, background = fake_encoder.encode_text(["a photo of a red", "my green"]).astype(float)
    assert [entry.label for entry in prediction.top] == ["red"]
    assert prediction.score == pytest.approx(1 / (1 + np.exp(-10.0 * (red @ image - background @ image))), rel=1e-4)


def test_predict_background_is_a_photo_unless_given(classifier: Callable[..., Classifier], fake_encoder: Any) -> None:
    _ = classifier(scoring=Scoring("sigmoid")).label_features
    assert "a photo" in fake_encoder.texts


def test_predict_background_is_embedded_only_where_needed(
    classifier: Callable[..., Classifier], colours: Path, fake_encoder: Any
) -> None:
    fake_encoder.logit_bias = -5.0
    (prediction,) = classifier(scoring=Scoring("sigmoid")).predict([colours / "red.png"])
    assert prediction.similarity is not None
    assert prediction.score == pytest.approx(1 / (1 + np.exp(-(10.0 * prediction.similarity - 5.0))), rel=1e-4)
    fake_encoder.logit_bias = None
    _ = classifier().label_features
    assert "a photo" not in fake_encoder.texts


def test_predict_background_equal_to_a_prompt_scores_a_half(
    classifier: Callable[..., Classifier], colours: Path
) -> None:
    scoring = Scoring("sigmoid", top_k=3)
    (prediction,) = classifier(scoring=scoring, background="a photo of a red").predict([colours / "red.png"])
    assert prediction.label == "red" and prediction.score == pytest.approx(0.5, abs=1e-5)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([], {}),
        (["red", "RED"], {}),
        (["red", ""], {}),
        (["red", Label("r", ("r", "red"))], {}),
        ("red", {}),
        (COLOURS, {"prompts": "nosuch"}),
    ],
)
def test_classifier_refuses_what_cant_be_used_before_the_model(
    classifier: Callable[..., Classifier], labels: Any, options: dict[str, Any]
) -> None:
    def model() -> Any:
        pytest.fail("the model was opened")

    with pytest.raises(UsageError):
        classifier(labels, model=model, **options)


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1])
def test_execution_refuses_less_than_one(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        Execution(**{name: value})


def test_classifier_refuses_labels_with_equal_prompts(fake_encoder: Any) -> None:
    labels = [Label("a", ("a",), prompts=("red",)), Label("b", ("b",), prompts=("red",))]
    with pytest.raises(UsageError, match="same prompts"):
        Classifier(Session(lambda: fake_encoder), labels)


@pytest.mark.parametrize(
    "labels",
    ["red", b"red", {"red": ["scarlet"]}, {"red", "blue"}, [1, 2], [], None],
    ids=lambda value: str(type(value)),
)
def test_classifier_refuses_what_is_no_list_of_labels(labels: Any) -> None:
    with pytest.raises(UsageError):
        Classifier(Session(), labels)


@pytest.mark.parametrize("form", [Path, str, os.fsencode])
def test_predict_takes_a_single_path(fake_encoder: Any, colours: Path, form: Callable[[str], Any]) -> None:
    (prediction,) = Classifier(Session(fake_encoder), ["red", "blue"]).predict(form(str(colours / "blue.png")))
    assert prediction.label == "blue"


def test_classifier_takes_templates_and_an_encoder(fake_encoder: Any, colours: Path) -> None:
    classifier = Classifier(Session(fake_encoder), ["red", "blue"], ["one {}", "two {}"])
    assert [prediction.label for prediction in classifier.predict([colours / "red.png"])] == ["red"]
    assert fake_encoder.texts == ["one red", "two red", "one blue", "two blue"]


def test_classifier_refuses_a_background_that_has_no_effect(fake_encoder: Any) -> None:
    with pytest.raises(UsageError, match="background"):
        Classifier(Session(fake_encoder), ["red", "blue"], background="a wall")


def test_execution_refuses_an_unknown_decode_mode() -> None:
    with pytest.raises(UsageError, match="bogus"):
        Execution(decode="bogus")  # type: ignore[arg-type]


def test_strict_prompts_are_checked_before_any_is_embedded(fake_encoder: Any) -> None:
    classifier = Classifier(Session(fake_encoder, Execution(strict_prompts=True)), ["red", "blue " * 20])
    with pytest.raises(UsageError, match="strict"):
        _ = classifier.label_features
    assert fake_encoder.texts == []


def test_classifier_warns_of_a_background_that_a_bias_replaces(
    fake_encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake_encoder.logit_bias = -1.0
    classifier = Classifier(
        Session(fake_encoder), ["red", "blue"], scoring=Scoring(kind="sigmoid"), background="a wall"
    )
    with caplog.at_level(logging.WARNING, "clipcls"):
        _ = classifier.label_features
    assert "no effect" in caplog.text
    assert "a wall" not in fake_encoder.texts

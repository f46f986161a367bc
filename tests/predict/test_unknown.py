"""Pictures of none of the labels, told by words for other things."""

import csv
import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls import Classifier, Destination, Execution, Label, PromptSet, Scoring, Session, Sources, Unknown, run
from clipcls.errors import NOTICE, UsageError
from clipcls.labels.label_files import make_label
from clipcls.outputs.formats import format_for
from clipcls.outputs.read_back import predictions_in, read_predictions
from clipcls.predict.calibration import Calibration, CalibrationOrigin
from clipcls.predict.nearness import means_nearly
from clipcls.predict.unknown import embed_other_words, known_shares
from conftest import FakeEncoder

PLAIN = PromptSet("plain", ("{}",))
COLOURS = ("green", "blue")
Make = Callable[..., Classifier]


class Hashed(FakeEncoder):
    """Every text has a direction of its own; the temperature is CLIP's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 64
        self.logit_scale = float(np.log(100.0))

    def encode_text(self, texts: Any) -> Any:
        self.texts += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
        return unit(np.stack([np.random.default_rng(seed).standard_normal(64) for seed in seeds])).astype(np.float32)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def classifier(fake_encoder: FakeEncoder) -> Make:
    """A classifier of red, with green and blue as the other words."""

    def make(
        *labels: str, words: tuple[str, ...] | None = COLOURS, min_known: float = 0.5, **scoring: Any
    ) -> Classifier:
        chosen = Scoring(unknown=Unknown(min_known, words), **scoring)
        return Classifier(Session(fake_encoder, Execution()), labels or ("red",), PLAIN, chosen)

    return make


def other_words(words: tuple[str, ...] | None, *labels: str | Label, encoder: FakeEncoder | None = None) -> Any:
    session = Session(encoder or Hashed(), Execution())
    made = [label if isinstance(label, Label) else make_label(label) for label in labels]
    features = session.encoder.encode_text([label.texts[0] for label in made])
    return embed_other_words(Unknown(words=words), made, features, PLAIN, session)


def features_of(*texts: str) -> Any:
    return Hashed().encode_text(texts)


# ------------------------------------------------------------------------------------------- the share


@pytest.mark.parametrize(("n_labels", "n_words", "weight"), [(1, 1, 20), (3, 333, 20), (40, 333, 20), (90, 120, 45)])
def test_share_equals_the_formula(n_labels: int, n_words: int, weight: int) -> None:
    random = np.random.default_rng(3)
    images, labels, words = (
        unit(random.standard_normal((count, 16))).astype(np.float32) for count in (5, n_labels, n_words)
    )
    expected = []
    for image in images.astype(np.float64):
        positive = sum(np.exp(label @ image / 0.01) for label in labels.astype(np.float64))
        negative = sum(np.exp(word @ image / 0.01) for word in words.astype(np.float64))
        expected.append(positive / (positive + negative * weight / n_words))
    found = known_shares(images, labels, words, float(np.log(100.0)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-12)


def test_share_is_neglabels_where_the_words_are_as_many_as_they_weigh() -> None:
    random = np.random.default_rng(5)
    images, labels, words = (unit(random.standard_normal((n, 16))).astype(np.float32) for n in (7, 3, 20))
    logits = 100.0 * images.astype(np.float64) @ np.concatenate([labels, words]).T.astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = known_shares(images, labels, words, float(np.log(100.0)))
    np.testing.assert_allclose(found, softmax[:, :3].sum(axis=1), rtol=2e-5, atol=1e-12)


def test_share_is_the_same_in_any_batch() -> None:
    random = np.random.default_rng(4)
    images, labels, words = (unit(random.standard_normal((n, 16))).astype(np.float32) for n in (9, 2, 500))
    alone = [known_shares(image[None], labels, words, 4.6)[0] for image in images]
    assert known_shares(images, labels, words, 4.6).tolist() == alone


# ------------------------------------------------------------------------------------------- the words


def test_words_that_may_mean_a_label_are_left_out() -> None:
    words = ("dog", "poodle", "domestic dog", "animal", "boat", "Dogs", "cat")
    np.testing.assert_allclose(other_words(words, "dog"), features_of("boat", "Dogs", "cat"), atol=1e-6)


def test_synonyms_of_a_label_are_labels() -> None:
    label = make_label("pet", ["dog", "cat"])
    np.testing.assert_allclose(other_words(("poodle", "tabby", "boat"), label), features_of("boat"), atol=1e-6)


def test_words_near_a_label_are_left_out_in_any_language() -> None:
    class Bilingual(Hashed):
        def encode_text(self, texts: Any) -> Any:
            return super().encode_text([text.replace("小狗", "dog") for text in texts])

    words = ("dog", "boat", "car", "house")
    assert len(other_words(words, "小狗", encoder=Bilingual())) == 3
    assert means_nearly(np.empty((0, 4), np.float32), np.ones((2, 4), np.float32)).shape == (0,)


def test_model_with_a_vocabulary_compares_with_words_it_knows(tmp_path: Path) -> None:
    encoder = Hashed()
    encoder.words = str(tmp_path)
    (tmp_path / "words.txt").write_text("boat\ndog\nhot\n")
    found = other_words(("boat", "hot boat", "hot water", "car", "dog"), "dog", encoder=encoder)
    np.testing.assert_allclose(found, features_of("boat", "hot boat"), atol=1e-6)


def test_words_are_built_in_and_embedded_once(
    caplog: pytest.LogCaptureFixture, fake_encoder: FakeEncoder, tmp_path: Path
) -> None:
    caplog.set_level(NOTICE)
    with Session(fake_encoder, Execution(cache_dir=tmp_path / "cache")) as session:
        reports: list[tuple[int, int]] = []
        made = [Classifier(session, ["red"], PLAIN, Scoring(unknown=Unknown())) for _ in range(2)]
        made[0].embed_labels(lambda done, total: reports.append((done, total)))
        assert reports[-1] == (10_000, 10_000)
        said = [record for record in caplog.records if "10,000 words for other things" in record.getMessage()]
        assert len(said) == 1
        fake_encoder.texts.clear()
        caplog.clear()
        made[1].embed_labels()
    assert not fake_encoder.texts
    assert not caplog.records


def test_each_word_is_filled_into_one_template() -> None:
    encoder = Hashed()
    session, prompts = Session(encoder, Execution()), PromptSet("two", ("my {}", "your {}"))
    embed_other_words(Unknown(words=("boat",)), [make_label("dog")], features_of("dog"), prompts, session)
    assert encoder.texts == ["my boat"]


@pytest.mark.parametrize("words", [("dog", "poodle"), ("dogs",)])
def test_no_word_left_is_an_error(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="no word is left to compare pictures with: of"):
        other_words(words, "dog", "dogs")


@pytest.mark.parametrize(
    "settings", [{"min_known": -0.1}, {"min_known": 1.1}, {"min_known": float("nan")}, {"words": ()}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--min-known must lie|--unknown-words"):
        Unknown(**settings)
    with pytest.raises(UsageError, match="expected a list"):
        Unknown(words="dog")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "scoring",
    [{}, {"kind": "sigmoid"}, {"kind": "cosine"}, {"multi_label": True}, {"kind": "cosine", "threshold": -1.0}],
)
def test_pictures_of_other_things_are_unknown(classifier: Make, colours: Path, scoring: dict[str, Any]) -> None:
    for prediction in classifier(**scoring).predict([colours]):
        is_red = Path(prediction.path).stem == "red"
        assert prediction.label == ("red" if is_red else None)
        assert prediction.known is not None and (prediction.known > 0.99) == is_red
        assert prediction.score is not None and prediction.top


def test_scores_are_those_without_it(classifier: Make, fake_encoder: FakeEncoder, colours: Path) -> None:
    plain = Classifier(Session(fake_encoder, Execution()), ["red", "blue"], PLAIN).predict([colours])
    for without, prediction in zip(plain, classifier("red", "blue", min_known=0.0).predict([colours]), strict=True):
        assert without.known is None
        assert (without.label, without.score, without.top) == (prediction.label, prediction.score, prediction.top)


def test_calibration_of_scores_leaves_it_as_it_is(fake_encoder: FakeEncoder, colours: Path) -> None:
    session, scoring = Session(fake_encoder, Execution()), Scoring(unknown=Unknown(words=COLOURS))
    plain = Classifier(session, ["red", "blue"], PLAIN, scoring)
    hotter = Calibration(plain.basis(), CalibrationOrigin(9, "2026-01-31", "1"), 2.0, float(np.log(5.0)))
    calibrated = Classifier(session, ["red", "blue"], PLAIN, scoring, calibration=hotter)
    for without, prediction in zip(plain.predict([colours]), calibrated.predict([colours]), strict=True):
        assert without.known == prediction.known
        assert without.score != prediction.score or Path(without.path).stem == "green"


def test_threshold_may_be_reached_exactly(classifier: Make, colours: Path) -> None:
    (picture,) = classifier().predict([colours / "red.png"])
    assert picture.known is not None
    assert next(classifier(min_known=picture.known).predict([colours / "red.png"])).label == "red"
    (dimmer,) = classifier(min_known=float(np.nextafter(np.float32(picture.known), 2))).predict([colours / "red.png"])
    assert dimmer.label is None


def test_one_label_needs_no_other_score(classifier: Make, caplog: pytest.LogCaptureFixture) -> None:
    classifier()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_bad_picture_has_no_share(classifier: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (prediction,) = classifier().predict([tmp_path / "bad.png"])
    assert prediction.error is not None and prediction.known is None


def test_classifier_takes_its_words_along(classifier: Make, fake_encoder: FakeEncoder, colours: Path) -> None:
    made = classifier()
    made.embed_labels()
    fake_encoder.texts.clear()
    there = pickle.loads(pickle.dumps(made)).on(Session(fake_encoder, Execution(cache_dir=None)))
    assert [prediction.label for prediction in there.predict([colours])] == [None, None, "red"]
    assert not fake_encoder.texts


# ------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize("as_parts", [False, True])
def test_rows_say_how_far_a_picture_is_known(
    classifier: Make, colours: Path, tmp_path: Path, name: str, as_parts: bool
) -> None:
    (colours / "bad.png").write_bytes(b"no picture")
    expected = list(classifier().predict([colours]))
    path = tmp_path / name
    destination = (
        Destination(folder=tmp_path / "parts", format_name=path.suffix[1:]) if as_parts else Destination(str(path))
    )
    run(classifier(), Sources([str(colours)]), destination)
    path = next((tmp_path / "parts").glob("part-*")) if as_parts else path
    with path.open("rb") as file:
        found = list(read_predictions(file, format_for(path), name))
    assert [row.label for row in found] == [None, None, None, "red"]
    assert [row.known for row in found] == [row.known and float(f"{row.known:.7g}") for row in expected]


def test_only_rows_with_it_have_a_column(
    classifier: Make, fake_encoder: FakeEncoder, colours: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet

    plain = Classifier(Session(fake_encoder, Execution()), ["red"], PLAIN, Scoring("cosine"))
    for made, columns in ((classifier(), ["known"]), (plain, [])):
        for path in (tmp_path / "out.csv", tmp_path / "out.parquet"):
            run(made, Sources([str(colours)]), Destination(str(path)))
        with (tmp_path / "out.csv").open() as file:
            assert next(csv.reader(file))[7:] == columns
        assert pyarrow.parquet.read_schema(tmp_path / "out.parquet").names[7:] == columns


@pytest.mark.parametrize(
    ("kind", "as_parts"), [("csv", False), ("csv", True), ("jsonl", False), ("jsonl", True), ("parquet", True)]
)
def test_retried_errors_keep_the_column(
    classifier: Make, colours: Path, tmp_path: Path, kind: str, as_parts: bool
) -> None:
    good = (colours / "green.png").read_bytes()
    (colours / "green.png").write_bytes(b"no picture")
    where: dict[str, Any] = {"folder": tmp_path / "parts"} if as_parts else {"output": str(tmp_path / f"out.{kind}")}
    sources = Sources([str(colours)])
    assert run(classifier(), sources, Destination(**where, format_name=kind)).failed == 1
    (colours / "green.png").write_bytes(good)
    run(classifier(), sources, Destination(**where, format_name=kind, resume=True, retry_errors=True))
    files = sorted((tmp_path / "parts").glob("part-*")) if as_parts else [tmp_path / f"out.{kind}"]
    rows = [row for path in files for row in predictions_in(path)]
    assert sorted(Path(row.path).stem for row in rows) == ["blue", "green", "red"]
    assert all(row.known is not None and row.error is None for row in rows)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"min_known": 0.6}, r"--min-known \(0.5 then, 0.6 now\)"),
        ({"words": ("green", "blue", "white")}, "--unknown-words"),
        (None, r"--min-known \(0.5 then, not given now\)"),
    ],
)
def test_resume_refuses_other_settings(
    classifier: Make, fake_encoder: FakeEncoder, colours: Path, tmp_path: Path, changed: Any, name: str
) -> None:
    out = str(tmp_path / "out.jsonl")
    run(classifier(), Sources([str(colours)]), Destination(out))
    assert run(classifier(), Sources([str(colours)]), Destination(out, resume=True)).done == 3
    plain = Classifier(Session(fake_encoder, Execution()), ["red"], PLAIN)
    with pytest.raises(UsageError, match=name):
        run(plain if changed is None else classifier(**changed), Sources([str(colours)]), Destination(out, resume=True))


# ------------------------------------------------------------------------------------------- the command line


def test_command_line_takes_words_and_a_threshold(
    clipcls: Any, tiny_model: Path, tmp_path: Path, colours: Path
) -> None:
    (tmp_path / "words.txt").write_text("dog\nboat\nfield of wheat\n")
    common = ("predict", "colours", "--labels", "cat,dog", "--model", tiny_model, "--format", "jsonl")
    process = clipcls(*common, "--unknown-words", "words.txt", "--min-known", "1")
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(rows) == 3
    assert all(row["label"] is None and 0 < row["known"] < 1 for row in rows)


def test_command_line_refuses_words_it_cant_read(clipcls: Any, tmp_path: Path, colours: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"dog\n\xff\n")
    process = clipcls("predict", "colours", "--labels", "cat,dog", "--unknown-words", "words.txt")
    assert process.returncode == 2 and b"words.txt, line 2: not UTF-8" in process.stderr

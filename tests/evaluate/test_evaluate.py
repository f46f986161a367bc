"""Evaluations of models, with an encoder that is right by construction, and of predictions that were written."""

import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate.calibrate import CalibrationSettings, calibrate
from clipcls.evaluate.evaluate import EvalPlan, evaluate, evaluate_predictions
from clipcls.evaluate.results import (
    ACCURACY_AT_1,
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_AVERAGE_PRECISION,
    MEAN_RECALL,
    MICRO_F1,
    EvalOutcome,
    outcome_record,
)
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import load_prompt_set, templates_set
from clipcls.models.catalog import EMBEDDED
from clipcls.outputs.formats import find_format
from clipcls.outputs.sinks import encode
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.records import ImageRef, ModelSpec, Prediction, ScoredLabel
from conftest import EXAMPLES, TINY_CONFIG, FakeEncoder, save_model, save_pictures

COLOURS = ("red", "green", "blue")
LABELS = tuple(map(make_label, COLOURS))
SIMPLE = load_prompt_set("simple")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders of coloured pictures: in each but the last, one lies in the wrong class."""
    shades = {"red": ("red", "red", "green"), "green": ("green", "green", "blue"), "blue": ("blue", "blue", "blue")}
    for name, colours in shades.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            picture = Image.new("RGB", (8, 8), FakeEncoder.COLOURS[colour])
            picture.save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def plan(*encoders: Any, labels: Iterable[str] = COLOURS, **options: Any) -> EvalPlan:
    defaults: dict[str, Any] = {"prompts": (SIMPLE,), "execution": Execution()}
    return EvalPlan(tuple(map(make_label, labels)), encoders, **(defaults | options))


def values(outcome: EvalOutcome, result: int = 0) -> dict[str, float]:
    return {name: estimate.value for name, estimate in outcome.results[result].figures.items()}


def read(*paths: Path) -> Truth:
    return read_truth([str(path) for path in paths])


# ------------------------------------------------------------------------------------------- models


def test_evaluate_measures_what_is_right(data: Path, fake_encoder: Any) -> None:
    outcome = evaluate(read(data), plan(fake_encoder))
    figures = values(outcome)
    assert figures[ACCURACY_AT_1] == pytest.approx(7 / 9)
    assert figures["accuracy@3"] == 1.0
    assert figures[MEAN_RECALL] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert outcome.images == outcome.measured == 9
    (result,) = outcome.results
    assert [row.support for row in result.classes] == [3, 3, 3]
    # the labels are in the order of the plan, the folders in their own
    assert result.confusion is not None
    assert result.confusion.names == COLOURS
    assert result.confusion.counts[:, :3].tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 3]]
    assert [(pair.truth, pair.predicted, pair.count) for pair in result.confusion.pairs] == [
        ("red", "green", 1),
        ("green", "blue", 1),
    ]
    assert result.confusion.pairs[0].paths == (str(data / "red" / "2.png"),)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "cosine"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_evaluate_uses_the_scores_of_predict(tmp_path: Path, tiny_model: Path, kind: Any, batch_size: int) -> None:
    names = ("cat", "dog", "truck", "tree", "house", "key")
    for name in names:
        save_pictures(tmp_path / "data" / name, 4)
    truth = read(tmp_path / "data")
    execution = Execution(batch_size=batch_size)
    labels = tuple(map(make_label, names))
    outcome = evaluate(
        truth, EvalPlan(labels, (ModelSpec(str(tiny_model)),), (SIMPLE,), Scoring(kind), None, execution)
    )
    classifier = Classifier(Session(str(tiny_model), execution), labels, SIMPLE, Scoring(kind, top_k=6))
    predictions = list(classifier.predict([tmp_path / "data"]))
    right = [prediction.label == Path(prediction.path).parent.name for prediction in predictions]
    listed = [
        Path(prediction.path).parent.name in [entry.label for entry in prediction.top[:5]] for prediction in predictions
    ]
    figures = values(outcome)
    assert figures[ACCURACY_AT_1] == np.mean(right)
    assert figures["accuracy@5"] == np.mean(listed)
    reread = evaluate_predictions(truth, predictions, labels)
    assert values(reread) == pytest.approx(figures, abs=1e-6)
    assert reread.results[0].omitted.keys() == outcome.results[0].omitted.keys()
    np.testing.assert_equal(
        outcome_record(reread)["results"][0]["levels"], outcome_record(outcome)["results"][0]["levels"]
    )
    assert (CALIBRATION_ERROR in figures, BRIER_SCORE in figures) == (kind != "cosine", kind == "softmax")


def test_groups_of_predictions_are_those_of_the_run_that_made_them(data: Path, fake_encoder: Any) -> None:
    """A picture that can't be read is in no group."""
    rows = [f"{path},{path.parent.name},{'even' if number % 2 else ''}" for number, path in enumerate(data.glob("*/*"))]
    table = data.parent / "t.csv"
    (data / "bad.png").touch()
    table.write_text("\n".join(["path,label,kind", f"{data / 'bad.png'},red,bad", *rows]))
    truth = read_truth([str(table)], group_columns=("kind",))
    outcome = evaluate(truth, plan(fake_encoder))
    with Session(fake_encoder, Execution()) as session:
        classifier = Classifier(session, LABELS, SIMPLE, Scoring(top_k=3))
        judged = evaluate_predictions(truth, list(classifier.predict([data])), LABELS)
    measured = outcome_record(outcome)["results"][0]["groups"]
    assert [group["group"] for group in measured[0]["groups"]] == [["even"], ["(none)"]]
    assert sum(group["images"] for group in measured[0]["groups"]) == 9
    for ours, theirs in zip(
        outcome_record(judged)["results"][0]["groups"][0]["groups"], measured[0]["groups"], strict=True
    ):
        assert ours.pop("calibration_error") == pytest.approx(theirs.pop("calibration_error"), abs=1e-6)
        assert ours == theirs
    assert "groups" not in outcome_record(evaluate(read(data), plan(fake_encoder)))["results"][0]
    several = replace(truth, multi_label=True)
    for refused in (lambda: evaluate(several, plan(fake_encoder)), lambda: evaluate_predictions(several, [])):
        with pytest.raises(UsageError, match="needs one label an image"):
            refused()


def test_evaluate_embeds_pictures_once_for_all_prompt_sets(data: Path, fake_encoder: Any) -> None:
    sets = (SIMPLE, load_prompt_set("default"), templates_set(["{}"]))
    outcome = evaluate(read(data), plan(fake_encoder, prompts=sets))
    assert sum(fake_encoder.batches) == 9
    assert [(result.model, result.prompts) for result in outcome.results] == [
        ("fake", "simple"),
        ("fake", "default"),
        ("fake", "templates"),
    ]
    alone = evaluate(read(data), plan(FakeEncoder(), prompts=sets[1:2]))
    assert outcome_record(alone)["results"][0]["confusion"] == outcome_record(outcome)["results"][1]["confusion"]
    assert values(alone) == values(outcome, 1)


class Mistaken(FakeEncoder):
    """Takes what is red for green."""

    def encode_image(self, pixels: Any) -> Any:
        return super().encode_image(np.stack(pixels)[..., [1, 0, 2]] if len(pixels) else pixels)


def test_evaluate_compares_models_on_the_same_pictures(data: Path) -> None:
    outcome = evaluate(read(data), plan(Mistaken(), FakeEncoder()))
    assert outcome.best == 1
    worse, best = outcome.comparisons
    assert (best.difference.value, best.difference.low, best.difference.high, best.p) == (0.0, 0.0, 0.0, 1.0)
    assert worse.difference.value == pytest.approx(values(outcome)[ACCURACY_AT_1] - 7 / 9)
    assert worse.difference.low <= worse.difference.value <= worse.difference.high
    # red, red, and green twice, but for the picture that lies in the wrong class
    assert worse.p == pytest.approx(2 * 6 / 2**5)


def test_evaluate_takes_the_first_of_equally_good_results(data: Path) -> None:
    outcome = evaluate(read(data), plan(FakeEncoder(), FakeEncoder()))
    assert outcome.best == 0


def test_evaluate_leaves_out_pictures_that_cannot_be_read_for_all_models(data: Path) -> None:
    (data / "red" / "0.png").write_bytes(b"no picture")
    told: list[tuple[str, str]] = []
    progress: list[tuple[int, int]] = []
    watch = Watch(
        begin=lambda count, already: progress.append((count() if count else -1, already)),
        images=lambda done, failed: progress.append((done, failed)),
        failed=lambda path, error: told.append((path, error)),
    )
    outcome = evaluate(read(data), plan(FakeEncoder(), Mistaken()), watch)
    assert (outcome.images, outcome.measured) == (9, 8)
    assert values(outcome)[ACCURACY_AT_1] == pytest.approx(6 / 8)
    assert [path for path, _ in outcome.caveats.failed] == [str(data / "red" / "0.png")]
    assert told == list(outcome.caveats.failed)
    assert progress[0] == (18, 0) and progress[-1] == (18, 1)


def test_evaluate_leaves_out_shards_that_cannot_be_read(data: Path, fake_encoder: Any) -> None:
    truth = read(data)
    broken = Example(ImageRef("1.tar", "not a tar file"), ())
    outcome = evaluate(Truth((broken, *truth.examples), truth.classnames), plan(fake_encoder))
    assert (outcome.images, outcome.measured) == (10, 9)
    assert outcome.caveats.failed == (("1.tar", "not a tar file"),)
    assert values(outcome)[ACCURACY_AT_1] == pytest.approx(7 / 9)


def test_evaluate_refuses_data_of_which_nothing_can_be_read(data: Path, fake_encoder: Any) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"No picture can be read.*empty file"):
        evaluate(read(data), plan(fake_encoder))


def test_data_without_a_picture_are_refused_before_a_download(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\na.png,red\nb.png,green\n")
    truth = read(tmp_path / "table.csv")
    wanted = plan(lambda: pytest.fail("a model was downloaded first"), labels=truth.classnames)
    for measure in (evaluate, partial(calibrate, settings=CalibrationSettings())):
        with pytest.raises(UsageError, match=r"No picture can be read\. The first: .*a\.png: no such file"):
            measure(truth, wanted)


def test_evaluate_looks_at_all_models_before_the_first_picture(data: Path, fake_encoder: Any) -> None:
    with pytest.raises(UsageError, match="No model"):
        evaluate(read(data), plan(fake_encoder, ModelSpec("no/such/folder")))
    assert not fake_encoder.batches


def test_evaluate_counts_classes_without_a_label_as_wrong(data: Path, fake_encoder: Any) -> None:
    outcome = evaluate(read(data), plan(fake_encoder, labels=["red", "green", "white"]))
    figures = values(outcome)
    assert figures[ACCURACY_AT_1] == pytest.approx(4 / 9)
    assert figures[MEAN_RECALL] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert outcome.results[0].within == pytest.approx(4 / 6)
    assert dict(outcome.caveats.outside) == {"blue": 3}
    assert outcome.caveats.unseen == ("white",)
    assert outcome.classes.names == ("red", "green", "white", "blue")
    assert outcome.results[0].classes[3].recall == 0.0
    assert np.isnan(outcome.results[0].classes[2].recall)


def test_evaluate_counts_only_what_was_measured(data: Path, fake_encoder: Any) -> None:
    for path in [*(data / "blue").iterdir(), data / "green" / "0.png"]:
        path.write_bytes(b"")
    outcome = evaluate(read(data), plan(fake_encoder, labels=["red", "blue"]))
    assert dict(outcome.caveats.outside) == {"green": 2}
    assert outcome.caveats.unseen == ("blue",)
    assert outcome.measured == 5


def test_evaluate_refuses_labels_that_are_none_of_the_classes(data: Path, fake_encoder: Any) -> None:
    with pytest.raises(UsageError, match=r"None of the data's classes.*blue, green, red.*cat, dog"):
        evaluate(read(data), plan(fake_encoder, labels=["cat", "dog"]))


@pytest.mark.parametrize("labels", [["red"], ["red", "green"]])
def test_evaluate_names_the_k_that_there_are_labels_for(data: Path, fake_encoder: Any, labels: list[str]) -> None:
    figures = values(evaluate(read(data), plan(fake_encoder, labels=labels)))
    assert [name for name in figures if name.startswith("accuracy@")] == [
        f"accuracy@{k}" for k in range(1, len(labels) + 1)
    ]
    assert figures[f"accuracy@{len(labels)}"] == pytest.approx(3 * len(labels) / 9)


def test_evaluate_tells_of_paths_that_come_more_than_once(data: Path, fake_encoder: Any) -> None:
    truth = read(data)
    twice = Truth((*truth.examples, truth.examples[0]), truth.classnames)
    outcome = evaluate(twice, plan(fake_encoder))
    assert outcome.measured == 10
    assert len(outcome.caveats.repeated) == 1 and "2 times" in outcome.caveats.repeated[0]


# ------------------------------------------------------------------------------------------- several labels an image


@pytest.fixture
def several(data: Path) -> Truth:
    """Pictures with none, one and two labels."""
    rows = [("red/0", ["red"]), ("red/2", ["green", "red"]), ("green/0", []), ("green/2", ["blue", "violet"])]
    (data / "a.jsonl").write_text(
        "".join(json.dumps({"path": f"{path}.png", "labels": labels}) + "\n" for path, labels in rows)
    )
    return read(data / "a.jsonl")


def test_evaluate_judges_each_label_where_there_may_be_several(several: Truth) -> None:
    from sklearn.metrics import average_precision_score, f1_score

    encoder = FakeEncoder(logit_bias=-6.0)
    outcome = evaluate(several, plan(encoder, scoring=Scoring(multi_label=True)))
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
    paths = [example.image.path for example in several.examples]
    classifier = Classifier(
        Session(lambda: encoder, Execution()), COLOURS, SIMPLE, Scoring(multi_label=True, threshold=0.0)
    )
    scores = np.array(
        [
            [next(entry.score for entry in prediction.top if entry.label == name) for name in COLOURS]
            for prediction in classifier.predict(paths)
        ]
    )
    figures = values(outcome)
    assert figures[MEAN_AVERAGE_PRECISION] == pytest.approx(average_precision_score(truth, scores))
    assert figures[MICRO_F1] == pytest.approx(f1_score(truth, scores >= 0.5, average="micro"))
    assert dict(outcome.caveats.outside) == {"violet": 1}
    assert outcome.multi_label and outcome.results[0].confusion is None
    assert outcome.comparisons[0].p is None


def test_evaluate_takes_data_with_several_labels_for_what_they_are(several: Truth) -> None:
    encoder = FakeEncoder(logit_bias=-6.0)
    asked = evaluate(several, plan(encoder, scoring=Scoring(multi_label=True)))
    assert outcome_record(evaluate(several, plan(encoder))) == outcome_record(asked)


def test_evaluate_can_score_single_labels_each_by_itself(data: Path, fake_encoder: Any) -> None:
    outcome = evaluate(read(data), plan(fake_encoder, scoring=Scoring(multi_label=True)))
    assert list(values(outcome)) == [MEAN_AVERAGE_PRECISION, MICRO_F1]


# ------------------------------------------------------------------------------------------- predictions


def predicted(data: Path, **scoring: Any) -> list[Prediction]:
    classifier = Classifier(Session(lambda: FakeEncoder(), Execution()), COLOURS, SIMPLE, Scoring(**scoring))
    return list(classifier.predict([data]))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_evaluate_predictions_equals_the_run_that_wrote_them(data: Path, fake_encoder: Any, kind: str) -> None:
    content = encode(predicted(data, top_k=3), find_format(kind))
    reread = find_format(kind).read(io.BytesIO(content), "out")
    outcome = evaluate_predictions(read(data), reread)
    direct = evaluate(read(data), plan(fake_encoder))
    assert values(outcome) == pytest.approx(values(direct), abs=1e-6)
    assert not outcome.results[0].omitted


def test_evaluate_predictions_leaves_out_what_short_lists_cannot_tell(data: Path) -> None:
    outcome = evaluate_predictions(read(data), predicted(data))
    assert list(values(outcome)) == [ACCURACY_AT_1, MEAN_RECALL, CALIBRATION_ERROR]
    assert values(outcome)[ACCURACY_AT_1] == pytest.approx(7 / 9)
    omitted = outcome.results[0].omitted
    assert "--top-k 3" in omitted["accuracy@3"] and "--top-k 3" in omitted[BRIER_SCORE]


@pytest.mark.parametrize("score", [-0.1, 7.0, math.nan])
def test_evaluate_predictions_takes_no_score_for_a_probability_that_cannot_be_one(data: Path, score: float) -> None:
    predictions = predicted(data, top_k=3)
    predictions[0] = replace(predictions[0], score=score)
    outcome = evaluate_predictions(read(data), predictions)
    assert values(outcome)[ACCURACY_AT_1] == pytest.approx(7 / 9)
    reasons = outcome.results[0].omitted
    assert reasons.keys() == {CALIBRATION_ERROR, BRIER_SCORE} and "between 0 and 1" in reasons[CALIBRATION_ERROR]
    assert not outcome.results[0].levels


def test_evaluate_predictions_counts_unknown_as_wrong(data: Path) -> None:
    predictions = predicted(data, top_k=3, threshold=0.99)
    predictions[0] = Prediction(predictions[0].path, None, 0.5, 0.5, predictions[0].top)
    outcome = evaluate_predictions(read(data), predictions)
    assert values(outcome)[ACCURACY_AT_1] == pytest.approx(6 / 9)
    assert outcome.caveats.unknown == 1
    confusion = outcome.results[0].confusion
    assert confusion is not None
    assert confusion.pairs[0].predicted is None or confusion.counts[:, -1].sum() == 1


def test_evaluate_predictions_tells_what_is_missing_failed_and_unasked(data: Path) -> None:
    predictions = predicted(data)
    gone = predictions.pop(0)
    bad = predictions[0] = Prediction(predictions[0].path, None, None, None, error="empty file")
    other = Prediction("elsewhere.png", "red", 0.9, 0.3, (ScoredLabel("red", 0.9, 0.3),))
    outcome = evaluate_predictions(read(data), [*predictions, other])
    assert outcome.caveats.missing == (gone.path,)
    assert outcome.caveats.failed == ((bad.path, "empty file"),)
    assert outcome.caveats.unasked == ("elsewhere.png",)
    assert (outcome.images, outcome.measured) == (9, 7)


def test_evaluate_predictions_matches_paths_however_they_are_written(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = predicted(data)
    monkeypatch.chdir(data.parent)
    outcome = evaluate_predictions(read(Path("./data")), predictions)
    assert outcome.measured == 9


def test_evaluate_predictions_of_cosines_tells_no_calibration(data: Path) -> None:
    outcome = evaluate_predictions(read(data), predicted(data, kind="cosine", top_k=3))
    assert CALIBRATION_ERROR in outcome.results[0].omitted
    assert not outcome.results[0].levels


def test_evaluate_predictions_that_list_all_labels_knows_what_is_outside(data: Path) -> None:
    classifier = Classifier(Session(lambda: FakeEncoder(), Execution()), COLOURS[:2], SIMPLE, Scoring(top_k=2))
    outcome = evaluate_predictions(read(data), classifier.predict([data]))
    assert dict(outcome.caveats.outside) == {"blue": 3}


def test_evaluate_predictions_of_several_labels(several: Truth) -> None:
    encoder = FakeEncoder(logit_bias=-6.0)
    paths = [example.image.path for example in several.examples]
    found = {}
    for threshold in (0.0, 0.5):
        scoring = Scoring(multi_label=True, threshold=threshold)
        classifier = Classifier(Session(lambda: encoder, Execution()), COLOURS, SIMPLE, scoring)
        found[threshold] = evaluate_predictions(several, classifier.predict(paths), LABELS)
    direct = values(evaluate(several, plan(encoder)))
    assert values(found[0.0])[MEAN_AVERAGE_PRECISION] == pytest.approx(direct[MEAN_AVERAGE_PRECISION])
    assert values(found[0.5])[MICRO_F1] == pytest.approx(direct[MICRO_F1])
    assert MEAN_AVERAGE_PRECISION in found[0.5].results[0].omitted


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "holds no predictions"),
        ([Prediction("x.png", "red", 0.9, 0.3, (ScoredLabel("red", 0.9, 0.3),))], r"first prediction is of x\.png"),
    ],
)
def test_evaluate_predictions_refuses_those_of_other_pictures(
    data: Path, predictions: list[Prediction], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_predictions(read(data), predictions)


def test_evaluate_predictions_refuses_labels_that_were_not_given(data: Path) -> None:
    with pytest.raises(UsageError, match=r"'blue', which isn't among .* Give all"):
        evaluate_predictions(read(data), predicted(data), LABELS[:2])


# ------------------------------------------------------------------------------------------- as JSON's types


def test_record_is_json_without_numbers_that_are_none(data: Path, fake_encoder: Any) -> None:
    (data / "red" / "1.png").write_bytes(b"")
    outcome = evaluate(read(data), plan(fake_encoder, labels=[*COLOURS, "white"]))
    made = json.loads(json.dumps(outcome_record(outcome), allow_nan=False))
    assert made["results"][0]["figures"][ACCURACY_AT_1]["value"] == pytest.approx(6 / 8)
    assert made["results"][0]["classes"][3] == {
        "class": "white",
        "support": 0,
        "precision": None,
        "recall": None,
        "f1": None,
        "average_precision": None,
    }
    assert made["results"][0]["confusion"]["counts"][0] == [1, 1, 0, 0, 0]
    assert made["failed"] == [{"path": str(data / "red" / "1.png"), "error": "empty file"}]


# ------------------------------------------------------------------------------------------- against CLIP_benchmark


def flattened(picture: Path, target: Path) -> Path:
    """A picture on white, which only clipcls would put it on."""
    opened = Image.open(picture).convert("RGBA")
    white = Image.new("RGBA", opened.size, "white")
    Image.alpha_composite(white, opened).convert("RGB").save(target)
    return target


@pytest.mark.parametrize("seed", [1, 2, None])
def test_evaluate_equals_clip_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    # it makes numbers of arrays with one element, which NumPy 2.4 refuses
    monkeypatch.setattr(theirs, "float", lambda array: np.asarray(array).item(), raising=False)
    import open_clip
    import torch

    folder = EMBEDDED / "pictogram" if seed is None else save_model(tmp_path / "model", TINY_CONFIG, seed=seed)
    names = ["cat", "dog", "truck", "house", "key", "rose", "pizza"]
    if seed is None:
        found = [(path, name) for name in names for path in sorted(EXAMPLES.parent.glob(f"*s/*{name}*"))]
        examples = [(flattened(path, tmp_path / f"{path.stem}.png"), name) for path, name in found]
        assert len(examples) > 12
    else:
        examples = [(path, name) for name in names for path in save_pictures(tmp_path / name, 10)]
        random = np.random.default_rng(seed)
        for path, _ in examples:
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    templates = ["a photo of a {c}.", "a drawing of the {c}."]
    loader: Any = [
        (torch.stack([transform(Image.open(path).convert("RGB"))]), torch.tensor([names.index(name)]))
        for path, name in examples
    ]
    dataset = type("Loader", (list,), {"dataset": type("Dataset", (), {"classes": names})})(loader)
    expected = theirs.evaluate(model.eval(), dataset, tokenizer, names, templates, "cpu", amp=False)
    truth = Truth(tuple(Example(ImageRef(str(path)), (name,)) for path, name in examples), tuple(names))
    labels = tuple(map(make_label, names))
    spec = ModelSpec(str(folder), precision="fp32")
    asked = EvalPlan(labels, (spec,), (templates_set(templates),), execution=Execution(decode="exact"))
    figures = values(evaluate(truth, asked))
    assert figures[ACCURACY_AT_1] == pytest.approx(expected["acc1"], abs=1e-6)
    assert figures["accuracy@5"] == pytest.approx(expected["acc5"], abs=1e-6)
    assert figures[MEAN_RECALL] == pytest.approx(expected["mean_per_class_recall"], abs=1e-6)

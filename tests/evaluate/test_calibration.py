"""Calibrations, from labelled pictures to their file and to predictions; the encoder is right by construction."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate import before_after as corrections
from clipcls.evaluate import metrics
from clipcls.evaluate.before_after import ANSWERED, PRECISION, Scored, rule_for_f1, rule_for_precision
from clipcls.evaluate.calibrate import CalibrationReport, CalibrationSettings, calibrate
from clipcls.evaluate.evaluate import EvalPlan
from clipcls.evaluate.results import ACCURACY_AT_1, CALIBRATION_ERROR, LOG_LOSS, MICRO_F1
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import load_prompt_set
from clipcls.predict.calibration import Calibration, LabelThreshold, calibration_text, read_calibration, share_interval
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import LabelFeatures, Scoring
from clipcls.records import ImageRef
from conftest import FakeEncoder

COLOURS = ("red", "green", "blue")
SIMPLE = load_prompt_set("simple")


# ------------------------------------------------------------------------------------------- synthetic features


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), dtype=np.float32)


def scored(seed: int, scoring: Scoring, count: int = 4000, labels: int = 6) -> tuple[Scored, LabelFeatures]:
    """Images about their labels' features, seen by a model that is much too sure of itself."""
    random = np.random.default_rng(seed)
    texts = unit(random.normal(size=(labels, 16)))
    truth = random.integers(0, labels, count)[:, None] == np.arange(labels)
    if scoring.multi_label:
        truth |= random.random(truth.shape) < 0.1
    images = unit(truth.astype(float) @ texts + random.normal(size=(count, 16)) * 0.4)
    names = tuple("abcdefghij"[:labels])
    side = LabelFeatures(names, texts, math.log(100.0), background=unit(texts.sum(axis=0)))
    return Scored.make(images, truth, side, scoring), side


def applied(side: LabelFeatures, correction: corrections.Correction) -> LabelFeatures:
    assert correction.logit_scale is not None
    return replace(side, logit_scale=correction.logit_scale, logit_bias=correction.logit_bias)


def halves(data: Scored) -> tuple[Scored, Scored]:
    chosen = corrections.hold_out(data, 0.5, seed=0)
    return data.select(~chosen), data.select(chosen)


@pytest.mark.parametrize("scoring", [Scoring(), Scoring("sigmoid", multi_label=True)], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_of_one_half_lowers_the_error_of_the_other(scoring: Scoring, seed: int) -> None:
    data, side = scored(seed, scoring)
    one, other = halves(data)
    found = corrections.measure(other, side, applied(side, corrections.fit_scores(one, side)))
    before, after = found.before[CALIBRATION_ERROR], found.after[CALIBRATION_ERROR]
    assert after.high < before.low
    assert after.value < 0.05 < before.value
    assert found.after[LOG_LOSS].high < found.before[LOG_LOSS].low


@pytest.mark.parametrize(
    "scoring", [Scoring(), Scoring("cosine"), Scoring("sigmoid", multi_label=True)], ids=["softmax", "cosine", "multi"]
)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_of_one_half_hold_their_precision_on_the_other(scoring: Scoring, seed: int) -> None:
    data, side = scored(seed, scoring)
    one, other = halves(data)
    if scoring.kind != "cosine":
        side = applied(side, corrections.fit_scores(one, side))
    thresholds = corrections.fit_thresholds(one, side, rule_for_precision(0.95))
    values = [math.inf if found.threshold is None else found.threshold for found in thresholds]
    side = replace(side, thresholds=np.array(values, np.float32))
    (seen, unseen) = (corrections.measure(part, side, side) for part in (one, other))
    assert [(found.answers, found.right) for found in thresholds] == [(f.answers, f.right) for f in seen.labels]
    assert all(found.right >= 0.95 * found.answers for found in thresholds)
    assert sum(found.answers for found in unseen.labels) > 200
    held = [reaches(0.95, *pair) for pair in zip(seen.labels, unseen.labels, strict=True)]
    # of six intervals of 95 %, five at least hold it
    assert sum(held) >= 5


def reaches(target: float, seen: LabelThreshold, unseen: LabelThreshold) -> bool:
    """Whether a precision lies in the 95 % interval of unseen images, for a threshold that chance had its part in."""
    if not unseen.answers:
        return True
    share = 1 / (1 / seen.answers + 1 / unseen.answers) / unseen.answers
    return share_interval(round(share * unseen.right), round(share * unseen.answers))[1] >= target


def test_calibration_error_of_labels_is_that_of_all_pairs() -> None:
    data, side = scored(0, Scoring("sigmoid", multi_label=True), count=200)
    found = corrections.measure(data, side, side).before[CALIBRATION_ERROR].value
    pairs = metrics.calibration_error(data.scores(side).ravel(), data.truth.ravel())
    assert found == pytest.approx(float(pairs(np.ones((1, data.truth.size)))[0]), abs=1e-6)


def test_images_outside_the_labels_count_against_precision_but_not_for_temperature() -> None:
    data, side = scored(0, Scoring(), count=900)
    inside = data.select(np.arange(900) < 600)
    strange = data.truth & (np.arange(900) < 600)[:, None]
    mixed = replace(data, truth=strange, outside=~strange.any(axis=1))
    assert mixed.outside.sum() == 300
    assert corrections.fit_scores(mixed, side) == corrections.fit_scores(inside, side)
    rule = rule_for_precision(0.85)
    pairs = zip(
        corrections.fit_thresholds(inside, side, rule), corrections.fit_thresholds(mixed, side, rule), strict=True
    )
    assert all((mixed.threshold or 2.0) > (alone.threshold or 0.0) for alone, mixed in pairs)


def test_hold_out_takes_the_share_of_each_class_and_the_same_for_a_seed() -> None:
    data, _ = scored(0, Scoring(), count=1000)
    chosen = corrections.hold_out(data, 0.3, seed=5)
    counts = data.truth.sum(axis=0)
    assert data.select(chosen).truth.sum(axis=0).tolist() == [round(0.3 * count) for count in counts]
    assert (chosen == corrections.hold_out(data, 0.3, seed=5)).all()
    assert (chosen != corrections.hold_out(data, 0.3, seed=6)).any()


@pytest.mark.parametrize(("target", "least"), [(0.5, 2), (0.9, 10), (0.95, 20), (0.99, 100)])
def test_rule_for_precision_asks_for_room_for_one_wrong_answer(target: float, least: int) -> None:
    assert rule_for_precision(target).least == least
    assert rule_for_precision(target, 7).least == 7


@pytest.mark.parametrize("target", [0.0, 1.0, 95.0, math.nan])
def test_rule_for_precision_refuses_what_is_no_share(target: float) -> None:
    with pytest.raises(UsageError, match="--target-precision must lie between 0 and 1"):
        rule_for_precision(target)


# ------------------------------------------------------------------------------------------- pictures


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_shades(tmp_path / "data")


def save_shades(data: Path) -> Path:
    """Class folders of shades that get so close to one another that some are taken for the next."""
    random = np.random.default_rng(3)
    for number, name in enumerate(COLOURS):
        folder = data / name
        folder.mkdir(parents=True)
        for picture in range(40):
            shade = random.uniform(0, 160, 3)
            shade[number] += 90
            Image.new("RGB", (8, 8), tuple(shade.astype(int).tolist())).save(folder / f"{picture:02d}.png")
    return data


def read(path: Path) -> Truth:
    return read_truth([str(path)])


def plan(encoder: Any, labels: tuple[str, ...] = COLOURS, **options: Any) -> EvalPlan:
    defaults: dict[str, Any] = {"prompts": (SIMPLE,), "execution": Execution()}
    return EvalPlan(tuple(map(make_label, labels)), (encoder,), **(defaults | options))


def classifier(
    encoder: Any, calibration: Calibration | None, scoring: Scoring | None = None, explain: bool = False
) -> Classifier:
    session = Session(encoder, Execution())
    return Classifier(session, COLOURS, SIMPLE, scoring, calibration=calibration, explain=explain)


def saved(calibration: Calibration, path: Path) -> Calibration:
    path.write_text(calibration_text(calibration), encoding="utf-8")
    return read_calibration(path)


def made(data: Path, encoder: Any, **settings: Any) -> CalibrationReport:
    return calibrate(read(data), plan(encoder), CalibrationSettings(**settings))


def test_calibrate_tells_before_and_after(data: Path, fake_encoder: Any) -> None:
    report = made(data, fake_encoder, rule=rule_for_precision(0.9))
    assert report.held_out is None
    assert report.fitted.images == report.calibration.origin.images == 120
    before, after = report.fitted.before, report.fitted.after
    assert list(before) == list(after) == [ACCURACY_AT_1, CALIBRATION_ERROR, LOG_LOSS, ANSWERED, PRECISION]
    assert before[ACCURACY_AT_1].value == after[ACCURACY_AT_1].value == before[PRECISION].value < 0.9
    assert after[LOG_LOSS].value < before[LOG_LOSS].value
    assert after[PRECISION].value >= 0.9 > after[ANSWERED].value > 0.1
    assert report.calibration.temperature == pytest.approx(10 / math.exp(report.calibration.logit_scale or 0), abs=1e-6)


@pytest.mark.parametrize("rule", [None, rule_for_precision(0.9), rule_for_f1()], ids=["none", "precision", "f1"])
def test_predictions_with_a_calibration_are_what_was_measured(data: Path, tmp_path: Path, rule: Any) -> None:
    encoder = FakeEncoder()
    report = made(data, encoder, rule=rule)
    calibration = saved(report.calibration, tmp_path / "cal.yaml")
    predictions = list(classifier(encoder, calibration).predict(data))
    right = np.array([p.label == Path(p.path).parent.name for p in predictions])
    answered = np.array([p.label is not None for p in predictions])
    if rule is not None:
        assert answered.mean() == report.fitted.after[ANSWERED].value
        assert right[answered].mean() == pytest.approx(report.fitted.after[PRECISION].value)
        for name, found in zip(COLOURS, calibration.thresholds, strict=True):
            own = [p for p in predictions if p.label == name]
            assert (len(own), sum(Path(p.path).parent.name == name for p in own)) == (found.answers, found.right)
    else:
        assert answered.all()
    plain = list(classifier(encoder, None).predict(data))
    assert [p.top[0].label for p in plain] == [p.top[0].label for p in predictions]
    assert all(p.score != q.score and p.similarity == q.similarity for p, q in zip(plain, predictions, strict=True))


@pytest.mark.parametrize("logit_bias", [None, -5.0])
def test_predictions_of_several_labels_are_what_was_measured(data: Path, tmp_path: Path, logit_bias: Any) -> None:
    encoder, scoring = FakeEncoder(logit_bias), Scoring(multi_label=True)
    truth = replace(read(data), multi_label=True)
    report = calibrate(truth, plan(encoder, scoring=scoring), CalibrationSettings(rule_for_f1()))
    assert list(report.fitted.after) == [MICRO_F1, CALIBRATION_ERROR, LOG_LOSS, ANSWERED, PRECISION]
    calibration = saved(report.calibration, tmp_path / "cal.yaml")
    assert calibration.basis.background == ("a photo" if logit_bias is None else None)
    predictions = list(classifier(encoder, calibration, scoring).predict(data))
    given = [(entry.label, Path(p.path).parent.name) for p in predictions if p.label for entry in p.top]
    assert len(given) == sum(found.answers for found in calibration.thresholds)
    assert sum(label == truth for label, truth in given) == sum(found.right for found in calibration.thresholds)
    assert any(p.label is None for p in predictions) or len(given) >= len(predictions)


def test_predictions_by_cosine_thresholds(data: Path, tmp_path: Path, fake_encoder: Any) -> None:
    scoring = Scoring("cosine")
    report = calibrate(read(data), plan(fake_encoder, scoring=scoring), CalibrationSettings(rule_for_precision(0.9)))
    assert list(report.fitted.after) == [ACCURACY_AT_1, ANSWERED, PRECISION]
    calibration = saved(report.calibration, tmp_path / "cal.yaml")
    assert calibration.temperature is calibration.logit_scale is None
    predictions = list(classifier(fake_encoder, calibration, scoring).predict(data))
    assert np.mean([p.label is not None for p in predictions]) == report.fitted.after[ANSWERED].value < 1


def test_label_that_reaches_no_precision_is_never_answered(data: Path, tmp_path: Path, fake_encoder: Any) -> None:
    for path in (data / "red").iterdir():
        path.rename(data / "blue" / f"was-red-{path.name}")
    report = made(data, fake_encoder, rule=rule_for_precision(0.9, least=5))
    (red, _, _) = report.calibration.thresholds
    assert (red.threshold, red.images, red.answers, red.note) == (None, 0, 0, "never answered: no image of it")
    calibration = saved(report.calibration, tmp_path / "cal.yaml")
    predictions = list(classifier(fake_encoder, calibration).predict(data))
    reds = [p for p in predictions if p.top[0].label == "red"]
    assert reds and all(p.label is None for p in reds)


@pytest.mark.parametrize(
    ("rule", "threshold", "note"),
    [
        (rule_for_precision(0.9, least=200), None, r"never answered: \d+ answers, of 200 that it takes"),
        (rule_for_precision(0.999, least=33), None, "never answered: no threshold with 33 answers reaches 0.999"),
        (rule_for_f1(least=200), 0.0, "not fitted: 40 images of it, of 200 that it takes"),
    ],
)
def test_thresholds_that_cannot_be_fitted_say_why(
    data: Path, fake_encoder: Any, rule: Any, threshold: Any, note: str
) -> None:
    found = made(data, fake_encoder, rule=rule).calibration.thresholds
    assert all(entry.threshold == threshold and re.fullmatch(note, entry.note or "") for entry in found)


def test_calibrate_measures_on_what_is_held_out(data: Path, fake_encoder: Any) -> None:
    report = made(data, fake_encoder, rule=rule_for_precision(0.9, least=5), holdout=0.25)
    assert report.held_out is not None
    assert (report.fitted.images, report.held_out.images, report.calibration.origin.images) == (90, 30, 90)
    assert [found.images for found in report.held_out.labels] == [10, 10, 10]
    assert [found.images for found in report.calibration.thresholds] == [30, 30, 30]


def test_calibrate_keeps_the_temperature_where_no_answer_is_wrong(tmp_path: Path, fake_encoder: Any) -> None:
    for name, colour in FakeEncoder.COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / name / f"{number}.png")
    report = made(tmp_path / "data", fake_encoder)
    assert not report.is_fitted
    assert report.calibration.temperature == 1.0


def test_calibrate_leaves_out_pictures_that_cannot_be_read(data: Path, fake_encoder: Any) -> None:
    whole = made(data, fake_encoder).calibration
    (data / "green" / "00bad.png").write_bytes(b"no picture")
    seen: list[Any] = []
    watch = Watch(failed=lambda path, error: seen.append(path), images=lambda done, failed: seen.append((done, failed)))
    report = calibrate(read(data), plan(fake_encoder), CalibrationSettings(), watch)
    assert (
        [path for path, _ in report.failed]
        == [str(data / "green" / "00bad.png")]
        == [entry for entry in seen if isinstance(entry, str)]
    )
    assert seen[-1] == (121, 1)
    assert report.calibration.logit_scale == whole.logit_scale and report.fitted.images == 120


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"labels": ("red",)}, {}, "With one label its softmax score is always 1"),
        ({"scoring": Scoring("cosine")}, {}, "Cosines have no temperature"),
        ({"scoring": Scoring("cosine", multi_label=True, threshold=0.2)}, {}, "can't be calibrated"),
        ({"labels": ("red", "green", "white")}, {"holdout": 0.95}, "too few to fit anything"),
        ({"labels": ("red", "green", "blue")}, {"holdout": 0.001}, "leaves no image to measure on"),
        ({"labels": ("tree", "house")}, {}, "None of the data's classes is among the labels"),
    ],
)
def test_calibrate_refuses_what_tells_nothing(
    data: Path, fake_encoder: Any, options: Any, settings: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        calibrate(read(data), plan(fake_encoder, **options), CalibrationSettings(**settings))


def test_calibrate_of_few_pictures_is_refused(data: Path, fake_encoder: Any) -> None:
    truth = read(data)
    with pytest.raises(UsageError, match="9 images are too few to fit anything: give 10 or more"):
        calibrate(replace(truth, examples=truth.examples[:9]), plan(fake_encoder), CalibrationSettings())


def test_calibrate_of_one_class_is_possible_with_several_labels(data: Path, fake_encoder: Any) -> None:
    truth = read(data)
    one = replace(truth, examples=tuple(example for example in truth.examples if example.labels == ("red",)))
    report = calibrate(one, plan(fake_encoder), CalibrationSettings(rule_for_precision(0.9, least=5)))
    assert [found.images for found in report.calibration.thresholds] == [40, 0, 0]


def test_calibrate_of_no_readable_picture_names_the_first(tmp_path: Path, fake_encoder: Any) -> None:
    truth = Truth(tuple(Example(ImageRef(str(tmp_path / f"{n}.png")), ("red",)) for n in range(12)), ("red",))
    with pytest.raises(UsageError, match=r"No picture can be read. The first: .*0.png"):
        calibrate(truth, plan(fake_encoder), CalibrationSettings())


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_settings_refuse_what_is_no_share(share: float) -> None:
    with pytest.raises(UsageError, match="--holdout"):
        CalibrationSettings(holdout=share)


# ------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("rule", [None, rule_for_precision(0.9), rule_for_f1()], ids=["none", "precision", "f1"])
def test_file_holds_the_whole_calibration(data: Path, tmp_path: Path, fake_encoder: Any, rule: Any) -> None:
    calibration = made(data, fake_encoder, rule=rule).calibration
    again = saved(calibration, tmp_path / "cal.yaml")
    if rule is None:
        assert again == calibration
    else:
        assert again == replace(calibration, thresholds=again.thresholds)
        assert again.thresholds == calibration.thresholds
    assert again.digest == calibration.digest


def test_file_keeps_awkward_names(tmp_path: Path, fake_encoder: Any, data: Path) -> None:
    calibration = made(data, fake_encoder).calibration
    names = ("no", "1.5", "猫: #", "null", "a\nb")
    awkward = replace(calibration, basis=replace(calibration.basis, labels=names, model="C:\\x"))
    assert saved(awkward, tmp_path / "cal.yaml") == awkward


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What is in the file of a calibration with thresholds."""
    folder = tmp_path_factory.mktemp("calibration")
    report = made(save_shades(folder / "data"), FakeEncoder(), rule=rule_for_precision(0.9, least=5))
    saved(report.calibration, folder / "cal.yaml")
    return (folder / "cal.yaml").read_bytes()


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "cal.yaml").write_bytes(content)
    return tmp_path / "cal.yaml"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("clipcls_calibration",), 2, "a calibration of version 2, and this clipcls reads 1"),
        (("clipcls_calibration",), True, "a calibration of version True"),
        (("score", "temperature"), math.nan, "score: temperature: expected a number"),
        (("score", "temperature"), 0, "score: temperature: expected a number"),
        (("score", "logit_scale"), math.inf, "score: logit_scale: expected a number from -100 to 100, got inf"),
        (("score", "logit_scale"), "4", "score: logit_scale: expected a number"),
        (("score", "kind"), "softmin", "score: kind: expected one of softmax, sigmoid, cosine"),
        (("score", "multi_label"), 0, "score: multi_label: expected true or false"),
        (("score",), [], "score: expected names and values"),
        (("labels",), {}, "labels: expected a list of names and values"),
        (("labels",), [], "labels: expected one name or more, each once"),
        (("labels", 1, "name"), "red", "labels: expected one name or more, each once"),
        (("labels", 1, "name"), 5, "labels, entry 2: name: expected text"),
        (("labels", 2, "threshold"), math.nan, "labels, entry 3: threshold: expected a number from 0 to 1, got nan"),
        (("labels", 2, "threshold"), 1.5, "labels, entry 3: threshold: expected a number from 0 to 1"),
        (("labels", 2, "images"), -1, "labels, entry 3: images: expected a whole number"),
        (("thresholds", "rule"), "best", "thresholds: rule: expected one of"),
        (("fitted_on", "date"), None, "fitted_on: date: expected text"),
    ],
)
def test_file_with_a_wrong_value_is_refused_by_name(file: Path, keys: Any, value: Any, message: str) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_calibration(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_without_a_key_is_refused_by_name(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    paths = [(key,) for key in content] + [
        (part, key) for part in ("model", "prompts", "score", "fitted_on", "thresholds") for key in content[part]
    ]
    for path in paths:
        without = yaml.safe_load(file.read_text(encoding="utf-8"))
        place = without
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        broken = file.with_name("broken.yaml")
        broken.write_text(yaml.safe_dump(without), encoding="utf-8")
        if path == ("score", "logit_bias"):
            assert read_calibration(broken).logit_bias is None  # of softmax scores it means nothing
            continue
        with pytest.raises(UsageError, match=path[-1]):
            read_calibration(broken)


@pytest.mark.parametrize(
    "content", [b"", b"a: [1", b"5", b"[" * 1500, b"- a\n- b", b"a: 1\n\tb: 2", b"!!python/name:os.x"]
)
def test_file_that_is_no_calibration_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cal.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(f"{path}: not a calibration: ") and "\n" not in str(caught.value)


def test_file_cut_anywhere_is_refused_or_the_same(file: Path) -> None:
    whole, calibration = file.read_bytes(), read_calibration(file)
    for size in range(0, len(whole) - 1, 7):
        file.write_bytes(whole[:size])
        try:
            found = read_calibration(file)
        except UsageError as exc:
            assert str(exc).startswith(str(file)) and "\n" not in str(exc)
        else:
            # what the cut took away from the last row is told to people only
            assert found.digest == calibration.digest


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: can't be read: no such file"):
        read_calibration(tmp_path / "none.yaml")


# ------------------------------------------------------------------------------------------- where it is used


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "ff" * 32}, "the model was fake (ffffffffffff) and is fake (66616b65), with other weights"),
        ({"kind": "cosine"}, "they were --score cosine and are --score softmax"),
        ({"multi_label": True, "kind": "sigmoid"}, "they were --score sigmoid --multi-label and are --score softmax"),
        ({"labels": ("red", "green", "black")}, "the labels are without 'black' and with 'blue'"),
        ({"prompts": "0" * 64, "prompt_set": "other"}, "the prompts differ (other then, simple now)"),
        ({"background": "a thing"}, "the background was 'a thing' and is None"),
    ],
)
def test_calibration_of_other_scores_is_refused(
    file: Path, fake_encoder: Any, change: dict[str, Any], message: str
) -> None:
    calibration = read_calibration(file)
    other = replace(calibration, basis=replace(calibration.basis, **change))
    with pytest.raises(UsageError) as caught:
        classifier(fake_encoder, other).embed_labels()
    assert message in str(caught.value) and str(caught.value).startswith(str(file))


def test_calibration_allows_another_precision_and_says_so(
    file: Path, fake_encoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calibration = read_calibration(file)
    other = replace(calibration, basis=replace(calibration.basis, precision="bf16", decode="exact"))
    classifier(fake_encoder, other).embed_labels()
    assert "--precision bf16 then, fp32 now, --decode exact then, fast now" in caplog.text


def test_calibration_does_not_mind_the_order_of_labels(file: Path, data: Path, fake_encoder: Any) -> None:
    calibration = read_calibration(file)
    turned = Classifier(Session(fake_encoder, Execution()), COLOURS[::-1], SIMPLE, calibration=calibration)
    straight = classifier(fake_encoder, calibration)
    assert [p.label for p in turned.predict(data)] == [p.label for p in straight.predict(data)]


def test_calibration_with_thresholds_refuses_another(file: Path, fake_encoder: Any) -> None:
    with pytest.raises(UsageError, match="leave --threshold out"):
        classifier(fake_encoder, read_calibration(file), Scoring(threshold=0.5)).embed_labels()


def test_calibration_without_thresholds_goes_with_one(data: Path, fake_encoder: Any) -> None:
    calibration = made(data, fake_encoder).calibration
    answers = list(classifier(fake_encoder, calibration, Scoring(threshold=0.5)).predict(data))
    assert any(p.label is None for p in answers) and all((p.score or 0) >= 0.5 for p in answers if p.label)


def test_calibration_edited_in_one_place_of_two_is_refused(file: Path, fake_encoder: Any) -> None:
    calibration = replace(read_calibration(file), temperature=3.0)
    with pytest.raises(UsageError, match="Change both or neither"):
        classifier(fake_encoder, calibration).embed_labels()


def test_settings_tell_calibrations_apart(file: Path, fake_encoder: Any) -> None:
    calibration = read_calibration(file)
    found = [classifier(fake_encoder, entry).settings() for entry in (None, calibration, calibration)]
    assert "--calibration" not in found[0] and found[1] == found[2]
    first = replace(calibration.thresholds[0], threshold=0.123)
    other = replace(calibration, thresholds=(first, *calibration.thresholds[1:]))
    assert classifier(fake_encoder, other).settings() != found[1]
    later = replace(calibration, origin=replace(calibration.origin, date="2030-01-01"))
    assert classifier(fake_encoder, later).settings() == found[1]


def test_explanations_tell_the_margin_of_calibrated_scores(file: Path, data: Path, fake_encoder: Any) -> None:
    used = classifier(fake_encoder, read_calibration(file), Scoring(top_k=2), explain=True)
    for prediction in used.predict(data):
        best, second = prediction.top
        assert prediction.explanation is not None
        assert prediction.explanation.margin == pytest.approx(best.score - second.score)

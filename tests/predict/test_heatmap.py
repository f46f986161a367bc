"""Heat maps by hiding parts of pictures, with an encoder that is right by construction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.embed.cache.store import Cache
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.images.heat_panels import Sheet, colour_of, draw_sheet, overlay
from clipcls.images.lettering import font_for
from clipcls.inputs.listing import Sources
from clipcls.predict.classifier import Classifier
from clipcls.predict.heat_files import HeatDestination, write_heat_maps
from clipcls.predict.heatmap import HeatMapper, HeatSettings
from clipcls.predict.ranking import Scoring
from clipcls.records import ImageRef
from conftest import FakeEncoder

PLAIN = HeatSettings("occlusion", weighted=False)


def classifier(labels: tuple[str, ...] = ("red", "green", "blue"), **scoring: Any) -> Classifier:
    return Classifier(Session(FakeEncoder(), cache=Cache(None)), labels, ["{}"], Scoring(**scoring))


def corners(path: Path) -> ImageRef:
    """A picture that is red at its top left, green at its bottom right, and grey elsewhere."""
    pixels = np.full((8, 8, 3), 128, dtype=np.uint8)
    pixels[:2, :2] = (255, 0, 0)
    pixels[6:, 6:] = (0, 255, 0)
    Image.fromarray(pixels).save(path)
    return ImageRef(str(path))


def test_maps_point_at_what_speaks_for_a_label(tmp_path: Path) -> None:
    found = HeatMapper(classifier(), PLAIN).map_picture(corners(tmp_path / "corners.png"))
    maps = {label.label: values for label, values in zip(found.labels, found.values, strict=True)}
    assert found.values.shape == (3, 8, 8) and found.values.dtype == np.float32
    assert np.unravel_index(maps["red"].argmax(), (8, 8)) == (0, 0)
    assert np.unravel_index(maps["green"].argmax(), (8, 8)) == (7, 7)
    assert maps["red"][7, 7] < 0


def test_value_is_the_fall_of_the_logit(tmp_path: Path) -> None:
    made = classifier()
    found = HeatMapper(made, PLAIN).map_picture(corners(tmp_path / "corners.png"))
    hidden = found.pixels.copy()
    hidden[:2, :2] = 128  # the mean of the preprocessing, 0.5
    encoder = FakeEncoder()
    before, after = encoder.encode_image([found.pixels, hidden]) @ made.label_features.features[0] * 10
    maps = {label.label: values for label, values in zip(found.labels, found.values, strict=True)}
    assert maps["red"][0, 0] == pytest.approx(before - after, abs=1e-5)


def test_against_others_and_weights(tmp_path: Path) -> None:
    image = corners(tmp_path / "corners.png")
    plain = HeatMapper(classifier(), PLAIN).map_picture(image)
    against = HeatMapper(classifier(), HeatSettings("occlusion", True, False, 2)).map_picture(image)
    weighted = HeatMapper(classifier(), HeatSettings("occlusion")).map_picture(image)
    assert against.labels == plain.labels[:2]
    others = plain.values[1:].mean(axis=0)
    np.testing.assert_allclose(against.values[0], plain.values[0] - others, atol=1e-6)
    scores = np.array([label.score for label in plain.labels])[:, None, None]
    np.testing.assert_allclose(weighted.values, plain.values * scores, atol=1e-6)


def test_absent_label_is_darker_than_a_present_one(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    found = HeatMapper(classifier(), HeatSettings("occlusion")).map_picture(ImageRef(str(tmp_path / "red.png")))
    assert found.labels[0].label == "red"
    assert found.values[0].max() > 10 * found.values[1:].max()


def test_number_of_labels_drawn(tmp_path: Path) -> None:
    names = ("red", "green", "blue", "red green", "red blue", "green blue", "red green blue")
    image = corners(tmp_path / "corners.png")
    assert len(HeatMapper(classifier(names[:6]), PLAIN).map_picture(image).labels) == 6
    assert len(HeatMapper(classifier(names), PLAIN).map_picture(image).labels) == 5
    with pytest.raises(UsageError, match="needs a second label"):
        HeatMapper(classifier(("red",), multi_label=True), HeatSettings(against_others=True))


def test_files_have_one_scale_and_safe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    corners(tmp_path / "in" / "a.png")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "in" / "a.bmp")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    made = classifier(("red", "green/blue"))
    failed: list[str] = []
    report = write_heat_maps(
        made,
        Sources(["in", "./in/a.png"]),
        HeatDestination(Path("out"), npy=True),
        HeatSettings("occlusion"),
        watch=Watch(failed=lambda path, error: failed.append(path)),
    )
    assert (report.done, report.failed) == (4, 1) and failed == ["in/bad.png"]
    drawings = ["in_a-2.png", "in_a-3.png", "in_a.png"]
    labels = ["green_blue", "red"]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(
        [*drawings, *(f"{name[:-4]}.{label}.npy" for name in drawings for label in labels)]
    )
    values = np.load("out/in_a.red.npy")
    assert values.shape == (8, 8) and values.dtype == np.float32
    with pytest.raises(UsageError, match="is for one picture"):
        write_heat_maps(made, Sources(["in"]), HeatDestination(Path("one.png")))


def test_colours_mean_values() -> None:
    picture = Image.new("L", (6, 4), 255).convert("RGB")
    values = np.array([[0.0, 2.0], [-1.0, 1.0]], dtype=np.float32)
    drawn = np.asarray(overlay(picture, values, 2.0)).astype(int)
    assert (drawn[0, 0] == drawn[3, 2]).all() and drawn.shape == (4, 6, 3)
    assert (np.abs(np.diff(drawn[:, :3], axis=1)) == 0).all() and (drawn[0, 2] != drawn[0, 3]).any()
    # brighter with every step, so that it is readable in grey
    grey = colour_of(np.linspace(0, 1, 100, dtype=np.float32)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > 0).all()
    # the same value has the same colour on another sheet of the call, and nothing is stretched
    assert (np.asarray(overlay(picture, values / 2, 2.0))[0, 5] == drawn[3, 5]).all()
    smooth = np.asarray(overlay(picture, values, 2.0, smooth=True))
    assert len(np.unique(smooth[0], axis=0)) > 2


def test_sheet_without_any_evidence_is_dark() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    sheet = Sheet("p.png", pixels, ["a very long label " * 9 + "0.5", "猫 0.5"], np.zeros((2, 2, 2), np.float32), 0.0)
    assert draw_sheet(sheet).width >= 3 * 224


def test_gradient_of_a_tiny_model(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = corners(tmp_path / "corners.png")
    made = Classifier(Session(str(tiny_model), cache=Cache(None)), ["cat", "dog"])
    found = HeatMapper(made, HeatSettings())
    heat = found.map_picture(image)
    assert found.method == "gradient" and heat.values.shape == (2, 2, 2)
    (prediction,) = Classifier(made.session, ["cat", "dog"], scoring=Scoring(top_k=2)).predict([image])
    assert [label.label for label in prediction.top] == [label.label for label in heat.labels]
    assert heat.labels[0].score == pytest.approx(prediction.top[0].score, abs=1e-3)
    against = HeatMapper(made, HeatSettings(against_others=True, weighted=False)).map_picture(image).values
    np.testing.assert_allclose(against[0], -against[1], atol=1e-6)
    monkeypatch.setattr("clipcls.predict.heatmap._MOST_GRADIENTS", 1)
    with pytest.raises(UsageError, match="use --method occlusion"):
        HeatMapper(made, HeatSettings(against_others=True)).map_picture(image)


def test_signs_that_no_font_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert font_for("café 0.5", 12).getlength("café") > 0
    assert not caplog.messages
    font_for("\U000f1234 0.5", 12)
    font_for("\U000f1234 0.7", 12)
    assert len(caplog.messages) == 1 and "boxes are drawn" in caplog.messages[0]

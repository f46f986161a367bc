"""Models converted and quantised ahead. Quantising itself is stood in for: it takes seconds, and the tests of the
command line do it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.images import embed_images
from clipcls.embed.prepare import convert_ahead, list_again, quantise_ahead
from clipcls.embed.session import Session
from clipcls.errors import ModelError, UsageError
from clipcls.inputs.listing import Sources
from clipcls.models.encoder import Encoder
from clipcls.records import ImageRef, ModelSpec
from conftest import save_pictures

pytestmark = pytest.mark.usefixtures("one_thread", "compiled")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `auto` choose OpenVINO."""
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: True)


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for NNCF: towers stay as they are. Returns how many pictures each was quantised on."""
    sizes: list[int] = []

    def quantise(model: Any, batch: Any) -> Any:
        sizes.append(len(batch))
        return model

    monkeypatch.setattr("clipcls.models.runtime.quantise._quantised", quantise)
    return sizes


@pytest.fixture
def pictures(tmp_path: Path) -> list[ImageRef]:
    return [ImageRef(str(path)) for path in save_pictures(tmp_path / "pictures", 40)]


@pytest.fixture
def session(tiny_model: Path, tmp_path: Path) -> Callable[[str], Session]:
    """Opens a session in a precision; all share a cache."""

    def opened(precision: str, **asked: str) -> Session:
        spec = ModelSpec(str(tiny_model), device="cpu", precision=precision, **asked)
        return Session(spec, Execution(cache_dir=tmp_path / "cache"))

    return opened


def features(session: Session, images: list[ImageRef]) -> Any:
    return np.concatenate([batch.features for batch in embed_images(images, session)])


def hits(caplog: pytest.LogCaptureFixture, session: Session, images: list[ImageRef]) -> str:
    """What a run says of the pictures that it had in the cache."""
    caplog.clear()
    with caplog.at_level("INFO", "clipcls"), session:
        features(session, images)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("images: ")]
    return line


# ------------------------------------------------------------------------------------------- converting


def test_convert_ahead_leaves_nothing_to_torch(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with session("fp32") as first:
        computed = convert_ahead(first)
    assert list(computed) == ["image tower", "text tower"]
    assert all(line.startswith("OpenVINO, fp32, ") for line in computed.values())
    monkeypatch.setattr("clipcls.models.encoder.load_encoder", lambda _: pytest.fail("opened with torch"))
    with session("fp32") as second:
        assert convert_ahead(second) == computed
        assert second.encoder.encode_text(["cat"]).shape == (1, 32)


def test_convert_ahead_says_why_it_cannot(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        session("fp32", runtime="torch") as opened,
        pytest.raises(UsageError, match="--runtime torch converts nothing"),
    ):
        convert_ahead(opened)
    with session("fp32") as opened:
        monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: False)
        with pytest.raises(UsageError, match=r"needs OpenVINO: pip install 'clipcls\[openvino\]'"):
            convert_ahead(opened)


# ------------------------------------------------------------------------------------------- quantising


def test_model_is_quantised_once_on_pictures_of_the_job(
    session: Any, pictures: list[ImageRef], quantised: list[int], tmp_path: Path
) -> None:
    with session("int8") as opened, pytest.raises(UsageError, match="isn't quantised yet: clipcls models prepare"):
        _ = opened.facts
    (tmp_path / "bad.png").write_bytes(b"no picture")
    listed = [ImageRef(str(tmp_path / "bad.png")), ImageRef("gone.png", error="no such file"), *pictures]
    for _ in range(2):
        with session("int8") as opened:
            quantise_ahead(opened, lambda: listed)
            assert opened.facts.precision == "int8" and len(opened.facts.calibration) == 16
            assert np.abs(features(opened, pictures) - features(session("fp32"), pictures)).max() <= 1e-5
    assert quantised == [30]  # and the others held out
    with session("int8") as opened:
        quantise_ahead(opened, lambda: pytest.fail("listed"))
        image, text = convert_ahead(opened).values()
    assert image.startswith("OpenVINO, int8, ") and text.startswith("OpenVINO, fp32, ")


def test_other_precisions_are_not_quantised(session: Any, quantised: list[int]) -> None:
    with session("fp32") as opened:
        quantise_ahead(opened, lambda: pytest.fail("listed"))
    assert quantised == []


def test_quantised_anew_only_for_other_pictures(session: Any, pictures: list[ImageRef], quantised: list[int]) -> None:
    names = []
    for chosen in (pictures, pictures, pictures[:20], pictures):
        with session("int8") as opened:
            quantise_ahead(opened, lambda chosen=chosen: chosen, anew=True)
            names.append(opened.facts.calibration)
    assert quantised == [30, 15, 30]
    assert names[0] == names[1] == names[3] != names[2]


def test_features_of_another_calibration_are_not_taken_from_the_cache(
    session: Any,
    pictures: list[ImageRef],
    quantised: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clipcls.records.RACY_SECONDS", 0.0)

    def quantise(chosen: list[ImageRef]) -> None:
        with session("int8") as opened:
            quantise_ahead(opened, lambda: chosen, anew=True)

    quantise(pictures)
    assert hits(caplog, session("int8"), pictures) == "images: 0 of 40 from the cache"
    assert hits(caplog, session("int8"), pictures) == "images: 40 of 40 from the cache"
    quantise(pictures[:20])
    assert hits(caplog, session("int8"), pictures) == "images: 0 of 40 from the cache"
    quantise(pictures)
    assert hits(caplog, session("int8"), pictures) == "images: 40 of 40 from the cache"
    assert hits(caplog, session("fp32"), pictures) == "images: 0 of 40 from the cache"


def test_model_quantised_anew_during_a_run_is_an_error(
    session: Any, pictures: list[ImageRef], quantised: list[int]
) -> None:
    with session("int8") as opened, session("int8") as other:
        quantise_ahead(opened, lambda: pictures)
        _ = opened.facts
        quantise_ahead(other, lambda: pictures[:20], anew=True)
        with pytest.raises(ModelError, match=r"has been quantised anew meanwhile. Run it again"):
            features(opened, pictures)


def test_too_few_pictures_are_refused(session: Any, pictures: list[ImageRef], quantised: list[int]) -> None:
    for count in (0, 15):
        with session("int8") as opened, pytest.raises(UsageError, match=f"at least 16 .* there are {count}"):
            quantise_ahead(opened, lambda count=count: pictures[:count])
    assert quantised == []
    with session("int8") as opened:
        quantise_ahead(opened, lambda: pictures[:16])
    assert quantised == [12]


def test_nncf_is_asked_for_before_any_picture_is_read(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.models.runtime.quantise.find_spec", lambda _: None)
    with session("int8") as opened, pytest.raises(UsageError, match=r"needs NNCF once.*pip install 'clipcls\[int8\]'"):
        quantise_ahead(opened, lambda: pytest.fail("listed"))


def test_tower_that_cannot_be_quantised_is_an_error(
    session: Any, pictures: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise RuntimeError("Exception from src/core:\nno rule for Bessel\n")

    monkeypatch.setattr("clipcls.models.runtime.quantise._quantised", unknown)
    with session("int8") as opened, pytest.raises(ModelError, match="can't be quantised: no rule for Bessel"):
        quantise_ahead(opened, lambda: pictures)


def test_tower_that_stays_with_torch_has_no_int8(
    session: Any, pictures: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/core:\nno rule for Bessel\n")

    monkeypatch.setattr("openvino.convert_model", unknown)
    with session("int8") as opened, pytest.raises(ModelError, match=r"isn't converted .*no rule for Bessel.* no int8"):
        quantise_ahead(opened, lambda: pictures)


def test_quantised_tower_that_cannot_be_kept_is_an_error(
    session: Any, pictures: list[ImageRef], quantised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with session("fp32") as opened:
        convert_ahead(opened)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.save_model", full)
    with session("int8") as opened, pytest.raises(ModelError, match=r"can't be kept in .*as on a full disk"):
        quantise_ahead(opened, lambda: pictures)


def test_model_that_changes_while_it_is_read_is_not_prepared(
    session: Any, pictures: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.models.encoder.have_changed", lambda *_: True)
    with session("int8") as opened, pytest.raises(UsageError, match="in the cache, and this run has none"):
        quantise_ahead(opened, lambda: pictures)
    assert isinstance(session("fp32").encoder, Encoder)


def test_standard_input_cannot_be_listed_again(pictures: list[ImageRef]) -> None:
    again = [image.path for image in list_again(Sources([image.path for image in pictures]))]
    assert again == [image.path for image in pictures]
    for sources in (Sources(["-"]), Sources([], files_from="-")):
        with pytest.raises(UsageError, match=r"standard input can't be read twice.*models prepare"):
            list_again(sources)

"""What is measured of a model while it is trained."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from clipcls import Classifier, ModelSpec
from clipcls.embed.session import Session
from clipcls.errors import ModelError, StoppedError, UsageError
from clipcls.evaluate import retrieval
from clipcls.models.catalog import EMBEDDED
from clipcls.train import validation
from clipcls.train.settings import TrainSettings
from clipcls.train.validation import Validated, Validation
from conftest import EXAMPLES, FakeEncoder, save_pictures


def settings(**given: Any) -> TrainSettings:
    return TrainSettings(**{"data": "", "arch": "", "output": "", "device": "cpu", "precision": "fp32"} | given)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """Stands for every model folder; it knows red, green and blue."""
    encoder = FakeEncoder()
    monkeypatch.setattr(validation, "load_encoder", lambda spec: encoder)
    return encoder


def write_table(folder: Path, rows: Sequence[tuple[str, str]]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"image": image, "caption": caption}) for image, caption in rows))
    return str(path)


# ---- recall


def test_validation_finds_every_caption_of_a_right_model(fake: FakeEncoder, colours: Path) -> None:
    pairs = write_table(colours, [(f"{name}.png", f"something {name}") for name in FakeEncoder.COLOURS])
    figures = Validation(settings(validation=pairs)).measure(Path("model"))
    assert figures == {f"{way}_recall@{k}": 1.0 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}


def test_validation_takes_pictures_out_of_parquet_and_stores(fake: FakeEncoder, colours: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = list(FakeEncoder.COLOURS)
    data = [(colours / f"{name}.png").read_bytes() for name in names]
    pq.write_table(pa.table({"image": data, "caption": names}), colours / "a.parquet")
    store = MemoryFileSystem()
    for name, content in zip(names, data, strict=True):
        store.pipe(f"/held-out/{name}/1.png", content)
    try:
        given = settings(validation=str(colours / "a.parquet"), zero_shot="memory://held-out/")
        figures = Validation(given).measure(Path("model"))
    finally:
        store.rm("/held-out", recursive=True)
    assert figures["image_to_text_recall@1"] == figures["zero_shot_accuracy"] == 1.0


def test_validation_takes_rows_of_one_picture_as_one(fake: FakeEncoder, colours: Path) -> None:
    rows = [(f"{name}.png", text) for name in FakeEncoder.COLOURS for text in (name, f"so {name}", "nothing")]
    figures = Validation(settings(validation=write_table(colours, rows))).measure(Path("model"))
    assert figures["image_to_text_recall@1"] == 1.0
    # "nothing" is as near to each picture as to the others, and all of them are right
    assert figures["text_to_image_recall@1"] == 1.0


def test_validation_takes_captions_that_differ_in_case_and_spacing_as_one(fake: FakeEncoder, colours: Path) -> None:
    rows = [("red.png", "a red"), ("red.png", "A  red"), ("blue.png", "a RED"), ("blue.png", "blue")]
    Validation(settings(validation=write_table(colours, rows))).measure(Path("model"))
    assert fake.texts == ["a red", "blue"]


@pytest.mark.parametrize(
    ("templates", "texts"),
    [
        (("{}",), ["red", "猫"]),
        (("a {}", "{}"), ["red", "猫"]),
        (("a {}", "the {}"), ["a red", "猫"]),
        (("a {}", "一张{}"), ["a red", "一张猫"]),
    ],
)
def test_validation_puts_captions_into_templates_only_where_the_model_never_saw_bare_ones(
    fake: FakeEncoder, colours: Path, templates: tuple[str, ...], texts: list[str]
) -> None:
    pairs = write_table(colours, [("red.png", "red"), ("blue.png", "猫")])
    Validation(settings(validation=pairs, templates=templates)).measure(Path("model"))
    assert fake.texts == texts


# ---- accuracy


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three folders of pictures."""
    folder = tmp_path / "classes"
    for number, path in enumerate(save_pictures(tmp_path / "all", 24)):
        place = folder / ("hot_dog", "cat", "fire engine")[number % 3] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    return folder


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_validation_counts_the_pictures_that_predict_gets_right(tmp_path: Path, monkeypatch: Any, chunk: int) -> None:
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", chunk)
    names = {"cat": "cat", "dog": "dog", "fire-engine": "fire_engine", "truck": "goods truck"}
    for path in sorted([*EXAMPLES.iterdir(), *EXAMPLES.with_name("others").iterdir()]):
        # those of other things are put into some class, so that not all can be right
        place = tmp_path / next((names[name] for name in names if name in path.name), "cat") / path.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    templates = ("{}", "a photo of a {}", "my {}, seen at night")
    predicted = Classifier(
        Session(ModelSpec("pictogram", device="cpu", precision="fp32")), sorted(names.values()), templates
    )
    right = [Path(answer.path).parent.name == answer.label for answer in predicted.predict([tmp_path])]
    model = EMBEDDED / "pictogram"
    figures = Validation(settings(zero_shot=str(tmp_path), templates=templates)).measure(model)
    assert figures == {"zero_shot_accuracy": sum(right) / len(right)}
    assert len(right) / 3 < sum(right) < len(right)


def test_validation_reads_class_folders_as_pairs_too(tiny_model: Path, classes: Path) -> None:
    figures = Validation(settings(validation=str(classes), zero_shot=str(classes))).measure(tiny_model)
    assert figures["image_to_text_recall@1"] == figures["zero_shot_accuracy"]
    assert figures["image_to_text_recall@5"] == figures["text_to_image_recall@10"] == 1.0


# ---- what can't be used


def test_validation_leaves_out_broken_pictures_and_reports_them_once(fake: FakeEncoder, colours: Path) -> None:
    (colours / "bad.png").write_bytes(b"no picture")
    rows = [(f"{name}.png", name) for name in FakeEncoder.COLOURS]
    pairs = write_table(colours, [*rows, ("bad.png", "grey"), ("gone.png", "red"), ("red.png", "")])
    measured = Validation(settings(validation=pairs))
    assert len(measured.problems) == 1
    first, second = (measured.measure(Path("model")) for _ in range(2))
    assert first == second
    assert first["image_to_text_recall@1"] == first["text_to_image_recall@1"] == 1.0
    assert [problem.split(":")[0].rsplit("/")[-1] for problem in measured.problems] == [
        "pairs.jsonl, line 6",
        "bad.png",
        "gone.png",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"validation": "gone.csv"}, r"validation: .*gone\.csv doesn't exist; correct it, or leave it out"),
        ({"validation": "empty.csv"}, r"validation: .*empty\.csv: no usable row"),
        ({"validation": "gone.jsonl"}, r"validation: .*none of its pictures is there; the first is .*gone\.png"),
        ({"zero_shot": "gone"}, "zero_shot: .*gone doesn't exist"),
        ({"zero_shot": "empty.csv"}, r"zero_shot: .*empty\.csv isn't a folder"),
        ({"zero_shot": "colours"}, "zero_shot: .*no class folder with pictures in it"),
        ({"validation": "half.jsonl", "strict_data": True}, "strict_data: 1 of validation can't be used; .*no caption"),
    ],
)
def test_validation_refuses_data_that_cannot_be_used(
    tmp_path: Path, colours: Path, given: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.csv").write_text("image,caption\n")
    (tmp_path / "gone.jsonl").write_text('{"image": "gone.png", "caption": "x"}')
    (tmp_path / "half.jsonl").write_text('{"image": "colours/red.png", "caption": "x"}\n{"image": "colours/red.png"}')
    paths = {name: str(tmp_path / value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(UsageError, match=message):
        Validation(settings(**paths))


@pytest.mark.parametrize(("strict", "error"), [(False, UsageError), (True, StoppedError)])
def test_validation_stops_where_no_picture_is_left(
    fake: FakeEncoder, colours: Path, strict: bool, error: type[Exception]
) -> None:
    (colours / "bad.png").write_bytes(b"no picture")
    measured = Validation(settings(validation=write_table(colours, [("bad.png", "grey")]), strict_data=strict))
    with pytest.raises(error, match=r"bad\.png"):
        measured.measure(Path("model"))


def test_validation_passes_on_what_is_wrong_with_the_model(colours: Path, tmp_path: Path) -> None:
    measured = Validation(settings(validation=write_table(colours, [("red.png", "red")])))
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="model"):
        measured.measure(tmp_path / "model")


# ---- the run around it


def test_validation_leaves_random_numbers_as_they_were(
    fake: FakeEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(spec: ModelSpec) -> FakeEncoder:
        torch.rand(3)  # some towers are built with random weights first
        return fake

    monkeypatch.setattr(validation, "load_encoder", load)
    before = torch.get_rng_state()
    Validation(settings(validation=write_table(colours, [("red.png", "red")]))).measure(Path("model"))
    assert torch.equal(torch.get_rng_state(), before)


def test_headline_is_the_accuracy_or_else_the_mean_recall() -> None:
    recalls = {"image_to_text_recall@1": 0.5, "image_to_text_recall@5": 1.0, "text_to_image_recall@1": 0.25}
    assert Validated(1, recalls).headline == 0.375
    both = Validated(1, recalls | {"zero_shot_accuracy": 0.75})
    assert both.headline == 0.75
    assert str(both) == "zero shot accuracy 0.750, image to text recall@1 0.500, text to image recall@1 0.250"

"""Class folders as training data, and data that must be whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import StoppedError, UsageError
from clipcls.labels.prompts import load_prompt_set
from clipcls.train.data.class_folders import read_class_folders
from clipcls.train.data.read import read_data
from clipcls.train.loop import TrainResult, train
from clipcls.train.loss import Positives
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import Trainer
from conftest import save_pictures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes; the second one's pictures lie a level deeper."""
    folder = tmp_path / "classes"
    save_pictures(folder / "hot_dog", 3)
    save_pictures(folder / "cat" / "indoors", 3)
    return folder


def run(classes: Path, model: Path, **given: Any) -> TrainResult:
    values = {"data": str(classes), "model": str(model), "output": str(classes.parent / "run"), "batch_size": 6}
    return train(load_settings(None, values | {"precision": "fp32", "device": "cpu", "epochs": 1.0} | given))


def test_class_names_are_the_captions(classes: Path) -> None:
    table = read_data(classes)
    assert [row.captions for row in table.rows] == [("cat",)] * 3 + [("hot dog",)] * 3
    assert all(Path(row.image).is_file() for row in table.rows)
    assert table.problems == ()


def test_what_is_no_class_is_reported(classes: Path) -> None:
    (classes / "empty").mkdir()
    (classes / ".hidden").mkdir()
    (classes / "notes.txt").touch()
    table = read_class_folders(classes)
    assert len(table.rows) == 6
    assert [problem.rpartition("/")[2] for problem in table.problems] == [
        "empty: no picture of this class",
        "notes.txt: lies beside the class folders, so it is in no class",
    ]


def test_folders_without_two_classes_are_refused(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"none: no class folder with pictures in it\. Expected"):
        read_data(tmp_path / "none")
    with pytest.raises(UsageError, match="hot_dog: no class folder"):
        read_data(classes / "hot_dog")
    shutil.rmtree(classes / "cat")
    with pytest.raises(UsageError, match="only one class has pictures, 'hot dog'"):
        read_data(classes)


def test_class_folders_are_phrased_as_predict_phrases_them(classes: Path, tiny_model: Path) -> None:
    values = {"data": str(classes), "model": str(tiny_model), "output": "run"}
    assert load_settings(None, values).templates == load_prompt_set("default").templates
    assert load_settings(None, values | {"templates": ["{} here"]}).templates == ("{} here",)


@pytest.mark.parametrize(("positives", "expected"), [("own", 6), ("equal", 18)])
def test_pictures_of_a_class_are_positives_of_one_another(
    classes: Path, tiny_model: Path, positives: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"data": str(classes), "model": str(tiny_model), "output": "run", "batch_size": 6}
    settings = load_settings(None, values | ({"positives": positives} if positives == "own" else {}))
    seen: list[Positives] = []
    monkeypatch.setattr(
        "clipcls.train.trainer.contrastive_loss",
        lambda *args: seen.append(args[-1]) or 0 * args[0].sum(),
    )
    trainer = Trainer(settings, start_model(settings), read_data(classes))
    trainer.step(next(trainer.feed.batches()), 1e-3)
    assert int(seen[0].per_image.sum()) == int(seen[0].per_text.sum()) == expected


def test_training_on_class_folders_lists_their_words(classes: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "words.txt").touch()
    result = run(classes, base)
    assert (result.model / "words.txt").read_text(encoding="utf-8").split() == ["cat", "dog", "hot"]


def test_strict_data_stops_at_a_bad_row(classes: Path, tiny_model: Path) -> None:
    (classes / "empty").mkdir()
    with pytest.raises(UsageError, match=r"strict_data: 1 of the data can't be used.*empty: no picture"):
        run(classes, tiny_model, strict_data=True)
    assert len(run(classes, tiny_model).problems) == 1


def test_strict_data_stops_at_a_bad_picture(classes: Path, tiny_model: Path) -> None:
    (classes / "hot_dog" / "000.png").write_bytes(b"no picture")
    with pytest.raises(StoppedError, match=r"strict_data: .*hot_dog/000\.png"):
        run(classes, tiny_model, strict_data=True)

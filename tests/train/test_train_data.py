"""Tables and class folders as training data, and data that must be whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import StoppedError, UsageError
from clipcls.inputs.labelled.examples import Example
from clipcls.labels.prompts import load_prompt_set
from clipcls.records import ImageRef
from clipcls.train.data.corpus import Share
from clipcls.train.data.read import read_data
from clipcls.train.data.table import Table
from clipcls.train.loop import TrainResult, train
from clipcls.train.loss import Positives
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import Trainer
from conftest import save_pictures

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


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


def listed(root: str, *rows: tuple[str, str]) -> Table:
    return Table(tuple(Example(ImageRef(name), captions=(caption,)) for name, caption in rows), (), Path(root))


def test_digest_is_that_of_the_rows_wherever_they_lie() -> None:
    tables = [listed(f"/{root}", (f"/{root}/a.png", caption)) for root, caption in ("xc", "yc", "xd")]
    digests = [table.digest() for table in tables]
    assert digests[0] == digests[1] != digests[2]


def test_digest_bears_any_name_and_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [listed("", (name, "x")) for name in ("\ud800.png", "\udcff.png", "\0.png")]
    digests = [table.digest() for table in tables]
    assert len(set(digests)) == len(tables)
    monkeypatch.delattr("clipcls.train.data.table.hashlib")
    assert [table.digest() for table in tables] == digests


def test_digest_and_order_are_those_of_earlier_versions(tmp_path: Path) -> None:
    # a run that such a version has begun goes on
    lines = ["image,caption,caption2", "a.png,a cat,a pet", "./sub//b.png,猫,", "/abs/c.png,x,x", ",no picture,"]
    (tmp_path / "table.csv").write_text("\n".join([*lines, "d.png,y,"]), encoding="utf-8")
    table = read_data(tmp_path / "table.csv")
    assert table.digest() == "448a1213ef203200fd796ede185078e5439f2652c850b4a4af9a6567ef655aa2"
    batches = table.batches(2, 5, Share())
    assert [[row.concept for row in next(batches)] for _ in range(4)] == [
        ["a cat", "y"],
        ["x", "猫"],
        ["x", "猫"],
        ["a cat", "y"],
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
    with pytest.raises(UsageError, match=r"strict_data: 1 of the data can't be used.*empty: a class without pictures"):
        run(classes, tiny_model, strict_data=True)
    assert len(run(classes, tiny_model).problems) == 1


def test_strict_data_stops_at_a_bad_picture(classes: Path, tiny_model: Path) -> None:
    (classes / "hot_dog" / "000.png").write_bytes(b"no picture")
    with pytest.raises(StoppedError, match=r"strict_data: .*hot_dog/000\.png"):
        run(classes, tiny_model, strict_data=True)

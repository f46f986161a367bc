"""Captions in templates that fit their script, and models that keep their templates."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.inputs.labelled.examples import Example
from clipcls.labels.prompts import OWN, read_model_prompts, render, write_model_prompts
from clipcls.predict.classifier import Classifier
from clipcls.records import ImageRef, Label
from clipcls.train.data.captions import Phrasing
from clipcls.train.loop import TrainResult, train
from clipcls.train.settings import load_settings
from conftest import TINY_CONFIG

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


def test_phrasing_keeps_scripts_apart() -> None:
    phrasing = Phrasing(["{}", "a {}", "一张{}"])
    assert set(phrasing.every(["cat", "猫"])) == {"cat", "a cat", "猫", "一张猫"}
    drawn = {phrasing.draw(Example(ImageRef("x"), captions=("猫",)), random.Random(n))[1] for n in range(20)}
    assert drawn == {"猫", "一张猫"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four pictures each, and a table of captions."""
    rows = []
    for name in ("red", "blue"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20, 20), name).save(tmp_path / "classes" / name / f"{number}.png")
            rows.append({"image": f"classes/{name}/{number}.png", "caption": f"the colour {name}"})
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return tmp_path


def run(folder: Path, **given: Any) -> TrainResult:
    values = {"data": str(folder / "classes"), "output": str(folder / "run"), "batch_size": 4, "epochs": 1.0}
    values |= {"precision": "fp32", "device": "cpu", "workers": 1}
    values |= {} if "model" in given else {"arch": str(folder / "arch.json")}
    return train(load_settings(None, values | given))


def prompts_of(result: TrainResult) -> tuple[str, ...]:
    with Session(result.model, Execution()) as session:
        return Classifier(session, ["red", "blue"]).prompts.templates


def test_a_model_keeps_its_templates(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(folder, templates=["the {b} colour {}"])
    caplog.set_level("INFO", "clipcls")
    assert prompts_of(result) == ("the {{b}} colour {}",)
    assert "prompts: 'the {{b}} colour {}', which model" in caplog.text
    further = run(folder, model=str(result.model), data=str(folder / "table.jsonl"), output=str(folder / "further"))
    assert prompts_of(further) == ("the {{b}} colour {}",)


def test_templates_are_kept_for_labels_only(folder: Path) -> None:
    default = prompts_of(run(folder))
    bare = run(folder, templates=["{}"], output=str(folder / "bare"))
    sentences = run(folder, data=str(folder / "table.jsonl"), output=str(folder / "sentences"))
    assert prompts_of(bare) == ("{}",)
    assert prompts_of(sentences) == default
    assert read_model_prompts(sentences.model) is None


def test_kept_templates_are_filled_by_script(tmp_path: Path) -> None:
    write_model_prompts(tmp_path, ["{}", "a {}", "一张{}"])
    own = read_model_prompts(tmp_path)
    assert own is not None
    assert own.name == OWN
    assert render(Label("cat", ("cat", "猫"), ()), own) == ("cat", "a cat", "一张猫", "猫")


def test_eval_agrees_with_the_validation(folder: Path, clipcls: Callable[..., Any]) -> None:
    classes = str(folder / "classes")
    result = run(folder, templates=["colour: {}"], zero_shot=classes)
    assert result.best_validation is not None
    options = ("--model", result.best, "--format", "json", "--device", "cpu", "--precision", "fp32", "--no-cache")
    done = clipcls("eval", classes, *options)
    assert b"prompts: 'colour: {}', which model" in done.stderr
    figures = json.loads(done.stdout)["results"][0]
    assert figures["prompts"] == OWN
    other = clipcls("eval", classes, *options, "--prompts", "default")
    assert b"which model" not in other.stderr
    checked = clipcls(
        "check", "--model", result.best, "--labels", "red,blue", "--prompts", "default", "--device", "cpu"
    )
    assert b"the model was trained with 'colour: {}', not with 'default'" in checked.stdout

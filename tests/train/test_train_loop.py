"""Whole training runs, tiny ones, through the library and the command line."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from clipcls.errors import StoppedError, UsageError
from clipcls.train.loop import TrainResult, TrainWatch, train
from clipcls.train.settings import load_settings
from clipcls.train.trainer import StepFigures

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "gray", "purple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of coloured squares, an architecture, and a config."""
    rows = []
    for number in range(16):
        colour = COLOURS[number % len(COLOURS)]
        picture = Image.new("RGBA", (24, 24))
        ImageDraw.Draw(picture).rectangle((2, 2, 21 - number // 8, 21), fill=colour)
        picture.save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [colour, f"{colour} square"]})
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arch.json").write_text(json.dumps(ARCH), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(
        "data: table.jsonl\narch: arch.json\noutput: run\nepochs: 4\nbatch_size: 8\nprecision: fp32\n"
        "device: cpu\nlearning_rate: 3e-3\n",
        encoding="utf-8",
    )
    return tmp_path


def run(folder: Path, output: str, **given: Any) -> tuple[TrainResult, list[StepFigures]]:
    seen: list[StepFigures] = []
    settings = load_settings(folder / "config.yaml", {"output": str(folder / output), **given})
    return train(settings, TrainWatch(seen.append)), seen


def test_train_writes_a_folder_that_open_clip_loads(folder: Path) -> None:
    result, seen = run(folder, "run", seed=1)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{result.model}")
    tokens = open_clip.get_tokenizer(f"local-dir:{result.model}")(["red"])
    image = preprocess(Image.open(folder / "0.png").convert("RGB"))[None]
    assert tokens.shape == (1, 8)
    assert torch.isfinite(model.encode_image(image)).all()
    assert torch.isfinite(model.encode_text(tokens)).all()
    assert (result.model / "words.txt").read_text(encoding="utf-8").split() == sorted([*COLOURS, "square"])
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(seen) == seen[-1].steps == 8
    assert load_settings(folder / "run" / "settings.yaml", {}).seed == 1


def test_train_learns(folder: Path) -> None:
    _, seen = run(folder, "run", epochs=60.0, augment="none", positives="listed")
    assert seen[-1].loss < 0.6 * seen[0].loss


def test_train_repeats_with_its_seed(folder: Path) -> None:
    runs = {name: run(folder, name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))}
    losses = {name: [figures.loss for figures in seen] for name, (_, seen) in runs.items()}
    weights = {name: load_file(result.model / "open_clip_model.safetensors") for name, (result, _) in runs.items()}
    assert losses["a"] == losses["b"] != losses["c"]
    assert all(torch.equal(tensor, weights["b"][name]) for name, tensor in weights["a"].items())


def test_train_reports_bad_pictures_and_goes_on(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    with (folder / "table.jsonl").open("a", encoding="utf-8") as table:
        table.write('\n{"image": "gone.png", "caption": "red"}\n{"image": "0.png"}\n')
    result, seen = run(folder, "run")
    assert len(result.problems) == 3
    assert seen[-1].step == seen[-1].steps


def test_train_refuses_a_table_without_pictures_before_a_download(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    monkeypatch.setattr("clipcls.train.loop.start_model", lambda settings: pytest.fail("a model was downloaded first"))
    with pytest.raises(UsageError, match="no picture can be used"):
        run(folder, "run")


def test_train_says_that_one_picture_is_too_few(folder: Path) -> None:
    (folder / "table.jsonl").write_text('{"image": "0.png", "caption": "red"}', encoding="utf-8")
    with pytest.raises(UsageError, match="one picture only, and a step compares two or more"):
        run(folder, "run")


def test_train_refuses_an_output_that_holds_something(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "note.txt").touch()
    with pytest.raises(UsageError, match="run: the output exists already"):
        run(folder, "run")


@pytest.mark.parametrize(
    ("arch", "message"),
    [("ViT-Q-32", "neither"), ("gone.json", "can't be read"), ("bad.json", "lacks")],
)
def test_train_refuses_bad_architecture(folder: Path, arch: str, message: str) -> None:
    (folder / "bad.json").write_text('{"embed_dim": 8}', encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        run(folder, "run", arch=str(folder / arch) if arch.endswith("json") else arch)


def test_train_stops_when_the_loss_is_not_finite(folder: Path) -> None:
    with pytest.raises(StoppedError, match="the loss is nan"):
        run(folder, "run", learning_rate=1e30, grad_clip=0.0)


def test_train_leaves_logging_as_it_was(folder: Path) -> None:
    run(folder, "run", epochs=0.5)
    assert logging.root.manager.disable == logging.NOTSET


def test_train_refuses_fp16_without_a_gpu(folder: Path) -> None:
    with pytest.raises(UsageError, match="fp16"):
        run(folder, "run", precision="fp16")


def test_command_shows_validations_and_how_the_best_model_is_used(folder: Path, clipcls: Callable[..., Any]) -> None:
    options = ["--config", folder / "config.yaml", "--epochs", "2", "--validation", folder / "table.jsonl"]
    done = clipcls("train", folder / "table.jsonl", *options, "--output", folder / "my run")
    *_, best, use = done.stderr.decode().splitlines()
    shown = [line for line in done.stderr.decode().splitlines() if line.startswith("validation after step")]
    assert len(shown) == 2
    assert re.fullmatch(r"validation after step 2: image to text recall@1 [\d.]+, .*, the best so far", shown[0])
    assert re.match(r"the best model in the validations: .*best \(image to text recall@1 .* after step [24]\)", best)
    assert use == f"use it: clipcls predict IMAGES --labels LABELS --model '{folder}/my run/best'"


def test_command_prints_the_model_folder(folder: Path, clipcls: Callable[..., Any]) -> None:
    options = ["--config", str(folder / "config.yaml"), "--epochs", "1", "--augment", "none"]
    done = clipcls("train", folder / "table.jsonl", *options, "--output", folder / "new")
    assert done.returncode == 0
    assert done.stdout.decode().strip() == str(folder / "new" / "model")
    assert b"step 2/2  loss" in done.stderr
    assert (folder / "new" / "model" / "open_clip_config.json").is_file()
    quiet = clipcls("train", folder / "table.jsonl", *options, "--output", folder / "quiet", "-q")
    assert quiet.stderr.decode().splitlines()[0].startswith("trained in")

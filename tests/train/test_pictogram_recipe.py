"""The recipe of the embedded model: what it adds to a training run, and a short run of it."""

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch.nn import functional
from webdataset import TarWriter

import recipe
from clipcls import Classifier, Session
from clipcls.errors import UsageError
from clipcls.inputs.labelled.examples import Example
from clipcls.records import ImageRef
from clipcls.train.checkpoint import resumed_settings
from clipcls.train.data.read import read_data
from clipcls.train.loop import TrainResult, TrainWatch, train
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import StepFigures, Trainer
from conftest import ROOT, TINY_CONFIG
from recipe import Pictogram, ProxyLoss, spread_images, spread_texts

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

RECIPE = ROOT / "examples" / "pictogram"
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "gray", "purple")
VISION = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 32}
VISION |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of coloured squares."""
    rows = []
    for number in range(16):
        colour = COLOURS[number % len(COLOURS)]
        picture = Image.new("RGBA", (24, 24))
        ImageDraw.Draw(picture).rectangle((2, 2, 21 - number // 8, 21), fill=colour)
        picture.save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [colour, f"{colour} square"]})
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def arguments(folder: Path, arch: Path | dict[str, Any]) -> dict[str, Any]:
    if isinstance(arch, dict):
        (folder / "arch.json").write_text(json.dumps(arch), encoding="utf-8")
        arch = folder / "arch.json"
    paths = {"data": str(folder / "table.jsonl"), "arch": str(arch), "output": str(folder / "run")}
    return paths | {"epochs": 2.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}


def trainer(folder: Path, embed_dim: int = 16, vision: dict[str, Any] = VISION, data: str = "", **text: Any) -> Trainer:
    arch = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT | text}
    settings = load_settings(None, arguments(folder, arch) | ({"data": data} if data else {}))
    torch.manual_seed(0)
    return Trainer(settings, start_model(settings), read_data(settings.data), hooks=Pictogram())


def short_run(folder: Path, arch: Path | dict[str, Any], **given: Any) -> tuple[TrainResult, list[StepFigures]]:
    seen: list[StepFigures] = []
    settings = load_settings(RECIPE / "config.yaml", arguments(folder, arch) | given)
    return train(settings, TrainWatch(seen.append), hooks=Pictogram()), seen


def mean_cosine(features: torch.Tensor) -> float:
    normed = functional.normalize(features, dim=-1)
    return float((normed @ normed.T - torch.eye(len(normed))).mean())


def test_spread_features_have_no_common_direction(folder: Path) -> None:
    made = trainer(folder)
    images = torch.rand(64, 3, 32, 32) * torch.rand(64, 3, 1, 1)
    tokens = made.encoder.tokenizer([f"{first} {second}" for first in "abcdefgh" for second in "klmnopqr"])
    spread_images(made.model, images)
    spread_texts(made.model, tokens)
    with torch.no_grad():
        assert abs(mean_cosine(made.model.encode_image(images))) < 0.1
        assert abs(mean_cosine(made.model.encode_text(tokens))) < 0.1


@pytest.mark.parametrize("count", [0, 1])
def test_spread_images_refuses_a_sample_without_variance(folder: Path, count: int) -> None:
    with pytest.raises(UsageError, match="needs two pictures at least"):
        spread_images(trainer(folder).model, torch.zeros(count, 3, 32, 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embed_dim": 1024, "width": 1024}, "the image tower's 512 features are fewer than embed_dim, 1024; lower"),
        ({"embed_dim": 32}, "the text tower's 16 features are fewer than embed_dim, 32; lower embed_dim"),
        ({"proj_bias": True}, "needs open_clip's own text tower, with a text projection without bias"),
        ({"vision": VISION | {"timm_proj_bias": False}}, "needs an image tower with timm_proj linear"),
        ({"vision": TINY_CONFIG["vision_cfg"]}, "needs an image tower with timm_proj linear"),
        ({"data": "0.tar"}, "needs a table or class folders"),
    ],
)
def test_recipe_refuses_other_models_and_data_before_the_first_step(folder: Path, given: Any, message: str) -> None:
    with TarWriter(str(folder / "0.tar")) as writer:
        writer.write({"__key__": "0", "png": (folder / "0.png").read_bytes(), "txt": "red"})
    if "data" in given:
        given = given | {"data": str(folder / given["data"])}
    with pytest.raises(UsageError, match=message):
        trainer(folder, **given)


def test_proxy_loss_equals_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (functional.normalize(torch.randn(3, 16, generator=generator).double(), dim=-1) for _ in range(2))
    loss = ProxyLoss(["a", "b"], 16, weight=0.5).double()
    proxies = functional.normalize(loss.proxies, dim=-1)
    target = torch.tensor([1, 0, 1])
    expected = functional.cross_entropy(10 * images @ proxies.T, target)
    expected = (expected + functional.cross_entropy(10 * texts @ proxies.T, target)) / 4
    rows = [Example(ImageRef("1.png"), captions=(concept, "other")) for concept in "bab"]
    torch.testing.assert_close(loss(images, texts, torch.tensor(10.0), rows) / 3, expected)


def test_curriculum_raises_the_augmentation_to_its_full_strength() -> None:
    strengths = [Pictogram(curriculum=0.5).augmentation_strength(step, 8) for step in range(8)]
    assert strengths == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert Pictogram(curriculum=0).augmentation_strength(0, 8) == 1


def test_recipe_learns_and_zeroes_only_unused_tokens(folder: Path) -> None:
    arch = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
    result, seen = short_run(folder, arch, epochs=8.0, templates=["{}"])
    assert seen[-1].loss < 0.8 * seen[0].loss
    weights = load_file(result.model / "open_clip_model.safetensors")["token_embedding.weight"]
    tokens = open_clip.get_tokenizer("ViT-B-32")(["red", "purple square"]).unique()
    assert weights.dtype == torch.float16
    assert weights[tokens].abs().sum(1).min() > 0
    assert (weights.abs().sum(1) > 0).sum() < 20


def test_recipe_command_trains_a_model_that_predict_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folder, {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}) | {"epochs": 1}
    settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", str(RECIPE / "config.yaml"), *settings])
    recipe.main()
    model = str(folder / "run" / "model")
    assert capsys.readouterr().out.splitlines()[-1] == model
    (answer,) = Classifier(Session(model), ["red", "blue"]).predict([folder / "0.png"])
    assert answer.label in ("red", "blue")
    resumed = resumed_settings(folder / "run", None, {})
    with pytest.raises(UsageError, match="the run is finished"):
        train(resumed, resume=True, hooks=Pictogram())

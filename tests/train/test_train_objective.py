"""Gradients of a batch that goes through the towers in parts, against those of the whole."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcls.train.data.batches import Prepared
from clipcls.train.data.read import read_data
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import Trainer
from conftest import TINY_CONFIG, save_model, save_pictures

pytestmark = pytest.mark.usefixtures("one_thread", "float64")

BATCH_NORM = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses in float64, where rounding is no matter: they are computed in float32 on purpose."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def trainer(folder: Path, config: dict[str, Any], **given: Any) -> Trainer:
    """A trainer on 16 pictures in one batch, without augmentation, in float64."""
    if not (folder / "base").exists():
        save_model(folder / "base", config)
        pictures = save_pictures(folder / "pictures", 16)
        rows = [{"image": str(path), "caption": f"a {path.stem[1:]}"} for path in pictures[:-1]]
        rows.append({"image": str(pictures[-1]), "caption": "a 00"})  # two positives
        (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {"data": str(folder / "table.jsonl"), "model": str(folder / "base"), "output": str(folder / "run")}
    options = {"batch_size": 16, "augment": "none", "precision": "fp32", "device": "cpu", "proxy_weight": 0.5}
    settings = load_settings(None, values | options | given)
    torch.manual_seed(0)
    made = Trainer(settings, start_model(settings), read_data(Path(settings.data)))
    for module in made.objective.modules:
        module.double()
    return made


def first_batch(trainer: Trainer) -> Prepared:
    batch = next(trainer.feed.batches())
    return replace(batch, images=batch.images.double())


def gradients(trainer: Trainer) -> tuple[float, dict[str, torch.Tensor]]:
    loss = trainer.objective.backward(first_batch(trainer), trainer.scaler)
    assert loss is not None
    named = (pair for module in trainer.objective.modules for pair in module.named_parameters())
    return loss, {name: weight.grad for name, weight in named if weight.grad is not None}


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("given", [{}, {"loss": "sigmoid"}, {"lock_image": True}], ids=str)
def test_gradients_of_parts_equal_those_of_the_whole(tmp_path: Path, given: dict[str, Any], parts: int) -> None:
    whole_loss, whole = gradients(trainer(tmp_path, TINY_CONFIG, **given))
    loss, accumulated = gradients(trainer(tmp_path, TINY_CONFIG, accumulate=parts, **given))
    assert loss == pytest.approx(whole_loss, rel=1e-12)
    assert {"logit_scale", "proxies", "text_projection"} <= whole.keys() == accumulated.keys()
    assert ("visual.proj" in whole) != ("lock_image" in given)
    assert ("logit_bias" in whole) == ("loss" in given)
    for name, gradient in whole.items():
        torch.testing.assert_close(accumulated[name], gradient, atol=1e-12, rtol=1e-9)
    assert float(whole["logit_scale"].abs()) > 1e-3


def test_parts_are_computed_again_with_the_same_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropping = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"patch_dropout": 0.5}}
    made = trainer(tmp_path, dropping, accumulate=2)
    seen: list[torch.Tensor] = []
    plain = made.model.encode_image
    monkeypatch.setattr(made.model, "encode_image", lambda images: seen.append(plain(images)) or seen[-1])
    gradients(made)
    assert [features.requires_grad for features in seen] == [False, False, True, True]
    torch.testing.assert_close(torch.cat(seen[:2]), torch.cat(seen[2:]), atol=1e-12, rtol=1e-9)
    again = made.model.encode_image(first_batch(made).images)
    assert not torch.allclose(again, torch.cat(seen[:2]), atol=1e-3)  # there is dropout


def test_batch_norm_is_said_to_differ_and_counts_each_part_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = trainer(tmp_path, TINY_CONFIG | {"vision_cfg": BATCH_NORM}, accumulate=2)
        gradients(made)
    assert [record.getMessage()[:21] for record in caplog.records] == ["accumulate: BatchNorm"]
    assert made.model.visual.bn1.num_batches_tracked == 2


def test_accumulation_needs_less_than_the_whole_batch_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, TINY_CONFIG, accumulate=4)
    sizes: list[int] = []
    plain = made.model.encode_image
    monkeypatch.setattr(made.model, "encode_image", lambda images: sizes.append(len(images)) or plain(images))
    made.objective.backward(replace(first_batch(made), step=1), made.scaler)
    assert sizes == [4] * 8

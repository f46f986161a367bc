"""Locked towers: what stays bit-equal, what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipcls.errors import UsageError
from clipcls.train.loop import train
from clipcls.train.settings import load_settings
from conftest import TINY_CONFIG, save_model, save_pictures

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

RESNET = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 32}
VISION: dict[str, Any] = {
    "vit": TINY_CONFIG["vision_cfg"],
    "timm": RESNET | {"timm_pool": "avg", "timm_proj": "linear"},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
}


def changed(folder: Path, base: Path, **given: Any) -> set[str]:
    """Train from a base for two steps: the tensors that aren't bit-equal any more."""
    pictures = save_pictures(folder / "pictures", 4)
    rows = [{"image": str(path), "caption": f"a {path.stem}"} for path in pictures]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {"data": str(folder / "table.jsonl"), "model": str(base), "output": str(folder / "run")}
    options = {"batch_size": 4, "epochs": 2, "precision": "fp32", "device": "cpu", "learning_rate": 1e-3}
    result = train(load_settings(None, values | options | given))
    before, after = (load_file(path / "open_clip_model.safetensors") for path in (base, result.model))
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("vision", VISION)
def test_locked_image_tower_stays_bit_equal(tmp_path: Path, vision: str) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | {"vision_cfg": VISION[vision]})
    names = changed(tmp_path, base, lock_image=True)
    assert not any(name.startswith("visual.") for name in names)
    assert {"text_projection", "logit_scale"} <= names


@pytest.mark.parametrize("custom_text", [False, True])
def test_locked_text_tower_stays_bit_equal(tmp_path: Path, custom_text: bool) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | ({"custom_text": True} if custom_text else {}))
    names = changed(tmp_path, base, lock_text=True)
    assert "visual.proj" in names
    assert all(name.startswith("visual.") or name == "logit_scale" for name in names)


def test_batch_norm_moves_where_the_tower_is_not_locked(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | {"vision_cfg": VISION["timm"]})
    assert "visual.trunk.bn1.running_mean" in changed(tmp_path, base)


def test_unlocked_groups_and_layers_are_trained(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG)
    unlocked = {"lock_image_unlocked_groups": 2, "lock_text_unlocked_layers": 2}
    names = changed(tmp_path, base, lock_image=True, lock_text=True, **unlocked)
    assert "visual.proj" in names
    assert any(name.startswith("visual.transformer.resblocks.1.") for name in names)
    assert any(name.startswith("transformer.resblocks.1.") for name in names)
    assert not any("resblocks.0." in name for name in names)
    assert not {"visual.conv1.weight", "token_embedding.weight"} & names


def test_partly_locked_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | {"vision_cfg": VISION["timm"]})
    names = changed(tmp_path, base, lock_image=True, lock_image_unlocked_groups=2)
    assert "visual.head.proj.weight" in names
    assert not any(name.startswith(("visual.trunk.bn1.", "visual.trunk.conv1.")) for name in names)


def test_tower_that_cannot_be_locked_in_part_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", TINY_CONFIG | {"vision_cfg": VISION["resnet"]})
    with pytest.raises(UsageError, match="lock_image_unlocked_groups: this tower can only be locked as a whole"):
        changed(tmp_path, base, lock_image=True, lock_image_unlocked_groups=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arch": "ViT-B-32", "lock_image": True}, "lock_image: only with a model"),
        ({"model": "photo", "lock_text_unlocked_layers": 2}, "lock_text_unlocked_layers: only with lock_text"),
        ({"model": "photo", "lock_image": True, "lock_text": True}, "nothing to train"),
        ({"model": "photo", "lock_image": True, "lock_image_unlocked_groups": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_refuse_locks_without_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(None, {"data": "d.csv", "output": "run"} | given)

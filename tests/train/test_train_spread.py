"""The start from which small towers learn within minutes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcls.errors import UsageError
from clipcls.train.settings import load_settings
from clipcls.train.spread import spread_images, spread_texts
from clipcls.train.start_model import new_model

pytestmark = pytest.mark.usefixtures("one_thread")

VISION = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 32}
VISION |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def build(folder: Path, embed_dim: int = 16, vision: dict[str, Any] = VISION, **text: Any) -> Any:
    arch = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT | text}
    (folder / "arch.json").write_text(json.dumps(arch), encoding="utf-8")
    values = {"data": "d.csv", "arch": str(folder / "arch.json"), "output": "run", "spread_init": True}
    return new_model(load_settings(None, values))


def mean_cosine(features: torch.Tensor) -> float:
    normed = torch.nn.functional.normalize(features, dim=-1)
    return float((normed @ normed.T - torch.eye(len(normed))).mean())


def test_spread_features_have_no_common_direction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build(tmp_path)
    images = torch.rand(64, 3, 32, 32) * torch.rand(64, 3, 1, 1)
    tokens = encoder.tokenizer([f"{first} {second}" for first in "abcdefgh" for second in "klmnopqr"])
    spread_images(encoder.model, images)
    spread_texts(encoder.model, tokens)
    with torch.no_grad():
        assert abs(mean_cosine(encoder.model.encode_image(images))) < 0.1
        assert abs(mean_cosine(encoder.model.encode_text(tokens))) < 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embed_dim": 1024, "width": 1024}, "the image tower's 512 features are fewer than embed_dim, 1024; lower"),
        ({"embed_dim": 32}, "the text tower's 16 features are fewer than embed_dim, 32; lower embed_dim"),
        ({"proj_bias": True}, "needs open_clip's own text tower, with a text projection without bias"),
        ({"vision": VISION | {"timm_proj_bias": False}}, "needs an image tower with timm_proj linear"),
    ],
)
def test_spread_init_is_refused_before_the_data_is_used(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"spread_init: {message}"):
        build(tmp_path, **given)


@pytest.mark.parametrize("count", [0, 1])
def test_spread_images_refuses_a_sample_without_variance(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="spread_init: needs two pictures at least"):
        spread_images(build(tmp_path).model, torch.zeros(count, 3, 32, 32))

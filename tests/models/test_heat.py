"""The gradient by the attention against an independent computation, in all kinds of towers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipcls.models.encoder import load_encoder
from clipcls.models.first_token import compute_first_token_only
from clipcls.models.heat import AttendingTower
from clipcls.records import Preprocessing
from conftest import TINY_CONFIG, save_model
from tiny_models import COCA_CONFIG, RESNET_CONFIG, SIGLIP_CONFIG, SIGLIP_PREPROCESS

SIDE, PATCH, WIDTH, HEADS, LAYERS, DIM = 24, 8, 32, 2, 3, 16
PREPROCESS = Preprocessing((SIDE, SIDE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(side: int = SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)


def directions(count: int, dim: int = DIM) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(2).normal(size=(count, dim)).astype(np.float32)


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    tower = VisionTransformer(SIDE, PATCH, WIDTH, LAYERS, HEADS, 2.0, output_dim=DIM)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tower.double().eval().requires_grad_(False)


def by_hand(tower: VisionTransformer, pixels: Any, direction: Any) -> Tensor:
    """LeGrad's map of a ViT whose features are the class token's, from its weights alone: (rows, columns)."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (PREPROCESS.mean, PREPROCESS.std))
    x = (torch.from_numpy(pixels).double() / 255 - mean) / std
    patches = SIDE // PATCH
    # rows, pixels down, columns, pixels across, colours -> patches, colours * pixels
    cut = x.view(patches, PATCH, patches, PATCH, 3).permute(0, 2, 4, 1, 3).reshape(patches**2, -1)
    tokens = torch.cat([tower.class_embedding[None], cut @ tower.conv1.weight.view(WIDTH, -1).T])
    tokens = tower.ln_pre(tokens + tower.positional_embedding)
    maps = []
    for block in tower.transformer.resblocks:
        query, key, value = (block.ln_1(tokens) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, -1)
        attended = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            weights = torch.softmax(query[:, part] @ key[:, part].T / (WIDTH // HEADS) ** 0.5, -1)
            if not weights.requires_grad:
                weights.requires_grad_()
            maps.append(weights)
            attended.append(weights @ value[:, part])
        tokens = tokens + block.attn.out_proj(torch.cat(attended, -1))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    pooled = tower.ln_post(tokens)[0] @ tower.proj
    similarity = pooled / pooled.norm() @ torch.from_numpy(direction).double()
    gradients = torch.autograd.grad(similarity, maps)
    total = sum(gradient.clamp(min=0).mean(dim=0)[1:] for gradient in gradients)
    assert isinstance(total, Tensor)
    return total.view(patches, patches) / (LAYERS * HEADS)


@pytest.mark.parametrize("is_first_token_only", [False, True])
def test_maps_are_those_computed_by_hand(is_first_token_only: bool) -> None:
    tower = vit()
    expected = [by_hand(tower, picture(), direction).numpy() for direction in directions(3)]
    if is_first_token_only:
        compute_first_token_only(tower)
    grid = SIDE // PATCH
    found = AttendingTower(tower, (grid, grid), PREPROCESS).look(picture()).maps(directions(3))
    assert found.dtype == np.float32 and found.shape == (3, grid, grid)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_tower_stays_as_it_is() -> None:
    tower = vit()
    state = copy.deepcopy(tower.state_dict())
    AttendingTower(tower, (3, 3), PREPROCESS).look(picture()).maps(directions(2))
    assert all(torch.equal(value, state[name]) for name, value in tower.state_dict().items())
    for module in tower.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        assert "forward" not in vars(module)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("config", "preprocess", "grid"),
    [
        (TINY_CONFIG, None, (2, 2)),
        (COCA_CONFIG, None, (2, 2)),
        (RESNET_CONFIG, None, (2, 2)),
        (SIGLIP_CONFIG, SIGLIP_PREPROCESS, (14, 14)),
    ],
)
def test_features_are_the_encoders(tmp_path: Path, config: Any, preprocess: Any, grid: tuple[int, int]) -> None:
    encoder = load_encoder(str(save_model(tmp_path, config, preprocess)))
    tower = AttendingTower.of(encoder)
    assert tower is not None and tower.grid == grid
    pixels = picture(encoder.preprocess.size[0])
    look = tower.look(pixels)
    assert look.features @ encoder.encode_image([pixels])[0] > 0.999
    maps = look.maps(directions(2, encoder.embed_dim))
    assert maps.shape == (2, *grid) and (maps >= 0).all() and maps.max() > 0


def test_convolutional_tower_has_no_attention(tmp_path: Path) -> None:
    vision = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    encoder = load_encoder(str(save_model(tmp_path, TINY_CONFIG | {"vision_cfg": vision})))
    assert AttendingTower.of(encoder) is None

"""Noise that is made to turn answers."""

import numpy as np
import pytest

from clipcls.models.adversarial import AttackedTower
from clipcls.models.encoder import load_encoder
from clipcls.records import ModelSpec, Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")

GREY = Preprocessing((4, 4), (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))


@pytest.mark.parametrize("labels", [2, 3])
def test_of_a_linear_tower_just_those_fall_whose_margin_noise_can_cross(labels: int) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    linear = nn.Linear(48, labels, bias=False)
    text_features = np.eye(labels, dtype=np.float32)
    tower = AttackedTower(nn.Sequential(nn.Flatten(), linear), GREY, text_features, np.log(10.0))
    random = np.random.default_rng(0)
    pixels = [random.integers(100, 156, (4, 4, 3), dtype=np.uint8) for _ in range(64)]  # noise is never cut off
    weights = linear.weight.detach().numpy().reshape(labels, 3, 16) / np.array(GREY.std)[:, None]
    images = np.stack(pixels).transpose(0, 3, 1, 2).reshape(64, 3, 16) / 255
    values = np.einsum("ncp,lcp->nl", images - 0.5, weights)
    truth = values.argmax(axis=1)
    found = tower.attack(pixels, truth, (2 / 255, 4 / 255))
    assert found.plain.all()
    for strength, standing in zip((2 / 255, 4 / 255), found.attacked, strict=True):
        expected = [
            all(
                row[right] - row[other] > strength * np.abs(weights[right] - weights[other]).sum()
                for other in range(labels)
                if other != right
            )
            for row, right in zip(values, truth, strict=True)
        ]
        assert 0 < sum(expected) < 64
        assert standing.tolist() == expected


def test_wrong_answers_stay_wrong_and_noise_stays_within_its_strength(tiny_model: object) -> None:
    import torch

    encoder = load_encoder(ModelSpec(f"{tiny_model}"))
    random = np.random.default_rng(1)
    text_features = random.standard_normal((5, 32)).astype(np.float32)
    text_features /= np.linalg.norm(text_features, axis=1, keepdims=True)
    tower = AttackedTower.of(encoder, text_features, 0)
    pixels = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(6)]
    expected = (encoder.encode_image(pixels) @ text_features.T).argmax(axis=1)
    seen, logits = [], tower.logits
    tower.logits = lambda images: seen.append(images.detach()) or logits(images)  # type: ignore[method-assign]
    truth = np.where(np.arange(6) < 3, expected, (expected + 1) % 5)
    found = tower.attack(pixels, truth, (1 / 255,))
    assert found.plain.tolist() == [True] * 3 + [False] * 3
    assert not (found.attacked & ~found.plain).any()
    first = seen[0]
    for images in seen[1:]:
        apart = (images[:, None] - first[None]).abs().amax(dim=(2, 3, 4)).amin(dim=1)
        assert float(apart.max()) <= 1 / 255 + 1e-6
        assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert not any(parameter.grad is not None for parameter in tower._tower.parameters())
    assert torch.is_grad_enabled()

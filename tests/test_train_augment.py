"""Augmentation: its range, its seeds, and what it leaves alone."""

import pytest
import torch

from clipcls.train.augment import Augmentation, held_out_seed, training_seed


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, 4, 40, 40), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["none", "light", "heavy"])
def test_augmentation_is_decided_by_its_seed(name: str) -> None:
    augment = Augmentation(name, 32)
    before = torch.get_rng_state()
    first, again, other = (augment(pictures(), 1.0, seed) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 32, 32)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "none")
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_without_strength_equals_none_on_white() -> None:
    plain = torch.full((4, 4, 32, 32), 200, dtype=torch.uint8)
    plain[:, 3] = 0
    assert torch.equal(Augmentation("none", 32)(plain, 1.0, 0), torch.ones(4, 3, 32, 32))
    torch.testing.assert_close(Augmentation("heavy", 32)(plain, 0.0, 0), torch.ones(4, 3, 32, 32))


def test_augmentation_never_flips() -> None:
    left = torch.zeros(32, 4, 32, 32, dtype=torch.uint8)
    left[:, 3] = 255
    left[:, :3, :, :8] = 255
    bright = Augmentation("light", 32)(left, 1.0, 0).mean((1, 2))
    assert (bright[:, :12].mean(1) > bright[:, -12:].mean(1)).all()


def test_training_seeds_and_held_out_seeds_are_apart() -> None:
    training = {training_seed(step, seed) for step in range(5000) for seed in (0, 1, 2)}
    assert len(training) == 15000
    assert training.isdisjoint(held_out_seed(number) for number in range(100_000))
    assert not any(seed % 5 == 4 for seed in training)

"""Augmentation: its range, its seeds, and what it leaves alone."""

import pytest
import torch

from clipcls.train.data.augment import Augmentation, RandomCrop, training_seed


def pictures(opaque: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 256, (8, 4, 40, 40), dtype=torch.uint8, generator=generator)
    if opaque:
        found[:, 3] = 255
    return found


def bright_on_the_left(count: int, opaque: bool) -> torch.Tensor:
    """Pictures that grow darker to the right; transparent ones are so in one corner only."""
    ramps = torch.linspace(255, 0, 32).to(torch.uint8).expand(count, 4, 32, 32).clone()
    ramps[:, 3] = 255
    if not opaque:
        ramps[:, :, 0, 0] = 0
    return ramps


def left_is_brighter(pictures: torch.Tensor) -> torch.Tensor:
    """For each picture; the rims are left out, where a background may show."""
    columns = pictures.mean(1)[:, 8:-8].mean(1)
    return columns[:, 8:14].mean(1) > columns[:, -14:-8].mean(1)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("name", ["none", "light", "heavy"])
def test_augmentation_is_decided_by_its_seed(name: str, opaque: bool) -> None:
    augment = Augmentation(name, 32)
    before = torch.get_rng_state()
    first, again, other = (augment(pictures(opaque), 1.0, seed) for seed in (1, 1, 2))
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


def test_augmentation_without_strength_leaves_photographs_alone() -> None:
    photographs = pictures(opaque=True)
    untouched = photographs[:, :3] / 255
    assert torch.equal(Augmentation("none", 40)(photographs, 1.0, 0), untouched)
    augmented = Augmentation("heavy", 40, flip=True)(photographs, 0.0, 0)
    torch.testing.assert_close(augmented, untouched, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("light", [0.5236, 0.4765, 0.7812, 0.5881, 0.7571, 0.6459, 0.698, 0.8063]),
        ("heavy", [0.4447, 0.4148, 0.8021, 0.4847, 0.7786, 0.6595, 0.6773, 0.84]),
    ],
)
def test_augmentation_of_drawings_is_what_the_embedded_model_was_trained_with(name: str, expected: list[float]) -> None:
    corners = Augmentation(name, 32)(pictures(), 1.0, 1)[:, 0, :16, :16].mean((1, 2))
    torch.testing.assert_close(corners, torch.tensor(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize("opaque", [False, True])
def test_augmentation_flips_only_when_it_is_told(opaque: bool) -> None:
    ramps = bright_on_the_left(64, opaque)
    assert left_is_brighter(Augmentation("light", 32)(ramps, 1.0, 0)).all()
    assert 16 < left_is_brighter(Augmentation("light", 32, flip=True)(ramps, 1.0, 0)).sum() < 48
    assert left_is_brighter(Augmentation("none", 32, flip=True)(ramps, 1.0, 0)).all()


def test_augmentation_puts_drawings_on_a_background_and_no_photograph() -> None:
    mixed = torch.full((64, 4, 40, 40), 128, dtype=torch.uint8)
    mixed[:, 3] = 255
    mixed[::2, 3, :20] = 0
    uneven = Augmentation("light", 32)(mixed, 1.0, 0).flatten(2).std(2).amax(1) > 1e-3
    assert uneven[::2].all()
    assert uneven[1::2].sum() <= 3  # a tenth of either kind is noisy


@pytest.mark.parametrize(("area", "degrees"), [(0.5, 0.0), (0.2, 0.0), (0.2, 10.0)])
def test_random_crop_stays_inside_the_photograph(area: float, degrees: float) -> None:
    across = torch.linspace(0.5, 79.5, 80).expand(80, 80) / 80
    crop = RandomCrop(area, degrees, side=64, flip=True)
    crop.generator.manual_seed(0)
    places = crop(torch.stack([across, across.T, torch.ones(80, 80)]).expand(200, -1, -1, -1))
    assert (places[:, 2] > 0.999).all()  # nothing is padded
    if not degrees:
        width, height = (places[:, n].flatten(1).aminmax(dim=1) for n in (0, 1))
        # samples are in the middle of their pixels, and at the border those of its pixels
        sides = [(side.max - side.min) * 64 / 63 for side in (width, height)]
        shares, aspects = sides[0] * sides[1], sides[0] / sides[1]
        assert area - 0.01 < shares.min() < area + 0.1
        assert 0.9 < shares.max() < 1.01
        assert 0.74 < aspects.min() < 0.8
        assert 1.25 < aspects.max() < 1.35


def test_training_seeds_leave_every_fifth_for_evaluation() -> None:
    training = {training_seed(step, seed) for step in range(5000) for seed in (0, 1, 2)}
    assert len(training) == 15000
    assert not any(seed % 5 == 4 for seed in training)

"""The contrastive loss against a hand formula and open_clip's."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from open_clip import ClipLoss
from open_clip.loss import SigLipLoss
from torch.nn import functional

from clipcls.train.loss import Positives, ProxyLoss, contrastive_loss, find_positives, sigmoid_loss
from tolerances import assert_as_exact

# formulas and sums of parts are compared in float64, where rounding is no matter
EXACT: Any = {"rtol": 1e-12, "atol": 1e-12}


def features(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = functional.normalize(torch.randn(count, 16, generator=generator), dim=-1)
    return vectors.double().requires_grad_()  # of which float32 holds every digit


def with_gradients(loss: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    value = loss(*inputs)
    return [value, *torch.autograd.grad(value, inputs)]


def assert_equals_open_clips(
    ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], *scalars: float
) -> None:
    """In float64, and in float32 as exactly as theirs; `scalars` follow the features of 8 pictures and captions."""
    inputs = [features(8, 0), features(8, 1), *(torch.tensor(value).double().requires_grad_() for value in scalars)]
    rounded = [value.detach().float().requires_grad_() for value in inputs]
    reference = with_gradients(theirs, inputs)
    torch.testing.assert_close(with_gradients(ours, inputs), reference, **EXACT)
    for found in zip(with_gradients(ours, rounded), with_gradients(theirs, rounded), reference, strict=True):
        assert_as_exact(*found)


def pairs_of(right: torch.Tensor) -> Positives:
    return Positives(right, right.T)


def test_contrastive_loss_equals_open_clip_when_all_captions_differ() -> None:
    captions = [f"caption {i}" for i in range(8)]
    positives = find_positives(captions, [[c] for c in captions])
    assert_equals_open_clips(lambda *inputs: contrastive_loss(*inputs, positives), ClipLoss(), 20.0)


def test_contrastive_loss_equals_hand_formula() -> None:
    images, texts = torch.eye(2).double(), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    loss = contrastive_loss(images, texts, torch.tensor(2.0), pairs_of(torch.eye(2, dtype=torch.bool)))
    logits = [[1.2, 0.0], [1.6, 2.0]]
    by_image = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[i][j]) for j in (0, 1))) for i in (0, 1)]
    by_text = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[j][i]) for j in (0, 1))) for i in (0, 1)]
    assert float(loss) == pytest.approx((sum(by_image) + sum(by_text)) / 4, abs=1e-12)


def test_contrastive_loss_has_no_negatives_among_equal_captions() -> None:
    image = features(1, 0).expand(4, -1)
    pairs = find_positives(["cat"] * 4, [["cat"]] * 4)
    scale = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(image, image, scale, pairs)
    assert pairs.per_image.all()
    assert loss.item() == pytest.approx(math.log(4), abs=1e-12)  # even, whatever the scale
    assert float(torch.autograd.grad(loss, scale)[0]) == pytest.approx(0, abs=1e-12)


def test_positive_pairs_accepts_listed_captions() -> None:
    right = [["cat", "pet"], ["cat", "pet"], ["dog", "pet"]]
    pairs = find_positives(["cat", "pet", "dog"], right)
    assert pairs.per_image.tolist() == [[True, True, False], [True, True, False], [False, True, True]]
    assert torch.equal(pairs.per_text, pairs.per_image.T)
    share = find_positives(["cat", "pet", "dog"], right, slice(1, 3))
    assert torch.equal(share.per_image, pairs.per_image[1:])
    assert torch.equal(share.per_text, pairs.per_text[1:])


@pytest.mark.parametrize("loss", [contrastive_loss, lambda i, t, s, p: sigmoid_loss(i, t, s, torch.tensor(-2.0), p)])
def test_losses_of_shares_add_up_to_that_of_the_batch(loss: Any) -> None:
    images, texts, scale = features(6, 0), features(6, 1), torch.tensor(20.0)
    captions = ["a", "b", "a", "c", "d", "b"]
    accepted = [[caption, "d"] for caption in captions]
    whole = loss(images, texts, scale, find_positives(captions, accepted))
    slices = (slice(0, 4), slice(4, 6), slice(6, 6))
    shares = [loss(images, texts, scale, find_positives(captions, accepted, own)) for own in slices]
    torch.testing.assert_close(sum(shares), whole, **EXACT)


def test_proxy_loss_equals_cross_entropy() -> None:
    images, texts, scale = features(3, 0), features(3, 1), torch.tensor(10.0)
    loss = ProxyLoss(["a", "b"], 16).double()
    proxies = functional.normalize(loss.proxies, dim=-1)
    target = torch.tensor([1, 0, 1])
    expected = functional.cross_entropy(10 * images @ proxies.T, target)
    expected = (expected + functional.cross_entropy(10 * texts @ proxies.T, target)) / 2
    torch.testing.assert_close(loss(images, texts, scale, ["b", "a", "b"]) / 3, expected, **EXACT)


def test_sigmoid_loss_equals_open_clip_when_all_captions_differ() -> None:
    positives = pairs_of(torch.eye(8, dtype=torch.bool))
    assert_equals_open_clips(lambda *inputs: sigmoid_loss(*inputs, positives), SigLipLoss(), 12.0, -3.0)


def test_sigmoid_loss_equals_hand_formula_with_several_positives() -> None:
    images, texts = torch.eye(2).double(), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    pairs = torch.tensor([[True, False], [True, True]])
    loss = sigmoid_loss(images, texts, torch.tensor(2.0), torch.tensor(-1.0), pairs_of(pairs))
    signed = [1.2 - 1, -(0.0 - 1), 1.6 - 1, 2.0 - 1]
    assert float(loss) == pytest.approx(sum(math.log1p(math.exp(-value)) for value in signed) / 2, abs=1e-12)

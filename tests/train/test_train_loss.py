"""The contrastive loss against a hand formula and open_clip's."""

import math
from typing import Any

import pytest
import torch
from open_clip import ClipLoss
from open_clip.loss import SigLipLoss
from torch.nn import functional

from clipcls.train import loss
from clipcls.train.loss import Positives, find_positives


def features(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 16, generator=generator), dim=-1).requires_grad_()


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, positives: Positives
) -> torch.Tensor:
    """Of features."""
    own = positives.own
    return loss.contrastive_loss(scale * images[own] @ texts.T, scale * texts[own] @ images.T, positives)


def sigmoid_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, positives: Positives
) -> torch.Tensor:
    """Of features."""
    return loss.sigmoid_loss(scale * images[positives.own] @ texts.T + bias, positives)


def pairs_of(right: torch.Tensor) -> Positives:
    return Positives(right, right.T)


def test_contrastive_loss_equals_open_clip_when_all_captions_differ() -> None:
    images, texts, scale = features(8, 0), features(8, 1), torch.tensor(20.0, requires_grad=True)
    captions = [f"caption {i}" for i in range(8)]
    ours = contrastive_loss(images, texts, scale, find_positives(captions, [[c] for c in captions]))
    our_gradients = torch.autograd.grad(ours, (images, texts, scale))
    theirs = ClipLoss()(images, texts, scale)
    their_gradients = torch.autograd.grad(theirs, (images, texts, scale))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_contrastive_loss_equals_hand_formula() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    found = contrastive_loss(images, texts, torch.tensor(2.0), pairs_of(torch.eye(2, dtype=torch.bool)))
    logits = [[1.2, 0.0], [1.6, 2.0]]
    by_image = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[i][j]) for j in (0, 1))) for i in (0, 1)]
    by_text = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[j][i]) for j in (0, 1))) for i in (0, 1)]
    assert float(found) == pytest.approx((sum(by_image) + sum(by_text)) / 4, abs=1e-5)


def test_contrastive_loss_has_no_negatives_among_equal_captions() -> None:
    image = functional.normalize(torch.randn(1, 16), dim=-1).expand(4, -1)
    pairs = find_positives(["cat"] * 4, [["cat"]] * 4)
    scale = torch.tensor(30.0, requires_grad=True)
    found = contrastive_loss(image, image, scale, pairs)
    assert pairs.per_image.all()
    assert found.item() == pytest.approx(math.log(4), abs=1e-5)  # even, whatever the scale
    assert float(torch.autograd.grad(found, scale)[0]) == pytest.approx(0, abs=1e-6)


def test_positive_pairs_accepts_listed_captions() -> None:
    right = [["cat", "pet"], ["cat", "pet"], ["dog", "pet"]]
    pairs = find_positives(["cat", "pet", "dog"], right)
    assert pairs.per_image.tolist() == [[True, True, False], [True, True, False], [False, True, True]]
    assert torch.equal(pairs.per_text, pairs.per_image.T)
    share = find_positives(["cat", "pet", "dog"], right, slice(1, 3))
    assert torch.equal(share.per_image, pairs.per_image[1:])
    assert torch.equal(share.per_text, pairs.per_text[1:])


@pytest.mark.parametrize("loss_of", [contrastive_loss, lambda i, t, s, p: sigmoid_loss(i, t, s, torch.tensor(-2.0), p)])
def test_losses_of_shares_add_up_to_that_of_the_batch(loss_of: Any) -> None:
    images, texts, scale = features(6, 0), features(6, 1), torch.tensor(20.0)
    captions = ["a", "b", "a", "c", "d", "b"]
    accepted = [[caption, "d"] for caption in captions]
    whole = loss_of(images, texts, scale, find_positives(captions, accepted))
    slices = (slice(0, 4), slice(4, 6), slice(6, 6))
    shares = [loss_of(images, texts, scale, find_positives(captions, accepted, own)) for own in slices]
    torch.testing.assert_close(sum(shares), whole)


def test_sigmoid_loss_equals_open_clip_when_all_captions_differ() -> None:
    images, texts = features(8, 0), features(8, 1)
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    inputs = (images, texts, scale, bias)
    ours = sigmoid_loss(*inputs, pairs_of(torch.eye(8, dtype=torch.bool)))
    theirs = SigLipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for our, their in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_sigmoid_loss_equals_hand_formula_with_several_positives() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    pairs = torch.tensor([[True, False], [True, True]])
    found = sigmoid_loss(images, texts, torch.tensor(2.0), torch.tensor(-1.0), pairs_of(pairs))
    signed = [1.2 - 1, -(0.0 - 1), 1.6 - 1, 2.0 - 1]
    assert float(found) == pytest.approx(sum(math.log1p(math.exp(-value)) for value in signed) / 2, abs=1e-5)

"""The contrastive loss against a hand formula and open_clip's."""

import math

import pytest
import torch
from open_clip import ClipLoss
from open_clip.loss import SigLipLoss
from torch.nn import functional

from clipcls.train.loss import ProxyLoss, contrastive_loss, positive_pairs, sigmoid_loss


def features(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 16, generator=generator), dim=-1).requires_grad_()


def test_contrastive_loss_equals_open_clip_when_all_captions_differ() -> None:
    images, texts, scale = features(8, 0), features(8, 1), torch.tensor(20.0, requires_grad=True)
    captions = [f"caption {i}" for i in range(8)]
    ours = contrastive_loss(images, texts, scale, positive_pairs(captions, [[c] for c in captions]))
    our_gradients = torch.autograd.grad(ours, (images, texts, scale))
    theirs = ClipLoss()(images, texts, scale)
    their_gradients = torch.autograd.grad(theirs, (images, texts, scale))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for our, their in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_contrastive_loss_equals_hand_formula() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    loss = contrastive_loss(images, texts, torch.tensor(2.0), torch.eye(2, dtype=torch.bool))
    logits = [[1.2, 0.0], [1.6, 2.0]]
    by_image = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[i][j]) for j in (0, 1))) for i in (0, 1)]
    by_text = [-math.log(math.exp(logits[i][i]) / sum(math.exp(logits[j][i]) for j in (0, 1))) for i in (0, 1)]
    assert float(loss) == pytest.approx((sum(by_image) + sum(by_text)) / 4, abs=1e-5)


def test_contrastive_loss_has_no_negatives_among_equal_captions() -> None:
    image = functional.normalize(torch.randn(1, 16), dim=-1).expand(4, -1)
    pairs = positive_pairs(["cat"] * 4, [["cat"]] * 4)
    scale = torch.tensor(30.0, requires_grad=True)
    loss = contrastive_loss(image, image, scale, pairs)
    assert pairs.all()
    assert loss.item() == pytest.approx(math.log(4), abs=1e-5)  # even, whatever the scale
    assert float(torch.autograd.grad(loss, scale)[0]) == pytest.approx(0, abs=1e-6)


def test_positive_pairs_accepts_listed_captions() -> None:
    pairs = positive_pairs(["cat", "pet", "dog"], [["cat", "pet"], ["cat", "pet"], ["dog", "pet"]])
    assert pairs.tolist() == [[True, True, False], [True, True, False], [False, True, True]]


def test_proxy_loss_equals_cross_entropy() -> None:
    images, texts, scale = features(3, 0), features(3, 1), torch.tensor(10.0)
    loss = ProxyLoss(["a", "b"], 16)
    proxies = functional.normalize(loss.proxies, dim=-1)
    target = torch.tensor([1, 0, 1])
    expected = functional.cross_entropy(10 * images @ proxies.T, target)
    expected = (expected + functional.cross_entropy(10 * texts @ proxies.T, target)) / 2
    torch.testing.assert_close(loss(images, texts, scale, ["b", "a", "b"]), expected)


def test_sigmoid_loss_equals_open_clip_when_all_captions_differ() -> None:
    images, texts = features(8, 0), features(8, 1)
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    inputs = (images, texts, scale, bias)
    ours = sigmoid_loss(*inputs, torch.eye(8, dtype=torch.bool))
    theirs = SigLipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for our, their in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


def test_sigmoid_loss_equals_hand_formula_with_several_positives() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    pairs = torch.tensor([[True, False], [True, True]])
    loss = sigmoid_loss(images, texts, torch.tensor(2.0), torch.tensor(-1.0), pairs)
    signed = [1.2 - 1, -(0.0 - 1), 1.6 - 1, 2.0 - 1]
    assert float(loss) == pytest.approx(sum(math.log1p(math.exp(-value)) for value in signed) / 2, abs=1e-5)

"""Noise that is made to turn a model's answers, too weak to be seen.

Source: Croce and Hein 2020, algorithm 1 (APGD) and section 4 (DLR), https://arxiv.org/abs/2003.01690
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clipcls.models.encoder import Encoder
from clipcls.records import Preprocessing

#: Steps of each run, as in AutoAttack.
STEPS = 100

_MOMENTUM = 0.75
# a step is halved where fewer of the steps since the last check have raised the loss
_RISING = 0.75
# the first check comes after this share of the steps, each further one sooner by the next share, but for the last
_FIRST_CHECK, _SOONER, _SOONEST = 0.22, 0.03, 0.06

_Loss = Callable[[Tensor, Tensor], Tensor]
_Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Standing:
    """Which pictures keep their right answer.

    Attributes:
        plain: (n,) bool, whether the picture is answered right as it is.
        attacked: (n_strengths, n) bool, whether it still is after all attacks of a strength.
    """

    plain: NDArray[np.bool_]
    attacked: NDArray[np.bool_]


class AttackedTower:
    """An image tower that is attacked through its pixels.

    Args:
        tower: it stays as it is; its weights must be no inference tensors.
        text_features: (n_labels, embed_dim) float32, L2-normalised.
        logit_scale: in log space.
        seed: of the points that runs begin at.
        steps: of each run.
    """

    def __init__(
        self,
        tower: nn.Module,
        preprocess: Preprocessing,
        text_features: NDArray[np.float32],
        logit_scale: float,
        seed: int = 0,
        steps: int = STEPS,
    ) -> None:
        self._tower = tower.requires_grad_(False)
        weight = next(tower.parameters())
        self._text_features = torch.from_numpy(text_features).to(weight) * float(np.exp(logit_scale))
        self._mean, self._std = (
            torch.tensor(values).to(weight).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std)
        )
        self._seed = seed
        self._steps = steps

    @classmethod
    def of(cls, encoder: Encoder, text_features: NDArray[np.float32], seed: int) -> Self:
        """Return the image tower of an encoder, built anew in fp32.

        Raises:
            ModelError: the weights can't be loaded.
        """
        return cls(encoder.build("visual", "fp32"), encoder.preprocess, text_features, encoder.logit_scale, seed)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logit of each label, (n, n_labels), for pictures of (n, 3, height, width) from 0 to 1."""
        found = self._tower((images - self._mean) / self._std)
        features = functional.normalize(found[0] if isinstance(found, tuple) else found, dim=-1)
        return features @ self._text_features.T

    def attack(
        self, pixels: Sequence[NDArray[np.uint8]], truth: NDArray[np.int64], strengths: Sequence[float]
    ) -> Standing:
        """Attack pictures by cross-entropy, and those that stand by the difference of logits ratio.

        Args:
            pixels: (height, width, 3) each, from `clipcls.images.fit.load_pixels`.
            truth: (n,) int64, the right labels.
            strengths: the most by which a value from 0 to 1 is changed, in ascending order. What falls at one has
                fallen at the next.
        """
        batch = torch.from_numpy(np.stack(list(pixels))).to(self._mean.device)
        images = (batch.to(self._mean) / 255).permute(0, 3, 1, 2)  # NHWC -> NCHW
        labels = torch.from_numpy(truth).to(images.device)
        with torch.no_grad():
            plain = standing = self.logits(images).argmax(dim=1) == labels
        found = []
        for strength in strengths:
            for loss in (_cross_entropy, _logits_ratio):
                left = standing.nonzero()[:, 0]
                if len(left):
                    # AutoAttack begins each run with the same seed, too
                    random = torch.Generator(images.device).manual_seed(self._seed)
                    fallen = _fallen(self.logits, images[left], labels[left], strength, loss, self._steps, random)
                    standing = standing.clone()
                    standing[left[fallen]] = False
            found.append(standing.cpu().numpy())
        return Standing(plain.cpu().numpy(), np.stack(found))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the DLR loss, which doesn't depend on the logits' scale; with two labels, their plain difference."""
    ranked = logits.sort(dim=1).values
    right = logits.gather(1, labels[:, None])[:, 0]
    best_other = torch.where(right == ranked[:, -1], ranked[:, -2], ranked[:, -1])
    spread = ranked[:, -1] - ranked[:, -3] + 1e-12 if logits.shape[1] > 2 else torch.ones_like(right)
    return (best_other - right) / spread


@dataclass(slots=True)
class _State:
    """Where a run stands, with a row a picture that hasn't fallen.

    Attributes:
        places: the index of the picture.
        rises: how many steps since the last check have raised the loss.
        halved: whether the last check halved the step.
    """

    places: Tensor
    images: Tensor
    labels: Tensor
    attacked: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name)[rows])


def _fallen(
    logits: _Logits, images: Tensor, labels: Tensor, strength: float, loss: _Loss, steps: int, random: torch.Generator
) -> Tensor:
    """Run APGD, and return which pictures get a wrong answer at any of its points, (n,) bool."""
    low, high = ((images + change).clamp(0, 1) for change in (-strength, strength))
    noise = torch.rand(images.shape, generator=random, device=images.device) * 2 - 1
    start = (images + strength * noise / noise.abs().amax(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    gradient, first_loss, right = _look(logits, start, labels, loss)
    column = torch.ones(len(images), device=images.device)
    state = _State(
        places=torch.arange(len(images), device=images.device),
        images=images,
        labels=labels,
        attacked=start,
        before=start,
        gradient=gradient,
        loss=first_loss,
        best=start,
        best_gradient=gradient,
        best_loss=first_loss,
        checked_loss=first_loss,
        step=2 * strength * column.view(-1, 1, 1, 1),
        rises=torch.zeros_like(column),
        halved=torch.ones_like(column, dtype=torch.bool),
    )
    fallen = ~right
    state.keep(right)
    wait, waited = max(1, int(_FIRST_CHECK * steps)), 0
    for number in range(steps):
        if not len(state.places):
            break
        near = low[state.places], high[state.places]
        stepped = (state.attacked + state.step * state.gradient.sign()).clamp(*near)
        if number:
            stepped = state.attacked + _MOMENTUM * (stepped - state.attacked)
            stepped = (stepped + (1 - _MOMENTUM) * (state.attacked - state.before)).clamp(*near)
        state.before, state.attacked = state.attacked, stepped
        state.gradient, new_loss, right = _look(logits, stepped, state.labels, loss)
        state.rises = state.rises + (new_loss > state.loss)
        state.loss = new_loss
        fallen[state.places[~right]] = True
        state.keep(right)
        _note_best(state)
        waited += 1
        if waited == wait:
            _check(state, wait)
            wait, waited = max(wait - max(1, int(_SOONER * steps)), max(1, int(_SOONEST * steps))), 0
    return fallen


def _look(logits: _Logits, images: Tensor, labels: Tensor, loss: _Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss's gradient by the pictures, the loss itself, and whether each answer is right."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        found = logits(leaf)
        losses = loss(found, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient, losses.detach(), found.detach().argmax(dim=1) == labels


def _note_best(state: _State) -> None:
    better = state.loss > state.best_loss
    wide = better.view(-1, 1, 1, 1)
    state.best = torch.where(wide, state.attacked, state.best)
    state.best_gradient = torch.where(wide, state.gradient, state.best_gradient)
    state.best_loss = torch.where(better, state.loss, state.best_loss)


def _check(state: _State, steps: int) -> None:
    """Halve the steps that lead nowhere, and go on from the best point there."""
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    halve = (state.rises <= _RISING * steps) | stuck
    wide = halve.view(-1, 1, 1, 1)
    state.step = torch.where(wide, state.step / 2, state.step)
    state.attacked = torch.where(wide, state.best, state.attacked)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)
    state.halved, state.checked_loss = halve, state.best_loss
    state.rises = torch.zeros_like(state.rises)

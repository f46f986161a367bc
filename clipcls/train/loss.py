"""The losses of contrastive training."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Positives:
    """Which captions of a batch are right for which of its pictures, for a process's own share of both.

    Attributes:
        per_image: `(n_own, n) bool`, the captions of the batch that are right for each of the own pictures.
        per_text: `(n_own, n) bool`, the pictures of the batch that each of the own captions is right for.
        first: where the own share stands in the batch.
    """

    per_image: torch.Tensor
    per_text: torch.Tensor
    first: int = 0

    @property
    def own(self) -> slice:
        """The own share of the batch."""
        return slice(self.first, self.first + len(self.per_image))

    def to(self, device: torch.device) -> "Positives":
        """Return the same on a device."""
        return Positives(self.per_image.to(device), self.per_text.to(device), self.first)


def find_positives(captions: Sequence[str], accepted: Sequence[Collection[str]], own: slice = slice(None)) -> Positives:
    """Find out which captions of a batch are right for which of its pictures.

    Args:
        captions: the caption that was drawn for each picture.
        accepted: for each picture, the captions that are right for it; its own is, even if it isn't listed.
        own: the share of the batch that is asked for.
    """
    first = own.indices(len(captions))[0]
    per_image = _matches(accepted[own], captions)
    per_text = per_image.T if len(per_image) == len(captions) else _matches(accepted, captions[own]).T
    for pairs in (per_image, per_text):
        pairs.diagonal(first).fill_(True)
    return Positives(per_image, per_text, first)


def _matches(accepted: Sequence[Collection[str]], captions: Sequence[str]) -> torch.Tensor:
    """Return which captions each picture accepts, `(n_accepted, n_captions) bool`."""
    columns: dict[str, list[int]] = {}
    for column, caption in enumerate(captions):
        columns.setdefault(caption, []).append(column)
    pairs = torch.zeros(len(accepted), len(captions), dtype=torch.bool)
    for row, right in enumerate(accepted):
        pairs[row, [column for caption in right if caption in columns for column in columns[caption]]] = True
    return pairs


def contrastive_loss(
    logits_per_image: torch.Tensor, logits_per_text: torch.Tensor, positives: Positives
) -> torch.Tensor:
    """Return the symmetric InfoNCE in which a picture may have several right captions, and a caption several pictures.

    Without further pairs than the diagonal this is CLIP's loss. With more, each row's target is spread evenly
    over its right columns, so that equal captions pull together instead of pushing each other away.

    Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, figure
    3; Yang et al. 2022, Unified Contrastive Learning in Image-Text-Label Space, equations 2 to 4.

    Args:
        logits_per_image: `(n_own, n) float32`, scaled cosines of the own pictures with the batch's captions.
        logits_per_text: `(n_own, n) float32`, scaled cosines of the own captions with the batch's pictures.
        positives: the right ones; at least one for each.

    Returns:
        The mean over both directions: the own share's part of it, the shares of all processes add up.
    """
    total = _cross_entropy(logits_per_image, positives.per_image) + _cross_entropy(logits_per_text, positives.per_text)
    return total / (2 * logits_per_image.shape[1])


def _cross_entropy(logits: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows whose targets are spread evenly over their right columns."""
    target = pairs.to(logits.dtype)
    return functional.cross_entropy(logits, target / target.sum(1, keepdim=True), reduction="sum")


def sigmoid_loss(logits_per_image: torch.Tensor, positives: Positives) -> torch.Tensor:
    """Return the loss in which every pair of a picture and a caption is a yes-or-no question of its own.

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, equation 1 and algorithm 1; with further
    pairs than the diagonal their sign is positive too.

    Args:
        logits_per_image: `(n_own, n) float32`, scaled cosines of the own pictures with the batch's captions, plus the
            model's bias.
        positives: the right ones.

    Returns:
        The sum over all pairs, divided by the number of pictures: the own pictures' part of it.
    """
    sign = 2 * positives.per_image.to(logits_per_image.dtype) - 1
    return -functional.logsigmoid(sign * logits_per_image).sum() / logits_per_image.shape[1]

"""The losses of contrastive training."""

from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.nn import functional


def positive_pairs(captions: Sequence[str], accepted: Sequence[Collection[str]]) -> torch.Tensor:
    """Which captions of a batch are right for which of its pictures.

    Args:
        captions: the caption that was drawn for each picture.
        accepted: for each picture, the captions that are right for it; its own is, even if it isn't listed.

    Returns:
        `(n_images, n_captions) bool`.
    """
    columns: dict[str, list[int]] = {}
    for column, caption in enumerate(captions):
        columns.setdefault(caption, []).append(column)
    pairs = torch.eye(len(captions), dtype=torch.bool)
    for row, right in enumerate(accepted):
        hits = [column for caption in right if caption in columns for column in columns[caption]]
        pairs[row, hits] = True
    return pairs


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE in which a picture may have several right captions, and a caption several pictures.

    Without further pairs than the diagonal this is CLIP's loss. With more, each row's target is spread evenly
    over its right columns, so that equal captions pull together instead of pushing each other away.

    Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, figure
    3; Yang et al. 2022, Unified Contrastive Learning in Image-Text-Label Space, equations 2 to 4.

    Args:
        image_features: `(n, embed_dim) float32`, L2-normalised.
        text_features: `(n, embed_dim) float32`, L2-normalised.
        scale: what the cosines are multiplied with.
        pairs: `(n_images, n_captions) bool`, the right ones; at least one in every row and column.

    Returns:
        The mean over both directions.
    """
    logits_per_image = scale * image_features @ text_features.T
    target = pairs.to(logits_per_image.dtype)
    image_loss = functional.cross_entropy(logits_per_image, target / target.sum(1, keepdim=True))
    text_loss = functional.cross_entropy(logits_per_image.T, (target / target.sum(0, keepdim=True)).T)
    return (image_loss + text_loss) / 2


def sigmoid_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """Every pair of a picture and a caption as a yes-or-no question of its own.

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, equation 1 and algorithm 1; with further
    pairs than the diagonal their sign is positive too.

    Args:
        image_features: `(n, embed_dim) float32`, L2-normalised.
        text_features: `(n, embed_dim) float32`, L2-normalised.
        scale: what the cosines are multiplied with.
        bias: what is added to that; begins far below zero, since most pairs are wrong.
        pairs: `(n_images, n_captions) bool`, the right ones.

    Returns:
        The sum over all pairs, divided by the number of pictures.
    """
    logits_per_image = scale * image_features @ text_features.T + bias
    sign = 2 * pairs.to(logits_per_image.dtype) - 1
    return -functional.logsigmoid(sign * logits_per_image).sum() / len(image_features)


class ProxyLoss(nn.Module):
    """Cross-entropy of pictures and captions against one learnable vector per concept.

    A batch shows a picture to some hundred concepts at a time; this shows it to all of them, which lets a
    small tower start to learn within minutes. The vectors are dropped after training.

    Source: Movshovitz-Attias et al. 2017, No Fuss Distance Metric Learning using Proxies.

    Args:
        concepts: the names, in the order of the vectors.
        embed_dim: length of the vectors.
    """

    def __init__(self, concepts: Sequence[str], embed_dim: int) -> None:
        super().__init__()
        self.concepts = tuple(concepts)
        self._index = {concept: number for number, concept in enumerate(concepts)}
        self.proxies = nn.Parameter(torch.randn(len(concepts), embed_dim) * embed_dim**-0.5)

    @torch.no_grad()
    def start_from(self, text_features: torch.Tensor) -> None:
        """Set the vectors to the concepts' own text features, `(n_concepts, embed_dim)`, less their mean."""
        centred = text_features - text_features.mean(0)
        self.proxies.copy_(functional.normalize(centred, dim=-1))

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        scale: torch.Tensor,
        concepts: Sequence[str],
    ) -> torch.Tensor:
        """The mean over pictures and captions; features are `(n, embed_dim)`, L2-normalised."""
        target = torch.tensor([self._index[concept] for concept in concepts], device=image_features.device)
        proxies = functional.normalize(self.proxies, dim=-1)
        image_loss = functional.cross_entropy(scale * image_features @ proxies.T, target)
        text_loss = functional.cross_entropy(scale * text_features @ proxies.T, target)
        return (image_loss + text_loss) / 2

"""What is minimised: the features of a batch, the loss on them, and its gradients."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clipcls.train.data import Table
from clipcls.train.feed import Prepared
from clipcls.train.folder import DualEncoder
from clipcls.train.loss import ProxyLoss, contrastive_loss, positive_pairs, sigmoid_loss
from clipcls.train.randomness import random_states, restore_random_states
from clipcls.train.settings import Settings
from clipcls.train.towers import batch_norms, image_modules, kept_statistics, text_parameters

logger = logging.getLogger(__name__)


class Objective:
    """The loss of a model on batches, helper loss included.

    Args:
        settings: of the run.
        encoder: its model on its device, the towers locked or not.
        table: whose rows name the concepts and the captions that are right for a picture.
        precision: of the towers; the loss is in float32.

    Attributes:
        proxies: the helper loss, None without one.
        sigmoid: whether the loss is the sigmoid loss, else it is the contrastive one.
    """

    def __init__(self, settings: Settings, encoder: DualEncoder, table: Table, precision: torch.dtype) -> None:
        model: Any = encoder.model
        self.settings, self.model, self.precision = settings, model, precision
        self.device: torch.device = model.logit_scale.device
        biased = getattr(model, "logit_bias", None) is not None
        self.sigmoid = biased if settings.loss == "auto" else settings.loss == "sigmoid"
        self.proxies: ProxyLoss | None = None
        if settings.proxy_weight:
            concepts = list(dict.fromkeys(row.concept for row in table.rows))
            self.proxies = ProxyLoss(concepts, encoder.config.model["embed_dim"]).to(self.device)
        self._accepted = {row.captions: frozenset(row.captions) for row in table.rows}
        image_parameters = (weight for module in image_modules(model) for weight in module.parameters())
        self._image_learns = any(weight.requires_grad for weight in image_parameters)
        if settings.accumulate > 1 and batch_norms(model):
            logger.warning(
                "accumulate: BatchNorm sees one part of a batch at a time, so the gradients aren't the batch's"
            )
        self._text_learns = any(weight.requires_grad for weight in text_parameters(model))

    @property
    def modules(self) -> list[nn.Module]:
        """All that may be trained."""
        return [self.model] if self.proxies is None else [self.model, self.proxies]

    def backward(self, batch: Prepared, scaler: torch.amp.GradScaler) -> float:
        """Add the gradients of a batch's loss to those of the parameters; returns the loss."""
        if self.settings.accumulate > 1:
            return self._backward_in_parts(batch, scaler)
        loss = self.loss(*self._features(batch.images, batch.tokens), batch)
        torch.autograd.backward(scaler.scale(loss))
        return float(loss.detach())

    def _backward_in_parts(self, batch: Prepared, scaler: torch.amp.GradScaler) -> float:
        """The same for a batch whose activations don't fit into memory at once.

        All features are computed first, without gradients. The loss on them gives the gradient of each feature, and
        of the scale; then part after part is computed again and passes its features' gradients on to the weights.

        Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
        """
        count = self.settings.accumulate
        parts = list(zip(batch.images.chunk(count), batch.tokens.chunk(count), strict=True))
        states, cached = [], []
        with torch.no_grad(), kept_statistics(self.model):
            for part in parts:
                states.append(random_states(self.device))
                cached.append(self._features(*part))
        image_features, text_features = (torch.cat(found).requires_grad_() for found in zip(*cached, strict=True))
        loss = self.loss(image_features, text_features, batch)
        torch.autograd.backward(scaler.scale(loss))
        gradients = zip(_gradients(image_features, count), _gradients(text_features, count), strict=True)
        for part, state, gradient in zip(parts, states, gradients, strict=True):
            restore_random_states(self.device, state)
            features = zip(self._features(*part), gradient, strict=True)
            learning = [pair for pair in features if pair[0].requires_grad]  # not those of a locked tower
            torch.autograd.backward([pair[0] for pair in learning], [pair[1] for pair in learning])
        return float(loss.detach())

    def _features(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image_features(images.to(self.device)), self.text_features(tokens.to(self.device))

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """`(n, embed_dim) float32`, L2-normalised; without gradients where the tower is locked."""
        with torch.set_grad_enabled(self._image_learns and torch.is_grad_enabled()), self._autocast():
            features = self.model.encode_image(images)
        return functional.normalize(features.float(), dim=-1)

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(n, embed_dim) float32`, L2-normalised; without gradients where the tower is locked."""
        with torch.set_grad_enabled(self._text_learns and torch.is_grad_enabled()), self._autocast():
            features = self.model.encode_text(tokens)
        return functional.normalize(features.float(), dim=-1)

    def loss(self, image_features: torch.Tensor, text_features: torch.Tensor, batch: Prepared) -> torch.Tensor:
        """The loss of a batch with these features, `(n, embed_dim) float32`, L2-normalised."""
        scale = self.model.logit_scale.exp()
        pairs = positive_pairs(batch.captions, self._right_captions(batch)).to(self.device)
        if self.sigmoid:
            loss = sigmoid_loss(image_features, text_features, scale, self.model.logit_bias, pairs)
        else:
            loss = contrastive_loss(image_features, text_features, scale, pairs)
        if self.proxies is not None:
            concepts = [row.concept for row in batch.rows]
            helper = self.proxies(image_features, text_features, scale, concepts)
            loss = loss + self.settings.proxy_weight * helper
        return loss

    def _right_captions(self, batch: Prepared) -> Sequence[frozenset[str]]:
        """For each picture, the captions that aren't its negatives."""
        if self.settings.positives == "listed":
            return [self._accepted[row.captions] for row in batch.rows]
        if self.settings.positives == "own":
            return [frozenset()] * len(batch.captions)
        return [frozenset([caption]) for caption in batch.captions]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def _gradients(features: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    assert features.grad is not None
    return features.grad.chunk(count)

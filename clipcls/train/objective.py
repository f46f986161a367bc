"""What is minimised: the features of a batch, the loss on them, and its gradients."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from clipcls.inputs.labelled.examples import Example
from clipcls.models.padding import cut_to_length, without_padding
from clipcls.train.data.batches import Prepared
from clipcls.train.data.captions import caption_key
from clipcls.train.data.corpus import Corpus
from clipcls.train.data.read import require_table
from clipcls.train.loss import Positives, ProxyLoss, contrastive_loss, find_positives, sigmoid_loss
from clipcls.train.model_folder import DualEncoder
from clipcls.train.processes import Processes, random_states, restore_random_states
from clipcls.train.settings import Settings
from clipcls.train.towers import batch_norms, image_modules, kept_statistics, text_parameters

logger = logging.getLogger(__name__)

# of image and text features, `(n, embed_dim)`
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TextTower(nn.Module):
    """A model's text tower by itself, for texts that may be shorter than its context.

    Args:
        model: of one of open_clip's classes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def owner(self) -> Any:
        """What holds the tower's parts: `text`, or with open_clip's CLIP class the model itself."""
        return getattr(self.model, "text", self.model)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text features, `(n, embed_dim)`, as the model gives them."""
        features: torch.Tensor = self.model.encode_text(tokens)
        return features

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same of tokens without their padding."""
        prefix = "model." if self.owner is self.model else "model.text."
        cut = {prefix + name: tensor for name, tensor in cut_to_length(self.owner, tokens).items()}
        features: torch.Tensor = functional_call(self, cut, (tokens,)) if cut else self(tokens)
        return features


class Towers(nn.Module):
    """Both towers in one forward pass, in the precision of the run.

    Args:
        model: of one of open_clip's classes, its towers locked or not.
        precision: of the towers; the features are float32.
    """

    def __init__(self, model: Any, precision: torch.dtype) -> None:
        super().__init__()
        self.model, self.text, self.precision = model, TextTower(model), precision
        image_parameters = (weight for module in image_modules(model) for weight in module.parameters())
        self._image_learns = any(weight.requires_grad for weight in image_parameters)
        self._text_learns = any(weight.requires_grad for weight in text_parameters(model))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text features, `(n, embed_dim) float32`, L2-normalised; without gradients of a locked tower."""
        low = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=low):
            with torch.set_grad_enabled(self._image_learns and torch.is_grad_enabled()):
                image_features = self.model.encode_image(images)
            with torch.set_grad_enabled(self._text_learns and torch.is_grad_enabled()):
                text_features = self.text.encode(tokens)
        return functional.normalize(image_features.float(), dim=-1), functional.normalize(text_features.float(), dim=-1)


class Objective:
    """The loss of a model on batches, helper loss included.

    Args:
        settings: of the run.
        encoder: its model on its device, the towers locked or not.
        corpus: whose rows name the concepts.
        precision: of the towers; the loss is in float32.
        processes: that have a share of each batch.

    Attributes:
        proxies: the helper loss, None without one.
        sigmoid: whether the loss is the sigmoid loss, else it is the contrastive one.
    """

    def __init__(
        self, settings: Settings, encoder: DualEncoder, corpus: Corpus, precision: torch.dtype, processes: Processes
    ) -> None:
        model: Any = encoder.model
        self.settings, self.model, self.processes = settings, model, processes
        self.device: torch.device = model.logit_scale.device
        biased = getattr(model, "logit_bias", None) is not None
        self.sigmoid = biased if settings.loss == "auto" else settings.loss == "sigmoid"
        self.proxies: ProxyLoss | None = None
        if settings.proxy_weight:
            self.proxies = ProxyLoss(_concepts(corpus), encoder.config.model["embed_dim"]).to(self.device)
        self._warn_of_batch_norm()
        towers = Towers(model, precision)
        self.text_tower = towers.text.owner
        self.towers = self._wrapped(towers)

    @property
    def modules(self) -> list[nn.Module]:
        """All that may be trained."""
        return [self.model] if self.proxies is None else [self.model, self.proxies]

    def backward(self, batch: Prepared, scaler: torch.amp.GradScaler) -> float | None:
        """Add the gradients of a batch's loss to those of the parameters.

        Args:
            batch: this process's share.
            scaler: of the gradients.

        Returns:
            The loss of the whole batch; None, without gradients, for one that has fewer than two pictures.
        """
        keys = [caption_key(caption) for caption in batch.captions]
        everyone = self.processes.gather_objects((keys, self._accepted(batch, keys)))
        counts = [len(captions) for captions, _ in everyone]
        if sum(counts) < 2:
            return None
        start, size = sum(counts[: self.processes.rank]), len(batch.rows)
        captions, accepted = (list(chain.from_iterable(parts)) for parts in zip(*everyone, strict=True))
        positives = find_positives(captions, accepted, slice(start, start + size)).to(self.device)

        def loss_of(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
            own = (image_features[:size], text_features[:size])
            images, texts = (self.processes.gather(features, counts) for features in own)
            loss = self._loss(images, texts, positives) + self._helper_loss(*own, batch.rows) / sum(counts)
            # the gradients are averaged over the processes, while their shares of the loss add up
            return loss * self.processes.count

        inputs = self._inputs(batch, max(counts))
        loss = (self._in_parts if self.settings.accumulate > 1 else self._at_once)(*inputs, loss_of, scaler)
        self.processes.average([loss, *self._gradients_beside_the_towers()])
        return float(loss)

    def _inputs(self, batch: Prepared, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and tokens on the device, as many in all processes, so that each has as many parts.

        What fills up a share counts for nothing in the loss.
        """
        images, tokens = batch.images, without_padding(self.text_tower, batch.tokens)
        images, tokens = _filled(images, count), _filled(tokens, count)
        return images.to(self.device, non_blocking=True), tokens.to(self.device, non_blocking=True)

    def _at_once(
        self, images: torch.Tensor, tokens: torch.Tensor, loss_of: LossOf, scaler: torch.amp.GradScaler
    ) -> torch.Tensor:
        loss = loss_of(*self.towers(images, tokens))
        with self._once_a_forward():
            torch.autograd.backward(scaler.scale(loss))
        return loss.detach()

    def _in_parts(
        self, images: torch.Tensor, tokens: torch.Tensor, loss_of: LossOf, scaler: torch.amp.GradScaler
    ) -> torch.Tensor:
        """The same for a batch whose activations don't fit into memory at once.

        All features are computed first, without gradients. The loss on them gives the gradient of each feature, and
        of the scale; then part after part is computed again and passes its features' gradients on to the weights.

        Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
        """
        count = self.settings.accumulate
        parts = list(zip(images.chunk(count), tokens.chunk(count), strict=True))
        states, cached = [], []
        with torch.no_grad(), kept_statistics(self.model):
            for part in parts:
                states.append(random_states(self.device))
                cached.append(self.towers(*part))
        image_features, text_features = (torch.cat(found).requires_grad_() for found in zip(*cached, strict=True))
        loss = loss_of(image_features, text_features)
        torch.autograd.backward(scaler.scale(loss))
        gradients = list(zip(_gradients(image_features, count), _gradients(text_features, count), strict=True))
        for number, (part, state, gradient) in enumerate(zip(parts, states, gradients, strict=True), 1):
            restore_random_states(self.device, state)
            with self._exchange(number == len(parts)):
                features = zip(self.towers(*part), gradient, strict=True)
                learning = [pair for pair in features if pair[0].requires_grad]  # not those of a locked tower
                with self._once_a_forward():
                    torch.autograd.backward([pair[0] for pair in learning], [pair[1] for pair in learning])
        return loss.detach()

    def _loss(self, image_features: torch.Tensor, text_features: torch.Tensor, positives: Positives) -> torch.Tensor:
        """This process's part of the loss of a batch with these features, `(n, embed_dim) float32`, L2-normalised."""
        scale = self.model.logit_scale.exp()
        if self.sigmoid:
            return sigmoid_loss(image_features, text_features, scale, self.model.logit_bias, positives)
        return contrastive_loss(image_features, text_features, scale, positives)

    def _helper_loss(
        self, image_features: torch.Tensor, text_features: torch.Tensor, rows: Sequence[Example]
    ) -> torch.Tensor | float:
        """The sum over the own pictures."""
        if self.proxies is None:
            return 0.0
        scale = self.model.logit_scale.exp()
        total: torch.Tensor = self.proxies(image_features, text_features, scale, [row.concept for row in rows])
        return self.settings.proxy_weight * total

    def _accepted(self, batch: Prepared, keys: Sequence[str]) -> Sequence[frozenset[str]]:
        """For each picture, the captions that aren't its negatives."""
        if self.settings.positives == "listed":
            return [frozenset(map(caption_key, row.captions)) for row in batch.rows]
        if self.settings.positives == "own":
            return [frozenset()] * len(keys)
        return [frozenset([key]) for key in keys]

    def _wrapped(self, towers: Towers) -> nn.Module:
        """The towers, compiled and joined with those of the other processes, as the settings and torchrun have it."""
        if self.settings.compile:
            towers.compile()
        # the scale and the bias aren't the towers': their gradients come from the loss, so they are averaged apart
        apart = [weight for weight in self._beside_the_towers() if weight.requires_grad]
        for weight in apart:
            weight.requires_grad_(False)
        joined = self.processes.wrap(towers, self.device)
        for weight in apart:
            weight.requires_grad_(True)
        return joined

    def _beside_the_towers(self) -> list[nn.Parameter]:
        weights = [self.model.logit_scale, getattr(self.model, "logit_bias", None)]
        proxies = [] if self.proxies is None else list(self.proxies.parameters())
        return [weight for weight in weights if weight is not None] + proxies

    def _gradients_beside_the_towers(self) -> list[torch.Tensor]:
        return [weight.grad for weight in self._beside_the_towers() if weight.grad is not None]

    def _once_a_forward(self) -> contextlib.AbstractContextManager[None]:
        """For the backward pass, in which grad_checkpointing computes BatchNorm layers a second time."""
        return kept_statistics(self.model) if self.settings.grad_checkpointing else contextlib.nullcontext()

    @contextlib.contextmanager
    def _exchange(self, wanted: bool) -> Iterator[None]:
        """Whether the gradients of a backward pass go to the other processes, along with those that wait already."""
        if wanted or not isinstance(self.towers, DistributedDataParallel):
            yield
        else:
            with self.towers.no_sync():
                yield

    def _warn_of_batch_norm(self) -> None:
        if not batch_norms(self.model):
            return
        if self.settings.accumulate > 1:
            logger.warning(
                "accumulate: BatchNorm sees one part of a batch at a time, so the gradients aren't the batch's"
            )
        if self.processes.count > 1 and self.processes.is_first and self.device.type != "cuda":
            logger.warning("BatchNorm sees one process's part of a batch, so the gradients aren't the batch's")


def _concepts(corpus: Corpus) -> list[str]:
    return list(dict.fromkeys(row.concept for row in require_table(corpus, "proxy_weight").rows))


def _filled(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """As many entries as asked for: the same again, or zeros where there are none."""
    if len(tensor) == count:
        return tensor
    source = tensor if len(tensor) else tensor.new_zeros(1, *tensor.shape[1:])
    return source[torch.arange(count) % len(source)]


def _gradients(features: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    assert features.grad is not None
    return features.grad.chunk(count)

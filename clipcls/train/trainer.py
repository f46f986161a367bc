"""A model in training: its step, its learning rate, its state, and how it is saved."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn
from torch.nn import functional

from clipcls.errors import StoppedError, UsageError, first_line
from clipcls.inputs.labelled.captions import caption_key
from clipcls.models.device import choose_device, choose_precision
from clipcls.models.padding import without_padding
from clipcls.train.data.batches import Batch, Feed
from clipcls.train.data.corpus import Corpus
from clipcls.train.hooks import Hooks
from clipcls.train.loss import contrastive_loss, find_positives, sigmoid_loss
from clipcls.train.model_folder import DualEncoder, write_model
from clipcls.train.optimizer import build_optimizer, learning_rate, moving_average
from clipcls.train.processes import Processes, own_device, random_states, restore_random_states
from clipcls.train.settings import TrainSettings
from clipcls.train.towers import Encoding, EncodingInParts, Towers, batch_norms, lock_towers

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Where a run stands after a step.

    Attributes:
        step: counted from 1.
        steps: of the whole run.
        loss: of this step, an extra loss included.
        learning_rate: of this step.
        scale: what the cosines are multiplied with.
        images_per_second: since the start, saving and validating left out.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    scale: float
    images_per_second: float
    seconds_left: float


class Trainer:
    """A model in training, with its data and its optimizer.

    Args:
        settings: of the run.
        start: the model before the first step.
        corpus: what it is trained on.
        processes: that have a share of each batch.
        hooks: of a recipe.

    Attributes:
        done: steps of the run that are behind it.
    """

    def __init__(
        self,
        settings: TrainSettings,
        start: DualEncoder,
        corpus: Corpus,
        processes: Processes | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.settings, self.corpus = settings, corpus
        self.processes = Processes() if processes is None else processes
        self.hooks = Hooks() if hooks is None else hooks
        self.done = 0
        self.device = choose_device(own_device(settings.device))
        precision = DTYPES[choose_precision(settings.precision, self.device)]
        # the convolutions of a processor are faster with the channels last
        model = start.model.to(self.device, memory_format=torch.channels_last).train()
        if self.processes.count > 1 and self.device.type == "cuda":
            model = synchronise_batch_norm(model)
        self.model = model
        lock_towers(model, settings)
        if settings.grad_checkpointing:
            _checkpoint_activations(model)
        biased = getattr(model, "logit_bias", None) is not None
        self.sigmoid = biased if settings.loss == "auto" else settings.loss == "sigmoid"
        self.encoder = replace(start, model=model, templates=settings.label_templates or start.templates)
        self.feed = Feed(settings, self.encoder, corpus, self.processes, self.hooks.augmentation_strength)
        self.extra_loss = self.hooks.extra_loss(self)
        self.modules = [model] if self.extra_loss is None else [model, self.extra_loss.to(self.device)]
        self._warn_of_batch_norm()
        towers = Towers(model, precision)
        self.text_tower = towers.text.owner
        if settings.compile:
            towers.compile()
        self.towers = self.processes.wrap(towers, self.device, self._beside_the_towers())
        self.average = moving_average(model, settings.ema) if settings.ema else None
        self.parameters = [weight for module in self.modules for weight in module.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(self.modules, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        # until here all processes drew the same weights; from here each draws its own dropout
        torch.manual_seed(settings.seed + self.processes.rank)

    def steps(self) -> Iterator[StepFigures]:
        """Train from where the run stands; yields after every step.

        Raises:
            StoppedError: the loss or a gradient isn't finite any more.
        """
        if not self.done:
            self.hooks.initialise(self)
            self.processes.copy_from_first(self.modules)
        clock, first, images, steps = time.monotonic(), self.done, 0, self.feed.steps
        for batch in self.feed.batches(self.done):
            rate = learning_rate(batch.step, steps, self.settings)
            loss = self.step(batch, rate)
            if loss is None:
                continue
            self.done = batch.step + 1
            images += len(batch.rows) * self.processes.count
            seconds = time.monotonic() - clock
            yield StepFigures(
                step=self.done,
                steps=steps,
                loss=loss,
                learning_rate=rate,
                scale=float(self.model.logit_scale.detach().exp()),
                images_per_second=images / seconds,
                seconds_left=(steps - self.done) * seconds / (self.done - first),
            )
            clock = time.monotonic() - seconds  # what is done between two steps, validations say, isn't training
        self.done = steps  # batches without two pictures that can be decoded have no step

    def step(self, batch: Batch, rate: float) -> float | None:
        """Make one update of the weights.

        Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, figure 3.

        Args:
            batch: this process's share.
            rate: the learning rate.

        Returns:
            The loss of the whole batch; None, without an update, for one that has fewer than two pictures.

        Raises:
            StoppedError: the loss or a gradient isn't finite.
        """
        size, processes, model = len(batch.rows), self.processes, self.model
        # which captions are right for which pictures, among those of all processes
        keys = [caption_key(caption) for caption in batch.captions]
        shares = processes.gather_objects((keys, self._accepted(batch, keys)))
        counts = [len(captions) for captions, _ in shares]
        if sum(counts) < 2:
            return None
        first = sum(counts[: processes.rank])
        captions, accepted = (list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True))
        positives = find_positives(captions, accepted, slice(first, first + size)).to(self.device)

        # encode: (n_own, embed_dim)
        self.optimizer.zero_grad(set_to_none=True)
        encoding = self._encode(batch, max(counts))
        # normalise
        own_images = functional.normalize(encoding.image_features[:size], dim=-1)
        own_texts = functional.normalize(encoding.text_features[:size], dim=-1)
        # gather: (n, embed_dim)
        image_features, text_features = processes.gather(own_images, counts), processes.gather(own_texts, counts)

        # similarities: (n_own, n)
        scale = model.logit_scale.exp()
        logits_per_image = scale * image_features[positives.own] @ text_features.T
        # loss: this process's part of it
        if self.sigmoid:
            loss = sigmoid_loss(logits_per_image + model.logit_bias, positives)
        else:
            alone = processes.count == 1
            logits_per_text = logits_per_image.T if alone else scale * text_features[positives.own] @ image_features.T
            loss = contrastive_loss(logits_per_image, logits_per_text, positives)
        if self.extra_loss is not None:
            loss = loss + self.extra_loss(own_images, own_texts, scale, batch.rows) / sum(counts)

        # backward: the gradients are averaged over the processes, while their parts of the loss add up
        loss = loss * processes.count
        encoding.backward(self.scaler.scale(loss))
        loss = loss.detach()
        processes.average([loss, *(weight.grad for weight in self._beside_the_towers() if weight.grad is not None)])
        self._require_finite(float(loss), "loss", batch.step)

        # update
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip or math.inf)
        if not self.scaler.is_enabled():  # which passes over such steps itself
            self._require_finite(float(norm), "norm of the gradients", batch.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(self.settings.max_scale))
        if self.average is not None:
            self.average.update_parameters(model)
        return float(loss)

    def _accepted(self, batch: Batch, keys: Sequence[str]) -> Sequence[frozenset[str]]:
        """Return for each picture the captions that aren't its negatives."""
        if self.settings.positives == "listed":
            return [frozenset(map(caption_key, row.captions)) for row in batch.rows]
        if self.settings.positives == "own":
            return [frozenset()] * len(keys)
        return [frozenset([key]) for key in keys]

    def _encode(self, batch: Batch, count: int) -> Encoding:
        """Put a batch through the towers, filled up to as many pictures as there are in all other processes.

        So each has as many parts; what fills a share up counts for nothing in the loss.
        """
        inputs = (batch.images, without_padding(self.text_tower, batch.tokens))
        images, tokens = (_filled(tensor, count).to(self.device, non_blocking=True) for tensor in inputs)
        parts = self.settings.accumulate
        return (
            EncodingInParts(self.towers, images, tokens, parts) if parts > 1 else Encoding(self.towers, images, tokens)
        )

    def _beside_the_towers(self) -> list[nn.Parameter]:
        """Return what is trained beside the towers: its gradients come from the loss, so they are averaged apart."""
        weights = [self.model.logit_scale, getattr(self.model, "logit_bias", None)]
        weights += [] if self.extra_loss is None else self.extra_loss.parameters()
        return [weight for weight in weights if weight is not None and weight.requires_grad]

    def _require_finite(self, value: float, name: str, step: int) -> None:
        """Stop before a figure that isn't a number gets into the weights; it is the same in all processes."""
        if not math.isfinite(value):
            error = StoppedError(f"the {name} is {value} at step {step + 1}; a lower learning_rate may help")
            error.told = not self.processes.is_first
            raise error

    def _warn_of_batch_norm(self) -> None:
        if not batch_norms(self.model):
            return
        if self.settings.accumulate > 1:
            logger.warning(
                "accumulate: BatchNorm sees one part of a batch at a time, so the gradients aren't the batch's"
            )
        if self.processes.count > 1 and self.processes.is_first and self.device.type != "cuda":
            logger.warning("BatchNorm sees one process's part of a batch, so the gradients aren't the batch's")

    def state(self) -> dict[str, Any]:
        """Return all that decides how the training goes on, in tensors and plain values; all processes ask at once."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "extra_loss": {} if self.extra_loss is None else self.extra_loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.processes.gather_objects(random_states(self.device)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            RuntimeError, ValueError, KeyError: it is another model's.
            UsageError: it is of a run with another recipe.
        """
        if bool(state.get("extra_loss")) != (self.extra_loss is not None):
            raise UsageError(
                "the run was begun with another extra loss; resume it with the recipe that it was begun with"
            )
        self.model.load_state_dict(state["model"])
        if self.extra_loss is not None:
            self.extra_loss.load_state_dict(state["extra_loss"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        states = state["random"]
        if len(states) == self.processes.count:
            restore_random_states(self.device, states[self.processes.rank])
        else:  # dropout begins anew, shards are dealt out anew
            logger.warning(
                "the run had %d processes and has %d: losses will be near to what they would have been, not the same",
                len(states),
                self.processes.count,
            )
        self.done = state["done"]

    def save(self, folder: Path) -> None:
        """Write the model folder: of the averaged weights, where there is an average.

        Raises:
            StoppedError: the folder can't be written, or the weights aren't finite any more.
        """
        model = self.model if self.average is None else self.average.module
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise StoppedError(f"the weights aren't finite after step {self.done}; a lower learning_rate may help")
        self.hooks.before_save(self, model)
        words = None if self.encoder.words is None or self.corpus.words is None else self._words
        write_model(folder, replace(self.encoder, model=model, words=words), half=self.settings.weights == "fp16")

    @cached_property
    def _words(self) -> frozenset[str]:
        """The words that the model has seen, here and before."""
        return (self.encoder.words or frozenset()) | (self.corpus.words or frozenset())


def synchronise_batch_norm(model: Any) -> Any:
    """Return a model whose BatchNorm layers look at the pictures of all processes.

    By timm's conversion: torch's own drops the activations that timm puts into such layers, without a word.
    """
    return convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


def _checkpoint_activations(model: Any) -> None:
    """Have the towers compute their activations again in the backward pass instead of keeping them."""
    if isinstance(model.visual, ModifiedResNet):  # its switch does nothing
        logger.warning("grad_checkpointing: open_clip's ResNets don't offer it, so it is the text tower's alone")
    try:
        model.set_grad_checkpointing()
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError) as exc:
        raise UsageError(f"grad_checkpointing: a tower of this model doesn't offer it ({first_line(exc)})") from exc


def _filled(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat entries, or zeros where there are none, up to as many as asked for."""
    if len(tensor) == count:
        return tensor
    source = tensor if len(tensor) else tensor.new_zeros(1, *tensor.shape[1:])
    return source[torch.arange(count) % len(source)]

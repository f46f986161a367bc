"""A model in training: updates, learning rate, what is saved."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn

from clipcls.errors import StoppedError, UsageError, first_line
from clipcls.models.device import choose_device, choose_precision
from clipcls.train.data.batches import Feed, Prepared
from clipcls.train.data.corpus import Corpus
from clipcls.train.data.read import require_table
from clipcls.train.model_folder import DualEncoder, write_model
from clipcls.train.objective import Objective
from clipcls.train.optimizer import build_optimizer, learning_rate, moving_average
from clipcls.train.processes import Processes, own_device, random_states, restore_random_states
from clipcls.train.settings import Settings
from clipcls.train.spread import spread_images, spread_texts
from clipcls.train.towers import lock_towers

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Rows that the towers' last layers are set from.
SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: counted from 1.
        steps: of the whole run.
        loss: of this step, helper loss included.
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
    """A model in training, with its data, its objective and its optimizer.

    Attributes:
        done: steps of the run that are behind it.
    """

    def __init__(
        self, settings: Settings, start: DualEncoder, corpus: Corpus, processes: Processes | None = None
    ) -> None:
        self.settings, self.corpus = settings, corpus
        self.processes = Processes() if processes is None else processes
        self.done = 0
        self.device = choose_device(own_device(settings.device))
        precision = DTYPES[choose_precision(settings.precision, self.device)]
        # the convolutions of a processor are faster with the channels last
        model = start.model.to(self.device, memory_format=torch.channels_last).train()
        if self.processes.count > 1 and self.device.type == "cuda":
            model = synchronised(model)
        self.model = model
        lock_towers(self.model, settings)
        if settings.grad_checkpointing:
            _checkpoint_activations(self.model)
        if settings.zero_unused_tokens:
            token_embedding(self.model)
            require_table(corpus, "zero_unused_tokens")
        self.encoder = replace(start, model=self.model)
        self.feed = Feed(settings, self.encoder, corpus, self.processes)
        self.objective = Objective(settings, self.encoder, corpus, precision, self.processes)
        self.average = moving_average(self.model, settings.ema) if settings.ema else None
        modules = self.objective.modules
        self.parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(modules, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        # until here all processes drew the same weights; from here each draws its own dropout
        torch.manual_seed(settings.seed + self.processes.rank)

    def spread(self) -> None:
        """Set the towers' last layers from a sample of the data, and the proxies from their captions."""
        images, tokens = self.feed.sample(SAMPLE)
        spread_images(self.model, images.to(self.device))
        spread_texts(self.model, tokens.to(self.device))
        proxies = self.objective.proxies
        if proxies is not None:
            proxies.start_from(self._encode_plain(proxies.concepts))
        self.processes.copy_from_first(self.objective.modules)

    @torch.no_grad()
    def _encode_plain(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.encoder.tokenizer(list(captions)).to(self.device)
        return torch.cat([self.model.encode_text(part).float() for part in tokens.split(256)])

    def steps(self) -> Iterator[Progress]:
        """Train from where the run stands; yields after every step.

        Raises:
            StoppedError: the loss or a gradient isn't finite any more.
        """
        if self.settings.spread_init and not self.done:
            self.spread()
        clock, first, images, steps = time.monotonic(), self.done, 0, self.feed.steps
        for batch in self.feed.batches(self.done):
            step = batch.step
            rate = learning_rate(step, steps, self.settings)
            loss = self._step(batch, rate)
            if loss is None:
                continue
            self.done = step + 1
            images += len(batch.rows) * self.processes.count
            seconds = time.monotonic() - clock
            yield Progress(
                step=step + 1,
                steps=steps,
                loss=loss,
                learning_rate=rate,
                scale=float(self.model.logit_scale.detach().exp()),
                images_per_second=images / seconds,
                seconds_left=(steps - self.done) * seconds / (self.done - first),
            )
            clock = time.monotonic() - seconds  # what is done between two steps, validations say, isn't training
        self.done = steps  # batches without two pictures that can be decoded have no step

    def state(self) -> dict[str, Any]:
        """All that decides how the training goes on, as tensors and plain values; all processes have to ask at once."""
        proxies = self.objective.proxies
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "proxies": {} if proxies is None else proxies.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.processes.gather_objects(random_states(self.device)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            RuntimeError, ValueError, KeyError: it is another model's.
        """
        self.model.load_state_dict(state["model"])
        if self.objective.proxies is not None:
            self.objective.proxies.load_state_dict(state["proxies"])
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

    def _step(self, batch: Prepared, rate: float) -> float | None:
        """One update; returns the loss, None where there was nothing to learn from."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.backward(batch, self.scaler)
        if loss is None:
            return None
        self._require_finite(loss, "loss", batch.step)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip or math.inf)
        if not self.scaler.is_enabled():  # which passes over such steps itself
            self._require_finite(float(norm), "norm of the gradients", batch.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.settings.max_scale))
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def _require_finite(self, value: float, name: str, step: int) -> None:
        """Stop before a figure that isn't a number gets into the weights; it is the same in all processes."""
        if not math.isfinite(value):
            error = StoppedError(f"the {name} is {value} at step {step + 1}; a lower learning_rate may help")
            error.told = not self.processes.is_first
            raise error

    def save(self, folder: Path) -> None:
        """Write the model folder: of the averaged weights, where there is an average.

        Raises:
            StoppedError: the folder can't be written, or the weights aren't finite any more.
        """
        model = self.model if self.average is None else self.average.module
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise StoppedError(f"the weights aren't finite after step {self.done}; a lower learning_rate may help")
        if self.settings.zero_unused_tokens:
            self._zero_unused_tokens(model)
        words = None if self.encoder.words is None or self.corpus.words is None else self._words
        write_model(folder, replace(self.encoder, model=model, words=words), half=self.settings.weights == "fp16")

    @cached_property
    def _words(self) -> frozenset[str]:
        """The words that the model has seen, here and before."""
        return (self.encoder.words or frozenset()) | (self.corpus.words or frozenset())

    def _zero_unused_tokens(self, model: nn.Module) -> None:
        """Zero the embeddings that no caption uses; they were never trained, and zeros compress."""
        embedding = token_embedding(model)
        with torch.no_grad():
            embedding.weight[self._unused_tokens(embedding.num_embeddings)] = 0

    def _unused_tokens(self, count: int) -> list[int]:
        used: set[int] = set()
        texts = list(self.feed.phrasing.every(require_table(self.corpus, "zero_unused_tokens").captions))
        for start in range(0, len(texts), 4096):
            used.update(self.encoder.tokenizer(texts[start : start + 4096]).unique().tolist())
        return [token for token in range(count) if token not in used]


def synchronised(model: Any) -> Any:
    """A model whose BatchNorm layers look at the pictures of all processes.

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


def token_embedding(model: nn.Module) -> nn.Embedding:
    """The text tower's table of token embeddings, in either of open_clip's model classes.

    Raises:
        UsageError: the text tower keeps it elsewhere.
    """
    for owner in (model, getattr(model, "text", None)):
        found = getattr(owner, "token_embedding", None)
        if isinstance(found, nn.Embedding):
            return found
    raise UsageError("zero_unused_tokens: only for open_clip's own text towers")

"""A model in training: updates, learning rate, what is saved."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipcls.encoder.encoder import choose_device, choose_precision
from clipcls.errors import StoppedError, UsageError
from clipcls.train.data import Table
from clipcls.train.feed import Feed, Prepared
from clipcls.train.folder import DualEncoder, write_model
from clipcls.train.objective import Objective
from clipcls.train.optimizer import build_optimizer, learning_rate
from clipcls.train.randomness import random_states, restore_random_states
from clipcls.train.settings import Settings
from clipcls.train.spread import spread_images, spread_texts
from clipcls.train.towers import lock_towers

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
        images_per_second: since the start.
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

    def __init__(self, settings: Settings, start: DualEncoder, table: Table) -> None:
        self.settings, self.table = settings, table
        self.done = 0
        self.device = choose_device(settings.device)
        precision = DTYPES[choose_precision(settings.precision, self.device)]
        # the convolutions of a processor are faster with the channels last
        self.model = start.model.to(self.device, memory_format=torch.channels_last).train()
        lock_towers(self.model, settings)
        self.encoder = replace(start, model=self.model)
        self.feed = Feed(settings, self.encoder, table)
        self.objective = Objective(settings, self.encoder, table, precision)
        modules = self.objective.modules
        self.parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(modules, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def spread(self) -> None:
        """Set the towers' last layers from a sample of the data, and the proxies from their captions."""
        images, tokens = self.feed.sample(SAMPLE)
        spread_images(self.model, images.to(self.device))
        spread_texts(self.model, tokens.to(self.device))
        proxies = self.objective.proxies
        if proxies is not None:
            proxies.start_from(self._encode_plain(proxies.concepts))

    @torch.no_grad()
    def _encode_plain(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.encoder.tokenizer(list(captions)).to(self.device)
        return torch.cat([self.model.encode_text(part).float() for part in tokens.split(256)])

    def steps(self) -> Iterator[Progress]:
        """Train from where the run stands; yields after every step."""
        if self.settings.spread_init and not self.done:
            self.spread()
        began, images, steps = time.monotonic(), 0, self.feed.steps
        for batch in self.feed.batches(self.done):
            step = batch.step
            rate = learning_rate(step, steps, self.settings)
            loss = self._step(batch, rate)
            if not math.isfinite(loss):
                raise StoppedError(f"the loss is {loss} at step {step + 1}; a lower learning_rate may help")
            self.done = step + 1
            images += len(batch.rows)
            speed = images / (time.monotonic() - began)
            yield Progress(
                step=step + 1,
                steps=steps,
                loss=loss,
                learning_rate=rate,
                scale=float(self.model.logit_scale.detach().exp()),
                images_per_second=speed,
                seconds_left=(steps - step - 1) * len(batch.rows) / speed,
            )
        self.done = steps  # batches without two pictures that can be decoded have no step

    def state(self) -> dict[str, Any]:
        """All that decides how the training goes on, as tensors and plain values."""
        proxies = self.objective.proxies
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "proxies": {} if proxies is None else proxies.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(self.device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            RuntimeError, ValueError, KeyError: it is another model's.
        """
        self.model.load_state_dict(state["model"])
        if self.objective.proxies is not None:
            self.objective.proxies.load_state_dict(state["proxies"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        restore_random_states(self.device, state["random"])
        self.done = state["done"]

    def _step(self, batch: Prepared, rate: float) -> float:
        """One update; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.backward(batch, self.scaler)
        self.scaler.unscale_(self.optimizer)
        if self.settings.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.settings.max_scale))
        return loss

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        captions = list(dict.fromkeys(caption for row in self.table.rows for caption in row.captions))
        if self.settings.zero_unused_tokens:
            self._zero_unused_tokens(captions)
        write_model(folder, self.encoder, captions, half=self.settings.weights == "fp16")

    def _zero_unused_tokens(self, captions: list[str]) -> None:
        """Zero the embeddings that no caption uses; they were never trained, and zeros compress."""
        used: set[int] = set()
        texts = list(self.feed.phrasing.every(captions))
        for start in range(0, len(texts), 4096):
            used.update(self.encoder.tokenizer(texts[start : start + 4096]).unique().tolist())
        embedding = token_embedding(self.model)
        unused = [token for token in range(embedding.num_embeddings) if token not in used]
        with torch.no_grad():
            embedding.weight[unused] = 0


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

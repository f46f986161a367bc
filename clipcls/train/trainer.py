"""A model in training: batches prepared ahead, losses, updates."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from clipcls.encoder.encoder import choose_device, choose_precision
from clipcls.errors import StoppedError, UsageError
from clipcls.train.augment import Augmentation, training_seed
from clipcls.train.data import Batch, Canvas, Phrasing, Pictures, Row, Table
from clipcls.train.folder import DualEncoder, write_model
from clipcls.train.loss import ProxyLoss, contrastive_loss, positive_pairs
from clipcls.train.optimizer import build_optimizer, learning_rate
from clipcls.train.settings import Settings
from clipcls.train.spread import spread_images, spread_texts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Pictures are kept a little larger than the model's input, for the augmentation to zoom into.
STORED_SHARE = 1.25
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as the towers take it.

    Attributes:
        step: counted from 0.
        rows: of its pictures.
        captions: the one that was drawn for each, without its template.
        images: `(n, 3, side, side) float32`.
        tokens: `(n, context_length) int64`.
    """

    step: int
    rows: tuple[Row, ...]
    captions: tuple[str, ...]
    images: torch.Tensor
    tokens: torch.Tensor


def ahead(batches: Iterator[Prepared]) -> Iterator[Prepared]:
    """Prepare the next batch on a thread while one is trained on."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


class Trainer:
    """A model in training, with its data, its optimizer and its random states."""

    def __init__(self, settings: Settings, start: DualEncoder, table: Table) -> None:
        self.settings, self.config, self.table = settings, start.config, table
        self.device = choose_device(settings.device)
        self.precision = DTYPES[choose_precision(settings.precision, self.device)]
        # the convolutions of a processor are faster with the channels last
        self.model = start.model.to(self.device, memory_format=torch.channels_last).train()
        self.encoder = replace(start, model=self.model)
        self.tokenizer = start.tokenizer
        self.proxy_loss = self._build_proxies()
        modules: list[nn.Module] = [self.model] if self.proxy_loss is None else [self.model, self.proxy_loss]
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.optimizer = build_optimizer(modules, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.phrasing = Phrasing(settings.templates)
        side, preprocess = self.config.side, self.config.preprocess
        self.augmentation = Augmentation(settings.augment, side)
        stored = side if settings.augment == "none" else round(side * STORED_SHARE)
        canvas = Canvas(stored, preprocess["resize_mode"], preprocess["fill_color"])
        self.pictures = Pictures(table.rows, canvas, settings.cache_mb)
        self.accepted = {row.captions: frozenset(row.captions) for row in table.rows}
        self.rng = random.Random(settings.seed)
        self.batch_count = self._count_batches()
        self._normal = [torch.tensor(values).view(3, 1, 1) for values in (preprocess["mean"], preprocess["std"])]

    def _build_proxies(self) -> ProxyLoss | None:
        if not self.settings.proxy_weight:
            return None
        concepts = list(dict.fromkeys(row.concept for row in self.table.rows))
        return ProxyLoss(concepts, self.config.model["embed_dim"]).to(self.device)

    def _count_batches(self) -> int:
        """Steps of the whole run; a table smaller than a batch is one batch."""
        an_epoch = max(1, len(self.table.rows) // self.settings.batch_size)
        return max(1, round(an_epoch * self.settings.epochs))

    def _order(self) -> Iterator[list[int]]:
        """The rows of every batch: shuffled anew each epoch, the incomplete last batch left out."""
        rng = random.Random(f"order {self.settings.seed}")
        indices = list(range(len(self.table.rows)))
        size = min(self.settings.batch_size, len(indices))
        left = self.batch_count
        while left:
            rng.shuffle(indices)
            for start in range(0, len(indices) - size + 1, size)[:left]:
                yield indices[start : start + size]
                left -= 1

    def _prepared(self) -> Iterator[Prepared]:
        """Every batch, augmented and tokenised."""
        for step, batch in enumerate(self.pictures.batches(self._order(), self.settings.workers)):
            drawn = [self.phrasing.draw(row, self.rng) for row in batch.rows]
            captions = tuple(caption for caption, _ in drawn)
            if len(batch.rows) > 1:
                tokens = self.tokenizer([text for _, text in drawn])
                yield Prepared(step, batch.rows, captions, self._images(batch, step), tokens)

    def spread(self) -> None:
        """Set the towers' last layers from a sample of the data, and the proxies from their captions."""
        rng = random.Random(f"sample {self.settings.seed}")
        rows = rng.sample(self.table.rows, min(SAMPLE, len(self.table.rows)))
        pictures = Pictures(rows, self.pictures.canvas, cache_mb=0)
        order = [range(start, min(start + 256, len(rows))) for start in range(0, len(rows), 256)]
        batches = pictures.batches(order, self.settings.workers)
        images = torch.cat([self._images(batch, 0) for batch in batches])
        spread_images(self.model, images.to(self.device))
        texts = [self.phrasing.draw(row, rng)[1] for row in rng.choices(self.table.rows, k=SAMPLE)]
        spread_texts(self.model, self.tokenizer(texts).to(self.device))
        if self.proxy_loss is not None:
            self.proxy_loss.start_from(self._encode_plain(self.proxy_loss.concepts))

    @torch.no_grad()
    def _encode_plain(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(captions)).to(self.device)
        return torch.cat([self.model.encode_text(part).float() for part in tokens.split(256)])

    def steps(self) -> Iterator[Progress]:
        """Train; yields after every step."""
        if self.settings.spread_init:
            self.spread()
        began, images = time.monotonic(), 0
        for batch in ahead(self._prepared()):
            step = batch.step
            rate = learning_rate(step, self.batch_count, self.settings)
            loss = self._step(batch, rate)
            if not math.isfinite(loss):
                raise StoppedError(f"the loss is {loss} at step {step + 1}; a lower learning_rate may help")
            images += len(batch.rows)
            speed = images / (time.monotonic() - began)
            yield Progress(
                step=step + 1,
                steps=self.batch_count,
                loss=loss,
                learning_rate=rate,
                scale=float(self.model.logit_scale.detach().exp()),
                images_per_second=speed,
                seconds_left=(self.batch_count - step - 1) * len(batch.rows) / speed,
            )

    def _step(self, batch: Prepared, rate: float) -> float:
        """One update; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        if self.settings.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(self.settings.max_scale))
        return float(loss.detach())

    def _loss(self, batch: Prepared) -> torch.Tensor:
        images = batch.images.to(self.device)
        tokens = batch.tokens.to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            image_features = self.model.encode_image(images)
            text_features = self.model.encode_text(tokens)
        image_features = functional.normalize(image_features.float(), dim=-1)
        text_features = functional.normalize(text_features.float(), dim=-1)
        scale = self.model.logit_scale.exp()
        pairs = positive_pairs(batch.captions, self._accepted(batch)).to(self.device)
        loss = contrastive_loss(image_features, text_features, scale, pairs)
        if self.proxy_loss is not None:
            concepts = [row.concept for row in batch.rows]
            helper = self.proxy_loss(image_features, text_features, scale, concepts)
            loss = loss + self.settings.proxy_weight * helper
        return loss

    def _accepted(self, batch: Prepared) -> list[frozenset[str]]:
        """For each picture, the captions that aren't its negatives."""
        if self.settings.positives == "listed":
            return [self.accepted[row.captions] for row in batch.rows]
        return [frozenset([caption]) for caption in batch.captions]

    def _images(self, batch: Batch, step: int) -> torch.Tensor:
        """The batch as the model's input, `(n, 3, side, side) float32`."""
        curriculum = self.settings.curriculum * self.batch_count
        strength = min(1.0, step / curriculum) if curriculum else 1.0
        pictures = self.augmentation(batch.pictures, strength, training_seed(step, self.settings.seed))
        mean, std = self._normal
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        captions = list(dict.fromkeys(caption for row in self.table.rows for caption in row.captions))
        if self.settings.zero_unused_tokens:
            self._zero_unused_tokens(captions)
        write_model(folder, self.encoder, captions, half=self.settings.weights == "fp16")

    def _zero_unused_tokens(self, captions: list[str]) -> None:
        """Zero the embeddings that no caption uses; they were never trained, and zeros compress."""
        used: set[int] = set()
        texts = list(self.phrasing.every(captions))
        for start in range(0, len(texts), 4096):
            used.update(self.tokenizer(texts[start : start + 4096]).unique().tolist())
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

"""The batches of a run: their order, their captions, their augmented pictures."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from clipcls.errors import StoppedError
from clipcls.train.augment import Augmentation, training_seed
from clipcls.train.data import Batch, Canvas, Phrasing, Pictures, Row, Table
from clipcls.train.folder import DualEncoder
from clipcls.train.settings import Settings

# Pictures are kept a little larger than the model's input, for the augmentation to zoom into.
STORED_SHARE = 1.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as the towers take it.

    Attributes:
        step: counted from 0.
        rows: of the pictures.
        captions: the one that was drawn for each, without its template.
        images: `(n, 3, side, side) float32`.
        tokens: `(n, context_length) int64`.
    """

    step: int
    rows: tuple[Row, ...]
    captions: tuple[str, ...]
    images: torch.Tensor
    tokens: torch.Tensor


class Feed:
    """Gives a run's batches; what is in one depends on the settings and its step alone.

    Attributes:
        steps: of the whole run; a table smaller than a batch is one batch.
        phrasing: what puts templates around captions.
        pictures: decoded, with the problems met.
    """

    def __init__(self, settings: Settings, encoder: DualEncoder, table: Table) -> None:
        self.settings, self.table, self.tokenizer = settings, table, encoder.tokenizer
        side, preprocess = encoder.config.side, encoder.config.preprocess
        self.phrasing = Phrasing(settings.templates)
        self._augmentation = Augmentation(settings.augment, side)
        stored = side if settings.augment == "none" else round(side * STORED_SHARE)
        canvas = Canvas(stored, preprocess["resize_mode"], preprocess["fill_color"])
        self.pictures = Pictures(table.rows, canvas, settings.cache_mb)
        self._normal = [torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std")]
        an_epoch = max(1, len(table.rows) // settings.batch_size)
        self.steps = max(1, round(an_epoch * settings.epochs))

    def batches(self, first: int = 0) -> Iterator[Prepared]:
        """The batches from step `first` on, each prepared on a thread while the one before is trained on."""
        batches = self._prepared(first)
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch

    def _prepared(self, first: int) -> Iterator[Prepared]:
        """Every batch, augmented and tokenised; one without two pictures that can be decoded is left out."""
        order = (rows for step, rows in enumerate(self._order()) if step >= first)
        for step, batch in enumerate(self.pictures.batches(order, self.settings.workers), first):
            self._check_pictures()
            rng = random.Random(f"captions {self.settings.seed} {step}")
            drawn = [self.phrasing.draw(row, rng) for row in batch.rows]
            captions = tuple(caption for caption, _ in drawn)
            if len(batch.rows) > 1:
                tokens = self.tokenizer([text for _, text in drawn])
                yield Prepared(step, batch.rows, captions, self._images(batch, step), tokens)

    def _check_pictures(self) -> None:
        """With `strict_data`, stop at a picture that can't be decoded."""
        if self.settings.strict_data and self.pictures.problems:
            raise StoppedError(f"strict_data: {self.pictures.problems[0]}")

    def _order(self) -> Iterator[list[int]]:
        """The rows of every batch: shuffled anew each epoch, the incomplete last batch left out."""
        rng = random.Random(f"order {self.settings.seed}")
        indices = list(range(len(self.table.rows)))
        size = min(self.settings.batch_size, len(indices))
        left = self.steps
        while left:
            rng.shuffle(indices)
            for start in range(0, len(indices) - size + 1, size)[:left]:
                yield indices[start : start + size]
                left -= 1

    def _images(self, batch: Batch, step: int) -> torch.Tensor:
        """The batch as the model's input, `(n, 3, side, side) float32`."""
        curriculum = self.settings.curriculum * self.steps
        strength = min(1.0, step / curriculum) if curriculum else 1.0
        pictures = self._augmentation(batch.pictures, strength, training_seed(step, self.settings.seed))
        mean, std = self._normal
        # the convolutions of a processor are faster with the channels last
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of about `count` rows, as the first step would see them.

        Returns:
            `(n, 3, side, side) float32` and `(count, context_length) int64`.
        """
        rng = random.Random(f"sample {self.settings.seed}")
        rows = rng.sample(self.table.rows, min(count, len(self.table.rows)))
        pictures = Pictures(rows, self.pictures.canvas, cache_mb=0)
        order = [range(start, min(start + 256, len(rows))) for start in range(0, len(rows), 256)]
        batches = pictures.batches(order, self.settings.workers)
        images = torch.cat([self._images(batch, 0) for batch in batches])
        texts = [self.phrasing.draw(row, rng)[1] for row in rng.choices(self.table.rows, k=count)]
        return images, self.tokenizer(texts)

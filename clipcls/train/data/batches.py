"""The batches of a run: their order, their captions, their augmented pictures."""

import logging
import random
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from clipcls.errors import StoppedError
from clipcls.inputs.labelled.examples import Example
from clipcls.models.tokenizer import truncated
from clipcls.records import Preprocessing
from clipcls.train.data.augment import Augmentation, training_seed
from clipcls.train.data.captions import Phrasing
from clipcls.train.data.corpus import Corpus, Share
from clipcls.train.data.pictures import Batch, Pictures, pool_of
from clipcls.train.model_folder import DualEncoder
from clipcls.train.settings import Settings

logger = logging.getLogger(__name__)

# Pictures are kept a little larger than the model's input, for the augmentation to zoom into.
STORED_SHARE = 1.25


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as the towers take it, or a process's share of one; it may be empty if no picture could be decoded.

    Attributes:
        step: counted from 0.
        rows: of the pictures.
        captions: the one that was drawn for each, without its template.
        images: `(n, 3, side, side) float32`.
        tokens: `(n, context_length) int64`.
    """

    step: int
    rows: tuple[Example, ...]
    captions: tuple[str, ...]
    images: torch.Tensor
    tokens: torch.Tensor


class Feed:
    """Gives a run's batches; what is in one depends on the settings, its step and the share alone.

    Attributes:
        steps: of the whole run; a corpus smaller than a batch is one batch.
        phrasing: what puts templates around captions.
        pictures: decoded, with the problems met.
    """

    def __init__(self, settings: Settings, encoder: DualEncoder, corpus: Corpus, share: Share) -> None:
        self.settings, self.corpus, self.share, self.tokenizer = settings, corpus, share, encoder.tokenizer
        side, preprocess = encoder.config.side, encoder.config.preprocess
        self._side = side
        self.phrasing = Phrasing(settings.templates)
        self._augmentation = Augmentation(settings.augment, side, settings.flip)
        stored = side if settings.augment == "none" else round(side * STORED_SHARE)
        mean, std = preprocess["mean"], preprocess["std"]
        fitting = {name: preprocess[name] for name in ("interpolation", "resize_mode", "fill_color")}
        canvas = Preprocessing((stored, stored), mean, std, **fitting)
        self.pictures = Pictures(canvas, settings.cache_mb // share.count)
        self._normal = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
        self.steps = max(1, round(self.steps_an_epoch * settings.epochs))
        self._warned = False

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches in an epoch; at least one."""
        return max(1, self.corpus.count // self.settings.batch_size)

    def batches(self, first: int = 0) -> Iterator[Prepared]:
        """The batches from step `first` on, each prepared on a thread while the one before is trained on."""
        batches = self._prepared(first)
        with pool_of(1, "prepare") as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch

    def _prepared(self, first: int) -> Iterator[Prepared]:
        """Every batch, augmented and tokenised."""
        rows = self.corpus.batches(self.settings.batch_size, self.settings.seed, self.share, first)
        some = islice(rows, self.steps - first)
        for step, batch in enumerate(self.pictures.batches(some, self.settings.threads), first):
            self._check_data()
            rng = random.Random(f"captions {self.settings.seed} {self._number(step)}")
            drawn = [self.phrasing.draw(row, rng) for row in batch.rows]
            captions = tuple(caption for caption, _ in drawn)
            texts = [text for _, text in drawn]
            tokens = self.tokenizer(texts or [""])[: len(texts)]
            if step < self.steps_an_epoch:
                self._warn_of_cut_captions(texts)
            yield Prepared(step, batch.rows, captions, self._images(batch, step), tokens)

    def _warn_of_cut_captions(self, texts: Sequence[str]) -> None:
        """Say once that captions are longer than the context: what is cut off isn't learnt."""
        if not self._warned and any(cut := truncated(self.tokenizer, texts)):
            self._warned = True
            first = texts[cut.index(True)]
            logger.warning("captions over the context length are cut; the first: %s", textwrap.shorten(first, 100))

    def _number(self, step: int) -> int:
        """A number for each step of each process, to draw from."""
        return step * self.share.count + self.share.rank

    def _check_data(self) -> None:
        """With `strict_data`, stop at a row or a picture that can't be used."""
        if not self.settings.strict_data:
            return
        for problems in (self.corpus.problems, self.pictures.problems):
            if problems:
                raise StoppedError(f"strict_data: {problems[0]}")

    def _images(self, batch: Batch, step: int) -> torch.Tensor:
        """The batch as the model's input, `(n, 3, side, side) float32`."""
        if not batch.rows:
            return torch.empty(0, 3, self._side, self._side)
        curriculum = self.settings.curriculum * self.steps
        strength = min(1.0, step / curriculum) if curriculum else 1.0
        seed = training_seed(self._number(step), self.settings.seed)
        pictures = self._augmentation(batch.pictures, strength, seed)
        mean, std = self._normal
        # the convolutions of a processor are faster with the channels last
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of about `count` rows, as the first step would see them.

        Returns:
            `(n, 3, side, side) float32` and `(count, context_length) int64`.
        """
        rng = random.Random(f"sample {self.settings.seed}")
        rows = self.corpus.sample(count, rng)
        pictures = Pictures(self.pictures.canvas, cache_mb=0)
        groups = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        batches = pictures.batches(groups, self.settings.threads)
        images = torch.cat([self._images(batch, 0) for batch in batches])
        texts = [self.phrasing.draw(row, rng)[1] for row in rng.choices(rows, k=count)]
        return images, self.tokenizer(texts)

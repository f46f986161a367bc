"""Validation while training: how well the model that was just saved does on data that it doesn't learn from."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.errors import StoppedError, UsageError
from clipcls.evaluate.pictures import Pictures
from clipcls.evaluate.retrieval import RECALLS, blocks, ranks
from clipcls.inputs.labelled.captions import caption_key
from clipcls.inputs.labelled.examples import Example
from clipcls.inputs.stores import in_store
from clipcls.models.encoder import Encoder, load_encoder
from clipcls.predict.ranking import similarities
from clipcls.records import ImageRef, ModelSpec
from clipcls.train.data.captions import Phrasing
from clipcls.train.data.read import read_pairs
from clipcls.train.data.shards import are_shards
from clipcls.train.data.table import Table
from clipcls.train.settings import TrainSettings

# the indices of what is right, for each picture or each text
Right = Sequence[Sequence[int]]

ZERO_SHOT_ACCURACY = "zero_shot_accuracy"
RECALLS_AT_1 = ("image_to_text_recall@1", "text_to_image_recall@1")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pictures and texts, and which belong together.

    Attributes:
        setting: that names the data.
        texts: the prompts of each, whose embeddings are averaged.
        pictures: with the indices of their texts.
    """

    setting: str
    texts: tuple[tuple[str, ...], ...]
    pictures: Mapping[ImageRef, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Validated:
    """What a validation measured.

    Attributes:
        step: after which it was.
        figures: shares from 0 to 1, by name; see `Validation.measure`.
    """

    step: int
    figures: Mapping[str, float]

    @property
    def headline(self) -> float:
        """What the best model is chosen by: `zero_shot_accuracy`, or without it the mean of both recalls at 1."""
        if ZERO_SHOT_ACCURACY in self.figures:
            return self.figures[ZERO_SHOT_ACCURACY]
        return sum(self.figures[name] for name in RECALLS_AT_1) / len(RECALLS_AT_1)

    def __str__(self) -> str:
        """Say the figures that the best model is chosen by."""
        names = [name for name in (ZERO_SHOT_ACCURACY, *RECALLS_AT_1) if name in self.figures]
        return ", ".join(f"{name.replace('_', ' ')} {self.figures[name]:.3f}" for name in names)


class Validation:
    """What measures model folders, as `predict` uses them, on the data that `validation` and `zero_shot` name.

    Both are read at once; pictures are opened when something is measured.

    Args:
        settings: of the run.

    Attributes:
        digests: what tells whether both are the same when a run goes on; empty for what isn't there.

    Raises:
        UsageError: data can't be read, or hold nothing that can be used; with `strict_data`, anything that can't.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self._problems: dict[str, None] = {}  # in order, and each but once
        self.digests = {"validation": "", "zero_shot": ""}
        self._pairs, self._classes = None, None
        if settings.validation:
            self._pairs = _pairs(self._read("validation", settings.validation).rows, settings.templates)
        if settings.zero_shot:
            self._classes = _classes(self._read("zero_shot", settings.zero_shot).rows, settings.templates)

    @property
    def problems(self) -> tuple[str, ...]:
        """A message for each row and picture that can't be used; pictures are known once they were measured with."""
        return tuple(self._problems)

    def measure(self, folder: Path) -> dict[str, float]:
        """Return the figures of a model, as shares from 0 to 1.

        With `validation`, `image_to_text_recall@K` is the share of pictures one of whose captions is among the K
        that are nearest, `text_to_image_recall@K` that of captions one of whose pictures is; of equally near ones the
        first in the data count. Captions that differ in case or spacing alone are one. They are embedded as they are,
        or, where the model only ever saw captions in templates, in the first that fits. With `zero_shot`,
        `zero_shot_accuracy` is the share of pictures that `predict` would give the right class among all, in the run's
        templates. Pictures that can't be decoded are left out.

        Args:
            folder: of the model.

        Raises:
            ModelError: the model can't be loaded, or gives features that aren't numbers.
            UsageError: no picture can be decoded.
            StoppedError: with `strict_data`, one can't be.
        """
        spec = ModelSpec(str(folder), device=self._settings.device, precision=self._settings.precision)
        # the training goes on drawing random numbers as if nothing had been measured
        with torch.random.fork_rng(devices=()):
            encoder = load_encoder(spec)
            figures: dict[str, float] = {}
            if self._pairs is not None:
                figures |= _recalls(*self._embed(self._pairs, encoder))
            if self._classes is not None:
                figures[ZERO_SHOT_ACCURACY] = _accuracy(*self._embed(self._classes, encoder))
        return figures

    def _read(self, setting: str, name: str) -> Table:
        """Read the data that a setting names; none of their pictures is opened, but one at least is there."""
        if are_shards(name):
            raise UsageError(f"{setting}: {name}: not from shards; name a table, or class folders")
        if not in_store(name):
            if not os.path.exists(name):  # noqa: PTH110, it is said as it was given
                raise UsageError(f"{setting}: {name} doesn't exist; correct it, or leave it out")
            if setting == "zero_shot" and not os.path.isdir(name):  # noqa: PTH112
                raise UsageError(f"{setting}: {name} isn't a folder that holds a folder of pictures for each class")
        try:
            table = read_pairs(name)
        except UsageError as exc:
            raise UsageError(f"{setting}: {exc}") from exc
        self.digests[setting] = table.digest()
        if self._settings.strict_data and table.problems:
            count = len(table.problems)
            raise UsageError(f"strict_data: {count} of {setting} can't be used; the first problem: {table.problems[0]}")
        images = [row.image for row in table.rows]
        if not any(image.content is not None or os.path.isfile(image.path) for image in images):  # noqa: PTH113
            raise UsageError(f"{setting}: {name}: none of its pictures is there; the first is {images[0].path}")
        self._problems |= dict.fromkeys(table.problems)
        return table

    def _embed(self, data: HeldOut, encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.float32], Right]:
        """Return features of the pictures that can be decoded, features of all texts, and the texts of each picture."""
        session = Session(encoder, Execution(workers=self._settings.threads))
        images = list(data.pictures)
        pictures = Pictures(images)
        places, features = zip(*pictures.embed(session), strict=True)
        right = [data.pictures[images[place]] for place in np.concatenate(places)]
        problems = [f"{path}: {error}" for path, error in pictures.failures()]
        self._report(problems)
        if not right:
            raise UsageError(f"{data.setting}: no picture can be decoded; the first problem: {problems[0]}")
        texts = embed_texts(data.texts, session)
        return np.concatenate(features), np.stack([text.features for text in texts]), right

    def _report(self, problems: Sequence[str]) -> None:
        if problems and self._settings.strict_data:
            raise StoppedError(f"strict_data: {problems[0]}")
        self._problems |= dict.fromkeys(problems)


def _recalls(images: NDArray[np.float32], texts: NDArray[np.float32], right: Right) -> dict[str, float]:
    """Return the recall in both directions; texts none of whose pictures could be decoded aren't asked for."""
    pairs = np.array([(picture, text) for picture, indices in enumerate(right) for text in indices], dtype=np.int64)
    asked, text_of_pair = np.unique(pairs[:, 1], return_inverse=True)
    directions = {
        "image_to_text": ranks(images, texts, pairs),
        "text_to_image": ranks(texts[asked], images, np.stack([text_of_pair, pairs[:, 0]], axis=1)),
    }
    return {
        f"{name}_recall@{k}": int((found < k).sum()) / len(found) for name, found in directions.items() for k in RECALLS
    }


def _accuracy(images: NDArray[np.float32], texts: NDArray[np.float32], right: Right) -> float:
    """Return the share of pictures nearest to a text of theirs; of equally near ones `predict` takes the first."""
    best = [similarities(images[part], texts).argmax(axis=1) for part in blocks(len(images), len(texts))]
    return sum(index in indices for index, indices in zip(np.concatenate(best), right, strict=True)) / len(right)


def _pairs(rows: Sequence[Example], templates: Sequence[str]) -> HeldOut:
    """Return each caption as a text of its own."""
    phrasing = Phrasing(["{}"] if "{}" in templates else templates)
    found = ((row.image, (caption,)) for row in rows for caption in row.captions)
    return _held_out("validation", found, lambda captions: (next(phrasing.every(captions)),))


def _classes(rows: Sequence[Example], templates: Sequence[str]) -> HeldOut:
    """Return each class as a text, which is a caption in many templates."""
    phrasing = Phrasing(templates)
    found = ((row.image, row.captions) for row in rows)
    return _held_out("zero_shot", found, lambda captions: tuple(phrasing.every(captions)))


def _held_out(
    setting: str,
    found: Iterable[tuple[ImageRef, tuple[str, ...]]],
    prompts: Callable[[tuple[str, ...]], tuple[str, ...]],
) -> HeldOut:
    """Group pictures with captions that are one text: both pictures and texts may come more than once."""
    indices: dict[tuple[str, ...], int] = {}
    texts: list[tuple[str, ...]] = []
    pictures: dict[ImageRef, set[int]] = {}
    for image, captions in found:
        index = indices.setdefault(tuple(caption_key(text) for text in captions), len(texts))
        if index == len(texts):
            texts.append(prompts(captions))
        pictures.setdefault(image, set()).add(index)
    return HeldOut(setting, tuple(texts), {image: sorted(right) for image, right in pictures.items()})

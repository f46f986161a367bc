"""Zero-shot classification: labels and pictures to predictions."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipcls import inputs, vocabulary
from clipcls.cache import Cache, CachedText, default_folder
from clipcls.catalog import DEFAULT_MODEL
from clipcls.embed import ImageBatch, embed_images, embed_texts
from clipcls.errors import UsageError
from clipcls.images import MAX_PIXELS
from clipcls.labels import make_label, refuse_duplicates
from clipcls.prompts import load_prompt_set, render
from clipcls.ranking import LabelFeatures, Scoring, rank, scores
from clipcls.records import Decode, ImageRef, Label, ModelSpec, Prediction, PromptSet

if TYPE_CHECKING:
    from clipcls.encoder import Encoder

logger = logging.getLogger(__name__)

DEFAULT_BACKGROUND = "a photo"


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out; none of it changes what is predicted, but for `decode`.

    Attributes:
        batch_size: images a forward pass; None for 32 on a CPU, 128 on a GPU.
        workers: threads that decode; None for one a core, at most 8.
        max_pixels: an image with more is an error.
        cache_dir: None for no cache.
        strict_prompts: a prompt over the context length is an error, not a warning.
    """

    decode: Decode = "fast"
    batch_size: int | None = None
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    cache_dir: Path | None = None
    strict_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1.")


class Classifier:
    """A dual encoder with labels: give it pictures.

    Args:
        labels: names, or `Label` records.
        model: a name as `--model` takes it, a `ModelSpec`, or a function that gives an encoder.
        prompts: the name of a set, a file, or a `PromptSet`.
        background: what a label is compared with for sigmoid scores of a model without a logit_bias.
        execution: the default caches in the platform's cache directory.

    Raises:
        UsageError: labels, prompts or settings that can't be used. Errors of the model are raised at first use.
    """

    def __init__(
        self,
        labels: Sequence[str | Label],
        model: str | ModelSpec | Callable[[], "Encoder"] = DEFAULT_MODEL,
        prompts: str | PromptSet = "default",
        scoring: Scoring | None = None,
        background: str = DEFAULT_BACKGROUND,
        execution: Execution | None = None,
    ) -> None:
        if isinstance(labels, str) or not labels:
            raise UsageError(f"labels: expected a list of labels, got {labels!r}.")
        self.labels = tuple(make_label(label) if isinstance(label, str) else label for label in labels)
        refuse_duplicates(self.labels)
        self.prompts = load_prompt_set(prompts) if isinstance(prompts, str) else prompts
        self._prompts_of_labels = _rendered(self.labels, self.prompts)
        self.scoring = scoring or Scoring()
        self.background = background
        self.execution = execution or Execution(cache_dir=default_folder())
        self._model = ModelSpec(model) if isinstance(model, str) else model
        if len(self.labels) == 1 and self.scoring.kind == "softmax":
            logger.warning(
                "with one label its softmax score is always 1; --score cosine or --multi-label tell pictures apart"
            )

    def predict(self, paths: Iterable[str | os.PathLike[str] | ImageRef]) -> Iterator[Prediction]:
        """Classify images, in input order; results come as batches are done.

        Args:
            paths: files, directories and globs, or the references that `clipcls.inputs.discover` gives.

        Yields:
            One prediction for each image; an image that can't be read has its `error` set.

        Raises:
            ModelError: the model can't be had.
            UsageError: with `strict_prompts`, a prompt is over the context length.
        """
        label_features = self.label_features
        execution = self.execution
        on_cpu = self.encoder.device.type == "cpu"
        batches = embed_images(
            _references(paths),
            self.encoder,
            decode=execution.decode,
            batch_size=execution.batch_size or (32 if on_cpu else 128),
            workers=execution.workers or min(os.cpu_count() or 1, 8),
            max_pixels=execution.max_pixels,
        )
        for batch in batches:
            yield from self._rank(batch, label_features)

    @cached_property
    def encoder(self) -> "Encoder":
        """The model, opened at first use."""
        if not isinstance(self._model, ModelSpec):
            return self._model()
        # torch is imported here, so that importing clipcls stays light
        from clipcls.encoder import load_encoder

        return load_encoder(self._model)

    @cached_property
    def label_features(self) -> LabelFeatures:
        """The embedded labels; warns of prompts that were cut and of labels the model has no word of."""
        encoder = self.encoder
        all_prompts = list(self._prompts_of_labels)
        needs_background = self.scoring.kind == "sigmoid" and encoder.logit_bias is None
        if needs_background:
            all_prompts.append((self.background,))
        cache = Cache(self.execution.cache_dir)
        try:
            texts = embed_texts(all_prompts, encoder, cache)
        finally:
            cache.close()
        self._report_truncated(texts, encoder.context_length)
        self._report_unknown(encoder)

        return LabelFeatures(
            names=tuple(label.name for label in self.labels),
            features=np.stack([text.features for text in texts[: len(self.labels)]]),
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
            background=texts[-1].features if needs_background else None,
        )

    def _rank(self, batch: ImageBatch, labels: LabelFeatures) -> Iterator[Prediction]:
        cosines, label_scores = scores(batch.features, labels, self.scoring.kind)
        row = 0
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error is not None:
                yield Prediction(image.path, None, None, None, error=error)
                continue
            yield rank(image.path, cosines[row], label_scores[row], labels.names, self.scoring)
            row += 1

    def _report_truncated(self, texts: Sequence[CachedText], context_length: int) -> None:
        cut = list(dict.fromkeys(prompt for text in texts for prompt in text.truncated))
        if not cut:
            return
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        message = f"the model sees only the first {context_length} tokens of the prompt {cut[0]!r}{more}"
        if self.execution.strict_prompts:
            raise UsageError(f"--strict-prompts: {message}. Shorten the label or the template.")
        logger.warning("%s", message)

    def _report_unknown(self, encoder: "Encoder") -> None:
        words = encoder.words
        if words is None:
            return
        unknown = [
            label.name for label in self.labels if not any(vocabulary.is_known(text, words) for text in label.texts)
        ]
        if unknown:
            logger.warning(
                "model %s was never trained on a word of %s; its scores for %s mean nothing",
                encoder.name,
                ", ".join(repr(name) for name in unknown),
                "it" if len(unknown) == 1 else "them",
            )


def _rendered(labels: Sequence[Label], prompts: PromptSet) -> list[tuple[str, ...]]:
    """The prompts of every label; equal ones would split the score between their labels."""
    owners: dict[tuple[str, ...], str] = {}
    for label in labels:
        rendered = render(label, prompts)
        if not rendered:
            raise UsageError(f"Label {label.name!r} has neither text nor prompts.")
        if rendered in owners:
            raise UsageError(f"Labels {owners[rendered]!r} and {label.name!r} have the same prompts.")
        owners[rendered] = label.name
    return list(owners)


def _references(paths: Iterable[str | os.PathLike[str] | ImageRef]) -> Iterator[ImageRef]:
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        if isinstance(path, ImageRef):
            yield path
        else:
            yield from inputs.discover([os.fspath(path)])

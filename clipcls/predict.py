"""Zero-shot classification: labels and pictures to predictions."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from clipcls import inputs, vocabulary
from clipcls.cache import Cache, default_folder
from clipcls.catalog import DEFAULT_MODEL
from clipcls.embed import ImageBatch, embed_images, embed_texts
from clipcls.errors import UsageError
from clipcls.images import MAX_PIXELS
from clipcls.labels import make_label, refuse_duplicates
from clipcls.prompts import load_prompt_set, render, templates_set
from clipcls.ranking import LabelFeatures, Scoring, rank, scores
from clipcls.records import Decode, ImageRef, Label, ModelSpec, Prediction, PromptSet

if TYPE_CHECKING:
    from clipcls.encoder import Encoder

logger = logging.getLogger(__name__)

DEFAULT_BACKGROUND = "a photo"

OnePath = str | bytes | os.PathLike[str]
Paths = OnePath | Iterable[OnePath | ImageRef]


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
        if self.decode not in get_args(Decode):
            raise UsageError(f"Unknown decode mode {self.decode!r}. Use one of: {', '.join(get_args(Decode))}.")


class Classifier:
    """A dual encoder with labels: give it pictures.

    Args:
        labels: names, or `Label` records.
        model: a name as `--model` takes it, a folder, a `ModelSpec`, an encoder, or a function that gives one.
        prompts: the name of a set, a file, templates, or a `PromptSet`.
        background: what a label is compared with for sigmoid scores of a model without a logit_bias; None for
            "a photo".
        execution: the default caches in the platform's cache directory.

    Raises:
        UsageError: labels, prompts or settings that can't be used. Errors of the model are raised at first use.
    """

    def __init__(
        self,
        labels: Iterable[str | Label],
        model: "str | os.PathLike[str] | ModelSpec | Encoder | Callable[[], Encoder]" = DEFAULT_MODEL,
        prompts: str | os.PathLike[str] | Sequence[str] | PromptSet = "default",
        scoring: Scoring | None = None,
        background: str | None = None,
        execution: Execution | None = None,
    ) -> None:
        self.labels = _labels(labels)
        refuse_duplicates(self.labels)
        self.prompts = _prompt_set(prompts)
        self._prompts_of_labels = _rendered(self.labels, self.prompts)
        self.scoring = scoring or Scoring()
        if background is not None and self.scoring.kind != "sigmoid":
            raise UsageError(
                "a background is compared with for sigmoid scores only; leave it out, or score by sigmoid."
            )
        if self.scoring.min_margin is not None and len(self.labels) == 1:
            raise UsageError("--min-margin compares the two best labels, and there is only one.")
        self.background = background
        self.execution = execution or Execution(cache_dir=default_folder())
        self._model = ModelSpec(os.fspath(model)) if isinstance(model, str | os.PathLike) else model
        if len(self.labels) == 1 and self.scoring.kind == "softmax":
            logger.warning(
                "with one label its softmax score is always 1; the scores cosine and sigmoid tell pictures apart"
            )

    def predict(self, paths: Paths) -> Iterator[Prediction]:
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
        if isinstance(self._model, ModelSpec):
            # torch is imported here, so that importing clipcls stays light
            from clipcls.encoder import load_encoder

            return load_encoder(self._model)
        return self._model() if callable(self._model) else self._model

    @cached_property
    def label_features(self) -> LabelFeatures:
        """The embedded labels, made at first use."""
        return self.embed_labels()

    def embed_labels(self, report: Callable[[int, int], None] | None = None) -> LabelFeatures:
        """Embed the labels; warns of prompts that were cut and of labels the model has no word of.

        Args:
            report: called with the numbers of labels done and to do, of those that aren't cached.

        Raises:
            UsageError: with `strict_prompts`, a prompt is over the context length.
        """
        encoder = self.encoder
        prompts = list(self._prompts_of_labels)
        needs_background = self.scoring.kind == "sigmoid" and encoder.logit_bias is None
        if needs_background:
            prompts.append((self.background if self.background is not None else DEFAULT_BACKGROUND,))
        elif self.background is not None:
            logger.warning("the background has no effect: model %s was trained with a bias", encoder.name)
        if self.execution.strict_prompts:
            self._refuse_truncated(prompts, encoder)
        cache = Cache(self.execution.cache_dir)
        try:
            texts = embed_texts(prompts, encoder, cache, report)
        finally:
            cache.close()
        cut = dict.fromkeys(prompt for text in texts for prompt in text.truncated)
        if cut:
            logger.warning("%s", _truncated_message(list(cut), encoder.context_length))
        self._report_unknown(encoder)
        return LabelFeatures(
            names=tuple(label.name for label in self.labels),
            features=np.stack([text.features for text in texts[: len(self.labels)]]),
            logit_scale=encoder.logit_scale,
            logit_bias=encoder.logit_bias,
            background=texts[-1].features if needs_background else None,
        )

    def _refuse_truncated(self, prompts: Sequence[tuple[str, ...]], encoder: "Encoder") -> None:
        flat = [prompt for label_prompts in prompts for prompt in label_prompts]
        cut = [prompt for prompt, is_cut in zip(flat, encoder.truncated(flat), strict=True) if is_cut]
        if cut:
            message = _truncated_message(cut, encoder.context_length)
            raise UsageError(f"--strict-prompts: {message}. Shorten the label or the template.")

    def _rank(self, batch: ImageBatch, labels: LabelFeatures) -> Iterator[Prediction]:
        cosines, label_scores = scores(batch.features, labels, self.scoring.kind)
        row = 0
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error is not None:
                yield Prediction(image.path, None, None, None, error=error)
                continue
            yield rank(image.path, cosines[row], label_scores[row], labels.names, self.scoring)
            row += 1

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


def _labels(labels: Iterable[str | Label]) -> tuple[Label, ...]:
    # text would be taken letter by letter, a mapping would lose its values, a set has no order
    if isinstance(labels, str | bytes | Mapping | Set) or not isinstance(labels, Iterable):
        raise UsageError(f"labels: expected a list of names or Label records, got {labels!r}.")
    made = []
    for label in labels:
        if not isinstance(label, str | Label):
            raise UsageError(f"labels: {label!r} is neither text nor a Label.")
        made.append(label if isinstance(label, Label) else make_label(label))
    if not made:
        raise UsageError("No labels.")
    return tuple(made)


def _prompt_set(prompts: str | os.PathLike[str] | Sequence[str] | PromptSet) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str | os.PathLike):
        return load_prompt_set(os.fspath(prompts))
    return templates_set(prompts)


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


def _truncated_message(cut: Sequence[str], context_length: int) -> str:
    more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
    return f"the model sees only the first {context_length} tokens of the prompt {cut[0]!r}{more}"


def _references(paths: Paths) -> Iterator[ImageRef]:
    for path in [paths] if isinstance(paths, str | bytes | os.PathLike) else paths:
        if isinstance(path, ImageRef):
            yield path
        else:
            yield from inputs.discover([os.fsdecode(path)])

"""Zero-shot classification: labels and pictures to predictions."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcls.embed.cache.database import default_folder
from clipcls.embed.cache.store import Cache
from clipcls.embed.execution import Execution
from clipcls.embed.images import ImageBatch, embed_images
from clipcls.embed.lazy_encoder import LazyEncoder, find_model
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.errors import UsageError
from clipcls.inputs import discover as inputs
from clipcls.labels import vocabulary
from clipcls.labels.label_files import make_label, refuse_duplicates
from clipcls.labels.prompts import load_prompt_set, render, templates_set
from clipcls.models.catalog import DEFAULT_MODEL
from clipcls.predict.calibration import Basis, Calibration, prompts_digest
from clipcls.predict.explanation import Explainer
from clipcls.predict.ranking import LabelFeatures, Scoring, rank, scores
from clipcls.predict.scores import SCORE_KINDS, kind_names
from clipcls.records import ImageRef, Label, ModelFacts, ModelSpec, Prediction, PromptSet

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder

logger = logging.getLogger(__name__)

DEFAULT_BACKGROUND = "a photo"

OnePath = str | bytes | os.PathLike[str]
Paths = OnePath | Iterable[OnePath | ImageRef]


class Classifier:
    """A dual encoder with labels: give it pictures.

    Args:
        labels: names, or `Label` records.
        model: a name as `--model` takes it, a folder, a `ModelSpec`, an encoder, a function that gives one, or what
            `find_model` found, which several classifiers may share.
        prompts: the name of a set, a file, templates, or a `PromptSet`.
        background: what a label is compared with for sigmoid scores of a model without a logit_bias; None for
            "a photo".
        execution: the default caches in the platform's cache directory.

    Attributes:
        explain: whether predictions say which prompts they rest on; to be set before `predict`.

    Raises:
        UsageError: labels, prompts or settings that can't be used. Errors of the model are raised at first use.
    """

    def __init__(
        self,
        labels: Iterable[str | Label],
        model: "str | os.PathLike[str] | ModelSpec | LazyEncoder | Encoder | Callable[[], Encoder]" = DEFAULT_MODEL,
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
        self.explain = False
        self._calibration: Calibration | None = None
        score_kind = self.scoring.score_kind
        if background is not None and not score_kind.has_background:
            names = kind_names(lambda kind: kind.has_background)
            raise UsageError(
                f"a background is compared with for {names} scores only; leave it out, or score by {names}."
            )
        if self.scoring.min_margin is not None and len(self.labels) == 1:
            raise UsageError("--min-margin compares the two best labels, and there is only one.")
        self.background = background
        self.execution = execution or Execution(cache_dir=default_folder())
        self._model = ModelSpec(os.fspath(model)) if isinstance(model, str | os.PathLike) else model
        self._found: LazyEncoder | None = None
        if len(self.labels) == 1 and score_kind.adds_up:
            others = sorted(name for name, kind in SCORE_KINDS.items() if not kind.adds_up)
            logger.warning(
                "with one label its %s score is always 1; the scores %s tell pictures apart",
                score_kind.name,
                " and ".join(others),
            )

    def __getstate__(self) -> dict[str, Any]:
        # a model that is found or open belongs to this process; see `use`
        return self.__dict__ | {"_found": None}

    def use(self, model: LazyEncoder) -> None:
        """Take this model from now on, which has to be the same one on another device or machine."""
        self._found = model

    def predict(self, paths: Paths, stop: Callable[[], bool] = lambda: False) -> Iterator[Prediction]:
        """Classify images, in input order; results come as batches are done.

        Args:
            paths: files, directories and globs, or the references that `inputs.discover` gives. A generator
                is iterated over on a thread of its own.
            stop: asked after every batch, and while the input stalls. Once it says yes, the images that the model is
                at come to their end, and no more.

        Yields:
            One prediction for each image; an image that can't be read has its `error` set.

        Raises:
            ModelError: the model can't be had.
            UsageError: with `strict_prompts`, a prompt is over the context length.
        """
        labels = self.label_features
        cache = self.execution.open_cache()
        try:
            model = self._find(cache)
            explainer = Explainer(labels, self._prompts_of_labels, self.scoring, model, cache) if self.explain else None
            for batch in embed_images(_references(paths), model, cache, self.execution, stop):
                yield from self._rank(batch, labels, explainer)
        finally:
            cache.close()

    def settings(self) -> dict[str, Any]:
        """All that predictions depend on besides the images, by the names of the options, as JSON's types.

        Raises:
            ModelError: the model can't be had.
        """
        cache = self.execution.open_cache()
        try:
            model = self._find(cache)
            fingerprint = model.fingerprint(cache)
        finally:
            cache.close()
        return {
            "--model": fingerprint.hex(),
            "--labels": [[label.name, *label.texts, *label.prompts] for label in self.labels],
            "--prompts": list(self.prompts.templates),
            "--background": self.background,
            "--score": self.scoring.kind,
            "--multi-label": self.scoring.multi_label,
            "--top-k": self.scoring.top_k,
            "--threshold": self.scoring.threshold,
            "--min-margin": self.scoring.min_margin,
            "--precision": model.facts.precision,
            "--decode": self.execution.decode,
            "--max-pixels": self.execution.max_pixels,
            "--max-bytes": self.execution.max_bytes,
        } | self._further_settings()

    def _further_settings(self) -> dict[str, Any]:
        """Those that not each run has."""
        found: dict[str, Any] = {"--explain": True} if self.explain else {}
        return found if self.calibration is None else found | {"--calibration": self.calibration.digest[:12]}

    @property
    def calibration(self) -> Calibration | None:
        """What corrects scores, and may hold a threshold for each label; to be set before `predict`."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        self._calibration = calibration
        # they carry scale and thresholds
        self.__dict__.pop("label_features", None)

    @property
    def encoder(self) -> "Encoder":
        """The model, opened at first use."""
        cache = self.execution.open_cache()
        try:
            return self._find(cache).open(cache)
        finally:
            cache.close()

    def _find(self, cache: Cache) -> LazyEncoder:
        if self._found is None:
            self._found = self._model if isinstance(self._model, LazyEncoder) else find_model(self._model, cache)
        return self._found

    @cached_property
    def label_features(self) -> LabelFeatures:
        """The embedded labels, made at first use."""
        return self.embed_labels()

    def embed_labels(self, report: Callable[[int, int], None] | None = None) -> LabelFeatures:
        """Embed the labels; warns of prompts that were cut and of labels the model has no word of.

        Args:
            report: called with the numbers of labels done and to do, of those that aren't cached.

        Raises:
            UsageError: with `strict_prompts`, a prompt is over the context length; or the calibration is for others.
        """
        cache = self.execution.open_cache()
        try:
            calibration = self.calibration
            if calibration is None:
                return self._embed_labels(cache, report)
            if calibration.thresholds and self.scoring.threshold is not None:
                raise UsageError(f"{calibration.name} has a threshold for each label: leave --threshold out.")
            little = calibration.require(self._basis(cache))
            if little:
                logger.warning("%s: %s; scores differ a little", calibration.name, ", ".join(little))
            return calibration.apply(self._embed_labels(cache, report))
        finally:
            cache.close()

    def basis(self) -> Basis:
        """What the scores are made from, which a calibration must be for.

        Raises:
            ModelError: the model can't be had.
        """
        cache = self.execution.open_cache()
        try:
            return self._basis(cache)
        finally:
            cache.close()

    def _basis(self, cache: Cache) -> Basis:
        model = self._find(cache)
        names = tuple(label.name for label in self.labels)
        return Basis(
            model=self._model.name if isinstance(self._model, ModelSpec) else model.facts.name,
            fingerprint=model.fingerprint(cache).hex(),
            precision=model.facts.precision,
            decode=self.execution.decode,
            kind=self.scoring.score_kind.name,
            multi_label=self.scoring.multi_label,
            labels=names,
            prompt_set=self.prompts.name,
            prompts=prompts_digest(names, self._prompts_of_labels),
            background=self._background(model.facts),
        )

    def _background(self, facts: ModelFacts) -> str | None:
        """What the labels are compared with; None where they aren't."""
        if not self.scoring.score_kind.has_background or facts.logit_bias is not None:
            return None
        return DEFAULT_BACKGROUND if self.background is None else self.background

    def _embed_labels(self, cache: Cache, report: Callable[[int, int], None] | None) -> LabelFeatures:
        model = self._find(cache)
        facts = model.facts
        prompts = list(self._prompts_of_labels)
        background = self._background(facts)
        if background is not None:
            prompts.append((background,))
        elif self.background is not None:
            logger.warning("the background has no effect: model %s was trained with a bias", facts.name)
        texts = embed_texts(prompts, model, cache, strict=self.execution.strict_prompts, report=report)
        cut = dict.fromkeys(prompt for text in texts for prompt in text.truncated)
        if cut:
            logger.warning("%s", truncated_message(list(cut), facts.context_length))
        self._report_unknown(facts)
        return LabelFeatures(
            names=tuple(label.name for label in self.labels),
            features=np.stack([text.features for text in texts[: len(self.labels)]]),
            logit_scale=facts.logit_scale,
            logit_bias=facts.logit_bias,
            background=None if background is None else texts[-1].features,
        )

    def _rank(self, batch: ImageBatch, labels: LabelFeatures, explainer: Explainer | None) -> Iterator[Prediction]:
        cosines, label_scores = scores(batch.features, labels, self.scoring.score_kind)
        row = 0
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error is not None:
                yield Prediction(image.path, None, None, None, error=error)
                continue
            prediction = rank(
                image.path, cosines[row], label_scores[row], labels.names, self.scoring, labels.thresholds
            )
            if explainer is not None:
                explanation = explainer.explain(batch.features[row], cosines[row], label_scores[row])
                prediction = replace(prediction, explanation=explanation)
            yield prediction
            row += 1

    def _report_unknown(self, facts: ModelFacts) -> None:
        words = None if facts.words is None else vocabulary.read_words(Path(facts.words))
        if words is None:
            return
        unknown = [
            label.name for label in self.labels if not any(vocabulary.is_known(text, words) for text in label.texts)
        ]
        if unknown:
            logger.warning(
                "model %s was never trained on a word of %s; its scores for %s mean nothing",
                facts.name,
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


def _references(paths: Paths) -> Iterator[ImageRef]:
    for path in [paths] if isinstance(paths, str | bytes | os.PathLike) else paths:
        if isinstance(path, ImageRef):
            yield path
        else:
            yield from inputs.discover([os.fsdecode(path)])

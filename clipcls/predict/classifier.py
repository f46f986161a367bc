"""Zero-shot classification: give labels to pictures."""

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.images import ImageBatch, embed_images
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.errors import NOTICE, UsageError, quoted
from clipcls.inputs.discover import discover
from clipcls.labels import vocabulary
from clipcls.labels.label_files import make_label, refuse_duplicates
from clipcls.labels.prompts import load_prompt_set, read_model_prompts, render, templates_set
from clipcls.models.catalog import model_folder
from clipcls.outputs.rows import RowShape
from clipcls.predict.calibration import Basis, Calibration, prompts_digest
from clipcls.predict.explanation import Explainer
from clipcls.predict.nearness import nearest_pairs
from clipcls.predict.ranking import Array, LabelFeatures, LinearHead, Scoring, rank, scores
from clipcls.predict.scores import SCORE_KINDS, kind_names
from clipcls.predict.taught import Taught
from clipcls.predict.unknown import embed_other_words, known_shares, with_known, words_digest
from clipcls.predict.videos import FrameScorer, check_per, summarise
from clipcls.records import ImageRef, Label, ModelFacts, Per, Prediction, PromptSet

logger = logging.getLogger(__name__)

DEFAULT_BACKGROUND = "a photo"

OnePath = str | bytes | os.PathLike[str]
Paths = OnePath | Iterable[OnePath | ImageRef]


class Classifier:
    """Gives labels to pictures with a session's model. It never changes once it is made.

    Args:
        session: the model and the cache.
        labels: names, or `Label` records; or what examples taught, which has labels and prompts of its own.
        prompts: the name of a set, a file, templates, or a `PromptSet`; None for those that the model was trained
            with, where its folder states them, else `default`.
        background: the prompt that labels are compared with, for sigmoid scores of a model without a logit_bias;
            None for "a photo".
        calibration: corrects scores, and may hold a threshold for each label.
        explain: whether predictions say which prompts they rest on.
        per: what of videos a prediction is for, see `clipcls.predict.videos`.
        allow_equal: take labels with equal texts, under names of their own; zero-shot answers go to the first of them.

    Raises:
        UsageError: labels, prompts or settings can't be used. Errors of the model are raised at first use.
    """

    def __init__(
        self,
        session: Session,
        labels: Iterable[str | Label] | Taught,
        prompts: str | os.PathLike[str] | Sequence[str] | PromptSet | None = None,
        scoring: Scoring | None = None,
        *,
        background: str | None = None,
        calibration: Calibration | None = None,
        explain: bool = False,
        per: Per = "frame",
        allow_equal: bool = False,
    ) -> None:
        self.session: Final = session
        self.taught: Final = labels if isinstance(labels, Taught) else None
        if self.taught is not None:
            _refuse_for_taught(self.taught, prompts, scoring or Scoring())
            # examples tell labels apart that have the same words
            prompts, allow_equal = self.taught.prompts, True
        self.labels: Final = labels.labels if isinstance(labels, Taught) else _labels(labels)
        self._allow_equal: Final = allow_equal
        if not allow_equal:
            refuse_duplicates(self.labels)
        self.prompts: Final = default_prompts(session) if prompts is None else _prompt_set(prompts)
        self._prompts_of_labels: Final = _rendered(self.labels, self.prompts, allow_equal)
        self.scoring: Final = scoring or Scoring()
        self.background: Final = background
        self.calibration: Final = calibration
        self.explain: Final = explain
        self.per: Final = per
        # until `embed_labels` is first called
        self._embedded: LabelFeatures | None = None
        self._other_words: Array | None = None
        self._require_usable_scoring()
        score_kind = self.scoring.score_kind
        if len(self.labels) == 1 and score_kind.adds_up and self.scoring.unknown is None:
            others = sorted(name for name, kind in SCORE_KINDS.items() if not kind.adds_up)
            logger.warning(
                "with one label its %s score is always 1; the scores %s tell pictures apart",
                score_kind.name,
                " and ".join(others),
            )

    def _require_usable_scoring(self) -> None:
        check_per(self.per, self.scoring, self.explain)
        if self.background is not None and not self.scoring.score_kind.has_background:
            names = kind_names(lambda kind: kind.has_background)
            raise UsageError(
                f"a background is compared with for {names} scores only; leave it out, or score by {names}."
            )
        if self.scoring.min_margin is not None and len(self.labels) == 1:
            raise UsageError("--min-margin compares the two best labels, and there is only one.")

    def __getstate__(self) -> dict[str, Any]:
        # a session belongs to its process; see `on`
        return self.__dict__ | {"session": None}

    def on(self, session: Session) -> "Classifier":
        """Return the same classifier on another session of the same model; embedded labels are kept."""
        other = copy.copy(self)
        other.__dict__["session"] = session
        return other

    def predict(self, paths: Paths, stop: Callable[[], bool] = lambda: False) -> Iterator[Prediction]:
        """Classify images, in input order; results come as batches are done.

        Args:
            paths: files, directories and globs, or the references that `inputs.discover` gives. A generator
                is iterated over on a thread of its own.
            stop: called after every batch, and while the input stalls. Once it returns True, the images that the
                model has begun are finished, and no more are begun.

        Yields:
            One prediction for each image, or for each video or segment of one; an image that can't be read has its
            `error` set.

        Raises:
            ModelError: the model can't be loaded.
            UsageError: with `strict_prompts`, a prompt is over the context length.
        """
        ready = self._ready()
        batches = embed_images(references(paths), self.session, stop)
        if self.per == "frame":
            for batch in batches:
                yield from self._rank(batch, *ready)
        else:
            scorer = FrameScorer(ready[0], self.scoring)
            yield from summarise(batches, self.per, scorer, lambda batch: self._rank(batch, *ready), stop)

    def answer(self, batch: ImageBatch) -> list[Prediction]:
        """Return the answers to a batch of images that are embedded, as `predict` gives them."""
        return list(self._rank(batch, *self._ready()))

    def with_scoring(self, scoring: Scoring, explain: bool = False) -> "Classifier":
        """Return the classifier with other thresholds, counts or explanations; embedded labels are kept.

        Raises:
            UsageError: the scoring can't be used with these labels, or needs others to be embedded with them.
        """
        if scoring.kind != self.scoring.kind or (scoring.unknown is None) != (self.scoring.unknown is None):
            raise UsageError("Another score, or another way to tell unknown pictures, needs a classifier of its own.")
        other = self.on(self.session)
        other.__dict__.update(scoring=scoring, explain=explain)
        other._require_usable_scoring()
        return other

    def with_head(self, head: LinearHead) -> "Classifier":
        """Return the classifier with a function of image features instead of the cosines with its labels."""
        other = self.on(self.session)
        other.__dict__["_embedded"] = replace(self.label_features, head=head)
        return other

    def _ready(self) -> tuple[LabelFeatures, Explainer | None, NDArray[np.float64] | None]:
        labels = self.label_features
        explainer = Explainer(labels, self._prompts_of_labels, self.scoring, self.session) if self.explain else None
        return labels, explainer, None if self._other_words is None else self._other_words.astype(np.float64)

    def settings(self) -> dict[str, Any]:
        """Return all that predictions depend on besides the images, by the names of the options, in JSON's types.

        Raises:
            ModelError: the model can't be loaded.
        """
        settings: dict[str, Any] = {
            "--model": self.session.fingerprint.hex(),
            "--labels": [[label.name, *label.texts, *label.prompts] for label in self.labels],
            "--prompts": list(self.prompts.templates),
            "--background": self.background,
            "--score": self.scoring.kind,
            "--multi-label": self.scoring.multi_label,
            "--top-k": self.scoring.top_k,
            "--threshold": self.scoring.threshold,
            "--min-margin": self.scoring.min_margin,
            "--precision": self.session.facts.precision + self.session.facts.calibration,
            "--decode": self.session.execution.decode,
            "--max-pixels": self.session.execution.max_pixels,
            "--max-bytes": self.session.execution.max_bytes,
        }
        # settings that are recorded only where they are used, so that older records stay valid
        if self.explain:
            settings["--explain"] = True
        if self.per != "frame":
            settings["--per"] = self.per
        if self.taught is not None:
            settings["--taught"] = self.taught.digest[:12]
        if self.calibration is not None:
            settings["--calibration"] = self.calibration.digest[:12]
        if self.scoring.unknown is not None:
            settings["--min-known"] = self.scoring.unknown.min_known
            settings["--unknown-words"] = words_digest(self.scoring.unknown)
        return settings

    @property
    def row_shape(self) -> RowShape:
        """What rows hold besides the answer."""
        return RowShape(has_known=self.scoring.unknown is not None)

    @property
    def label_features(self) -> LabelFeatures:
        """The embedded labels, see `embed_labels`."""
        return self.embed_labels()

    def embed_labels(self, report: Callable[[int, int], None] | None = None) -> LabelFeatures:
        """Embed the labels at the first call, with warnings of truncated prompts and of labels unknown to the model.

        The words that tell unknown pictures are embedded with them.

        Args:
            report: called with the numbers of labels done and to do, not counting cached ones; then with words'.

        Raises:
            UsageError: with `strict_prompts`, a prompt is over the context length; the calibration, or what was taught,
                doesn't fit; or no word differs from the labels.
        """
        if self._embedded is None:
            labels, unknown = self._calibrated(report), self.scoring.unknown
            if unknown is not None:
                self._other_words = embed_other_words(
                    unknown, self.labels, labels.features, self.prompts, self.session, report
                )
            self._embedded = labels
        return self._embedded

    def _calibrated(self, report: Callable[[int, int], None] | None) -> LabelFeatures:
        calibration = self.calibration
        if calibration is None:
            return self._taught_labels(report)
        if calibration.thresholds and self.scoring.threshold is not None:
            raise UsageError(f"{calibration.name} has a threshold for each label: leave --threshold out.")
        little = calibration.require(self.basis())
        if little:
            logger.warning("%s: %s; scores differ a little", calibration.name, ", ".join(little))
        return calibration.apply(self._taught_labels(report))

    def _taught_labels(self, report: Callable[[int, int], None] | None) -> LabelFeatures:
        if self.taught is None:
            return self._embed_labels(report)
        little = self.taught.require(self.session)
        if little:
            logger.warning("%s: %s; scores differ a little", self.taught.name, ", ".join(little))
        return replace(self._embed_labels(report), head=self.taught.head)

    def basis(self) -> Basis:
        """Return what the scores depend on, which a calibration must match.

        Raises:
            ModelError: the model can't be loaded.
        """
        names = tuple(label.name for label in self.labels)
        return Basis(
            model=self.session.name,
            fingerprint=self.session.fingerprint.hex(),
            precision=self.session.facts.precision,
            decode=self.session.execution.decode,
            kind=self.scoring.score_kind.name,
            multi_label=self.scoring.multi_label,
            labels=names,
            prompt_set=self.prompts.name,
            prompts=prompts_digest(names, self._prompts_of_labels),
            background=self._background(self.session.facts),
            taught=None if self.taught is None else self.taught.digest[:12],
        )

    def _background(self, facts: ModelFacts) -> str | None:
        """Return the prompt that the labels are compared with; None where they aren't."""
        if not self.scoring.score_kind.has_background or facts.logit_bias is not None:
            return None
        return DEFAULT_BACKGROUND if self.background is None else self.background

    def _embed_labels(self, report: Callable[[int, int], None] | None) -> LabelFeatures:
        facts = self.session.facts
        prompts = list(self._prompts_of_labels)
        background = self._background(facts)
        if background is not None:
            prompts.append((background,))
        elif self.background is not None:
            logger.warning("the background has no effect: model %s was trained with a bias", facts.name)
        texts = embed_texts(prompts, self.session, strict=self.session.execution.strict_prompts, report=report)
        cut = dict.fromkeys(prompt for text in texts for prompt in text.truncated)
        if cut:
            logger.warning("%s", truncated_message(list(cut), facts.context_length))
        features = np.stack([text.features for text in texts[: len(self.labels)]])
        self._report_unknown(facts, features)
        return LabelFeatures(
            names=tuple(label.name for label in self.labels),
            features=features,
            logit_scale=facts.logit_scale,
            logit_bias=facts.logit_bias,
            background=None if background is None else texts[-1].features,
        )

    def _rank(
        self,
        batch: ImageBatch,
        labels: LabelFeatures,
        explainer: Explainer | None,
        other_words: NDArray[np.float64] | None,
    ) -> Iterator[Prediction]:
        cosines, label_scores = scores(batch.features, labels, self.scoring.score_kind)
        unknown = self.scoring.unknown
        if other_words is not None:
            # a calibrated scale fits the labels among themselves
            places = labels.features if self.taught is None else self.taught.prototypes
            known = known_shares(batch.features, places, other_words, self.session.facts.logit_scale)
        row = 0
        for image, error in zip(batch.images, batch.errors, strict=True):
            if error is not None:
                yield Prediction(image.path, None, None, None, error=error, index=image.index)
                continue
            prediction = rank(
                image.path, cosines[row], label_scores[row], labels.names, self.scoring, labels.thresholds
            )
            if unknown is not None:
                prediction = with_known(prediction, float(known[row]), unknown)
            if explainer is not None:
                explanation = explainer.explain(batch.features[row], cosines[row], label_scores[row])
                prediction = replace(prediction, explanation=explanation)
            yield prediction if image.index is None else replace(prediction, index=image.index)
            row += 1

    def _report_unknown(self, facts: ModelFacts, features: Array) -> None:
        """Warn of labels that a model with a closed vocabulary doesn't know, or can't tell apart."""
        words = None if facts.words is None else vocabulary.read_words(Path(facts.words))
        if words is None:
            return
        unknown = vocabulary.unknown_labels(self.labels, words)
        known = [label.name not in unknown for label in self.labels]
        shown = () if self.taught is None else self.taught.shown
        if meaningless := [name for name in unknown if name not in shown]:
            logger.warning("%s", vocabulary.unknown_message(facts.name, meaningless))
        if self._allow_equal:
            return
        names = [label.name for label, is_known in zip(self.labels, known, strict=True) if is_known]
        pairs, count = nearest_pairs(features[np.array(known, dtype=np.bool_)], 3)
        alike = [f"{names[pair.first]!r} and {names[pair.second]!r}" for pair in pairs[:count]]
        if alike:
            more = f", and {count - len(alike):,} more pairs," if count > len(alike) else ""
            logger.warning(
                "to model %s %s%s mean nearly the same, so it can't tell them apart",
                facts.name,
                "; ".join(alike),
                more,
            )


def _refuse_for_taught(taught: Taught, prompts: object, scoring: Scoring) -> None:
    if prompts is not None:
        raise UsageError(f"{taught.name} has prompts of its own: leave others out.")
    if not scoring.score_kind.adds_up:
        names = kind_names(lambda kind: kind.adds_up)
        raise UsageError(
            f"{taught.name} was taught which one label a picture has, so that its scores are {names} scores: leave "
            "--multi-label and other scores out."
        )


def _labels(labels: Iterable[str | Label]) -> tuple[Label, ...]:
    # text would be read letter by letter, a mapping would lose its values, a set has no order
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


def default_prompts(session: Session) -> PromptSet:
    """Return the prompts that a model was trained with, where its folder states them, else `default`."""
    own = None if session.spec is None else read_model_prompts(model_folder(session.spec.name))
    default = load_prompt_set("default")
    if own is None or own.templates == default.templates:
        return default
    logger.log(
        NOTICE,
        "prompts: %s, which model %s was trained with (others: --prompts default)",
        quoted(own.templates),
        session.name,
    )
    return own


def _prompt_set(prompts: str | os.PathLike[str] | Sequence[str] | PromptSet) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str | os.PathLike):
        return load_prompt_set(os.fspath(prompts))
    return templates_set(prompts)


def _rendered(labels: Sequence[Label], prompts: PromptSet, allow_equal: bool) -> list[tuple[str, ...]]:
    """Return the prompts of every label, and refuse equal ones, which would split the score between their labels."""
    owners: dict[tuple[str, ...], str] = {}
    found = [render(label, prompts) for label in labels]
    for label, rendered in zip(labels, found, strict=True):
        if not rendered:
            raise UsageError(f"Label {label.name!r} has neither text nor prompts.")
        if rendered in owners and not allow_equal:
            raise UsageError(f"Labels {owners[rendered]!r} and {label.name!r} have the same prompts.")
        owners[rendered] = label.name
    return found


def references(paths: Paths) -> Iterator[ImageRef]:
    """Yield the images that paths name, and references as they are."""
    for path in [paths] if isinstance(paths, str | bytes | os.PathLike) else paths:
        if isinstance(path, ImageRef):
            yield path
        else:
            yield from discover([os.fsdecode(path)])
